"""Kernels that the caller brings: a function of two matrices, or the Gram matrix itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat as compat

from sdgpu.backend.arrays import dtype_name, library, slices
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import Kernel

__all__ = ["FunctionKernel", "Precomputed", "check_symmetric"]

# Asymmetry and negative eigenvalues up to this size, relative to the largest, pass as rounding.
ASYMMETRY = {"float64": 1e-8, "float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
NEGATIVE = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


@dataclass(frozen=True)
class FunctionKernel(Kernel):
    """kappa(A, B) by a function of the caller's.

    Parameters
    ----------
    function : callable
        (a, d), (b, d) -> (a, b), in the library of its arguments. It must be symmetric and positive
        semi-definite; it is called once for each tile, and the symmetry is checked on every
        diagonal tile. The form of scikit-learn, (d,), (d,) -> number, works too, by a call for each pair.
    """

    function: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function={self.function!r} is not callable")

    def rows(self, X: Any, centre: Any) -> Rows:
        return Rows(X, X)

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        tile = self._values(a.left, b.left)
        if library(tile) != library(a.left) or "float" not in dtype_name(tile):
            raise TypeError(
                f"the kernel function returned {dtype_name(tile)} numbers of {library(tile)}: it must "
                f"return floats of {library(a.left)}, the library of its arguments"
            )
        xp = compat.array_namespace(a.left)
        if a.room is None or not a.room.is_known:  # seen before: to look waits for the device
            if not bool(xp.all(xp.isfinite(tile))):
                raise ValueError("the kernel function returned NaN or infinity")
            if same:
                check_symmetric(tile, "the kernel function", dtype_name(tile))
        return xp.astype(tile, a.left.dtype, copy=False)

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.left)
        singles = [
            self._values(rows.left[i : i + 1, :], rows.left[i : i + 1, :])[0, 0]
            for i in range(len(rows))
        ]
        return xp.astype(xp.stack(singles), rows.left.dtype) if singles else rows.left[:, 0]

    def value_dtype(self, X: Any) -> str:
        """Name of the dtype of its values for rows (1, d), or that of the rows if that is less precise."""
        order = ("bfloat16", "float16", "float32", "float64")
        kernel_dtype, row_dtype = dtype_name(self._values(X, X)), dtype_name(X)
        return min(kernel_dtype, row_dtype, key=order.index) if kernel_dtype in order else row_dtype

    def _values(self, A: Any, B: Any) -> Any:
        """Values (a, b), whichever form the function has."""
        sizes = (int(A.shape[0]), int(B.shape[0]))
        try:
            tile = self.function(A, B)
            shape = tuple(getattr(tile, "shape", ()))
            # a product of (a, d) and (d, d) has that shape by chance
            if shape == sizes and (sizes[1] != A.shape[1] or self._is_of_matrices(A, B)):
                return tile
        except Exception:
            if not self._is_of_rows(A, B):
                raise
        if not self._is_of_rows(A, B):
            raise ValueError(
                f"the kernel function returned shape {shape} for {sizes}: it must return one value for "
                "each pair of rows"
            )
        xp, (a, b) = compat.array_namespace(A), sizes
        values = [[float(self.function(A[i, :], B[j, :])) for j in range(b)] for i in range(a)]
        return xp.asarray(values, dtype=A.dtype, device=compat.device(A))

    def _is_of_matrices(self, A: Any, B: Any) -> bool:
        """Whether a row more in B is a column more in the result."""
        xp = compat.array_namespace(A)
        try:
            tile = self.function(A[:1, :], xp.concat([B, B[:1, :]], axis=0))
        except Exception:
            return False
        return tuple(getattr(tile, "shape", ())) == (1, int(B.shape[0]) + 1)

    def _is_of_rows(self, A: Any, B: Any) -> bool:
        """Whether two rows give a number."""
        try:
            value = self.function(A[0, :], B[0, :])
            return tuple(getattr(value, "shape", ())) == () and isinstance(float(value), float)
        except Exception:
            return False


@dataclass(frozen=True)
class Precomputed(Kernel):
    """The "rows" are rows of a Gram matrix: X is K (n, n), new inputs are kappa(X_new, X) (m, n).

    K must be symmetric; a matrix that is clearly not positive semi-definite is refused when it is
    decomposed.
    """

    is_precomputed: ClassVar[bool] = True

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
    sizes, differences = [], []  # looked at together, for each look waits for a GPU
    for high in slices(n, tile):
        for low in slices(high.stop, tile):
            block = K[high, low]
            sizes.append(xp.max(xp.abs(block)))
            differences.append(xp.max(xp.abs(block - K[low, high].T)))
    extremes = (xp.max(xp.stack(part)) for part in (sizes, differences)) if n else (0.0, 0.0)
    largest, worst = map(float, extremes)
    if worst > ASYMMETRY.get(dtype, ASYMMETRY["float32"]) * largest:
        raise ValueError(
            f"{name} is not symmetric: |K - K'| reaches {worst:.3g} against |K| <= {largest:.3g}; "
            "average it with its transpose if that is intended"
        )
