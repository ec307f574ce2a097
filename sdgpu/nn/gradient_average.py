"""Gradients of all ranks become their mean, once a batch.

torch's DistributedDataParallel sends gradients while others are still computed. That pays on GPUs and
between hosts. On one host the threads of gloo take the cores from the ranks that compute: there a rank
computes to the end, and the gradients pass in one piece through memory that the ranks share
(benchmarks/bench_shared_norm.py).
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdgpu.backend.distributed import World
from sdgpu.nn.config import Config
from sdgpu.nn.shared_norm import SharedBatchNorm

__all__ = ["GradientAverage", "average_over"]


class GradientAverage(Protocol):
    """What makes the ranks of a training one.

    Attributes
    ----------
    forward : Module
        The network, to be called and differentiated.
    """

    forward: nn.Module

    def begin(self) -> None:
        """Before a batch."""
        ...

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of a part of a batch."""
        ...

    def finish(self) -> None:
        """After the parts of a batch: gradients are the mean over the ranks of the sums of parts."""
        ...


class _Alone:
    def __init__(self, model: nn.Module) -> None:
        self.forward = model

    def begin(self) -> None:
        pass

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def finish(self) -> None:
        pass


class _InBuckets(_Alone):
    """By torch's DistributedDataParallel, during the last backward pass."""

    def __init__(self, model: nn.Module, config: Config, device: torch.device) -> None:
        self._parallel = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=config.find_unused_parameters,
        )
        super().__init__(self._parallel)

    def part(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self._parallel.no_sync()


class _InOnePiece(_Alone):
    """After the last backward pass.

    A parameter without a gradient on all ranks keeps none, as on one process; where only some have none,
    theirs are 0.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        super().__init__(model)
        self._world = world
        shapes = str([(name, *one.shape) for name, one in model.named_parameters()])
        world.agree({"parameters of the network": shapes}, torch.device("cpu"))
        world.share(itertools.chain(model.parameters(), model.buffers()))
        # statistics of shared norms are the same on all ranks
        shared = {
            id(buffer)
            for module in model.modules()
            if isinstance(module, SharedBatchNorm)
            for buffer in module.buffers(recurse=False)
        }
        self._buffers = [one for one in model.buffers() if id(one) not in shared]
        trained: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                trained.setdefault(parameter.dtype, []).append(parameter)
        self._pieces = [_Piece(parameters) for parameters in trained.values()]

    def begin(self) -> None:
        self._world.share(self._buffers)

    def finish(self) -> None:
        for piece in self._pieces:
            piece.average(self._world)


class _Piece:
    """Memory for the gradients of parameters of one dtype, and for which of them there are."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        count = sum(parameter.numel() for parameter in parameters)
        self.memory = parameters[0].new_zeros(count + len(parameters))
        self.gradients, start = [], 0
        for parameter in parameters:
            # where its numbers lie in one piece, in the order in which they lie
            strides = torch.empty_like(parameter, device="meta").stride()
            self.gradients.append(
                self.memory.as_strided(parameter.shape, strides, storage_offset=start)
            )
            start += parameter.numel()
        self.present = self.memory[count:]

    @torch.no_grad()
    def average(self, world: World) -> None:
        own = [parameter.grad for parameter in self.parameters]
        given = [gradient for gradient in own if gradient is not None]
        if len(given) == len(own):
            torch._foreach_copy_(self.gradients, given)
            self.present.fill_(1)
        else:
            for gradient, mine in zip(self.gradients, own, strict=True):
                gradient.zero_() if mine is None else gradient.copy_(mine)
            self.present.copy_(torch.tensor([mine is not None for mine in own], device="cpu"))
        world.sum(self.memory)
        everywhere = bool((self.present > 0).all())
        self.memory.div_(world.size)
        present = [True] * len(own) if everywhere else (self.present > 0).tolist()
        for parameter, gradient, some in zip(self.parameters, self.gradients, present, strict=True):
            parameter.grad = gradient if some else None


def average_over(
    world: World, model: nn.Module, config: Config, device: torch.device
) -> GradientAverage:
    """How the gradients of a network become means over the ranks; all ranks call.

    Parameters
    ----------
    world : World
    model : Module
        Its parameters and buffers become those of rank 0.
    config : Config
        `find_unused_parameters` of it, which only DistributedDataParallel needs.
    device : torch.device
        Of the model.

    Raises
    ------
    ValueError
        If the ranks have networks of other parameters.
    """
    if world.size == 1:
        return _Alone(model)
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    if device.type == "cpu" and world.on_one_host and not sparse:
        return _InOnePiece(model, world)
    return _InBuckets(model, config, device)
