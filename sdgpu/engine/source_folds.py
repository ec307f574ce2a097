"""Feature models without each fold of the rows of a source: a pass for their sums, one for their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template, library
from sdgpu.backend.backends import Backend, give_back, to_numpy
from sdgpu.backend.memory import require
from sdgpu.backend.ranks import OneRank, Ranks
from sdgpu.backend.rows import Block, RowSource
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.threads import block_workers, in_order, only_torch
from sdgpu.engine.rank_sums import sums_of_ranks
from sdgpu.engine.streaming import block_moments, block_rows, brought, read_rows
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["SourceFolds"]


@dataclass(frozen=True, eq=False)
class SourceFolds:
    """The :class:`~sdgpu.engine.cross_intervals.FoldFits` of a feature model.

    Attributes
    ----------
    source : RowSource
        That can be read again.
    map : FeatureMap
    backend : Backend
    precision : {"float32", "float64"}
    rows : int
        n, as it was counted; of all ranks.
    memory : int
        Bytes.
    refit : callable
        (sums, lam) to a Fit.
    template : Template
        Of the data that came in, which blocks are not always of: CuPy's arrays are read by torch.
    ranks : Ranks
        Those that have rows of their own: the source is of the own ones then.
    """

    source: RowSource = field(repr=False)
    map: FeatureMap
    backend: Backend
    precision: str
    rows: int
    memory: int
    refit: Callable[[MomentSums, float], Any] = field(repr=False)
    template: Template = field(repr=False)
    ranks: Ranks = field(default_factory=OneRank)

    @property
    def outputs(self) -> int:
        """c."""
        return self.source.c

    def left_out(
        self, labels: np.ndarray, lam: float, alphas: np.ndarray, new: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~sdgpu.engine.cross_intervals.FoldFits`; K k (2 k + c) numbers.

        Features are those of the fit, whose landmarks were picked without looking at targets.
        """
        count, (k, c) = int(labels.max()) + 1, (self.map.size, self.source.c)
        needed = 8 * (count + 2) * k * (2 * k + c)
        require(
            needed, self.memory, f"what {count} folds are fitted by", "take fewer folds or features"
        )
        own = labels[self._here()]
        sums = self._sums(own, count)
        if self.ranks.size > 1:
            sums = [sums_of_ranks(one, self.ranks) for one in sums]
        paths = []
        for fold in range(count):
            others = MomentSums.zeros(k, c, sums[0].offset)
            for number, part in enumerate(sums):
                if number != fold and part.rows:
                    others.merge(part)
            paths.append(self.refit(others, lam).path(lam, alphas, len(alphas) + 1))
        there = np.stack([_values(path, new) for path in paths])
        errors = self._errors(own, paths, len(alphas) + 1)
        return self.ranks.gather_rows(errors), there

    def _here(self) -> slice:
        """Numbers of the own rows."""
        if self.ranks.size == 1:
            return slice(0, self.rows)
        counts = self.ranks.gather(self.source.n)
        first = sum(counts[: self.ranks.rank])
        return slice(first, first + counts[self.ranks.rank])

    def _sums(self, labels: np.ndarray, count: int) -> list[MomentSums]:
        """Of each fold, in the order of the rows."""
        total = [MomentSums.zeros(self.map.size, self.source.c) for _ in range(count)]
        rows = block_rows(self.map.size)

        def of_block(item: tuple[int, Block]) -> list[tuple[int, MomentSums]]:
            start, block = item
            own = labels[start : start + block.rows]
            offset = to_numpy(block.Y).mean(axis=0)
            return [
                (fold, self._block(_some_rows(block, np.flatnonzero(own == fold)), offset))
                for fold in np.unique(own)
            ]

        with closing(read_rows(self.source, rows)) as reader, only_torch():
            for parts in in_order(of_block, reader, block_workers(self.backend)):
                for fold, part in parts:
                    total[fold].merge(part)
        return total

    def _block(self, block: Block, offset: np.ndarray) -> MomentSums:
        X = brought(block.X, self.backend)
        block = Block(X, block.Y, block.weights)
        return block_moments(block, self.map, offset, precision=self.precision, audited=False)

    def _errors(self, labels: np.ndarray, paths: list[Any], steps: int) -> np.ndarray:
        """Absolute errors (n, T, c) of the function without the fold of each row."""
        errors = np.full((len(labels), steps, self.source.c), np.nan)
        for start, block in self._blocks():
            own, truth = labels[start : start + block.rows], to_numpy(block.Y)
            present = (
                np.ones(block.rows, bool) if block.weights is None else to_numpy(block.weights) > 0
            )
            for fold in np.unique(own[present]):
                rows = np.flatnonzero((own == fold) & present)
                values = _values(paths[fold], self._as_given(_some_rows(block, rows).X))
                errors[start + rows] = abs(truth[rows] - values).swapaxes(0, 1)
        return errors

    def _as_given(self, X: Any) -> Any:
        """Rows of a block in the library that fits take."""
        same = is_csr(X) or library(X) == library(self.template.sample)
        return X if same else give_back(self.template, X, axis=False)

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        with closing(read_rows(self.source, block_rows(self.map.size))) as reader:
            yield from reader


def _some_rows(block: Block, rows: np.ndarray) -> Block:
    """Rows of a block by number, wherever they lie."""

    def take(array: Any) -> Any:
        return None if array is None else array[rows]

    return Block(take(block.X), take(block.Y), take(block.weights))


def _values(path: Any, X: Any) -> np.ndarray:
    """Predictions (T, m, c) on the host, with the axis c."""
    values = to_numpy(path.predict(X))
    return values if values.ndim == 3 else values[..., None]
