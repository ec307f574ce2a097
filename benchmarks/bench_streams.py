"""Feature models: what reading, order and the whole grid cost beside the products that must be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sdgpu
from benchmarks.conftest import REPORT, seconds
from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.threads import in_order, only_torch
from sdgpu.engine.streaming import block_rows, sum_rows
from sdgpu.kernels.feature_maps.nystrom import NystromMap
from sdgpu.solvers.moment_sums import MomentSums

D, K = 10, 2000
N = 100_000
LAMS = np.geomspace(1e-6, 1.0, 20)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """X and Y in float32 files, mapped into memory."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D)).astype(np.float32)
    Y = np.sin(X[:, :1]) + 0.1 * rng.standard_normal((N, 1)).astype(np.float32)
    for name, array in (("X", X), ("Y", Y)):
        np.save(folder / f"{name}.npy", array)
    return folder, X, Y


def mapped(folder: Path):
    return (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "XY")


@pytest.fixture(scope="module")
def landmarks(rows):
    return rows[1][:K].astype(np.float64)


@pytest.mark.parametrize("k", [256, K])
def test_a_pass_over_a_memory_map_against_its_products(race, rows, landmarks, k):
    """The same kernel values, whitening and Phi'Phi on blocks in memory, two at a time, nothing else.

    Without what a fit does once: whitening of the landmarks, and the decomposition.
    """
    folder, X, _ = rows
    feature_map = NystromMap.of(sdgpu.Gaussian(0.05), landmarks[:k])
    height, backend = block_rows(feature_map.size), NumpyBackend()

    def ours():
        sums = MomentSums.zeros(feature_map.size, 1)
        sum_rows(
            sdgpu.rows.arrays(*mapped(folder)),
            feature_map,
            sums,
            backend,
            precision="float32",
            rows=height,
            watch=Stopwatch(backend.synchronize),
        )

    def products(start: int) -> np.ndarray:
        phi = feature_map.transform(X[start : start + height], "float32")
        return phi.T @ phi

    def theirs():
        with only_torch():
            for _ in in_order(products, range(0, N, height), 2):
                pass

    race(
        f"one pass over {N:,} x {D} of a float32 memory map, {k} Nystrom features, against its products",
        ours,
        theirs,
        at_most=1 / 0.7 if k == K else None,
        rounds=3,
    )


@pytest.fixture(scope="module")
def fitted(rows, landmarks):
    """A fit of the map, and the seconds of its pass."""
    features = sdgpu.Nystrom(landmarks=landmarks)
    X, Y = mapped(rows[0])
    fit = sdgpu.fit(X, Y, sdgpu.Gaussian(0.05), LAMS * N, features=features)
    return fit, fit.info.seconds["rows"]


def test_the_grid_after_the_pass(race, rows, fitted):
    fit, of_pass = fitted
    X_val, Y_val = (np.asarray(part[:500]) for part in mapped(rows[0]))
    race(
        f"the grid of 20 x 101 x 10 on 500 rows after the pass, k = {K:,}, against a pass of 1e6 rows",
        lambda: fit.sweep(X_val, Y_val, steps=10),
        lambda: of_pass * 1e6 / N,
        at_most=0.05,
        rounds=3,
    )


def test_leave_one_out_of_the_grid(race, fitted):
    fit, of_pass = fitted
    race(
        f"leave-one-out of that grid, {N:,} rows, k = {K:,}, against the pass",
        lambda: fit.sweep(steps=10),
        lambda: of_pass,
        at_most=1.3,
        rounds=1,
    )


def test_a_linear_kernel_of_many_rows(race):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200_000, 20))
    y = X[:, 0] + rng.standard_normal(len(X))

    def ours():
        return sdgpu.fit(X, y, sdgpu.Linear(), [1.0], features=sdgpu.Explicit()).path(steps=2)

    race("linear kernel, 200,000 x 20, against NumPy's d x d problem", ours, lambda: _normal(X, y))


def _normal(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(X.T @ X + np.eye(X.shape[1]), X.T @ y)


def test_against_scikit_learn(rows):
    """Nystroem and RidgeCV with the same number of features, one table of seconds and errors."""
    import time

    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline

    _, X, Y = rows
    train, test = slice(0, 30_000), slice(30_000, None)
    start = time.perf_counter()
    fit = sdgpu.fit(
        X[train], Y[train, 0], sdgpu.Gaussian(0.05), LAMS * 30_000, features=sdgpu.Nystrom(500)
    )
    best = fit.sweep(steps=3).best()
    ours = time.perf_counter() - start
    alphas = 0.0 if best.step == 1 else best.alpha
    prediction = fit.path(best.lam, alphas, max(best.step, 1)).predict(X[test])[-1]
    start = time.perf_counter()
    model = make_pipeline(
        Nystroem(gamma=0.05, n_components=500, random_state=0), RidgeCV(LAMS * 30_000)
    ).fit(X[train], Y[train, 0])
    theirs = time.perf_counter() - start
    errors = [np.mean((p - Y[test, 0]) ** 2) for p in (prediction, model.predict(X[test]))]
    REPORT.rows.append(
        (
            f"30,000 rows, 500 features, lam chosen: test mse {errors[0]:.5f} against {errors[1]:.5f} of "
            "scikit-learn's Nystroem and RidgeCV",
            seconds(ours),
            seconds(theirs),
            f"{ours / theirs:,.2f}",
            "",
        )
    )
