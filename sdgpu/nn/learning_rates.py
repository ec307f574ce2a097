"""The learning rate of every position, as a factor of the largest: no state, so nothing to save."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["rate_factor"]


def rate_factor(config: Any, epoch: int, batch: int, batches: int) -> float:
    """The learning rate at one position over `config.lr`.

    Parameters
    ----------
    config : Config
        Its schedule, warmup, milestones, drop and epochs.
    epoch, batch : int
        From 0.
    batches : int
        Of an epoch.
    """
    position = epoch + batch / batches
    if position < config.warmup:
        return min(1.0, (batch + 1 + epoch * batches) / (config.warmup * batches))
    fraction = (position - config.warmup) / (config.epochs - config.warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fraction))
    if config.schedule == "linear":
        return 1 - fraction
    if config.schedule == "milestones":
        return float(config.drop ** sum(epoch >= milestone for milestone in config.milestones))
    return 1.0
