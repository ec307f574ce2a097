"""Chunks of zarr arrays as files: all there, and of the sizes that their heads announce.

Blosc reads behind the end of a chunk that is cut off, and unpacks it to whatever memory holds there. Others
make room for what a head says before they look further. So heads are read first.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdgpu.backend.zarr_layout import zstd_size

__all__ = ["ChunkFiles", "find_chunks"]

_KEY = re.compile(r"(?:c[/.])?(\d+(?:[/.]\d+)*)")
_HEAD = 18  # bytes, the longest head: of Zstandard


@dataclass(frozen=True)
class ChunkFiles:
    """The files of an array.

    Attributes
    ----------
    folder : str
    files : mapping
        Position in the grid of chunks to (name in the folder, bytes).
    grid : tuple of int
        Chunks along each axis.
    rows : int
        Of a chunk.
    nbytes : int
        Of a chunk when it is unpacked.
    packing : str or None
        The compressor; "shards" for many chunks in a file.
    trailer : int
        Bytes of a checksum at the end.
    """

    folder: str
    files: Mapping[tuple[int, ...], tuple[str, int]]
    grid: tuple[int, ...]
    rows: int
    nbytes: int
    packing: str | None
    trailer: int

    def check(self, start: int, stop: int) -> None:
        """Hold the heads of the chunks with rows start .. stop - 1 against what they should be.

        Raises
        ------
        ValueError
            Names a chunk whose bytes are too few, or too many.
        OSError
            If it is gone.
        """
        first, last = start // self.rows, (stop - 1) // self.rows
        across = (range(count) for count in self.grid[1:])
        for position in itertools.product(range(first, last + 1), *across):
            name, size = self.files[position]
            with open(Path(self.folder, name), "rb", buffering=0) as file:
                announced, stored = self._sizes(file.read(_HEAD), size - self.trailer)
            if announced != self.nbytes or stored != size - self.trailer:
                raise ValueError(
                    f"{name} should unpack {size - self.trailer:,} bytes to {self.nbytes:,}, its head says "
                    f"{stored:,} and {announced:,}"
                )

    def _sizes(self, head: bytes, size: int) -> tuple[int, int]:
        """Bytes unpacked and packed that a head announces; what it does not say is as it should be."""
        if self.packing is None:
            return size, size
        if self.packing == "blosc":
            return int.from_bytes(head[4:8], "little"), int.from_bytes(head[12:16], "little")
        if self.packing == "lz4":
            return int.from_bytes(head[:4], "little"), size
        announced = zstd_size(head) if self.packing == "zstd" else -1
        return self.nbytes if announced < 0 else announced, size


def find_chunks(
    files: Iterable[tuple[str, int]], grid: tuple[int, ...], *, prefix: str, place: str
) -> dict[tuple[int, ...], tuple[str, int]]:
    """Names and bytes of the chunks of an array.

    Parameters
    ----------
    files : iterable of (str, int)
        Names in the folder, and bytes.
    grid : tuple of int
        Chunks along each axis.
    prefix : str
        Of the names that belong to the array.
    place : str
        The array, for messages.

    Raises
    ------
    ValueError
        If chunks are missing: zarr would make numbers up, the fill value.
    """
    chunks: dict[tuple[int, ...], tuple[str, int]] = {}
    for name, size in files:
        key = _KEY.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
        position = tuple(map(int, re.split(r"[/.]", key[1]))) if key else ()
        has_axes = len(position) == len(grid)
        if has_axes and all(i < count for i, count in zip(position, grid, strict=True)):
            chunks[position] = (name, size)
    missing = math.prod(grid) - len(chunks)
    if missing > 0:
        raise ValueError(
            f"{place}: {missing:,} of {math.prod(grid):,} chunks are missing: copy the store again, or "
            "write it with write_empty_chunks=True if they hold nothing but the fill value"
        )
    return chunks
