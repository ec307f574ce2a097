"""How many times cheaper is the closed form than refits on the same grid?

A sample of the refits is timed and extrapolated: all of them would take hours. Three rivals:

* naive: scikit-learn's KernelRidge, a new fit for each of the L A T grid points;
* Cholesky: one factor for each lam, then one solve for each (alpha, step), chain by chain;
* batched Cholesky: the same factor, all chains of one lam side by side as columns. It is the best
  that a refit can do, and nobody's library does it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.kernel_ridge import KernelRidge

from benchmarks.bench_sweep import whole
from benchmarks.problem import ALPHAS, LAMS, STEPS, Data, make

POINTS = LAMS * len(ALPHAS) * STEPS


def naive(data: Data) -> None:
    """Two steps of one chain: a fit, its validation loss, its teacher, and again."""
    target = data.Y
    for _ in range(2):
        model = KernelRidge(alpha=data.lams[10], kernel="rbf", gamma=data.kernel.gamma)
        model.fit(data.X, target)
        np.mean((model.predict(data.X_val) - data.Y_val) ** 2)
        target = 0.3 * data.Y + 0.7 * model.predict(data.X)


def cholesky(data: Data, K: np.ndarray, K_val: np.ndarray) -> float:
    """Seconds for the grid by one factor for each lam: a factor and ten chains are timed."""
    start = time.perf_counter()
    factor = scipy.linalg.cho_factor(K + data.lams[10] * np.eye(len(K)), overwrite_a=True)
    factored = time.perf_counter() - start
    start = time.perf_counter()
    for alpha in ALPHAS[::10][:10]:
        mixed = data.Y
        for _ in range(STEPS):
            dual = scipy.linalg.cho_solve(factor, mixed, check_finite=False)
            np.mean((K_val @ dual - data.Y_val) ** 2)
            mixed = alpha * data.Y + (1 - alpha) * (mixed - data.lams[10] * dual)
    chains = (time.perf_counter() - start) / 10
    return LAMS * (factored + len(ALPHAS) * chains)


def batched(data: Data, K: np.ndarray, K_val: np.ndarray) -> None:
    """The whole grid of one lam, all weights as columns."""
    factor = scipy.linalg.cho_factor(K + data.lams[10] * np.eye(len(K)), overwrite_a=True)
    Y = np.repeat(data.Y, len(ALPHAS), axis=1)
    mixed = Y
    for _ in range(STEPS):
        dual = scipy.linalg.cho_solve(factor, mixed, check_finite=False)
        np.mean((K_val @ dual - data.Y_val) ** 2, axis=0)
        mixed = ALPHAS * Y + (1 - ALPHAS) * (mixed - data.lams[10] * dual)


def test_against_naive_refits(race: Any, device: str) -> None:
    data = make()
    race(
        f"sweep against scikit-learn KernelRidge, 2 of {POINTS:,} fits timed",
        lambda: whole(data, device),
        lambda: naive(data),
        times=POINTS / 2,
        at_least=1000,
        rounds=5,
    )


def test_against_one_factor_for_each_lam(race: Any, device: str) -> None:
    data = make()
    K, K_val = data.kernel(data.X), data.kernel(data.X_val, data.X)
    race(
        "sweep against one Cholesky factor for each lam, chain by chain, 10 of 3,030 chains timed",
        lambda: whole(data, device),
        lambda: cholesky(data, K, K_val),
        at_least=20,
        rounds=5,
    )


def test_against_batched_chains(race: Any, device: str) -> None:
    data = make()
    K, K_val = data.kernel(data.X), data.kernel(data.X_val, data.X)
    race(
        "sweep against one factor for each lam, all weights as columns, 1 of 30 lam timed",
        lambda: whole(data, device),
        lambda: batched(data, K, K_val),
        times=LAMS,
        at_least=1,
        rounds=5,
    )
