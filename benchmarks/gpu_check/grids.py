"""Whole grids of lam, weights and steps on many rows."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

import sdgpu
from benchmarks.gpu_check.check import Setting

__all__ = ["hundred_thousand", "million_features", "million_products"]

ALPHAS, STEPS = np.linspace(0, 1, 21), 10


def _data(setting: Setting, n: int, m: int = 5000) -> list[Any]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n + m, 6))
    truth = np.sin(2 * rows[:, 0]) + rows[:, 1] * rows[:, 2]
    noisy = truth + 0.3 * rng.standard_normal(n + m)
    parts = (rows[:n], noisy[:n], rows[n:], truth[n:])
    return [torch.tensor(part, device=setting.device) for part in parts]


def _grid(setting: Setting, n: int, lams: Any, **options: Any) -> dict[str, Any]:
    X, Y, X_new, truth = _data(setting, n)
    start = time.perf_counter()
    fitted = sdgpu.fit(
        X,
        Y,
        sdgpu.Gaussian(0.2),
        np.asarray(lams) * n,
        steps=STEPS,
        device=setting.device,
        **options,
    )
    setting.wait()
    fit_seconds = time.perf_counter() - start
    sweep = fitted.sweep(X_new, truth, alphas=ALPHAS, steps=STEPS)
    setting.wait()
    best = sweep.best()
    variance = float(truth.var())
    assert best.mse < 0.5 * variance, (
        f"the best of the grid explains nothing: {best.mse} of {variance}"
    )
    found: dict[str, Any] = {
        "seconds of the fit": fit_seconds,
        "seconds of the sweep": time.perf_counter() - start - fit_seconds,
        "best": {"lam / n": best.lam / n, "loss": best.mse, "variance": variance},
        "status": fitted.info.status,
        "passes": fitted.info.passes,
        "method": fitted.info.method,
        "backend": fitted.info.backend,
    }
    if setting.device == "cuda":
        found["most bytes of torch"] = torch.cuda.max_memory_allocated()
    return found


def hundred_thousand(setting: Setting) -> dict[str, Any]:
    """A subspace that serves a whole grid."""
    return _grid(
        setting,
        setting.size(100_000, 600),
        np.geomspace(1e-5, 1e-1, 20),
        method="subspace",
        operator="tiled",
        tol=1e-4,
    )


def million_features(setting: Setting) -> dict[str, Any]:
    """Nystrom features: one pass over the rows."""
    landmarks = setting.size(2000, 100)
    return _grid(
        setting,
        setting.size(1_000_000, 2000),
        np.geomspace(1e-7, 1e-1, 20),
        features=sdgpu.Nystrom(landmarks),
    )


def million_products(setting: Setting) -> dict[str, Any]:
    """Products with the whole kernel matrix, 5e11 values in each pass."""
    return _grid(
        setting,
        setting.size(1_000_000, 800),
        np.geomspace(1e-3, 1e-1, 10),
        method="subspace",
        operator="tiled",
        tol=1e-3,
        dtype="float32",
    )
