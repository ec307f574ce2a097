"""The full eigendecomposition: one dense factorisation that answers every (lam, alpha, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rates import Rates
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels.precomputed import NEGATIVE
from sdgpu.operators.operator import MatrixOperator
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["Eigh", "refuse_indefinite"]


@dataclass(frozen=True)
class Eigh:
    """K = V diag(delta) V' by LAPACK or cuSOLVER divide and conquer, in float64.

    Parameters
    ----------
    backend : Backend
        Where it runs.

    Notes
    -----
    About 9 n^3 operations and 3 n^2 doubles: K, overwritten by V, and 2 n^2 of workspace.
    """

    backend: Backend

    @staticmethod
    def peak_bytes(n: int) -> int:
        """Bytes at the peak for n rows, and 1 % for what is first touched then."""
        return int(1.01 * 8 * (3 * n * n + 64 * n))

    @staticmethod
    def seconds(n: int, rates: Rates) -> float:
        """Of K and its decomposition; small matrices run at a fraction of the rate of products."""
        return 4.2 * n**3 / rates.products * (1 + 700 / n) + n * n / 2 / rates.powers

    def decompose(self, operator: MatrixOperator, Y: Any, watch: Stopwatch) -> Spectrum:
        """Make the spectrum with Z = V'Y.

        Parameters
        ----------
        operator : MatrixOperator
            Of float64 rows on the backend.
        Y : array (n, c)
        watch : Stopwatch
            Gets the stages "gram" and "eigh".

        Raises
        ------
        ValueError
            If K is clearly not positive semi-definite.
        """
        with watch.stage("gram"), np.errstate(over="ignore", invalid="ignore"):
            K = operator.gram()
            _check_finite(K, operator)
        with watch.stage("eigh"):
            delta, V = self.backend.eigh(K)
        xp = compat.array_namespace(delta)
        largest = float(xp.max(xp.abs(delta)))
        smallest = float(delta[0])
        size = max(largest, operator.difference_scale)
        if smallest < -NEGATIVE[operator.given_dtype or "float64"] * size:
            refuse_indefinite(operator, smallest, largest)
        # what a backward-stable method can move an eigenvalue by
        noise = operator.n * float(xp.finfo(delta.dtype).eps) * largest
        below_rounding = int(xp.sum(xp.astype(delta < noise, xp.int64)))
        # clamped before any 1 / (delta + lam)
        return Spectrum(
            eigenvalues=xp.clip(delta, 0, None),
            basis=V,
            Z=V.T @ Y,
            below_rounding=below_rounding,
            most_negative=smallest,
            method="eigh",
        )


def _check_finite(K: Any, operator: MatrixOperator) -> None:
    xp = compat.array_namespace(K)
    # a row sum is finite only if the row is: no array of n^2 flags
    if not bool(xp.all(xp.isfinite(xp.sum(K, axis=1)))):
        X = operator.X.data if is_csr(operator.X) else operator.X
        largest = float(compat.array_namespace(X).max(abs(X)))
        raise ValueError(
            f"the kernel {operator.kernel!r} overflows on data with |X| up to {largest:.3g}: rescale X "
            "or the parameters of the kernel"
        )


def refuse_indefinite(operator: MatrixOperator, smallest: float, largest: float) -> None:
    """Raise the ValueError for a kernel whose eigenvalues go below what rounding allows."""
    description = (
        "the precomputed kernel" if operator.is_precomputed else f"the kernel {operator.kernel!r}"
    )
    raise ValueError(
        f"{description} is not positive semi-definite: its eigenvalues go down to {smallest:.3g} against a "
        f"largest of {largest:.3g}; use a positive semi-definite kernel, or clip its spectrum first"
    )
