"""Arrays in a safetensors file with a checksum of all that it says: whole or not there, never executed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdgpu.backend.checksums import digest
from sdgpu.backend.storage import atomic_file

__all__ = ["fault_in_words", "read_tensors", "save_tensors", "tensor_path", "write_tensors"]

_BLANK = f"xxh3:{'':-<32}"
_DAMAGE = (
    SafetensorError,
    KeyError,
    TypeError,
    ValueError,
    MemoryError,
    OSError,
    RecursionError,  # lists in lists
)


def tensor_path(path: str | os.PathLike[str]) -> Path:
    """The path of a ``.safetensors`` file.

    Raises
    ------
    ValueError
        For another ending.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path={str(target)!r} must end in .safetensors")
    return target


def write_tensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write arrays and plain values in place of what stood at `path`.

    Parameters
    ----------
    path : Path
    arrays : mapping of name to array
    metadata : mapping
        Of what JSON can hold; a text for each name is stored.

    Raises
    ------
    OSError
        If the disk is full, say: names the file; the previous one is untouched.
    """
    with atomic_file(path) as temporary:
        save_tensors(temporary, arrays, metadata)


def save_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """As :func:`write_tensors`, a new file where nothing stands yet, which an error may leave half done.

    Raises
    ------
    OSError
    """
    arrays = {name: _plain(array) for name, array in arrays.items()}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    with ThreadPoolExecutor(1) as pool:
        # computed while the disk writes, and put in its place afterwards: else 6 % of a save
        checksum = pool.submit(_checksum, arrays, texts)
        try:
            save_file(arrays, path, metadata={**texts, "checksum": _BLANK})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        _fill_in(path, checksum.result())


def read_tensors(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What :func:`write_tensors` wrote.

    Parameters
    ----------
    path : Path
    what : str
        For the message of a damaged file: "checkpoint", "moments".

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ValueError
        If it is damaged, or was not written by :func:`write_tensors`.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise OSError(errno.EINVAL, "this is no plain file", str(path))
    path.open("rb").close()  # what may not be read is not damaged
    try:
        with safe_open(path, framework="numpy") as file:
            texts = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = texts.pop("checksum", None)
        if checksum is None:
            raise ValueError("it has no checksum: an older version wrote it, or another program")
        if checksum != _checksum(arrays, texts):
            raise ValueError("its numbers are not those that were written")
        return arrays, {name: json.loads(text) for name, text in texts.items()}
    except _DAMAGE as error:
        raise ValueError(f"{what} {path} is damaged ({error}): remove it to start again") from error


def _plain(array: np.ndarray) -> np.ndarray:
    """The array as the file holds it: in C order, of the machine's byte order."""
    if array.dtype.hasobject:
        raise TypeError(f"arrays of {array.dtype} are no numbers")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def fault_in_words(error: Exception) -> str:
    """What a file lacks or says wrongly: of a KeyError the name alone would be no sentence."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _fill_in(path: Path, checksum: str) -> None:
    """Put the checksum where the header was left blank."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        place = file.read(length).index(_BLANK.encode())
        file.seek(8 + place)
        file.write(checksum.encode())


def _checksum(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    """Of all names, values and numbers, in the order of the names."""
    parts: list[Any] = []
    for name in sorted(texts):
        parts += [name, texts[name]]
    for name in sorted(arrays):
        array = arrays[name]
        parts += [name, f"{array.dtype} {array.shape}", array]
    return digest(*parts)
