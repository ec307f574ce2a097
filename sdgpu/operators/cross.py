"""The rectangular kernel matrix between new rows and training rows, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel_matrices import TILE, cross

__all__ = ["Cross"]

_BLOCK = 2**22  # entries of one row block: 32 MiB of doubles


@dataclass(frozen=True, eq=False)
class Cross:
    """kappa(X_new, X) (m, n) as something that multiplies, made in row blocks of bounded memory.

    ``matmat(V)`` or ``@`` multiplies; ``dense()`` or ``np.asarray`` gives the matrix.
    """

    kernel: Kernel
    new: Rows
    rows: Rows
    tile: int = TILE
    backend: Backend | None = None  # where blocks are brought, if not where the rows are
    fused: Callable[[Any], Any] | None = None  # (n, c) -> (m, c) in one pass, without blocks

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return len(self.new), len(self.rows)

    def blocks(self, entries: int = _BLOCK) -> Iterator[tuple[slice, Any]]:
        """Row blocks (b, n) of at most `entries` numbers, with the rows they stand for."""
        m, n = self.shape
        height = max(1, min(m, entries // max(n, 1)))
        for rows in slices(m, height):
            yield rows, self._backend_block(rows)

    @underflow_is_zero
    def matmat(self, V: Any) -> Any:
        """kappa(X_new, X) V: (n, c) -> (m, c)."""
        if self.fused is not None:
            return self.fused(V)
        xp = compat.array_namespace(V)
        parts = [block @ V for _, block in self.blocks()]
        if not parts:
            return xp.zeros((0, V.shape[1]), dtype=V.dtype, device=compat.device(V))
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)

    def __matmul__(self, V: Any) -> Any:
        return self.matmat(V)

    @underflow_is_zero
    def diag(self) -> Any:
        """kappa(x, x) of the new rows, (m,)."""
        return self.kernel.diagonal(self.new)

    @underflow_is_zero
    def dense(self) -> Any:
        """The matrix (m, n)."""
        return self._backend_block(slice(0, self.shape[0]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(to_numpy(self.dense()), dtype=dtype)

    def _backend_block(self, rows: slice) -> Any:
        block = self._block(rows)
        return block if self.backend is None else self.backend.asarray(block)

    def _block(self, rows: slice) -> Any:
        new = self.new[rows]
        if self.kernel.is_precomputed:
            return new.left
        return cross(self.kernel, new, self.rows, tile=self.tile)
