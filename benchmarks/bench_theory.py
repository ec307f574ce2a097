"""What do leave-one-out and tangent kernels cost, in eigendecompositions and in Gaussian Gram matrices?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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


def test_students(race: Any, device: str) -> None:
    """Two decompositions, of the teacher and of the student; the rest of the grid is algebra."""
    data = make()
    lams, K = np.geomspace(1e-4, 1e-1, 20) * len(data.X), data.kernel(data.X)

    def ours() -> None:
        teacher = sdgpu.fit(
            data.X, data.Y, sdgpu.Laplacian(0.3), lams, method="eigh", device=device
        )
        how = {"method": "eigh", "device": device}
        made = sdgpu.student(teacher, data.kernel, lams, data.X, data.Y, **how)
        made.sweep(data.X_val, data.Y_val, steps=STEPS)

    race(
        "students: 20 teacher lam x 20 lam x 101 weights x 10 steps, n = 2,000, against one eigh",
        ours,
        lambda: scipy.linalg.eigh(K.copy(), driver="evd", overwrite_a=True, check_finite=False),
        at_most=3.5,
        rounds=5,
    )


def test_rounds_of_labels(race: Any, device: str) -> None:
    """420 fits in closed form against one of them by drawing."""
    data = make()
    X, truth = data.X[:500], data.Y[:500]
    lams = np.geomspace(1e-4, 1e-1, 20) * len(X)
    fitted = sdgpu.fit(X, truth, data.kernel, lams, method="eigh", device=device)

    def ours() -> None:
        _ = sdgpu.synthetic_labels(fitted, truth, rounds=100, noise=0.5).dataset

    one = sdgpu.synthetic_labels(
        fitted, truth, rounds=100, noise=0.5, lams=lams[:1], weights=[0.618]
    )
    race(
        "100 rounds of made labels, n = 500: 20 lam x 21 shares, against 1,000 draws of one",
        ours,
        lambda: one.simulate(1000),
        at_most=1.0,
        rounds=5,
    )


@pytest.mark.parametrize(
    ("what", "rank", "at_most"),
    [
        ("moments of 10 workers, merged", None, 0.2),
        ("spectra of rank 60 of 10 workers, merged", 60, 0.2),
        ("spectra of rank 60 of 10 workers, their mean", 60, 1.0),
    ],
)
def test_federated(race: Any, device: str, what: str, rank: int | None, at_most: float) -> None:
    """What the server does with messages, beside the pass over all rows and the same algebra."""
    rng = np.random.default_rng(0)
    X, X_val = rng.standard_normal((20_000, 8)), rng.standard_normal((500, 8))
    y, y_val = np.sin(X[:, 0]) + 0.1 * rng.standard_normal(len(X)), np.sin(X_val[:, 0])
    kernel, features = sdgpu.Gaussian(0.05), sdgpu.RandomFourier(400)
    lams = np.geomspace(1e-4, 1e-1, 20) * len(X)
    space = sdgpu.federated.FeatureSpace(kernel, features, d=8, device=device)
    messages: Any = [
        space.moments(X[rows], y[rows]) for rows in np.array_split(np.arange(len(X)), 10)
    ]
    if rank is not None:
        messages = [space.spectrum(one, rank=rank) for one in messages]
    answer = space.average if "mean" in what else space.fit

    def pooled() -> None:
        fitted = sdgpu.fit(X, y, kernel, lams, features=features, device=device)
        fitted.sweep(X_val, y_val, alphas=ALPHAS, steps=STEPS)

    race(
        f"server: {what}, k = 400, with the sweep, against fit and sweep of 20,000 rows",
        lambda: answer(messages, lams).sweep(X_val, y_val, alphas=ALPHAS, steps=STEPS),
        pooled,
        at_most=at_most,
        rounds=5,
    )


def test_gradient_flow(race: Any, device: str) -> None:
    data = make()

    def swept(smoother: str) -> None:
        how = {"method": "eigh", "device": device, "smoother": smoother}
        fitted = sdgpu.fit(data.X, data.Y, data.kernel, lams=data.lams, **how)
        fitted.sweep(data.X_val, data.Y_val, alphas=ALPHAS, steps=STEPS)

    race(
        "fit and sweep of gradient flow at 30 times against ridge of 30 lam, n = 2,000",
        lambda: swept("gradient_flow"),
        lambda: swept("ridge"),
        at_most=1.1,
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
