"""Checkpoints of a basis whose rows are on several ranks: rank 0 writes the one file of the whole.

What is in it does not depend on how the rows were shared: a fit goes on from it on any number of ranks, as
long as the rows, in the order of the ranks, are the same. The folder need not be shared: rank 0 reads, and
tells the others. It needs the memory of the whole basis, 16 n k bytes, on the host of rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.common_checks import together
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray
from sdgpu.solvers.checkpoint import Checkpoint, State

__all__ = ["RankCheckpoint", "rows_digest"]

NUMBERS = 2**22  # that travel at once: 32 MiB
MIXERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)  # odd, of SplitMix64 and xxHash


@dataclass(frozen=True, eq=False)
class RankCheckpoint:
    """What :class:`~sdgpu.solvers.checkpoint.Checkpoint` is for one device; all ranks call.

    Parameters
    ----------
    file : Checkpoint, optional
        That of the whole, on rank 0.
    layout : RowLayout
    """

    file: Checkpoint | None
    layout: RowLayout

    def load(self) -> State | None:
        """The state in the file, each rank with the columns of its rows; None if there is no file.

        Raises
        ------
        ValueError, OSError
            On all ranks, what rank 0 finds.
        """
        ranks = self.layout.ranks
        state = together(ranks, lambda: self.file.load() if self.file else None)
        told = None if state is None else [len(state.Q), len(state.R), state.T, state.passes]
        told = ranks.first(told)
        if told is None:
            return None
        rows, residuals, T, passes = told
        Q = self._own_columns(None if state is None else state.Q, rows)
        R = self._own_columns(None if state is None else state.R, residuals)
        return State(Q, R, T, passes)

    def offer(self, state: State) -> None:
        """Save if the clock of rank 0 says so."""
        if self.layout.ranks.first(self.file is not None and self.file.due):
            self.save(state)

    def save(self, state: State) -> None:
        """Write the state of all ranks in place of the last one.

        Raises
        ------
        OSError
            On all ranks, if rank 0 cannot write: names the file; the previous one is untouched.
        """
        ranks = self.layout.ranks
        whole = State(self._whole(state.Q), self._whole(state.R), state.T, state.passes)
        together(ranks, lambda: self.file.save(whole) if self.file else None)

    def interrupted(self, state: State) -> None:
        """Nothing: ranks are interrupted at different places, and cannot meet to save."""

    def _whole(self, array: ShardedArray) -> np.ndarray:
        """All columns (k, n) on rank 0, nothing on the others."""
        local, ranks = array.local, self.layout.ranks
        k, own = int(local.shape[0]), ranks.rank == 0
        whole = np.empty((k if own else 0, self.layout.n))
        step = max(1, NUMBERS // max(self.layout.n, 1))
        for start in range(0, k, step):
            part = ranks.gather_rows(local[start : start + step].T.contiguous())
            if own:
                whole[start : start + step] = part.T.cpu().numpy()
        return whole

    def _own_columns(self, whole: np.ndarray | None, k: int) -> ShardedArray:
        """Of an array (k, n) that rank 0 has, the columns of the rows of this rank."""
        import torch

        ranks, own = self.layout.ranks, self.layout.own
        local = torch.empty((k, own.stop - own.start), dtype=torch.float64)
        step = max(1, NUMBERS // max(self.layout.n, 1))
        for start in range(0, k, step):
            height = min(step, k - start)
            part = (
                np.zeros((height, self.layout.n)) if whole is None else whole[start : start + step]
            )
            local[start : start + step] = torch.from_numpy(ranks.sum(part)[:, own])
        return ShardedArray(local, 1, self.layout)


def rows_digest(ranks: Ranks, rows: Any, layout: RowLayout) -> str:
    """A checksum of the rows of all ranks, the same however they are shared.

    The bits of each row are mixed to two numbers of 64 bits, these multiplied with the number of the row,
    and all added modulo 2^64: against mistakes, not against malice.
    """
    width = int(np.prod(tuple(rows.shape[1:])))
    sums = [0 for _ in MIXERS]
    for part in slices(int(rows.shape[0]), max(1, NUMBERS // max(width, 1))):
        values = np.ascontiguousarray(np.asarray(rows[part].cpu(), dtype=np.float64))
        bits = values.reshape(len(values), width).view(np.uint64)
        first = layout.own.start + part.start
        numbers = np.arange(first, first + len(values), dtype=np.uint64)
        for i, mixer in enumerate(MIXERS):
            places = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(mixer)
            mixed = _mixed((_mixed(bits + places) * (places | np.uint64(1))).sum(axis=1))
            mixed *= _mixed(numbers + np.uint64(mixer)) | np.uint64(1)
            sums[i] = (sums[i] + int(mixed.sum(dtype=np.uint64))) % 2**64
    totals = [sum(parts) % 2**64 for parts in zip(*ranks.gather(sums), strict=True)]
    return f"({layout.n}, {width}) {totals[0]:016x}{totals[1]:016x}"


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of the result depends on every bit."""
    found = numbers ^ (numbers >> np.uint64(30))
    found = found * np.uint64(0xBF58476D1CE4E5B9)
    found = found ^ (found >> np.uint64(27))
    found = found * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
