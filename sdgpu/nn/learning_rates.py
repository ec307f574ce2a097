"""The learning rate of every position, as a factor of the largest: no state, so nothing to save."""

from __future__ import annotations

import math
from typing import Any

from sdgpu.backend.checks import positive

__all__ = ["EPOCHS_COUNT", "rate_factor"]

#: Schedules whose rate depends on how many epochs there are in all.
EPOCHS_COUNT = ("cosine", "linear")


def rate_factor(config: Any, epoch: int, batch: int, batches: int) -> float:
    """The learning rate at one position over `config.lr`.

    Parameters
    ----------
    config : Config
        Its schedule, warmup, milestones, drop and epochs. A schedule of the user's own is a function of
        the position in epochs, epoch + batch / batches, from 0; warmup comes before it as before any.
    epoch, batch : int
        From 0.
    batches : int
        Of an epoch.

    Raises
    ------
    TypeError, ValueError
        If the user's own gives no finite number >= 0.
    """
    position = epoch + batch / batches
    if position < config.warmup:
        return min(1.0, (batch + 1 + epoch * batches) / (config.warmup * batches))
    if not isinstance(config.schedule, str):
        factor = config.schedule(position)
        return positive(f"schedule({position:g})", factor, zero=True)
    fraction = (position - config.warmup) / (config.epochs - config.warmup)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fraction))
    if config.schedule == "linear":
        return 1 - fraction
    if config.schedule == "milestones":
        return float(config.drop ** sum(epoch >= milestone for milestone in config.milestones))
    return 1.0
