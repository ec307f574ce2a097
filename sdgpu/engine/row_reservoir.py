"""Some rows of a stream, each as likely as any other, whatever its blocks are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.rows import Block

__all__ = ["RowReservoir"]


class RowReservoir:
    """At most `count` rows of blocks that begin at the same rows in every pass.

    Each row draws a number by its place, and the smallest are kept.

    Parameters
    ----------
    count : int
    seed : int
    targets : bool, default False
        Whether targets and weights are kept too.
    """

    def __init__(self, count: int, seed: int, *, targets: bool = False) -> None:
        self.count, self.seed, self.targets = count, seed, targets
        self._draws, self._numbers = np.empty(0), np.empty(0, dtype=np.int64)
        self._parts: list[np.ndarray] = []

    def add(self, start: int, block: Block, *, skip: int = 0) -> None:
        """Look at a block whose first row has this number; `skip` of its rows are on another rank."""
        draws = np.random.default_rng([self.seed, start]).random(skip + block.rows)[skip:]
        start += skip
        full = len(self._draws) == self.count
        chosen = np.flatnonzero(draws < self._draws.max()) if full else np.arange(block.rows)
        if len(chosen) > self.count:  # no other row of the block can stay
            chosen = chosen[np.argpartition(draws[chosen], self.count - 1)[: self.count]]
        if not len(chosen):
            return
        new = self._arrays(block, chosen)
        parts = self._parts or [array[:0] for array in new]
        self._parts = [np.concatenate(pair) for pair in zip(parts, new, strict=True)]
        self._draws = np.concatenate([self._draws, draws[chosen]])
        self._numbers = np.concatenate([self._numbers, start + chosen])
        if len(self._draws) > self.count:
            best = np.argpartition(self._draws, self.count - 1)[: self.count]
            self._draws, self._numbers = self._draws[best], self._numbers[best]
            self._parts = [part[best] for part in self._parts]

    def trail(self, blocks: Iterator[tuple[int, Block]]) -> Iterator[tuple[int, Block]]:
        """The same blocks, looked at."""
        for start, block in blocks:
            self.add(start, block)
            yield start, block

    def of_all_ranks(self, ranks: Ranks) -> None:
        """Take what all ranks have looked at: the rows that one process would keep."""
        own = [self._draws, self._numbers, *self._parts] if self._parts else []
        found = [arrays for arrays in ranks.gather(own) if arrays]
        draws, numbers, *parts = (np.concatenate(column) for column in zip(*found, strict=True))
        best = np.argsort(draws)[: self.count]
        self._draws, self._numbers = draws[best], numbers[best]
        self._parts = [part[best] for part in parts]

    @property
    def rows(self) -> list[np.ndarray]:
        """X (s, d), and with `targets` Y (s, c) and weights (s,): float64, in the order of the rows."""
        order = np.argsort(self._numbers)
        return [part[order] for part in self._parts]

    def _arrays(self, block: Block, chosen: np.ndarray) -> list[np.ndarray]:
        parts = [block.X]
        if self.targets:
            parts += [block.Y, np.ones(block.rows) if block.weights is None else block.weights]
        # chosen where they lie: few of them leave a GPU
        return [to_numpy(part[chosen]).astype(np.float64) for part in parts]
