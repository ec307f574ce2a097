"""Batch norm over the rows of all processes: several of them are then one, whatever the network.

torch's own SyncBatchNorm runs on CUDA only and speaks to it alone; this one is plain sums, so it runs
with gloo on CPUs too, and gives what one process gives, within rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SharedBatchNorm", "own_batch_norm", "share_batch_norm"]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks; so is its gradient, for every rank's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> torch.Tensor:
        total: torch.Tensor = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.Module):
    """A batch norm that counts the rows of all ranks while it is trained; else the one that it holds.

    Parameters
    ----------
    norm : BatchNorm1d, BatchNorm2d or BatchNorm3d
        Its parameters and buffers are used and updated, under the names that they have.

    Notes
    -----
    Two sums over the ranks of 2 C and C numbers in each direction: means first, so that the variance does
    not cancel.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self._norm = [norm]  # in a list: not a child, its tensors are those of this module
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.training = norm.training

    @property
    def norm(self) -> _BatchNorm:
        """What it stands for."""
        return self._norm[0]

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Normalise (b, C, ...) over the rows and places of all ranks."""
        norm = self.norm
        if not self.training:
            mean, variance = (
                norm.running_mean,
                norm.running_var,
            )  # or None: those of the rows at hand
            return torch.nn.functional.batch_norm(
                X, mean, variance, norm.weight, norm.bias, mean is None, 0.0, norm.eps
            )
        axes = [axis for axis in range(X.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(X.ndim)]
        wide = X if X.dtype == torch.float64 else X.float()
        places = wide.new_tensor([X.numel() / X.shape[1]])
        sums = _Sum.apply(torch.cat([wide.sum(axes), places]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.reshape(shape)
        variance = _Sum.apply((centred * centred).sum(axes)) / count
        self._remember(mean.detach(), variance.detach(), count)
        found = centred * torch.rsqrt(variance + norm.eps).reshape(shape)
        if norm.affine:
            found = found * norm.weight.reshape(shape) + norm.bias.reshape(shape)
        return found.to(X.dtype)

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        norm, means, variances = self.norm, self.norm.running_mean, self.norm.running_var
        if means is None or variances is None or norm.num_batches_tracked is None:
            return
        norm.num_batches_tracked.add_(1)
        # without a momentum, the mean of all batches
        part = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        means.lerp_(mean.to(means.dtype), part)
        unbiased = variance * (count / (count - 1))
        variances.lerp_(unbiased.to(variances.dtype), part)


def share_batch_norm(model: nn.Module) -> nn.Module:
    """Let every batch norm of a network count the rows of all ranks; in place, names stay.

    Returns
    -------
    Module
        The same network; another one only if it is a batch norm itself.
    """
    if isinstance(model, _BatchNorm):
        return SharedBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, share_batch_norm(child))
    return model


def own_batch_norm(model: nn.Module) -> nn.Module:
    """Take that back."""
    if isinstance(model, SharedBatchNorm):
        return model.norm.train(model.training)
    for name, child in model.named_children():
        setattr(model, name, own_batch_norm(child))
    return model
