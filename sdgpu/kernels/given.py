"""Kernels that the caller brings: a function of two matrices, or the Gram matrix itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.device.arrays import dtype_name, library, slices
from sdgpu.kernels.base import Kernel
from sdgpu.kernels.statistics import Rows

__all__ = ["FunctionKernel", "Precomputed", "check_symmetric"]

# Asymmetry and negative eigenvalues up to this size, relative to the largest, pass as rounding.
ASYMMETRY = {"float64": 1e-8, "float32": 1e-4}
NEGATIVE = {"float64": 1e-6, "float32": 1e-4}


@dataclass(frozen=True)
class FunctionKernel(Kernel):
    """kappa(A, B) by a function of the caller's.

    Parameters
    ----------
    function : callable
        (a, d), (b, d) -> (a, b), in the library of its arguments. It must be symmetric and positive
        semi-definite; it is called once for each tile, and the symmetry is checked on every
        diagonal tile.
    """

    function: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function={self.function!r} is not callable")

    def rows(self, X: Any, centre: Any) -> Rows:
        return Rows(X, X)

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        tile = self.function(a.left, b.left)
        wanted = (len(a), len(b))
        if tuple(getattr(tile, "shape", ())) != wanted:
            raise ValueError(
                f"the kernel function returned shape {getattr(tile, 'shape', None)} for {wanted}: "
                "it must return one value for each pair of rows"
            )
        if library(tile) != library(a.left) or not dtype_name(tile).startswith("float"):
            raise TypeError(
                f"the kernel function returned {dtype_name(tile)} numbers of {library(tile)}: it must "
                f"return floats of {library(a.left)}, the library of its arguments"
            )
        xp = compat.array_namespace(a.left)
        if not bool(xp.all(xp.isfinite(tile))):
            raise ValueError("the kernel function returned NaN or infinity")
        if same:
            check_symmetric(tile, "the kernel function", dtype_name(tile))
        return xp.astype(tile, a.left.dtype, copy=False)

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.left)
        singles = [self.function(rows.left[i : i + 1, :], rows.left[i : i + 1, :])[0, 0]
                   for i in range(len(rows))]  # fmt: skip
        return xp.stack(singles) if singles else rows.left[:, 0]


@dataclass(frozen=True)
class Precomputed(Kernel):
    """The "rows" are rows of a Gram matrix: X is K (n, n), new inputs are kappa(X_new, X) (m, n).

    K must be symmetric; a matrix that is clearly not positive semi-definite is refused when it is
    decomposed.
    """

    def rows(self, X: Any, centre: Any) -> Rows:
        return Rows(X, X)

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        raise TypeError("a precomputed kernel has no values between new pairs of rows")

    def diagonal(self, rows: Rows) -> Any:
        return compat.array_namespace(rows.left).linalg.diagonal(rows.left)

    def __call__(self, A: Any, B: Any = None) -> Any:
        raise TypeError("a precomputed kernel cannot be evaluated: pass a kernel with a formula")


def check_symmetric(K: Any, name: str, dtype: str, *, tile: int = 1024) -> None:
    """Raise ValueError unless K is symmetric up to rounding of `dtype`; one pass, tile by tile."""
    xp = compat.array_namespace(K)
    n = K.shape[0]
    largest = worst = 0.0
    for high in slices(n, tile):
        for low in slices(high.stop, tile):
            block = K[high, low]
            largest = max(largest, float(xp.max(xp.abs(block))))
            worst = max(worst, float(xp.max(xp.abs(block - K[low, high].T))))
    if worst > ASYMMETRY.get(dtype, ASYMMETRY["float32"]) * largest:
        raise ValueError(
            f"{name} is not symmetric: |K - K'| reaches {worst:.3g} against |K| <= {largest:.3g}; "
            "average it with its transpose if that is intended"
        )
