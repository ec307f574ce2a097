"""What a zarr store says of its arrays, looked through before zarr opens any of it.

The stores of others may ask for code (object arrays, pickle as a codec) or for memory that they do not
fill. Only arrays of numbers pass, with codecs that compress and do nothing else.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.rows.file_state import FolderState
from sdgpu.backend.rows.zarr_chunks import ChunkFiles, find_chunks
from sdgpu.backend.untrusted_files import read_file

__all__ = ["ArrayDescription", "check_array", "is_zarr", "store_members"]

_META = {3: "zarr.json", 2: ".zarray"}
_TYPES = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
}
_TYPES_2 = re.compile(r"[<>|=][fiub][1248]")
_PACKERS = {"gzip", "zstd", "blosc"}
_CODECS = {"bytes", "transpose", "crc32c", *_PACKERS}
_COMPRESSORS_2 = {"blosc", "zstd", "zlib", "gzip", "bz2", "lzma", "lz4"}
_PLENTY = 1 << 30  # bytes of a chunk
_RATIO = 100  # or so many times the size of the store


@dataclass(frozen=True)
class ArrayDescription:
    """What there is to know of an array.

    Attributes
    ----------
    shape : tuple of int
    chunks : tuple of int
        Shape of what lies in one file.
    unpacked : tuple of int
        Shape of what is unpacked at once: a part of a shard.
    kind : numpy.dtype
    packing : str or None
        The compressor; "shards" for many chunks in a file.
    trailer : int
        Bytes of a checksum at the end of a file.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    unpacked: tuple[int, ...]
    kind: np.dtype
    packing: str | None
    trailer: int = 0


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a folder has the files of a zarr store."""
    return any(Path(path, name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def store_members(state: FolderState) -> tuple[int, list[str] | None]:
    """Format of a store, and the names of its arrays; None if it is one array.

    Raises
    ------
    ValueError
        If it is no zarr store, or a damaged one.
    """
    zarr_format = 3 if "zarr.json" in state.files else 2
    if not state.files.keys() & {"zarr.json", ".zarray", ".zgroup"}:
        raise ValueError(f"{state.path} is no zarr store: it has neither zarr.json nor .zgroup")
    if zarr_format == 3:
        is_array = _document(state.path, "zarr.json").get("node_type") == "array"
    else:
        is_array = ".zarray" in state.files
    if is_array:
        return zarr_format, None
    names = {name.partition("/")[0] for name in state.files if name.count("/") == 1}
    return zarr_format, sorted(n for n in names if f"{n}/{_META[zarr_format]}" in state.files)


def check_array(state: FolderState, name: str, zarr_format: int) -> ChunkFiles:
    """Look through the description of an array; name "" is a store that is one array.

    Returns
    -------
    ChunkFiles
        Its files, whose heads are to be looked at before they are unpacked.

    Raises
    ------
    TypeError
        If it holds no real numbers.
    ValueError
        For codecs that do more than compress, for chunks larger than such a store may ask for, and if
        chunks are missing.
    """
    place = f"{name} of {state.path}" if name else state.path
    prefix = f"{name}/" if name else ""
    document = _document(state.path, prefix + _META[zarr_format])
    try:
        array = (_format_3 if zarr_format == 3 else _format_2)(document, place)
    except KeyError as error:
        raise ValueError(f"{place} is refused: its description has no {error}") from error
    nbytes = math.prod(array.unpacked) * array.kind.itemsize  # whole numbers of Python: no overflow
    size = sum(size for size, _ in state.files.values())
    if nbytes > max(_PLENTY, _RATIO * size):
        raise ValueError(
            f"{place} is refused: a chunk should have {nbytes:,} bytes, more than a store of {size:,} may "
            "ask for"
        )
    grid = tuple(-(-n // rows) for n, rows in zip(array.shape, array.chunks, strict=True))
    sizes = ((file, size) for file, (size, _) in state.files.items())
    files = find_chunks(sizes, grid, prefix=prefix, place=place)
    rows = array.chunks[0] if array.chunks else 1
    return ChunkFiles(
        state.path, files, grid, rows, nbytes, packing=array.packing, trailer=array.trailer
    )


def _format_3(document: dict[str, Any], place: str) -> ArrayDescription:
    if document.get("node_type") != "array" or document.get("zarr_format") != 3:
        raise ValueError(f"{place} is refused: it is no array of format 3")
    kind = document.get("data_type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise TypeError(f"{place} holds {kind}, not plain real numbers: store it as float64")
    grid, keys = (_entry(document, key, "name") for key in ("chunk_grid", "chunk_key_encoding"))
    if grid != "regular" or keys not in ("default", "v2"):
        raise ValueError(f"{place} is refused: its chunks lie {grid}, {keys}")
    if document.get("storage_transformers"):
        raise ValueError(f"{place} is refused: it has storage transformers")
    chunks = _entry(document, "chunk_grid", "configuration", "chunk_shape")
    codecs = document.get("codecs")
    packing, trailer, shard_parts = _check_codecs(codecs, place, shards=True)
    shapes = {"shape": document.get("shape"), "chunks": chunks, "unpacked": shard_parts or chunks}
    return ArrayDescription(
        *_checked_shapes(place, shapes), kind=np.dtype(kind), packing=packing, trailer=trailer
    )


def _check_codecs(codecs: Any, place: str, *, shards: bool) -> tuple[str | None, int, Any]:
    """Refuse codecs that do more than compress once; packing, trailer, shape of the parts of a shard."""
    if not isinstance(codecs, list) or not codecs:
        raise ValueError(f"{place} is refused: its codecs are {codecs}")
    names = [codec.get("name") if isinstance(codec, dict) else codec for codec in codecs]
    if shards and names == ["sharding_indexed"]:
        shard = _entry(codecs[0], "configuration")
        packing, _, _ = _check_codecs(_entry(shard, "codecs"), place, shards=False)
        _check_codecs(_entry(shard, "index_codecs"), place, shards=False)
        if packing == "blosc":  # reads behind the end, and the heads of parts are not looked at
            raise ValueError(f"{place} is refused: blosc in shards is not read, write it with zstd")
        return "shards", 0, _entry(shard, "chunk_shape")
    for name in names:
        if not isinstance(name, str) or name not in _CODECS:
            raise ValueError(
                f"{place} is refused: its codec {name} is none of {', '.join(sorted(_CODECS))}"
            )
    trailer = 4 if names[-1] == "crc32c" else 0
    packers = [name for name in names if name in _PACKERS]
    if len(packers) > 1 or "crc32c" in names[:-1]:
        raise ValueError(
            f"{place} is refused: its codecs {', '.join(map(str, names))} pack it twice"
        )
    return packers[0] if packers else None, trailer, None


def _format_2(document: dict[str, Any], place: str) -> ArrayDescription:
    kind, filters, compressor = (
        _entry(document, key) for key in ("dtype", "filters", "compressor")
    )
    if document.get("zarr_format") != 2:
        raise ValueError(f"{place} is refused: it is no array of format 2")
    if not isinstance(kind, str) or not _TYPES_2.fullmatch(kind):
        raise TypeError(f"{place} holds {kind}, not plain real numbers: store it as float64")
    if filters:
        raise ValueError(f"{place} is refused: it has the filters {filters}")
    packing = None if compressor is None else _entry(compressor, "id")
    if packing is not None and (not isinstance(packing, str) or packing not in _COMPRESSORS_2):
        raise ValueError(
            f"{place} is refused: its compressor {packing} is none of {', '.join(sorted(_COMPRESSORS_2))}"
        )
    try:
        dtype = np.dtype(kind)
    except TypeError as error:
        raise TypeError(f"{place} holds {kind}, which is no type of numbers") from error
    chunks = document.get("chunks")
    shapes = {"shape": document.get("shape"), "chunks": chunks, "unpacked": chunks}
    return ArrayDescription(*_checked_shapes(place, shapes), kind=dtype, packing=packing)


def _checked_shapes(
    place: str, shapes: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of the same number of axes: whole numbers, and chunks of at least one."""
    for name, shape in shapes.items():
        least = 0 if name == "shape" else 1
        if not isinstance(shape, list) or not all(type(n) is int and n >= least for n in shape):
            raise ValueError(f"{place} is refused: its {name} is {shape}")
    if len({len(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"{place} is refused: its chunks have other axes than it, {shapes}")
    return tuple(shapes["shape"]), tuple(shapes["chunks"]), tuple(shapes["unpacked"])


def _entry(document: Any, *keys: str) -> Any:
    """An entry of nested dictionaries; KeyError where there is none."""
    for key in keys:
        if not isinstance(document, dict):
            raise KeyError(key)
        document = document[key]
    return document


def _document(folder: str, name: str) -> dict[str, Any]:
    try:
        document = json.loads(read_file(Path(folder, name)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder} is damaged: {name} cannot be read ({error})") from error
    except OSError as error:
        raise ValueError(f"{folder} is damaged: {name} is missing ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{folder} is damaged: {name} is no dictionary")
    return document
