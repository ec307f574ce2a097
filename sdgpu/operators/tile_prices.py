"""What products by tiles cost, in seconds and bytes, and from where on they are worth compiling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.backend.rates import Rates
from sdgpu.kernels import Kernel
from sdgpu.kernels.kernel_matrices import SPARSE_TILE, summed_features

__all__ = [
    "FUSED_ROWS",
    "SPARSE_BUFFERS",
    "TILE_CPU",
    "TilePrices",
    "pays_to_compile",
    "sparse_pair_seconds",
    "stored_numbers",
]

TILE_CPU = 576  # rows of a tile; 1.3 MiB in float32: inside the cache of one core
FUSED_ROWS = 5000  # below, compiling for a quarter of a second costs more than it saves
SUMMED = 5  # features that are summed one by one take as long as another kernel value
#: Bytes of a tile of sparse rows: the product in CSR, what makes it dense, and the profile.
SPARSE_BUFFERS = 6 * 8 * SPARSE_TILE * SPARSE_TILE
PAIR, SHARED = 8e-9, 1e-9  # seconds of a product of sparse rows, and of an entry that both have


def pays_to_compile(kernel: Kernel, n: int, d: int) -> bool:
    """Whether products with n rows of d features are worth a compiled loop: by the work of a pass."""
    values = 1.0 + summed_features(kernel, d) / SUMMED
    return kernel.opaque is None and n * n * values >= FUSED_ROWS**2


def sparse_pair_seconds(d: int, entries: float) -> float:
    """Of the product of two sparse rows, whose entries are taken to be anywhere among d features."""
    return PAIR + SHARED * entries * entries / d


def stored_numbers(entries: float) -> int:
    """Numbers of 8 bytes that a row in CSR takes: values, and indices of half of that."""
    return int(np.ceil(1.5 * entries)) + 1


@dataclass(frozen=True)
class TilePrices:
    """Of products with n rows of d features.

    Attributes
    ----------
    n, d : int
    precision : {"float32", "mixed", "float64"}
    keep : bool
        Whether tiles are kept.
    compiled : bool
        Whether there is a compiled loop, which tiles that are kept do not need.
    entries : float or None
        Of a sparse row, in the mean.
    """

    n: int
    d: int
    precision: str
    keep: bool = False
    compiled: bool = False
    entries: float | None = None

    def peak_bytes(self, c: int, *, workers: int = 1, copies: int = 2) -> int:
        """Bytes of the ready rows, of the tiles with their profile, and of a product of c columns.

        `workers` threads have buffers and sums of their own; ready rows are `copies` times X (see
        :func:`sdgpu.kernels.row_preparation.row_copies`), made in float64 and then rounded.
        """
        n, size = self.n, 8 if self.precision == "float64" else 4
        sparse = self.entries is not None
        tile = min(SPARSE_TILE if sparse else TILE_CPU, n)
        tiles = size * n * (n + tile) // 2 if self.keep else 0
        buffer = SPARSE_BUFFERS if sparse else 3 * 8 * tile * tile
        buffers = workers * (buffer + 16 * n * c)  # sums of both sides
        if self.entries is not None:
            rows = 8 * copies * n * stored_numbers(self.entries)
            return tiles + buffers + rows + 24 * n * c
        copies += self.compiled and not self.keep  # the compiled loop has them packed too
        # those of a sum or product of kernels are rounded when all are made
        rows = copies * n * (self.d + 2) * (size if copies <= 2 or size == 8 else 8 + size)
        return tiles + buffers + rows + 24 * n * c

    def value_seconds(self, rates: Rates) -> float:
        """Of all kernel values: in every product, in the compiled loop if there is one, or kept once."""
        single, pairs = self.precision != "float64", self.n * self.n / 2
        if self.entries is None:
            products = rates.products32 if single else rates.products
            statistic = pairs * max(self.d - 8, 0) / products
        else:
            statistic = pairs * sparse_pair_seconds(self.d, self.entries)
        plain, compiled = (rates.powers32, rates.tiles32) if single else (rates.powers, rates.tiles)
        return pairs / (plain if self.keep else compiled) + statistic

    def multiply_seconds(self, columns: int, rates: Rates) -> float:
        """Of a product without kernel values: at half of the rate of large ones, kept at a quarter.

        The compiled loop multiplies at the whole rate, from the nearest cache.
        """
        n, keep = self.n, self.keep
        products = rates.products32 if self.precision == "float32" else rates.products
        if self.compiled and not keep:
            return n * n * columns / products
        seconds = (4 if keep else 2) * n * n * columns / products
        if self.precision == "mixed":
            seconds += 8 * n * n / 2 / rates.bandwidth
        size = 8 if self.precision == "float64" else 4
        return max(seconds, size * n * n / 2 / rates.bandwidth) if keep else seconds
