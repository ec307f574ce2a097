"""Augmented rows, whose products are the statistics that kernels are functions of.

A distance or an inner product of all pairs is one matrix product of augmented rows,

    [-2 x, |x|^2, 1] . [x', 1, |x'|^2] = |x - x'|^2,

so a tile costs one product and the passes of its profile, each in the same buffer. Scaling the rows
folds every constant of a profile into the product. Nothing here imports a library: the same code runs
on NumPy, torch, CuPy, array-api-strict and on the lazy tensors of KeOps.

Sparse rows stay as they are: two columns that are nowhere 0 would make every product of two rows dense, so
their squares are added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import lies_on_device, slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.sparse_rows import dense_product, is_csr, square_sums
from sdgpu.kernels.elementwise import can_choose, clip_, where
from sdgpu.kernels.pair_room import PairRoom

__all__ = [
    "BLOCK",
    "Rows",
    "chords",
    "distance_rows",
    "in_library",
    "inner_rows",
    "longest",
    "mark_opposite",
    "near_pairs",
    "product",
    "reciprocal_sine",
    "recompute_near",
    "squares_of",
    "with_room",
]


BLOCK = 2**18  # numbers of a block of rows: 2 MiB of doubles


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of data made ready for one kernel; slicing gives the rows of a tile.

    Attributes
    ----------
    left, right : array (n, d + 2) or (n, d)
        Augmented rows whose product is the statistic; of sparse rows in CSR, on the host, not augmented.
    norms : array (n,) or None
        |x|^2 of the rows before normalisation, for kernels of angle and length.
    squares : array (n,) or None
        Of sparse rows, for distances: sign * |x|^2, which the product lacks. The library and device of it
        (or of the norms) are those in which tiles of sparse rows come.
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
    squares: Any = None
    room: PairRoom | None = None

    def __len__(self) -> int:
        return len(self.parts[0]) if self.parts else int(self.left.shape[0])

    def __getitem__(self, rows: slice) -> Rows:
        def cut(array: Any) -> Any:
            if array is None or is_csr(array):
                return array if array is None else array[rows]
            return array[rows, ...]

        parts = tuple(part[rows] for part in self.parts)
        left = cut(self.left)
        right = left if self.right is self.left else cut(self.right)
        return replace(
            self,
            left=left,
            right=right,
            norms=cut(self.norms),
            parts=parts,
            squares=cut(self.squares),
        )

    @property
    def sample(self) -> Any:
        """An array with the library, device and dtype of the tiles."""
        if self.parts:
            return self.parts[0].sample
        if is_csr(self.left):
            return self.norms if self.squares is None else self.squares
        return self.left


def with_room(rows: Rows, room: PairRoom) -> Rows:
    """The same rows for the tiles of a pass."""
    return replace(rows, parts=tuple(with_room(part, room) for part in rows.parts), room=room)


def distance_rows(values: Any, sign: float = 1.0) -> Rows:
    """Rows whose product is sign * |x - x'|^2; the values should be centred, but for sparse ones."""
    if is_csr(values):
        squares = square_sums(values)
        far = _are_far(squares)
        return Rows(values * (-2.0 * sign), values, far=far, squares=sign * squares)
    xp = compat.array_namespace(values)
    squares = xp.sum(values * values, axis=1)[:, None]
    ones = xp.ones_like(squares)
    left = xp.concat([-2 * sign * values, sign * squares, sign * ones], axis=1)
    far = _are_far(squares)
    return Rows(left, xp.concat([values, ones, squares], axis=1), far=far)


def _are_far(squares: Any) -> bool:
    """Whether |x|^2 has an error that a profile shows: the expansion is off by about eps |x|^2.

    What an exponent can bear depends on the precision.
    """
    xp = compat.array_namespace(squares)
    eps = float(xp.finfo(squares.dtype).eps)
    known = squares.detach() if compat.is_torch_array(squares) else squares
    largest = float(xp.max(known)) if squares.shape[0] else 0.0
    return eps * largest > (1e-12 if eps < 1e-10 else 1e-5)


def inner_rows(values: Any) -> Rows:
    """Rows whose product is x . x'."""
    if is_csr(values):
        return Rows(values, values, norms=square_sums(values))
    xp = compat.array_namespace(values)
    return Rows(values, values, norms=xp.sum(values * values, axis=1))


def squares_of(rows: Rows) -> Any:
    """|x|^2 of rows whose product is x . x', (n,)."""
    if is_csr(rows.left):
        return in_library(square_sums(rows.left), rows.sample)
    return inner_rows(rows.left).norms


def product(a: Rows, b: Rows, out: Any = None) -> Any:
    """The statistic of all pairs, (len(a), len(b)), in `out` if that is given."""
    if is_csr(a.left):
        tile = in_library(dense_product(a.left, b.right), a.sample)
        if a.squares is not None:
            tile += a.squares[:, None]
            tile += b.squares[None, :]
        return tile
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
    squares = (_squared_lengths(a)[:, None], _squared_lengths(b)[None, :])
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


def longest(rows: Rows) -> float:
    """The largest |x|^2 of rows of distances."""
    return float(compat.array_namespace(rows.sample).max(_squared_lengths(rows)))


def _squared_lengths(rows: Rows) -> Any:
    """|x|^2 of rows of distances, (n,)."""
    return rows.right[:, -1] if rows.squares is None else abs(rows.squares)


def in_library(host: np.ndarray, like: Any) -> Any:
    """An array of NumPy in the library and on the device of another; shared where it is on the host."""
    if compat.is_numpy_array(like):
        return host
    if compat.is_torch_array(like):
        import torch

        return torch.from_numpy(host).to(like.device)
    return compat.array_namespace(like).asarray(host, device=compat.device(like))


def _squared_sums(a: Rows, b: Rows, left: Any, right: Any, sign: int) -> Any:
    """|x + sign x'|^2 of the pairs (left, right), in blocks."""
    if is_csr(a.right):
        first, second = (np.asarray(to_numpy(pairs)) for pairs in (left, right))
        parts = slices(len(first), BLOCK // 64)  # entries are few
        sums = [square_sums(a.right[first[p]] + sign * b.right[second[p]]) for p in parts]
        return in_library(np.concatenate(sums), a.sample)
    d = a.right.shape[1] - 2
    xp = compat.array_namespace(a.right)
    squares = []
    for part in slices(left.shape[0], max(1, BLOCK // d)):
        x = xp.take(a.right[:, :d], left[part], axis=0)
        x = x + sign * xp.take(b.right[:, :d], right[part], axis=0)
        squares.append(xp.sum(x * x, axis=1))
    return xp.concat(squares)
