"""What does generalised cross-validation cost where the eigenvalues are not known?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import sdgpu
from benchmarks.bench_large import TOL, N, flights
from benchmarks.conftest import REPORT, seconds


def fit(data: Any, probes: int, device: str) -> sdgpu.Fit:
    X, Y, kernel, lams = data
    return sdgpu.fit(
        X,
        Y,
        kernel,
        lams=lams,
        method="subspace",
        operator="tiled",
        tol=TOL,
        probes=probes,
        device=device,
    )


def test_gcv_from_a_grown_spectrum(device: str) -> None:
    """The whole grid of 20 lam x 101 weights x 10 steps, probes included, against the fit."""
    data = flights(N)
    shares: list[tuple[float, float, float]] = []
    for _ in range(3):
        start = time.perf_counter()
        fitted = fit(data, 8, device)
        spent = time.perf_counter() - start
        start = time.perf_counter()
        found: Any = fitted.gcv_sweep().dataset
        own = time.perf_counter() - start
        shares.append((own / spent, own, spent))
    ratio, own, spent = sorted(shares)[1]
    error = float((found["gcv_error"] / found["gcv"]).max())
    best = found["gcv"].isel(found["gcv"].argmin(dim=["lam", "alpha", "step"]))
    there = float(found["gcv_error"].sel(lam=best.lam, alpha=best.alpha, step=best.step) / best)
    question = (
        f"GCV of 20 lam x 101 weights x 10 steps of {N:,} flights, 8 probes, against the fit (standard "
        f"error at most {100 * error:.1f} %, {100 * there:.2f} % at the best point)"
    )
    REPORT.rows.append((question, seconds(own), seconds(spent), f"{ratio:.2f}", "<= 0.3"))
    assert np.isfinite(found["gcv"]).all()


@pytest.mark.full
def test_leave_one_out_from_a_grown_spectrum(device: str) -> None:
    """The same grid judged on every row left out, with the rows that matter computed by themselves."""
    data = flights(N)
    start = time.perf_counter()
    fitted = fit(data, 16, device)
    spent = time.perf_counter() - start
    start = time.perf_counter()
    sweep = fitted.sweep()
    own = time.perf_counter() - start
    error = sweep.dataset["mse_error"] / sweep.dataset["mse"]
    best = sweep.best()
    there = float(error.sel(lam=best.lam, alpha=best.alpha, step=best.step))
    small = float(error.sel(lam=slice(1e-5 * N, None)).max())
    question = (
        f"leave-one-out of the same grid, 16 probes, against the fit (standard error at most "
        f"{100 * small:.1f} % for lam >= 1e-5 n, {100 * there:.2f} % at the best point)"
    )
    REPORT.rows.append((question, seconds(own), seconds(spent), f"{own / spent:.2f}", "-"))
    assert small < 0.01
