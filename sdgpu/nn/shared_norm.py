"""Batch norm over the rows of all processes: several of them are then one, whatever the network.

torch's own SyncBatchNorm runs on CUDA only and speaks to it alone; this one is plain sums, so it runs
with gloo on CPUs too, and gives what one process gives, within rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

__all__ = ["SharedBatchNorm", "own_batch_norm", "share_batch_norm"]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; so is its gradient, for every rank's loss depends on it."""

    @staticmethod
    def forward(tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> torch.Tensor:
        total: torch.Tensor = gradients[0].clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def vmap(info: Any, in_dims: Any, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Of a stack of networks: entry by entry as well."""
        return _Sum.apply(tensor), in_dims[0]


def _normalised(
    X: torch.Tensor,
    means: torch.Tensor | None,
    variances: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Batch norm of (b, C, ...) in training mode, over the rows and places of all ranks.

    Two sums over the ranks of 2 C and C numbers in each direction: means first, so that the variance
    does not cancel.
    """
    axes = [axis for axis in range(X.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(X.ndim)]
    wide = X if X.dtype == torch.float64 else X.float()
    local_count = wide.new_full((1,), X.numel() / X.shape[1])
    sums = _Sum.apply(torch.cat([wide.sum(axes), local_count]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.reshape(shape)
    variance = _Sum.apply((centred * centred).sum(axes)) / count
    if means is not None and variances is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            means.lerp_(mean.detach().to(means.dtype), momentum)
            variances.lerp_(unbiased.detach().to(variances.dtype), momentum)
    normalised = centred * torch.rsqrt(variance + eps).reshape(shape)
    if weight is not None:
        normalised = normalised * weight.reshape(shape)
    if bias is not None:
        normalised = normalised + bias.reshape(shape)
    return normalised.to(X.dtype)


class _OverRanks(TorchFunctionMode):
    """Within it ``torch.nn.functional.batch_norm`` counts the rows of all ranks, and sets `was_called`."""

    was_called = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.batch_norm:
            return func(*args, **kwargs)
        call = _SIGNATURE.bind(*args, **kwargs)
        call.apply_defaults()
        X, means, variances, weight, bias, training, momentum, eps = call.arguments.values()
        if not training:
            return func(*args, **kwargs)
        self.was_called = True
        return _normalised(X, means, variances, weight, bias, momentum, eps)


_SIGNATURE = inspect.signature(nn.functional.batch_norm)


class SharedBatchNorm(nn.Module):
    """A batch norm that counts the rows of all ranks while it is trained; else the one that it holds.

    Parameters
    ----------
    norm : BatchNorm1d, BatchNorm2d, BatchNorm3d, or a subclass
        Its parameters, buffers and parts are used and updated, under the names that they have. Of a
        subclass the forward pass is its own, and the batch norm in it is taken over all ranks.

    Raises
    ------
    RuntimeError
        In the forward pass, if a subclass does not call ``torch.nn.functional.batch_norm``.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self._norm = [norm]  # in a list: not a child, its tensors are those of this module
        # tensors, parts and hooks are the same objects in both
        for attribute in [name for name in self.__dict__ if name != "_norm"]:
            self.__dict__[attribute] = norm.__dict__[attribute]

    @property
    def norm(self) -> _BatchNorm:
        """What it stands for."""
        return self._norm[0]

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Normalise (b, C, ...) over the rows and places of all ranks."""
        norm = self.norm
        norm.training = self.training
        forward = type(norm).forward
        if not self.training:
            return norm.forward(X)
        if forward is not _BatchNorm.forward and type(norm) is not nn.SyncBatchNorm:
            with _OverRanks() as ranks:
                outputs: torch.Tensor = norm.forward(X)
            if not ranks.was_called:
                raise RuntimeError(
                    f"{type(norm).__name__} is a batch norm with a forward pass of its own, whose "
                    "statistics cannot be taken over several processes: train on one process"
                )
            return outputs
        means, variances, momentum = norm.running_mean, norm.running_var, norm.momentum
        if not norm.track_running_stats:
            means = variances = None
        elif norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:  # the mean of all batches
                momentum = 1.0 / float(norm.num_batches_tracked)
        return _normalised(X, means, variances, norm.weight, norm.bias, momentum or 0.0, norm.eps)


def share_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch norm of a network count the rows of all ranks; in place, names stay.

    Returns
    -------
    Module
        The same network; another one only if it is a batch norm itself.
    """
    if isinstance(model, _BatchNorm):
        return SharedBatchNorm(model)
    _inside(model, share_batch_norm)
    for name, child in model._modules.items():  # a child that has two names is met twice
        if child is not None:
            model._modules[name] = share_batch_norm(child)
    return model


def own_batch_norm(model: nn.Module) -> nn.Module:
    """Take that back."""
    if isinstance(model, SharedBatchNorm):
        model.norm.training = model.training
        return model.norm
    _inside(model, own_batch_norm)
    for name, child in model._modules.items():
        if child is not None:
            model._modules[name] = own_batch_norm(child)
    return model


def _inside(model: nn.Module, change: Callable[[nn.Module], nn.Module]) -> None:
    """Change the network whose code the members of a stack share, too: it is no part of the stack."""
    skeleton = getattr(model, "skeleton", None)
    if isinstance(skeleton, list):
        skeleton[:] = [change(module) for module in skeleton]
