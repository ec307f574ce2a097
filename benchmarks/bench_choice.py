"""Does the plan choose well, does its prediction hold, and what does each precision leave?

Below 0.05 s (n = 600 here) the plan prefers all eigenvalues, because they are exact and give the degrees
of freedom.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

import sdgpu
from benchmarks.bench_large import flights
from benchmarks.conftest import REPORT, seconds
from sdgpu.engine.planner import METHODS
from sdgpu.operators import DenseOperator


@pytest.mark.parametrize(
    ("n", "lowest", "tol"),
    [(n, 1e-4, 1e-6) for n in (500, 1000, 2000)]
    + [(1000, 1e-2, 1e-4), pytest.param(1000, 1e-6, 1e-4, marks=pytest.mark.full)]
    + [pytest.param(n, 1e-4, 1e-6, marks=pytest.mark.full) for n in (5000, 10_000, 20_000)]
    + [
        pytest.param(n, lowest, 1e-4, marks=pytest.mark.full)
        for lowest in (1e-6, 1e-2)
        for n in (5000, 20_000)
    ],
)
def test_choice(n: int, lowest: float, tol: float, device: str) -> None:
    X, Y, kernel, _ = flights(n)
    lams = np.geomspace(lowest, 1e-1, 20) * n
    # a Gaussian has no features of its own, and "cg" is three to ten times slower here
    methods = [method for method in METHODS if method not in ("primal", "cg")]
    if n > 5000:
        methods.remove("eigh")  # a minute and more
    times: dict[str, list[float]] = {method: [] for method in methods}
    info = None
    rounds = 15 if n <= 1000 else 4 if n <= 5000 else 2
    for _ in range(rounds):  # in turns; the first is a warm-up
        for method in methods:
            time.sleep(0.1)  # threads of the method before may still be spinning
            start = time.perf_counter()
            fitted = sdgpu.fit(X, Y, kernel, lams=lams, method=method, tol=tol, device=device)
            times[method].append(time.perf_counter() - start)
            info = fitted.info if method == "auto" else info
    spent = {method: min(each[1:]) for method, each in times.items()}
    chosen = spent.pop("auto")
    best = min(spent, key=lambda method: spent[method])
    plan = sdgpu.plan(n, X.shape[1], 1, lams, tol=tol, device=device)
    assert info is not None
    question = (
        f"automatic choice ({info.method}), {n:,} flights, lam >= {lowest:g} n, tol = {tol:g}, against "
        f"the best ({best}); predicted {seconds(plan.seconds)}"
    )
    ratio = chosen / spent[best]
    REPORT.rows.append((question, seconds(chosen), seconds(spent[best]), f"{ratio:.2f}", "<= 1.3"))


@pytest.mark.parametrize("precision", ["float32", "mixed", "float64"])
def test_precisions(precision: str, device: str) -> None:
    """Error of the predictions at lam = 1e-6 n against a Cholesky factor in float64."""
    n = 4000
    X, Y, kernel, lams = flights(n)
    K = DenseOperator(kernel, X).gram()
    fit = Y - lams[0] * np.linalg.solve(K + lams[0] * np.eye(n), Y)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = sdgpu.fit(
            X,
            Y,
            kernel,
            lams=lams,
            method="subspace",
            operator="tiled",
            dtype=precision,
            tol=1e-6,
            device=device,
        )
    spent = time.perf_counter() - start
    found = fitted.path(lam=lams[0], steps=1).fitted[0]
    error = np.linalg.norm(found - fit) / np.linalg.norm(fit)
    question = (
        f"tiled in {precision}, {n:,} flights, lam = 1e-6 n, tol = 1e-6: true error {error:.1e}, "
        f"error said {fitted.info.error_estimate:.1e}, {fitted.info.passes} passes"
    )
    REPORT.rows.append((question, seconds(spent), "", "", ""))
    assert error <= 2 * fitted.info.error_estimate
