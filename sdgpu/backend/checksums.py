"""Checksums of arrays, bytes and texts: what files and fingerprints are compared by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xxhash

__all__ = ["digest", "row_checksums"]

_BLOCK = 1 << 22  # bytes that are made contiguous at a time


def digest(*parts: Any) -> str:
    """Checksum of arrays, bytes and texts, against accidental damage.

    XXH3 of 128 bits: as fast as memory can be read (20 GB/s, SHA-256 1.8 GB/s, CRC-32 2.6 GB/s on one
    core of an AMD EPYC), so that it disappears beside writing to a disk. It is no defence against someone
    who alters a file on purpose and its checksum with it; neither would SHA-256 be.

    Parameters
    ----------
    *parts : array, bytes, memoryview or str
        Arrays of NumPy count with dtype and shape, not with their order in memory; no copy is made but of
        4 MiB at a time where they are not contiguous. The order and the bounds of the parts count.

    Returns
    -------
    str
        "xxh3:" and 32 hexadecimal digits.

    Raises
    ------
    TypeError
        For arrays of objects.
    """
    hasher = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, np.ndarray):
            if part.dtype.hasobject:
                raise TypeError(f"no checksum of an array of {part.dtype}")
            dtype = part.dtype.newbyteorder("<")
            hasher.update(f"{dtype.str} {part.shape};".encode())
            for block in _blocks(part):
                contiguous = block.astype(dtype, order="C", copy=False)
                hasher.update(contiguous.reshape(-1).view(np.uint8).data)
        else:
            raw = part.encode() if isinstance(part, str) else memoryview(part).cast("B")
            hasher.update(f"{'text' if isinstance(part, str) else 'bytes'} {len(raw)};".encode())
            hasher.update(raw)
    return f"xxh3:{hasher.hexdigest()}"


def row_checksums(array: np.ndarray) -> np.ndarray:
    """A checksum (n,), uint64, of the bytes of each row of an array (n, ..); never 0.

    XXH3 of 64 bits: two given rows that differ have the same one with probability 2^-64. A row takes 0.13
    microseconds and its bytes 40 GB/s from the cache, 10 GB/s from memory (one core of an AMD EPYC).

    Raises
    ------
    TypeError
        For arrays of objects.
    """
    if array.dtype.hasobject:
        raise TypeError(f"no checksums of an array of {array.dtype}")
    if not array.size:  # rows without bytes are all alike
        return np.ones(len(array), dtype=np.uint64)
    rows: Any = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
    sums = [xxhash.xxh3_64_intdigest(row) for row in rows]
    return np.maximum(np.array(sums, dtype=np.uint64), np.uint64(1))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in C order, whole if it lies so, or else in slabs of some MiB."""
    if array.flags.c_contiguous or array.ndim == 0 or array.nbytes <= _BLOCK:
        yield array
        return
    rows = max(1, _BLOCK // max(1, array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        if rows == 1:  # a slab of one row may be large itself
            yield from _blocks(array[start])
        else:
            yield array[start : start + rows]
