"""What a training refuses before any work: data, models and surroundings that do not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdgpu.nn.augment import normalise
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import autocast, inference
from sdgpu.nn.targets import Teacher

__all__ = ["check_graphs", "check_model", "check_targets"]


def check_graphs(config: Config, device: torch.device) -> None:
    """Refuse CUDA graphs elsewhere than on CUDA.

    Raises
    ------
    ValueError
    """
    if config.cuda_graphs and device.type != "cuda":
        raise ValueError(f"cuda_graphs=True needs the images on a CUDA device, not on {device}")


def check_targets(targets: Any, images: Any, members: int | None) -> None:
    """Refuse targets that do not fit the images.

    Raises
    ------
    TypeError, ValueError
        For labels out of range, another shape, or entries that are not finite.
    """
    n, c = len(images), images.classes
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= c:
        raise ValueError(
            f"labels run from {low} to {high}, but classes={c}: they must be in 0..{c - 1}"
        )
    if targets is None or isinstance(targets, Teacher):
        return
    if not isinstance(targets, torch.Tensor):
        raise TypeError(
            f"targets must be a tensor, a Teacher or None (the labels), not {type(targets).__name__}"
        )
    shape = (n, c) if members is None else (members, n, c)
    if tuple(targets.shape) != shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)}, but must have shape {shape}")
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets must be finite: NaN or infinity found")


def check_model(model: nn.Module, images: Any, config: Config) -> None:
    """Refuse a model whose outputs are not one for each class.

    Raises
    ------
    ValueError
        With both numbers.
    """
    sample = normalise(images.pixels[:1], images.mean, images.std, next(model.parameters()).dtype)
    with inference(model), autocast(config, sample.device):
        found = model(sample).shape
    if found[-1] != images.classes or found[-2:-1] != (1,):
        raise ValueError(
            f"the model gives outputs of shape {tuple(found)} for one image, but classes="
            f"{images.classes}: it must give one number for each class"
        )
