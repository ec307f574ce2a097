"""Shares of test rows inside of intervals: `python -m benchmarks.interval_coverage`, 80 s on one core.

The jackknife+, CV+ with ten folds, and the reading as a Gaussian process, mean +- z (variance + noise)^1/2,
whose scale is that of greatest likelihood, s^2 = y' dual / n and noise = lam s^2. Widths are those of the
middle row, in units of the standard deviation of the targets.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.stats import norm

import sdgpu
from sdgpu.study.real_data.datasets import Split, load, split

ASKED = (0.8, 0.9)
SHARE, WEIGHT, STEPS = 0.03, 0.3, 3


def of_split(parts: Split, features: sdgpu.Nystrom | None) -> dict[tuple[str, float], tuple]:
    """Coverage and width of each kind at each share, for step 3 and, by a Gaussian process, for step 1."""
    X, y, X_test, y_test = parts.X_train, parts.Y_train[:, 0], parts.X_test, parts.Y_test[:, 0]
    kernel, lam = sdgpu.Gaussian(0.5 / sdgpu.median_distance(X) ** 2), SHARE * len(X)
    how = {"method": "eigh"} if features is None else {"features": features}
    path = sdgpu.fit(X, y, kernel, [lam], intercept=True, **how).path(alphas=WEIGHT, steps=STEPS)
    found, unit = {}, float(np.std(y))
    posterior, mean = path.variance(X_test).posterior[0], path.predict(X_test)[0]
    # y'(A + lam)^-1 y / n = (|y|^2 - y' fitted) / (lam n) for the centred y
    centred = y - y.mean()
    scale = float(centred @ (y - path.predict(X)[0])) / (lam * len(y))
    spread = np.sqrt(scale * (posterior + lam))
    for share in ASKED:
        ends = {"CV+": path.interval(X_test, share, folds=10)}
        if features is None:
            ends["jackknife+"] = path.interval(X_test, share)
        for name, interval in ends.items():
            low, high = interval.lower[-1], interval.upper[-1]
            found[name, share] = (
                np.mean((low <= y_test) & (y_test <= high)),
                np.median(high - low) / unit,
            )
        z = float(norm.ppf((1 + share) / 2))
        inside = np.mean(abs(y_test - mean) <= z * spread)
        found["Gaussian process", share] = inside, np.median(2 * z * spread) / unit
    return found


def main() -> None:
    """Print a line for each data set, kind and share."""
    nystrom = sdgpu.Nystrom(500)
    for source, rows, seeds, features in (
        ("diabetes", None, 20, None),
        ("flights", 1250, 20, None),
        ("flights", 120_000, 3, nystrom),
    ):
        start, data = time.perf_counter(), load(source, rows=rows, seed=0)
        runs = [of_split(split(data, seed=seed), features) for seed in range(seeds)]
        print(
            f"{source}, {len(data.X):,} rows, {seeds} splits, {time.perf_counter() - start:.0f} s"
        )
        for name, share in sorted(runs[0]):
            shares, widths = np.array([run[name, share] for run in runs]).T
            error = shares.std() / np.sqrt(seeds)
            print(
                f"  {name:16} {share}: {shares.mean():.3f} +- {error:.3f}, width {widths.mean():.2f}"
            )


if __name__ == "__main__":
    main()
