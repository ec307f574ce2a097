"""What a solver may ask of K, however it is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

__all__ = ["ChangedOperator", "CrossOperator", "MatrixOperator", "Operator"]


class CrossOperator(Protocol):
    """kappa(X_new, X) (m, n) as something that multiplies: predictions from coefficients."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    def blocks(self, entries: int = ...) -> Iterator[tuple[slice, Any]]:
        """Row blocks (b, n) of at most `entries` numbers, with the rows they stand for."""

    def matmat(self, V: Any) -> Any:
        """The product with V: (n, c) -> (m, c)."""

    def __matmul__(self, V: Any) -> Any: ...

    def diag(self) -> Any:
        """kappa(x, x) of the new rows, (m,)."""

    def dense(self) -> Any:
        """The matrix (m, n)."""


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

    def cross(self, X_new: Any) -> CrossOperator:
        """kappa(X_new, X) as something that multiplies (m, n); X_new (m, d)."""

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""


class ChangedOperator:
    """What an operator made from another one says of its rows: the same."""

    operator: Operator

    @property
    def n(self) -> int:
        """Training rows."""
        return self.operator.n

    @property
    def d(self) -> int:
        """Features of a row."""
        return self.operator.d

    @property
    def is_precomputed(self) -> bool:
        """Whether K itself was given."""
        return self.operator.is_precomputed

    @property
    def layout(self) -> Any:
        """Which rows are on which rank; None where all are here."""
        return getattr(self.operator, "layout", None)


class MatrixOperator(Operator, Protocol):
    """One that can be made whole, or of features, for all its eigenvalues."""

    @property
    def kernel(self) -> Any:
        """What K is made with."""

    @property
    def X(self) -> Any:  # noqa: N802
        """Training rows (n, d), or K itself."""

    @property
    def given_dtype(self) -> str | None:
        """Precision in which K was given."""

    @property
    def difference_scale(self) -> float:
        """Size of the numbers that entries of K are differences of; 0 if they are none."""

    def matmat_once(self, V: Any) -> Any:
        """K V without keeping K."""

    def gram(self) -> Any:
        """A new K (n, n) that the caller may overwrite."""

    def own_features(self) -> Any:
        """Phi (n, k) with K = Phi Phi', of kernels that have such."""

    def rounding(self) -> float:
        """Bound on the relative error of an entry of K, over eps."""
