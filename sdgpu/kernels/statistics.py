"""The three statistics that every kernel is a function of: products, squared and L1 distances.

Each takes rows that are ready (:class:`Rows`) and returns a tile (a, b) that the caller owns. They
run on any array API library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.device.arrays import slices

__all__ = ["Rows", "inner", "l1_distance", "squared_distance"]

# Up to this many features, sums of squared differences are as fast as the expanded product and exact.
DIRECT_FEATURES = 4


@dataclass(frozen=True)
class Rows:
    """Rows of data made ready for one kernel; slicing gives the rows of a tile.

    Attributes
    ----------
    values : array (n, d)
        Centred, scaled or normalised as the kernel needs.
    squares : array (n,) or None
        |values|^2, for distances.
    norms : array (n,) or None
        |x|^2 of the rows before normalisation, for kernels of angle and length.
    parts : tuple of Rows
        For sums and products: the rows of each operand.
    """

    values: Any
    squares: Any = None
    norms: Any = None
    parts: tuple[Rows, ...] = ()

    def __len__(self) -> int:
        return self.parts[0].__len__() if self.parts else int(self.values.shape[0])

    def __getitem__(self, rows: slice) -> Rows:
        def cut(array: Any) -> Any:
            return None if array is None else array[rows, ...]

        parts = tuple(part[rows] for part in self.parts)
        return Rows(cut(self.values), cut(self.squares), cut(self.norms), parts)


def inner(a: Rows, b: Rows) -> Any:
    """x . x' for all pairs, (len(a), len(b))."""
    return a.values @ b.values.T


def squared_distance(a: Rows, b: Rows, *, exact_near: bool = False) -> Any:
    """|x - x'|^2 >= 0 for all pairs.

    Parameters
    ----------
    a, b : Rows
        Centred rows: the expansion |x|^2 + |x'|^2 - 2 x.x' loses the digits of an offset.
    exact_near : bool, default False
        Recompute pairs so close that the expansion has lost a third of its digits. Needed by
        profiles with a kink at 0, whose square root makes 1e-16 into 1e-8.
    """
    if a.values.shape[1] <= DIRECT_FEATURES:
        return _direct(a, b)
    xp = compat.array_namespace(a.values)
    tile = a.values @ b.values.T
    tile *= -2
    tile += a.squares[:, None]
    tile += b.squares[None, :]
    if exact_near:
        _recompute_near(xp, tile, a, b)
    return xp.clip(tile, 0, None)


def l1_distance(a: Rows, b: Rows) -> Any:
    """|x - x'|_1 for all pairs, feature by feature (exact) or by the library's own routine."""
    if compat.is_numpy_array(a.values):
        from scipy.spatial.distance import cdist

        return cdist(a.values, b.values, "cityblock").astype(a.values.dtype, copy=False)
    if compat.is_torch_array(a.values):
        import torch

        return torch.cdist(a.values, b.values, p=1.0)
    xp = compat.array_namespace(a.values)
    total = xp.zeros((len(a), len(b)), dtype=a.values.dtype, device=compat.device(a.values))
    for j in range(a.values.shape[1]):
        total += xp.abs(a.values[:, j][:, None] - b.values[:, j][None, :])
    return total


def _direct(a: Rows, b: Rows) -> Any:
    total: Any = 0
    for j in range(a.values.shape[1]):
        difference = a.values[:, j][:, None] - b.values[:, j][None, :]
        difference *= difference
        total = difference if j == 0 else total + difference
    return total


def _recompute_near(xp: Any, tile: Any, a: Rows, b: Rows) -> None:
    """Overwrite the pairs with |x - x'|^2 < eps^(1/3) (|x|^2 + |x'|^2) by their direct sum."""
    limit = float(xp.finfo(tile.dtype).eps) ** (1 / 3)
    near = tile < limit * (a.squares[:, None] + b.squares[None, :])
    left, right = xp.nonzero(near)
    if left.shape[0] == 0:
        return
    chunk = max(1, 2**22 // a.values.shape[1])
    exact = []
    for part in slices(left.shape[0], chunk):
        nearby = xp.take(b.values, right[part], axis=0)
        difference = xp.take(a.values, left[part], axis=0) - nearby
        exact.append(xp.sum(difference * difference, axis=1))
    tile[near] = xp.concat(exact)
