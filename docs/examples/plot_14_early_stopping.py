"""
Early stopping, in networks and kernels
=======================================
A wide network that is trained from its start for a time t stays near the gradient flow of its own tangent kernel,
stopped at t. So do chains of distillation whose every step is stopped early. Left: the test error of three steps over t,
lines by the kernel in closed form, dots by networks. Right: how far apart the predictions are, by the width.
"""

import copy

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

import sdgpu
from sdgpu.nn import Config, distill_chain, make_data, predict

pixels, digits = load_digits(return_X_y=True)
rows = np.random.default_rng(0).permutation(len(pixels))
X, y = (pixels[rows] / 16).astype(np.float32), digits[rows]
n, alpha, T = 200, 0.3, 3
data = make_data((X[:n], y[:n]), val=0, test=(X[n:700], y[n:700]), classes=10)
Y, truth = np.eye(10)[y[:n]], np.eye(10)[y[n:700]]


class FromZero(nn.Module):
    """A network minus what it says at its start: the flow begins at the function 0."""

    def __init__(self, network):
        super().__init__()
        self.network, self.start = network, copy.deepcopy(network).requires_grad_(False)

    def forward(self, x):
        return self.network(x) - self.start(x)


def network(width):
    torch.manual_seed(0)
    return FromZero(nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)))


def both(width, epochs, *, batch=n):
    """Predictions (T, rows, 10) by networks and by their kernel, both stopped at t."""
    model = network(width)
    ntk = sdgpu.EmpiricalNTK(copy.deepcopy(model).double())
    K = ntk(X[:n].astype(float))
    rate = 0.2 * n / np.linalg.eigvalsh(K)[-1]  # a tenth of what gradient descent bears
    t = rate * epochs * (n // batch)
    config = Config(
        epochs=epochs,
        batch=batch,
        lr=rate,
        optimiser="sgd",
        momentum=0.0,
        decay=0.0,
        activation="identity",
    )
    chain = distill_chain(model, data, config, steps=T, alphas=alpha)
    trained = np.stack([predict(step, data.test, config).numpy() for step in chain.models])
    fit = sdgpu.fit(X[:n].astype(float), Y, ntk, [n / t], smoother="gradient_flow")
    return t, trained, fit.path(n / t, alpha, steps=T).predict(X[n:700].astype(float))


def error(P):
    return np.mean((P - truth) ** 2, axis=(-2, -1))


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
times, networks, kernels = zip(
    *(both(512, epochs) for epochs in (10, 30, 100, 300, 1000)), strict=True
)
for step in range(T):
    line = left.loglog(times, [error(P)[step] for P in kernels], label=f"step {step + 1}")[0]
    left.loglog(times, [error(P)[step] for P in networks], "o", color=line.get_color())
left.set(
    xlabel="time t of the flow",
    ylabel="test error",
    title="lines: kernel, dots: networks of width 512",
)
left.legend()

widths = [32, 128, 512, 2048]
distances = []
for width in widths:
    _, trained, flow = both(width, 100)
    distances.append(
        np.linalg.norm(trained - flow, axis=(1, 2)) / np.linalg.norm(flow, axis=(1, 2))
    )
for step in range(T):
    right.loglog(widths, [d[step] for d in distances], "o-", label=f"step {step + 1}")
right.set(
    xlabel="width", ylabel="relative distance of the predictions", title="at 100 steps of descent"
)
right.legend()
plt.show()

# %%
# The distances by width and step; and with batches of 20 in place of all rows, at the same t.
print(np.round(distances, 4))
_, trained, flow = both(512, 10, batch=20)
print(np.round(np.linalg.norm(trained - flow, axis=(1, 2)) / np.linalg.norm(flow, axis=(1, 2)), 4))
