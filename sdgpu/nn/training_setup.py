"""What a training is set up with: the arithmetic of the device, modes of the parts, a clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from sdgpu.backend.precision import tf32
from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.nn.config import Config

__all__ = [
    "clock",
    "compiled",
    "frozen",
    "keep_freed_memory",
    "not_finite",
    "numerics",
    "passing_buffers",
    "resting",
    "restore",
    "seed_draws",
    "start_training",
]


def compiled(model: nn.Module, config: Config) -> Any:
    """The forward pass as it is, through torch.compile, or recorded as CUDA graphs."""
    if config.cuda_graphs:
        return torch.compile(model, mode="reduce-overhead")
    return torch.compile(model) if config.compile else model


def keep_freed_memory() -> None:
    """Let the C library keep what a step frees on the CPU for the next one.

    glibc gives memory back to the system above a threshold that it takes from the largest block freed so
    far, of up to 32 MB; pages that come anew with every batch are some 5 % of the time of a small ResNet.
    So one block of that size is asked for and freed, untouched. Elsewhere that does nothing.
    """
    torch.empty(2**25 - 2**13, dtype=torch.uint8, device="cpu")


@contextmanager
def numerics(config: Config, device: torch.device) -> Iterator[None]:
    """TF32, cuDNN's choices and determinism of `config`; the caller's settings and generator return.

    Without the caller's autocast: a training has that of `config` alone.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = device.type == "cuda"
    try:
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        with (
            torch.random.fork_rng(devices=[device] if cuda else []),
            torch.autocast(device.type, enabled=False),
            _cuda_choices(config) if cuda else nullcontext(),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextmanager
def _cuda_choices(config: Config) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    settings = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark, cudnn.deterministic = not config.deterministic, config.deterministic
        with tf32(allowed=config.tf32):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = settings


def resting(model: nn.Module) -> frozenset[str]:
    """Names of the parts that stay in evaluation mode while a model is trained.

    Those that are in it while the model itself is not: the caller has frozen them. Of a model that is in
    evaluation mode as a whole, normalisations whose weights are frozen.
    """
    if model.training:
        return frozenset(name for name, part in model.named_modules() if not part.training)
    return frozenset(
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        and part.weight is not None
        and not any(p.requires_grad for p in part.parameters())
    )


def start_training(model: nn.Module, eval_parts: Iterable[str]) -> nn.Module:
    """Put a model in training mode, but for the parts in `eval_parts`."""
    eval_parts = set(eval_parts)
    for name, part in model.named_modules():
        part.training = name not in eval_parts
    return model


def frozen(model: nn.Module) -> set[str]:
    """Names of the parameters that are not trained."""
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def passing_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are no part of ``state_dict``: training may change them all the same."""
    state_names = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in state_names}


@torch.no_grad()
def restore(
    model: nn.Module, state: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]
) -> None:
    """Put back what ``state_dict`` and :func:`passing_buffers` gave."""
    model.load_state_dict(state)
    model_buffers = dict(model.named_buffers())
    for name, value in buffers.items():
        model_buffers[name].copy_(value)


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers with NaN or infinity."""
    named = [
        (name, torch.isfinite(tensor.detach()).all())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point()
    ]
    if not named:
        return []
    finite = torch.stack([flag for _, flag in named]).tolist()  # one look, which waits for a GPU
    return [name for (name, _), flag in zip(named, finite, strict=True) if not flag]


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
