"""Mixup and cutmix: every image of a batch with a share of another, and its target with the same share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sdgpu.nn.augment import stream
from sdgpu.nn.batches import Batch
from sdgpu.nn.config import Config

__all__ = ["Mix", "draw_mix"]


@dataclass(frozen=True, eq=False)
class Mix:
    """How the rows of one batch are mixed.

    Attributes
    ----------
    partner : tensor (b,), int64
        The row whose image each one gets a share of: a permutation, on the device of the batch.
    share : float
        Of an image and its target that is its own; 1 - share is that of its partner.
    box : tuple of four ints, or None
        Top, bottom, left and right of the rectangle that shows the partner (cutmix); None mixes all pixels
        (mixup).
    """

    partner: torch.Tensor
    share: float
    box: tuple[int, int, int, int] | None

    def of(self, batch: Batch) -> Batch:
        """A mixed batch."""
        truth, said, weights = (
            None if values is None else self.rows(values, 0)
            for values in (batch.truth, batch.said, batch.weights)
        )
        target = None if batch.target is None else self.rows(batch.target, -2)
        return Batch(batch.rows, self.inputs(batch.inputs), target, truth, said, weights)

    def inputs(self, X: torch.Tensor) -> torch.Tensor:
        """Mixed inputs of X (b, ...)."""
        if self.box is None:
            return self.rows(X, 0)
        top, bottom, left, right = self.box
        mixed = X.clone()
        mixed[..., top:bottom, left:right] = X[self.partner, ..., top:bottom, left:right]
        return mixed

    def rows(self, values: torch.Tensor, axis: int) -> torch.Tensor:
        """share u_i + (1 - share) u_partner(i), for rows i along an axis."""
        others = values.index_select(axis, self.partner)
        return self.share * values + (1 - self.share) * others


def draw_mix(config: Config, epoch: int, batch: int, inputs: torch.Tensor) -> Mix | None:
    """The mix of one batch, a function of the seed and the position; None without mixup and cutmix.

    With both each batch has one of them with probability 1/2. The share is drawn from Beta(a, a), one for
    a batch. The rectangle of cutmix has the sides sqrt(1 - share) H and W around a place drawn uniformly,
    and is cut off at the edge; the share of the target is then that of the pixels.

    Parameters
    ----------
    config : Config
    epoch, batch : int
    inputs : tensor (b, ...)
        (b, C, H, W) for cutmix.
    """
    if not config.mixup and not config.cutmix:
        return None
    # a position of its own: views have (epoch, batch), layers that draw (epoch, batch, rank)
    seed = stream(config.augment_seed, "augment", epoch, batch, 0, 0).initial_seed()
    rng = np.random.default_rng(seed)
    cut = bool(rng.integers(2)) if config.mixup and config.cutmix else config.cutmix > 0
    concentration = config.cutmix if cut else config.mixup
    share = float(rng.beta(concentration, concentration))
    partner = torch.from_numpy(rng.permutation(len(inputs)))
    if inputs.device.type == "cuda":  # so that the host does not wait for it
        partner = partner.pin_memory()
    partner = partner.to(inputs.device, non_blocking=True)
    if not cut:
        return Mix(partner, share, None)
    height, width = inputs.shape[-2:]
    edges: list[int] = []
    for side in (height, width):
        half, centre = int(side * math.sqrt(1 - share)) // 2, int(rng.integers(side))
        edges += [max(0, centre - half), min(side, centre + half)]
    top, bottom, left, right = edges
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return Mix(partner, share, (top, bottom, left, right))
