"""Parts of a data set: labelled inputs, wherever they come from, and what is read of them.

Three kinds answer the same: :class:`~sdgpu.nn.images.Images` (8-bit pixels, which are augmented),
:class:`~sdgpu.nn.samples.Samples` (tensors of any shape) and
:class:`~sdgpu.nn.loaded_parts.LoadedSamples` (a data set of torch, read item by item). A
:class:`Reader` gives the inputs of a training, a function of the seeds and the position alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdgpu.backend.checks import integer
from sdgpu.nn.config import Config

__all__ = [
    "Data",
    "DataPart",
    "Origin",
    "Reader",
    "all_contents_of",
    "all_labels_of",
    "check_classes",
    "class_count",
    "labels_of",
    "one_hot",
    "rows_of",
]


class Reader(Protocol):
    """Inputs of a training from one part."""

    def batch(self, order: Tensor, epoch: int, batch: int) -> Tensor:
        """Inputs (b, ...) of a batch of the order (n,) of an epoch: of the view of this position."""

    def view(self, number: int, size: int) -> Iterator[Tensor]:
        """All inputs of one of the views of teacher="views" in their order, at most `size` at a time."""

    def close(self) -> None:
        """Let go of what makes batches ahead, if anything does."""


@dataclass(frozen=True, eq=False)
class Origin:
    """Which rows of the arrays it was made of a part has, whatever was split off since.

    Attributes
    ----------
    rows : Tensor (n,), int64
        On the CPU.
    total : int
        How many the arrays have.
    """

    rows: Tensor
    total: int

    @classmethod
    def of(cls, total: int) -> Origin:
        """Of all rows in their order."""
        return cls(torch.arange(total, device="cpu"), total)

    def take(self, index: Tensor) -> Origin:
        """Of the rows at an index."""
        return Origin(self.rows[index.cpu()], self.total)


class DataPart(Protocol):
    """Labelled inputs of one part.

    Attributes
    ----------
    labels : Tensor (n,), int64
        Classes 0 .. classes - 1, on the device of the part.
    clean_labels : Tensor (n,), int64, or None
        What the labels were before noise; for scores alone.
    classes : int
        c.
    name : str
    mean, std : tuple of float
        What inputs are normalised by on the way to a network, for each channel or column; empty where they
        are taken as they are.
    device : torch.device
        Where inputs come to.
    shape : tuple of int
        Of one input.
    kind : str
        For messages: "images", "samples".
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def clean_labels(self) -> Tensor | None: ...
    @property
    def classes(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def kind(self) -> str: ...
    def __len__(self) -> int: ...
    def to(self, device: str | torch.device) -> DataPart:
        """The same part on a device."""

    def take(self, index: Tensor) -> DataPart:
        """The rows at `index` (b,), an int64 tensor, in that order; the normalisation stays."""

    def one_hot(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The targets Y (n, c): 1 in the column of the label, 0 elsewhere."""

    def contents(self) -> tuple[Tensor, ...]:
        """Tensors whose bytes tell the part from any other: what a checkpoint remembers of it."""

    def check(self, name: str) -> None:
        """Refuse tensors that do not belong together, ValueError."""

    def clean(
        self, rows: range, size: int, dtype: torch.dtype, *, channels_last: bool = False
    ) -> Iterator[Tensor]:
        """Inputs of consecutive rows as a network takes them, not augmented, at most `size` at a time."""

    def remembering(self, *, by_pass: bool) -> DataPart:
        """The same part, which tells when an input is not what it was: where inputs can change at all."""

    def reader(self, config: Config, dtype: torch.dtype) -> Reader:
        """What gives the inputs of a training."""


@dataclass(frozen=True, eq=False)
class Data:
    """Training, validation and test part, all with mean and std of the training part.

    Attributes
    ----------
    train : Images, Samples or LoadedSamples
    val, test : the same, or None
        None, or without a row, where there are none. They may lack classes, as the tail of a long-tailed
        set does.
    weights : Tensor (n,), optional
        How much each training row counts, >= 0; a common factor changes nothing.

    Raises
    ------
    TypeError
        If a part is none of these, or the weights no tensor of floating point.
    ValueError
        If the training part is empty, or a part has other classes, shapes, device or normalisation than
        it, or not one label for each input; for weights that are not one finite number >= 0 for each row.
    """

    train: Any
    val: Any
    test: Any
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            if part is not None or name == "train":
                _check_part(name, part, self.train)
        if not len(self.train):
            raise ValueError("train has no images")
        if self.weights is not None:
            _check_weights(self.weights, len(self.train))

    def to(self, device: str | torch.device) -> Data:
        """Return the same parts on a device; no copy of those that are there already."""
        parts = (self.train, self.val, self.test)
        train, val, test = (None if part is None else part.to(device) for part in parts)
        return Data(train, val, test, None if self.weights is None else self.weights.to(device))


def _check_weights(weights: object, n: int) -> None:
    """Refuse weights of rows that are none."""
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise TypeError(
            f"weights must be a tensor of floating point, not {type(weights).__name__}: torch.as_tensor("
            "weights, dtype=torch.float32)"
        )
    if weights.shape != (n,):
        raise ValueError(
            f"weights must be ({n},), one for each training row, got {tuple(weights.shape)}"
        )
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights must be finite and >= 0")


def _check_part(name: str, part: Any, train: Any) -> None:
    """Refuse a part that a network trained on `train` would take for something else."""
    if not hasattr(part, "contents"):
        raise TypeError(
            f"{name} must be Images, Samples or LoadedSamples, not {type(part).__name__}: make_data makes "
            "them of arrays and data sets"
        )
    part.check(name)
    if part.clean_labels is not None and part.clean_labels.shape != part.labels.shape:
        raise ValueError(
            f"{name} has clean_labels {tuple(part.clean_labels.shape)} for labels "
            f"{tuple(part.labels.shape)}: they must be of one shape, or clean_labels=None"
        )
    if len(part) and not 0 <= int(part.labels.min()) <= int(part.labels.max()) < part.classes:
        raise ValueError(
            f"{name} has labels from {int(part.labels.min())} to {int(part.labels.max())}, but "
            f"classes={part.classes}: they must be in 0..{part.classes - 1}"
        )
    shape_remedy = "give all parts the same classes= and one size and device"
    norm_remedy = (
        "dataclasses.replace(part, mean=train.mean, std=train.std), or split_images, makes it so"
    )
    for what, value, train_value, remedy in (
        ("classes", part.classes, train.classes, shape_remedy),
        (f"{part.kind} of shape", part.shape, train.shape, shape_remedy),
        (f"{part.kind} on device", str(part.device), str(train.device), shape_remedy),
        ("mean", part.mean, train.mean, norm_remedy),
        ("std", part.std, train.std, norm_remedy),
    ):
        if value != train_value:
            raise ValueError(
                f"{name} has {what} {value}, but train {train_value}: all parts are taken as the "
                f"training part is; {remedy}"
            )


def all_labels_of(part: DataPart, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Labels of a part and, where there are, those before noise, each changed: for ``replace``."""
    clean = part.clean_labels
    return {"labels": change(part.labels), "clean_labels": None if clean is None else change(clean)}


def rows_of(part: Any, index: Tensor) -> dict[str, Any]:
    """Labels and origin of the rows at `index` (b,), wherever it lies: for ``replace``."""
    there = index.to(part.labels.device)
    origin = None if part.origin is None else part.origin.take(index)
    return {**all_labels_of(part, lambda labels: labels[there]), "origin": origin}


def all_contents_of(part: DataPart, inputs: Tensor) -> tuple[Tensor, ...]:
    """What tells a part from any other: inputs, or what stands for them, and all its labels."""
    clean = () if part.clean_labels is None else (part.clean_labels,)
    return inputs, part.labels, *clean


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """The targets Y (n, c): 1 in the column of the label, 0 elsewhere."""
    Y = torch.zeros((len(labels), classes), dtype=dtype, device=labels.device)
    return Y.scatter_(1, labels[:, None], 1)


def labels_of(name: str, labels: Tensor, n: int, kind: str = "image") -> Tensor:
    """Bring labels to (n,), int64.

    Raises
    ------
    TypeError, ValueError
        If they are no whole numbers, or not n.
    """
    if labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise TypeError(f"{name}: labels must be whole numbers from 0 on, got {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(
            f"{name}: labels must be ({n},), one per {kind}, got {tuple(labels.shape)}"
        )
    return labels.to(torch.int64)


def class_count(name: str, labels: Tensor, classes: int | None, kind: str = "image") -> int:
    """The number of classes: as given, or the largest label + 1, and then all have a row.

    Raises
    ------
    TypeError, ValueError
        For a label out of range, one class alone, or, unless `classes` is given, a class without a row.
    """
    least, most = int(labels.min()), int(labels.max())
    inferred = classes is None
    classes = most + 1 if classes is None else integer("classes", classes, 2)
    if least < 0 or most >= classes:
        label = least if least < 0 else most
        raise ValueError(
            f"{name}: label {label} is out of range: {classes} classes are 0 to {classes - 1}"
        )
    if classes < 2:
        raise ValueError(f"{name}: all labels are 0, but there must be two classes or more")
    if inferred:
        check_classes(name, labels, classes, kind)
    return classes


def check_classes(part: str, labels: Tensor, classes: int, kind: str) -> None:
    """Refuse labels that lack a class.

    Raises
    ------
    ValueError
    """
    sizes = torch.bincount(labels, minlength=classes)
    empty = (sizes == 0).nonzero().flatten().tolist()
    if empty:
        listing = ", ".join(str(label) for label in empty[:5]) + (", .." if len(empty) > 5 else "")
        raise ValueError(
            f"{part}: no {kind} of class {listing} among {len(labels)}: give more {kind}s, number the "
            f"classes without gaps, or give classes={classes} where these are all there are"
        )
