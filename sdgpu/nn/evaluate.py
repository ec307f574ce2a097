"""What a network gives without gradients: predictions, loss, accuracy, and a checksum of its state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdgpu.backend.checks import integer
from sdgpu.backend.distributed import World
from sdgpu.nn.config import Config
from sdgpu.nn.loss import predictions
from sdgpu.nn.records import as_numbers

__all__ = [
    "Score",
    "autocast",
    "channels_come_last",
    "checksum",
    "confusion_matrix",
    "float_type",
    "inference",
    "predict",
    "score",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class Score:
    """Loss and accuracy against the ground truth; tuples with one entry each for a stack.

    Attributes
    ----------
    loss : float
        Mean over the rows of 1/2 ||f_i - y_i||^2, whatever loss was trained with: it is what (16)
        minimises.
    accuracy : float
        Share of rows whose largest output is the label.
    clean_accuracy : float or None
        The same against `clean_labels`, where labels are noisy.
    top5 : float
        Share of rows whose label is among the five largest outputs (all, with fewer classes).
    """

    loss: float | tuple[float, ...]
    accuracy: float | tuple[float, ...]
    clean_accuracy: float | tuple[float, ...] | None = None
    top5: float | tuple[float, ...] = math.nan


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients; the mode of every part comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def autocast(config: Config, device: torch.device) -> Any:
    """The autocast context of `config.amp`; none with "off", where the whole training is without."""
    return nullcontext() if config.amp == "off" else _autocast(config.amp, device)


@contextmanager
def _autocast(amp: str, device: torch.device) -> Iterator[None]:
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    try:
        with torch.autocast(device.type, dtype=dtype):
            yield
    finally:
        # weights in half precision are kept until the outermost context ends, which may be the caller's
        torch.clear_autocast_cache()


def float_type(model: nn.Module) -> torch.dtype:
    """Of a model's first floating parameter, else of its first floating buffer; float32 without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def channels_come_last(model: nn.Module, config: Config) -> bool:
    """Whether the channels of images come last in memory: as `config` says, or else where that pays.

    That is for networks with convolutions in float32 on a CPU, whose steps take 15 to 20 % less time (the
    presets' ResNet-20 and CNN, on two cores). Results differ in their last bits from those of the other
    format. Networks in a stack, whose images have one axis more, keep the other.
    """
    if config.channels_last is not None:
        return config.channels_last
    if getattr(model, "members", None) is not None:
        return False
    kernels = (part.weight for part in model.modules() if isinstance(part, nn.Conv2d))
    first = next(kernels, None)
    return first is not None and first.dtype == torch.float32 and first.device.type == "cpu"


def predict(
    model: nn.Module, images: Any, config: Config | None = None, *, world: World | None = None
) -> torch.Tensor:
    """f on clean images, in evaluation mode: softmax probabilities, or outputs with "identity".

    Parameters
    ----------
    model : Module
        On the device of the images; nothing of it changes.
    images : Images
    config : Config, optional
        Its activation, temperature, channels_last and eval_batch. Its amp counts for the training alone.
    world : World, optional
        Processes that share out the batches: the outputs are those of one process, to the bit where the
        processes compute alike. With fewer than one batch of `eval_batch` rows for each, some are idle.

    Returns
    -------
    tensor (n, c), or (members, n, c) for a stack
        float32, or float64 for a model in float64. Cost: one forward pass.

    Raises
    ------
    TypeError
        If the model gives something else than a tensor.
    """
    config, world = config or Config(), world or World()
    shares = world.row_shares(len(images), config.eval_batch)
    # a rank without rows asks for one all the same: the outputs have a shape
    rows = shares[world.rank] or range(1)
    blocks = images.clean(
        rows, config.eval_batch, float_type(model), channels_last=channels_come_last(model, config)
    )
    # whatever the training is in: alpha-hat and the losses of steps are differences of such outputs
    with inference(model), torch.autocast(images.device.type, enabled=False):
        parts = [
            predictions(
                model(inputs), activation=config.activation, temperature=config.output_temperature
            )
            for inputs in blocks
        ]
    block = torch.cat(parts, dim=-2)[..., : len(shares[world.rank]), :]
    return world.gather_rows(block, [len(share) for share in shares])


def score(P: torch.Tensor, images: Any) -> Score:
    """Loss and accuracy of predictions P (n, c), or of each member's in (members, n, c)."""
    Y = images.one_hot(P.dtype)
    loss = 0.5 * (P - Y).square().sum(dim=-1).double().mean(dim=-1)
    guesses = P.argmax(dim=-1)
    truths = (images.labels, images.clean_labels)
    accuracy, clean = (
        None if labels is None else (guesses == labels).double().mean(dim=-1) for labels in truths
    )
    assert accuracy is not None
    return Score(
        as_numbers(loss),
        as_numbers(accuracy),
        None if clean is None else as_numbers(clean),
        as_numbers(top_k_accuracy(P, images, min(5, P.shape[-1]))),
    )


def top_k_accuracy(P: torch.Tensor, images: Any, k: int = 5) -> torch.Tensor:
    """Share (...) of rows whose label is among the k largest of the outputs P (..., n, c).

    Of equal outputs those of the smaller classes count as larger.

    Raises
    ------
    ValueError
        If k is not in 1..c.
    """
    if integer("k", k, 1) > P.shape[-1]:
        raise ValueError(f"k={k} exceeds the {P.shape[-1]} classes")
    # how many outputs come before that of the label
    labels = images.labels[:, None].expand(*P.shape[:-1], 1)
    own = P.gather(-1, labels)
    classes = torch.arange(P.shape[-1], device=P.device)
    before = ~((own > P) | ((own == P) & (labels <= classes)))  # all of them, where it is NaN
    return (before.sum(dim=-1) < k).double().mean(dim=-1)


def confusion_matrix(P: torch.Tensor, images: Any) -> torch.Tensor:
    """Counts (..., c, c) of rows by label (first axis) and largest output (second), int64.

    Parameters
    ----------
    P : tensor (..., n, c)
        Predictions, for example of :func:`predict`.
    images : Images
        Whose labels are the truth.
    """
    c = P.shape[-1]
    pairs = images.labels * c + P.argmax(dim=-1)  # (..., n)
    counts = torch.zeros((*pairs.shape[:-1], c * c), dtype=torch.int64, device=P.device)
    counts.scatter_add_(-1, pairs, torch.ones_like(pairs))
    return counts.reshape(*pairs.shape[:-1], c, c)


def checksum(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, with names, shapes and types: equal means equal bits."""
    digest = hashlib.sha256()
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
