"""Rows of .npy and .npz files: plain numbers, never objects, so nothing in them is executed.

A .npy file is read block by block, where its rows lie; a memory map would kill the process when the file
is cut off meanwhile. The arrays of a .npz file are read whole. Those of a single file stay in memory; of
several files one at a time is read, in each pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from typing import Any

import numpy as np

from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.column_choice import NumberedColumns, by_number
from sdgpu.backend.rows.file_state import FileState
from sdgpu.backend.rows.source import Block
from sdgpu.backend.untrusted_files import read_npz

__all__ = ["NpyFile", "NpzFile", "check_numbers", "named_parts", "open_npy", "open_npz"]

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, eq=False)
class NpyFile:
    """A matrix in a .npy file.

    Attributes
    ----------
    name : str
        Path of the file, for messages.
    shape : (int, int)
    kind : numpy.dtype
        As it is stored.
    offset : int
        Bytes before the numbers.
    by_columns : bool
        Whether columns lie one after the other, as Fortran stores them.
    choice : NumberedColumns
    state : FileState
    rereadable : bool
        Always.
    columns, outputs : None
        A matrix names none.
    """

    name: str
    shape: tuple[int, int]
    kind: np.dtype
    offset: int
    by_columns: bool
    choice: NumberedColumns
    state: FileState
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
        return len(self.choice.targets)

    @property
    def n(self) -> int:
        """Rows."""
        return self.shape[0]

    @property
    def dtype(self) -> str:
        """Of X."""
        return "float32" if self.kind.kind == "f" and self.kind.itemsize <= 4 else "float64"

    def blocks(self, rows: int) -> Iterator[Block]:
        """Blocks of `rows`, each read from the file.

        Raises
        ------
        ValueError
            If the file changed or ends too early; names it.
        """
        self.state.check()
        with _open_plain(self.name) as file:
            for start in range(0, self.n, rows):
                matrix = self._matrix(file, start, min(start + rows, self.n))
                self.state.check()
                yield Block(*self.choice.parts(matrix), f"{self.name}, row {start:,}")
        self.state.check()

    def _matrix(self, file: BufferedReader, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop - 1, (b, width)."""
        n, width = self.shape
        if not self.by_columns:
            flat = self._numbers(file, start * width, (stop - start) * width)
            return flat.reshape(stop - start, width)
        matrix = np.empty((stop - start, width), self.kind)
        for j in range(width):
            matrix[:, j] = self._numbers(file, j * n + start, stop - start)
        return matrix

    def _numbers(self, file: BufferedReader, first: int, count: int) -> np.ndarray:
        content = np.empty(count * self.kind.itemsize, np.uint8)
        file.seek(self.offset + first * self.kind.itemsize)
        if file.readinto(content.data) != len(content):
            self.state.check()
            raise ValueError(f"{self.name} is cut off: open it again when it is complete")
        return content.view(self.kind)


@dataclass(frozen=True, eq=False, kw_only=True)
class NpzFile:
    """Arrays X, Y and weights of a .npz file.

    Attributes
    ----------
    name : str
        Path of the file, for messages.
    n, d, c : int
    dtype : str
    arrays : callable
        () -> the arrays, which are in memory or read anew.
    state : FileState
    rereadable : bool
        Always.
    columns, outputs : None
        Arrays name none.
    """

    name: str
    n: int
    d: int
    c: int
    dtype: str
    arrays: Callable[[], ArraySource]
    state: FileState
    rereadable: bool = True
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def blocks(self, rows: int) -> Iterator[Block]:
        """Slices.

        Raises
        ------
        ValueError
            If the file changed, though its arrays may be in memory; names it.
        """
        self.state.check()
        for block in self.arrays().blocks(rows):
            self.state.check()
            yield block
        self.state.check()


def open_npy(
    path: str | os.PathLike[str],
    target: int | list[int] | None = None,
    *,
    features: int | list[int] | None = None,
    weights: int | None = None,
) -> NpyFile:
    """Look at the head of a .npy file that holds a matrix.

    Parameters
    ----------
    path : path
    target : int or list of int, optional
        Columns of targets; by default there are none.
    features : int or list of int, optional
        By default all other columns.
    weights : int, optional
        Column of weights.

    Raises
    ------
    OSError
        If there is no such file.
    TypeError
        If it holds no real numbers.
    ValueError
        If it is damaged or has no rows, and as :func:`~.column_choice.by_number`.
    """
    state = FileState.of(path)
    with _open_plain(state.path) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"it has format {version}, which plain numbers do not need")
            shape, by_columns, kind = _HEADERS[version](file)
        except (
            Exception
        ) as error:  # NumPy reads the head as a literal of Python: errors of all kinds
            raise ValueError(f"{state.path} is no .npy file, or a damaged one: {error}") from error
        offset = file.tell()
    check_numbers(kind, state.path)
    if len(shape) != 2 or min(shape) < 0:
        raise ValueError(
            f"{state.path} must hold a matrix (rows, columns), got shape {shape}: save "
            "array.reshape(-1, 1) for one column"
        )
    rows, width = int(shape[0]), int(shape[1])
    nbytes = rows * width * kind.itemsize  # whole numbers of Python: no overflow
    if nbytes != state.size - offset:
        raise ValueError(
            f"{state.path} is damaged or cut off: it announces {nbytes:,} bytes of numbers and holds "
            f"{state.size - offset:,}"
        )
    if not rows:
        raise ValueError(f"{state.path} has no rows")
    choice = by_number(width, target, features, weights, place=state.path)
    return NpyFile(
        name=state.path,
        shape=(rows, width),
        kind=kind,
        offset=offset,
        by_columns=bool(by_columns),
        choice=choice,
        state=state,
    )


def open_npz(
    path: str | os.PathLike[str],
    target: int | list[int] | None = None,
    *,
    features: int | list[int] | None = None,
    weights: str | int | None = None,
    keep: bool = True,
) -> NpzFile:
    """Read the arrays X, Y or y, and weights, of a .npz file, stored or compressed.

    Parameters
    ----------
    path : path
    target : int or list of int, optional
        Columns of X that are targets, if the file has neither Y nor y.
    features : int or list of int, optional
        Columns of X; by default all others.
    weights : str or int, optional
        Array of weights, by default ``weights`` if there is one; or a column of X.
    keep : bool, default True
        Whether the arrays stay in memory; else they are read whole again in each pass.

    Raises
    ------
    OSError
        If there is no such file.
    TypeError
        If an array holds no real numbers.
    ValueError
        If it is damaged, holds objects or has no rows; names the file.
    """
    state = FileState.of(path)
    read = partial(_npz_arrays, state, target, features, weights)
    arrays = read()
    return NpzFile(
        name=state.path,
        n=arrays.n,
        d=arrays.d,
        c=arrays.c,
        dtype=arrays.dtype,
        arrays=(lambda: arrays) if keep else read,
        state=state,
    )


def _npz_arrays(state: FileState, target: Any, features: Any, weights: Any) -> ArraySource:
    """The arrays that are asked for; parameters and errors as :func:`open_npz`."""
    extra = weights if isinstance(weights, str) else "weights"
    arrays, names = read_npz(state.path, ["X", "Y", "y", extra])
    state.check()
    for name, array in arrays.items():
        check_numbers(array.dtype, f"{name} of {state.path}")
    Y, row_weights = named_parts(state.path, names, target=target, weights=weights)
    matrix = arrays["X"]
    if matrix.ndim != 2:
        raise ValueError(f"X of {state.path} must be (rows, features), got shape {matrix.shape}")
    column = None if isinstance(weights, str) else weights
    choice = by_number(matrix.shape[1], target, features, column, place=f"X of {state.path}")
    X_part, Y_part, weight_part = choice.parts(matrix)
    if Y is not None:
        Y_part = arrays[Y]
    if row_weights is not None:
        weight_part = arrays[row_weights]
    if weight_part is not None and weight_part.ndim != 1:
        raise ValueError(f"weights of {state.path} must be (rows,), got shape {weight_part.shape}")
    return ArraySource(X_part, Y_part, weight_part, state.path)


def named_parts(
    path: str, names: list[str], *, target: Any, weights: Any
) -> tuple[str | None, str | None]:
    """Which arrays of a file are Y and weights, if any, beside X.

    Raises
    ------
    ValueError
        Without X, with Y and y, with targets both in the file and asked for, and for unknown weights.
    """
    if "X" not in names:
        raise ValueError(f"{path} has no array X: it has {', '.join(names[:10]) or 'none'}")
    targets = [name for name in ("Y", "y") if name in names]
    if len(targets) > 1:
        raise ValueError(f"{path} has both Y and y: remove one of them")
    if targets and target is not None:
        raise ValueError(
            f"target={target!r}: {path} has its targets in {targets[0]}, leave target out"
        )
    if isinstance(weights, str) and weights not in names:
        raise ValueError(
            f"weights={weights!r} is no array of {path}: it has {', '.join(names[:10])}"
        )
    if weights is None and "weights" in names:
        weights = "weights"
    return targets[0] if targets else None, weights if isinstance(weights, str) else None


def check_numbers(kind: np.dtype, place: str) -> None:
    """Refuse what is no real number of at most 8 bytes; TypeError names the place and what to do."""
    if kind.hasobject or kind.names is not None or kind.kind not in "fiub":
        raise TypeError(
            f"{place} holds {kind}, not plain real numbers: save array.astype(float) instead"
        )


def _open_plain(path: str) -> BufferedReader:
    # without waiting: what was a file may be a pipe by now
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    return os.fdopen(handle, "rb")
