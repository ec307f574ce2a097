"""Data of one's own in three parts: arrays, data sets of torch, or parts that were made before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sdgpu.nn.image_splits import held_out
from sdgpu.nn.images import Images, images_from_arrays, tensor_of
from sdgpu.nn.loaded_samples import is_dataset, opened_samples
from sdgpu.nn.parts import Data, check_classes
from sdgpu.nn.samples import Samples, column_moments, samples_from_arrays

__all__ = ["make_data", "part_from_arrays"]


def make_data(
    train: Any,
    val: Any = 0.1,
    test: Any = None,
    *,
    classes: int | None = None,
    seed: int = 0,
    standardise: bool = False,
    channels_last: bool = False,
    keys: tuple[Any, Any] | None = None,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    name: str = "data",
) -> Data:
    """Data of one's own, for :func:`~sdgpu.nn.train` and all that is built on it.

    Parameters
    ----------
    train : (X, y), a data set, a DataLoader or a part
        Arrays of NumPy, pandas or torch: X of bytes, (n, H, W) or (n, C, H, W), are :class:`Images`, which
        are normalised and augmented; X of floats, or of whole numbers for an embedding, (n, ...), are
        :class:`Samples`, which are taken as they are. y (n,) are classes from 0 on. Data sets and
        DataLoaders of torch become :class:`LoadedSamples`, see :func:`loaded_samples`.
    val : the same, a share in [0, 1) or a number, default 0.1
        A part of its own, or what is taken from the training part, with the shares of the classes; 0 for
        none.
    test : the same, or None
        A share is taken before `val` is, and is the same for every seed.
    classes : int, optional
        c; by default the largest label of all parts + 1. Every class has a row in the training part then;
        with `classes` given it may lack some. `val` and `test` may lack classes either way.
    seed : int, default 0
        Of the split into training and validation.
    standardise : bool, default False
        Of samples in floating point: take off the mean and divide by the standard deviation of each column
        (channel of an image) of the training part.
    channels_last : bool, default False
        Bytes of colour are (n, H, W, C).
    keys, workers
        Of data sets, as for :func:`loaded_samples`.
    device : str or torch.device, default "cpu"
        "auto": CUDA if there is one.
    name : str, default "data"
        For messages.

    Returns
    -------
    Data
        Whole parts share the memory of their arrays where type, layout and device allow; what is split is
        copied.

    Raises
    ------
    TypeError, ValueError
        As :func:`images_from_arrays`, :func:`samples_from_arrays` and :func:`loaded_samples`, with the name
        of the part; parts of other shapes; a share that leaves the training part without a row of a class.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    >>> data = make_data((X, y), val=12, test=(X[:9], y[:9]), standardise=True)
    >>> len(data.train), len(data.val), len(data.test), data.train.shape
    (48, 12, 9, (5,))
    """
    makers = _Makers(classes=classes, channels_last=channels_last, device=device, name=name)
    given = {"train": train, "val": val, "test": test}
    opened = {
        key: opened_samples(part, keys=keys, workers=workers, device=device, name=f"{name}, {key}")
        if is_dataset(part)
        else part
        for key, part in given.items()
    }
    known = makers.class_count(opened)
    parts = {key: makers.part(key, part, known) for key, part in opened.items()}
    for key, part in given.items():
        if is_dataset(part) and known is not None:
            parts[key] = replace(parts[key], classes=known)
    if parts["train"] is None:
        raise TypeError(f"train must be (X, y), a data set or a part, not {type(train).__name__}")
    if classes is None and parts["train"] is not train:
        made = parts["train"]
        check_classes(f"{name}, train", made.labels, made.classes, "row")
    return _split(given, parts, seed=seed, standardise=standardise)


@dataclass(frozen=True)
class _Makers:
    """How parts are made of what was given."""

    classes: int | None
    channels_last: bool
    device: str | torch.device
    name: str

    def class_count(self, given: dict[str, Any]) -> int | None:
        """As given, or the largest label of all parts + 1."""
        if self.classes is not None:
            return self.classes
        counts = [0]
        for key, part in given.items():
            if isinstance(part, tuple) and len(part) == 2:
                labels = tensor_of(f"{self.name}, {key}: labels", part[1])
                counts.append(int(labels.max()) + 1 if labels.numel() else 0)
            elif hasattr(part, "contents"):
                counts.append(part.classes)
        return max(counts) if max(counts) >= 2 else None  # what is wrong is said of the part

    def part(self, key: str, given: Any, classes: int | None) -> Any:
        """A part, or None where a number or nothing was given."""
        if given is None or hasattr(given, "contents"):
            return given
        if isinstance(given, tuple):
            if len(given) != 2:
                raise ValueError(
                    f"{key} has {len(given)} entries: give (X, y), inputs and their classes"
                )
            return part_from_arrays(
                f"{self.name}, {key}",
                given,
                classes,
                channels_last=self.channels_last,
                device=self.device,
            )
        if key == "train" or not isinstance(given, (int, float, np.number)):
            numbers = "" if key == "train" else ", a share, a number"
            raise TypeError(
                f"{key} must be (X, y), a data set or a part{numbers}, not {type(given).__name__}"
            )
        return None


def part_from_arrays(
    name: str,
    pair: tuple[Any, Any],
    classes: int | None,
    *,
    channels_last: bool = False,
    device: str | torch.device = "cpu",
) -> Images | Samples:
    """Images of bytes (n, H, W) or with channels, samples of all else.

    Raises
    ------
    TypeError, ValueError
        As :func:`images_from_arrays` and :func:`samples_from_arrays`.
    """
    X, y = pair
    values = tensor_of(f"{name}: values", X)
    if values.dtype == torch.uint8 and values.ndim in (3, 4):
        return images_from_arrays(
            values, y, classes=classes, channels_last=channels_last, device=device, name=name
        )
    return samples_from_arrays(values, y, classes=classes, device=device, name=name)


def _split(given: dict[str, Any], parts: dict[str, Any], *, seed: int, standardise: bool) -> Data:
    """Take what was asked for as a share from the training part, and normalise all alike."""
    train, val, test = parts["train"], parts["val"], parts["test"]
    if test is None and given["test"] is not None:
        train, test = _take(train, given["test"], "test", 0)
    if val is None and given["val"] is not None:
        train, val = _take(train, given["val"], "val", seed)
    mean, std = train.mean, train.std
    if standardise:
        if not isinstance(train, Samples):
            raise ValueError(
                f"standardise=True is for arrays of numbers, not for {train.kind}: images of bytes are "
                "normalised anyway, and what a data set gives by its transform"
            )
        mean, std = column_moments(train.values)
    elif parts["train"] is not given["train"]:
        mean, std = train.moments()
    return Data(
        *(
            part if part is None else replace(part, mean=mean, std=std)
            for part in (train, val, test)
        )
    )


def _take(part: Any, share: float | int, name: str, seed: int) -> tuple[Any, Any]:
    """The rest of a part, and what is taken from it; None for 0 rows."""
    if not share and not isinstance(share, bool):
        return part, None
    rest, rows = held_out(part.labels, share, name, seed)
    return part.take(rest), part.take(rows)
