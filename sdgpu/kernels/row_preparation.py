"""Rows of data made ready for a kernel, in blocks, and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat as compat

from sdgpu.backend.arrays import dtype_name, slices
from sdgpu.kernels.augmented_rows import BLOCK, Rows
from sdgpu.kernels.kernel import Kernel, Product, Profile, Sum, Wrapper

__all__ = ["ready_rows", "row_copies"]


def ready_rows(
    kernel: Kernel, X: Any, centre: Any, finish: Callable[[Rows], Rows] = lambda rows: rows
) -> Rows:
    """finish(kernel.rows(X, centre)), in blocks of rows where these are independent.

    Making wide rows ready takes several copies of them, which are then copies of a block.

    Raises
    ------
    ValueError
        If squares or products of X overflow in the dtype of the rows.
    """
    (n, d), xp = X.shape, compat.array_namespace(X)
    height = max(1, BLOCK // d)
    if n <= height or not isinstance(kernel, Profile):
        rows = finish(kernel.rows(X, centre))
        _require_finite(kernel, rows, X)
        return rows

    def allocate(like: Any) -> Any:
        shape = (n, *like.shape[1:])
        return xp.empty(shape, dtype=like.dtype, device=compat.device(like))

    all_rows = None
    for part in slices(n, height):
        block = finish(kernel.rows(X[part, :], centre))
        if all_rows is None:
            left = allocate(block.left)
            right = left if block.right is block.left else allocate(block.right)
            all_rows = Rows(left, right, None if block.norms is None else allocate(block.norms))
        all_rows.left[part, ...] = block.left
        if all_rows.right is not all_rows.left:
            all_rows.right[part, ...] = block.right
        if all_rows.norms is not None:
            all_rows.norms[part] = block.norms
        if block.far:
            all_rows = replace(all_rows, far=True)
    assert all_rows is not None
    _require_finite(kernel, all_rows, X)
    return all_rows


def _require_finite(kernel: Kernel, rows: Rows, X: Any) -> None:
    if _finite(rows):
        return
    largest, dtype = float(compat.array_namespace(X).max(abs(X))), dtype_name(rows.sample)
    remedy = "" if dtype == "float64" else ", or use dtype='float64'"
    raise ValueError(
        f"the kernel {kernel!r} overflows on data with |X| up to {largest:.3g} in {dtype}: rescale X or "
        f"the parameters of the kernel{remedy}"
    )


def _finite(rows: Rows) -> bool:
    """Whether all numbers of ready rows are finite; by extremes, which take no flags of all."""
    extremes = _extremes(rows)
    if not extremes:
        return True
    xp = compat.array_namespace(extremes[0])
    return bool(xp.all(xp.isfinite(xp.stack(extremes))))  # one look, which waits for a GPU


def _extremes(rows: Rows) -> list[Any]:
    extremes = [x for part in rows.parts for x in _extremes(part)]
    right = None if rows.right is rows.left else rows.right
    for x in (rows.left, right, rows.norms):
        if x is not None and compat.size(x):
            xp = compat.array_namespace(x)
            extremes += [xp.min(x), xp.max(x)]
    return extremes


def row_copies(kernel: Kernel) -> int:
    """How many times n d numbers the ready rows of a kernel take at the most."""
    if isinstance(kernel, Wrapper):
        return row_copies(kernel.kernel)
    if isinstance(kernel, (Sum, Product)):
        return sum(map(row_copies, kernel.kernels))
    return kernel.copies
