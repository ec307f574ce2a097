"""What does an empirical tangent kernel cost, in memory and time, against full Jacobians?

A CNN of three convolutions and 56,394 parameters with ten outputs, on 512 of scikit-learn's digits in
float32. The rival holds the Jacobian (n, c, P) and multiplies it with itself. Each peak is measured in a
process of its own, by the growth of its resident set (Linux).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch.func import functional_call, jacrev, vmap

from benchmarks.conftest import REPORT
from sdgpu.kernels import EmpiricalNTK

N, SHAPE, MEMORY = 512, (1, 8, 8), "80MB"
CHUNK = 64  # rows of the rival's vmap: all at once would take more memory and no less time


def digits(n: int = N) -> torch.Tensor:
    return torch.tensor(load_digits().data[:n] / 16, dtype=torch.float32)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    layers = [
        layer
        for i, o in ((1, 32), (32, 64), (64, 64))
        for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def ours(net: torch.nn.Module, X: torch.Tensor) -> torch.Tensor:
    return EmpiricalNTK(net, shape=SHAPE, memory=MEMORY)(X)


def full(net: torch.nn.Module, X: torch.Tensor) -> torch.Tensor:
    """J J' / c, with J of all rows, outputs and parameters."""
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def apply(parameters: Any, x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, parameters, (x.reshape(1, *SHAPE),))[0]

    size = sum(value.numel() for value in parameters.values())
    J = torch.empty(len(X), 10, size, dtype=X.dtype, device=X.device)
    for start in range(0, len(X), CHUNK):
        found = vmap(jacrev(apply), (None, 0))(parameters, X[start : start + CHUNK])
        parts = [part.flatten(2) for part in found.values()]
        torch.cat(parts, dim=2, out=J[start : start + CHUNK])
    flat = J.flatten(1)
    return flat @ flat.T / 10


def resident(field: str) -> int:
    """Bytes of a field of this process's status."""
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])


def probe(route: str) -> None:
    """Print the growth of the peak over what was there, in bytes."""
    compute, net = {"ours": ours, "full": full}[route], network()
    compute(net, digits(8))  # imports and pools
    X = digits()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS:")
    compute(net, X)
    print(resident("VmHWM:") - before)


def peak(route: str) -> int:
    command = [sys.executable, "-m", "benchmarks.bench_tangent", route]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory(device: str) -> None:
    if device != "cpu":
        pytest.skip("the resident set tells nothing of a GPU")
    mine, other = peak("ours"), peak("full")
    question = f"peak memory of the tangent kernel of a CNN, n = {N}, against full Jacobians"
    sizes = [f"{size / 1e6:.0f} MB" for size in (mine, other)]
    REPORT.rows.append((question, *sizes, f"{mine / other:.2f}", "<= 0.1"))
    assert mine <= 0.1 * other


@pytest.mark.full
def test_time(race: Any, device: str) -> None:
    net, X = network().to(device), digits().to(device)
    wanted = full(net, X)
    # against float64 a unit near 0 may change its sign, and a row of K its fourth digit, on either route
    assert float(torch.linalg.norm(ours(net, X) - wanted) / torch.linalg.norm(wanted)) < 1e-5
    race(
        f"tangent kernel of that CNN in float32, exact to 1e-5, memory={MEMORY!r}, against full Jacobians",
        lambda: ours(net, X),
        lambda: full(net, X),
        at_most=1.5,
        rounds=3,
    )


if __name__ == "__main__":
    probe(sys.argv[1])
