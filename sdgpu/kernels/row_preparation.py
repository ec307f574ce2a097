"""Rows of data made ready for a kernel, in blocks, and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import dtype_name, inputs, slices
from sdgpu.backend.sparse_rows import csr_rows, is_csr, is_sparse
from sdgpu.kernels.augmented_rows import BLOCK, Rows, in_library
from sdgpu.kernels.kernel import Kernel, Product, Profile, Sum, Wrapper
from sdgpu.kernels.sparse_values import refuse_sparse

__all__ = ["checked_rows", "ready_rows", "row_copies", "with_tiles_like"]


def ready_rows(
    kernel: Kernel, X: Any, centre: Any, finish: Callable[[Rows], Rows] = lambda rows: rows
) -> Rows:
    """finish(kernel.rows(X, centre)), in blocks of rows where these are independent.

    Making wide rows ready takes several copies of them, which are then copies of a block. Sparse rows are
    made ready at once, and without a centre.

    Raises
    ------
    ValueError
        If squares or products of X overflow in the dtype of the rows.
    """
    if is_csr(X):
        rows = finish(kernel.rows(X, None))
        _require_finite(kernel, rows, X)
        return rows
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


def checked_rows(kernel: Kernel, X: Any) -> Any:
    """Rows (n, d) as an array, or as CSR.

    Raises
    ------
    TypeError, ValueError
        For what is no matrix of finite real rows, and for sparse ones of a kernel that does not take them.
    """
    if not is_sparse(X):
        return inputs(X, "X")
    refuse_sparse(kernel)
    return csr_rows(X, "X", empty=False)


def with_tiles_like(rows: Rows, like: Any) -> Rows:
    """Sparse rows whose tiles come in the library, on the device and in the dtype of an array."""

    def there(host: Any) -> Any:
        return None if host is None else in_library(host.astype(dtype, copy=False), like)

    dtype = dtype_name(like)
    left = None if rows.left is None else rows.left.astype(dtype, copy=False)
    right = left if rows.right is rows.left else rows.right.astype(dtype, copy=False)
    return replace(
        rows,
        left=left,
        right=right,
        norms=there(rows.norms),
        squares=there(rows.squares),
        parts=tuple(with_tiles_like(part, like) for part in rows.parts),
    )


def _require_finite(kernel: Kernel, rows: Rows, X: Any) -> None:
    if _finite(rows):
        return
    values = X.data if is_csr(X) else X
    largest, dtype = float(compat.array_namespace(values).max(abs(values))), dtype_name(rows.sample)
    remedy = "" if dtype == "float64" else ", or use dtype='float64'"
    raise ValueError(
        f"the kernel {kernel!r} overflows on data with |X| up to {largest:.3g} in {dtype}: rescale X or "
        f"the parameters of the kernel{remedy}"
    )


def _finite(rows: Rows) -> bool:
    """Whether all numbers of ready rows are finite; by extremes, which take no flags of all."""
    extremes = _extremes(rows)
    if extremes:
        xp = compat.array_namespace(extremes[0])
        if not bool(xp.all(xp.isfinite(xp.stack(extremes)))):  # one look, which waits for a GPU
            return False
    return _finite_entries(rows)


def _extremes(rows: Rows) -> list[Any]:
    """The smallest and largest number of each array on the device of the tiles."""
    extremes = [x for part in rows.parts for x in _extremes(part)]
    right = None if rows.right is rows.left else rows.right
    for x in (rows.left, right, rows.norms, rows.squares):
        if x is not None and not is_csr(x) and compat.size(x):
            xp = compat.array_namespace(x)
            extremes += [xp.min(x), xp.max(x)]
    return extremes


def _finite_entries(rows: Rows) -> bool:
    """Whether the entries of sparse rows are finite; they are on the host."""
    entries = [x.data for x in (rows.left, rows.right) if is_csr(x) and x.data.size]
    known = [x for data in entries for x in (data.min(), data.max())]
    return bool(np.isfinite(known).all()) and all(map(_finite_entries, rows.parts))


def row_copies(kernel: Kernel) -> int:
    """How many times n d numbers the ready rows of a kernel take at the most."""
    if isinstance(kernel, Wrapper):
        return row_copies(kernel.kernel)
    if isinstance(kernel, (Sum, Product)):
        return sum(map(row_copies, kernel.kernels))
    return kernel.copies
