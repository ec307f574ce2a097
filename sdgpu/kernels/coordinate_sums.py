"""Statistics of two rows that are a sum over coordinates of a term of two numbers, and are no product.

============  ==================  =========================================================
name          term of x and y     numbers
============  ==================  =========================================================
l1            |x - y|             any
min           min(x, y)           >= 0
chi2          (x - y)^2 / (x + y) >= 0; 0 where both are 0
harmonic      2 x y / (x + y)     >= 0; 0 where both are 0
============  ==================  =========================================================

Every term of nonnegative numbers is >= 0 and right to a few units in the last place, and so is the sum.
The terms are written once, for arrays of pairs and for the lazy tensors of KeOps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.kernels.elementwise import smaller

__all__ = ["TERMS", "TERM_SLOPES", "coordinate_sum"]


def _distance(x: Any, y: Any) -> Any:
    return abs(x - y)


def _chi_squared(x: Any, y: Any) -> Any:
    difference = x - y
    return difference * (difference / (x + y + _smallest(x)))  # a square might leave the range


def _harmonic_mean(x: Any, y: Any) -> Any:
    return 2 * x * (y / (x + y + _smallest(x)))


def _smallest(x: Any) -> float:
    """A number that changes no sum but 0, by which nothing can be divided."""
    dtype = str(x.dtype).rsplit(".", maxsplit=1)[-1]
    return float(np.finfo(dtype if dtype in ("float32", "float16") else "float64").tiny)


#: Terms of two numbers, by the name of their sum.
TERMS: dict[str, Callable[[Any, Any], Any]] = {
    "l1": _distance,
    "min": smaller,
    "chi2": _chi_squared,
    "harmonic": _harmonic_mean,
}


def _larger_one(x: Any, y: Any) -> Any:
    """1 where x < y: what min(x, y) grows by; 1/2 where both are equal."""
    xp = compat.array_namespace(x)
    return (1.0 - xp.sign(x - y)) / 2


def _chi_squared_slope(x: Any, y: Any) -> Any:
    total = x + y + _smallest(x)
    return (x - y) / total * ((x + 3 * y) / total)


def _harmonic_slope(x: Any, y: Any) -> Any:
    share = y / (x + y + _smallest(x))
    return 2 * share * share


#: Derivatives of the terms by x; at a kink the mean of those to both sides.
TERM_SLOPES: dict[str, Callable[[Any, Any], Any]] = {
    "l1": lambda x, y: compat.array_namespace(x).sign(x - y),
    "min": _larger_one,
    "chi2": _chi_squared_slope,
    "harmonic": _harmonic_slope,
}


def coordinate_sum(name: str, A: Any, B: Any) -> Any:
    """The sum of `name` for all pairs of rows (a, d) and (b, d), (a, b), in the dtype of the rows.

    Cost: a b d terms; coordinate by coordinate, or by the library's own routine.
    """
    if name == "l1" and compat.is_numpy_array(A):
        from scipy.spatial.distance import cdist

        return cdist(A, B, "cityblock").astype(A.dtype, copy=False)
    if name == "l1" and compat.is_torch_array(A):
        import torch

        return torch.cdist(A, B, p=1.0)
    xp, term = compat.array_namespace(A), TERMS[name]
    total = xp.zeros((A.shape[0], B.shape[0]), dtype=A.dtype, device=compat.device(A))
    for j in range(A.shape[1]):
        total += term(A[:, j][:, None], B[:, j][None, :])
    return total
