"""Augmented rows, whose products are the statistics that kernels are functions of.

A distance or an inner product of all pairs is one matrix product of augmented rows,

    [-2 x, |x|^2, 1] . [x', 1, |x'|^2] = |x - x'|^2,

so a tile costs one product and the passes of its profile, each in the same buffer. Scaling the rows
folds every constant of a profile into the product. Nothing here imports a library: the same code runs
on NumPy, torch, CuPy, array-api-strict and on the lazy tensors of KeOps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import lies_on_device, slices
from sdgpu.backend.sparse_rows import beside_each_other, is_csr, square_sums
from sdgpu.kernels.elementwise import can_choose, clip_, where
from sdgpu.kernels.pair_room import PairRoom

__all__ = [
    "BLOCK",
    "Rows",
    "chords",
    "distance_rows",
    "inner_rows",
    "mark_opposite",
    "near_pairs",
    "product",
    "reciprocal_sine",
    "recompute_near",
    "with_room",
]


BLOCK = 2**18  # numbers of a block of rows: 2 MiB of doubles


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data made ready for one kernel; slicing gives the rows of a tile.

    Attributes
    ----------
    left, right : array (n, d + 2) or (n, d)
        Augmented rows whose product is the statistic; of sparse rows in CSR.
    norms : array (n,) or None
        |x|^2 of the rows before normalisation, for kernels of angle and length.
    parts : tuple of Rows
        For sums and products: the rows of each operand.
    far : bool
        Whether they are so far from the centre that near pairs need their distance recomputed.
    room : PairRoom, optional
        Of a pass over tiles on a GPU, which must not wait for each of them.
    """

    left: Any
    right: Any
    norms: Any = None
    parts: tuple[Rows, ...] = ()
    far: bool = False
    room: PairRoom | None = None

    def __len__(self) -> int:
        return len(self.parts[0]) if self.parts else int(self.left.shape[0])

    def __getitem__(self, rows: slice) -> Rows:
        def cut(array: Any) -> Any:
            if array is None or is_csr(array):
                return array if array is None else array[rows]
            return array[rows, ...]

        parts = tuple(part[rows] for part in self.parts)
        return Rows(cut(self.left), cut(self.right), cut(self.norms), parts, self.far, self.room)

    @property
    def sample(self) -> Any:
        """An array with the library, device and dtype of the rows."""
        if self.parts:
            return self.parts[0].sample
        return self.left.data if is_csr(self.left) else self.left


def with_room(rows: Rows, room: PairRoom) -> Rows:
    """The same rows for the tiles of a pass."""
    return replace(rows, parts=tuple(with_room(part, room) for part in rows.parts), room=room)


def distance_rows(values: Any, sign: float = 1.0) -> Rows:
    """Rows whose product is sign * |x - x'|^2; the values should be centred."""
    sparse = is_csr(values)
    xp = compat.array_namespace(values.data if sparse else values)
    squares = (square_sums(values) if sparse else xp.sum(values * values, axis=1))[:, None]
    ones = xp.ones_like(squares)
    concat = beside_each_other if sparse else xp.concat
    left = concat([-2 * sign * values, sign * squares, sign * ones], axis=1)
    # the expansion is off by about eps |x|^2: what an exponent can bear depends on the precision
    eps = float(xp.finfo(values.dtype).eps)
    known = squares.detach() if compat.is_torch_array(squares) else squares
    largest = float(xp.max(known)) if squares.shape[0] else 0.0
    far = eps * largest > (1e-12 if eps < 1e-10 else 1e-5)
    return Rows(left, concat([values, ones, squares], axis=1), far=far)


def inner_rows(values: Any) -> Rows:
    """Rows whose product is x . x'."""
    if is_csr(values):
        return Rows(values, values, norms=square_sums(values))
    xp = compat.array_namespace(values)
    return Rows(values, values, norms=xp.sum(values * values, axis=1))


def product(a: Rows, b: Rows, out: Any = None) -> Any:
    """The statistic of all pairs, (len(a), len(b)), in `out` if that is given."""
    if is_csr(a.left):
        return (a.left @ b.right.T).toarray()
    if out is None:
        return a.left @ b.right.T
    if compat.is_torch_array(out):
        import torch

        return torch.mm(a.left, b.right.T, out=out)
    return compat.array_namespace(out).matmul(a.left, b.right.T, out=out)


def recompute_near(tile: Any, a: Rows, b: Rows, sign: float = 1.0) -> Any:
    """Overwrite sign |x - x'|^2 of near pairs by its direct sum.

    For profiles with a kink at 0, and for rows that are far from their centre.

    The expansion has lost a third of its digits where |x - x'|^2 < eps^(1/3) (|x|^2 + |x'|^2), and a
    square root makes the 1e-16 that is left of zero into 1e-8.
    """
    near = near_pairs(tile, a, b, sign)
    if a.room is not None:
        left, right = near = a.room.find(near)
    else:
        left, right = compat.array_namespace(tile).nonzero(near)
    if left.shape[0]:
        tile[near] = sign * _squared_sums(a, b, left, right, -1)
    return tile


def near_pairs(tile: Any, a: Rows, b: Rows, sign: float = 1.0) -> Any:
    """Where |x - x'|^2 < eps^(1/3) (|x|^2 + |x'|^2), for a tile of sign |x - x'|^2."""
    limit = float(compat.array_namespace(tile).finfo(tile.dtype).eps) ** (1 / 3)
    squares = (_last_column(a.right)[:, None], _last_column(b.right)[None, :])
    return sign * tile < limit * (squares[0] + squares[1])


def mark_opposite(tile: Any, a: Rows, b: Rows) -> Any:
    """Overwrite |u - u'|^2 of nearly opposite unit rows by -|u + u'|^2 < 0, for a kink at the angle pi.

    Of 4 - |u - u'|^2 rounding leaves half of the digits there, and none for rows that are opposite, as all
    rows of one feature are that are not parallel. :func:`chords` reads both.
    """
    xp = compat.array_namespace(tile)
    limits = xp.finfo(tile.dtype)
    limit = 4 * (1 - float(limits.eps) ** (1 / 3))
    smallest = float(limits.smallest_normal)  # that 0 has a sign
    if a.room is not None:
        left, right = a.room.find(tile > limit)
        if left.shape[0]:
            chord, across = tile[left, right], _squared_sums(a, b, left, right, 1)
            tile[left, right] = where(chord > limit, -clip_(across, smallest, None), chord)
        return tile
    if not compat.size(tile) or float(xp.max(tile)) <= limit:
        return tile
    opposite = tile > limit
    left, right = xp.nonzero(opposite)
    tile[opposite] = -clip_(_squared_sums(a, b, left, right, 1), smallest, None)
    return tile


def chords(tile: Any, *, marked: bool) -> tuple[Any, Any]:
    """|u - u'|^2 of unit rows, and |u + u'|^2 if there are marked pairs (else None: 4 less the first)."""
    if marked and _may_be_negative(tile):
        opposite = tile < 0
        across = where(opposite, -tile, 4.0 - tile)
        return clip_(where(opposite, 4.0 + tile, tile), 0.0, 4.0), clip_(across, 0.0, 4.0)
    return clip_(tile, 0.0, 4.0), None


def reciprocal_sine(tile: Any) -> Any:
    """1 / sin theta from |u - u'|^2 of unit rows; 0 for the angles 0 and pi, to rounding."""
    xp = compat.array_namespace(tile)
    chord, across = chords(tile, marked=True)
    squares = chord * (4.0 - chord if across is None else across)  # (2 sin theta)^2
    apart = squares > (16 * float(xp.finfo(tile.dtype).eps)) ** 2
    return xp.where(
        apart, 2 / xp.sqrt(xp.where(apart, squares, xp.ones_like(squares))), 0 * squares
    )


def _may_be_negative(tile: Any) -> bool:
    """Whether an entry is marked; of what machine code will hold one may be, KeOps has no marks.

    On a GPU one may be too: to look would wait for it.
    """
    if not compat.is_array_api_obj(tile):
        return can_choose(tile)
    if lies_on_device(tile):
        return True
    return bool(compat.size(tile)) and float(compat.array_namespace(tile).min(tile)) < 0


def _last_column(rows: Any) -> Any:
    """|x|^2 of augmented rows."""
    return rows[:, [-1]].toarray()[:, 0] if is_csr(rows) else rows[:, -1]


def _squared_sums(a: Rows, b: Rows, left: Any, right: Any, sign: int) -> Any:
    """|x + sign x'|^2 of the pairs (left, right), in blocks."""
    d = a.right.shape[1] - 2
    if is_csr(a.right):
        x, y = a.right[:, :d], b.right[:, :d]
        parts = slices(left.shape[0], BLOCK // 64)  # entries are few
        return np.concatenate([square_sums(x[left[p]] + sign * y[right[p]]) for p in parts])
    xp = compat.array_namespace(a.right)
    squares = []
    for part in slices(left.shape[0], max(1, BLOCK // d)):
        x = xp.take(a.right[:, :d], left[part], axis=0)
        x = x + sign * xp.take(b.right[:, :d], right[part], axis=0)
        squares.append(xp.sum(x * x, axis=1))
    return xp.concat(squares)
