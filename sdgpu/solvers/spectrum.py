"""The spectrum: what a solver makes and what every filter needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat

from sdgpu.distill.filters import flat_product

__all__ = ["AVERAGED", "PRIMAL", "Spectrum", "above_rounding", "with_null_part"]

ROUNDED = 1e-14  # share of an output that rounding leaves of it
LEAST = "least norm"  # the method that knows all eigenvalues above rounding, for lam = 0
AVERAGED = "average"  # of several workers side by side: columns that are not orthogonal
PRIMAL = "primal"  # the method that knows all eigenvalues but those that are 0


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
        if self.method == PRIMAL:
            xp = compat.array_namespace(self.eigenvalues)
            nullity = int(xp.sum(xp.astype(self.eigenvalues == 0, xp.int64)))
            return with_null_part(self.eigenvalues[nullity:], self.basis[:, nullity:], Y)
        if self.method == LEAST:
            return _above(self, Y)
        if k < n:
            raise ValueError(
                f"a {self.method} basis of {k} vectors grew from its own targets and serves no others: fit "
                "again with the new Y, or once with method='eigh'"
            )
        return replace(self, Z=self.basis.T @ Y)

    @property
    def holds_kernel(self) -> bool:
        """Whether K is 0 outside of the basis, which is orthonormal."""
        if self.method == AVERAGED:  # its columns may be as many as the rows by chance
            return False
        return self.method == PRIMAL or self.basis.shape[0] == self.basis.shape[1]

    @property
    def serves_schedules(self) -> bool:
        """Whether chains with a lam for each step stay in the basis: it was not grown for others."""
        return self.holds_kernel or self.method == AVERAGED

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


def above_rounding(spectrum: Spectrum, Y: Any) -> Spectrum:
    """The part of a spectrum whose eigenvalues are more than rounding, n eps of the largest.

    What it does not hold of Y (n, c) is counted as outside.
    """
    xp, delta = compat.array_namespace(Y), spectrum.eigenvalues
    k, n = int(delta.shape[0]), int(spectrum.basis.shape[0])
    noise = n * float(xp.finfo(delta.dtype).eps) * float(delta[-1])
    first = int(xp.sum(xp.astype(delta <= noise, xp.int64)))
    kept = replace(
        spectrum,
        eigenvalues=delta[first:k],
        basis=spectrum.basis[:, first:],
        below_rounding=first,
        method=LEAST,
    )
    return _above(kept, Y)


def _above(spectrum: Spectrum, Y: Any) -> Spectrum:
    xp, Z = compat.array_namespace(Y), spectrum.basis.T @ Y
    outside = xp.clip(xp.sum(Y * Y, axis=0) - xp.sum(Z * Z, axis=0), 0.0, None)
    return replace(spectrum, Z=Z, outside=outside)


def with_null_part(eigenvalues: Any, basis: Any, Y: Any) -> Spectrum:
    """The spectrum of a K that is 0 outside of its basis, for targets that are not.

    What the basis does not hold of Y becomes eigenvectors of the eigenvalue 0, one for each output at most.

    Parameters
    ----------
    eigenvalues : array (k,)
        > 0, ascending.
    basis : array (n, k)
    Y : array (n, c)
    """
    xp = compat.array_namespace(Y)
    left = Y
    for _ in range(2):  # once more: what rounding leaves of the basis
        left = left - basis @ (basis.T @ left)
    n, k = basis.shape
    if k < n:
        Q, R = xp.linalg.qr(left[:, : min(n - k, int(left.shape[1]))])
        # outputs that the basis holds, or that are combinations of others, leave rounding alone
        sizes = xp.abs(xp.linalg.diagonal(R))
        norms = xp.sqrt(xp.sum(Y * Y, axis=0))[: sizes.shape[0]]
        Q = xp.take(Q, xp.nonzero(sizes > ROUNDED * norms)[0], axis=1)
        basis = xp.concat([Q, basis], axis=1)
        eigenvalues = xp.concat([xp.zeros_like(Q[0, :]), eigenvalues], axis=0)
    return Spectrum(
        eigenvalues=eigenvalues,
        basis=basis,
        Z=basis.T @ Y,
        below_rounding=int(basis.shape[1]) - k,
        most_negative=0.0,
        method=PRIMAL,
    )
