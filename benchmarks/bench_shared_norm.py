"""What batch norm over the rows of all ranks adds to a training step.

Run as a module, ``python -m benchmarks.bench_shared_norm``: ResNet-20, 64 images a step in all, two ranks
of one thread, both memory formats. Beside it the same step with every rank's norms its own, in turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median

import pytest

from benchmarks.bench_distributed import started

ROUNDS, STEPS = 15, 4


def make_step(*, channels_last: bool, shared: bool, rows: int) -> Callable[[], None]:
    """A step of Adam on made images, gradients averaged over the ranks."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from sdgpu.nn import data_loss, make_model
    from sdgpu.nn.shared_norm import share_batch_norm

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model("resnet20", seed=1).train().to(memory_format=layout)
    if shared:
        model = share_batch_norm(model)
    parallel = DistributedDataParallel(model)
    X = torch.randn(rows, 3, 32, 32, device="cpu").contiguous(memory_format=layout)
    U = torch.rand(rows, 10, device="cpu").softmax(1)
    adam = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        data_loss(parallel(X), U).backward()
        adam.step()
        adam.zero_grad()

    return step


def measure() -> dict[str, float]:
    """Seconds of a step on this rank: the least of all rounds, and the median."""
    import torch
    from torch import distributed

    from sdgpu.backend.distributed import join

    torch.set_num_threads(1)
    world = join(torch.device("cpu"))
    cases = {
        f"{'channels last' if last else 'contiguous'}, {'shared' if shared else 'own'}": make_step(
            channels_last=last, shared=shared, rows=64 // world.size
        )
        for last in (False, True)
        for shared in (False, True)
    }
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(ROUNDS + 1):
        for name, step in cases.items():
            distributed.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            if number:  # the first warms up
                spent[name].append((time.perf_counter() - start) / STEPS)
    least = {name: min(seconds) for name, seconds in spent.items()}
    return least | {f"{name}, median": median(seconds) for name, seconds in spent.items()}


@pytest.mark.full
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_shared_batch_norm(layout: str) -> None:
    """Two processes of one thread on an idle machine of two cores."""
    from benchmarks.conftest import REPORT, seconds

    found = started("benchmarks.bench_shared_norm", ["measure"], 2)
    shared, own = found[f"{layout}, shared"], found[f"{layout}, own"]
    question = (
        f"step of ResNet-20 on two ranks, {layout}: batch norm over both against each its own"
    )
    REPORT.rows.append((question, seconds(shared), seconds(own), f"{shared / own:.2f}", "<= 1.1"))
    assert shared / own <= 1.1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure()))
    else:
        for name, value in started("benchmarks.bench_shared_norm", ["measure"], 2).items():
            print(f"{name}: {1e3 * value:.2f} ms")
