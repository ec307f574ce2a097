"""Several sources, one after the other: the files of a folder, say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdgpu.backend.rows.source import Block, RowSource

__all__ = ["JoinedSource"]


@dataclass(frozen=True, eq=False)
class JoinedSource:
    """Sources of the same rows, read in their order.

    Attributes
    ----------
    sources : sequence of RowSource
        At least one; as many features and outputs, and the same names of them.

    Raises
    ------
    ValueError
        Names the first source and the one that differs from it.
    """

    sources: Sequence[RowSource]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty: at least one is needed")
        first = self.sources[0]
        for number, source in enumerate(self.sources):
            labels = _label(self.sources, 0), _label(self.sources, number)
            for what, counts in (
                ("features", (first.d, source.d)),
                ("outputs", (first.c, source.c)),
            ):
                if counts[0] != counts[1]:
                    raise ValueError(
                        f"{labels[0]} has {counts[0]} {what}, {labels[1]} has {counts[1]}: join files "
                        "of the same columns"
                    )
            _check_names(labels, "feature", first.columns, source.columns)
            _check_names(labels, "output", first.outputs, source.outputs)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{_label(self.sources, 0)} .. {_label(self.sources, len(self.sources) - 1)}"

    @property
    def d(self) -> int:
        """Features of a row."""
        return self.sources[0].d

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        return self.sources[0].c

    @property
    def n(self) -> int | None:
        """The sum, if every source knows its rows."""
        counts = [source.n for source in self.sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def dtype(self) -> str:
        """The wider one."""
        return "float64" if any(source.dtype == "float64" for source in self.sources) else "float32"

    @property
    def rereadable(self) -> bool:
        """Whether all are."""
        return all(source.rereadable for source in self.sources)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the features."""
        return self.sources[0].columns

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Names of the targets."""
        return self.sources[0].outputs

    def blocks(self, rows: int) -> Iterator[Block]:
        """The blocks of the first source, then those of the next.

        Raises
        ------
        ValueError
            If one has weights and another none, or one gives other rows than it said; names it.
        """
        weighted: tuple[bool, str] | None = None
        for number, source in enumerate(self.sources):
            label, count = _label(self.sources, number), 0
            for block in source.blocks(rows):
                if weighted is None and block.rows:
                    weighted = (block.weights is not None, label)
                if weighted and block.rows and weighted[0] != (block.weights is not None):
                    names = (weighted[1], label) if weighted[0] else (label, weighted[1])
                    raise ValueError(
                        f"{names[0]} has weights, {names[1]} has none: give both or neither some"
                    )
                count += block.rows
                yield block
            if source.n is not None and count != source.n:
                raise ValueError(
                    f"{label} said {source.n:,} rows and gave {count:,}: it changed while it was read"
                )


def _label(sources: Sequence[Any], number: int) -> str:
    return str(getattr(sources[number], "name", "") or f"source {number}")


def _check_names(
    labels: tuple[str, str],
    what: str,
    names: tuple[str, ...] | None,
    others: tuple[str, ...] | None,
) -> None:
    """Say where the names of two sources differ first."""
    if names == others:
        return
    if names is None or others is None:
        nameless, named = labels if names is None else labels[::-1]
        raise ValueError(
            f"{named} names its {what}s, {nameless} does not: join files of the same kind"
        )
    pairs = zip(names, others, strict=True)
    position, (here, there) = next((j, pair) for j, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ValueError(
        f"{what} {position} of {labels[0]} is {here!r}, that of {labels[1]} is {there!r}: name the columns "
        "in one order, features=[..] and target=[..]"
    )
