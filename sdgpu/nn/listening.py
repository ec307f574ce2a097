"""Who hears of every epoch, of which training it is, and what the answer means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sdgpu.nn.records import Epoch, FitLabel, of_member

__all__ = ["OnEpoch", "ask", "labelled"]

#: What hears of every epoch, and may end the training by True.
OnEpoch = Callable[[Epoch], bool | None]


def labelled(on_epoch: OnEpoch | None, *labels: FitLabel) -> OnEpoch | None:
    """Let a caller hear which training it is that an epoch is of.

    Parameters
    ----------
    on_epoch : callable or None
    labels : FitLabel
        One, or one for each member of a stack; stage and member are those of the training.
    """
    if on_epoch is None:
        return None

    def hear(epoch: Epoch) -> bool | None:
        fit = epoch.fit
        assert fit is not None
        label = labels[fit.member or 0]
        label = dataclasses.replace(label, stage=fit.stage, member=fit.member)
        return on_epoch(dataclasses.replace(epoch, fit=label))

    return hear


def ask(on_epoch: OnEpoch, epoch: Epoch, stage: str) -> list[bool]:
    """Who is to end: one answer, or one for each member of a stack, those that have ended told nothing.

    Raises
    ------
    TypeError
        For an answer that is not True, False or None.
    """
    if not isinstance(epoch.train_loss, tuple):
        return [_answer(on_epoch, dataclasses.replace(epoch, fit=FitLabel(stage)))]
    answers = []
    for member in range(len(epoch.train_loss)):
        one = of_member(epoch, member)
        answers.append(
            one is not None
            and _answer(on_epoch, dataclasses.replace(one, fit=FitLabel(stage, member=member)))
        )
    return answers


def _answer(on_epoch: OnEpoch, epoch: Epoch) -> bool:
    answer: Any = on_epoch(epoch)
    if answer is not None and not isinstance(answer, (bool, np.bool_)):
        raise TypeError(
            f"on_epoch must return True (to end the training), False or None, not {answer!r}"
        )
    return bool(answer)
