"""A moving average of the weights of a network that is being trained."""

from __future__ import annotations

import torch
from torch import nn

from sdgpu.backend.copying import copy_module

__all__ = ["WeightAverage"]


class WeightAverage:
    """The exponential moving average of the weights after each step, weighted so that it has no start.

    After t steps it is the sum over s = 1..t of w_s theta_s with

        w_s = decay^(t - s) (1 - decay) / (1 - decay^t),

    weights that sum to 1: of one step it is theta_1, and the initialisation is no part of it (Adam corrects
    its moments so). Which step it is follows from the position, so nothing but the average is state.
    Buffers of floating point (statistics of batch norm) are averaged likewise, others are those of the
    last step.

    Parameters
    ----------
    model : Module
        Whose parameters with ``requires_grad`` are averaged; it is copied.
    decay : float
        In [0, 1).

    Attributes
    ----------
    model : Module
        The copy that has the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy_module(model)
        for parameter in self.model.parameters():
            parameter.grad = None
        self._averaged, self._copied = _pairs(self.model, model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Parameters
        ----------
        step : int
            t, from 1.
        """
        weight = (1 - self.decay) / (1 - self.decay**step)
        averages, current = self._averaged
        if averages:
            torch._foreach_lerp_(averages, current, weight)
        for average, buffer in zip(*self._copied, strict=True):
            average.copy_(buffer)


Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def _pairs(average: nn.Module, model: nn.Module) -> tuple[Pairs, Pairs]:
    """Tensors of the average and of the network: those that are averaged, and those that are copied."""
    averaged: Pairs = ([], [])
    copied: Pairs = ([], [])
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        if theirs.requires_grad:
            averaged[0].append(mine)
            averaged[1].append(theirs)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        pair = averaged if current.is_floating_point() else copied
        pair[0].append(buffer)
        pair[1].append(current)
    return averaged, copied
