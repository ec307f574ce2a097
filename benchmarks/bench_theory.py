"""What do leave-one-out and tangent kernels cost, in eigendecompositions and in Gaussian Gram matrices?"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch

import sdgpu
from benchmarks.problem import ALPHAS, STEPS, make


def test_leave_one_out(race: Any, device: str) -> None:
    data = make()
    K = data.kernel(data.X)

    def ours() -> None:
        fitted = sdgpu.fit(
            data.X, data.Y, data.kernel, lams=data.lams, method="eigh", device=device
        )
        fitted.sweep(alphas=ALPHAS, steps=STEPS)

    race(
        "fit and leave-one-out of 30 lam x 101 weights x 10 steps, n = 2,000, against one eigh",
        ours,
        lambda: scipy.linalg.eigh(K.copy(), driver="evd", overwrite_a=True, check_finite=False),
        at_most=3.0,
        rounds=5,
    )


def test_tangent_kernel(race: Any, device: str) -> None:
    X = np.random.default_rng(0).standard_normal((10_000, 784)).astype(np.float32)
    rows = torch.tensor(X, device=device)
    race(
        "NTK Gram matrix of depth 3, n = 10,000, d = 784, float32, against the Gaussian one",
        lambda: sdgpu.NTK(depth=3)(rows),
        lambda: sdgpu.Gaussian(1e-3)(rows),
        at_most=3.0,
        rounds=3,
    )
