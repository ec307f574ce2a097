"""The backend of one rank among several: small arrays are everybody's, those of rows are spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Array
from sdgpu.backend.backends import TorchBackend, small_eigh
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray, cut, is_sharded

__all__ = ["ShardedBackend"]


@dataclass(frozen=True, eq=False)
class ShardedBackend:
    """Torch on the device of this rank, for arrays whose rows are on all ranks.

    Small decompositions are those of rank 0, told to the others: equal eigenvalues leave eigenvectors a
    choice, which two libraries, or two alignments of memory, need not make alike.

    Parameters
    ----------
    inner : TorchBackend
    layout : RowLayout
    """

    inner: TorchBackend
    layout: RowLayout

    @property
    def name(self) -> str:
        size = self.layout.ranks.size
        return f"{self.inner.name}, {size} rank{'s' * (size > 1)}"

    @property
    def xp(self) -> Any:
        from sdgpu.backend.sharded_namespace import NAMESPACE

        return NAMESPACE

    @property
    def device(self) -> Any:
        return self.inner.device

    @property
    def tile(self) -> int:
        return self.inner.tile

    def asarray(self, array: Array) -> Any:
        """A sharded array stays sharded; any other is one that all ranks have."""
        if is_sharded(array):
            return array.like(self.inner.asarray(array.local), array.axis)
        return self.inner.asarray(array)

    def eigh(self, K: Any) -> tuple[Any, Any]:
        # on CPUs by SciPy, whose pool rests in fits: the bits do not depend on the threads of a rank
        eigh = self.inner.eigh_by_scipy if str(self.device) == "cpu" else self.inner.eigh
        n = int(K.shape[0])
        if self.layout.ranks.size == 1:
            return eigh(K)
        told = K.new_empty(((n + 1) * self._is_first, n))
        if self._is_first:
            told[0], told[1:] = eigh(K)
        told = self.layout.ranks.gather_rows(told)  # the others have no rows of it
        return told[0], told[1:]

    def small_eigh(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.layout.ranks.size == 1:
            return small_eigh(matrix)
        found = small_eigh(matrix) if self._is_first else (np.zeros(len(matrix)), 0 * matrix)
        packed = np.concatenate([found[0][None, :], found[1]])
        values, *vectors = self._told_array(packed)
        return values, np.stack(vectors) if vectors else found[1]

    def cholesky(self, K: Any) -> Any:
        return self.inner.cholesky(K)

    def cho_solve(self, factor: Any, B: Any) -> Any:
        return self.inner.cho_solve(factor, B)

    def synchronize(self) -> None:
        self.inner.synchronize()

    def empty_rows(self, count: int, n: int, dtype: str = "float64") -> ShardedArray:
        """An array (count, n) of which each rank has its columns.

        Raises
        ------
        ValueError
            If these are not the rows of the layout.
        """
        import torch

        if n != self.layout.n:
            raise ValueError(f"{n} rows, but the ranks have {self.layout.n}")
        own = self.layout.counts[self.layout.ranks.rank]
        local = torch.empty((count, own), dtype=getattr(torch, dtype), device=self.device)
        return ShardedArray(local, 1, self.layout)

    def spread(self, array: Array, axis: int) -> ShardedArray:
        """Of an array that all ranks have its own rows."""
        if is_sharded(array):
            return self.asarray(array)
        axis %= array.ndim
        return ShardedArray(self.inner.asarray(cut(array, axis, self.layout)), axis, self.layout)

    def rows_here(self, n: int) -> slice:
        """Numbers of the own rows."""
        return self.layout.own

    def told(self, value: Any) -> Any:
        """What rank 0 has."""
        return value if self.layout.ranks.size == 1 else self.layout.ranks.first(value)

    def own(self, array: Array) -> Any:
        """The own part of a sharded array."""
        return array.local if is_sharded(array) else array

    def from_ranks(self, array: Array) -> list[Any]:
        """The array of each rank."""
        if self.layout.ranks.size == 1:
            return [array]
        joined = self.layout.ranks.gather_rows(array[None, ...])
        return [joined[rank] for rank in range(self.layout.ranks.size)]

    def everywhere(self, truth: Any) -> bool:
        """Whether something is true on all ranks."""
        return all(self.layout.ranks.gather(bool(truth)))

    @property
    def _is_first(self) -> bool:
        return self.layout.ranks.rank == 0

    def _told_array(self, array: Any) -> Any:
        """Of rank 0; those of the others are zeros."""
        return self.layout.ranks.sum(array)
