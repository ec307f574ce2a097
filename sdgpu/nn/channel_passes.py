"""Passes over the channels of (b, C, ...): moments, the sums of a gradient, a line for each channel.

On CPUs, where torch's loops are slow for some layouts, by whichever of its functions is fast
(benchmarks/bench_shared_norm.py).
"""

from __future__ import annotations

from functools import lru_cache

import torch

__all__ = ["affine", "gradient_sums", "moments", "of_channels", "standard"]

#: Channels side by side that are enough, and numbers that make it pay.
WIDTH, ENOUGH = 256, 2**18


def moments(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances (parts, C) of the channels of (b, C, ...), of parts of equally many places."""
    parts = _parts(X)
    if parts > 1 or X.device.type != "cpu" or X.ndim == 2 or not X.is_contiguous():
        wide = _wide(X, parts) if parts > 1 else X
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        return mean.view(parts, -1), variance.view(parts, -1)
    # on a CPU torch goes through a channel number by number, unless channels lie side by side
    axes = [axis for axis in range(X.ndim) if axis != 1]
    mean = X.mean(axes, keepdim=True)
    return mean.view(1, -1), (X - mean).square_().mean(axes).view(1, -1)


def gradient_sums(
    dY: torch.Tensor, X: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (parts, C) of dY times the normalised X, and of dY, over parts of the rows and places."""
    parts = min(_parts(X), _parts(dY))
    if parts > 1:
        dY, X = _wide(dY, parts), _wide(X, parts)
        mean, variance = torch.cat((mean,) * parts), torch.cat((variance,) * parts)
    _, scales, shifts = torch.ops.aten.native_batch_norm_backward(
        dY, X, None, mean, variance, None, None, False, eps, [False, True, True]
    )
    return scales.view(parts, -1), shifts.view(parts, -1)


def affine(X: torch.Tensor, slope: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """X (b, C, ...) times slopes (C,) plus constants (C,) of the channels, in one pass."""
    parts = _parts(X)
    if parts > 1:
        out = torch.empty_like(X)  # not a view: what follows may change it in place
        lines = (torch.cat((constant,) * parts), _wide(X, parts), torch.cat((slope,) * parts))
        torch.addcmul(*lines, out=_wide(out, parts))
        return out
    if X.device.type == "cpu" and X.is_contiguous():
        # torch's own loop for one number along a channel takes four times as long as that of batch norm
        zeros, ones = standard(X.shape[1], X.dtype)
        return torch.batch_norm(X, slope, constant, zeros, ones, False, 0.0, 0.0, False)
    return torch.addcmul(of_channels(constant, X), X, of_channels(slope, X))


@lru_cache(maxsize=64)
def standard(C: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and variances under which batch norm leaves X as it is, with eps=0."""
    return torch.zeros(C, dtype=dtype, device="cpu"), torch.ones(C, dtype=dtype, device="cpu")


def of_channels(values: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """Values (C,) in a shape to be broadcast to (b, C, ...)."""
    return values.view(-1, *(1,) * (X.ndim - 2))


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
