"""IDX, the format of MNIST and its kin: a head of a few bytes, then one array of big-endian numbers."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import Any

import numpy as np

from sdgpu.backend.untrusted_files import DEFLATE, open_plain

__all__ = ["read_idx"]

_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, packed by gzip or not.

    The size that its head announces is held against that of the file before an array is made, and the
    checksum of gzip is read to its end.

    Parameters
    ----------
    path : path

    Returns
    -------
    array
        In the byte order of this machine.

    Raises
    ------
    OSError
        If there is none, or it may not be read; names it.
    ValueError
        If it is no IDX file, or a damaged one; names it.

    References
    ----------
    LeCun, Cortes and Burges, The MNIST database, http://yann.lecun.com/exdb/mnist.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            if not packed:
                return _read(file, size)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(unpacked, DEFLATE * size)
        except (ValueError, EOFError, OSError, struct.error, zlib.error, MemoryError) as error:
            raise ValueError(f"{path} is no IDX file, or a damaged one: {error}") from error


def _read(file: Any, most: int) -> np.ndarray:
    zeros, code, ndim = struct.unpack(">HBB", file.read(4))
    if zeros or code not in _TYPES or not 1 <= ndim <= 8:
        raise ValueError("it does not begin as one")
    shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
    dtype = np.dtype(_TYPES[code])
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > most:
        raise ValueError(f"it announces {nbytes} bytes of values, more than it can hold")
    array = np.empty(shape, dtype=dtype)
    if nbytes and _fill(file, array.reshape(-1).view(np.uint8).data) != nbytes:
        raise ValueError(f"it announces {nbytes} bytes of values and holds fewer")
    if file.read(1):
        raise ValueError(f"it announces {nbytes} bytes of values and holds more")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _fill(file: Any, room: memoryview) -> int:
    done = 0
    while done < len(room):
        count = file.readinto(room[done:])
        if not count:
            break
        done += count
    return done
