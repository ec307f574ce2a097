"""The parts of the fused product that Triton compiles: the only module that imports triton.

:func:`product_kernel` is one program for every kernel; the function that makes the values of a block of
pairs is written by :mod:`sdgpu.operators.device_source` and given as a constant.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from types import CodeType
from typing import Any

from sdgpu.operators.device_source import NAME

try:  # the compiler reads the globals of a kernel: they cannot be imported inside a function
    import triton
    import triton.language as tl
except ImportError:  # the functions below are never called then
    triton = tl = None

__all__ = ["installed", "interpreted", "product_kernel", "values_function"]


def _jit(function: Callable) -> Any:
    return function if triton is None else triton.jit(function)


def installed() -> bool:
    """Whether Triton can be imported."""
    return triton is not None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set before the import of triton: programs run as Python."""
    return type(product_kernel).__name__ == "InterpretedFunction"


class _TextLoader(importlib.abc.InspectLoader):
    """Loads a module from a text: Triton asks the loader of a function's module for its source."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._text, f"{self._name}.py")


@lru_cache(maxsize=256)
def values_function(text: str) -> Any:
    """The function of a text by :func:`~sdgpu.operators.device_source.source_of`, for Triton."""
    name = f"sdgpu_values_{sha256(text.encode()).hexdigest()[:16]}"
    loader = _TextLoader(name, text)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    functions = {
        "any_of": _any_of,
        "inner_products": _inner_products,
        "power_of_two": _power_of_two,
        "quotient": _quotient,
        "reciprocal": _reciprocal,
        "square_root": _square_root,
    }
    vars(module).update(functions, tl=tl, jit=_jit)
    sys.modules[name] = module  # where the source is looked for
    loader.exec_module(module)
    return getattr(module, NAME)


# Triton compiles what follows. Names in capitals are constants of the compilation.


@_jit
def _any_of(mask: tl.tensor) -> tl.tensor:
    """Whether a pair of the block is in the mask."""
    return tl.max(tl.max(mask.to(tl.int32), axis=1), axis=0) > 0


_INTERPRETED = tl and tl.constexpr(type(_any_of).__name__ == "InterpretedFunction")


@_jit
def _hardware_power(t: tl.tensor) -> tl.tensor:
    """2^t, 0 below the smallest normal number: NVIDIA's instruction has it so, the interpreter has not."""
    value = tl.exp2(t)
    if _INTERPRETED:
        value = tl.where(t < -126.0, 0.0, value)
    return value


@_jit
def _square_root(x: tl.tensor) -> tl.tensor:
    """By one instruction, off by a unit in the last place; Triton's own asks for subnormals first."""
    if _INTERPRETED:
        root = tl.sqrt(x)
    else:
        root = tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return root


@_jit
def _quotient(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """x / y by a reciprocal and a product, off by 2 units in the last place; 0 for y beyond 2^126."""
    if _INTERPRETED:
        ratio = x / y
    else:
        ratio = tl.inline_asm_elementwise(
            "div.approx.ftz.f32 $0, $1, $2;",
            "=f,f,f",
            [x, y],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    return ratio


@_jit
def _reciprocal(x: tl.tensor) -> tl.tensor:
    """1 / x by one instruction, off by a unit in the last place."""
    if _INTERPRETED:
        ratio = 1.0 / x
    else:
        ratio = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return ratio


@_jit
def _joined(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """The columns of both in turn."""
    return tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))


@_jit
def _halves(t: tl.tensor) -> tl.tensor:
    """Every second column, and the others: what a thread holds on tensor cores are pairs of them."""
    return tl.split(tl.reshape(t, (t.shape[0], t.shape[1] // 2, 2)))


@_jit
def _power_of_two(
    t: tl.tensor, polynomial_power: tl.constexpr, POLYNOMIAL: tl.constexpr
) -> tl.tensor:
    """2^t, of POLYNOMIAL in each eight columns by the polynomial."""
    if POLYNOMIAL == 0:
        return _hardware_power(t)
    if POLYNOMIAL == 8:
        return polynomial_power(t)
    half, rest = _halves(t)
    rest = _hardware_power(rest)
    if POLYNOMIAL == 4:
        return _joined(polynomial_power(half), rest)
    quarter, other = _halves(half)
    other = _hardware_power(other)
    if POLYNOMIAL == 2:
        quarter = polynomial_power(quarter)
    else:
        eighth, last = _halves(quarter)
        quarter = _joined(polynomial_power(eighth), _hardware_power(last))
    return _joined(_joined(quarter, other), rest)


@_jit
def _slice_products(
    left: tl.tensor, right: tl.tensor, FEATURES: tl.constexpr, SPLIT: tl.constexpr
) -> tl.tensor:
    """Products of a slice of features, from pointers; low parts lie FEATURES behind the high ones."""
    if SPLIT == "ieee":
        return tl.dot(tl.load(left), tl.load(right), input_precision="ieee")
    a, b = tl.load(left), tl.load(right)
    tile = tl.dot(tl.load(left + FEATURES), b, input_precision="tf32")
    tile = tl.dot(a, tl.load(right + FEATURES), tile, input_precision="tf32")
    return tl.dot(a, b, tile, input_precision="tf32")


@_jit
def _inner_products(
    left: tl.tensor,
    right: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    FEATURES: tl.constexpr,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    SPLIT: tl.constexpr,
) -> tl.tensor:
    """x . x' over WIDTH features of all pairs of a block, (ROWS, STEP), in slices of at most 32."""
    DEPTH: tl.constexpr = 16 if WIDTH == 16 else 32
    STRIDE: tl.constexpr = FEATURES if SPLIT == "ieee" else 2 * FEATURES
    depth = FIRST + tl.arange(0, DEPTH)
    left_ptrs = (
        left + i.to(tl.int64) * STRIDE + tl.arange(0, ROWS)[:, None] * STRIDE + depth[None, :]
    )
    right_ptrs = (
        right + j.to(tl.int64) * STRIDE + tl.arange(0, STEP)[None, :] * STRIDE + depth[:, None]
    )
    tile = _slice_products(left_ptrs, right_ptrs, FEATURES, SPLIT)
    # sums of slices are rounded as float32 is, those of tensor cores are truncated; fma, not +: Triton
    # would turn the sum into the start of their accumulator
    if WIDTH == 2 * DEPTH:
        other = _slice_products(left_ptrs + DEPTH, right_ptrs + DEPTH, FEATURES, SPLIT)
        tile = tl.fma(other, 1.0, tile)
    elif WIDTH > DEPTH:
        for first in range(DEPTH, WIDTH, DEPTH):
            other = _slice_products(left_ptrs + first, right_ptrs + first, FEATURES, SPLIT)
            tile = tl.fma(other, 1.0, tile)
    return tile


@_jit
def _block_product(
    values: tl.tensor, V: tl.tensor, j: tl.tensor, COLS: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """values (ROWS, STEP) times the rows j .. of a packed block, (ROWS, COLS)."""
    ROWS: tl.constexpr = values.shape[0]
    STEP: tl.constexpr = values.shape[1]
    STRIDE: tl.constexpr = 2 * COLS if BLOCK == "halves" else COLS
    ptrs = V + j.to(tl.int64) * STRIDE
    ptrs += tl.arange(0, STEP)[:, None] * STRIDE + tl.arange(0, COLS)[None, :]
    v = tl.load(ptrs)
    if BLOCK == "halves":
        # the block has its rows in this order: a thread then multiplies the values that it holds
        values = tl.permute(tl.reshape(values, (ROWS, STEP // 8, 4, 2)), (0, 1, 3, 2))
        values = tl.reshape(values, (ROWS, STEP))
        high = (values.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        term = tl.dot(values - high, v, input_precision="tf32")
        term = tl.dot(high, tl.load(ptrs + COLS), term, input_precision="tf32")
        term = tl.dot(high, v, term, input_precision="tf32")
    else:
        wide = values.to(V.dtype.element_ty)
        if COLS == 1:  # one column would fill a sixteenth of the smallest product of tensor cores
            term = tl.sum(wide * tl.trans(v), axis=1, keep_dims=True)
        else:
            term = tl.dot(wide, v, input_precision="ieee", out_dtype=V.dtype.element_ty)
    return term


@_jit
def _two_sum(high: tl.tensor, low: tl.tensor, term: tl.tensor) -> tl.tensor:
    """(high, low) + term: high is the rounded sum, low gathers what rounding lost, exactly (Knuth)."""
    total = high + term
    part = total - high
    return total, low + ((high - (total - part)) + (term - part))


@_jit
def product_kernel(
    left: tl.tensor,
    right: tl.tensor,
    left_columns: tl.tensor,
    right_columns: tl.tensor,
    V: tl.tensor,
    out: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    chunk: tl.tensor,
    VALUES: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    COLS: tl.constexpr,
    SAME: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
) -> None:
    """Some rows of K V' for COLS rows of V, from `chunk` columns of K; all sizes are whole blocks."""
    i = tl.program_id(0) * ROWS
    group, part = tl.program_id(1).to(tl.int64), tl.program_id(2)
    STRIDE: tl.constexpr = 2 * COLS if BLOCK == "halves" else COLS
    SPAN: tl.constexpr = ROWS if ROWS > STEP else STEP
    V += group * n * STRIDE
    high = tl.zeros((ROWS, COLS), V.dtype.element_ty)
    low = tl.zeros((ROWS, COLS), V.dtype.element_ty)
    start, stop = part * chunk, tl.minimum(part * chunk + chunk, n)
    first = 0
    if SAME:
        # The blocks that hold the diagonal come first, the others after them, cyclically: so the long
        # loop need not ask where the diagonal is.
        first = i // SPAN * SPAN
        if part == 0:
            for step in tl.static_range(0, SPAN, STEP):
                j = first + step
                values = VALUES(
                    left,
                    right,
                    left_columns,
                    right_columns,
                    i,
                    j,
                    m,
                    n,
                    ROWS,
                    STEP,
                    True,
                    SPLIT,
                    POLYNOMIAL,
                )
                high, low = _two_sum(high, low, _block_product(values, V, j, COLS, BLOCK))
        start = tl.maximum(start, SPAN)
    for step in range(start, stop, STEP):
        j = first + step
        j = tl.where(j >= n, j - n, j)
        values = VALUES(
            left,
            right,
            left_columns,
            right_columns,
            i,
            j,
            m,
            n,
            ROWS,
            STEP,
            False,
            SPLIT,
            POLYNOMIAL,
        )
        high, low = _two_sum(high, low, _block_product(values, V, j, COLS, BLOCK))
    columns = (part * tl.num_programs(1) + group) * COLS + tl.arange(0, COLS)
    out_ptrs = out + columns[None, :] * m + (i + tl.arange(0, ROWS))[:, None]
    tl.store(out_ptrs, high.to(tl.float64) + low.to(tl.float64))
