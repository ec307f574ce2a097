"""Arrays, frames and series of dask as delayed pieces of rows, and what makes numbers of a piece.

The functions here that take a piece run on workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.conversion import column_names

__all__ = [
    "Partitions",
    "cut_rows",
    "is_dask",
    "is_delayed",
    "numbers_of_block",
    "numbers_of_parts",
]


@dataclass(frozen=True, eq=False)
class Partitions:
    """A collection in pieces of rows.

    Attributes
    ----------
    parts : list of dask.delayed.Delayed
    lengths : tuple of int, or None
        Rows of each piece, if they are known.
    width : int or None
        Columns; None if there is one axis.
    dtype : str
        "float32" if all numbers have that or half precision, else "float64".
    names : tuple of str, or None
    """

    parts: list[Any]
    lengths: tuple[int, ...] | None
    width: int | None
    dtype: str
    names: tuple[str, ...] | None


def is_dask(value: object) -> bool:
    """Whether it is an array, a frame or a series of dask."""
    collection = hasattr(value, "chunks") or hasattr(value, "_meta")  # a bag has neither
    return _library(value) == "dask" and hasattr(value, "to_delayed") and collection


def is_delayed(value: object) -> bool:
    """Whether it is a value of dask.delayed."""
    return _library(value) == "dask" and type(value).__name__.startswith("Delayed")


def cut_rows(value: Any, what: str, like: Partitions | None = None) -> Partitions:
    """Cut a collection into pieces of rows.

    Parameters
    ----------
    value : dask array, frame or series
        Or, beside a `like` whose rows are known, an array of NumPy.
    what : str
        Its name, for messages.
    like : Partitions, optional
        Those that it goes with; arrays are cut as they are, if their rows are known.

    Raises
    ------
    TypeError
        For what holds no numbers, or is none of these collections.
    ValueError
        For other rows or partitions than `like` has, and more than two axes.
    """
    lengths = None if like is None else like.lengths
    if not is_dask(value):
        value = _as_dask(value, what, lengths)
    partitions = _array(value, what, lengths) if hasattr(value, "chunks") else _frame(value, what)
    if like is None:
        return partitions
    if len(partitions.parts) != len(like.parts):
        raise ValueError(
            f"{what} has {len(partitions.parts)} partitions, but X has {len(like.parts)}: repartition it "
            "as X"
        )
    if lengths and partitions.lengths and lengths != partitions.lengths:
        raise ValueError(f"{what} has {sum(partitions.lengths):,} rows, but X has {sum(lengths):,}")
    return partitions


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _as_dask(value: Any, what: str, lengths: tuple[int, ...] | None) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{what} is a {type(value).__name__} beside X of dask: pass both as arrays or frames of dask"
        )
    if lengths is None:
        raise TypeError(
            f"{what} is an array of NumPy beside X whose partitions have unknown rows: call "
            "X.compute_chunk_sizes() first, or pass both as arrays of dask"
        )
    import dask.array

    if len(value) != sum(lengths):
        raise ValueError(f"{what} has {len(value):,} rows, but X has {sum(lengths):,}")
    return dask.array.from_array(value, chunks=(lengths, *value.shape[1:]))


def _array(value: Any, what: str, lengths: tuple[int, ...] | None) -> Partitions:
    if value.ndim not in (1, 2):
        raise ValueError(f"{what} must have one or two axes, got shape {value.shape}")
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{what} has dtype {value.dtype}: pass {what}.astype(float)")
    known = not any(math.isnan(n) for n in value.chunks[0])
    if known and lengths is not None and value.chunks[0] != lengths:
        if value.shape[0] != sum(lengths):
            raise ValueError(f"{what} has {value.shape[0]:,} rows, but X has {sum(lengths):,}")
        value = value.rechunk({0: lengths})
    if value.ndim == 2 and len(value.chunks[1]) > 1:
        value = value.rechunk({1: -1})
    return Partitions(
        parts=list(value.to_delayed().ravel()),
        lengths=tuple(map(int, value.chunks[0])) if known else None,
        width=int(value.shape[1]) if value.ndim == 2 else None,
        dtype=_float_for([value.dtype]),
        names=None,
    )


def _frame(value: Any, what: str) -> Partitions:
    meta = value._meta  # an empty frame of pandas
    one_column = getattr(meta, "ndim", 2) == 1
    columns = (
        [(None, meta.dtype)] if one_column else list(zip(meta.columns, meta.dtypes, strict=True))
    )
    for column, kind in columns:
        if getattr(kind, "kind", "O") not in "fiub":
            label = what if column is None else f"column {column!r} of {what}"
            raise TypeError(
                f"{label} has type {kind}: encode it as numbers first, or leave it out with features=[..]"
            )
    return Partitions(
        parts=list(value.to_delayed()),
        lengths=None,
        width=None if one_column else len(columns),
        dtype=_float_for([kind for _, kind in columns]),
        names=None if one_column else column_names(meta),
    )


def _float_for(kinds: Iterable[Any]) -> str:
    narrow = all(kind.kind == "f" and kind.itemsize <= 4 for kind in kinds)
    return "float32" if narrow else "float64"


def numbers_of_parts(X: Any, Y: Any, weights: Any, dtype: str) -> tuple[Any, Any, Any]:
    """X (b, d), Y (b, c) and weights (b,) of pieces of arrays, frames and series.

    Raises
    ------
    ValueError
        For a missing value; names column and row of the piece.
    """
    Y = None if Y is None else _numbers(Y, "Y", "float64")
    if Y is not None and Y.ndim == 1:
        Y = Y[:, None]
    return (
        _numbers(X, "X", dtype),
        Y,
        None if weights is None else _numbers(weights, "weights", "float64"),
    )


def numbers_of_block(block: Any) -> tuple[Any, Any, Any]:
    """X (b, d), Y (b, c) and weights (b,) of what a function made: (X, Y), (X, Y, weights) or X."""
    parts = block if isinstance(block, tuple) else (block,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"it has {len(parts)} parts: (X,), (X, Y) or (X, Y, weights) are wanted")
    X, Y, weights = (*parts, None, None)[:3]
    return numbers_of_parts(X, Y, weights, _float_for(getattr(X, "dtypes", [np.dtype(float)])))


def _numbers(part: Any, what: str, dtype: str) -> Any:
    if not hasattr(part, "iloc"):  # no frame
        return part if hasattr(part, "ndim") else np.asarray(part)
    if part.ndim == 1:
        return _column(part, what, dtype)
    matrix = np.empty(part.shape, dtype)
    for j, name in enumerate(part.columns):
        matrix[:, j] = _column(part.iloc[:, j], f"column {name!r}", dtype)
    return matrix


def _column(series: Any, label: str, dtype: str) -> np.ndarray:
    missing = series.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"{label} has no value in row {int(np.argmax(missing)):,} of the partition: remove or impute "
            "such rows first"
        )
    return np.asarray(series.to_numpy(dtype=dtype))
