"""Products with a Gaussian kernel on the CPU as one compiled loop: the only module that imports numba.

For each tile the loop calls the matrix product of torch's own library for the statistic, turns it into
values while a row is in the nearest cache, and multiplies from both sides: by the same library for many
columns, in the pass that evaluates for a single one. It needs neither Python's lock, for which the
threads would queue six times a tile, nor a second pool of threads.

2^t is split as 2^n 2^f with |f| <= 1/2: n goes into the exponent bits, and 2^f is a polynomial. What
bounds a pass is the count of its arithmetic instructions, 14 for each vector of values, so a t that
rounding made a little positive is left as it is: the value is then off by that rounding, like any other.

Compiled code is kept on disk; a new process then needs half a second. Where no folder can be written it
is compiled anew, in three: NUMBA_CACHE_DIR may name one that can.

Import it where it is used: without numba (extra ``fast``), or where torch exports no product, everything
works by torch's own passes.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.polynomial import chebyshev

__all__ = ["gemm_address", "products", "share", "values"]

njit = numba.njit


def _can_cache() -> bool:
    """Whether numba finds a folder to keep compiled code in: beside this file, or in the user's cache."""

    def small(x: Any) -> Any:
        return x

    try:
        njit(cache=True)(small)
    except RuntimeError:  # nothing can be written, as in a container
        return False
    return True


# no reassociation: the rounding by adding and subtracting a large number has to stay
_STRICT = {"nnan", "ninf", "nsz", "contract"}
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "cache": _can_cache()}
_PLAIN, _TRANSPOSED = ord("N"), ord("T")


@cache
def gemm_address(dtype: str) -> int:
    """Address of the matrix product (BLAS) in torch's library, 0 if it exports none."""
    name = {"float32": "sgemm_", "float64": "dgemm_"}[dtype]
    for library in sorted((Path(torch.__file__).parent / "lib").glob("*torch_cpu*")):
        try:
            function = getattr(ctypes.CDLL(str(library)), name)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


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
    types.float32: types.int32,
    types.int32: types.float32,
    types.float64: types.int64,
    types.int64: types.float64,
}


@intrinsic
def _bits(context: Any, number: Any) -> Any:
    """The bits of a float as an integer of its size, and back."""
    word = _WORDS[number]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(word))

    return word(number), generate


@intrinsic
def _gemm(
    context: Any,
    address: Any,
    trans_a: Any,
    trans_b: Any,
    m: Any,
    n: Any,
    k: Any,
    A: Any,
    row_a: Any,
    B: Any,
    row_b: Any,
    C: Any,
    row_c: Any,
) -> Any:
    """C (m, n) = op(A) op(B), matrices by rows with the given numbers from row to row.

    Called by address, so that the compiled loop can be kept on disk. BLAS counts by columns and takes
    everything by pointer: it is asked for C' = op(B)' op(A)'.
    """
    real = A.dtype

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number, whole = context.get_value_type(real), ir.IntType(32)
        text, pointer = ir.IntType(8), ir.IntType(8).as_pointer()
        callee = ir.FunctionType(ir.VoidType(), [pointer] * 13).as_pointer()
        function = builder.inttoptr(args[0], callee)

        def place(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def small(position: int, kind: Any = whole) -> Any:
            return place(builder.trunc(args[position], kind))

        def data(position: int) -> Any:
            array = context.make_array(signature.args[position])(context, builder, args[position])
            return builder.bitcast(array.data, pointer)

        one, zero = ir.Constant(number, 1.0), ir.Constant(number, 0.0)
        builder.call(
            function,
            [
                small(2, text),
                small(1, text),
                small(4),
                small(3),
                small(5),
                place(one),
                data(8),
                small(9),
                data(6),
                small(7),
                place(zero),
                data(10),
                small(11),
            ],
        )
        return context.get_dummy_value()

    integer = types.int64
    counts = [integer] * 6
    return types.void(*counts, A, integer, B, integer, C, integer), generate


@intrinsic
def _widest_vectors(context: Any) -> Any:
    """Let the calling function use vectors of 512 bits where the processor has them.

    LLVM prefers 256, for processors that slow down; a pass over a tile is a third faster with 512.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own add() knows no attribute with a value
        with suppress(Exception):  # another llvmlite: narrower vectors are right too
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


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
    _widest_vectors()
    total = column.dtype.type(0)
    for c in range(row.shape[0]):
        total += row[c] * column[c]
    return total


@njit(fastmath=_STRICT, **_OPTIONS)
def values(S: Any) -> None:
    """The statistic S = -gamma log2(e) |x - x'|^2 of a tile (h, w) becomes the values 2^S."""
    _widest_vectors()
    for r in range(S.shape[0]):
        row = S[r]
        for c in range(row.shape[0]):
            row[c] = _power(row[c])


@njit(fastmath=_STRICT, **_OPTIONS)
def _values_into(S: Any, K: Any) -> None:
    """The same in another array, of any type; where both are one, only `values` is vectorised."""
    _widest_vectors()
    for r in range(S.shape[0]):
        row, out = S[r], K[r]
        for c in range(row.shape[0]):
            out[c] = _power(row[c])


@njit(fastmath=_STRICT, **_OPTIONS)
def products(S: Any, left: Any, right: Any, high: Any, low: Any, scratch: Any) -> None:
    """K = 2^S of a tile: high (h,) grows by K right (w,), low (w,) by K' left (h,).

    scratch (w,) is overwritten. Sums over a row or a column of the tile are in the type of `left` and
    `right`, sums over tiles in that of `high` and `low`.
    """
    _widest_vectors()
    width = S.shape[1]
    scratch = scratch[:width]
    for c in range(width):
        scratch[c] = 0
    for r in range(S.shape[0]):
        row, weight = S[r], left[r]
        for c in range(width):
            value = _power(row[c])
            row[c] = value
            scratch[c] += value * weight
        high[r] += _dot(row, right)
    for c in range(width):
        low[c] += scratch[c]


@njit(**_OPTIONS)
def share(
    gemm: Any,
    gemm_wide: Any,
    left: Any,
    right: Any,
    V: Any,
    tile: int,
    first: int,
    step: int,
    flag: Any,
    high: Any,
    low: Any,
    S: Any,
    K: Any,
    P: Any,
    widen: bool,
) -> None:
    """Products of every step-th tile, from the first, with V (c, n) from both sides.

    high (n, c) grows by K V' and low (c, n) by V K, each pair of rows in one of them. Ends early when
    flag[0] is set.

    Parameters
    ----------
    gemm, gemm_wide : int
        Addresses of the matrix product for the type of the rows, and for that of V.
    left, right : array (n, k)
        Ready rows.
    S, K : array (tile^2,)
        Scratch for the statistic, in the type of the rows, and for values in float64.
    P : array (tile c,)
        Scratch in the type of V.
    widen : bool
        Whether V is of another type than the rows.
    """
    n, k = left.shape
    c = V.shape[0]
    blocks = (n + tile - 1) // tile
    for pair in range(first, blocks * (blocks + 1) // 2, step):
        if flag[0]:
            break
        i = int((math.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0)
        i += pair >= (i + 1) * (i + 2) // 2
        i -= pair < i * (i + 1) // 2
        i0, j0 = i * tile, (pair - i * (i + 1) // 2) * tile
        h, w = min(tile, n - i0), min(tile, n - j0)
        statistic = S[: h * w].reshape((h, w))
        _gemm(gemm, _PLAIN, _TRANSPOSED, h, w, k, left[i0:], k, right[j0:], k, statistic, w)
        if i0 == j0:
            for r in range(h):
                statistic[r, r] = 0
        if c == 1:
            low_sums = K[:w] if i0 == j0 else low[0, j0 : j0 + w]
            products(
                statistic, V[0, i0 : i0 + h], V[0, j0 : j0 + w], high[i0 : i0 + h, 0], low_sums, P
            )
            continue
        if widen:
            wide = K[: h * w].reshape((h, w))
            _values_into(statistic, wide)
            _both_sides(gemm_wide, wide, V, i0, j0, high, low, P)
        else:
            values(statistic)
            _both_sides(gemm_wide, statistic, V, i0, j0, high, low, P)


@njit(fastmath=True, **_OPTIONS)
def _both_sides(gemm: Any, K: Any, V: Any, i0: int, j0: int, high: Any, low: Any, P: Any) -> None:
    """The products of one tile of values with V from both sides."""
    (h, w), (c, n) = K.shape, V.shape
    _gemm(gemm, _PLAIN, _TRANSPOSED, h, c, w, K, w, V[:, j0:], n, P, c)
    for r in range(h):
        for q in range(c):
            high[i0 + r, q] += P[r * c + q]
    if i0 != j0:
        _gemm(gemm, _PLAIN, _PLAIN, c, w, h, V[:, i0:], n, K, w, P, w)
        for q in range(c):
            for r in range(w):
                low[q, j0 + r] += P[q * w + r]
