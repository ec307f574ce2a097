"""Rows in memory, or in a file that looks like memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.rows.source import Block

__all__ = ["ArraySource", "CallableSource"]

_HALVES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, eq=False)
class ArraySource:
    """NumPy arrays, memory maps, torch tensors, zarr arrays: whatever can be sliced by rows.

    Attributes
    ----------
    X : array (n, d)
    Y : array (n, c), (n,) or None
    weights : array (n,) or None
    name : str
        For messages.
    columns, outputs : tuple of str, or None
    may_be_empty : bool
        Whether there may be no rows, as of one rank among several.
    """

    X: Any
    Y: Any = None
    weights: Any = None
    name: str = ""
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    may_be_empty: bool = False

    def __post_init__(self) -> None:
        label = f" of {self.name}" if self.name else ""
        if len(self.X.shape) != 2 or not self.X.shape[1]:
            raise ValueError(f"X{label} must be (rows, features), got shape {tuple(self.X.shape)}")
        if not (self.X.shape[0] or self.may_be_empty):
            raise ValueError(f"X{label} has no rows")
        for what, array in (("Y", self.Y), ("weights", self.weights)):
            if array is not None and not len(array.shape):
                raise ValueError(f"{what}{label} is a single number: one for each row is wanted")
            if array is not None and array.shape[0] != self.X.shape[0]:
                raise ValueError(
                    f"{what}{label} has {array.shape[0]:,} rows, but X has {self.X.shape[0]:,}"
                )
        if self.weights is not None and len(self.weights.shape) != 1:
            raise ValueError(
                f"weights{label} must be (rows,), got shape {tuple(self.weights.shape)}"
            )
        if self.Y is not None and (len(self.Y.shape) > 2 or 0 in self.Y.shape[1:]):
            raise ValueError(
                f"Y{label} must be (rows,) or (rows, outputs), got shape {tuple(self.Y.shape)}"
            )

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        if self.Y is None:
            return 0
        return int(self.Y.shape[1]) if len(self.Y.shape) == 2 else 1

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.X.shape[0])

    @property
    def dtype(self) -> str:
        """Of X."""
        dtype = self.X.dtype
        if isinstance(dtype, np.dtype):
            return "float32" if dtype.kind == "f" and dtype.itemsize <= 4 else "float64"
        return "float32" if str(dtype).split(".")[-1] in _HALVES else "float64"

    @property
    def rereadable(self) -> bool:
        """Always."""
        return True

    def blocks(self, rows: int) -> Iterator[Block]:
        """Slices, one after the other."""
        for part in slices(self.n, rows):
            Y = None
            if self.Y is not None:
                Y = self.Y[part]
                Y = Y if len(Y.shape) == 2 else Y[:, None]
            weights = None if self.weights is None else self.weights[part]
            place = f"{self.name or 'X'}, row {part.start:,}"
            yield Block(self.X[part], Y, weights, place)


@dataclass(frozen=True, eq=False)
class CallableSource:
    """Blocks that a function makes: called once for each pass.

    Attributes
    ----------
    make : callable
        () -> iterator of (X, Y), (X, Y, weights) or X.
    d, c : int
    n : int or None
    dtype : str
    rereadable : bool
        Whether it may be called again.
    """

    make: Callable[[], Iterator[Any]]
    d: int
    c: int
    n: int | None = None
    dtype: str = "float64"
    rereadable: bool = True
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def blocks(self, rows: int) -> Iterator[Block]:
        """As the function gives them."""
        for number, parts in enumerate(self.make()):
            place = f"block {number}"
            if not isinstance(parts, tuple):
                parts = (parts,)
            if not 1 <= len(parts) <= 3:
                raise ValueError(
                    f"{place} has {len(parts)} parts: (X,), (X, Y) or (X, Y, weights) are wanted"
                )
            X, Y, weights = (*parts, None, None)[:3]
            if isinstance(Y, (list, tuple)):
                Y = np.asarray(Y)
            if Y is not None and len(Y.shape) == 1:
                Y = Y[:, None]
            yield Block(X, Y, weights, place)
