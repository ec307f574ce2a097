"""Normalisation of (b, C, ...) over the rows and places of all ranks, to be differentiated.

One message in each direction: means and squares around them of every rank, with its number of places,
which merge without cancellation; and the two sums that the gradient needs.

On CPUs a layer goes by :class:`_Compiled` where there is llvmlite, else by :class:`_OnHost`. There
the few vectors of C numbers cost as much as a pass over the rows, so NumPy works on them, at half the
price of torch. :class:`_Anywhere` runs on all devices, and under ``vmap`` takes the members of a stack for
channels. The formulas are written once for these two, and once as machine code.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from sdgpu.backend.distributed import gathered, gathered_on_host
from sdgpu.nn.channel_passes import affine, gradient_sums, moments, of_channels, standard
from sdgpu.nn.compiled_norm import CompiledNorm, compiled_norm, constants, dense, takes

__all__ = ["normalised"]


def normalised(
    X: torch.Tensor,
    means: torch.Tensor | None,
    variances: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Batch norm of (b, C, ...) in training mode over all ranks, as ``torch.nn.functional.batch_norm``.

    In float32 at least. Running means and variances (C,) are updated, where there are any.
    """
    wide = X if X.dtype == torch.float64 else X.float()
    weight, bias = (None if one is None else one.to(wide.dtype) for one in (weight, bias))
    running = _Running(means, variances, momentum)
    if X.device.type == "cpu" and not _transformed():
        function = _Compiled if takes(wide, weight, bias, means, variances) else _OnHost
        on_host: torch.Tensor = function.apply(wide, weight, bias, (running, eps))
        return on_host.to(X.dtype)
    outputs, mean, variance, count, *_ = _Anywhere.apply(wide, weight, bias, eps)
    with torch.no_grad():
        running.follow(mean, variance * (count / (count - 1)))
    everywhere: torch.Tensor = outputs.to(X.dtype)
    return everywhere


def _transformed() -> bool:
    """Whether this is under ``vmap``, where a tensor has no numbers to be seen."""
    return torch._C._are_functorch_transforms_active()


class _Running(NamedTuple):
    """Statistics (C,) of the batches so far, None where a layer keeps none."""

    means: torch.Tensor | None
    variances: torch.Tensor | None
    momentum: float

    def follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.means is not None and self.variances is not None:
            self.means.lerp_(mean.to(self.means.dtype), self.momentum)
            self.variances.lerp_(variance.to(self.variances.dtype), self.momentum)


def _array(values: torch.Tensor | None) -> Any:
    return None if values is None else values.detach().numpy()


# The vectors of C numbers, of NumPy or torch.


def _whole(means: Any, variances: Any) -> tuple[Any, Any]:
    """Mean and variance (C,) from those of parts (parts, C) of the same size."""
    if len(means) == 1:
        return means[0], variances[0]
    mean = means.sum(0) / len(means)
    apart = means - mean
    return mean, (variances + apart * apart).sum(0) / len(means)


def _merged(parts: Any) -> Any:
    """Mean (C,), variance (C,) and count (,) of all, from (mean, variance, count) of parts (p, 2C + 1)."""
    counts, C = parts[:, -1], parts.shape[1] // 2
    total = counts.sum()
    shares = counts / total
    both = shares @ parts[:, :-1]
    apart = parts[:, :C] - both[:C]
    return both[:C], both[C:] + shares @ (apart * apart), total


def _line(mean: Any, variance: Any, eps: float, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """1 / sqrt(variance + eps), and batch norm as X times a slope plus a constant."""
    inverse = (variance + eps) ** -0.5
    slope = inverse if weight is None else inverse * weight
    constant = -mean * slope if bias is None else bias - mean * slope
    return inverse, slope, constant


def _gradient_lines(mean: Any, inverse: Any, slope: Any, means: Any) -> tuple[Any, Any]:
    """Slope and constant of what is linear in X in the gradient by it.

    dX = slope (dY - mean of dY - normalised X times the mean of dY times it), normalised X being
    (X - mean) times `inverse`.

    Parameters
    ----------
    means : (2, C)
        Of dY times the normalised X, and of dY.
    """
    scale = means[0] * inverse
    return -slope * scale, slope * (mean * scale - means[1])


class _OnHost(torch.autograd.Function):
    """On CPUs, by functions of torch and NumPy."""

    @staticmethod
    def forward(
        ctx: Any,
        X: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        settings: tuple[_Running, float],
    ) -> torch.Tensor:
        (running, eps), C = settings, X.shape[1]
        with np.errstate(all="ignore"):  # what overflows does so as torch lets it
            own_mean, own_variance = _whole(*(values.numpy() for values in moments(X)))
            own = np.empty(2 * C + 1, own_mean.dtype)
            own[:C], own[C:-1], own[-1] = own_mean, own_variance, X.numel() // C
            mean, variance, total = _merged(gathered_on_host(own))
            unbiased = torch.from_numpy(variance * (total / (total - 1)))
            inverse, slope, constant = _line(mean, variance, eps, _array(weight), _array(bias))
        running.follow(torch.from_numpy(mean), unbiased)
        ctx.save_for_backward(X)
        ctx.statistics = mean, variance, total, inverse, slope, eps
        return affine(X, torch.from_numpy(slope), torch.from_numpy(constant))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dY: torch.Tensor) -> Any:
        (X,) = ctx.saved_tensors
        mean, variance, total, inverse, slope, eps = ctx.statistics
        sums = gradient_sums(dY, X, torch.from_numpy(mean), torch.from_numpy(variance), eps)
        own = np.empty((2, len(mean)), mean.dtype)
        with np.errstate(all="ignore"):
            for i, parts in enumerate(sums):
                np.add.reduce(parts.numpy(), out=own[i])
            means = np.add.reduce(gathered_on_host(own)) / total
            lines = _gradient_lines(mean, inverse, slope, means)
        dX = affine(X, *(torch.from_numpy(values) for values in lines))
        dX.addcmul_(dY, of_channels(torch.from_numpy(slope), X))
        scale, shift = torch.from_numpy(own).unbind()
        weighted, shifted = ctx.needs_input_grad[1:3]
        return dX, scale if weighted else None, shift if shifted else None, None


class _Compiled(torch.autograd.Function):
    """On CPUs, by compiled loops."""

    @staticmethod
    def forward(
        ctx: Any,
        X: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        settings: tuple[_Running, float],
    ) -> torch.Tensor:
        (running, eps), loops = settings, _loops(X)
        X, sizes = dense(X)
        C, kind = sizes[1], X.dtype
        own, lines = X.new_empty(2 * C + 1), X.new_empty(loops.lines * C + 1)
        loops.moments(X.data_ptr(), own.data_ptr(), *sizes)
        everyone = torch.from_numpy(gathered_on_host(own.numpy()))
        zeros, ones = standard(C, kind)
        numbers = constants(running.momentum, eps)
        means, variances = running.means, running.variances
        if means is None or variances is None:  # room for what nobody reads
            means = variances = lines[(loops.lines - 1) * C :]
        weight, bias = ones if weight is None else weight, zeros if bias is None else bias
        vectors = (everyone, weight, bias, means, variances, lines, numbers)
        loops.statistics(*(one.data_ptr() for one in vectors), len(everyone), C)
        Y = torch.empty_like(X)
        loops.normalise(X.data_ptr(), Y.data_ptr(), lines.data_ptr(), *sizes)
        ctx.save_for_backward(X)
        ctx.lines, ctx.sizes = lines, sizes
        return Y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dY: torch.Tensor) -> Any:
        (X,) = ctx.saved_tensors
        sizes, lines, loops = ctx.sizes, ctx.lines, _loops(X)
        dX = torch.empty_like(X)
        if dY.stride() != X.stride():
            dY = torch.empty_like(X).copy_(dY)
        own, rows = X.new_empty(2, sizes[1]), (X.data_ptr(), dY.data_ptr())
        loops.gradient_sums(*rows, lines.data_ptr(), own.data_ptr(), *sizes)
        everyone = torch.from_numpy(gathered_on_host(own.numpy()))
        loops.gradient_lines(everyone.data_ptr(), lines.data_ptr(), len(everyone), sizes[1])
        loops.gradient(*rows, dX.data_ptr(), lines.data_ptr(), *sizes)
        scale, shift = own.unbind()
        weighted, shifted = ctx.needs_input_grad[1:3]
        return dX, scale if weighted else None, shift if shifted else None, None


def _loops(X: torch.Tensor) -> CompiledNorm:
    loops = compiled_norm(X.dtype)
    assert loops is not None
    return loops


class _Anywhere(torch.autograd.Function):
    """On every device, and of the members of a stack at once."""

    @staticmethod
    def forward(
        X: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> tuple[torch.Tensor, ...]:
        mean, variance = _whole(*moments(X))
        count = mean.new_full((1,), X.numel() // X.shape[1])
        mean, variance, total = _merged(gathered(torch.cat([mean, variance, count])))
        inverse, slope, constant = _line(mean, variance, eps, weight, bias)
        return affine(X, slope, constant), mean, variance, total, inverse, slope

    # torch binds the arguments of every call to it, and would take it anew from the code each time
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.eps = inputs[-1]
        _, *statistics = output
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(inputs[0], *statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dY: torch.Tensor, *_: Any) -> Any:
        X, mean, variance, total, inverse, slope = ctx.saved_tensors
        own = torch.stack(gradient_sums(dY, X, mean, variance, ctx.eps)).sum(dim=1)
        means = gathered(own).sum(dim=0) / total
        dX = affine(X, *_gradient_lines(mean, inverse, slope, means))
        dX.addcmul_(dY, of_channels(slope, X))
        weighted, shifted = ctx.needs_input_grad[1:3]
        return dX, own[0] if weighted else None, own[1] if shifted else None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        """Of a stack of networks: one with the channels of all."""
        K = info.batch_size
        X = _side_by_side(inputs[0], in_dims[0], K, 1)
        weight, bias = (_side_by_side(inputs[i], in_dims[i], K, 0) for i in (1, 2))
        outputs, mean, variance, total, inverse, slope = _Anywhere.apply(X, weight, bias, inputs[3])
        shape = (K, -1)
        mean, variance, inverse, slope = (
            values.unflatten(0, shape) for values in (mean, variance, inverse, slope)
        )
        results = (outputs.unflatten(1, shape), mean, variance, total, inverse, slope)
        return results, (1, 0, 0, None, 0, 0)


def _side_by_side(values: Any, axis: int | None, members: int, channel_axis: int) -> Any:
    """Channels of all members one after another, at an axis of what one member has."""
    if values is None:
        return None
    stacked = values.expand(members, *values.shape) if axis is None else values.movedim(axis, 0)
    return stacked.movedim(0, channel_axis).flatten(channel_axis, channel_axis + 1)
