"""Chains whose trainings are stopped early, beside the gradient flow of their own tangent kernel."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sdgpu
from sdgpu.nn import Config, distill_chain, make_data, predict

RNG = np.random.default_rng(0)
X, X_new = RNG.standard_normal((40, 5)), RNG.standard_normal((30, 5))
LABELS = (X[:, 0] * X[:, 1] > 0).astype(int)
Y = np.eye(2)[LABELS]
DATA = make_data((X, LABELS), val=0, test=(X_new, np.arange(30) % 2), classes=2)
ALPHAS = [0.4, -0.2]


class FromZero(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.start = network, copy.deepcopy(network).requires_grad_(False)

    def forward(self, x):
        return self.network(x) - self.start(x)


def both(network, *, share, epochs):
    """Predictions (3, 30, 2) of chains of networks and of kernels, stopped at the same time."""
    model = FromZero(network.double())
    kernel = sdgpu.EmpiricalNTK(model)
    rate = share * len(X) / np.linalg.eigvalsh(kernel(X))[-1]
    options = {"optimiser": "sgd", "momentum": 0.0, "decay": 0.0, "activation": "identity"}
    config = Config(epochs=epochs, batch=len(X), lr=rate, **options)
    chain = distill_chain(model, DATA, config, steps=3, alphas=ALPHAS)
    trained = np.stack([predict(step, DATA.test, config).numpy() for step in chain.models])
    lam = len(X) / (rate * epochs)
    fit = sdgpu.fit(X, Y, kernel, [lam], smoother="gradient_flow")
    return trained, fit.path(lam, ALPHAS, steps=3).predict(X_new)


def distance(trained, flow):
    return np.linalg.norm(trained - flow, axis=(1, 2)) / np.linalg.norm(flow, axis=(1, 2))


@pytest.mark.parametrize("share", [0.02, 0.01])
def test_a_linear_network_is_its_kernel_up_to_the_steps_of_descent(share):
    """Each step of descent is off the flow by the square of its length: half the rate, half the error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = both(nn.Linear(5, 2), share=share, epochs=round(4 / share))
    assert distance(*found).max() < 0.3 * share


def test_wide_networks_are_near_their_kernel():
    distances = []
    for width in (16, 1024):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 2))
            distances.append(distance(*both(nn.Sequential(*layers), share=0.1, epochs=100)))
    assert (distances[1] < 0.05).all()
    assert (distances[1] < distances[0] / 3).all()
