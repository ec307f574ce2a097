"""A pass over the rows of several ranks that goes on where it was, on any number of ranks.

Rank 0 writes the sums of all ranks to one file now and then, with the numbers of the rows that are in them.
The file does not know how the rows were shared: who goes on leaves out the rows that are done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdgpu.backend.backends import TorchBackend
from sdgpu.backend.checksums import digest
from sdgpu.backend.common_checks import together
from sdgpu.backend.progress import SavePace
from sdgpu.backend.rows import ArraySource, Block
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.engine.pass_checkpoint import INTERVAL, SHARE, checkpoint_target
from sdgpu.engine.rank_sums import sums_of_ranks
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.solvers.moment_sums import MomentSums
from sdgpu.solvers.rank_checkpoint import rows_digest

__all__ = ["RankPass"]

FORMAT = 1
EVERY = 8  # blocks of a rank between two looks at the clock of rank 0, for which ranks wait


@dataclass(eq=False)
class RankPass:
    """What :class:`~sdgpu.engine.pass_checkpoint.PassCheckpoint` is for one device; all ranks call.

    Parameters
    ----------
    path : Path
        Of a ``.safetensors`` file, on rank 0.
    owner : str
        What decides the sums: rows of all ranks, kernel, features, precision, blocks.
    layout : RowLayout
    rows : int
        Of a block.
    """

    path: Path
    owner: str
    layout: RowLayout
    rows: int
    _pace: SavePace = field(default_factory=lambda: SavePace(INTERVAL, SHARE))
    _base: MomentSums | None = None  # of the file, on rank 0
    _done: list[list[int]] = field(default_factory=list)  # [start, stop) of the rows in it
    _pieces: list[list[int]] = field(default_factory=list)  # own ones, as they were begun
    _merged: int = 0  # how many of these are in the sums
    _met: int = 0
    _meetings: int = 0

    @classmethod
    def of(
        cls,
        path: str | os.PathLike[str],
        source: ArraySource,
        features: FeatureMap,
        *,
        kernel: Kernel,
        precision: str,
        layout: RowLayout,
        rows: int,
    ) -> RankPass:
        """Of one pass over the rows of all ranks.

        Raises
        ------
        TypeError, ValueError, OSError
            On all ranks, as :meth:`~sdgpu.engine.pass_checkpoint.PassCheckpoint.of`.
        """
        ranks, host = layout.ranks, TorchBackend("cpu")

        def checked() -> tuple[Path, list[Any]]:
            target = checkpoint_target(path, kernel, write=ranks.rank == 0)
            description, arrays = features.state()
            parts: list[Any] = [json.dumps(description, sort_keys=True)]
            for name in sorted(arrays):
                parts += [name, arrays[name]]
            return target, parts

        target, parts = together(ranks, checked)
        columns = [source.X, source.Y, source.weights]
        rows_of = [x for x in columns if x is not None]
        digests = [rows_digest(ranks, host.asarray(x), layout) for x in rows_of]
        facts = [FORMAT, repr(kernel), source.d, source.c, layout.n, precision, rows, digests]
        return cls(target, digest(json.dumps(facts), *parts), layout, rows)

    def load(self, k: int, c: int) -> None:
        """Read the file, if there is one; each rank then knows which rows are done.

        Raises
        ------
        ValueError, OSError
            On all ranks: if it is damaged, or belongs to another pass.
        """
        ranks = self.layout.ranks
        together(ranks, lambda: self._read(k, c) if ranks.rank == 0 else None)
        self._done = ranks.first(self._done)
        own = self.layout.own
        starts = range(own.start, own.stop, self.rows)
        blocks = [missing(row, min(row + self.rows, own.stop), self._done) for row in starts]
        self._meetings = max(ranks.gather(sum(map(len, blocks)) // EVERY))

    def _read(self, k: int, c: int) -> None:
        if not self.path.exists():
            return
        arrays, metadata = read_tensors(self.path, "checkpoint")
        if metadata.get("owner") != self.owner:
            raise ValueError(
                f"checkpoint {self.path} belongs to a pass with other rows, features or precision: name "
                "another file, or remove it to start again"
            )
        try:
            self._base = MomentSums.restored(arrays, metadata, k, c)
            self._done = [[int(start), int(stop)] for start, stop in metadata["done"]]
            if sum(stop - start for start, stop in self._done) != self._base.rows:
                raise ValueError("its rows are not as many as it says")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({error}): remove it to start again"
            ) from error

    def trail(self, blocks: Iterable[tuple[int, Block]]) -> Iterator[tuple[int, Block]]:
        """The rows of the own blocks that are not done, each with the first row of its block."""
        first = self.layout.own.start
        for start, block in blocks:
            for low, high in missing(first + start, first + start + block.rows, self._done):
                part = slice(low - first - start, high - first - start)
                self._pieces.append([low, high])
                weights = None if block.weights is None else block.weights[part]
                yield start, Block(block.X[part], block.Y[part], weights)

    def offer(self, sums: MomentSums) -> None:
        """Hear of one more block in the own sums; now and then all meet, and save if it is time."""
        self._merged += 1
        if self._merged % EVERY == 0:
            self._meet(sums)

    def finish(self, sums: MomentSums) -> MomentSums:
        """The sums of all rows on all ranks, from the own ones; the file has them too.

        Raises
        ------
        OSError
            On all ranks, if rank 0 cannot write: names the file; the previous one is untouched.
        """
        ranks = self.layout.ranks
        while self._met < self._meetings:  # of ranks with more blocks
            self._meet(sums)
        total = self._of_all(sums)
        if any(ranks.gather(self._merged > 0)):
            self._save(total)
        return total

    def _meet(self, sums: MomentSums) -> None:
        self._met += 1
        ranks = self.layout.ranks
        if ranks.first(ranks.rank == 0 and self._pace.due):
            self._save(self._of_all(sums))

    def _of_all(self, own: MomentSums) -> MomentSums:
        if self._base is not None:
            both = MomentSums.zeros(own.size, own.outputs)
            both.merge(self._base)
            both.merge(own)
            own = both
        return sums_of_ranks(own, self.layout.ranks)

    def _save(self, total: MomentSums) -> None:
        ranks = self.layout.ranks
        parts = ranks.gather(self._pieces[: self._merged])
        done = joined([*self._done, *(piece for part in parts for piece in part)])
        together(ranks, lambda: self._write(total, done) if ranks.rank == 0 else None)

    def _write(self, total: MomentSums, done: list[list[int]]) -> None:
        arrays, numbers = total.state()
        with self._pace.saving():
            write_tensors(self.path, arrays, {"owner": self.owner, "done": done, **numbers})


def missing(start: int, stop: int, done: Sequence[Sequence[int]]) -> list[list[int]]:
    """What of [start, stop) lies in none of some ranges that do not overlap.

    Examples
    --------
    >>> missing(0, 10, [[2, 4], [9, 12]])
    [[0, 2], [4, 9]]
    """
    found, at = [], start
    for low, high in sorted(map(list, done)):
        if high <= at or low >= stop:
            continue
        if low > at:
            found.append([at, low])
        at = high
    return [*found, [at, stop]] if at < stop else found


def joined(ranges: Iterable[Sequence[int]]) -> list[list[int]]:
    """Ranges that do not overlap in their order, those that touch as one.

    Examples
    --------
    >>> joined([[4, 6], [0, 2], [2, 4], [8, 9]])
    [[0, 6], [8, 9]]
    """
    found: list[list[int]] = []
    for low, high in sorted(map(list, ranges)):
        if found and found[-1][1] == low:
            found[-1][1] = high
        else:
            found.append([low, high])
    return found
