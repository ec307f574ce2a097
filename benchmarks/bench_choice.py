"""Does the plan choose well, does its prediction hold, and what does each precision leave?

The automatic choice prefers all eigenvalues while they take less than two seconds, because they are
exact and give the degrees of freedom: there it is slower than a grown basis on purpose.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest

import sdgpu
from benchmarks.bench_large import flights
from benchmarks.conftest import REPORT, seconds
from sdgpu.operators import DenseOperator
from sdgpu.planner import METHODS


@pytest.mark.parametrize("n", [500, 2000, 5000])
def test_choice(n: int, device: str) -> None:
    X, Y, kernel, _ = flights(n)
    lams = np.geomspace(1e-4, 1e-1, 20) * n

    def fit(method: str) -> tuple[float, Any]:
        spent, info = [], None
        for _ in range(2):
            start = time.perf_counter()
            info = sdgpu.fit(X, Y, kernel, lams=lams, method=method, device=device).info
            spent.append(time.perf_counter() - start)
        return min(spent), info

    times = {method: fit(method) for method in METHODS}
    chosen, info = times.pop("auto")
    best = min(times, key=lambda method: times[method][0])
    plan = sdgpu.plan(n, X.shape[1], 1, lams, device=device)
    question = (
        f"automatic choice ({info.method}), {n:,} flights, lam >= 1e-4 n, against the best ({best}); "
        f"predicted {seconds(plan.seconds)}"
    )
    ratio = chosen / times[best][0]
    REPORT.rows.append(
        (question, seconds(chosen), seconds(times[best][0]), f"{ratio:.2f}", "<= 1.3")
    )


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
            X, Y, kernel, lams=lams, method="subspace", operator="tiled", dtype=precision, tol=1e-6,
            device=device,
        )  # fmt: skip
    spent = time.perf_counter() - start
    found = fitted.path(lam=lams[0], steps=1).fitted[0]
    error = np.linalg.norm(found - fit) / np.linalg.norm(fit)
    question = (
        f"tiled in {precision}, {n:,} flights, lam = 1e-6 n, tol = 1e-6: true error {error:.1e}, "
        f"error said {fitted.info.error_estimate:.1e}, {fitted.info.passes} passes"
    )
    REPORT.rows.append((question, seconds(spent), "", "", ""))
    assert error <= 2 * fitted.info.error_estimate
