"""What batch norm over the rows of all ranks adds to a training step.

Run as a module, ``python -m benchmarks.bench_shared_norm``: ResNet-20, 64 images a step in all, two ranks
of one thread, both memory formats. Beside it the same step with every rank's norms its own; that step with
the messages of shared ones, which nobody reads: what waiting for each other costs; and that step as torch
has it, by DistributedDataParallel. In turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import pytest

from benchmarks.bench_distributed import started

ROUNDS, STEPS = 30, 3
LAYOUTS = ("contiguous", "channels last")
CASES = ("shared", "messages", "own", "torch")


def make_step(case: str, world: Any, *, channels_last: bool, rows: int) -> Callable[[], None]:
    """A step of Adam on made images, gradients averaged over the ranks."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from sdgpu.nn import Config, data_loss, make_model
    from sdgpu.nn.gradient_average import average_over
    from sdgpu.nn.shared_norm import share_batch_norm

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model("resnet20", seed=1).train().to(memory_format=layout)
    if case == "shared":
        model = share_batch_norm(model)
    if case == "messages":
        with_messages(model)
    gradients = average_over(world, model, Config(), torch.device("cpu"))
    forward = DistributedDataParallel(model) if case == "torch" else gradients.forward
    X = torch.randn(rows, 3, 32, 32, device="cpu").contiguous(memory_format=layout)
    U = torch.rand(rows, 10, device="cpu").softmax(1)
    adam = torch.optim.Adam(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        if case == "shared":  # each its own: as fast as can be, statistics stay apart
            gradients.begin()
        data_loss(forward(X), U).backward()
        if case != "torch":
            gradients.finish()
        adam.step()
        adam.zero_grad()

    return step


def with_messages(model: Any) -> None:
    """Let every norm of a network wait for the other ranks, forward and backward."""
    import numpy as np
    import torch

    from sdgpu.backend.distributed import gathered_on_host

    def meet(norm: Any, inputs: Any, outputs: torch.Tensor) -> None:
        sent = np.zeros(2 * outputs.shape[1] + 1, np.float32)
        gathered_on_host(sent)
        node: Any = outputs.grad_fn
        node.register_prehook(lambda gradients: [gathered_on_host(sent)].clear())

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(meet)


def measure() -> dict[str, float]:
    """Seconds of a step on this rank: medians over the rounds, and of the ratios in each."""
    import torch
    from torch import distributed

    from sdgpu.backend.distributed import join
    from sdgpu.nn.training_setup import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does
    world = join(torch.device("cpu"))
    found: dict[str, float] = {}
    for layout in LAYOUTS:
        last = layout == "channels last"
        steps = {
            case: make_step(case, world, channels_last=last, rows=64 // world.size)
            for case in CASES
        }
        spent: dict[str, list[float]] = {case: [] for case in CASES}
        for number in range(ROUNDS + 2):
            for case, step in steps.items():
                distributed.barrier()
                start = time.perf_counter()
                for _ in range(STEPS):
                    step()
                if number > 1:  # the first warm up
                    spent[case].append((time.perf_counter() - start) / STEPS)
        for case, seconds in spent.items():
            found[f"{layout}, {case}"] = median(seconds)
        for case in CASES[1:]:
            pairs = zip(spent["shared"], spent[case], strict=True)
            found[f"{layout}, shared over {case}"] = median(a / b for a, b in pairs)
    return found


@cache
def measured() -> dict[str, float]:
    """On two ranks, both memory formats in one go."""
    found: dict[str, float] = started("benchmarks.bench_shared_norm", ["measure"], 2)
    return found


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_batch_norm(layout: str) -> None:
    """Two processes of one thread on an idle machine of two cores."""
    from benchmarks.conftest import REPORT, seconds

    found = measured()
    step = f"step of ResNet-20 on two ranks, {layout}: batch norm over both against each its own"
    notes = {
        "own": "",
        "messages": " but waiting for each other as often",
        "torch": ", by DistributedDataParallel",
    }
    targets = {"own": 1.1, "messages": 1.05, "torch": 1.1}
    for case, target in targets.items():
        ratio = found[f"{layout}, shared over {case}"]
        question = step + notes[case]
        times = (seconds(found[f"{layout}, {one}"]) for one in ("shared", case))
        REPORT.rows.append((question, *times, f"{ratio:.2f}", f"<= {target}"))
    assert all(found[f"{layout}, shared over {case}"] <= targets[case] for case in targets)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure()))
    else:
        for name, value in measured().items():
            print(f"{name}: {value:.3f}" if "over" in name else f"{name}: {1e3 * value:.2f} ms")
