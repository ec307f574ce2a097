"""The full eigendecomposition: one dense factorisation that answers every (lam, alpha, step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.device.backend import Backend
from sdgpu.device.timing import Stopwatch
from sdgpu.kernels.given import ROUNDING
from sdgpu.operators.dense import DenseOperator
from sdgpu.spectrum import Spectrum

__all__ = ["Eigh"]


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
        """Bytes at the peak for n rows."""
        return 8 * (3 * n * n + 64 * n)

    def decompose(self, operator: DenseOperator, Y: Any, watch: Stopwatch) -> Spectrum:
        """Make the spectrum with Z = V'Y.

        Parameters
        ----------
        operator : DenseOperator
            Of float64 rows on the backend.
        Y : array (n, c)
        watch : Stopwatch
            Gets the stages "gram" and "eigh".

        Raises
        ------
        ValueError
            If K is clearly not positive semi-definite.
        """
        with watch.stage("gram"):
            K = operator.gram()
        with watch.stage("eigh"):
            raw, V = self.backend.eigh(K)
        xp = compat.array_namespace(raw)
        largest = float(xp.max(xp.abs(raw)))
        smallest = float(raw[0])
        if smallest < -ROUNDING["float64"] * largest:
            _refuse_indefinite(operator, smallest, largest)
        # what a backward-stable method can move an eigenvalue by
        noise = operator.n * float(xp.finfo(raw.dtype).eps) * largest
        below = int(xp.sum(xp.astype(raw < noise, xp.int64)))
        # clamped before any 1 / (delta + lam)
        return Spectrum(xp.clip(raw, 0, None), V, V.T @ Y, below, smallest, "eigh")


def _refuse_indefinite(operator: DenseOperator, smallest: float, largest: float) -> None:
    if operator.given and smallest > -ROUNDING["float32"] * largest:
        return  # a given matrix may have been computed in float32
    what = "the precomputed kernel" if operator.given else f"the kernel {operator.kernel!r}"
    raise ValueError(
        f"{what} is not positive semi-definite: its eigenvalues go down to {smallest:.3g} against a "
        f"largest of {largest:.3g}; use a positive semi-definite kernel, or clip its spectrum first"
    )
