"""Tensors of any shape as a data set: tables, texts, images in floating point; they lie on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sdgpu.nn.config import Config
from sdgpu.nn.images import find_device, tensor_of
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

__all__ = ["Samples", "column_moments", "samples_from_arrays"]

CHUNK = 2**20  # numbers that are looked at, or widened, at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled tensors of one part.

    Attributes
    ----------
    values : Tensor (n, ...)
        Floating point, which is brought to the type of the network; or int64, which stays: words and
        categories for an embedding.
    labels : Tensor (n,), int64
        Classes 0 .. classes - 1, on the device of the values.
    classes : int
        c, the number of classes.
    mean, std : tuple of float
        What the network sees is (values - mean) / std, for each entry of the second axis: a column of a
        table, a channel of an image. Empty: the values as they are.
    name : str
    clean_labels : Tensor (n,), int64, or None
        What the labels were before :func:`~sdgpu.nn.with_label_noise`; nothing is trained on them.
    origin : Origin or None
        Which rows of the arrays they were made of these are; None where that is not known.
    """

    values: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    clean_labels: Tensor | None = None
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.values.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.values.shape[1:])

    @property
    def kind(self) -> str:
        """For messages."""
        return "samples"

    def to(self, device: str | torch.device) -> Samples:
        """Return the same samples on a device; no copy if they are there already."""
        labels = all_labels_of(self, lambda labels: labels.to(device))
        return replace(self, values=self.values.to(device), **labels)

    def take(self, index: Tensor) -> Samples:
        """Return the samples at `index` (b,), an int64 tensor, in that order; mean and std stay."""
        index = index.to(self.labels.device)
        return self.within(self.values[index], index)

    def one_hot(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the targets Y (n, c): 1 in the column of the label, 0 elsewhere."""
        return one_hot(self.labels, self.classes, dtype)

    def contents(self) -> tuple[Tensor, ...]:
        """Tensors whose bytes tell them from any others."""
        return all_contents_of(self, self.values)

    def within(self, values: Tensor, index: Tensor) -> Samples:
        """The rows at an index, whose values lie elsewhere."""
        return replace(self, values=values, **rows_of(self, index))

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std as they are: samples are not normalised unless it is asked for."""
        return self.mean, self.std

    def check(self, name: str) -> None:
        """Refuse tensors that have not one label a row.

        Raises
        ------
        ValueError
        """
        if self.values.ndim < 2 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(
                f"{name} has labels {tuple(self.labels.shape)} for values {tuple(self.values.shape)}: "
                "they must be (n,) and (n, ...), one label for each sample"
            )

    @cached_property
    def _scales(self) -> dict[tuple[torch.dtype, bool], _Scale]:
        """What normalises, on the device, by the type and layout of the result."""
        return {}

    def clean(
        self, rows: range, size: int, dtype: torch.dtype, *, channels_last: bool = False
    ) -> Iterator[Tensor]:
        """Samples of consecutive rows, normalised, at most `size` at a time."""
        key = dtype, channels_last
        if (
            key not in self._scales
        ):  # a copy from the host, which waits: made once for all evaluations
            self._scales[key] = _Scale(self, dtype, channels_last=channels_last)
        scale = self._scales[key]
        for start in range(rows.start, rows.stop, size):
            yield scale(self.values[start : min(start + size, rows.stop)])

    def remembering(self, *, by_pass: bool) -> Samples:
        """Itself: what lies in memory stays."""
        return self

    def reader(self, config: Config, dtype: torch.dtype) -> Reader:
        """The samples as they are: nothing is augmented but images."""
        return SampleReader(self, config, dtype)


class _Scale:
    """What brings samples to a network: its type, mean and std, made once."""

    def __init__(self, samples: Samples, dtype: torch.dtype, *, channels_last: bool) -> None:
        self.dtype, self.channels_last = dtype, channels_last
        shape = (-1, *(1,) * (samples.values.ndim - 2))
        mean, std = (
            torch.tensor(numbers, dtype=dtype, device=samples.device).reshape(shape)
            for numbers in (samples.mean, samples.std)
        )
        self.moments = (mean, std) if samples.mean else None

    def __call__(self, values: Tensor) -> Tensor:
        if not values.is_floating_point():
            return values
        values = values.to(self.dtype)
        if self.moments is not None:
            values = (values - self.moments[0]) / self.moments[1]
        if self.channels_last and values.ndim == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        return values


class SampleReader:
    """Samples of a training: the same in every epoch.

    Parameters
    ----------
    samples : Samples
    config : Config
        Its channels_last.
    dtype : torch.dtype
        Of values in floating point.
    """

    def __init__(self, samples: Samples, config: Config, dtype: torch.dtype) -> None:
        self.samples, self.config, self.dtype = samples, config, dtype
        self._scale = _Scale(samples, dtype, channels_last=bool(config.channels_last))

    def batch(self, order: Tensor, epoch: int, batch: int) -> Tensor:
        """The samples (b, ...) of a batch of the order (n,) of an epoch."""
        size = self.config.batch
        rows = order[batch * size : (batch + 1) * size]
        return self._scale(self.samples.values.index_select(0, rows))

    def view(self, number: int, size: int) -> Iterator[Tensor]:
        """All samples, at most `size` at a time: their views are all the same."""
        yield from self.samples.clean(
            range(len(self.samples)),
            size,
            self.dtype,
            channels_last=bool(self.config.channels_last),
        )

    def close(self) -> None:
        """Nothing is made ahead."""


def samples_from_arrays(
    values: object,
    labels: object,
    *,
    classes: int | None = None,
    device: str | torch.device = "cpu",
    name: str = "samples",
) -> Samples:
    """Check arrays of values and labels and bring them to the device.

    Parameters
    ----------
    values : array (n, ...), floating point or integer
        Of NumPy or torch, at least two axes: a table (n, d), texts as whole numbers (n, L), images (n, C,
        H, W). Whole numbers become int64; bytes (uint8) are refused, for they may be either.
    labels : array (n,), integer
        Classes 0 .. classes - 1.
    classes : int, optional
        c, of which some may have no sample; by default the largest label + 1, and all have one.
    device : str or torch.device, default "cpu"
        "auto": CUDA if there is one.
    name : str, default "samples"
        For messages.

    Returns
    -------
    Samples
        Not normalised. Shared with the arrays where type, layout and device allow.

    Raises
    ------
    TypeError
        If the values are bytes, truth values, complex or no numbers, or the labels no integers.
    ValueError
        For another shape, no samples, NaN or infinity, numbers of samples and labels that differ, a label
        out of range, or, unless `classes` is given, a class without a sample.
    """
    torch_device = find_device(device)
    tensor = _values(name, tensor_of(f"{name}: values", values))
    targets = labels_of(name, tensor_of(f"{name}: labels", labels), len(tensor), "sample")
    return Samples(
        values=tensor.to(torch_device),
        labels=targets.to(torch_device),
        classes=class_count(name, targets, classes, "sample"),
        mean=(),
        std=(),
        name=name,
        origin=Origin.of(len(tensor)),
    )


def _values(name: str, values: Tensor) -> Tensor:
    """Values that are numbers a network can take."""
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(
            f"{name}: values must be (n, ...), none of them 0, got shape {tuple(values.shape)}"
            f"{': one column is (n, 1)' * (values.ndim == 1)}"
        )
    if values.dtype in (torch.uint8, torch.bool) or values.is_complex():
        raise TypeError(
            f"{name}: values of {values.dtype} and shape {tuple(values.shape)} may be numbers or "
            "categories: make them float32 if they are numbers, int64 if they are words of a text "
            "(bytes of images are (n, H, W) or (n, C, H, W))"
        )
    if not values.is_floating_point():
        return values.to(torch.int64)
    rows = max(1, CHUNK // values[0].numel())
    bad = sum(
        int((~torch.isfinite(block)).flatten(1).any(dim=1).sum()) for block in values.split(rows)
    )
    if bad:
        raise ValueError(
            f"{name}: {bad} of {len(values)} samples hold NaN or infinity: fill them in, or leave these "
            "samples out"
        )
    return values


def column_moments(values: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every entry of the second axis, in float64; a constant has std 1.

    Raises
    ------
    TypeError
        For whole numbers, which are no measurements.
    """
    if not values.is_floating_point():
        raise TypeError(
            f"standardise=True with values of {values.dtype}: whole numbers are taken for categories; make "
            "them float32 if they are measurements"
        )
    count = values.numel() // values.shape[1]
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = (1, -1, *(1,) * (values.ndim - 2))
    blocks = values.split(max(1, CHUNK // values[0].numel()))
    mean = sum(block.double().sum(axes) for block in blocks) / count
    squares = sum((block.double() - mean.reshape(shape)).square().sum(axes) for block in blocks)
    std = (squares / count).sqrt()
    std = torch.where(
        std > 1e-10 * mean.abs(), std, 1.0
    )  # a constant, but for rounding of its mean
    return tuple(mean.tolist()), tuple(std.tolist())
