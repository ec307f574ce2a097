"""One pass over a tile of a Gaussian kernel on the CPU: the only module that imports numba.

torch passes over a tile for the clamp, for the power of two, and for each of the two products. Here one
pass does all of it while a row is in the nearest cache: for a single column the product of a tile is
then bound by its power of two. Import it where it is used: without numba (extra ``fast``), everything
works by torch's own passes.

2^t is split as 2^n 2^f with |f| <= 1/2: n goes into the exponent bits, and 2^f is a polynomial. What
bounds a pass is the count of its arithmetic instructions, 14 for each vector of values, so a t that
rounding made a little positive is left as it is: the value is then off by that rounding, like any other.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload
from numpy.polynomial import chebyshev

__all__ = ["products", "values", "values_into"]

njit = numba.njit

# no reassociation: the rounding by adding and subtracting a large number has to stay
_STRICT = {"nnan", "ninf", "nsz", "contract"}
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "cache": True}


def coefficients(dtype: str) -> list[Any]:
    """Of a polynomial that is 2^f on [-1/2, 1/2] to the rounding of `dtype`, lowest power first."""
    if dtype == "float64":  # Taylor: interpolation in float64 would bring its own rounding
        return [math.log(2) ** k / math.factorial(k) for k in range(14)]
    nodes = chebyshev.chebpts1(7)
    series = chebyshev.chebfit(nodes, np.exp2(nodes / 2), 6)
    return [np.float32(value * 2**k) for k, value in enumerate(chebyshev.cheb2poly(series))]


A0, A1, A2, A3, A4, A5, A6 = coefficients("float32")
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13 = coefficients("float64")
# adding it rounds to a whole number, which is then in the lowest bits
_ROUND32, _ROUND64 = np.float32(1.5 * 2.0**23), 1.5 * 2.0**52
_LOWEST32, _LOWEST64 = np.float32(-126.0), -1022.0
_SHIFT32, _SHIFT64 = np.int32(23), np.int64(52)
_WORDS = {
    types.float32: types.int32, types.int32: types.float32,
    types.float64: types.int64, types.int64: types.float64,
}  # fmt: skip


@intrinsic
def _bits(context: Any, number: Any) -> Any:
    """The bits of a float as an integer of its size, and back."""
    word = _WORDS[number]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(word))

    return word(number), generate


def _power(t: Any) -> Any:
    """2^t, t no more than a rounding above 0; comparisons and shifts, no branch and no call."""
    raise NotImplementedError  # what compiled code calls is chosen below


@overload(_power, inline="always")
def _choose(t: Any) -> Any:
    return _power32 if t == types.float32 else _power64


def _power32(t: Any) -> Any:
    t = t if t > _LOWEST32 else _LOWEST32
    shifted = t + _ROUND32
    f = t - (shifted - _ROUND32)
    p = A0 + f * (A1 + f * (A2 + f * (A3 + f * (A4 + f * (A5 + f * A6)))))
    return _bits(np.int32(_bits(p) + np.int32(_bits(shifted) << _SHIFT32)))


def _power64(t: Any) -> Any:
    t = t if t > _LOWEST64 else _LOWEST64
    shifted = t + _ROUND64
    f = t - (shifted - _ROUND64)
    p = B7 + f * (B8 + f * (B9 + f * (B10 + f * (B11 + f * (B12 + f * B13)))))
    p = B0 + f * (B1 + f * (B2 + f * (B3 + f * (B4 + f * (B5 + f * (B6 + f * p))))))
    return _bits(np.int64(_bits(p) + np.int64(_bits(shifted) << _SHIFT64)))


@njit(fastmath=True, **_OPTIONS)
def _dot(row: Any, column: Any) -> Any:
    total = column.dtype.type(0)
    for c in range(row.shape[0]):
        total += row[c] * column[c]
    return total


@njit(fastmath=_STRICT, **_OPTIONS)
def values(S: Any) -> None:
    """The statistic S = -gamma log2(e) |x - x'|^2 of a tile (h, w) becomes the values 2^S."""
    for r in range(S.shape[0]):
        row = S[r]
        for c in range(row.shape[0]):
            row[c] = _power(row[c])


@njit(fastmath=_STRICT, **_OPTIONS)
def values_into(S: Any, K: Any) -> None:
    """The same in another array, of any type; where both are one, only `values` is vectorised."""
    for r in range(S.shape[0]):
        row, out = S[r], K[r]
        for c in range(row.shape[0]):
            out[c] = _power(row[c])


@njit(fastmath=_STRICT, **_OPTIONS)
def products(S: Any, left: Any, right: Any, high: Any, low: Any, room: Any) -> None:
    """K = 2^S of a tile: high (h,) grows by K right (w,), low (w,) by K' left (h,).

    room (w,) is scratch. Sums over a row or a column of the tile are in the type of `left` and
    `right`, sums over tiles in that of `high` and `low`.
    """
    width = S.shape[1]
    room = room[:width]
    for c in range(width):
        room[c] = 0
    for r in range(S.shape[0]):
        row, weight = S[r], left[r]
        for c in range(width):
            value = _power(row[c])
            row[c] = value
            room[c] += value * weight
        high[r] += _dot(row, right)
    for c in range(width):
        low[c] += room[c]
