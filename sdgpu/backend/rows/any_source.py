"""What callers hand in as rows, made a source: arrays, frames, collections of dask."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.conversion import as_array, column_names
from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.column_choice import by_name
from sdgpu.backend.rows.dask_partitions import is_dask, is_delayed
from sdgpu.backend.rows.source import RowSource
from sdgpu.backend.rows.sparse_source import SparseSource
from sdgpu.backend.sparse_rows import is_sparse

__all__ = ["source_of"]


def source_of(X: Any, Y: Any = None, weights: Any = None) -> RowSource:
    """The source of anything but a path; parameters and errors as :func:`sdgpu.backend.rows.as_source`."""
    if isinstance(X, RowSource):
        if Y is not None or weights is not None:
            raise TypeError(
                f"X is a source ({type(X).__name__}) with targets and weights of its own: leave "
                f"{'weights' if Y is None else 'Y'} out"
            )
        return X
    if is_dask(X):
        return _from_dask(X, Y, weights)
    if isinstance(X, (list, tuple)) and X and all(map(is_delayed, X)):
        from sdgpu.backend.rows.dask_source import dask_blocks

        if Y is not None or weights is not None:
            raise TypeError(
                "X is a list of delayed blocks, (X, Y, weights) each: leave Y and weights out"
            )
        return dask_blocks(X, name="X")
    if is_sparse(X) and not _is_names(Y):
        return SparseSource.of(X, Y, weights)
    for name, value in (("Y", Y), ("weights", weights)):
        if is_dask(value):
            raise TypeError(f"{name} is of dask and X is not: pass {name}.compute()")
    if _is_names(Y):
        return _from_frame(X, Y, weights)
    if isinstance(weights, str):
        raise TypeError(
            f"weights={weights!r} is the name of a column: name those of targets too, or pass an array"
        )
    return _from_arrays(X, Y, weights)


def _from_dask(X: Any, Y: Any, weights: Any) -> RowSource:
    from sdgpu.backend.rows.dask_source import dask_frame, dask_rows

    if not _is_names(Y):
        return dask_rows(X, Y, weights, name="X")
    if hasattr(X, "chunks"):
        raise TypeError(f"Y={Y!r} names columns, but X is an array of dask: pass Y as an array too")
    return dask_frame(X, Y, weights=weights, name="X")


def _from_frame(X: Any, target: Any, weights: Any) -> RowSource:
    names = column_names(X)
    if names is None or not hasattr(X, "__getitem__"):
        raise TypeError(
            f"Y={target!r} names columns, but X ({type(X).__name__}) has no names of columns: pass Y as an "
            "array"
        )
    weight = weights if isinstance(weights, str) else None
    choice = by_name(names, target, None, weight, place="X")
    row_weights = weights if weight is None else X[weight]
    return _from_arrays(X[list(choice.features)], X[list(choice.targets)], row_weights)


def _from_arrays(X: Any, Y: Any, weights: Any) -> ArraySource:
    rows = _sliceable(X, "X")
    targets, row_weights = (
        None if value is None else _sliceable(value, name)
        for name, value in (("Y", Y), ("weights", weights))
    )
    if row_weights is not None and len(row_weights.shape) != 1:
        raise ValueError(f"weights must be (rows,), got shape {tuple(row_weights.shape)}")
    # arrays of HDF5 have dimensions too, but no coordinates that could name columns
    columns, outputs = (None if _on_disk(value) else column_names(value) for value in (X, Y))
    return ArraySource(rows, targets, row_weights, columns=columns, outputs=outputs)


def _sliceable(value: Any, name: str) -> Any:
    """An array of NumPy or torch, or one on disk that gives those in slices."""
    plain = isinstance(value, np.ndarray) and not isinstance(value, (np.ma.MaskedArray, np.matrix))
    # as_array would copy all of a memory map of other byte order
    ready = (_on_disk(value) or plain) and value.dtype.kind in "fiub"
    array = value if ready else as_array(value, name)
    if not (ready or isinstance(array, np.ndarray) or compat.is_torch_array(array)):
        import torch

        array = torch.from_dlpack(array)  # CuPy, and whatever else follows the standard
    if len(array.shape) == 0:
        raise ValueError(f"{name} must be an array of rows, got a single number")
    return array


def _on_disk(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] in ("zarr", "h5py")


def _is_names(value: Any) -> bool:
    if isinstance(value, str):
        return True
    names = isinstance(value, (list, tuple)) and len(value) > 0
    return names and all(isinstance(name, str) for name in value)
