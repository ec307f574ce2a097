"""Rows of zarr stores, format 3 or 2, chunk after chunk.

What a store says of its arrays is looked through first (:mod:`~.zarr_descriptions`). Then each array is
opened by its own path: what the group says of its members is not asked.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.rows.column_choice import NumberedColumns, by_number
from sdgpu.backend.rows.file_state import FolderState
from sdgpu.backend.rows.numeric_files import named_parts
from sdgpu.backend.rows.source import Block
from sdgpu.backend.rows.zarr_chunks import ChunkFiles
from sdgpu.backend.rows.zarr_descriptions import check_array, store_members

__all__ = ["ZarrFolder", "open_zarr_folder"]

_KEPT = 1 << 28  # bytes of chunks that stay in memory while blocks are cut from them


@dataclass(frozen=True, eq=False)
class CheckedArray:
    """An array of a store, and its files, which are looked at before they are unpacked.

    Attributes
    ----------
    array : zarr.Array
    files : ChunkFiles
    """

    array: Any
    files: ChunkFiles

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        """As it is stored."""
        return np.dtype(self.array.dtype)

    @property
    def chunk_rows(self) -> int:
        """Rows that are unpacked at once."""
        return int(self.array.chunks[0])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1."""
        self.files.check(start, stop)
        return np.asarray(self.array[start:stop])


@dataclass(frozen=True, eq=False)
class ZarrFolder:
    """Arrays of a zarr store.

    Attributes
    ----------
    name : str
        Path of the store, for messages.
    X : CheckedArray (n, width)
    Y : CheckedArray (n, c) or (n,), or None
    weights : CheckedArray (n,) or None
    choice : NumberedColumns
        Of X.
    state : FolderState
    rereadable : bool
        Always.
    columns, outputs : None
        Arrays name none.
    """

    name: str
    X: CheckedArray
    Y: CheckedArray | None
    weights: CheckedArray | None
    choice: NumberedColumns
    state: FolderState
    rereadable: bool = True
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    @property
    def d(self) -> int:
        """Features of a row."""
        return len(self.choice.features)

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        if self.Y is None:
            return len(self.choice.targets)
        return int(self.Y.shape[1]) if len(self.Y.shape) == 2 else 1

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.X.shape[0])

    @property
    def dtype(self) -> str:
        """Of X."""
        return "float32" if self.X.dtype.kind == "f" and self.X.dtype.itemsize <= 4 else "float64"

    def blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of `rows`; a chunk is unpacked once.

        Raises
        ------
        ValueError
            If a file of the store changed or is damaged; names it, or the row.
        """
        self.state.check()
        X = _Window(self.X, rows)
        Y, weights = (
            None if array is None else _Window(array, rows) for array in (self.Y, self.weights)
        )
        for start in range(0, self.n, rows):
            stop, place = min(start + rows, self.n), f"{self.name}, row {start:,}"
            try:
                features, targets, row_weights = self.choice.parts(X.rows(start, stop))
                if Y is not None:
                    targets = Y.rows(start, stop).reshape(stop - start, -1)
                if weights is not None:
                    row_weights = weights.rows(start, stop)
            except Exception as error:  # codecs raise whatever they like
                self.state.check()
                raise ValueError(f"{place}: a chunk is damaged or cut off: {error}") from error
            yield Block(features, targets, row_weights, place)
        self.state.check()


class _Window:
    """Rows of an array, with the last chunks in memory: blocks are often smaller than chunks."""

    def __init__(self, array: CheckedArray, rows: int) -> None:
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        whole_chunks = array.chunk_rows * max(1, rows // array.chunk_rows)
        self.array = array
        self.step = min(whole_chunks, max(1, _KEPT // row_bytes))
        self.first, self.values = -1, np.empty(0)

    def rows(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            first = start // self.step * self.step
            if first != self.first:
                end = min(first + self.step, self.array.shape[0])
                self.values = self.array.rows(first, end)
                self.first = first
            end = min(stop, first + self.step)
            parts.append(self.values[start - first : end - first])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_zarr_folder(
    path: str | os.PathLike[str],
    target: int | list[int] | None = None,
    *,
    features: int | list[int] | None = None,
    weights: str | int | None = None,
) -> ZarrFolder:
    """Look at a zarr store: a group with arrays X, Y or y, and weights; or one array, a matrix.

    Parameters
    ----------
    path : path
        A folder.
    target : int or list of int, optional
        Columns of X, or of the matrix, that are targets; not if there is Y or y.
    features : int or list of int, optional
        Columns of X; by default all others.
    weights : str or int, optional
        Array of weights, by default ``weights`` if there is one; or a column of X.

    Raises
    ------
    ImportError
        Without zarr.
    OSError
        If there is no such folder.
    TypeError
        If an array holds no real numbers.
    ValueError
        If the store is refused (:func:`~.zarr_descriptions.check_array`) or damaged, or has no rows. Names
        the folder and the array.
    """
    if importlib.util.find_spec("zarr") is None:
        raise ImportError("zarr is not installed: pip install 'sdgpu[cluster]'")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{os.fspath(path)} is a file: a zarr store is a folder, unpack it first")
    state = FolderState.of(path)
    zarr_format, members = store_members(state)
    names = ["X"] if members is None else members
    parts = named_parts(state.path, names, target=target, weights=weights)
    X = _open_array(state, "" if members is None else "X", zarr_format)
    Y, row_weights = (
        None if name is None else _open_array(state, name, zarr_format) for name in parts
    )
    state.check()  # what was opened is what was looked through
    _check_shapes(state.path, X, {"Y": Y, "weights": row_weights})
    column = None if isinstance(weights, str) else weights
    choice = by_number(X.shape[1], target, features, column, place=f"X of {state.path}")
    return ZarrFolder(name=state.path, X=X, Y=Y, weights=row_weights, choice=choice, state=state)


def _open_array(state: FolderState, name: str, zarr_format: int) -> CheckedArray:
    files = check_array(state, name, zarr_format)
    import zarr
    from zarr.storage import LocalStore

    store = LocalStore(Path(state.path), read_only=True)
    try:
        array = zarr.open_array(store, path=name, mode="r", zarr_format=zarr_format)  # type: ignore[arg-type]
    except Exception as error:  # of whatever kind: it is the store's fault
        place = f"{name} of {state.path}" if name else state.path
        raise ValueError(f"{place} cannot be opened: {error}") from error
    return CheckedArray(array, files)


def _check_shapes(path: str, X: Any, others: dict[str, Any]) -> None:
    if len(X.shape) != 2 or not X.shape[1]:
        raise ValueError(f"X of {path} must be (rows, features), got shape {X.shape}")
    if not X.shape[0]:
        raise ValueError(f"{path} has no rows")
    for name, array in others.items():
        if array is None:
            continue
        shape, axes = array.shape, (1,) if name == "weights" else (1, 2)
        if len(shape) not in axes or 0 in shape[1:]:
            wanted = "(rows,)" if axes == (1,) else "(rows,) or (rows, outputs)"
            raise ValueError(f"{name} of {path} must be {wanted}, got shape {shape}")
        if shape[0] != X.shape[0]:
            raise ValueError(f"{name} of {path} has {shape[0]:,} rows, but X has {X.shape[0]:,}")
