"""CIFAR-10 and CIFAR-100 from their published files, which are pickles: read without running them.

The files are checked against their published md5 before a byte is parsed. Then they are read by an
unpickler that knows no function of Python or NumPy at all: the three names that the files use stand
for small inert classes here, and every other name is refused.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import Unpickler
from typing import Any

import numpy as np

__all__ = ["PUBLISHED", "Published", "read"]

HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Published:
    """The files of one data set: folder, archive, the entry with the labels, and their md5."""

    folder: str
    archive: str
    archive_md5: str
    labels: bytes
    classes: int
    train: dict[str, str]
    test: dict[str, str]


PUBLISHED = {
    "cifar10": Published(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        labels=b"labels",
        classes=10,
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    ),
    "cifar100": Published(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        labels=b"fine_labels",
        classes=100,
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
}

Part = tuple[np.ndarray, np.ndarray]


def read(name: str, folder: str | Path | None) -> tuple[Part, Part]:
    """Read the training and the test part of "cifar10" or "cifar100".

    Parameters
    ----------
    name : {"cifar10", "cifar100"}
    folder : str, Path or None
        The folder of the batch files, a folder that holds it or the archive, or the archive itself;
        None: the folder ``data`` of the working directory.

    Returns
    -------
    (pixels, labels), (pixels, labels)
        Arrays (n, 3, 32, 32) uint8 and (n,) int64. An archive is read in memory, not unpacked.

    Raises
    ------
    FileNotFoundError
        If the files are not there; the message says where to put them.
    ValueError
        If a file is not the published one, or holds anything but images and labels.
    """
    dataset = PUBLISHED[name]
    place = _locate(dataset, Path("data" if folder is None else folder))
    names = (*dataset.train, *dataset.test)
    contents = (
        _from_folder(place, names) if place.is_dir() else _from_archive(dataset, place, names)
    )
    md5s, parts = dataset.train | dataset.test, {}
    for file, content in contents:  # one at a time, for they are as large as the images
        _check_md5(f"{file} of {place}", hashlib.md5(content, usedforsecurity=False), md5s[file])
        parts[file] = _images(dataset, file, content)
    test = _join([parts.pop(file) for file in dataset.test])
    return _join([parts.pop(file) for file in dataset.train]), test


def _locate(dataset: Published, folder: Path) -> Path:
    """Return the folder with the batch files, or else the archive."""
    first = next(iter(dataset.train))
    for place in (folder, folder / dataset.folder):
        if (place / first).is_file():
            return place
    for archive in (folder, folder / dataset.archive):
        if archive.is_file():
            return archive
    raise FileNotFoundError(
        f"there is no {dataset.folder} in {folder.resolve()}: download {dataset.archive} from {HOME}, put "
        f"it or its unpacked folder there, or give folder= (--data) the place where it is"
    )


def _from_folder(place: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{place} lacks {', '.join(missing)}: unpack the archive again")
    for name in names:
        yield name, (place / name).read_bytes()


def _from_archive(
    dataset: Published, place: Path, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    with place.open("rb") as file:
        _check_md5(str(place), hashlib.file_digest(file, "md5"), dataset.archive_md5)
        file.seek(0)
        seen = set()
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            for (
                member
            ) in archive:  # in the order of the archive: seeking back would unpack it again
                name = member.name.removeprefix(f"{dataset.folder}/")
                reader = archive.extractfile(member) if name in names else None
                if reader is not None:
                    seen.add(name)
                    yield name, reader.read()
    missing = [name for name in names if name not in seen]
    if missing:
        raise ValueError(f"{place} lacks {', '.join(missing)}: download it again from {HOME}")


def _check_md5(what: str, digest: Any, expected: str) -> None:
    md5 = digest.hexdigest()
    if md5 != expected:
        raise ValueError(
            f"{what} has md5 {md5}, the published file {expected}: it is damaged or another file; "
            f"download it again from {HOME}"
        )


def _join(parts: list[Part]) -> Part:
    """One array of several, which are let go one after the other: no second copy of all."""
    labels = np.concatenate([labels for _, labels in parts])
    pixels = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
    start = 0
    while parts:
        block, _ = parts.pop(0)
        pixels[start : start + len(block)] = block
        start += len(block)
    return pixels, labels


def _images(dataset: Published, name: str, content: bytes) -> Part:
    """Pixels (n, 3, 32, 32) and labels (n,) of one batch file."""
    batch = _unpickle(name, content)
    if not isinstance(batch, dict) or not {b"data", dataset.labels} <= batch.keys():
        raise ValueError(f"{name} holds no dictionary with data and {dataset.labels.decode()}")
    labels = batch[dataset.labels]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{name}: the labels are no list of whole numbers")
    pixels = _pixels(name, batch[b"data"], len(labels))
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _pixels(name: str, stand_in: Any, n: int) -> np.ndarray:
    """Rows of bytes (n, 3072) from the state in which NumPy pickles an array."""
    match getattr(stand_in, "state", None):
        case (*_, (int(rows), 3072), _, fortran, bytes(raw)) if rows == n and len(raw) == n * 3072:
            flat = np.frombuffer(raw, dtype=np.uint8)
            return flat.reshape((n, 3072), order="F" if fortran else "C")
    raise ValueError(f"{name}: the data are no {n} rows of 3072 bytes, one for each label")


def _unpickle(name: str, content: bytes) -> Any:
    try:
        return _Inert(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # what a hostile file makes of the unpickler is not to be foreseen
        raise ValueError(f"{name} cannot be read: {error}") from error


class _Inert(Unpickler):
    """Builds dictionaries, lists, numbers, bytes, and the stand-ins below: nothing that acts."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "multiarray"  # NumPy 2 moved it
        stand_ins = {
            ("multiarray", "_reconstruct"): _State,
            ("numpy", "ndarray"): None,
            ("numpy", "dtype"): _State,
        }
        if (module, name) not in stand_ins:
            raise ValueError(f"it asks for {module}.{name}, which no file of images needs: refused")
        return stand_ins[module, name]


class _State:
    """In place of an array or dtype: keeps what it is given, and does nothing with it."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state
