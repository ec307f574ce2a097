"""The kernel matrix recomputed in tiles: products without the matrix, each tile used on both sides.

A tile costs one product of augmented rows and one in-place profile (see
:mod:`sdgpu.kernels.statistics`); it then multiplies from the left and, transposed, from the right, so
only n^2 / 2 kernel values are computed. Blocks are held (c, n): skinny products are several times
faster that way. Sums across tiles are float64 in every precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from sdgpu.checks import choice, integer
from sdgpu.device.arrays import dtype_name, inputs, same_place, slices
from sdgpu.device.backend import Backend, TorchBackend, backend_of
from sdgpu.kernels import Kernel, Precomputed
from sdgpu.kernels.base import column_means
from sdgpu.kernels.statistics import Rows
from sdgpu.operators.dense import Cross

__all__ = ["PRECISIONS", "TiledOperator"]

#: What evaluates and what multiplies; sums across tiles are always float64.
PRECISIONS = ("float32", "mixed", "float64")

TILE_CPU = 768  # measured: 2.4 MB in float32, inside the shared cache with its neighbours
TILE_GPU = 8192


@dataclass(frozen=True)
class TiledOperator:
    """K without K: O(n d + tile^2) memory.

    Parameters
    ----------
    kernel : Kernel
        Any but :class:`~sdgpu.kernels.Precomputed`.
    X : array_like (n, d)
        Any library; products come back in it, as float64. The work is done by torch on the device
        of X.
    precision : {"float32", "mixed", "float64"}, optional
        "float32" evaluates and multiplies in float32, "mixed" evaluates in float32 and multiplies in
        float64. By default the dtype of X.
    tile : int, optional
        Rows of a tile.

    Raises
    ------
    TypeError, ValueError
        For input that is not a matrix of finite real rows, or a precomputed kernel.

    Notes
    -----
    A product costs n^2 / 2 kernel values and 2 n^2 c multiplications. On CUDA a tile that does not
    fit is halved until it does.
    """

    kernel: Kernel
    X: Any = field(repr=False)
    precision: str | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kernel, Precomputed):
            raise TypeError("a precomputed kernel is a matrix already: use DenseOperator")
        X = inputs(self.X, "X")
        precision = dtype_name(X) if self.precision is None else self.precision
        choice("precision", precision, PRECISIONS)
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "precision", precision)
        if self.tile is not None:
            integer("tile", self.tile, 1)

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    @property
    def given(self) -> bool:
        """Whether X is the Gram matrix itself: never."""
        return False

    @staticmethod
    def peak_bytes(n: int, d: int, c: int, precision: str, tile: int = TILE_CPU) -> int:
        """Bytes of the ready rows, of a tile with its profile, and of a product of c columns."""
        size = 8 if precision == "float64" else 4
        return size * (2 * n * (d + 2) + 3 * tile * tile) + 8 * (3 * n * c + 2 * n * d)

    @cached_property
    def rows(self) -> Rows:
        """The rows of X, made ready in float64 and then rounded to the evaluation precision."""
        return self._ready(self._torch.asarray(self.X))

    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c), float64, in the library of X."""
        block = self._torch.asarray(V).T.contiguous()  # (c, n)
        tile = self._size
        while True:
            try:
                return self._backend.asarray(self._product(block, tile).T)
            except RuntimeError as error:  # torch's out-of-memory error is one
                if "out of memory" not in str(error) or tile <= 256:
                    raise
                tile //= 2

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as an operator (m, n); its blocks come in the library of X."""
        new = inputs(X_new, "X_new", features=int(self.X.shape[1]), empty=True)
        same_place(self.X, new, "X", "X_new")
        ready = self._ready(self._torch.asarray(new))
        return Cross(self.kernel, ready, self.rows, self._size, self._backend)

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""
        return self._backend.asarray(self.kernel.diagonal(self.rows))

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""
        import torch

        picked = torch.as_tensor(np.asarray(idx, dtype=np.int64), device=self._torch.device)
        chosen = self._ready(self._torch.asarray(self.X)[picked])
        cross = Cross(self.kernel, chosen, self.rows, self._size, self._backend)
        return cross.dense().T

    @property
    def _size(self) -> int:
        """Rows of a tile."""
        default = TILE_CPU if self._torch.tile < 1024 else TILE_GPU
        return max(1, min(self.tile or default, self.n))

    @property
    def _backend(self) -> Backend:
        return backend_of(self.X)

    @property
    def _torch(self) -> TorchBackend:
        backend = backend_of(self.X)
        if isinstance(backend, TorchBackend):
            return backend
        return TorchBackend(f"cuda:{backend.device.id}" if "cupy" in backend.name else "cpu")

    @cached_property
    def _centre(self) -> Any:
        return column_means(self._torch.asarray(self.X))

    def _ready(self, X: Any) -> Rows:
        import torch

        rows = self.kernel.rows(X, self._centre)
        return rows if self.precision == "float64" else _cast(rows, torch.float32)

    def _product(self, V: Any, tile: int) -> Any:
        """(c, n) float64 -> (c, n) float64."""
        import torch

        rows, out = self.rows, torch.zeros_like(V)
        work = V if self.precision != "float32" else V.to(torch.float32)
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        buffer = torch.empty(tile * tile, dtype=dtype, device=V.device)
        pieces = [(part, rows[part], work[:, part]) for part in slices(self.n, tile)]
        for i, (high, left, mine) in enumerate(pieces):
            target = out[:, high]
            for low, right, theirs in pieces[: i + 1]:
                same = low.start == high.start
                space = buffer[: len(left) * len(right)].view(len(left), len(right))
                values = self.kernel.tile(left, right, same=same, out=space)
                if values.dtype != work.dtype:
                    values = values.to(work.dtype)  # "mixed"
                target += theirs @ values.T
                if not same:
                    out[:, low] += mine @ values
        return out


def _cast(rows: Rows, dtype: Any) -> Rows:
    def to(array: Any) -> Any:
        return None if array is None else array.to(dtype).contiguous()

    parts = tuple(_cast(part, dtype) for part in rows.parts)
    return replace(
        rows, left=to(rows.left), right=to(rows.right), norms=to(rows.norms), parts=parts
    )
