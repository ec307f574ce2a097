"""Test error of flights against k, beside exact fits: `python -m benchmarks.feature_curves OUT.png N ..`.

Feature models of all training rows with k features, and exact fits of N of them. lam, weight and step
are chosen on the validation rows, errors are those of the test rows in units of the target's variance.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import sdgpu
from sdgpu.kernels import median_distance
from sdgpu.study.compare import compare
from sdgpu.study.real_data.datasets import Split, load, split

SIZES = (100, 300, 1000, 3000)
LAMS = np.geomspace(1e-7, 1e-1, 13)


def errors(parts: Split, features: sdgpu.Nystrom | None) -> tuple[float, float, float]:
    """Test errors of ridge and of the best fixed weight, and the seconds of it all."""
    gamma = 0.5 / median_distance(parts.X_train) ** 2
    start = time.perf_counter()
    found = compare(
        parts,
        sdgpu.Gaussian(gamma),
        features=features,
        lams=LAMS * len(parts.X_train),
        steps=5,
        tol=1e-4,
    )
    spent = time.perf_counter() - start
    return found.rows[0].test_mse, found.rows[1].test_mse, spent


def main(out: str, exact: list[int]) -> None:
    """Print the table as it comes, and draw it."""
    warnings.simplefilter("ignore")
    parts = split(load("flights"))
    print(f"{len(parts.X_train):,} training rows, {len(parts.X_test):,} test rows")
    curve, lines = [], []
    for k in SIZES:
        ridge, fixed, spent = errors(parts, sdgpu.Nystrom(k))
        curve.append(fixed)
        print(f"| {k:,} features | {ridge:.5f} | {fixed:.5f} | {spent:.1f} s |", flush=True)
    for n in (min(n, len(parts.X_train)) for n in exact):
        some = replace(parts, X_train=parts.X_train[:n], Y_train=parts.Y_train[:n])
        ridge, fixed, spent = errors(some, None)
        lines.append((n, fixed))
        print(f"| exact, {n:,} rows | {ridge:.5f} | {fixed:.5f} | {spent:.1f} s |", flush=True)
    draw(out, len(parts.X_train), curve, lines)


def draw(out: str, rows: int, curve: list[float], lines: list[tuple[int, float]]) -> None:
    """Errors of feature models of so many rows over k, and of exact fits."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(SIZES, curve, "o-", label=f"features, {rows:,} rows")
    for number, (n, error) in enumerate(lines):
        axis.axhline(error, ls="--", color=f"C{number + 1}", label=f"exact, {n:,} rows")
    axis.set(
        xscale="log", xlabel="features k", ylabel="test mse / variance", title="flights of 2013"
    )
    axis.legend()
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1], [int(n) for n in sys.argv[2:]])
