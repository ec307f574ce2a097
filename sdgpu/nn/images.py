"""Images on the device: 8-bit pixels and labels.

A data set stays on the device as bytes; a batch becomes floating point when it is normalised
(:mod:`sdgpu.nn.augment`). CIFAR-10 takes 184 MB that way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdgpu.backend.distributed import ranks
from sdgpu.nn.augment import constants, scaled
from sdgpu.nn.config import Config
from sdgpu.nn.image_views import ImageReader
from sdgpu.nn.parts import (
    Origin,
    Reader,
    all_contents_of,
    all_labels_of,
    class_count,
    labels_of,
    one_hot,
    rows_of,
)

__all__ = ["Images", "find_device", "images_from_arrays", "moments", "tensor_of"]

CHUNK = 2**20  # pixels that are floating point at a time while their moments are summed


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one part.

    Attributes
    ----------
    pixels : Tensor (n, C, H, W), uint8
    labels : Tensor (n,), int64
        Classes 0 .. classes - 1, on the device of the pixels.
    classes : int
        c, the number of classes.
    mean, std : tuple of C floats
        Of pixels / 255 in each channel, over all places of all **training** images; a constant
        channel has std 1.
    name : str
    clean_labels : Tensor (n,), int64, or None
        What the labels were before :func:`~sdgpu.nn.with_label_noise`; nothing is trained on them.
    origin : Origin or None
        Which rows of the arrays they were made of these are; None where that is not known.
    """

    pixels: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    clean_labels: Tensor | None = None
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> Images:
        """Return the same images on a device; no copy if they are there already."""
        labels = all_labels_of(self, lambda labels: labels.to(device))
        return replace(self, pixels=self.pixels.to(device), **labels)

    def take(self, index: Tensor) -> Images:
        """Return the images at `index` (b,), an int64 tensor, in that order; mean and std stay."""
        index = index.to(self.labels.device)
        return self.within(self.pixels[index], index)

    def one_hot(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the targets Y (n, c): 1 in the column of the label, 0 elsewhere."""
        return one_hot(self.labels, self.classes, dtype)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.pixels.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    @property
    def kind(self) -> str:
        """For messages."""
        return "images"

    def contents(self) -> tuple[Tensor, ...]:
        """Tensors whose bytes tell them from any others."""
        return all_contents_of(self, self.pixels)

    def within(self, pixels: Tensor, index: Tensor) -> Images:
        """The rows at an index, whose pixels lie elsewhere."""
        return replace(self, pixels=pixels, **rows_of(self, index))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of these very images."""
        return moments(self.pixels)

    def check(self, name: str) -> None:
        """Refuse tensors that are no images with one label each.

        Raises
        ------
        ValueError
        """
        if self.pixels.ndim != 4 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"{name} has labels {tuple(self.labels.shape)} for pixels {tuple(self.pixels.shape)}: "
                "they must be (n,) and (n, C, H, W), one label for each image"
            )

    @cached_property
    def _factors(self) -> dict[torch.dtype, Tensor]:
        """What normalises, on the device, by the type of the result."""
        return {}

    def clean(
        self, rows: range, size: int, dtype: torch.dtype, *, channels_last: bool = False
    ) -> Iterator[Tensor]:
        """Normalised images (b, C, H, W) of consecutive rows, at most `size` at a time."""
        if (
            dtype not in self._factors
        ):  # a copy from the host, which waits: made once for all evaluations
            self._factors[dtype] = constants(self.pixels, self.mean, self.std, dtype)
        factors = self._factors[dtype]
        for start in range(rows.start, rows.stop, size):
            block = self.pixels[start : min(start + size, rows.stop)]
            yield scaled(block, factors, dtype, channels_last=channels_last)

    def remembering(self, *, by_pass: bool) -> Images:
        """Itself: what lies in memory stays."""
        return self

    def reader(self, config: Config, dtype: torch.dtype) -> Reader:
        """Augmented views of the images."""
        return ImageReader(self, config, dtype)


def images_from_arrays(
    pixels: object,
    labels: object,
    *,
    classes: int | None = None,
    channels_last: bool = False,
    device: str | torch.device = "cpu",
    name: str = "images",
) -> Images:
    """Check arrays of images and labels and bring them to the device.

    Parameters
    ----------
    pixels : array (n, H, W), (n, C, H, W) or, with `channels_last`, (n, H, W, C), uint8
        Of NumPy or torch, 0 to 255, with 1 to 4 channels.
    labels : array (n,), integer
        Classes 0 .. classes - 1.
    classes : int, optional
        c, of which some may have no image; by default the largest label + 1, and all have one.
    channels_last : bool, default False
    device : str or torch.device, default "cpu"
        "auto": CUDA if there is one.
    name : str, default "images"
        For messages.

    Returns
    -------
    Images
        With mean and std of these very images. The arrays are copied if the layout or the device
        asks for it, and else shared.

    Raises
    ------
    TypeError
        If the pixels are not uint8 or the labels no integers.
    ValueError
        For another shape, no images, numbers of images and labels that differ, a label out of range,
        or, unless `classes` is given, a class without an image.
    """
    torch_device = find_device(device)
    tensor = tensor_of(f"{name}: pixels", pixels, channels_last=channels_last)
    pixels = _pixels(name, tensor, channels_last=channels_last)
    labels = labels_of(name, tensor_of(f"{name}: labels", labels), len(pixels))
    classes = class_count(name, labels, classes)
    mean, std = moments(pixels)
    return Images(
        pixels=pixels.to(torch_device),
        labels=labels.to(torch_device),
        classes=classes,
        mean=mean,
        std=std,
        name=name,
        origin=Origin.of(len(pixels)),
    )


def tensor_of(name: str, values: object, *, channels_last: bool = False) -> Tensor:
    """Share an array's memory if torch can, else copy it: with `channels_last` for its last axis at 1.

    Raises
    ------
    TypeError
        If it holds no numbers.
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be numbers, got dtype {array.dtype}")
    # torch shares neither read-only memory nor negative strides
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    if not shareable:
        channels_last = channels_last and array.ndim == 4
        array = (
            np.moveaxis(np.moveaxis(array, -1, 1).copy(), 1, -1) if channels_last else array.copy()
        )
    return torch.from_numpy(array)


def _pixels(name: str, pixels: Tensor, *, channels_last: bool) -> Tensor:
    """Bring pixels to (n, C, H, W), contiguous."""
    if pixels.dtype != torch.uint8:
        remedy = (
            "; if they lie in [0, 1]: (255 * pixels).round() as uint8"
            if pixels.dtype.is_floating_point
            else ""
        )
        raise TypeError(f"{name}: pixels must be uint8, 0 to 255, got {pixels.dtype}{remedy}")
    shape = tuple(pixels.shape)
    layout = "(n, H, W, C)" if channels_last else "(n, C, H, W)"
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and channels_last:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(
            f"{name}: pixels must be (n, H, W) or {layout}, none of them 0, got shape {shape}"
        )
    if pixels.shape[1] > 4:
        alternative = "the channels come last" if not channels_last else "the channels come first"
        raise ValueError(
            f"{name}: pixels of shape {shape} have {pixels.shape[1]} channels if they are {layout}, "
            f"more than 4: if {alternative}, set channels_last={not channels_last} or move the axis"
        )
    return pixels.contiguous()


def moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 in each channel, from sums that are exact."""
    count = pixels.numel() // pixels.shape[1]
    total = torch.zeros(pixels.shape[1], dtype=torch.int64, device=pixels.device)
    squares = torch.zeros_like(total)
    # up to 256 rows, for 256 * 255**2 < 2**24: float32 adds whole numbers exactly; and few enough of large
    # images that their copy in float32 stays small beside them
    rows = max(1, min(256, CHUNK // pixels[0].numel()))
    lines = max(1, CHUNK // (rows * pixels[0, :, 0].numel()))
    for block in pixels.split(rows):
        for chunk in block.split(lines, dim=2):
            values = chunk.to(torch.float32)
            total += values.sum(dim=0).to(torch.int64).sum(dim=(1, 2))
            squares += values.square_().sum(dim=0).to(torch.int64).sum(dim=(1, 2))
    mean, std = [], []
    for first, second in zip(total.tolist(), squares.tolist(), strict=True):
        variance = (count * second - first * first) / count**2  # whole numbers up to the division
        mean.append(first / count / 255)
        std.append(variance**0.5 / 255 if variance > 0 else 1.0)
    return tuple(mean), tuple(std)


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" is CUDA if there is one.

    Under ``torchrun`` "auto" and "cuda" are a device of its own for each process of a machine.

    Raises
    ------
    ValueError
        For an unknown name, CUDA where there is none, or fewer devices than processes.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch_device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is not known: use 'cpu', 'cuda', 'auto'") from error
    if torch_device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device: use 'cpu' or 'auto'")
    if torch_device.type == "cuda" and torch_device.index is None and ranks()["WORLD_SIZE"] > 1:
        local_rank, count = ranks()["LOCAL_RANK"], torch.cuda.device_count()
        if local_rank >= count:
            raise ValueError(
                f"device={device!r} for process {local_rank} of this machine, which sees {count} CUDA "
                "devices: start as many processes as there are devices"
            )
        return torch.device("cuda", local_rank)
    return torch_device
