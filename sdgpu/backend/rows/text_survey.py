"""What the columns of a table of text hold: seen in one pass over its rows, or in the first ones."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdgpu.backend.rows.text_columns import TextColumn, label_of, shortened
from sdgpu.backend.rows.text_dialect import DATE, TextDialect, read_cell
from sdgpu.backend.rows.text_layout import TextLayout

__all__ = ["ColumnSurvey", "TableRequest", "check_gaps", "survey_rows"]

CATEGORIES = 100  # of a feature: each is a column
CLASSES = 10_000
SURVEYED = 1000  # rows that show what the columns are where nothing asks for all of them
BLOCK = 4096  # rows that a pass over all of them looks at together
EXACT = 2**53  # whole numbers up to here are floats

_WHOLE = re.compile(r"[+-]?\d+")


@dataclass
class ColumnSurvey:
    """What the cells of a column were in one pass.

    Attributes
    ----------
    name : str
    position : int
    limit : int
        Largest number of different words to remember; 0: none.
    literal : bool
        Whether numbers are remembered as words too, for labels.
    text : bool
        Whether the column is one of words whatever it holds.
    counts : Counter
        Cells of each kind (:func:`sdgpu.backend.rows.text_dialect.read_cell`).
    first : dict
        Line and text of the first cell of each kind.
    words : set of str
    overflow : bool
        Whether there were more words than the limit.
    """

    name: str
    position: int
    limit: int = 0
    literal: bool = False
    text: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, tuple[int, str]] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)
    overflow: bool = False

    def add(self, cells: Sequence[str], lines: Sequence[int], dialect: TextDialect) -> None:
        """Look at cells (b,) that stand in these lines (b,)."""
        if not self.literal and dialect.numbers(cells) is not None:
            self.counts["number"] += len(cells)
            self.first.setdefault("number", (lines[0], cells[0].strip()))
            return
        for cell, count in Counter(cells).items():
            kind = read_cell(cell, dialect)[0]
            self.counts[kind] += count
            if kind not in self.first:
                self.first[kind] = (lines[cells.index(cell)], cell.strip())
            if self.limit and (self.literal or kind != "number"):
                self._remember(label_of(cell))

    def _remember(self, word: str) -> None:
        if not self.overflow:
            self.words.add(word)
            self.overflow = len(self.words - {""}) > self.limit

    @property
    def kind(self) -> str:
        """Of the column: "number", "boolean", "word", or "mixed" if it is not clear."""
        if self.text:
            return "word"
        kinds = {kind for kind in ("number", "infinite", "boolean", "word") if self.counts[kind]}
        if kinds <= {"number", "infinite"}:
            return "word" if not kinds and self.literal and self.counts["dash"] else "number"
        if kinds == {"boolean"}:
            return "boolean"
        return "mixed" if "number" in kinds and not self.literal else "word"

    @property
    def missing(self) -> int:
        """Cells that are missing."""
        labels = self.kind == "word" or (self.kind == "boolean" and self.literal)
        return self.counts["missing"] + (0 if labels else self.counts["dash"])

    @property
    def first_word(self) -> tuple[int, str]:
        """Line and text of the first word, yes and no included."""
        return min(self.first[kind] for kind in ("word", "boolean") if kind in self.first)

    @property
    def odd(self) -> tuple[int, str]:
        """Line and text of the first cell of the rarer kind of a mixed column."""
        return self.first["number"] if self.mostly_words else self.first_word

    @property
    def mostly_words(self) -> bool:
        """Whether most cells are words."""
        return self.counts["word"] + self.counts["boolean"] > self.counts["number"]

    @property
    def is_date(self) -> bool:
        """Whether the first word is a date, or a time of day."""
        return "word" in self.first and DATE.fullmatch(self.first["word"][1]) is not None

    def labels(self, dialect: TextDialect) -> tuple[str, tuple[Any, ...]]:
        """Kind and classes in increasing order: whole numbers, floats, or texts if not all are numbers."""
        words = self.words - {""}
        if self.kind != "number":
            return "word", tuple(sorted(words))
        values = sorted({read_cell(word, dialect)[1] for word in words})
        if all(map(_WHOLE.fullmatch, words)) and max(map(abs, values), default=0) < EXACT:
            return "number", tuple(int(value) for value in values)
        return "number", tuple(values)


def survey_rows(
    layout: TextLayout, surveys: Mapping[str, ColumnSurvey], *, whole: bool = True
) -> int | None:
    """Look at all rows, or at the first thousand; how many rows there are, None if that is not known.

    Raises
    ------
    ValueError
        If there are none, and whatever makes the file unreadable.
    """
    n = 0
    for chunk in layout.chunks(BLOCK if whole else SURVEYED):
        for survey in surveys.values():
            survey.add(chunk.columns[survey.position], chunk.lines, layout.dialect)
        n += len(chunk.lines)
        if not whole and n >= SURVEYED:
            return None
    if not n:
        raise ValueError(f"{layout.file.path} has 0 rows of {len(layout.names)} columns: too few")
    return n


def check_gaps(
    layout: TextLayout, surveys: Mapping[str, ColumnSurvey], targets: Sequence[str], *, filled: bool
) -> None:
    """Refuse missing cells of targets, and of features unless they are filled.

    Raises
    ------
    ValueError
        Names the columns, and how many cells of each are missing.
    """
    gaps = {name: survey.missing for name, survey in surveys.items() if survey.missing}
    for names, remedy in (
        (
            [name for name in gaps if name in targets],
            "remove these rows, a target is never imputed",
        ),
        ([name for name in gaps if not filled], "drop or impute them first (impute=, --impute)"),
    ):
        if names:
            texts = [f"{name} ({gaps[name]:,})" for name in names]
            raise ValueError(
                f"{layout.file.path} has missing cells in {', '.join(texts)}: {remedy}"
            )


@dataclass(frozen=True)
class TableRequest:
    """What is asked of a table.

    Attributes
    ----------
    features, targets : tuple of str
    classify : bool
        Whether the target holds labels.
    encode : bool
        Whether columns of words become zeros and ones.
    words : frozenset of str
        Features that are columns of words whatever they hold.
    impute : {"mean", "median"}, float or None
    """

    features: tuple[str, ...]
    targets: tuple[str, ...]
    classify: bool
    encode: bool
    words: frozenset[str]
    impute: float | str | None

    @property
    def needs_all_rows(self) -> bool:
        """Whether the first rows cannot answer it."""
        return self.classify or self.encode or bool(self.words) or self.impute in _CENTRES

    def columns(
        self, layout: TextLayout
    ) -> tuple[tuple[TextColumn, ...], tuple[TextColumn, ...], int | None]:
        """Features, targets and, if they were counted, rows.

        Raises
        ------
        ValueError
            Names the file, and column or cell, of what cannot be made a number.
        """
        surveys = self._surveys(layout)
        n = survey_rows(layout, surveys, whole=self.needs_all_rows)
        path = layout.file.path
        for name, survey in surveys.items():
            if survey.kind == "number" and "infinite" in survey.first:
                line, cell = survey.first["infinite"]
                raise ValueError(
                    f"{path}, line {line:,}, column {name!r}: {shortened(cell)} is infinite: correct it, "
                    "or leave the row out"
                )
        self._check_targets(path, [surveys[name] for name in self.targets])
        self._check_features(path, [surveys[name] for name in self.features])
        if any(survey.missing for survey in surveys.values()):
            filled = self.impute is not None
            if n is None and (not filled or any(surveys[name].missing for name in self.targets)):
                surveys = self._surveys(layout)
                survey_rows(layout, surveys)
            check_gaps(layout, surveys, self.targets, filled=filled)
        inputs = [self._feature(surveys[name]) for name in self.features]
        outputs = [self._target(surveys[name], layout) for name in self.targets]
        gaps = [surveys[name].missing > 0 for name in self.features]
        return self._imputed(layout, inputs, gaps), tuple(outputs), n

    def _surveys(self, layout: TextLayout) -> dict[str, ColumnSurvey]:
        surveys = {}
        for name in (*self.features, *self.targets):
            words, labels = name in self.words, self.classify and name in self.targets
            limit = CLASSES if labels else CATEGORIES * (self.encode or words)
            surveys[name] = ColumnSurvey(
                name, layout.names.index(name), limit, literal=words or labels, text=words
            )
        return surveys

    def _check_targets(self, path: str, surveys: Sequence[ColumnSurvey]) -> None:
        for survey in surveys:
            if self.classify or survey.kind in ("number", "boolean"):
                continue
            if survey.kind == "mixed" and not survey.mostly_words:
                raise ValueError(_mixed(path, survey))
            line, cell = survey.first_word
            what = "holds dates" if survey.is_date else "is text"
            raise ValueError(
                f"target={survey.name!r} of {path} {what} ({shortened(cell)} in line {line:,}): pass "
                "--classify if they are labels, classify=True in Python"
            )

    def _check_features(self, path: str, surveys: Sequence[ColumnSurvey]) -> None:
        words = [s for s in surveys if s.kind == "word" or (s.kind == "mixed" and s.mostly_words)]
        dates = [s for s in words if s.is_date and not s.text]
        if dates:
            texts = [f"{s.name} ({shortened(s.first['word'][1])})" for s in dates]
            raise ValueError(
                f"{path} has dates or times in columns {', '.join(texts)}: make numbers of them first, "
                "days since a fixed one, say, or choose other features"
            )
        words = [s for s in words if not (self.encode or s.text)]
        if words:
            texts = [
                f"{s.name} ({shortened(s.first_word[1])} in line {s.first_word[0]:,})"
                for s in words
            ]
            raise ValueError(
                f"{path} has text columns {', '.join(texts)}: encode them (encode=True, --encode), or "
                "choose other features"
            )
        for survey in surveys:
            if survey.kind == "mixed":
                raise ValueError(_mixed(path, survey))
            if survey.kind == "word" and survey.overflow:
                raise ValueError(
                    f"{path} has more than {CATEGORIES} different words in column {survey.name!r}: merge "
                    "some, or choose other features"
                )

    def _feature(self, survey: ColumnSurvey) -> TextColumn:
        if survey.kind == "word":
            return TextColumn(survey.name, survey.position, "word", tuple(sorted(survey.words)))
        fill = None if self.impute is None or self.impute in _CENTRES else float(self.impute)
        return TextColumn(survey.name, survey.position, survey.kind, fill=fill)

    def _target(self, survey: ColumnSurvey, layout: TextLayout) -> TextColumn:
        if not self.classify:
            return TextColumn(survey.name, survey.position, survey.kind)
        if survey.overflow:
            raise ValueError(
                f"target={survey.name!r} of {layout.file.path} has more than {CLASSES:,} labels: if it is "
                "a number to predict, do not classify"
            )
        kind, classes = survey.labels(layout.dialect)
        if len(classes) < 2:
            raise ValueError(
                f"target={survey.name!r} of {layout.file.path} holds only one class, {classes[0]!r}"
            )
        return TextColumn(survey.name, survey.position, kind, classes)

    def _imputed(
        self, layout: TextLayout, columns: Sequence[TextColumn], gaps: Sequence[bool]
    ) -> tuple[TextColumn, ...]:
        """The same columns with the mean or median where cells are missing."""
        wanted = [
            replace(column, fill=math.nan)
            for column, gap in zip(columns, gaps, strict=True)
            if gap and column.kind != "word"
        ]
        if self.impute not in _CENTRES or not wanted:
            return tuple(columns)
        centres = _CENTRES[self.impute](layout, wanted)
        fills = {}
        for column, centre in zip(wanted, centres, strict=True):
            if not math.isfinite(centre):
                raise ValueError(
                    f"{layout.file.path} has no {self.impute} of column {column.name!r}: it holds no "
                    "number, or too large ones; choose other features"
                )
            fills[column.name] = centre
        return tuple(
            replace(column, fill=fills.get(column.name, column.fill)) for column in columns
        )


def _mixed(path: str, survey: ColumnSurvey) -> str:
    line, cell = survey.odd
    words = survey.counts["word"] + survey.counts["boolean"]
    amounts = f"({survey.counts['number']:,} and {words:,})"
    return (
        f"{path}, line {line:,}, column {survey.name!r}: {shortened(cell)} in a column of numbers and "
        f"words {amounts}: correct it, or name the column in encode=[..] if all are labels"
    )


def _present(layout: TextLayout, columns: Sequence[TextColumn]) -> Iterator[list[np.ndarray]]:
    """Numbers of each column that are not missing, chunk after chunk: one pass."""
    for chunk in layout.chunks(BLOCK):
        values = (column.read(chunk.columns[column.position], layout.dialect) for column in columns)
        yield [part[~np.isnan(part)] for part in values]


def _means(layout: TextLayout, columns: Sequence[TextColumn]) -> list[float]:
    sums, counts = [0.0] * len(columns), [0] * len(columns)
    for parts in _present(layout, columns):
        for j, values in enumerate(parts):
            try:
                sums[j] = math.fsum((sums[j], *values.tolist()))
            except (OverflowError, ValueError):  # beyond float64, and then inf - inf
                sums[j] = math.inf
            counts[j] += len(values)
    return [total / count if count else math.nan for total, count in zip(sums, counts, strict=True)]


def _medians(layout: TextLayout, columns: Sequence[TextColumn]) -> list[float]:
    parts = list(_present(layout, columns))
    values = [np.concatenate([part[j] for part in parts]) for j in range(len(columns))]
    with np.errstate(over="ignore"):  # between the two in the middle
        return [float(np.median(one)) if len(one) else math.nan for one in values]


_CENTRES: dict[Any, Callable[[TextLayout, Sequence[TextColumn]], list[float]]] = {
    "mean": _means,
    "median": _medians,
}
