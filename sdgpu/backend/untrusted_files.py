"""Files that others sent: read whole and once, no device nor pipe, no more memory than they may ask for."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

__all__ = ["DEFLATE", "check_zip", "open_plain", "read_file", "read_npz"]

DEFLATE = 1032  # no stream of deflate unpacks to more times its size
_PLENTY = 1 << 30  # bytes that a file may unpack to
_RATIO = 100  # or so many times its own size, which no data that are worth keeping reach
_HEADERS: dict[tuple[int, int], Callable[[Any], tuple[Any, bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a plain file, or one that a link names; never wait for a pipe.

    Raises
    ------
    OSError
        If there is none, it may not be read, or it is no plain file; names it.
    """
    with open_plain(path) as file:
        return file.read()


def read_npz(
    path: str | os.PathLike[str], keys: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read arrays of an npz file: plain numbers and texts, never objects.

    Before an array is made, its header must agree with the sizes in the directory of the file, and those
    with the size of the file, so a small file cannot ask for much memory. The CRC-32 of every array is
    checked to its last byte.

    Parameters
    ----------
    path : path
    keys : names
        Of arrays; others are not read.

    Returns
    -------
    arrays : dict of array
        Those of the keys that the file has.
    names : list of str
        All that it has.

    Raises
    ------
    OSError
        If there is none, or it may not be read; names it.
    ValueError
        If it is damaged, no npz file, or one of the arrays holds objects; names `path` and the array.
    """
    with open_plain(path) as file:
        try:
            count = _count(file)
            with zipfile.ZipFile(file) as archive:
                if count is not None and count != len(archive.infolist()):
                    raise ValueError(
                        f"it should have {count} arrays, {len(archive.infolist())} are there"
                    )
                entries = {
                    entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()
                }
                selection = [entry for name, entry in entries.items() if name in keys]
                check_zip(selection, os.fstat(file.fileno()).st_size)
                arrays = {
                    entry.filename.removesuffix(".npy"): _array(archive, entry)
                    for entry in selection
                }
                return arrays, sorted(entries)
        except _DAMAGE as error:
            raise ValueError(
                f"{path} is no npz file of plain arrays, or a damaged one: {error or type(error).__name__}"
            ) from error


# what zipfile, zlib and NumPy make of bytes that are no archive of arrays; MemoryError: of a false size
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, TypeError, ValueError, KeyError, IndexError,
    OverflowError, AttributeError, NotImplementedError, RuntimeError, SyntaxError, MemoryError, TokenError,
)  # fmt: skip


def check_zip(entries: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Refuse entries of an archive of `size` bytes that unpack to more than such a file can hold.

    Raises
    ------
    ValueError
        Names the entry.
    """
    packed_bytes = unpacked_bytes = 0
    for info in entries:
        packed_bytes, unpacked_bytes = (
            packed_bytes + info.compress_size,
            unpacked_bytes + info.file_size,
        )
        limit = info.compress_size * (1 if info.compress_type == zipfile.ZIP_STORED else DEFLATE)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{info.filename} is packed by method {info.compress_type}, not deflate"
            )
        if packed_bytes > size or info.file_size > limit:
            raise ValueError(
                f"{info.filename} should have {info.file_size} bytes, more than a file of {size} holds"
            )
    if unpacked_bytes > max(_PLENTY, _RATIO * size):
        raise ValueError(
            f"it unpacks to {unpacked_bytes} bytes, {unpacked_bytes // max(size, 1)} times its size"
        )


def _count(file: BinaryIO) -> int | None:
    """How many entries the last record of an archive speaks of, which zipfile does not look at.

    Nor does zipfile mind a record that places the directory elsewhere: zeros there make an archive empty.
    """
    offset = max(0, os.fstat(file.fileno()).st_size - 22)
    file.seek(offset)
    record = file.read(22)
    count, size, start = struct.unpack_from("<HLL", record, 10) if len(record) == 22 else (0, 0, 0)
    if record[:4] != b"PK\x05\x06" or count == 0xFFFF or start == 0xFFFFFFFF:
        return None  # a comment follows, or the long form, where the sizes stand elsewhere
    if start + size != offset:
        raise ValueError("its directory is not where its last record says")
    return int(count)


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    name = info.filename
    with archive.open(info) as entry:
        version = np.lib.format.read_magic(entry)
        if version not in _HEADERS:
            raise ValueError(f"{name} has format {version} of npy, which plain arrays do not need")
        shape, _, dtype = _HEADERS[version](entry)
        if dtype.hasobject or dtype.names is not None:
            raise ValueError(f"{name} holds objects or records ({dtype}), not plain numbers")
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length  # whole numbers of Python: no overflow
        if min(shape, default=0) < 0 or nbytes != info.file_size - entry.tell():
            raise ValueError(
                f"{name} announces {nbytes} bytes of values and holds {info.file_size - entry.tell()}"
            )
    with archive.open(info) as entry:
        array = np.lib.format.read_array(entry, allow_pickle=False)
        if entry.read(1):  # to the end, where the CRC is compared
            raise ValueError(f"{name} is longer than its header says")
    return array


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a plain file to read, or one that a link names.

    Raises
    ------
    OSError
        If there is none, it may not be read, or it is no plain file; names it.
    """
    # a pipe would be waited for: opened without waiting, it is refused
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder: a file is wanted")
        raise OSError(errno.EINVAL, f"{path} is no plain file")
    return os.fdopen(handle, "rb")
