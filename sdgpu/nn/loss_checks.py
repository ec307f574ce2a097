"""What a training refuses of its loss beforehand: logits for probabilities, functions that give none."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from sdgpu.nn.config import Config
from sdgpu.nn.loss import data_loss
from sdgpu.nn.parts import one_hot

__all__ = [
    "check_mixing",
    "check_probabilities_given",
    "check_schedule",
    "try_loss",
    "warn_of_probabilities",
]

TOLERANCE = 1e-2  # of a sum of probabilities, which rounding in half precision stays below


def check_probabilities_given(targets: Any, config: Config) -> None:
    """Refuse targets that are logits where predictions are probabilities.

    Rows of alpha Y + (1 - alpha) p sum to 1 for every alpha, whether or not their entries are in [0, 1];
    rows of logits do neither.

    Raises
    ------
    ValueError
    """
    if not isinstance(targets, torch.Tensor) or not _of_probabilities(config):
        return
    if float(targets.min()) >= 0 and float(targets.max()) <= 1:
        return
    sums = targets.sum(dim=-1).double()
    worst = sums.flatten()[(sums - 1).abs().argmax()]
    if abs(float(worst) - 1) > TOLERANCE:
        raise ValueError(
            f"targets: rows of probabilities sum to 1, and one sums to {float(worst):g}: of logits make "
            "predictions(logits), or train outputs as they are, activation='identity'"
        )


def check_schedule(config: Config, n: int) -> None:
    """Try a schedule of the user's own at the first and last batch of all epochs.

    Parameters
    ----------
    config : Config
    n : int
        Training rows.

    Raises
    ------
    TypeError, ValueError
        If it gives no rate.
    """
    if isinstance(config.schedule, str):
        return
    batches = math.ceil(n / config.batch)
    for epoch in range(config.epochs):
        for batch in {0, batches - 1}:
            config.rate(epoch, batch, batches)


def try_loss(logits: torch.Tensor, part: Any, config: Config, *, weighted: bool) -> None:
    """Try a loss of the user's own on outputs (..., b, c) of the first rows.

    Raises
    ------
    TypeError, ValueError
        If it gives no losses, or a mean where rows are `weighted`.
    """
    if isinstance(config.loss, str):
        return
    rows = logits.shape[-2]
    Y = one_hot(part.labels[:rows], part.classes, logits.dtype).expand(logits.shape)
    weights = logits.new_ones(rows) if weighted else None
    data_loss(logits, Y, loss=config.loss, weights=weights)


def check_mixing(inputs: torch.Tensor, config: Config) -> None:
    """Refuse to mix what has no mixture.

    Raises
    ------
    ValueError
    """
    if (config.mixup or config.cutmix) and not inputs.is_floating_point():
        raise ValueError(
            f"mixup and cutmix mix inputs of floating point, but these are {inputs.dtype}: leave them 0"
        )
    if config.cutmix and inputs.ndim != 4:
        raise ValueError(
            f"cutmix={config.cutmix:g} needs images (b, C, H, W), not inputs {tuple(inputs.shape)}: use "
            "mixup"
        )


def warn_of_probabilities(outputs: torch.Tensor, config: Config, name: str) -> None:
    """Warn of a network whose outputs are probabilities already."""
    if not _of_probabilities(config) or outputs.shape[-1] < 2:
        return
    sums = outputs.sum(dim=-1)
    if bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        warnings.warn(
            f"{name} gives probabilities, of which activation='softmax' takes the softmax once more: let "
            "it give logits, or use activation='identity'",
            stacklevel=5,
        )


def _of_probabilities(config: Config) -> bool:
    return isinstance(config.loss, str) and config.activation == "softmax"
