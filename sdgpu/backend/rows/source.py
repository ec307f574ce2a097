"""Rows that come in blocks: what a source of rows is, and how its blocks are checked.

A source knows the width of its rows and gives them in order, in blocks of any size. Fits cut them anew
(:func:`checked_blocks`), so that what a file or a partition happens to hold together changes no bit of a
sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sdgpu.backend.checks import integer
from sdgpu.backend.sparse_rows import csr_rows, is_csr

__all__ = ["Block", "RowSource", "checked_blocks"]


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows that follow one another.

    Attributes
    ----------
    X : array (b, d)
        NumPy, of any real dtype, a torch tensor on any device, or CSR of SciPy.
    Y : array (b, c) or None
        Targets, where the source has some.
    weights : array (b,) or None
        Weights of the rows.
    place : str
        Where the first row stands, for messages: "part-3.parquet, row 20,000".
    """

    X: Any
    Y: Any = None
    weights: Any = None
    place: str = ""

    @property
    def rows(self) -> int:
        """b."""
        return int(self.X.shape[0])


@runtime_checkable
class RowSource(Protocol):
    """Rows without end: arrays, files, partitions of a cluster, or what a function makes.

    Attributes
    ----------
    d : int
        Features of a row.
    c : int
        Outputs; 0 without targets.
    n : int or None
        Rows, where that is known before they were read.
    dtype : str
        "float32" if all numbers have that or half precision, else "float64".
    rereadable : bool
        Whether :meth:`blocks` may be called more than once.
    columns, outputs : tuple of str, or None
        Names of features and targets.
    """

    @property
    def d(self) -> int: ...
    @property
    def c(self) -> int: ...
    @property
    def n(self) -> int | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def rereadable(self) -> bool: ...
    @property
    def columns(self) -> tuple[str, ...] | None: ...
    @property
    def outputs(self) -> tuple[str, ...] | None: ...
    def blocks(self, rows: int) -> Iterator[Block]:
        """All rows in order, in blocks of about `rows`: a source may give others if that is cheaper."""


def checked_blocks(source: RowSource, rows: int) -> Iterator[tuple[int, Block]]:
    """Blocks of exactly `rows` rows, but for the last, with the number of their first row.

    Numbers are floats of the source's dtype, finite, and as wide as the source said.

    Raises
    ------
    ValueError
        Names the place: for NaN or infinity, another width, a block whose parts have different lengths, or
        more or fewer rows than the source said.
    TypeError
        For numbers that are none.
    """
    integer("rows", rows, 1)
    start, waiting = 0, 0
    parts: list[Block] = []
    kind: tuple[bool, bool] | None = None
    for block in source.blocks(rows):
        block = _checked(source, block, start + waiting)
        if not block.rows:
            continue
        kind = _same_kind(block, kind)
        if source.n is not None and start + waiting + block.rows > source.n:
            raise _changed(source.n, start + waiting + block.rows)
        while waiting + block.rows >= rows:
            head, block = _cut(block, rows - waiting)
            yield start, _joined([*parts, head])
            start, parts, waiting = start + rows, [], 0
        if block.rows:
            parts.append(block)
            waiting += block.rows
    if source.n is not None and start + waiting != source.n:
        raise _changed(source.n, start + waiting)
    if parts:
        yield start, _joined(parts)


def _changed(said: int, gave: int) -> ValueError:
    return ValueError(
        f"the source said {said:,} rows and gave {gave:,}: it changed while it was read"
    )


def _same_kind(block: Block, kind: tuple[bool, bool] | None) -> tuple[bool, bool]:
    """Whether a block is of torch and has weights, which all or none must."""
    own = (hasattr(block.X, "detach"), block.weights is not None)
    if kind is not None and own != kind:
        what = "weights" if own[0] == kind[0] else "rows of torch"
        raise ValueError(f"the block at {block.place} is of another kind: all or none have {what}")
    return own


def _checked(source: RowSource, block: Block, first: int) -> Block:
    place = block.place or f"row {first:,}"
    X = _numbers(block.X, "X", source.d, source.dtype, place)
    Y = None
    if source.c:
        if block.Y is None:
            raise ValueError(f"the block at {place} has no targets, but the source said {source.c}")
        Y = _numbers(block.Y, "Y", source.c, "float64", place)
    weights = None
    if block.weights is not None:
        weights = _weights(block.weights, place)
    for name, part in (("Y", Y), ("weights", weights)):
        if part is not None and len(part) != X.shape[0]:
            raise ValueError(
                f"the block at {place} has {X.shape[0]} rows of X and {len(part)} of {name}"
            )
    return Block(X, Y, weights, place)


def _weights(values: Any, place: str) -> np.ndarray:
    """Weights (b,) >= 0, on the host."""
    host = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if host.ndim != 1:
        raise ValueError(f"weights at {place} has shape {host.shape}: one for each row is wanted")
    weights: np.ndarray = _numbers(host[:, None], "weights", 1, "float64", place)[:, 0]
    if len(weights) and float(weights.min()) < 0:
        row = int(np.argmax(weights < 0))
        raise ValueError(f"weights at {place}, row {row} of the block, are negative")
    return weights


def _numbers(values: Any, name: str, width: int, dtype: str, place: str) -> Any:
    """Finite floats of one dtype, (b, width); torch stays where it is, and sparse rows are sparse."""
    if is_csr(values):
        return csr_rows(values, f"{name} at {place}", features=width)
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} at {place} is a masked array: drop the masked rows, or fill them")
    array, finite = (_torch_numbers if hasattr(values, "detach") else _host_numbers)(
        values, f"{name} at {place}", dtype
    )
    if finite is None or array.shape[1] != width:
        raise ValueError(
            f"{name} at {place} has shape {tuple(array.shape)}, but rows of {width} were announced"
        )
    if not bool(finite.all()):
        row = int(np.argmin(np.asarray(finite)))
        raise ValueError(
            f"{name} at {place}, row {row} of the block, is NaN or infinite in {dtype}: remove or impute "
            "such rows first"
        )
    return array


def _torch_numbers(values: Any, label: str, dtype: str) -> tuple[Any, Any]:
    import torch

    if values.is_complex():
        raise TypeError(f"{label} holds {values.dtype}: real numbers are wanted")
    array = values.detach().to(getattr(torch, dtype))
    return array, torch.isfinite(array).all(dim=1).cpu() if array.ndim == 2 else None


def _host_numbers(values: Any, label: str, dtype: str) -> tuple[Any, Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{label} holds {array.dtype}: real numbers are wanted")
    with np.errstate(over="ignore"):  # too large for float32 is infinite there, which is said below
        array = array.astype(dtype, copy=False)
    return array, np.isfinite(array).all(axis=1) if array.ndim == 2 else None


def _cut(block: Block, rows: int) -> tuple[Block, Block]:
    """The first rows of a block, and the others."""

    def part(rows: slice) -> Block:
        Y, weights = (None if x is None else x[rows] for x in (block.Y, block.weights))
        return Block(block.X[rows], Y, weights, block.place)

    return part(slice(0, rows)), part(slice(rows, None))


def _joined(parts: list[Block]) -> Block:
    """Blocks that follow one another as one."""
    if len(parts) == 1:
        return parts[0]

    def join(arrays: list[Any]) -> Any:
        if arrays[0] is None:
            return None
        if hasattr(arrays[0], "detach"):
            import torch

            return torch.cat(arrays)
        return np.concatenate(arrays)

    columns = ([getattr(part, name) for part in parts] for name in ("X", "Y", "weights"))
    X, Y, weights = map(join, columns)
    return Block(X, Y, weights, parts[0].place)
