"""The spectrum: what a solver makes and what every filter needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sdgpu.distill.filters import flat_product

__all__ = ["Spectrum"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of K with the targets in that basis, K = V diag(delta) V'.

    Attributes
    ----------
    eigenvalues : array (k,)
        delta, ascending, clamped at 0.
    basis : array (n, k)
        V, orthonormal columns.
    Z : array (k, c)
        V'Y.
    below_rounding : int
        How many eigenvalues are below n eps max(delta) and so have no reliable digit.
    most_negative : float
        Smallest eigenvalue before the clamp: how indefinite rounding (or the kernel) made K.
    method : str
        What made it.
    outside : array (c,), optional
        ||Y||^2 - ||Z||^2 of each output: what the basis does not hold of the targets. None where it holds
        all of them. Training errors and generalised cross-validation would be too small without it.
    """

    eigenvalues: Any
    basis: Any
    Z: Any
    below_rounding: int
    most_negative: float
    method: str
    outside: Any = None

    def with_targets(self, Y: Any) -> Spectrum:
        """The same decomposition for other targets (n, c).

        Raises
        ------
        ValueError
            If the basis was grown from its targets: it says little of others.
        """
        n, k = self.basis.shape
        if k < n:
            raise ValueError(
                f"a {self.method} basis of {k} vectors grew from its own targets and serves no others: fit "
                "again with the new Y, or once with method='eigh'"
            )
        return replace(self, Z=self.basis.T @ Y)

    def combine(self, filters: Any) -> Any:
        """V diag(filter) Z for each filter, in one product of (n, k) by (k, everything else).

        Parameters
        ----------
        filters : array (..., k, 1) or (..., k, c)
            One filter for all outputs, or one for each.

        Returns
        -------
        array (..., n, c)
        """
        return flat_product(self.basis, filters * self.Z)
