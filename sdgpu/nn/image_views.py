"""What a training sees of images: their augmented views, functions of the seed and the position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sdgpu.nn.augment import Augment, constants, scaled, stream
from sdgpu.nn.config import Config

__all__ = ["ImageReader"]

#: Bytes of pixels whose views are made at once, for some batches ahead: what is called for every batch
#: otherwise finds its code and tables gone from the caches, and takes three times as long
#: (benchmarks/bench_networks.py, test_against_a_bare_loop).
AHEAD = 2**20


@dataclass(eq=False)
class ImageReader:
    """Views of images on their device.

    Attributes
    ----------
    images : Images
    config : Config
        Its crop_pad, flip, augment_seed, teacher, views and channels_last.
    dtype : torch.dtype
        Of the views.
    """

    images: Any
    config: Config
    dtype: torch.dtype
    _view: tuple[int, torch.Tensor] | None = field(default=None, repr=False)
    _ahead: tuple[int, range, torch.Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        images = self.images
        self._augment = Augment(self.config.crop_pad, self.config.flip)
        self._constants = constants(images.pixels, images.mean, images.std, self.dtype)

    def batch(self, order: torch.Tensor, epoch: int, batch: int) -> torch.Tensor:
        """The view (b, C, H, W) of a batch of the order (n,) of an epoch."""
        size = self.config.batch
        if self.config.teacher != "views":
            number, batches, views = self._ahead or (-1, range(0), order)
            if number != epoch or batch not in batches:
                batches = self._batches_with(batch, len(order))
                views = self._views(order, epoch, batches)
                self._ahead = (epoch, batches, views)
            return views[(batch - batches.start) * size :][:size]
        # with and without a teacher: alpha = 1 is step 1
        rows = order[batch * size :][:size]
        inputs = self._whole_view(epoch % self.config.views).index_select(0, rows)
        if self.config.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def view(self, number: int, size: int) -> Iterator[torch.Tensor]:
        """All images of one of the views of teacher="views", at most `size` at a time."""
        yield from self._whole_view(number).split(size)

    def close(self) -> None:
        """Nothing is made by others."""

    def _batches_with(self, batch: int, n: int) -> range:
        """The batches, this one among them, whose views are made at once."""
        size = self.config.batch
        together = max(1, AHEAD // (size * self.images.pixels[0].numel()))
        start = batch - batch % together
        return range(start, min(start + together, -(-n // size)))

    def _views(self, order: torch.Tensor, epoch: int, batches: range) -> torch.Tensor:
        """Views of some batches of an epoch, each by draws of its own."""
        size = self.config.batch
        parts = order[batches.start * size : batches.stop * size].split(size)
        positions = [(epoch, batch) for batch in batches]
        return self._shown(parts, positions)

    def _shown(
        self, parts: Sequence[torch.Tensor], positions: Sequence[tuple[int, ...]]
    ) -> torch.Tensor:
        """Views of the rows of some parts, below each other; of each by the draws of its position."""
        images, config = self.images, self.config
        pixels = images.pixels.index_select(0, torch.cat(list(parts)))
        if config.crop_pad or config.flip:
            # drawn on the CPU: the same views on every device
            draws = [
                self._augment.draw(
                    len(part), stream(config.augment_seed, "augment", *position, device="cpu")
                )
                for part, position in zip(parts, positions, strict=True)
            ]
            offsets, mirrored = (torch.cat(values, dim=-1) for values in zip(*draws, strict=True))
            pixels = self._augment.shown(pixels, offsets, mirrored)
        last = bool(config.channels_last)
        return scaled(pixels, self._constants, self.dtype, channels_last=last)

    def _whole_view(self, view: int) -> torch.Tensor:
        """One augmented view of all inputs, in their own order: made once for an epoch."""
        if self._view is None or self._view[0] != view:
            rows = torch.arange(len(self.images), device=self.images.device)
            parts = rows.split(1024)  # a constant, for the view is drawn part by part
            blocks = [self._shown([part], [(view, i, 0)]) for i, part in enumerate(parts)]
            self._view = (view, torch.cat(blocks))
        return self._view[1]
