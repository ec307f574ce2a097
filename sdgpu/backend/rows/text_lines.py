"""Files of text, packed or not: decoded and cut into rows of cells, each with the number of its line.

A file is read again in every pass; whether it is still the same is looked at before and after each of them.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdgpu.backend.rows.file_state import FileState

__all__ = ["TextFile", "is_comment", "is_text_table", "split_cells", "table_name"]

ENDINGS = (".csv", ".tsv", ".txt")
LONGEST = 1 << 24  # characters of a line: a file without line ends would be read whole
SAMPLE_LINES = 1000
SAMPLE_CHARACTERS = 1 << 22

_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
_WORD = re.compile(r'"((?:[^"]|"")*)"(?!\S)|(\S+)')


def is_text_table(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a table of text: .csv, .tsv or .txt, perhaps packed (.gz, .zst, ...).

    Examples
    --------
    >>> is_text_table("flights.csv.gz"), is_text_table("flights.npz")
    (True, False)
    """
    return _unpacked(path).lower().endswith(ENDINGS)


def table_name(path: str | os.PathLike[str]) -> str:
    """Name of a table without its endings: "flights" of "data/flights.csv.gz"."""
    return Path(_unpacked(path)).stem


def _unpacked(path: str | os.PathLike[str]) -> str:
    name = Path(path).name
    return name[: -len(Path(name).suffix)] if _packing(path) else name


def _packing(path: str | os.PathLike[str]) -> str:
    """The ending of a packed file; "" of a plain one."""
    ending = Path(path).suffix.lower()
    return ending if ending in _OPENERS else ""


@dataclass(frozen=True)
class TextFile:
    """A file of text that is read again in every pass, as long as it stays the same.

    Attributes
    ----------
    state : FileState
    encoding : str
    """

    state: FileState
    encoding: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], encoding: str | None = None) -> TextFile:
        """Look at a file; its encoding is UTF-8 unless it begins with the mark of UTF-16.

        Raises
        ------
        OSError
            If there is none, or it is no plain file; names it.
        ValueError
            For an unknown encoding, or a damaged file.
        """
        state = FileState.of(path)
        if encoding is not None:
            try:
                codecs.lookup(encoding)
            except LookupError as error:
                raise ValueError(
                    f"encoding={encoding!r} is not known: name one of Python's, such as latin-1"
                ) from error
            return cls(state, encoding)
        try:
            with _OPENERS[_packing(path)](state.path) as file:
                start = file.read(2)
        except _DAMAGE as error:
            if not _packing(path):
                raise
            raise ValueError(f"{path} is damaged, or no {_packing(path)} file: {error}") from error
        marked = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return cls(state, "utf-16" if marked else "utf-8-sig")

    @property
    def path(self) -> str:
        """Of the file."""
        return self.state.path

    def sample(self) -> tuple[list[str], str]:
        """The first lines behind leading comments, and the last of these comments ("" if there is none)."""
        lines: list[str] = []
        characters = 0
        with self._text() as text:
            numbered = NumberedLines(text)
            source = iter(numbered)
            while len(lines) < SAMPLE_LINES and (characters < SAMPLE_CHARACTERS or len(lines) < 2):
                line = self._next(source, numbered)
                if line is None:
                    break
                lines.append(line)
                characters += len(line)
        return lines, numbered.comment

    def rows(self, separator: str) -> Generator[tuple[int, list[str]], None, None]:
        """Number of the first line (from 1) and cells of each row that is not blank, in order.

        Raises
        ------
        ValueError
            Names the line: for bytes that are not of the encoding, quotes that do not match, a packed file
            that is cut off, a line too long, and a file that changed.
        """
        self.state.check()
        with self._text() as text:
            numbered = NumberedLines(text)
            source = split_cells(numbered, separator)
            while True:
                start = numbered.number
                cells = self._next(source, numbered)
                if cells is None:
                    break
                if cells and (len(cells) > 1 or cells[0].strip()):
                    yield max(start, numbered.skipped) + 1, cells
        self.state.check()

    def _text(self) -> io.TextIOWrapper:
        raw: Any = _OPENERS[_packing(self.path)](self.path)
        # line ends stay as they are: they may stand in quoted cells
        return io.TextIOWrapper(raw, encoding=self.encoding, newline="")

    def _next(self, source: Iterator[Any], lines: NumberedLines) -> Any:
        """The next item, None at the end; what goes wrong names the file and the line."""
        try:
            return next(source, None)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, line {lines.number:,}: {error}; is a quote not closed?"
            ) from error
        except UnicodeError as error:
            raise ValueError(
                f"{self.path} is no text in {self.encoding.removesuffix('-sig')} after line "
                f"{lines.number:,} ({error}): save it as UTF-8, or pass encoding='latin-1', say"
            ) from error
        except OverflowError as error:
            raise ValueError(f"{self.path}, {error}") from error
        except _DAMAGE as error:
            if not _packing(self.path):
                raise
            raise ValueError(
                f"{self.path} is damaged or cut off after line {lines.number:,}: {error}"
            ) from error


class NumberedLines:
    """Lines of a text behind its leading comments and blank lines, counted from 1.

    Attributes
    ----------
    number : int
        Of the line that was read last.
    skipped : int
        Lines before the first one that was given.
    comment : str
        The last leading comment.
    """

    def __init__(self, text: io.TextIOBase) -> None:
        self.text = text
        self.number = self.skipped = 0
        self.comment = ""

    def __iter__(self) -> Iterator[str]:
        leading = True
        while line := self.text.readline(LONGEST):
            self.number += 1
            if len(line) == LONGEST and not line.endswith(("\n", "\r")):
                raise OverflowError(
                    f"line {self.number:,} has more than {LONGEST:,} characters: this is no table"
                )
            if leading and is_comment(line):
                self.comment = line.strip()
            leading = leading and (is_comment(line) or not line.strip())
            if leading:
                self.skipped = self.number
            else:
                yield line


def is_comment(text: str) -> bool:
    """Whether a line is a comment; "#,a,b" is none, but has a column that is named #."""
    text = text.lstrip()
    return text.startswith("#") and text[1:2] not in (",", ";", "\t", "|")


def split_cells(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Cells of each row; blank lines have none. A blank as separator stands for any white space.

    Raises
    ------
    csv.Error
        If text follows a closing quote, or a quote is not closed.
    """
    if separator != " ":
        return csv.reader(lines, delimiter=separator, strict=True)
    return map(_split_words, lines)


def _split_words(line: str) -> list[str]:
    if '"' not in line:
        return line.split()
    return [
        word.group(2) or word.group(1).replace('""', '"') for word in _WORD.finditer(line.rstrip())
    ]


def _open_plain(path: str) -> Any:
    return open(path, "rb")


def _open_zst(path: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package pyarrow: pip install 'sdgpu[cluster]'"
        ) from error
    return pyarrow.input_stream(path, compression="zstd")


_OPENERS: dict[str, Callable[[str], Any]] = {
    "": _open_plain,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
