"""What does a sweep cost beyond one eigendecomposition, more weights, more outputs?

The bound is the eigendecomposition of K itself: nothing that answers every lam can be cheaper on a
dense matrix. The sweep adds m n k + m k L T c multiplications.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

import sdgpu
from benchmarks.problem import ALPHAS, STEPS, Data, make
from sdgpu.study.example import paper_example


def whole(data: Data, device: str, alphas: np.ndarray = ALPHAS) -> Any:
    fitted = sdgpu.fit(data.X, data.Y, data.kernel, lams=data.lams, device=device)
    return fitted.sweep(data.X_val, data.Y_val, alphas=alphas, steps=STEPS)


def eigendecomposition(data: Data, device: str) -> Any:
    K = data.kernel(data.X)
    if device == "cpu":
        return lambda: scipy.linalg.eigh(K, driver="evd")
    import torch

    on_device = torch.tensor(K, device=device)

    def run() -> None:
        torch.linalg.eigh(on_device)
        torch.cuda.synchronize()

    return run


def test_sweep_against_one_eigh(race: Any, device: str) -> None:
    data = make()
    race(
        "fit and sweep of 30,300 points, n = 2,000, against one eigh of the same K",
        lambda: whole(data, device),
        eigendecomposition(data, device),
        at_most=1.5,
    )


def test_weights_are_free(race: Any, device: str) -> None:
    data = make()
    race(
        "fit and sweep with 1,001 weights against 11",
        lambda: whole(data, device, np.linspace(0, 1, 1001)),
        lambda: whole(data, device, np.linspace(0, 1, 11)),
        at_most=1.2,
    )


def test_weights_are_free_in_the_sweep_alone(race: Any, device: str) -> None:
    data = make()
    fitted = sdgpu.fit(data.X, data.Y, data.kernel, lams=data.lams, device=device)

    def sweep(count: int) -> Any:
        return fitted.sweep(data.X_val, data.Y_val, alphas=np.linspace(0, 1, count), steps=STEPS)

    race(
        "sweep alone with 1,001 weights against 11",
        lambda: sweep(1001),
        lambda: sweep(11),
        at_most=1.2,
        rounds=15,
    )


def test_ten_outputs(race: Any, device: str) -> None:
    one, ten = make(), make(c=10)
    race(
        "fit and sweep with 10 outputs against 1",
        lambda: whole(ten, device),
        lambda: whole(one, device),
        at_most=2.0,
    )


def noise_draws(device: str) -> tuple[Any, Any]:
    """10,000 noisy copies of the 11-point example, six steps, a weight for each; and one by one."""
    example = paper_example()
    noise = 0.5 * np.random.default_rng(0).standard_normal((11, 10_000))
    Y = np.sin(2 * np.pi * example.X) + noise
    truth = np.repeat(example.truth[:, None], 10_000, axis=1)
    kernel = sdgpu.Gaussian(80.0)

    def together() -> Any:
        fitted = sdgpu.fit(example.X, Y, kernel, lams=0.2, device=device)
        return fitted.optimal_alphas(example.X_val, truth, steps=6, per_output=True)

    def one_by_one() -> None:
        for j in range(100):
            fitted = sdgpu.fit(example.X, Y[:, j], kernel, lams=0.2, device=device)
            fitted.optimal_alphas(example.X_val, example.truth, steps=6)

    return together, one_by_one


def test_noise_draws(race: Any, device: str) -> None:
    together, one_by_one = noise_draws(device)
    race(
        "alpha* of 10,000 noise draws at once against one by one, 100 timed",
        together,
        one_by_one,
        times=100.0,
        at_least=10.0,
        rounds=5,
    )


def test_noise_draws_take_less_than_a_second(race: Any, device: str) -> None:
    together, _ = noise_draws(device)
    race(
        "alpha* of 10,000 noise draws against one second",
        together,
        lambda: 1.0,
        at_most=1.0,
        rounds=5,
    )
