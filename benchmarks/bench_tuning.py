"""What does the gradient of a loss by twelve length scales cost: in eigendecompositions, and in fits?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import sdgpu
from benchmarks.bench_large import flights
from benchmarks.conftest import REPORT, seconds
from sdgpu.engine.tuning_objectives import objective_of
from sdgpu.kernels.tunable import Tunable

N, D = 2000, 12


def objective(X: np.ndarray, Y: np.ndarray, by: Any) -> Any:
    tunable = Tunable(sdgpu.Gaussian(0.5 / X.shape[1]), X.shape[1], ("lengthscale",))
    settings: Any = {"sample_weight": None, "intercept": False, "tol": 1e-6, "seed": 0}
    return objective_of((X, Y), tunable, by, alphas=np.zeros(0), **settings)


def clock(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("by", ["loo", "marginal"])
def test_gradient_against_an_eigendecomposition(by: str, race: Any) -> None:
    """The loss and its derivatives; a fit by all eigenvalues makes K and decomposes it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D))
    Y = np.sin(X[:, :1]) + 0.1 * rng.standard_normal((N, 1))
    made = objective(X, Y, by)
    race(
        f"gradient of {by} by {D} length scales and lam, n = {N:,}, against one eigendecomposition",
        lambda: made.slope(made.tunable.start, 0.01 * N),
        lambda: sdgpu.fit(X, Y, made.tunable.kernel, 0.01 * N, method="eigh").spectrum,
        at_most=2,
        rounds=3,
    )


@pytest.mark.full
def test_gradient_by_solves_against_a_fit() -> None:
    """20,000 flights and 2,000 validation rows, beside a fit for one lam by the same solver."""
    X, Y, _, _ = flights(22_000)
    n, lam = 20_000, 1e-4 * 20_000
    made = objective(X[:n], Y[:n], (X[n:], Y[n:]))

    def one_fit() -> Any:
        options: Any = {"method": "cg", "operator": "tiled", "steps": 1}
        fitted = sdgpu.fit(X[:n], Y[:n], made.tunable.kernel, lam, **options)
        return fitted.path(lam, steps=1).dual

    fit, slope = clock(one_fit), clock(lambda: made.slope(made.tunable.start, lam))
    question = (
        f"gradient of a validation loss by {X.shape[1]} length scales, n = {n:,}, against one fit"
    )
    REPORT.rows.append((question, seconds(slope), seconds(fit), f"{slope / fit:.2f}", "<= 3"))
