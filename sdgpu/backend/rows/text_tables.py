"""Tables of text (.csv, .tsv, .txt, packed or not) as rows without end: never the whole file in memory."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.checks import choice, integer, number
from sdgpu.backend.rows.column_choice import by_name
from sdgpu.backend.rows.source import Block
from sdgpu.backend.rows.text_columns import CellError, TextColumn
from sdgpu.backend.rows.text_layout import RowChunk, TextLayout, find_layout
from sdgpu.backend.rows.text_survey import ColumnSurvey, TableRequest, check_gaps, survey_rows

__all__ = ["TextTable", "open_table"]


@dataclass(frozen=True, eq=False)
class TextTable:
    """Rows of a table of text.

    Attributes
    ----------
    layout : TextLayout
    inputs, targets : tuple of TextColumn
    n : int or None
        Rows, if they were counted.
    """

    layout: TextLayout
    inputs: tuple[TextColumn, ...]
    targets: tuple[TextColumn, ...]
    n: int | None = None

    @property
    def d(self) -> int:
        """Features of a row."""
        return len(self.columns)

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        return len(self.outputs or ())

    @property
    def dtype(self) -> str:
        """Of the numbers: float64, the nearest to those that are written."""
        return "float64"

    @property
    def rereadable(self) -> bool:
        """Always, as long as the file does not change."""
        return True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(name for column in self.inputs for name in column.outputs)

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Names of the outputs."""
        return tuple(name for column in self.targets for name in column.outputs) or None

    @property
    def classes(self) -> tuple[Any, ...]:
        """Labels in the order of the outputs; empty for regression."""
        return self.targets[0].categories if self.targets else ()

    def blocks(self, rows: int) -> Iterator[Block]:
        """All rows in order, in blocks of `rows` but for the last; fewer where a row has many cells.

        Raises
        ------
        ValueError
            Names file, line, row and column: for a cell that is not what its column held before, a missing
            cell, a row of another width, and a file that was cut off or changed.
        """
        for chunk in self.layout.chunks(integer("rows", rows, 1)):
            X = self._matrix(chunk, self.inputs)
            Y = self._matrix(chunk, self.targets) if self.targets else None
            yield Block(X, Y, None, _place(self.layout, chunk))

    def _matrix(self, chunk: RowChunk, columns: Sequence[TextColumn]) -> np.ndarray:
        matrix = np.empty((len(chunk.lines), sum(len(column.outputs) for column in columns)))
        start = 0
        for column in columns:
            try:
                values = column.read(chunk.columns[column.position], self.layout.dialect)
            except CellError as error:
                if error.missing:
                    self._refuse_gaps()
                place = f"{_place(self.layout, chunk, error.index)}, column {column.name!r}"
                raise ValueError(f"{place}: {error}") from error
            matrix[:, start : start + values.shape[1]] = values
            start += values.shape[1]
        return matrix

    def _refuse_gaps(self) -> None:
        """Count missing cells in all rows, and name their columns."""
        surveys = {
            column.name: ColumnSurvey(column.name, column.position, text=column.kind == "word")
            for column in (*self.inputs, *self.targets)
        }
        survey_rows(self.layout, surveys)
        filled = any(column.fill is not None for column in self.inputs)
        check_gaps(self.layout, surveys, [column.name for column in self.targets], filled=filled)


def open_table(
    path: str | os.PathLike[str],
    target: str | Sequence[str] | None = None,
    *,
    features: Sequence[str] | None = None,
    classify: bool = False,
    encode: bool | Sequence[str] = False,
    impute: float | str | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    header: bool | None = None,
    encoding: str | None = None,
) -> TextTable:
    """Open a table of text as a source of rows.

    Separator, decimal comma and thousands separators are found in the first thousand lines. What these
    leave open is an error that says which argument settles it. A first row with numbers may be a header or
    data, so that `header` is asked for; one of words alone is a header unless one of its words occurs
    again below it. Blank lines, comments (#) before the header, and later ones that have another number of
    cells than the header, are left out. Cells "", NA, N/A, NaN, null and ? are missing, in a column of
    numbers - and None too. Columns of true and false, or yes and no, are 1 and 0.

    Without `classify`, `encode` and an `impute` that is computed, the first thousand rows say what the
    columns are, and later rows are held to that as they are read. Otherwise all rows are read once, and
    once more where a mean or median is wanted.

    Parameters
    ----------
    path : path
        Packed if it ends in .gz, .bz2, .xz or .zst, which needs pyarrow.
    target : str or sequence of str, optional
        Columns to predict; by default the last one, with [] none.
    features : sequence of str, optional
        Columns of the inputs; by default all others.
    classify : bool, default False
        The target holds labels, numbers or words: Y has a column of zeros and ones for each, in order.
    encode : bool or sequence of str, default False
        Make columns of zeros and ones of columns of words, for each word one, in order; at most 100. A
        sequence names these columns, which then may hold numbers too.
    impute : {"mean", "median"} or float, optional
        What stands for a missing cell of a feature; in a column of words it is a category of its own. Mean
        and median are those of all rows: a test set that is split off afterwards has contributed to them.
        The median holds the column in memory, 8 bytes a row.
    separator : str, optional
        Between cells; " " for any white space.
    decimal : {".", ","}, optional
    thousands : {"", ",", ".", " ", "'"}, optional
        Between groups of three digits.
    header : bool, optional
        Whether the first row holds names; without them columns are named "1", "2", and so on.
    encoding : str, optional
        By default UTF-8, or UTF-16 where the file says so.

    Raises
    ------
    OSError
        If there is no such file.
    ImportError
        If it needs a package that is not there.
    ValueError
        Names the file, and column, row or line: for what can be read in two ways, names that are missing or
        the same, rows of different widths, words, dates, missing or infinite numbers, and mixed columns.

    Warns
    -----
    UserWarning
        If a first column without a name counts the rows: it is left out. If all numbers of a table with
        semicolons look like 1.234, which are read with a decimal point.
    """
    layout, notes = find_layout(
        path,
        encoding=encoding,
        separator=separator,
        decimal=decimal,
        thousands=thousands,
        header=header,
    )
    for note in notes:
        warnings.warn(note, stacklevel=2)
    roles = by_name([name for name in layout.names if name], target, features, place=str(path))
    if classify and len(roles.targets) != 1:
        raise ValueError(f"classify=True needs one target, not {len(roles.targets)}: {target!r}")
    request = TableRequest(
        roles.features,
        roles.targets,
        classify=classify,
        encode=encode is True,
        words=_words(encode, roles.features),
        impute=_imputation(impute),
    )
    table = TextTable(layout, *request.columns(layout))
    twice = [name for name, count in Counter(table.columns).items() if count > 1]
    if twice:
        raise ValueError(f"{path} would have two features {twice[0]!r}: rename a column")
    return table


def _words(encode: bool | Sequence[str], features: Sequence[str]) -> frozenset[str]:
    """Columns that are named as those of words."""
    if isinstance(encode, bool):
        return frozenset()
    names = (encode,) if isinstance(encode, str) else tuple(encode)
    unknown = [name for name in names if name not in features]
    if unknown:
        raise ValueError(
            f"encode={unknown[0]!r} is none of the features: {', '.join(map(repr, features[:10]))}"
        )
    return frozenset(names)


def _imputation(impute: float | str | None) -> float | str | None:
    if impute is None:
        return None
    if isinstance(impute, str):
        return choice("impute", impute, ("mean", "median"))
    return number("impute", impute)


def _place(layout: TextLayout, chunk: RowChunk, index: int = 0) -> str:
    """Where a row of a chunk stands: "prices.csv, line 22,002 (row 22,000)"."""
    return f"{layout.file.path}, line {chunk.lines[index]:,} (row {chunk.start + index:,})"
