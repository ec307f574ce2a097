"""Datasets in NetCDF and zarr files that can be trusted: whole, checked, and nothing but numbers.

Every file carries checksums of the bytes of each variable and of all the rest, so damage is found and
named before a library parses it: at the end of a NetCDF file, behind the bytes that HDF5 looks at, and in
the attributes of a zarr store. Then the layout is held against what :func:`write_dataset` writes, before
any array is touched: files of others may ask for code (codecs, filters), for other files (links, external
and virtual data) or for memory that they do not fill.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from sdgpu.backend.checks import choice
from sdgpu.backend.checksums import digest
from sdgpu.backend.storage import atomic_file, atomic_folder, check_writable, clean_leftovers
from sdgpu.backend.untrusted_files import read_file
from sdgpu.backend.zarr_layout import (
    SEAL,
    check_ours,
    check_store,
    coded_texts,
    decoded_texts,
    seal_store,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["check_target", "read_dataset", "write_dataset"]

MOST_TEXTS = 10_000  # of a variable: they are checked one by one

_MARK = "sdgpu_checksums"  # attribute that says that they must be there
_WHERE = "at the end of the file"
_END = re.compile(rb"\nsdgpu (\d{10})\n")  # length of the table of checksums before it
_END_SIZE = 18
_TEXT = 16  # bytes of the place of a text in HDF5
_FEW = 64  # texts of an attribute
_SCALE = b"This is a netCDF dimension but not a netCDF variable"  # holds no data


def check_target(path: str | os.PathLike[str]) -> None:
    """Find out, before any work, whether a result can be written to `path`.

    Raises
    ------
    ValueError
        For another ending than ``.nc`` or ``.zarr``, or if a folder stands there that is no zarr store of
        ours: it would be replaced with all it holds.
    ImportError
        For ``.zarr`` without zarr.
    OSError
        If the folder of `path` does not exist or cannot be written.
    """
    target = Path(path)
    choice("file ending", target.suffix, (".nc", ".zarr"))
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {target} does not exist: make it first")
    if target.suffix == ".nc" and target.is_dir():
        raise ValueError(f"{target} is a folder: a NetCDF file is wanted")
    if target.suffix == ".zarr":
        _need_zarr()
        if target.exists() and not target.is_dir():
            raise ValueError(f"{target} is a file: a zarr store is a folder")
        if target.is_dir() and any(target.iterdir()):
            try:
                check_ours(target)
            except ValueError as error:
                raise ValueError(
                    f"{error}: it was not written by sdgpu and will not be replaced; name another, or "
                    "remove it"
                ) from error
    check_writable(target)


def write_dataset(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a dataset to NetCDF (``.nc``) or zarr (``.zarr``) with checksums, whole or not at all.

    The file is made in memory first (its size once more): HDF5 does not survive a full disk. Variables are
    stored plain, uncompressed and in one piece, so that any reader of these formats understands them.

    Parameters
    ----------
    dataset : xarray.Dataset
        Of numbers and texts; in NetCDF up to 10,000 texts a variable, in zarr they are places in a list
        that is an attribute, `labels`.
    path : path

    Raises
    ------
    ValueError, ImportError, OSError
        As :func:`check_target`, and if the disk is full: names `path`; what stood there is untouched.
    """
    check_target(path)
    if Path(path).suffix == ".nc":
        image = _netcdf(dataset)
        with (
            atomic_file(path) as temporary,
            temporary.open("wb") as file,
            ThreadPoolExecutor(1) as executor,
        ):
            table = executor.submit(_table, image)  # counted while the disk writes
            file.write(image.getbuffer())
            file.write(table.result())
        return
    with atomic_folder(path) as folder:
        for name, content in _zarr(dataset).items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def read_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what :func:`write_dataset` wrote, and nothing else; nothing in the file is executed.

    Takes the size of the file twice in memory. A file of an older version carries no checksums: it is
    read with a warning.

    Raises
    ------
    FileNotFoundError, OSError
        If there is none, or it may not be read.
    ImportError
        For ``.zarr`` without zarr.
    ValueError
        For another ending; for damage, with the names of file and variables; for contents that
        :func:`write_dataset` never writes, by name.

    Warns
    -----
    UserWarning
        If the file has no checksums.
    """
    source = Path(path)
    suffix = choice("file ending", source.suffix, (".nc", ".zarr"))
    if suffix == ".zarr":
        clean_leftovers(source)  # a kill may have left the store moved aside
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if suffix == ".nc":
        dataset, sealed = _read_netcdf(source)
    else:
        _need_zarr()
        dataset, sealed = _read_zarr(source)
    if not sealed:
        warnings.warn(
            f"{source} has no checksums (an older version or another program wrote it): damage in it "
            "would not be noticed; save it again",
            stacklevel=3,
        )
    return dataset


def _need_zarr() -> None:
    if importlib.util.find_spec("zarr") is None:
        raise ImportError("zarr is not installed: pip install 'sdgpu[cluster]', or use a .nc file")


def _netcdf(dataset: xr.Dataset) -> io.BytesIO:
    """An HDF5 file in memory."""
    for name, variable in dataset.variables.items():
        is_text = variable.dtype.kind in "UTO"
        if not (is_text or variable.dtype.kind in "iuf") or (
            is_text and variable.size > MOST_TEXTS
        ):
            raise ValueError(
                f"{name} holds {variable.size} values of {variable.dtype}: numbers are wanted, or at most "
                f"{MOST_TEXTS} texts"
            )
    # without a fill value nothing is masked, so that every bit comes back, those of NaN too
    encoding: dict[Any, Any] = {name: {"_FillValue": None} for name in dataset.variables}
    marked_dataset = dataset.assign_attrs({_MARK: _WHERE})
    image = io.BytesIO()
    marked_dataset.to_netcdf(image, engine="h5netcdf", encoding=encoding)
    return image


def _table(image: io.BytesIO) -> bytes:
    """Checksums of the variables of an HDF5 file and of all the rest, to be appended to it."""
    buffer = image.getbuffer()
    with h5py.File(image, "r") as file:
        # by HDF5's own calls: objects of h5py take half of the time that checksums may
        group = h5py.h5g.open(file.id, b"/")
        items = {name.decode(): h5py.h5d.open(group, name) for name in group}
        places = {
            name: (item.get_offset(), item.get_storage_size())
            for name, item in items.items()
            if item.get_offset() is not None  # dimensions without values have no place
        }
        del group, items  # what is open keeps the file open
    checksums, rest_checksum = _sums(buffer, places)
    table = {
        "size": len(buffer),
        "rest": rest_checksum,
        "variables": {name: [*places[name], checksums[name]] for name in places},
    }
    text = json.dumps(table).encode()
    return b"%b\nsdgpu %010d\n" % (text, len(text))


def _sums(image: memoryview, places: dict[str, tuple[int, int]]) -> tuple[dict[str, str], str]:
    """Checksums of the bytes at each place, and of those in between."""
    checksums = {
        name: digest(image[start : start + size]) for name, (start, size) in places.items()
    }
    gaps, end = [], 0
    for start, size in sorted(places.values()):
        gaps.append(image[end:start])
        end = start + size
    return checksums, digest(*gaps, image[end:])


def _read_netcdf(source: Path) -> tuple[xr.Dataset, bool]:
    import xarray as xr

    content = read_file(source)
    sealed = _check_table(source, content)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            reason = _foreign_to_netcdf(file, len(content))
            marked = _MARK in file.attrs
        if reason:
            raise ValueError(f"refused, {reason}")
        if marked and not sealed:
            raise ValueError(
                "its checksums are missing: it was cut off, or rewritten by another program"
            )
        with xr.open_dataset(
            io.BytesIO(content), engine="h5netcdf", mask_and_scale=not sealed, decode_times=False
        ) as lazy_dataset:
            dataset = lazy_dataset.load()
    except Exception as error:  # xarray, h5netcdf and h5py raise many types for a damaged file
        raise ValueError(f"{source} cannot be read as nc: {error}") from error
    dataset.attrs.pop(_MARK, None)
    return dataset.drop_encoding(), sealed


def _check_table(source: Path, content: bytes) -> bool:
    """Hold the file against the table at its end; False if it has none."""
    match = _END.fullmatch(content[-_END_SIZE:])
    if match is None:
        return False
    start = len(content) - _END_SIZE - int(match[1])
    try:
        table = json.loads(content[max(start, 0) : -_END_SIZE])
        places = {
            str(name): (int(offset), int(length))
            for name, (offset, length, _) in table["variables"].items()
        }
        if (
            sum(size for _, size in places.values()) > start
            or min(map(min, places.values()), default=0) < 0
        ):
            raise ValueError("its places do not lie in the file")
        checksums, rest_checksum = _sums(memoryview(content)[:start], places)
        damaged_variables = [
            name
            for name, (_, _, checksum) in table["variables"].items()
            if checksums[name] != checksum
        ]
        intact = not damaged_variables and rest_checksum == table["rest"] and start == table["size"]
    except (
        ArithmeticError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{source} is damaged: its table of checksums cannot be read ({error})"
        ) from error
    if not intact:
        subject = (
            f"the values of {', '.join(damaged_variables)}"
            if damaged_variables
            else "its structure or attributes"
        )
        raise ValueError(f"{source} is damaged: {subject} are not what was written")
    return True


def _foreign_to_netcdf(file: Any, size: int) -> str:
    """What :func:`write_dataset` would not have written, or nothing; reads no values."""
    total = _attributes(file, size)
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            return f"{name} is a link to another place ({type(link).__name__})"
        if file.get(name, getclass=True) is not h5py.Dataset:
            return f"{name} is no array"
        item = file[name]
        total += _attributes(item, size)
        properties = item.id.get_create_plist()
        if properties.get_external_count():
            return f"the values of {name} lie in another file"
        if properties.get_layout() == h5py.h5d.VIRTUAL:
            return f"the values of {name} are virtual, put together from other files"
        if properties.get_nfilters():
            return f"{name} is stored with filters (compressed, say)"
        is_text = h5py.check_string_dtype(item.dtype) is not None
        if not is_text and item.dtype.kind not in "iufb":
            return f"{name} has values of type {item.dtype}"
        if item.attrs.get("NAME", b"") != b"" and _is_scale(item):
            continue
        if is_text and item.size > MOST_TEXTS:
            return f"{name} has {item.size} texts, more than {MOST_TEXTS}"
        itemsize = _TEXT if is_text else item.dtype.itemsize
        stored_bytes, expected_bytes = item.id.get_storage_size(), item.size * itemsize
        if properties.get_layout() != h5py.h5d.CONTIGUOUS or stored_bytes != expected_bytes:
            return f"{name} is not stored in one piece"
        total += stored_bytes + (_length(item, size) if is_text else 0)
        if total > size:
            return f"its variables take {total} bytes with {name}, more than the file has"
    return ""


def _attributes(item: Any, limit: int) -> int:
    """Bytes of the texts in attributes beyond one for each: many may lie in the same place."""
    total = 0
    for name in item.attrs:
        kind, shape = item.attrs.get_id(name).dtype, item.attrs.get_id(name).shape
        if h5py.check_string_dtype(kind) is None or not shape or total > limit:
            continue
        if np.prod(shape) > _FEW:
            raise ValueError(f"refused, the attribute {name} has {np.prod(shape)} texts")
        total += sum(map(len, np.ravel(item.attrs[name])))
    return total


def _length(item: Any, limit: int) -> int:
    """Bytes of all texts, read one by one: many may lie in the same place; stops beyond `limit`."""
    total = 0
    for index in np.ndindex(item.shape):
        total += len(item[index])
        if total > limit:
            break
    return total


def _is_scale(item: Any) -> bool:
    """Whether this is a dimension without values, which nobody reads."""
    name = item.attrs["NAME"]
    return isinstance(name, bytes) and name.startswith(_SCALE) and item.id.get_storage_size() == 0


def _zarr(dataset: xr.Dataset) -> dict[str, Any]:
    """Names and contents of the files of a store."""
    from zarr.storage import MemoryStore

    dataset = coded_texts(dataset)
    for name, variable in dataset.variables.items():
        if variable.dtype.kind not in "iuf":
            raise ValueError(f"{name} holds {variable.dtype}: zarr takes numbers and texts here")
    encoding: dict[Any, Any] = {
        name: {"_FillValue": None, "compressors": None, "chunks": variable.shape}
        for name, variable in dataset.variables.items()
    }
    buffers: dict[str, Any] = {}
    # an interrupt of a store of files would leave threads that go on writing
    dataset.to_zarr(
        MemoryStore(buffers),
        zarr_format=3,
        consolidated=False,
        encoding=encoding,
        write_empty_chunks=True,
    )
    files = {name: np.asarray(buffer.as_numpy_array()) for name, buffer in buffers.items()}
    return seal_store(files)


def _read_zarr(source: Path) -> tuple[xr.Dataset, bool]:
    import xarray as xr

    sealed = check_store(source)
    try:
        with xr.open_zarr(
            source,
            zarr_format=3,
            consolidated=False,
            chunks=None,
            mask_and_scale=not sealed,
            decode_times=False,
        ) as lazy_dataset:
            dataset = lazy_dataset.load()
    except Exception as error:
        raise ValueError(f"{source} cannot be read as zarr: {error}") from error
    dataset.attrs.pop(SEAL, None)
    try:
        return decoded_texts(dataset.drop_encoding()), sealed
    except ValueError as error:
        raise ValueError(f"{source} is refused: {error}") from error
