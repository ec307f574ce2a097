"""The product of a Gaussian kernel matrix as one fused kernel: the only module that imports triton.

A program holds a block of rows and runs over all others; the kernel values live in registers and are
never written, so memory is O(n (d + c)). What bounds it on Hopper is arithmetic, not memory traffic. A
multiprocessor computes 16 exponentials a clock, one per pair, and on tensor cores 1024 TF32 products, of
which split TF32 takes 3 (d + c) per pair: together 1/6 clock at d + c = 32. Loads are shared by the
rows of a program: (d + c) / 16 bytes per pair, from the second-level cache. Not yet timed on a GPU.

All n^2 pairs are evaluated, not the symmetric half: the half would have to add into rows that belong
to other programs, with atomics, which cost more than they save, and sums that could not be
compensated nor be the same in two runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sdgpu.backend.checks import choice

try:  # the compiler reads the globals of a kernel: they cannot be imported inside a function
    import triton
    import triton.language as tl
except ImportError:  # the functions below are never called then
    triton = tl = None

__all__ = ["SPLITS", "gaussian_product", "why_not"]

#: How float32 is multiplied: three TF32 products on tensor cores, or fused multiply-adds.
SPLITS = ("tf32x3", "ieee")


def _jit(function: Callable) -> Any:
    return function if triton is None else triton.jit(function)


def why_not(device: Any) -> str:
    """Why the fused kernel cannot run on `device`, as a sentence; empty if it can.

    Parameters
    ----------
    device : torch.device or str

    Returns
    -------
    str
        Triton is missing, or the device is not CUDA and TRITON_INTERPRET=1 was not set before the
        import of triton.
    """
    if triton is None:
        return "Triton is not installed: pip install triton (Linux only)"
    kind = str(device).partition(":")[0]
    if kind == "cuda" or type(_product_kernel).__name__ == "InterpretedFunction":
        return ""
    return (
        f"the fused kernel needs a CUDA device, not {str(device)!r}: move the data to CUDA, or set "
        "TRITON_INTERPRET=1 before Python starts to try it slowly on the CPU"
    )


def gaussian_product(left: Any, right: Any, V: Any, *, split: str = "tf32x3") -> Any:
    """V K for K = 2^min(left right', 0) with exactly 1 on the diagonal, without the matrix.

    Parameters
    ----------
    left, right : Tensor (n, k), float32, contiguous
        Augmented rows, k = d + 2 (see :mod:`sdgpu.kernels.augmented_rows`).
    V : Tensor (c, n), float32
    split : {"tf32x3", "ieee"}, default "tf32x3"
        "tf32x3" multiplies on tensor cores with about 22 of float32's 24 bits, "ieee" without them,
        in full float32 and much slower (its largest blocks spill registers).

    Returns
    -------
    Tensor (c, n), float64
        V K. K is symmetric up to rounding, so this is (K V')' too.

    Raises
    ------
    ImportError
        If :func:`why_not` has a reason.
    ValueError
        For a wrong shape, dtype, device, stride or `split`.

    Notes
    -----
    n^2 exponentials and 2 n^2 (d + c) multiplications; the exponentials, and the product of the
    features, again for each 64 rows of V. Copies with padding take 4 n (2 d + c) bytes, d and c rounded
    up to the blocks. Sums are float32 within a block of 64 rows and compensated between blocks: their
    error does not grow with n. Small n leaves multiprocessors idle: there is a program per 64 rows.
    """
    _check(left, right, V, split)
    reason = why_not(left.device)
    if reason:
        raise ImportError(reason)
    import torch

    (n, k), c = left.shape, int(V.shape[0])
    if n == 0 or c == 0:
        return torch.zeros((c, n), dtype=torch.float64, device=V.device)
    size = _blocks(k - 2, c)
    # Padding instead of masks: loads are whole and aligned, and a row of zeros has values 2^0, which
    # meet zeros of V. The two augmented columns stay out of the tensor cores: d = 16 is a block of 16,
    # and the norms, the largest numbers, are added in full float32.
    rows, features = -(-n // size.i) * size.i, -(-(k - 2) // size.k) * size.k
    padded = [_padded(array[:, : k - 2], rows, features) for array in (left, right)]
    tails = [_padded(array[:, k - 2 :].T, 2, rows) for array in (left, right)]
    block = _padded(V, -(-c // size.c) * size.c, rows)
    out = torch.empty(block.shape, dtype=torch.float64, device=V.device)
    grid = (rows // size.i, block.shape[0] // size.c)
    with _current_device(V.device):
        _product_kernel[grid](
            *padded,
            *tails,
            block,
            out,
            rows,
            features,
            ROWS=size.i,
            STEP=size.j,
            DEPTH=size.k,
            COLS=size.c,
            WHOLE=features == size.k,
            SPLIT=split,
            num_warps=size.warps,
            num_stages=size.stages,
            enable_fp_fusion=True,
        )
    return out[:c, :n].contiguous()


class _Blocks(NamedTuple):
    """Sizes of a program: its rows, the rows of a step, features of a product, rows of V."""

    i: int
    j: int
    k: int
    c: int
    warps: int
    stages: int


def _blocks(d: int, c: int) -> _Blocks:
    """Block sizes for d features and c rows of V.

    Chosen by registers, not by time: as compiled for sm_90 with split TF32 these spill none (24 bytes
    for 64 features with 64 rows of V). Two programs of four warps fit a multiprocessor, so that one
    takes exponentials while the other multiplies; the second choice is one program of eight.
    """
    features = 16 if d <= 16 else 32 if d <= 32 or d > 64 else 64
    columns = 1 if c == 1 else 16 if c <= 16 else 32 if c <= 32 else 64
    if features == 64 and columns > 16:
        return _Blocks(i=128, j=32, k=features, c=columns, warps=8, stages=3)
    return _Blocks(i=64, j=64, k=features, c=columns, warps=4, stages=3)


def _padded(array: Any, rows: int, columns: int) -> Any:
    """A contiguous copy (rows, columns) with zeros below and to the right."""
    out = array.new_zeros((rows, columns))
    out[: array.shape[0], : array.shape[1]] = array
    return out


def _current_device(device: Any) -> Any:
    """Context in which `device` is current: Triton launches on the current one."""
    import contextlib

    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _check(left: Any, right: Any, V: Any, split: str) -> None:
    import torch

    choice("split", split, SPLITS)
    for name, array in (("left", left), ("right", right), ("V", V)):
        if not isinstance(array, torch.Tensor):
            raise ValueError(f"{name} is a {type(array).__name__}: pass a torch.Tensor")
        if array.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(array.shape)}: pass a matrix")
        if array.dtype != torch.float32:
            raise ValueError(f"{name} is {array.dtype}: convert it with .to(torch.float32)")
        if array.device != left.device:
            raise ValueError(
                f"{name} is on {array.device}, left on {left.device}: move one of them"
            )
    for name, array in (("left", left), ("right", right)):
        if not array.is_contiguous():
            raise ValueError(f"{name} has strides {array.stride()}: pass {name}.contiguous()")
    if right.shape != left.shape:
        raise ValueError(
            f"right has shape {tuple(right.shape)}, left {tuple(left.shape)}: pass the rows of one X"
        )
    if left.shape[1] < 3:
        raise ValueError(
            f"left has {left.shape[1]} columns: pass d + 2 >= 3, the rows of a Gaussian"
        )
    if V.shape[1] != left.shape[0]:
        raise ValueError(
            f"V has shape {tuple(V.shape)}: pass (c, {left.shape[0]}), a column for each row of left"
        )


# Triton compiles what follows. Names in capitals are constants of the compilation.


@_jit
def _block_product(
    left_block: tl.tensor,
    tail0: tl.tensor,
    tail1: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    right_tail: tl.tensor,
    V: tl.tensor,
    i: tl.tensor,
    j: tl.tensor,
    n: tl.tensor,
    features: tl.tensor,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    DEPTH: tl.constexpr,
    COLS: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLIT: tl.constexpr,
    DIAGONAL: tl.constexpr,
) -> tl.tensor:
    """K[i : i + ROWS, j : j + STEP] V[:, j : j + STEP]', (ROWS, COLS) in float32."""
    row_offsets, step_offsets, depth = tl.arange(0, ROWS), tl.arange(0, STEP), tl.arange(0, DEPTH)
    start = j.to(tl.int64)
    right_ptrs = right + start * features + step_offsets[None, :] * features + depth[:, None]
    if WHOLE:  # all features at once: the rows of this program were loaded before the loop
        tile = tl.dot(left_block, tl.load(right_ptrs), input_precision=SPLIT)
    else:
        left_ptrs = (
            left + i.to(tl.int64) * features + row_offsets[:, None] * features + depth[None, :]
        )
        tile = tl.zeros((ROWS, STEP), tl.float32)
        for first in range(0, features, DEPTH):
            a, b = tl.load(left_ptrs + first), tl.load(right_ptrs + first)
            tile = tl.dot(a, b, tile, input_precision=SPLIT)
    # fma, not +: Triton would turn a sum into the start of the tensor cores' accumulator, which truncates
    tail = right_tail + start + step_offsets
    tile = tl.fma(tail0[:, None], tl.load(tail)[None, :], tile)
    tile = tl.fma(tail1[:, None], tl.load(tail + n)[None, :], tile)
    # a NaN of the data must stay one: the hardware's minimum would make it 0, a kernel value of 1
    values = tl.exp2(tl.minimum(tile, 0.0, propagate_nan=tl.PropagateNan.ALL))
    if DIAGONAL:
        values = tl.where((i + row_offsets)[:, None] == (j + step_offsets)[None, :], 1.0, values)
    columns = tl.arange(0, COLS).to(tl.int64)
    v = tl.load(V + start + step_offsets[:, None] + columns[None, :] * n)  # (STEP, COLS)
    if COLS == 1:  # one column would fill a sixteenth of the smallest product of tensor cores
        return tl.sum(values * tl.trans(v), axis=1, keep_dims=True)
    return tl.dot(values, v, input_precision=SPLIT)


@_jit
def _two_sum(high: tl.tensor, low: tl.tensor, term: tl.tensor) -> tl.tensor:
    """(high, low) + term: high is the rounded sum, low gathers what rounding lost, exactly (Knuth)."""
    total = high + term
    part = total - high
    return total, low + ((high - (total - part)) + (term - part))


@_jit
def _product_kernel(
    left: tl.tensor,
    right: tl.tensor,
    left_tail: tl.tensor,
    right_tail: tl.tensor,
    V: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    features: tl.tensor,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    DEPTH: tl.constexpr,
    COLS: tl.constexpr,
    WHOLE: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """Rows i : i + ROWS of K V' for COLS rows of V; n and features are multiples of the blocks."""
    i = tl.program_id(0) * ROWS
    row_offsets, depth = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    left_ptrs = left + i.to(tl.int64) * features + row_offsets[:, None] * features + depth[None, :]
    left_block = tl.load(left_ptrs)  # the first DEPTH features, which are all if WHOLE
    tail0, tail1 = tl.load(left_tail + i + row_offsets), tl.load(left_tail + n + i + row_offsets)
    offset = tl.program_id(1).to(tl.int64) * COLS * n
    high = tl.zeros((ROWS, COLS), tl.float32)
    low = tl.zeros((ROWS, COLS), tl.float32)
    # The blocks that hold the diagonal come first, the others after them, cyclically: so the long
    # loop need not ask where the diagonal is.
    for step in tl.static_range(0, ROWS, STEP):
        term = _block_product(
            left_block,
            tail0,
            tail1,
            left,
            right,
            right_tail,
            V + offset,
            i,
            i + step,
            n,
            features,
            ROWS,
            STEP,
            DEPTH,
            COLS,
            WHOLE,
            SPLIT,
            True,
        )
        high, low = _two_sum(high, low, term)
    for step in range(ROWS, n, STEP):
        j = i + step
        j = tl.where(j >= n, j - n, j)
        term = _block_product(
            left_block,
            tail0,
            tail1,
            left,
            right,
            right_tail,
            V + offset,
            i,
            j,
            n,
            features,
            ROWS,
            STEP,
            DEPTH,
            COLS,
            WHOLE,
            SPLIT,
            False,
        )
        high, low = _two_sum(high, low, term)
    columns = tl.arange(0, COLS).to(tl.int64)
    out_ptrs = out + offset + i + row_offsets[:, None] + columns[None, :] * n
    tl.store(out_ptrs, high.to(tl.float64) + low.to(tl.float64))
