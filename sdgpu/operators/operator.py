"""What a solver may ask of K, however it is held."""

from __future__ import annotations

from typing import Any, Protocol

from sdgpu.operators.cross import Cross

__all__ = ["Operator"]


class Operator(Protocol):
    """K = kappa(X, X) as something that multiplies: the whole contract, for others to fulfil too."""

    @property
    def n(self) -> int:
        """Training rows."""

    @property
    def d(self) -> int:
        """Features of a row; n if K itself was given."""

    @property
    def is_precomputed(self) -> bool:
        """Whether K itself was given: new rows are then values (m, n) with the training rows."""

    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c)."""

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as something that multiplies (m, n); X_new (m, d)."""

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""
