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

from sdgpu.backend.distributed import gathered

__all__ = ["SharedBatchNorm", "own_batch_norm", "share_batch_norm"]

#: Channels side by side that are enough, and numbers that make it pay (benchmarks/bench_shared_norm.py).
WIDTH, ENOUGH = 128, 2**18


class _Normalise(torch.autograd.Function):
    """Batch norm of (b, C, ...) over the rows and places of all ranks.

    One message in each direction: means and squares around them of every rank, with its number of
    places, which merge without cancellation; and the two sums that the gradient needs.
    """

    @staticmethod
    def forward(
        X: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        C = X.shape[1]
        mean, variance = _moments(X)
        count = mean.new_full((1,), X.numel() // C)
        means, variances, counts = gathered(torch.cat([mean, variance, count])).split([C, C, 1], 1)
        total = counts.sum()
        mean, variance = _merged_moments(means, variances, (counts / total).flatten())
        return _normalised_by(X, mean, variance, weight, bias, eps=eps), mean, variance, total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the gradient needs."""
        X, weight, _, ctx.eps = inputs
        _, mean, variance, total = output
        ctx.mark_non_differentiable(mean, variance, total)
        ctx.save_for_backward(X, weight, mean, variance, total)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Of this rank's rows and parameters: what a loss of all ranks, the sum of theirs, gives."""
        X, weight, mean, variance, total = ctx.saved_tensors
        dY = gradients[0]
        scales, shifts = _gradient_sums(dY, X, mean, variance, ctx.eps)
        sums = gathered(torch.stack([scales, shifts])).sum(dim=0)
        inverse = torch.rsqrt(variance + ctx.eps)
        factor = inverse if weight is None else inverse * weight
        # dX = factor (dY - mean of dY - normalised X times the mean of dY times it): a batch norm too
        slope, constant = sums * (factor / -total)
        dX = _normalised_by(X, mean, variance, slope, constant, eps=ctx.eps)
        dX.addcmul_(dY, factor.reshape(-1, *(1,) * (X.ndim - 2)))
        weighted, shifted = ctx.needs_input_grad[1:3]
        return dX, scales if weighted else None, shifts if shifted else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        """Of a stack of networks: one with the channels of all."""
        K = info.batch_size
        X = _merged(inputs[0], in_dims[0], K, 1)
        weight, bias = (_merged(inputs[i], in_dims[i], K, 0) for i in (1, 2))
        outputs, mean, variance, total = _Normalise.apply(X, weight, bias, inputs[3])
        shape = (K, -1)
        results = (
            outputs.unflatten(1, shape),
            mean.unflatten(0, shape),
            variance.unflatten(0, shape),
        )
        return (*results, total), (1, 0, 0, None)


def _normalised_by(
    X: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
) -> torch.Tensor:
    """Batch norm with statistics that are given: one pass, whatever the memory format."""
    return torch.batch_norm(X, weight, bias, mean, variance, False, 0.0, eps, False)


def _merged_moments(
    means: torch.Tensor, variances: torch.Tensor, shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of all from those of parts (p, C) with their shares (p,)."""
    mean = shares @ means
    apart = means - mean
    return mean, shares @ torch.addcmul(variances, apart, apart)


def _moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of the channels of (b, C, ...) on this rank."""
    parts = _parts(X)
    if parts > 1:
        means, variances = (
            values.view(parts, -1)
            for values in torch.batch_norm_update_stats(_wide(X, parts), None, None, 0.0)
        )
        return _merged_moments(means, variances, means.new_full((parts,), 1 / parts))
    if X.device.type != "cpu" or X.ndim == 2 or not X.is_contiguous():
        return torch.batch_norm_update_stats(X, None, None, 0.0)
    # on a CPU torch goes through a channel number by number, unless channels lie side by side
    axes = [axis for axis in range(X.ndim) if axis != 1]
    mean = X.mean(axes, keepdim=True)
    return mean.flatten(), (X - mean).square_().mean(axes)


def _gradient_sums(
    dY: torch.Tensor, X: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (C,) over this rank of dY times the normalised X, and of dY."""
    parts = min(_parts(X), _parts(dY))
    if parts > 1:
        dY, X = _wide(dY, parts), _wide(X, parts)
        mean, variance = mean.repeat(parts), variance.repeat(parts)
    _, scales, shifts = torch.ops.aten.native_batch_norm_backward(
        dY, X, None, mean, variance, None, None, False, eps, [False, True, True]
    )
    if parts > 1:
        scales, shifts = (values.view(parts, -1).sum(dim=0) for values in (scales, shifts))
    return scales, shifts


def _parts(X: torch.Tensor) -> int:
    """How many parts of (b, C, ...) are to be taken for channels of their own.

    On a CPU torch's loops over channels that lie side by side take three times as long with 16 of them as
    with 64 or more, so several places count as one with as many times the channels. 1 where channels do not
    lie so, and where more calls would cost what that saves.
    """
    places, few = X.numel() // X.shape[1], WIDTH // X.shape[1]
    if X.device.type != "cpu" or few < 2 or X.numel() < ENOUGH:
        return 1
    if not X.movedim(1, -1).is_contiguous():
        return 1
    return min(1 << (few.bit_length() - 1), places & -places)


def _wide(X: torch.Tensor, parts: int) -> torch.Tensor:
    return X.movedim(1, -1).reshape(-1, parts * X.shape[1])


def _merged(values: Any, axis: int | None, members: int, channel_axis: int) -> Any:
    """Channels of all members one after another, at an axis of what one member has."""
    if values is None:
        return None
    stacked = values.expand(members, *values.shape) if axis is None else values.movedim(axis, 0)
    return stacked.movedim(0, channel_axis).flatten(channel_axis, channel_axis + 1)


def _normalised(
    X: torch.Tensor,
    means: torch.Tensor | None,
    variances: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Batch norm of (b, C, ...) in training mode, over the rows and places of all ranks."""
    wide = X if X.dtype == torch.float64 else X.float()
    weight, bias = (None if one is None else one.to(wide.dtype) for one in (weight, bias))
    outputs, mean, variance, count = _Normalise.apply(wide, weight, bias, eps)
    if means is not None and variances is not None:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            means.lerp_(mean.to(means.dtype), momentum)
            variances.lerp_(unbiased.to(variances.dtype), momentum)
    normalised: torch.Tensor = outputs.to(X.dtype)
    return normalised


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
