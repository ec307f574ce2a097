"""Batch norm over the rows of all processes: several of them are then one, whatever the network.

On CUDA that is torch's own SyncBatchNorm. It runs nowhere else, and not under ``vmap``: on CPUs, and in
stacks on any device, there is one here that runs with gloo too, and gives what one process gives, within
rounding. A layer sends one message in each direction.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sdgpu.nn.rank_normalisation import normalised

__all__ = ["SharedBatchNorm", "own_batch_norm", "share_batch_norm"]


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
        return normalised(X, means, variances, weight, bias, momentum=momentum, eps=eps)


_SIGNATURE = inspect.signature(nn.functional.batch_norm)


def _on_cuda(norm: nn.Module) -> bool:
    tensors = (*norm.parameters(recurse=False), *norm.buffers(recurse=False))
    return any(tensor.is_cuda for tensor in tensors)


def _synchronised(norm: _BatchNorm) -> nn.SyncBatchNorm | None:
    """torch's own of the same tensors, if it is for this layer.

    It is for plain ones with tensors on CUDA; those of a stack's skeleton have no device.
    """
    if not (_plain(norm) and _on_cuda(norm)):
        return None
    sync = nn.SyncBatchNorm(
        norm.num_features,
        norm.eps,
        norm.momentum,
        affine=False,
        track_running_stats=norm.track_running_stats,
    )
    sync.__dict__.update(_parameters=norm._parameters, _buffers=norm._buffers)
    return sync


def _plain(norm: _BatchNorm) -> bool:
    """Whether its forward pass is torch's."""
    return type(norm).forward is _BatchNorm.forward or type(norm) is nn.SyncBatchNorm


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
        self._sync = [_synchronised(norm)]

    @property
    def norm(self) -> _BatchNorm:
        """What it stands for."""
        return self._norm[0]

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Normalise (b, C, ...) over the rows and places of all ranks."""
        norm = self.norm
        norm.training = self.training
        (sync,) = self._sync
        if not self.training:
            return norm.forward(X)
        if sync is not None:
            outputs: torch.Tensor = sync(X)
            return outputs
        if not _plain(norm):
            with _OverRanks() as ranks:
                outputs = norm.forward(X)
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
        return normalised(
            X, means, variances, norm.weight, norm.bias, momentum=momentum or 0.0, eps=norm.eps
        )


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
