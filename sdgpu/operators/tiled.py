"""The kernel matrix in tiles, recomputed at every product or kept: each tile is used on both sides.

A tile costs one product of augmented rows and one in-place profile (see
:mod:`sdgpu.kernels.augmented_rows`); it then multiplies from the left and, transposed, from the right, so
only n^2 / 2 kernel values are computed. On the CPU every thread works on tiles of its own, which fit its
cache; with llvmlite this is one compiled loop for every kernel that has a formula. Blocks are held (c, n):
skinny products are faster that way. Sums across tiles are float64 in every precision.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from sdgpu.backend.arrays import dtype_name, new_rows, slices
from sdgpu.backend.backends import (
    Backend,
    TorchBackend,
    backend_of,
    rows_on,
    taken_rows,
    torch_beside,
)
from sdgpu.backend.checks import choice, integer
from sdgpu.backend.conversion import column_names
from sdgpu.backend.copying import without_caches
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.threads import count, side_by_side
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows, with_room
from sdgpu.kernels.kernel import column_means
from sdgpu.kernels.kernel_matrices import SPARSE_TILE
from sdgpu.kernels.pair_room import PairRoom
from sdgpu.kernels.row_preparation import checked_rows, ready_rows, with_tiles_like
from sdgpu.operators.cross import Cross
from sdgpu.operators.expansion import Expansion
from sdgpu.operators.slopes import KernelSlopes
from sdgpu.operators.tile_prices import TILE_CPU, pays_to_compile

__all__ = ["PRECISIONS", "TiledOperator"]

#: What evaluates and what multiplies; sums across tiles are always float64.
PRECISIONS = ("float32", "mixed", "float64")

TILE_WIDE = 384  # 1.1 MiB in float64
TILE_FUSED = 256  # of the compiled loop: statistics of a tile lie in half of a core's second cache
TILE_GPU = 8192
PAIRS = 2  # for each row of a tile on a GPU there is room for so many near pairs in the first pass


@dataclass(frozen=True, eq=False)
class TiledOperator:
    """K without K: O(n d + tile^2) memory.

    Parameters
    ----------
    kernel : Kernel
        Any but :class:`~sdgpu.kernels.Precomputed`.
    X : array_like (n, d)
        Any library; products come back in it, as float64. The work is done by torch on the device
        of X. Sparse matrices of SciPy too, for kernels that take them: products of two rows are then
        SciPy's, on the host.
    precision : {"float32", "mixed", "float64"}, optional
        "float32" evaluates and multiplies in float32, "mixed" evaluates in float32 and multiplies in
        float64. By default the dtype of X.
    tile : int, optional
        Rows of a tile.
    keep : bool, default False
        Keep the tiles: n^2 / 2 numbers in the precision of the evaluation, made at the first product.
    triton : bool, default False
        Products, those with new rows too, by :mod:`sdgpu.operators.fused_cuda` instead of torch's passes:
        on CUDA, in "float32" or "mixed", for every kernel with a formula. Off until a GPU has shown it to
        be right and faster.
    workers : int, optional
        Threads of a product, at most; as many as torch may use by default.
    checked : bool, default False
        Whether X has been checked already, and is an array of floats, or CSR.
    home : Backend, optional
        Of sparse rows: whose arrays are multiplied; NumPy's by default.
    centre : array (d,), optional
        What distances are taken from, for their digits; the mean of X by default.

    Raises
    ------
    TypeError, ValueError
        For input that is not a matrix of finite real rows, or a precomputed kernel; for `triton` where it
        cannot be used, with the reason.

    Notes
    -----
    A product costs n^2 / 2 kernel values and 2 n^2 c multiplications. On CUDA a tile that does not
    fit is halved until it does.
    """

    kernel: Kernel
    X: Any = field(repr=False)
    precision: str | None = None
    tile: int | None = None
    keep: bool = False
    triton: bool = False
    workers: int | None = None
    checked: bool = field(default=False, repr=False)
    home: Backend | None = field(default=None, repr=False)
    centre: Any = field(default=None, repr=False)

    _names: tuple[str, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.kernel.is_precomputed:
            raise TypeError("a precomputed kernel is a matrix already: use DenseOperator")
        X = self.X if self.checked else checked_rows(self.kernel, self.X)
        precision = dtype_name(X) if self.precision is None else self.precision
        choice("precision", precision, PRECISIONS)
        object.__setattr__(self, "_names", column_names(self.X))
        object.__setattr__(self, "X", X)
        object.__setattr__(self, "precision", precision)
        if self.tile is not None:
            integer("tile", self.tile, 1)
        if self.triton:
            self._check_triton()

    def __getstate__(self) -> dict[str, Any]:
        return without_caches(self)

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def is_precomputed(self) -> bool:
        """Whether X is the Gram matrix itself: never."""
        return False

    @cached_property
    def rows(self) -> Rows:
        """The rows of X, made ready in float64 and then rounded to the evaluation precision."""
        return self.ready(rows_on(self.torch_backend, self.X))

    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c), float64, in the library of X."""
        return self.share_of_product(V, 0, 1)

    def share_of_product(self, V: Any, rank: int, size: int) -> Any:
        """The part of K V that one of `size` ranks makes: they add up, and each pair of rows is in one.

        The tiles are dealt out in turn, so that the shares are alike whatever the rows.
        """
        block = self.torch_backend.asarray(V).T.contiguous()  # (c, n)
        tile = self.tile_rows
        while True:
            try:
                return self.backend.asarray(self._product(block, tile, (rank, size)).T)
            except RuntimeError as error:  # torch's out-of-memory error is one
                if "out of memory" not in str(error) or tile <= 256:
                    raise
                tile //= 2
                self._halve(tile)

    def corner_product(self, V: Any, corner: int) -> Any:
        """Products with the pairs of one of the first `corner` rows and one of the others: (n, c) float64.

        Both sides of a rectangle of K, by the compiled loop; `corner` is a multiple of 64, or all rows.
        """
        block = self.torch_backend.asarray(V).T.contiguous().numpy()
        workers, tile = min(count(), self.workers or count()), self.tile_rows

        def run(worker: int, flag: np.ndarray) -> Any:
            return self._fused.share(block, tile, worker, workers, flag, corner=corner)

        total = sum(side_by_side(run, workers))
        return self.backend.asarray(self.torch_backend.asarray(total).T)

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as an operator (m, n); its blocks come in the library of X."""
        d = int(self.X.shape[1])
        new = new_rows(X_new, "X_new", self.X, columns=self._names, features=d, empty=True)
        rows = self.ready(rows_on(self.torch_backend, new))
        fused = partial(self._fused_cross, rows) if self.triton else None
        return Cross(self.kernel, rows, self.rows, self.tile_rows, self.backend, fused)

    def of_rows(self, X: Any) -> TiledOperator:
        """The same of other rows, with the centre of these."""
        how: dict[str, Any] = {"workers": self.workers, "checked": True}
        return TiledOperator(self.kernel, X, self.precision, centre=self.rows_centre, **how)

    def slopes(self, X_new: Any) -> KernelSlopes:
        """Derivatives of kappa(X_new, X) by the new rows, in float64 whatever the precision."""
        return KernelSlopes(self.kernel, X_new, self.X)

    def expansion(self, V: Any) -> Expansion:
        """The function with coefficients V (n, c), as its parts."""
        return Expansion.of_rows(self.kernel, self.X, V)

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""
        return self.backend.asarray(self.kernel.diagonal(self.rows))

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""
        subset = self.ready(taken_rows(rows_on(self.torch_backend, self.X), idx))
        cross = Cross(self.kernel, subset, self.rows, self.tile_rows, self.backend)
        return cross.dense().T

    def _check_triton(self) -> None:
        from sdgpu.operators.fused_cuda import why_no_formula, why_not

        reason = why_not(self.torch_backend.device)
        if not reason and self.precision == "float64":
            reason = "values are float32, precision='float64' is not: use 'float32' or 'mixed'"
        if not reason and is_csr(self.X):
            reason = "rows are sparse, whose tiles are made on the host: leave it False"
        if not reason and self.keep:
            reason = "keep=True keeps tiles, and it has none: leave one of them False"
        reason = reason or why_no_formula(self.kernel, self.rows)
        if reason:
            raise ValueError(f"triton=True cannot be used: {reason}")

    @property
    def tile_rows(self) -> int:
        """Rows of a tile."""
        default = TILE_WIDE if self.precision == "float64" else TILE_CPU
        if self._fused is not None:
            default = TILE_FUSED
        default = default if self.torch_backend.tile < 1024 else TILE_GPU
        if is_csr(self.X):  # on the host, whatever multiplies
            default = SPARSE_TILE
        return max(1, min(self.tile or default, self.n, *self._halved_sizes))

    def _halve(self, tile: int) -> None:
        """Smaller tiles from now on; those that are kept have the old size."""
        self._halved_sizes.append(tile)
        self._tile_cache.clear()
        for name in ("_pieces", "_room"):
            self.__dict__.pop(name, None)

    @cached_property
    def _halved_sizes(self) -> list[int]:
        return []

    @property
    def backend(self) -> Backend:
        return self.home or backend_of(self.X)

    @property
    def torch_backend(self) -> TorchBackend:
        return torch_beside(self.backend)

    @cached_property
    def rows_centre(self) -> Any:
        """What distances are taken from, (d,)."""
        if self.centre is not None:
            return self.centre
        return column_means(rows_on(self.torch_backend, self.X))

    def ready(self, X: Any) -> Rows:
        """Rows made ready in the precision that evaluates, with the centre of the operator."""
        import torch

        double = self.precision == "float64"
        if is_csr(X):
            like = torch.empty(
                0,
                dtype=torch.float64 if double else torch.float32,
                device=self.torch_backend.device,
            )
            return ready_rows(self.kernel, X, None, partial(with_tiles_like, like=like))
        if double:
            return ready_rows(self.kernel, X, self.rows_centre)
        return ready_rows(self.kernel, X, self.rows_centre, partial(_cast, dtype=torch.float32))

    @cached_property
    def _pieces(self) -> list[tuple[slice, Rows]]:
        """The rows of every block."""
        rows = self.rows if self._room is None else with_room(self.rows, self._room)
        return [(part, rows[part]) for part in slices(self.n, self.tile_rows)]

    @cached_property
    def _room(self) -> PairRoom | None:
        """On a GPU: what its passes need in order not to wait for it in every tile."""
        on_cpu = str(self.torch_backend.device) == "cpu"
        return None if on_cpu else PairRoom(PAIRS * self.tile_rows)

    @property
    def compiled(self) -> bool:
        """Whether products are one compiled loop (:mod:`sdgpu.operators.fused_cpu`)."""
        return self._fused is not None and not self.keep

    @cached_property
    def _fused(self) -> Any:
        """The compiled loop on the CPU (:mod:`sdgpu.operators.fused_cpu`), where there is one."""
        if is_csr(self.X) or not pays_to_compile(self.kernel, self.n, self.d):
            return None
        try:
            module = importlib.import_module("sdgpu.operators.fused_cpu")
        except ImportError:  # no llvmlite
            return None
        multiply = "float32" if self.precision == "float32" else "float64"
        return module.fused_products(self.kernel, self.rows, multiply)

    @cached_property
    def _fused_cuda(self) -> Any:
        """The fused product on CUDA (:mod:`sdgpu.operators.fused_cuda`)."""
        return importlib.import_module("sdgpu.operators.fused_cuda").FusedCuda(
            self.kernel, self.rows
        )

    def _fused_cross(self, new: Rows, V: Any) -> Any:
        """kappa(X_new, X) V, (n, c) -> (m, c) float64: multiplied in float64, as blocks are."""
        block = self.torch_backend.asarray(V).double().T.contiguous()
        return self.backend.asarray(self._fused_cuda.cross(new, block).T)

    def _product(self, V: Any, tile: int, part: tuple[int, int]) -> Any:
        """(c, n) float64 -> (c, n) float64, of the part of a rank."""
        import torch

        rank, size = part
        if self.triton and size == 1:
            return self._fused_cuda.gram(V.to(torch.float32) if self.precision == "float32" else V)
        pieces = self._pieces
        block = V if self.precision != "float32" else V.to(torch.float32)
        pairs = [(i, j) for i in range(len(pieces)) for j in range(i + 1)][rank::size]
        workers = 1
        if V.device.type == "cpu":
            workers = max(1, min(count(), self.workers or count(), len(pairs)))

        def run(worker: int, flag: np.ndarray) -> Any:
            # a fixed share for each thread: the order of the sums does not depend on the clock
            if self.compiled:
                first, step = rank + size * worker, size * workers
                made = self._fused.share(block.numpy(), tile, first, step, flag)
                return self.torch_backend.asarray(made)
            share = itertools.takewhile(lambda _: not flag[0], pairs[worker::workers])
            return self._share(share, pieces, block, _Buffers(self, tile, V.device))

        if self._room is not None:
            self._room.begin()
        total, *sums = side_by_side(run, workers)
        if self._room is not None and not self._room.complete():
            self._tile_cache.clear()
            return self._product(V, tile, part)
        for other in sums:
            total += other
        return total

    def _share(
        self, pairs: Iterable[tuple[int, int]], pieces: list[Any], V: Any, buffers: _Buffers
    ) -> Any:
        """Products of some tiles with V (c, n) from the left and from the right, (c, n) float64."""
        import torch

        values_of, dtype = self._tiles(pieces, buffers), V.dtype
        columns = [V[:, part] for part, _ in pieces]
        transposes = [column.T for column in columns]
        # one sum for each side, each in the layout that its products come in
        high, low = (
            torch.zeros(s, dtype=torch.float64, device=V.device) for s in (V.T.shape, V.shape)
        )
        high_sums, low_sums = (
            [high[part] for part, _ in pieces],
            [low[:, part] for part, _ in pieces],
        )
        # every call gives up Python's lock and queues for it again: terse, without new buffers
        multiply = torch.mm
        for i, j in pairs:
            values = values_of(i, j)
            if values.dtype != dtype:  # "mixed"
                values = buffers.wide(values).copy_(values)
            high_sums[i].add_(multiply(values, transposes[j]))
            if i != j:
                low_sums[j].add_(multiply(columns[i], values))
        return low.add_(high.T)

    def _tiles(self, pieces: list[Any], buffers: _Buffers) -> Callable[[int, int], Any]:
        """What gives tile i, j of K: kept, or computed."""

        def compute(i: int, j: int) -> Any:
            (rows, left), (columns, right) = pieces[i], pieces[j]
            buffer = buffers.tile(rows.stop - rows.start, columns.stop - columns.start)
            return self.kernel.tile(left, right, same=i == j, out=buffer)

        def keep(i: int, j: int) -> Any:
            if (i, j) not in self._tile_cache:
                values = compute(i, j)
                # a tile that is the buffer itself would be overwritten by the next
                self._tile_cache[i, j] = values.clone() if buffers.holds(values) else values
            return self._tile_cache[i, j]

        return keep if self.keep else compute

    @cached_property
    def _tile_cache(self) -> dict[tuple[int, int], Any]:
        return {}


class _Buffers:
    """Buffers of one thread, used for every tile."""

    def __init__(self, operator: TiledOperator, tile: int, device: Any) -> None:
        import torch

        double = operator.precision == "float64"
        dtype = torch.float64 if double else torch.float32
        self._size = tile
        self._tile = torch.empty(tile * tile, dtype=dtype, device=device)
        self._full = self._tile.view(tile, tile)
        self._full_wide = None
        if operator.precision == "mixed":
            self._wide = torch.empty(tile * tile, dtype=torch.float64, device=device)
            self._full_wide = self._wide.view(tile, tile)

    def tile(self, height: int, width: int) -> Any:
        """A buffer (height, width)."""
        if height == width == self._size:
            return self._full
        return self._tile[: height * width].view(height, width)

    def holds(self, values: Any) -> bool:
        """Whether the values are in the buffer."""
        return values.untyped_storage().data_ptr() == self._tile.untyped_storage().data_ptr()

    def wide(self, like: Any) -> Any:
        """A buffer for values that multiply: the same as `like`, but for "mixed" in float64."""
        if self._full_wide is None:
            return like
        height, width = like.shape
        if height == width == self._size:
            return self._full_wide
        return self._wide[: height * width].view(height, width)


def _cast(rows: Rows, dtype: Any) -> Rows:
    def to(array: Any) -> Any:
        return None if array is None else array.to(dtype).contiguous()

    parts = tuple(_cast(part, dtype) for part in rows.parts)
    left = to(rows.left)
    right = left if rows.right is rows.left else to(rows.right)
    return replace(rows, left=left, right=right, norms=to(rows.norms), parts=parts)
