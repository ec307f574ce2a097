"""The best epoch so far, and when there will be no better one: functions of the history alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdgpu.nn.config import Config
from sdgpu.nn.records import Epoch

__all__ = ["best_epoch", "patience_ended"]


def best_epoch(history: Sequence[Epoch], monitor: str) -> int | None:
    """The epoch, from 1, with the best `monitor`: the smallest loss or the largest accuracy.

    Of equal ones the first. None without epochs, without validation where that is asked for, and for a
    stack, whose members have best epochs of their own.
    """
    values: list[Any] = [getattr(epoch, monitor) for epoch in history]
    if not values or isinstance(values[0], tuple):
        return None
    values = [-value if monitor.endswith("accuracy") else value for value in values]
    finite = [value for value in values if value == value]
    return values.index(min(finite)) + 1 if finite else None


def patience_ended(history: Sequence[Epoch], config: Config) -> bool:
    """Whether so many epochs as `config.patience` have passed since the best one."""
    best = best_epoch(history, config.monitor)
    return bool(config.patience) and best is not None and len(history) - best >= config.patience
