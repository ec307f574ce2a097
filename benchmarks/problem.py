"""The problem that the benchmarks share: n = 2,000 rows, 500 validation rows, 30,300 grid points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import sdgpu

LAMS = 30
ALPHAS = np.linspace(0, 1, 101)
STEPS = 10


@dataclass(frozen=True)
class Data:
    X: np.ndarray
    Y: np.ndarray
    X_val: np.ndarray
    Y_val: np.ndarray
    kernel: sdgpu.Gaussian
    lams: np.ndarray


def make(n: int = 2000, m: int = 500, d: int = 8, c: int = 1) -> Data:
    """A smooth function of eight features with noise; a Gaussian kernel of its own width."""
    rng = np.random.default_rng(0)
    X, X_val = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    mix = rng.standard_normal((d, c))
    Y, Y_val = (
        np.sin(rows @ mix) + 0.3 * rng.standard_normal((len(rows), c)) for rows in (X, X_val)
    )
    lams = np.geomspace(1e-6, 1e-1, LAMS) * n
    return Data(X, Y, X_val, Y_val, sdgpu.Gaussian(1 / 16), lams)
