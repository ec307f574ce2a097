"""Rows to judge on: held in memory, or read in blocks as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import array_api_compat as compat

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.ranks import OneRank, Ranks
from sdgpu.backend.rows import RowSource, checked_blocks
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.scaling import safe_unit
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.operators.feature_rows import FeatureOperator
from sdgpu.operators.operator import CrossOperator

__all__ = ["HeldRows", "RankRows", "StreamedRows", "ValidationRows"]


class ValidationRows(Protocol):
    """Blocks of kappa(X_val, X), or of features, with the targets beside them.

    Attributes
    ----------
    width : int
        Numbers of a row of a block: n, or k features.
    outputs : int
        c.
    rows : int or None
        m, where that is known before they were read.
    unit : float
        What predictions and targets are divided by, so that their squares stay in float64.
    offset : array (c,) or None
        Taken off the targets, as the fit takes it off: its intercept. Metrics see both with it.
    """

    @property
    def width(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def rows(self) -> int | None: ...
    @property
    def unit(self) -> float: ...
    @property
    def offset(self) -> Any: ...
    def blocks(self, entries: int) -> Iterator[tuple[int, Any, Any, Any]]:
        """Number of the first row, block (b, width) of at most `entries` numbers, targets (b, c), weights.

        These are (b,), or None.
        """


@dataclass(frozen=True, eq=False)
class HeldRows:
    """Validation rows in memory.

    Attributes
    ----------
    cross : CrossOperator
        kappa(X_val, X), (m, n).
    targets : array (m, c)
        Less the offset.
    offset : array (c,) or None
    weights : array (m,) or None
    """

    cross: CrossOperator
    targets: Any
    offset: Any = None
    weights: Any = None

    @property
    def width(self) -> int:
        """n."""
        return self.cross.shape[1]

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.targets.shape[1])

    @property
    def rows(self) -> int:
        """m."""
        return self.cross.shape[0]

    @property
    def unit(self) -> float:
        """A power of two if squares of the targets leave float64, else 1."""
        xp = compat.array_namespace(self.targets)
        return safe_unit(float(xp.max(xp.abs(self.targets))))

    def blocks(self, entries: int) -> Iterator[tuple[int, Any, Any, Any]]:
        """Of kernel values, evaluated block by block."""
        for rows, block in self.cross.blocks(entries):
            weights = None if self.weights is None else self.weights[rows]
            yield rows.start, block, self.targets[rows, :], weights


@dataclass(frozen=True, eq=False)
class RankRows(HeldRows):
    """Validation rows of this rank, beside those of others.

    Attributes
    ----------
    ranks : Ranks
    counts : tuple of int
        Rows of each rank.
    """

    ranks: Ranks = field(default_factory=OneRank)
    counts: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """m, of all ranks."""
        return sum(self.counts)

    @property
    def unit(self) -> float:
        """The same on all ranks."""
        own = self.targets
        largest = float(compat.array_namespace(own).max(abs(own))) if own.shape[0] else 0.0
        return safe_unit(max(self.ranks.gather(largest)))

    def blocks(self, entries: int) -> Iterator[tuple[int, Any, Any, Any]]:
        """As many on each rank, empty at the end; rows are numbered over all ranks."""
        first, seen = sum(self.counts[: self.ranks.rank]), False
        for start, *block in super().blocks(entries):
            seen = True
            yield (first + start, *block)
        if not seen:  # no rows, of which losses are taken all the same
            xp, own = compat.array_namespace(self.targets), self.targets
            none = xp.zeros((0, self.width), dtype=own.dtype, device=compat.device(own))
            yield first, none, own, None


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """Rows of a source, as features.

    Attributes
    ----------
    source : RowSource
        With targets.
    operator : FeatureOperator
    unit : float
    offset : array (c,) or None
    first : int
        Number of the first row, of several ranks.
    """

    source: RowSource
    operator: FeatureOperator
    unit: float
    offset: Any = None
    first: int = 0

    @property
    def width(self) -> int:
        """k."""
        return self.operator.n

    @property
    def outputs(self) -> int:
        """c."""
        return self.source.c

    @property
    def rows(self) -> int | None:
        """m, if the source knows."""
        return self.source.n

    def turned(self, columns: Any) -> StreamedRows:
        """The same rows with phi(X)' columns (k, r) for features."""
        return replace(self, operator=self.operator.turned(columns))

    def blocks(self, entries: int) -> Iterator[tuple[int, Any, Any, Any]]:
        """Features block by block; the next rows are read meanwhile."""
        for start, X, targets, weights in self.inputs(entries):
            yield start, self.operator.features(X), targets, weights

    def inputs(self, entries: int) -> Iterator[tuple[int, Any, Any, Any]]:
        """The same before their features are made: rows (b, d) in the place of the block."""
        backend = self.operator.backend
        height = max(1, entries // self.width)
        for start, block in prefetched(checked_blocks(self.source, height)):
            X = block.X
            if not is_csr(X):
                X = to_numpy(X) if backend.device == "cpu" else backend.asarray(X)
            targets = backend.asarray(block.Y)
            if self.offset is not None:
                targets = targets - self.offset
            weights = None if block.weights is None else backend.asarray(block.weights)
            yield self.first + start, X, targets, weights
