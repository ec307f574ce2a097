"""How a table of text is written: what parts its cells, how its numbers look, whether it has a header.

All of it is looked for in the first lines. What they leave open is not guessed: it is an error that says
which argument settles it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from csv import Error as QuoteError
from dataclasses import dataclass, field

import numpy as np

from sdgpu.backend.checks import choice
from sdgpu.backend.rows.text_lines import TextFile, is_comment, split_cells

__all__ = ["TextDialect", "default_names", "guess_dialect", "looks_numeric", "read_cell"]

#: Separators that are tried, the first of equals wins. A blank stands for any white space.
SEPARATORS = ("\t", ";", "|", ",", " ")
#: Words for a missing cell, in lower case.
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "null", "?"))
#: More of them in a column of numbers; in a column of text they may be labels.
DASHES = frozenset(("-", "--", "none"))
BOOLEANS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{2}|\d{4}))([T ]+\d{1,2}:\d{2}.*)?"
    r"|\d{1,2}:\d{2}(:\d{2}.*)?"
)

_BLANKS = str.maketrans(dict.fromkeys("\u00a0\u2009\u202f", " ") | {"\u2019": "'"})
_NUMBER = re.compile(
    r"[+-]?(?P<whole>\d*|[1-9]\d{0,2}(?P<group>[.,' ])\d{3}(?:(?P=group)\d{3})*)"
    r"(?:(?P<mark>[.,])(?P<part>\d*))?(?P<power>[eE][+-]?\d+)?"
)


@dataclass(frozen=True)
class TextDialect:
    """How cells, numbers and names are written.

    Attributes
    ----------
    separator : str
        Between cells; a blank stands for any white space.
    decimal : {".", ","}
    thousands : {"", ",", ".", " ", "'"}
        Between groups of three digits.
    header : bool
        Whether the first row holds names.

    Examples
    --------
    >>> TextDialect(";", decimal=",", thousands=".").number("1.234,5")
    1234.5
    """

    separator: str
    decimal: str = "."
    thousands: str = ""
    header: bool = True

    def number(self, cell: str) -> float | None:
        """The float64 that is nearest to what a cell says, perhaps infinite; None if it is no number."""
        text = cell.translate(_BLANKS).strip()
        if self.thousands and self.thousands in text:
            group, mark = re.escape(self.thousands), re.escape(self.decimal)
            if not re.match(rf"[+-]?[1-9]\d{{0,2}}({group}\d{{3}})+({mark}|[eE]|$)", text):
                return None
            text = text.replace(self.thousands, "")
        if self.decimal == ",":
            if "." in text:
                return None
            text = text.replace(",", ".")
        if "_" in text:  # Python's, in its own sources
            return None
        try:
            return float(text)
        except ValueError:
            return None

    def numbers(self, cells: Sequence[str]) -> np.ndarray | None:
        """Cells (b,) as float64 if each is a finite number without thousands separators, else None."""
        text = "\n".join(cells)
        if "_" in text or (self.thousands and self.thousands in text):
            return None
        if self.decimal == ",":
            parts = text.replace(",", ".").split("\n")
            if "." in text or len(parts) != len(cells):  # a quoted cell may hold a line end
                return None
            cells = parts
        try:
            values = np.array(list(map(float, cells)), dtype=np.float64)
        except ValueError:
            return None
        return values if np.isfinite(values).all() else None


def read_cell(cell: str, dialect: TextDialect) -> tuple[str, float]:
    """Kind of a cell, and its number, NaN where there is none.

    The kinds are "number", "infinite", "missing", "dash" (missing among numbers), "boolean" and "word".
    """
    word = cell.strip().lower()
    if word in MISSING:
        return "missing", math.nan
    if word in DASHES:
        return "dash", math.nan
    if word in BOOLEANS:
        return "boolean", BOOLEANS[word]
    value = dialect.number(cell)
    if value is None or math.isnan(value):
        return "word", math.nan
    return "number" if math.isfinite(value) else "infinite", value


def guess_dialect(
    file: TextFile,
    *,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    header: bool | None = None,
) -> tuple[TextDialect, list[list[str]], list[str]]:
    """Find how a table is written from its first lines.

    Parameters
    ----------
    file : TextFile
    separator, decimal, thousands, header : optional
        What is known already.

    Returns
    -------
    dialect : TextDialect
    rows : list of list of str
        Cells of the first rows, the header too, that are as wide as the first.
    notes : list of str
        What a reader should be warned of.

    Raises
    ------
    ValueError
        If there is nothing to read, or what is there can be read in two ways; says which argument decides.
    """
    _check(separator, decimal, thousands)
    lines, comment = file.sample()
    if any("\0" in line for line in lines):
        raise ValueError(f"{file.path} is no table of text: it holds the character NUL")
    if not lines:
        raise ValueError(f"{file.path} is empty: a header and rows of cells are wanted")
    if separator is None:
        separator = _separator(file.path, lines)
    rows = _parsed(lines, separator)
    if not rows or not rows[0]:
        next(file.rows(separator), None)  # says which line has what kind of error
        raise ValueError(f"{file.path} is empty: a header and rows of cells are wanted")
    rows = [row for row in rows if len(row) == len(rows[0])]
    if header is None:
        header = _header(file.path, rows, comment)
    signs = _Signs.of(rows[header:], rows[0] if header else default_names(rows[0]))
    notes: list[str] = []
    if decimal is None:
        decimal, notes = signs.decimal_mark(file.path, separator, thousands)
    if thousands is None:
        thousands = signs.thousands_mark(file.path, decimal)
    return TextDialect(separator, decimal, thousands, header), rows, notes


def default_names(row: list[str]) -> list[str]:
    """Names of the columns of a table without a header: their numbers, from 1."""
    return [str(number) for number in range(1, len(row) + 1)]


def _check(separator: str | None, decimal: str | None, thousands: str | None) -> None:
    if separator is not None and (
        len(separator) != 1 or separator.isalnum() or separator in '"\r\n.'
    ):
        raise ValueError(
            f"separator={separator!r} must be one character such as ',' or ';' ('\\t' for tabs, ' ' for "
            "any white space)"
        )
    if decimal is not None:
        choice("decimal", decimal, (".", ","))
    if thousands is not None:
        choice("thousands", thousands, ("", ",", ".", " ", "'"))
    if thousands and thousands == decimal:
        raise ValueError(f"thousands={thousands!r} is the decimal mark too: they must differ")


def _parsed(lines: list[str], separator: str) -> list[list[str]]:
    """Rows of a sample without blank lines and comments; one that cannot be read is empty, and the last."""
    rows: list[list[str]] = []
    try:
        for cells in split_cells(lines, separator):
            blank = not cells or (len(cells) == 1 and not cells[0].strip())
            if not blank and (not rows or len(cells) == len(rows[0]) or not is_comment(cells[0])):
                rows.append(cells)
    except QuoteError:
        rows.append([])
    return rows


def _separator(path: str, lines: list[str]) -> str:
    """Of those that cut half of the rows as the header the one that leaves most numbers."""
    best, best_rank = "", (False, -1.0, -1.0)
    for separator in SEPARATORS:
        rows = _parsed(lines, separator)
        if not rows or len(rows[0]) < 2:
            continue
        if separator == " " and best_rank[0] and None in map(_shape, rows[0]):
            continue  # white space in names and words is common
        body = [row for row in rows[1:] if len(row) == len(rows[0])]
        cells = [cell for row in body for cell in row]
        numbers = sum(_shape(cell) is not None for cell in cells) / max(len(cells), 1)
        share = len(body) / max(len(rows) - 1, 1)
        rank = (share >= 0.5, numbers, share)
        if rank > best_rank:
            best, best_rank = separator, rank
    if not best:
        raise ValueError(
            f"{path} has one column: neither tab nor ; | , nor white space is in its first line, "
            f"{lines[0].strip()[:60]!r}; pass separator= if it is another"
        )
    return best


def _header(path: str, rows: list[list[str]], comment: str) -> bool:
    """True; an error where the first row may be one of data, which would be lost as a header."""
    first, body = rows[0], rows[1:]
    remedy = (
        "pass header=False (--no-header) if it is one of data, header=True (--header) if of names"
    )
    values = [c for c in first if _shape(c) is not None or c.strip().lower() in BOOLEANS]
    if values:
        amount = "nothing but" if len(values) == len(first) else "also"
        shown = ", ".join(values[:3]) + (", .." if len(values) > 3 else "")
        raise ValueError(f"{path} has {amount} numbers in its first row ({shown}): {remedy}")
    columns = list(zip(first, *body, strict=True))
    for name, *cells in columns:
        if name.strip().lower() not in MISSING and _numeric(cells):
            return True  # a word above numbers is a name
    for name, *cells in columns:
        name = name.strip()
        if name.lower() in MISSING - {""}:
            raise ValueError(f"{path} has a missing cell, {name!r}, in its first row: {remedy}")
        if name and name in map(str.strip, cells):
            raise ValueError(f"{path} has {name!r} in its first row and again below it: {remedy}")
    if len(re.split(r"[\s,;|]+", comment.strip("# "))) == len(first) and comment:
        raise ValueError(
            f"{path} has a comment of as many words as its columns, {comment!r}: if these are the names, "
            f"remove its #; if not, {remedy}"
        )
    return True


def _shape(cell: str) -> re.Match[str] | None:
    """A cell taken apart, if it is a number in some country."""
    shape = _NUMBER.fullmatch(cell.translate(_BLANKS).strip())
    if shape is None or not (shape["whole"] or shape["part"]):
        return None
    return None if shape["mark"] and shape["mark"] == shape["group"] else shape


def looks_numeric(cell: str) -> bool:
    """Whether a cell is a number in some country, if not in this table."""
    return _shape(cell) is not None


def _numeric(cells: Sequence[str]) -> list[re.Match[str]]:
    """The numbers among cells, if these are most of those that are not missing; else none."""
    shapes = [_shape(cell) for cell in cells if cell.strip().lower() not in MISSING]
    numbers = [shape for shape in shapes if shape is not None]
    return numbers if 2 * len(numbers) > len(shapes) else []


@dataclass
class _Signs:
    """Marks that numbers use, each with the first place: 'price' (1.234,5).

    Attributes
    ----------
    decimal, thousands : dict
        Marks that can be nothing else.
    either : dict
        Marks of cells like 1,234, which are one or the other.
    """

    decimal: dict[str, str] = field(default_factory=dict)
    thousands: dict[str, str] = field(default_factory=dict)
    either: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: list[list[str]], names: list[str]) -> _Signs:
        """Look at columns most of whose cells are numbers in some country."""
        signs = cls()
        for name, *cells in zip(names, *rows, strict=True):
            for shape in _numeric(cells):
                signs._note(shape, f"{name.strip()!r} ({shape[0]})")
        return signs

    def _note(self, shape: re.Match[str], place: str) -> None:
        mark, group = shape["mark"], shape["group"]
        if group:
            self.thousands.setdefault(group, place)
        if not mark:
            return
        grouped = re.fullmatch(r"[1-9]\d{0,2}", shape["whole"]) and len(shape["part"]) == 3
        if grouped and not shape["power"]:
            self.either.setdefault(mark, place)
        else:
            self.decimal.setdefault(mark, place)

    def decimal_mark(
        self, path: str, separator: str, thousands: str | None
    ) -> tuple[str, list[str]]:
        """The mark, and what to warn of."""
        other = {",": ".", ".": ","}
        if thousands in other:
            return other[thousands], []
        if len(self.decimal) == 2:
            raise ValueError(
                f"{path} has numbers with a point in column {self.decimal['.']} and with a comma in column "
                f"{self.decimal[',']}: correct one, or pass decimal='.' or ','"
            )
        if self.decimal:
            return next(iter(self.decimal)), []
        groups = [mark for mark in self.thousands if mark in other]
        if len(groups) == 1:
            return other[groups[0]], []
        if "," in self.either:
            raise ValueError(
                f"{path} has numbers in column {self.either[',']} whose comma may be a decimal or a "
                "thousands separator: pass decimal=',' or thousands=','"
            )
        if "." in self.either and separator == ";":
            return ".", [
                f"{path}: numbers in column {self.either['.']} are read with a decimal point; pass "
                "decimal='.' if that is right, thousands='.' if it parts thousands"
            ]
        return ".", []

    def thousands_mark(self, path: str, decimal: str) -> str:
        """The separator of thousands; "" if there is none."""
        marks = {**self.either, **self.thousands}
        marks.pop(decimal, None)
        if len(marks) > 1:
            places = " and ".join(marks.values())
            raise ValueError(
                f"{path} parts thousands in two ways, in columns {places}: correct one, or pass thousands="
            )
        return next(iter(marks), "")
