"""The kernel matrix of rows that are on several ranks: each rank makes its share of every product.

K = kappa(X, X) is symmetric, and each pair of rows is worth computing once. Three ways to share the pairs:

"gather"
    Every rank has all rows of X (n d numbers, gathered once), but of the blocks that K multiplies, of bases
    and targets its own rows alone. A product gathers the block (n c numbers), each rank makes the tiles
    rank, rank + p, rank + 2 p, .. of the lower triangle, and the results are summed over the ranks. The
    shares are alike however uneven the rows are, and p ranks of one thread add the same numbers in the same
    order as one process with p threads does.
"ring"
    No rank ever has more rows than its own and two pieces. The rows of X with those of the block go round a
    ring; a rank multiplies its own rows with the pieces of the half of the ring before it, from both sides,
    and opposite ranks of an even ring share their rectangle. What it made for the others is summed, for one
    rank at a time.

"copies"
    Teams of q ranks have the same rows, and each member goes round with 1 / q of the pieces
    (:mod:`sdgpu.operators.row_teams`). Pairs serve twice only within a team: n^2 / p values.

Per product a rank computes n^2 / 2 p kernel values and n^2 2 c / p multiplications by the first two. It
receives n c + 2 n c numbers by gathering, n (d + c) + 2 n c in a ring, and n (d + c) / q + 2 n c q / p with
copies: q = p^1/2 is the layout of two dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template, dtype_name, inputs, library
from sdgpu.backend.backends import TorchBackend, give_back
from sdgpu.backend.cached import cached
from sdgpu.backend.checks import choice
from sdgpu.backend.ranks import OneRank, Ranks
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray, is_sharded
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.operators.cross import Cross
from sdgpu.operators.rectangle import sides_of_rows
from sdgpu.operators.row_teams import RowTeams
from sdgpu.operators.tiled import PRECISIONS, TiledOperator

__all__ = ["TRAVELS", "ShardedCross", "ShardedOperator"]

TRAVELS = ("gather", "ring", "copies")


@dataclass(frozen=True, eq=False)
class ShardedOperator:
    """K of rows that are on several ranks. Every method but `n` and `d` is called by all ranks.

    Parameters
    ----------
    kernel : Kernel
        Any but :class:`~sdgpu.kernels.Precomputed`.
    X : array_like (m, d), or ShardedArray (n, d)
        The rows of this rank; there may be none. What comes back are the own rows in the library of X, or
        sharded arrays where X is one.
    ranks : Ranks, optional
        The others; one rank by default. Not given where X is a ShardedArray.
    precision : {"float32", "mixed", "float64"}, optional
        As in :class:`TiledOperator`; by default the dtype of X.
    travel : {"gather", "ring", "copies"}, default "gather"
        How rows come to other ranks, see above.
    copies : int, default 1
        q, for "copies": a divisor of the number of ranks whose square is no more than it.
    keep : bool, default False
        Keep the tiles of this rank's share; for "gather".
    workers : int, optional
        Threads of a product on each rank, at most.
    everything : array (n, d), optional
        The rows of all ranks, where they have been gathered already.

    Raises
    ------
    TypeError, ValueError
        For rows that are no matrix of finite numbers, or a precomputed kernel.
    """

    kernel: Kernel
    X: Any = field(repr=False)
    ranks: Ranks | None = None
    precision: str | None = None
    travel: str = "gather"
    keep: bool = False
    workers: int | None = None
    everything: Any = field(default=None, repr=False)
    copies: int = 1

    _template: Any = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.kernel.is_precomputed:
            raise TypeError(
                "a precomputed kernel has no rows to spread over ranks: fit it on one rank"
            )
        choice("travel", self.travel, TRAVELS)
        if not is_sharded(self.X):
            X = inputs(self.X, "X", empty=True)
            ranks = OneRank() if self.ranks is None else self.ranks
            object.__setattr__(self, "_template", Template.of(X, X, flat=False))
            local = TorchBackend(_torch_device(X)).asarray(X)
            layout = RowLayout.of(ranks, int(local.shape[0]))
            object.__setattr__(self, "X", ShardedArray(local, 0, layout))
            if self.precision is None:
                object.__setattr__(self, "precision", dtype_name(X))
        if self.precision is None:
            object.__setattr__(self, "precision", "float64")
        choice("precision", self.precision, PRECISIONS)
        if self.travel == "copies":
            RowTeams(self.layout, self.copies)  # refuses what are none, before any work

    @property
    def layout(self) -> RowLayout:
        """Which rows are where."""
        return self.X.layout

    @property
    def n(self) -> int:
        """Training rows of all ranks."""
        return self.layout.n

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def is_precomputed(self) -> bool:
        """Whether K itself was given: never."""
        return False

    @property
    def given_dtype(self) -> str | None:
        """Precision in which K was given: it was not."""
        return None

    @property
    def difference_scale(self) -> float:
        """Size of the numbers that entries of K are differences of: 0, they are none."""
        return 0.0

    def rounding(self) -> float:
        """Bound on the relative error of an entry of K, over eps."""
        own = self.kernel.rounding(self._own_rows) if len(self._own_rows) else 0.0
        return max(self.layout.ranks.gather(float(own)))

    def matmat(self, V: Any) -> Any:
        """K V: own rows (m, c) -> own rows (m, c), or sharded (n, c) -> sharded (n, c); float64."""
        block = self._sharded(V)
        ways = {
            "gather": self._gathered_product,
            "ring": self._ring_product,
            "copies": self._copied_product,
        }
        product = ways[self.travel]
        return self._given_back(ShardedArray(product(block), 0, self.layout))

    def matmat_once(self, V: Any) -> Any:
        """The same."""
        return self.matmat(V)

    def diag(self) -> Any:
        """Diagonal of K, (n,): of the own rows, or sharded."""
        diagonal = self._backend.asarray(self.kernel.diagonal(self._own_rows))
        return self._given_back(ShardedArray(diagonal, 0, self.layout))

    def columns(self, idx: Any) -> Any:
        """Columns of K by the numbers of rows of all ranks, (n, len(idx)): own rows, or sharded."""
        import torch

        indices = torch.as_tensor(np.asarray(idx, dtype=np.int64), device=self.X.device)
        chosen = self.X.__array_namespace__().take(self.X, indices, axis=0)
        values = self._cross(self._ready(chosen)).dense().T
        return self._given_back(ShardedArray(values, 0, self.layout))

    def cross(self, X_new: Any) -> ShardedCross:
        """kappa(X_new, X) of new rows of this rank, (m, n); every rank brings its own, or none."""
        new = (
            X_new
            if self._template is None
            else self._template.rows(X_new, "X_new", self.d, empty=True)
        )
        return ShardedCross(self, self._backend.asarray(new))

    def gathered(self) -> TiledOperator:
        """The same with all rows on every rank, which needs the others no more."""
        return TiledOperator(self.kernel, self.gathered_rows, self.precision, checked=True)

    @cached
    def gathered_rows(self) -> Any:
        """All rows of X (n, d), on every rank."""
        ranks = self.layout.ranks
        if self.everything is not None or ranks.size == 1:
            return self.X.local if self.everything is None else self.everything
        return ranks.gather_rows(self.X.local.contiguous())

    @property
    def _backend(self) -> TorchBackend:
        return TorchBackend(self.X.device)

    @cached
    def _all(self) -> TiledOperator:
        """K of the gathered rows: each rank multiplies with its share of the tiles."""
        how: dict[str, Any] = {"keep": self.keep, "workers": self.workers, "checked": True}
        return TiledOperator(self.kernel, self.gathered_rows, self.precision, **how)

    @cached
    def centre(self) -> Any:
        """Mean of all rows, (d,)."""
        if self.travel == "gather":
            return self._all.rows_centre
        xp = self.X.__array_namespace__()
        return xp.mean(self.X, axis=0)

    @cached
    def _own(self) -> TiledOperator:
        """What makes rows of X, or others, ready with the common centre."""
        how: dict[str, Any] = {"workers": self.workers, "checked": True, "centre": self.centre}
        return TiledOperator(self.kernel, self.X.local, self.precision, **how)

    @cached
    def _own_rows(self) -> Rows:
        return self._ready(self.X.local)

    def _ready(self, X: Any) -> Rows:
        return self._own.ready(X)

    def _cross(self, new: Rows) -> Cross:
        """Between new rows and the own ones."""
        return Cross(self.kernel, new, self._own_rows, self._own.tile_rows, self._backend)

    def _sharded(self, V: Any) -> Any:
        """The own rows of V, as a tensor."""
        return self._backend.asarray(V.local if is_sharded(V) else V)

    def _given_back(self, found: ShardedArray) -> Any:
        """As X came."""
        return found if self._template is None else give_back(self._template, found, exact=True)

    def _gathered_product(self, block: Any) -> Any:
        ranks = self.layout.ranks
        if ranks.size == 1:
            return self._all.matmat(block)
        whole = ranks.gather_rows(block.contiguous())
        share = self._all.share_of_product(whole, ranks.rank, ranks.size)
        return self._own_sum(share)

    def _own_sum(self, share: Any) -> Any:
        """The own rows of the sum over the ranks of shares (n, c); two ranks swap what is the other's."""
        layout, ranks = self.layout, self.layout.ranks
        if ranks.size != 2:
            return layout.sum(share)[layout.own]
        theirs = layout.rows_of(1 - ranks.rank)
        swapped = ranks.gather_rows(share[theirs].contiguous())  # what 0 made for 1, and 1 for 0
        split = layout.counts[1]
        return share[layout.own] + (swapped[split:] if ranks.rank == 0 else swapped[:split])

    def _ring_product(self, block: Any) -> Any:
        import torch

        layout, ranks, d = self.layout, self.layout.ranks, self.d
        own = self._own  # whose centre all ranks make together
        total = own.matmat(block) if len(block) else torch.zeros_like(block)
        made: dict[int, Any] = {}
        packed = torch.cat([self.X.local, block], dim=1)
        for owner, piece in ranks.ring(packed):
            part = _share_of_pair(ranks.rank, owner, layout.counts, ranks.size)
            if owner == ranks.rank or part is None:
                continue
            mine, others = part
            rows = (self.X.local[mine], piece[others, :d].contiguous())
            high, low = sides_of_rows(own, rows, (block[mine], piece[others, d:]))
            total[mine] += high
            made[owner] = (others, low)
        for owner, count in enumerate(layout.counts):
            share = torch.zeros((count, block.shape[1]), dtype=torch.float64, device=block.device)
            if owner in made:
                others, low = made[owner]
                share[others] = low
            summed = layout.sum(share)
            if owner == ranks.rank:
                total += summed
        return total

    @cached
    def _teams(self) -> RowTeams:
        return RowTeams(self.layout, self.copies)

    @cached
    def _team(self) -> TiledOperator:
        """K of the rows of the team."""
        how: dict[str, Any] = {"workers": self.workers, "checked": True, "centre": self.centre}
        rows = self._teams.together(self.X.local.contiguous())
        return TiledOperator(self.kernel, rows, self.precision, **how)

    def _copied_product(self, block: Any) -> Any:
        import torch

        teams, team, d = self._teams, self._team, self.d
        columns = teams.together(block.contiguous())
        total = torch.zeros_like(columns)
        for owner, piece in teams.pieces(torch.cat([team.X, columns], dim=1)):
            if not len(piece) or not team.n:
                continue
            if owner == teams.team:
                total += team.matmat(columns)
                continue
            rows = (team.X, piece[:, :d].contiguous())
            total += sides_of_rows(team, rows, (columns, piece[:, d:]))[0]
        return teams.own_sum(total)


def _share_of_pair(
    rank: int, owner: int, counts: tuple[int, ...], size: int
) -> tuple[slice, slice] | None:
    """The rows of both that a rank multiplies when the piece of another one comes; None for none.

    A rank serves the (size - 1) // 2 before it. Opposite ones of an even ring share the rows of the first.
    """
    distance = (rank - owner) % size
    if 2 * distance < size:
        return slice(0, counts[rank]), slice(0, counts[owner])
    if 2 * distance > size:
        return None
    first = min(rank, owner)
    half = counts[first] // 2
    if rank == first:
        return slice(0, half), slice(0, counts[owner])
    return slice(0, counts[rank]), slice(half, counts[first])


@dataclass(frozen=True, eq=False)
class ShardedCross:
    """kappa(X_new, X) for new rows of each rank: every rank multiplies those of all with its own rows of X.

    All ranks call, each with its new rows; some may have none. Rows of more than one block are told to the
    others as they are needed.
    """

    operator: ShardedOperator
    new: Any  # (m, d)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): new rows of this rank, training rows of all."""
        return int(self.new.shape[0]), self.operator.n

    @cached
    def counts(self) -> list[int]:
        """New rows of each rank."""
        return [int(count) for count in self.operator.layout.ranks.gather(int(self.new.shape[0]))]

    def matmat(self, V: Any) -> Any:
        """The product with V, sharded (n, c) or own rows (.., c): (m, c) for the new rows of this rank."""
        layout, columns = self.operator.layout, self.operator._sharded(V)
        ranks, backend = layout.ranks, self.operator._backend
        if ranks.size == 1:
            return self.operator._cross(self.operator._ready(self.new)).matmat(columns)
        everyone = ranks.gather_rows(self.new.contiguous())
        start, mine = 0, backend.asarray(self.new[:, :0])
        for owner, count in enumerate(self.counts):
            rows = everyone[start : start + count]
            start += count
            share = self.operator._cross(self.operator._ready(rows)).matmat(columns)
            summed = layout.sum(backend.asarray(share))
            if owner == ranks.rank:
                mine = summed
        return mine

    def __matmul__(self, V: Any) -> Any:
        return self.matmat(V)

    def blocks(self, entries: int = 2**22) -> Iterator[tuple[slice, ShardedCross]]:
        """Blocks of new rows with at most `entries` kernel values; as many on each rank, empty at the end.

        They are no arrays, but multiply like these.
        """
        height = max(1, entries // max(self.operator.n, 1))
        m = self.shape[0]
        for start in range(0, max(self.counts), height):
            rows = slice(min(start, m), min(start + height, m))
            yield rows, ShardedCross(self.operator, self.new[rows])

    def diag(self) -> Any:
        """kappa(x, x) of the new rows of this rank, (m,)."""
        return self.operator.kernel.diagonal(self.operator._ready(self.new))

    def dense(self) -> Any:
        """Not made.

        Raises
        ------
        TypeError
        """
        raise TypeError(
            "kappa(X_new, X) of training rows on several ranks is not made whole: multiply with it"
        )


def _torch_device(X: Any) -> Any:
    return X.device if library(X) == "torch" else "cpu"
