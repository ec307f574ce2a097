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

from sdgpu.backend.arrays import dtype_name, inputs, new_rows, slices
from sdgpu.backend.backends import Backend, TorchBackend, backend_of, torch_beside
from sdgpu.backend.checks import choice, integer
from sdgpu.backend.conversion import column_names
from sdgpu.backend.copying import without_caches
from sdgpu.backend.rates import Rates
from sdgpu.backend.threads import count, side_by_side
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import column_means
from sdgpu.kernels.row_preparation import ready_rows
from sdgpu.operators.cross import Cross
from sdgpu.operators.expansion import Expansion
from sdgpu.operators.slopes import KernelSlopes

__all__ = ["PRECISIONS", "TiledOperator"]

#: What evaluates and what multiplies; sums across tiles are always float64.
PRECISIONS = ("float32", "mixed", "float64")

TILE_CPU = 576  # 1.3 MiB in float32: inside the cache of one core
TILE_WIDE = 384  # 1.1 MiB in float64
TILE_FUSED = 256  # of the compiled loop: statistics of a tile lie in half of a core's second cache
TILE_GPU = 8192
FUSED_ROWS = 5000  # below, compiling for a quarter of a second costs more than it saves


@dataclass(frozen=True, eq=False)
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
    keep : bool, default False
        Keep the tiles: n^2 / 2 numbers in the precision of the evaluation, made at the first product.
    triton : bool, default False
        Products, those with new rows too, by :mod:`sdgpu.operators.fused_cuda` instead of torch's passes:
        on CUDA, in "float32" or "mixed", for every kernel with a formula. Off until a GPU has shown it to
        be right and faster.
    workers : int, optional
        Threads of a product, at most; as many as torch may use by default.
    checked : bool, default False
        Whether X has been checked already, and is an array of floats.

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

    _names: tuple[str, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.kernel.is_precomputed:
            raise TypeError("a precomputed kernel is a matrix already: use DenseOperator")
        X = self.X if self.checked else inputs(self.X, "X")
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

    @staticmethod
    def peak_bytes(
        n: int,
        d: int,
        c: int,
        precision: str,
        *,
        keep: bool = False,
        workers: int = 1,
        copies: int = 2,
    ) -> int:
        """Bytes of the ready rows, of the tiles with their profile, and of a product of c columns.

        `workers` threads have buffers and sums of their own; ready rows are `copies` times X (see
        :func:`sdgpu.kernels.row_preparation.row_copies`), made in float64 and then rounded.
        """
        size = 8 if precision == "float64" else 4
        tile = min(TILE_CPU, n)
        tiles = size * n * (n + tile) // 2 if keep else 0
        buffers = workers * (3 * 8 * tile * tile + 16 * n * c)  # sums of both sides
        copies += n >= FUSED_ROWS and not keep  # the compiled loop has them packed too
        # those of a sum or product of kernels are rounded when all are made
        rows = copies * n * (d + 2) * (size if copies <= 2 or size == 8 else 8 + size)
        return tiles + buffers + rows + 24 * n * c

    @staticmethod
    def value_seconds(n: int, d: int, precision: str, rates: Rates, *, keep: bool = False) -> float:
        """Of all kernel values: in every product, in the compiled loop if there is one, or kept once."""
        single, pairs = precision != "float64", n * n / 2
        statistic = pairs * max(d - 8, 0) / (rates.products32 if single else rates.products)
        plain, compiled = (rates.powers32, rates.tiles32) if single else (rates.powers, rates.tiles)
        return pairs / (plain if keep else compiled) + statistic

    @staticmethod
    def multiply_seconds(
        n: int, columns: int, precision: str, rates: Rates, *, keep: bool = False
    ) -> float:
        """Of a product without kernel values: at half of the rate of large ones, kept at a quarter.

        The compiled loop multiplies at the whole rate, from the nearest cache.
        """
        products = rates.products32 if precision == "float32" else rates.products
        if n >= FUSED_ROWS and not keep:
            return n * n * columns / products
        seconds = (4 if keep else 2) * n * n * columns / products
        if precision == "mixed":
            seconds += 8 * n * n / 2 / rates.bandwidth
        size = 8 if precision == "float64" else 4
        return max(seconds, size * n * n / 2 / rates.bandwidth) if keep else seconds

    @cached_property
    def rows(self) -> Rows:
        """The rows of X, made ready in float64 and then rounded to the evaluation precision."""
        return self._ready_rows(self.torch_backend.asarray(self.X))

    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c), float64, in the library of X."""
        block = self.torch_backend.asarray(V).T.contiguous()  # (c, n)
        tile = self._size
        while True:
            try:
                return self.backend.asarray(self._product(block, tile).T)
            except RuntimeError as error:  # torch's out-of-memory error is one
                if "out of memory" not in str(error) or tile <= 256:
                    raise
                tile //= 2
                self._halve(tile)

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as an operator (m, n); its blocks come in the library of X."""
        d = int(self.X.shape[1])
        new = new_rows(X_new, "X_new", self.X, columns=self._names, features=d, empty=True)
        rows = self._ready_rows(self.torch_backend.asarray(new))
        fused = partial(self._fused_cross, rows) if self.triton else None
        return Cross(self.kernel, rows, self.rows, self._size, self.backend, fused)

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
        import torch

        indices = torch.as_tensor(np.asarray(idx, dtype=np.int64), device=self.torch_backend.device)
        subset = self._ready_rows(self.torch_backend.asarray(self.X)[indices])
        cross = Cross(self.kernel, subset, self.rows, self._size, self.backend)
        return cross.dense().T

    def _check_triton(self) -> None:
        from sdgpu.operators.fused_cuda import why_no_formula, why_not

        reason = why_not(self.torch_backend.device)
        if not reason and self.precision == "float64":
            reason = "values are float32, precision='float64' is not: use 'float32' or 'mixed'"
        if not reason and self.keep:
            reason = "keep=True keeps tiles, and it has none: leave one of them False"
        reason = reason or why_no_formula(self.kernel, self.rows)
        if reason:
            raise ValueError(f"triton=True cannot be used: {reason}")

    @property
    def _size(self) -> int:
        """Rows of a tile."""
        default = TILE_WIDE if self.precision == "float64" else TILE_CPU
        if self._fused is not None:
            default = TILE_FUSED
        default = default if self.torch_backend.tile < 1024 else TILE_GPU
        return max(1, min(self.tile or default, self.n, *self._halved_sizes))

    def _halve(self, tile: int) -> None:
        """Smaller tiles from now on; those that are kept have the old size."""
        self._halved_sizes.append(tile)
        self._tile_cache.clear()
        self.__dict__.pop("_pieces", None)

    @cached_property
    def _halved_sizes(self) -> list[int]:
        return []

    @property
    def backend(self) -> Backend:
        return backend_of(self.X)

    @property
    def torch_backend(self) -> TorchBackend:
        return torch_beside(backend_of(self.X))

    @cached_property
    def _centre(self) -> Any:
        return column_means(self.torch_backend.asarray(self.X))

    def _ready_rows(self, X: Any) -> Rows:
        import torch

        if self.precision == "float64":
            return ready_rows(self.kernel, X, self._centre)
        return ready_rows(self.kernel, X, self._centre, partial(_cast, dtype=torch.float32))

    @cached_property
    def _pieces(self) -> list[tuple[slice, Rows]]:
        """The rows of every block."""
        return [(part, self.rows[part]) for part in slices(self.n, self._size)]

    @property
    def compiled(self) -> bool:
        """Whether products are one compiled loop (:mod:`sdgpu.operators.fused_cpu`)."""
        return self._fused is not None and not self.keep

    @cached_property
    def _fused(self) -> Any:
        """The compiled loop on the CPU (:mod:`sdgpu.operators.fused_cpu`), where there is one."""
        if self.n < FUSED_ROWS:
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

    def _product(self, V: Any, tile: int) -> Any:
        """(c, n) float64 -> (c, n) float64."""
        import torch

        if self.triton:
            return self._fused_cuda.gram(V.to(torch.float32) if self.precision == "float32" else V)
        pieces = self._pieces
        block = V if self.precision != "float32" else V.to(torch.float32)
        pairs = [(i, j) for i in range(len(pieces)) for j in range(i + 1)]
        workers = min(count(), self.workers or count(), len(pairs)) if V.device.type == "cpu" else 1

        def run(worker: int, flag: np.ndarray) -> Any:
            # a fixed share for each thread: the order of the sums does not depend on the clock
            if self.compiled:
                made = self._fused.share(block.numpy(), tile, worker, workers, flag)
                return self.torch_backend.asarray(made)
            share = itertools.takewhile(lambda _: not flag[0], pairs[worker::workers])
            return self._share(share, pieces, block, _Buffers(self, tile, V.device))

        total, *sums = side_by_side(run, workers)
        for part in sums:
            total += part
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
