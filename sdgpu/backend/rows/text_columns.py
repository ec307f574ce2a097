"""Columns of a table of text: what their cells are, and how they become numbers.

A column holds numbers, booleans or words. Words become one column of zeros and ones for each category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.rows.text_dialect import MISSING, TextDialect, looks_numeric, read_cell

__all__ = ["CellError", "TextColumn", "label_of", "shortened"]


class CellError(ValueError):
    """A cell that its column does not understand.

    Attributes
    ----------
    index : int
        Of the cell among those that were read together.
    missing : bool
        Whether the cell is missing.
    """

    def __init__(self, message: str, index: int, *, missing: bool = False) -> None:
        super().__init__(message)
        self.index = index
        self.missing = missing


@dataclass(frozen=True, eq=False)
class TextColumn:
    """A column that is used, and what is made of its cells.

    Attributes
    ----------
    name : str
    position : int
        Of the cell in a row.
    kind : {"number", "boolean", "word"}
    categories : tuple
        Of words, or labels that are numbers, in increasing order: one column of zeros and ones for each.
        The category "" is that of missing cells.
    fill : float, optional
        For missing cells; without it they are errors.
    """

    name: str
    position: int
    kind: str
    categories: tuple[Any, ...] = ()
    fill: float | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what is made of it: "price", or "colour=blue", "colour=red"."""
        if not self.categories:
            return (self.name,)
        return tuple(
            f"{self.name}={label if label != '' else '(missing)'}" for label in self.categories
        )

    def read(self, cells: Sequence[str], dialect: TextDialect) -> np.ndarray:
        """Numbers (b, width) of cells (b,), float64.

        Raises
        ------
        CellError
            For the first cell that is missing, infinite or of another kind.
        """
        if self.kind == "word":
            return np.eye(len(self.categories))[self._codes(cells)]
        values = dialect.numbers(cells) if self.kind == "number" else None
        if values is None:
            values = self._mended(cells, dialect)
        if not self.categories:
            return values[:, None]
        codes = np.searchsorted(self.categories, values)
        known = np.asarray(self.categories, dtype=np.float64)
        other = known[np.minimum(codes, len(known) - 1)] != values
        if other.any():
            index = int(np.argmax(other))
            raise CellError(f"{cells[index].strip()!r} is none of its classes", index)
        return np.eye(len(known))[codes]

    def _codes(self, cells: Sequence[str]) -> list[int]:
        known = {label: code for code, label in enumerate(self.categories)}
        codes = [known.get(label_of(cell), -1) for cell in cells]
        if -1 in codes:
            index = codes.index(-1)
            label = label_of(cells[index])
            text = f"{label!r} is none of its categories" if label else "a cell is missing"
            raise CellError(text, index, missing=not label)
        return codes

    def _mended(self, cells: Sequence[str], dialect: TextDialect) -> np.ndarray:
        """Numbers (b,) of cells of which some are missing, booleans or with thousands separators."""
        values: dict[str, float] = {}
        for index, cell in enumerate(cells):
            if cell not in values:
                values[cell] = self._value(cell, index, dialect)
        return np.array([values[cell] for cell in cells], dtype=np.float64)

    def _value(self, cell: str, index: int, dialect: TextDialect) -> float:
        kind, value = read_cell(cell, dialect)
        if kind in ("missing", "dash"):
            if self.fill is None:
                raise CellError("a cell is missing", index, missing=True)
            return self.fill
        if kind == "infinite":
            raise CellError(
                f"{shortened(cell)} is infinite: correct it, or leave the row out", index
            )
        if kind != self.kind:
            other = "yes, no, true or false" if self.kind == "boolean" else "a number"
            remedy = "correct it, or leave the column out"
            if looks_numeric(cell):
                remedy = (
                    "correct it, or pass decimal= and thousands= as the table writes its numbers"
                )
            raise CellError(
                f"{shortened(cell)} is not {other}, unlike the cells above it: {remedy}", index
            )
        return value


def label_of(cell: str) -> str:
    """A cell as a label; "" if it is missing."""
    label = cell.strip()
    return "" if label.lower() in MISSING else label


def shortened(cell: str, length: int = 40) -> str:
    """A cell for a message."""
    text = cell.strip()
    return repr(text if len(text) <= length else text[: length - 2] + "..")
