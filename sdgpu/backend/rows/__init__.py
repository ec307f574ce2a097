"""Rows without end: from arrays, files, streams and clusters, in blocks.

>>> import numpy as np
>>> import sdgpu
>>> source = sdgpu.rows.blocks(lambda: iter([(np.ones((3, 2)), np.zeros(3))] * 4), d=2, c=1)
>>> sum(block.rows for block in source.blocks(5))
12
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sdgpu.backend.checks import choice, integer
from sdgpu.backend.rows.array_source import ArraySource, CallableSource
from sdgpu.backend.rows.file_patterns import ending, is_path, matching_files
from sdgpu.backend.rows.joined import JoinedSource
from sdgpu.backend.rows.source import Block, RowSource, checked_blocks
from sdgpu.backend.rows.sparse_source import SparseSource
from sdgpu.backend.rows.text_lines import is_text_table
from sdgpu.backend.sparse_rows import is_sparse

__all__ = [
    "ArraySource",
    "Block",
    "RowSource",
    "SparseSource",
    "arrays",
    "as_source",
    "blocks",
    "checked_blocks",
    "open",
]


def arrays(X: Any, Y: Any = None, weights: Any = None) -> ArraySource | SparseSource:
    """A source from arrays that can be sliced by rows: NumPy, memory maps, torch, zarr, sparse matrices.

    Parameters
    ----------
    X : array (n, d)
        Sparse (SciPy, torch) too.
    Y : array (n,) or (n, c), optional
    weights : array (n,), optional
    """
    return SparseSource.of(X, Y, weights) if is_sparse(X) else ArraySource(X, Y, weights)


def blocks(
    make_iterator: Callable[[], Iterator[Any]],
    *,
    d: int,
    c: int = 0,
    n: int | None = None,
    dtype: str = "float64",
    rereadable: bool = True,
) -> CallableSource:
    """A source from a function that is called once for each pass.

    Parameters
    ----------
    make_iterator : callable
        () -> iterator of (X, Y), (X, Y, weights) or X: arrays (b, d), (b,) or (b, c), and (b,).
    d, c : int
        Features and outputs; c = 0 without targets.
    n : int, optional
        Rows, if known.
    dtype : {"float64", "float32"}, default "float64"
        In which X is worked on.
    rereadable : bool, default True
        Whether `make_iterator` may be called again.
    """
    if not callable(make_iterator):
        raise TypeError(
            f"make_iterator={make_iterator!r} must be callable: () -> iterator of blocks"
        )
    return CallableSource(
        make=make_iterator,
        d=integer("d", d, 1),
        c=integer("c", c, 0),
        n=None if n is None else integer("n", n, 1),
        dtype=choice("dtype", dtype, ("float64", "float32")),
        rereadable=rereadable,
    )


def open(  # noqa: A001 - as other libraries that read name it
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    target: Any = None,
    *,
    features: Any = None,
    weights: Any = None,
    **options: Any,
) -> RowSource:
    """A source from a file, several files, a pattern or a folder.

    Parameters
    ----------
    path : path, or list of paths
        ``table.parquet``, ``.feather``, ``.arrow``, ``.npy``, ``.npz``, a ``.zarr`` folder, or text:
        ``.csv``, ``.tsv``, ``.txt``, also packed (``.gz``, ``.zst``). ``"parts/*.parquet"`` and a folder
        give their files sorted by name, one after the other. The arrays of ``.npz`` are read whole: they
        stay in memory if there is one such file; of several one at a time is.
    target : str or list of str, or int or list of int, optional
        Columns of targets: names in tables, by default the last column; numbers in matrices, by default
        none. An empty list: none.
    features : as target, optional
        By default all other columns.
    weights : str or int, optional
        The column of weights; of ``.npz`` and ``.zarr`` the array.
    **options
        Of tables of text (:func:`sdgpu.backend.rows.text_tables.open_table`).

    Raises
    ------
    FileNotFoundError
        If there is no such file; names the pattern and the folder.
    TypeError
        For columns that hold no numbers, and for options of files that are no text.
    ValueError
        For unknown endings and columns, files that are damaged or have no rows, and files that do not go
        together. Names them.
    ImportError
        If the library that reads such files is not installed; names the extra.
    """
    names = matching_files(path)
    sources = [
        _open_one(
            name, target, features=features, weights=weights, options=options, alone=len(names) == 1
        )
        for name in names
    ]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def as_source(X: Any, Y: Any = None, weights: Any = None) -> RowSource:
    """A source from whatever holds rows.

    Parameters
    ----------
    X : RowSource, array (n, d), frame, collection of dask, list of delayed blocks, or path
        Arrays of NumPy and torch, memory maps, and arrays of zarr and HDF5 are read by blocks where they
        are; lists and frames of pandas and polars are made arrays. Paths are opened (:func:`open`).
    Y : array (n,) or (n, c), frame, or names of columns, optional
        Of a frame or a path: names of the columns of targets.
    weights : array (n,), or name of a column, optional

    Raises
    ------
    TypeError
        For what holds no numbers, Y beside a source that has its own, and mixtures of dask and arrays.
    ValueError
        For wrong axes, no rows, and parts with other rows than X.
    """
    from sdgpu.backend.rows.any_source import source_of

    if is_path(X):
        if Y is not None and not _is_column(Y):
            raise TypeError(
                f"Y is a {type(Y).__name__} beside a path: name the columns of targets instead"
            )
        return open(X, Y, weights=weights)
    return source_of(X, Y, weights)


def _is_column(value: Any) -> bool:
    columns = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(column, (str, int)) for column in columns)


def _open_one(
    path: str, target: Any, *, features: Any, weights: Any, options: dict[str, Any], alone: bool
) -> RowSource:
    """The source of one file, by its ending; `alone` if it is the only one."""
    kind = ending(path)
    if is_text_table(path):
        from sdgpu.backend.rows.text_tables import open_table

        if weights is not None:
            raise ValueError(
                f"weights={weights!r}: rows of {path}, a table of text, have none; write the table to "
                "parquet"
            )
        return open_table(path, target, features=features, **options)
    if options:
        raise TypeError(
            f"{', '.join(options)} is an option of tables of text, and {path} is none: leave it out"
        )
    if kind in (".parquet", ".feather", ".arrow"):
        from sdgpu.backend.rows.columnar_files import open_columnar

        return open_columnar(path, target, features=features, weights=weights)
    if kind == ".zarr":
        from sdgpu.backend.rows.zarr_files import open_zarr_folder

        return open_zarr_folder(path, target, features=features, weights=weights)
    from sdgpu.backend.rows.numeric_files import open_npy, open_npz

    if kind == ".npy":
        return open_npy(path, target, features=features, weights=weights)
    return open_npz(path, target, features=features, weights=weights, keep=alone)
