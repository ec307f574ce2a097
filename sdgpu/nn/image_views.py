"""What a training sees of images: their augmented views, functions of the seed and the position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from sdgpu.nn.augment import Augment, constants, scaled, stream
from sdgpu.nn.config import Config

__all__ = ["ImageReader"]


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

    def __post_init__(self) -> None:
        images = self.images
        self._augment = Augment(self.config.crop_pad, self.config.flip)
        self._constants = constants(images.pixels, images.mean, images.std, self.dtype)

    def batch(self, rows: torch.Tensor, epoch: int, batch: int) -> torch.Tensor:
        """The view (b, C, H, W) of the rows (b,) of a batch."""
        if self.config.teacher != "views":
            return self._one_view(rows, epoch, batch)
        # with and without a teacher: alpha = 1 is step 1
        inputs = self._whole_view(epoch % self.config.views)[rows]
        if self.config.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def view(self, number: int, size: int) -> Iterator[torch.Tensor]:
        """All images of one of the views of teacher="views", at most `size` at a time."""
        yield from self._whole_view(number).split(size)

    def _one_view(self, rows: torch.Tensor, *position: int) -> torch.Tensor:
        images, channels_last = self.images, self.config.channels_last
        pixels = images.pixels.index_select(0, rows)
        if self.config.crop_pad or self.config.flip:
            # drawn on the CPU: the same views on every device
            generator = stream(self.config.augment_seed, "augment", *position, device="cpu")
            pixels = self._augment.view(pixels, generator)
        return scaled(pixels, self._constants, self.dtype, channels_last=bool(channels_last))

    def _whole_view(self, view: int) -> torch.Tensor:
        """One augmented view of all inputs, in their own order: made once for an epoch."""
        if self._view is None or self._view[0] != view:
            rows = torch.arange(len(self.images), device=self.images.device)
            parts = rows.split(1024)  # a constant, for the view is drawn part by part
            blocks = [self._one_view(part, view, i, 0) for i, part in enumerate(parts)]
            self._view = (view, torch.cat(blocks))
        return self._view[1]
