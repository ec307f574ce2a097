"""The layout of the zarr stores that we write: known before any of it is opened, sealed by checksums.

A store is a folder with ``zarr.json``, and for each variable a folder with ``zarr.json`` and its values in
one piece ``c/0/..``, format 3, uncompressed. The attributes of the store hold the size and checksum of
every file. Nothing else may lie in it: no link, no other format, no codec that could be made to run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.checksums import digest
from sdgpu.backend.untrusted_files import read_file

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "SEAL",
    "check_ours",
    "check_store",
    "coded_texts",
    "decoded_texts",
    "seal_store",
    "zstd_size",
]

#: Attribute of a variable of texts that holds them: its numbers are places in this list.
LABELS = "labels"
#: Attribute of the store that holds the checksums.
SEAL = "sdgpu"
_VERSION = 1
_ROOT = "zarr.json"
_PLACE = re.compile(r"(?P<name>[^/]+)/(zarr\.json|c(/0)*)")
_TYPES = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}
_PARTS = {
    "shape",
    "data_type",
    "chunk_grid",
    "chunk_key_encoding",
    "fill_value",
    "codecs",
    "attributes",
    "dimension_names",
    "zarr_format",
    "node_type",
    "storage_transformers",
}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_UNSEALED = (
    1 << 26
)  # bytes of variables of one value throughout, which older versions did not store


def seal_store(files: Mapping[str, np.ndarray]) -> dict[str, bytes | np.ndarray]:
    """Add the checksums of all files (name to bytes) to the attributes of the store."""
    root = json.loads(files[_ROOT].tobytes())
    contents = {name: content for name, content in files.items() if name != _ROOT}
    checksums = {name: [len(content), digest(content.data)] for name, content in contents.items()}
    seal = {"version": _VERSION, "root": digest(_canonical(root)), "files": checksums}
    root.setdefault("attributes", {})[SEAL] = seal
    return {**contents, _ROOT: json.dumps(root, indent=2).encode()}


def coded_texts(dataset: xr.Dataset) -> xr.Dataset:
    """Variables of texts as places in a list of the different ones, an attribute: stores hold numbers."""
    coded = {}
    for name, variable in dataset.variables.items():
        if variable.dtype.kind == "U":
            labels, places = np.unique(variable.values, return_inverse=True)
            attrs = {**variable.attrs, LABELS: labels.tolist()}
            numbers = places.reshape(variable.shape).astype(np.int32)
            coded[name] = (variable.dims, numbers, attrs)
    return dataset.assign_coords(
        {name: coded[name] for name in coded if name in dataset.coords}
    ).assign({name: coded[name] for name in coded if name not in dataset.coords})


def decoded_texts(dataset: xr.Dataset) -> xr.Dataset:
    """The texts that :func:`coded_texts` has made numbers of.

    Raises
    ------
    ValueError
        For labels that are no texts, and places beyond them.
    """
    texts = {}
    for name, variable in dataset.variables.items():
        labels = variable.attrs.get(LABELS)
        if labels is None:
            continue
        places, labels = variable.values, np.atleast_1d(np.asarray(labels, dtype=object))
        if not all(isinstance(label, str) for label in labels) or variable.dtype.kind not in "iu":
            raise ValueError(f"the labels of {name} are no texts")
        if places.size and not 0 <= places.min() <= places.max() < len(labels):
            raise ValueError(f"{name} has places beyond its {len(labels)} labels")
        attrs = {key: value for key, value in variable.attrs.items() if key != LABELS}
        values = labels[places].astype(str) if places.size else np.empty(places.shape, dtype="U1")
        texts[name] = (variable.dims, values, attrs)
    return dataset.assign_coords(
        {name: texts[name] for name in texts if name in dataset.coords}
    ).assign({name: texts[name] for name in texts if name not in dataset.coords})


def check_ours(folder: Path) -> None:
    """Check that a folder is a store that this package wrote and nothing more, so that it may be replaced.

    Raises
    ------
    ValueError
        Names what else it is or holds.
    """
    files = _list(folder)
    root = _json(folder, _ROOT)
    attributes = root.get("attributes")
    sealed = isinstance(attributes, dict) and SEAL in attributes
    if not sealed and f"train_mse/{_ROOT}" not in files:  # which older versions always wrote
        raise ValueError(f"{folder} is a zarr store with other contents")


def check_store(folder: Path) -> bool:
    """Check all of a store before it is opened: files, checksums, layout. False if it has no checksums.

    Raises
    ------
    ValueError
        Names the folder and what is damaged, missing or foreign.
    """
    files = _list(folder)
    root = _json(folder, _ROOT)
    attributes = root.get("attributes", {})
    seal = attributes.pop(SEAL, None) if isinstance(attributes, dict) else None
    if seal is not None:
        _check_seal(folder, files, root, seal)
    _expect(folder, _ROOT, root, node_type="group", zarr_format=3)
    if root.keys() - {"attributes", "zarr_format", "node_type"} and root.get(
        "consolidated_metadata"
    ):
        raise ValueError(f"{folder} is refused: {_ROOT} holds more than a group's attributes")
    names = {name.partition("/")[0] for name in files if name != _ROOT}
    unstored_bytes = sum(
        _check_array(folder, name, files, sealed=seal is not None) for name in sorted(names)
    )
    if unstored_bytes > _UNSEALED:
        raise ValueError(
            f"{folder} is refused: {unstored_bytes} bytes of its variables are not in it"
        )
    return seal is not None


def _list(folder: Path) -> set[str]:
    """Names of all files; nothing but files of the layout may be there."""
    files = set()
    for directory, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(directory, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise ValueError(f"{folder} holds the link {relative}, which leads elsewhere")
            if name in folders:
                continue
            if not path.is_file() or not (relative == _ROOT or _PLACE.fullmatch(relative)):
                raise ValueError(f"{folder} holds {relative}, which is no part of such a store")
            files.add(relative)
    if _ROOT not in files:
        raise ValueError(f"{folder} is no zarr store of format 3: {_ROOT} is missing")
    return files


def _check_seal(folder: Path, files: set[str], root: Any, seal: Any) -> None:
    try:
        checksums, root_checksum, version = dict(seal["files"]), seal["root"], seal["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: its checksums cannot be read ({error})") from error
    if version != _VERSION:
        raise ValueError(f"{folder} has format {version}: this version reads {_VERSION}")
    problems = [f"{name} is missing" for name in sorted(checksums.keys() - files)]
    problems += [f"{name} is too many" for name in sorted(files - checksums.keys() - {_ROOT})]
    for name in sorted(files & checksums.keys()):
        content = read_file(folder / name)
        if [len(content), digest(content)] != checksums[name]:
            problems.append(f"{name} is not what was written")
    if digest(_canonical(root)) != root_checksum:
        problems.append(f"the attributes in {_ROOT} are not what was written")
    if problems:
        raise ValueError(f"{folder} is damaged: {'; '.join(problems)}")


def _check_array(folder: Path, name: str, files: set[str], *, sealed: bool) -> int:
    """Hold one variable against the layout; the bytes that it has without being stored."""
    meta_file = f"{name}/{_ROOT}"
    if meta_file not in files:
        raise ValueError(f"{folder} is damaged: {meta_file} is missing")
    meta = _json(folder, meta_file)
    _expect(folder, meta_file, meta, node_type="array", zarr_format=3)
    shape, kind = meta.get("shape"), meta.get("data_type")
    valid_shape = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    if not valid_shape or not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{folder} is refused: {name} has values of type {kind}, shape {shape}")
    codecs, dims = meta.get("codecs"), meta.get("dimension_names")
    compressed = isinstance(codecs, list) and len(codecs) == 2 and _is_zstd(codecs[1])
    byte_codecs = [_BYTES] if np.dtype(kind).itemsize > 1 else [_BYTES, {"name": "bytes"}]
    plain = isinstance(codecs, list) and bool(codecs) and (codecs[0] in byte_codecs)
    if not plain or not (len(codecs) == 1 or (compressed and not sealed)):
        raise ValueError(f"{folder} is refused: {name} is stored by the codecs {codecs}")
    if compressed is sealed:
        raise ValueError(f"{folder} is damaged: its checksums are missing")
    _expect(
        folder,
        meta_file,
        meta,
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": shape}},
        chunk_key_encoding={"name": "default", "configuration": {"separator": "/"}},
    )
    names = dims or []  # a single number has none
    valid_names = isinstance(names, list) and len(names) == len(shape)
    valid_names = valid_names and all(isinstance(dim, str) for dim in names)
    scalar_fill = not isinstance(meta.get("fill_value"), (list, dict))
    if (
        meta.keys() - _PARTS
        or meta.get("storage_transformers")
        or not valid_names
        or not scalar_fill
    ):
        raise ValueError(f"{folder} is refused: {meta_file} holds what no variable of ours has")
    size = math.prod(shape) * np.dtype(kind).itemsize
    values_file = "/".join([name, "c", *("0" for _ in shape)])
    variable_files = {file for file in files if file.startswith(f"{name}/")}
    if values_file not in files and not sealed:
        return size  # older versions did not store a variable that is one value throughout
    if variable_files != {meta_file, values_file}:
        raise ValueError(f"{folder} is damaged: {name} needs {values_file} and nothing more")
    content = read_file(folder / values_file)
    stored_bytes = zstd_size(content) if compressed else len(content)
    if stored_bytes != size:
        raise ValueError(
            f"{folder} is damaged: {values_file} holds {stored_bytes} bytes, not {size}"
        )
    return 0


def _is_zstd(codec: Any) -> bool:
    return isinstance(codec, dict) and codec.get("name") == "zstd"


def zstd_size(content: bytes) -> int:
    """How many bytes a frame of Zstandard says that it unpacks to (RFC 8878, 3.1.1.1); -1: unknown."""
    if content[:4] != b"\x28\xb5\x2f\xfd" or len(content) < 6:
        return -1
    flags = content[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if width == 0 or start + width > len(content):
        return -1
    return int.from_bytes(content[start : start + width], "little") + (256 if width == 2 else 0)


def _json(folder: Path, name: str) -> Any:
    try:
        document = json.loads(read_file(folder / name))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder} is damaged: {name} cannot be read ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{folder} is damaged: {name} is no dictionary")
    return document


def _expect(folder: Path, name: str, meta: Mapping[str, Any], **expected: Any) -> None:
    for key, value in expected.items():
        if meta.get(key) != value:
            raise ValueError(
                f"{folder} is refused: {key} of {name} is {meta.get(key)}, not {value}"
            )


def _canonical(root: Any) -> str:
    return json.dumps(root, sort_keys=True)
