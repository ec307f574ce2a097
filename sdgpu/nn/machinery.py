"""What a training is set up with: an optimiser, the arithmetic of the device, a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdgpu.device.timing import Progress, Stopwatch
from sdgpu.nn.config import Config

__all__ = ["clock", "compiled", "not_finite", "numerics", "optimiser", "seed_draws"]


def optimiser(
    model: nn.Module, config: Config, chosen: set[str], device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser of `config`; its weight decay is the gradient of decay/2 ||theta||^2.

    Parameters
    ----------
    model : Module
        Its parameters with ``requires_grad`` are trained.
    config : Config
    chosen : set of str
        Names of the parameters that the penalty covers.
    device : torch.device

    Raises
    ------
    ValueError
        If the model has no parameters to train.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("the model has no parameter with requires_grad=True: nothing to train")
    decay = config.decay if config.penalty == "l2" else 0.0
    groups = [
        {"params": [p for name, p in named if name in chosen], "weight_decay": decay},
        {"params": [p for name, p in named if name not in chosen], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = True  # one loop over all parameters in place of ten calls for each
    if config.optimiser == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=fused,
        )
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, fused=fused)


def compiled(model: nn.Module, config: Config) -> Any:
    """The forward pass as it is, through torch.compile, or recorded as CUDA graphs."""
    if config.cuda_graphs:
        return torch.compile(model, mode="reduce-overhead")
    return torch.compile(model) if config.compile else model


@contextmanager
def numerics(config: Config, device: torch.device) -> Iterator[None]:
    """TF32, cuDNN's choices and determinism of `config`; the caller's settings and generator return."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    cuda = device.type == "cuda"
    try:
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        if cuda:
            torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        with (
            torch.random.fork_rng(devices=[device] if cuda else []),
            torch.backends.cudnn.flags(
                enabled=True,
                benchmark=not config.deterministic,
                deterministic=config.deterministic,
                allow_tf32=config.tf32,
            ),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        if cuda:
            torch.set_float32_matmul_precision(precision)


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers with NaN or infinity."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def seed_draws(device: torch.device, seed: int) -> None:
    """Seed torch's own generator on the device and on the CPU; inside :func:`numerics` only.

    ``torch.manual_seed`` would do, but without CUDA it notes every call for later, with a stack trace:
    a quarter of the time of a small step, and memory that grows with the batches.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def clock(device: torch.device, progress: Progress | None) -> Stopwatch:
    """A stopwatch that waits for the device."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return Stopwatch(wait, progress=progress)
