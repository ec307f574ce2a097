"""Matrices of kernel values in memory: Gram matrices, and those between two sets of ready rows.

In tiles that stay in the cache, each by the passes of the arrays' own library; of many rows on the CPU by
machine code (:mod:`sdgpu.kernels.compiled`), which writes the values once, on all cores.
"""

from __future__ import annotations

import importlib
from typing import Any

import array_api_compat as compat

from sdgpu.backend.arrays import slices
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.columns import On
from sdgpu.kernels.kernel import Kernel, Product, Profile, Sum, Wrapper

__all__ = ["SPARSE_TILE", "TILE", "cross", "gram", "may_be_compiled", "summed_features"]

TILE = 256
SPARSE_TILE = 512  # a product of sparse rows has a price of its own: a tenth of that of such a tile
#: Numbers of a matrix, those of 32 features counting as another one, from which on compiling a formula (a
#: tenth of a second, the first time a quarter) costs less than it saves.
COMPILED_NUMBERS = 2**24
WIDEST = 1024  # features of rows whose products machine code makes


def gram(kernel: Kernel, rows: Rows, *, tile: int = TILE) -> Any:
    """Full symmetric Gram matrix of ready rows, tile by tile, each computed once and mirrored.

    Cost: n^2 / 2 kernel values; memory n^2 and a few tiles.
    """
    n, tile = len(rows), kernel.tile_rows(rows, _tile(rows, tile))
    sample = rows.sample
    xp = compat.array_namespace(sample)
    K = xp.empty((n, n), dtype=sample.dtype, device=compat.device(sample))
    compiled = _machine_code(kernel, (rows, rows), n * n // 2)
    if compiled is not None and compiled.fill_gram(kernel, rows, K):
        return K
    pieces = [(part, rows[part]) for part in slices(n, tile)]
    for number, (high, left) in enumerate(pieces):
        for low, right in pieces[:number]:
            block = kernel.tile(left, right)
            K[high, low] = block
            K[low, high] = block.T
        block = kernel.tile(left, left, same=True)
        K[high, high] = (block + block.T) / 2
    return K


def cross(
    kernel: Kernel, a: Rows, b: Rows, *, tile: int | None = None, pairs: int | None = None
) -> Any:
    """Kernel values of two sets of ready rows, (m, n), in tiles of so many rows; all at once by default.

    `pairs` says how many values calls of this kind make in all, which is what compiling is weighed against.
    """
    m, n, sample = len(a), len(b), b.sample
    compiled = _machine_code(kernel, (a, b), m * n if pairs is None else pairs)
    if compiled is None and tile is None and not is_csr(_first(b).left):
        return kernel.tile(a, b)
    xp = compat.array_namespace(sample)
    block = xp.empty((m, n), dtype=sample.dtype, device=compat.device(sample))
    if compiled is not None and compiled.fill_block(kernel, a, b, block):
        return block
    # tiles that stay in cache: the profile passes over each several times
    tile = kernel.tile_rows(b, _tile(b, tile or TILE))
    pieces = [(j, b[j]) for j in slices(n, tile)]
    for i in slices(m, tile):
        left = a[i]
        for j, right in pieces:
            block[i, j] = kernel.tile(left, right)
    return block


def _first(rows: Rows) -> Rows:
    """Rows of the first part of a sum or product."""
    return _first(rows.parts[0]) if rows.parts else rows


def _tile(rows: Rows, tile: int) -> int:
    """Rows of a tile, more of sparse rows."""
    return max(tile, SPARSE_TILE) if is_csr(_first(rows).left) else tile


def summed_features(kernel: Kernel, d: int) -> int:
    """Features of rows of d that a kernel sums one by one, as no product of matrices does; of all parts."""
    if isinstance(kernel, On):
        return summed_features(kernel.kernel, len(kernel.indices))
    if isinstance(kernel, Wrapper):
        return summed_features(kernel.kernel, d)
    if isinstance(kernel, (Sum, Product)):
        return sum(summed_features(part, d) for part in kernel.kernels)
    return d if getattr(kernel, "statistic", "product") != "product" else 0


def may_be_compiled(kernel: Kernel, pairs: float, d: int) -> bool:
    """Whether so many values of rows of d features may be made by machine code: what a plan knows."""
    wide = getattr(kernel, "statistic", "") == "product" and d > WIDEST
    return kernel.opaque is None and not wide and pairs * (1 + d / 32) >= COMPILED_NUMBERS


def _machine_code(kernel: Kernel, both: tuple[Rows, Rows], pairs: int) -> Any:
    """The module that fills matrices by machine code, for many values of rows on the CPU; else None."""
    if kernel.opaque is not None or not all(map(_on_host, both)):
        return None
    if pairs * (1 + _width(both[1]) / 32) < COMPILED_NUMBERS or _has_wide_products(kernel, both[1]):
        return None
    try:
        return importlib.import_module("sdgpu.kernels.compiled.kernel_blocks")
    except ImportError:  # no llvmlite
        return None


def _on_host(rows: Rows) -> bool:
    """Whether rows are arrays of NumPy, or tensors on the CPU through which no derivative is taken."""
    if rows.parts:
        return all(map(_on_host, rows.parts))
    if compat.is_torch_array(rows.left):
        return rows.left.device.type == "cpu" and not rows.left.requires_grad
    return compat.is_numpy_array(rows.left)


def _has_wide_products(kernel: Kernel, rows: Rows) -> bool:
    """Whether a statistic is better made by the library: as fast, without a packed copy of the rows."""
    found: list[bool] = []

    def leaf(part: Profile, own: Rows) -> float:
        found.append(part.statistic == "product" and int(own.right.shape[1]) > WIDEST)
        return 1.0

    kernel.symbolic(leaf, rows)
    return any(found)


def _width(rows: Rows) -> int:
    """Features of a row, of all parts together."""
    return sum(map(_width, rows.parts)) if rows.parts else int(rows.right.shape[1])
