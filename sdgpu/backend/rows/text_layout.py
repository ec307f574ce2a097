"""The columns of a table of text: their names, an index that is none of them, and rows in chunks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from sdgpu.backend.rows.text_dialect import TextDialect, default_names, guess_dialect
from sdgpu.backend.rows.text_lines import TextFile, is_comment

__all__ = ["RowChunk", "TextLayout", "find_layout"]

CELLS = 2**18  # of a chunk: a cell of text takes ten times the memory of its number


@dataclass(frozen=True)
class RowChunk:
    """Some rows that follow one another, by columns.

    Attributes
    ----------
    start : int
        Number of the first row, from 0; the header is none.
    lines : list of int
        Line of each row in the file, from 1.
    columns : list of tuple of str
        Cells of each column.
    """

    start: int
    lines: list[int]
    columns: list[tuple[str, ...]]


@dataclass(frozen=True)
class TextLayout:
    """Where the columns of a file are.

    Attributes
    ----------
    file : TextFile
    dialect : TextDialect
    names : tuple of str
        Of all columns; "" of an index, which is none.
    index : int or None
        Where the first column is an index: its number in the first row.
    """

    file: TextFile
    dialect: TextDialect
    names: tuple[str, ...]
    index: int | None = None

    def chunks(self, rows: int) -> Iterator[RowChunk]:
        """All rows in order, in chunks of `rows` but for the last; fewer where a row has many cells.

        Raises
        ------
        ValueError
            Names the line: for a row with too many or too few cells, an index that does not go on, and
            whatever makes the file unreadable.
        """
        rows = min(rows, max(1, CELLS // len(self.names)))
        start = 0
        lines: list[int] = []
        rows_of_cells: list[list[str]] = []
        with closing(self.file.rows(self.dialect.separator)) as source:
            if self.dialect.header:
                next(source, None)
            for line, cells in source:
                if len(cells) != len(self.names):
                    if is_comment(cells[0]):
                        continue
                    raise ValueError(self._uneven(line, cells))
                lines.append(line)
                rows_of_cells.append(cells)
                if len(lines) == rows:
                    yield self._chunk(start, lines, rows_of_cells)
                    start, lines, rows_of_cells = start + rows, [], []
        if lines:
            yield self._chunk(start, lines, rows_of_cells)

    def _chunk(self, start: int, lines: list[int], rows: list[list[str]]) -> RowChunk:
        columns = list(zip(*rows, strict=True))
        if self.index is not None:
            for number, cell in enumerate(columns[0]):
                if cell.strip() != str(self.index + start + number):
                    raise ValueError(
                        f"{self.file.path}, line {lines[number]:,}: the first column has no name and "
                        f"counts the rows, but here it holds {cell.strip()!r}: name it, or remove it"
                    )
        return RowChunk(start, lines, columns)

    def _uneven(self, line: int, cells: list[str]) -> str:
        first = "the header" if self.dialect.header else "the first row"
        text = f"{self.file.path}, line {line:,}: {len(cells)} cells, but {first} has {len(self.names)}"
        if len(cells) == len(self.names) + 1:
            if not cells[-1].strip():
                return f"{text}: a separator is too many at its end, or missing in {first}"
            return f"{text}: if the first cells are names of rows, name their column too"
        return f"{text}: correct the line; is the file complete?"


def find_layout(
    path: str | os.PathLike[str],
    *,
    encoding: str | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    header: bool | None = None,
) -> tuple[TextLayout, list[str]]:
    """Look at the first lines of a table.

    Parameters
    ----------
    path : path
    encoding, separator, decimal, thousands, header : optional
        What is known already.

    Returns
    -------
    layout : TextLayout
    notes : list of str
        What a reader should be warned of.

    Raises
    ------
    OSError
        If there is no such file.
    ValueError
        If it is empty, its cells can be read in two ways, and for columns without a name or with the same.
    """
    file = TextFile.of(path, encoding)
    dialect, rows, notes = guess_dialect(
        file, separator=separator, decimal=decimal, thousands=thousands, header=header
    )
    names = [name.strip() for name in rows[0]] if dialect.header else default_names(rows[0])
    index = None
    # pandas calls a column so that has no name
    names = ["" if re.fullmatch(r"Unnamed: \d+", name) else name for name in names]
    if not names[0] and len(names) > 1:
        index = _index_start([row[0].strip() for row in rows[1:]])
    if index is not None:
        notes = [
            *notes,
            f"{path}: the first column has no name and counts the rows from {index}, so it is left out; "
            "give it a name if it is a feature",
        ]
    _check_names(path, names, rows, first=0 if index is None else 1)
    return TextLayout(file, dialect, tuple(names), index), notes


def _index_start(cells: list[str]) -> int | None:
    """0 or 1 if the cells count from there."""
    for start in (0, 1):
        if cells and cells == [str(start + i) for i in range(len(cells))]:
            return start
    return None


def _check_names(
    path: str | os.PathLike[str], names: list[str], rows: list[list[str]], *, first: int
) -> None:
    """Refuse columns without a name, and names of two columns."""
    for j, name in enumerate(names[first:], first):
        if not name:
            empty = len(rows) > 1 and not any(row[j].strip() for row in rows[1:])
            remedy = "name it, or remove it if it is an index"
            if empty:
                remedy = "remove the separator at the end of each line"
            raise ValueError(
                f"{path} has no name for column {j + 1} of {len(names)} in its header: {remedy}, or pass "
                "header=False (--no-header) if there is no header"
            )
        same = [i + 1 for i, other in enumerate(names) if other == name]
        if len(same) > 1:
            places = ", ".join(map(str, same))
            raise ValueError(
                f"{path} has the name {name!r} twice or more, of columns {places}: rename all but one"
            )
