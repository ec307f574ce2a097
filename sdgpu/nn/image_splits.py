"""Splits that keep the test set apart and hold every class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdgpu.backend.checks import integer, number
from sdgpu.nn.images import CHUNK
from sdgpu.nn.parts import Data

__all__ = ["alike", "compacted", "held_out", "sample", "set_test_apart", "split_images"]

TEST_SHARE = 0.2  # of data that come without a test set


def split_images(
    images: Any,
    test: Any = None,
    *,
    val: float | int = 0.1,
    seed: int = 0,
    test_as_validation: bool = False,
    in_place: bool = False,
) -> Data:
    """Part images into training, validation and test; every part keeps the shares of the classes.

    Parameters
    ----------
    images : Images
        What training and validation are taken from, without replacement.
    test : Images, optional
        The test set. Without it a fifth of `images` is set apart, the same for every seed.
    val : float or int, default 0.1
        Validation images: a share in [0, 1), or their number; 0 trains on all of them.
    seed : int, default 0
        Of the validation split.
    test_as_validation : bool, default False
        Validate on the test set, as the paper's script does, and train on all other images; `val` is
        not used. The weights alpha-hat are then chosen on test data.
    in_place : bool, default False
        The training part takes the memory of `images`, which are then of no more use. Else it is a copy.

    Returns
    -------
    Data
        Each part in the order of `images`; mean and std are those of the training part. Every class
        that `images` has stays in the training part, whatever is rare in the others.

    Raises
    ------
    TypeError, ValueError
        If `val` is neither, leaves the training part without an image of some class, or the test set
        has other classes or shapes.
    """
    integer("seed", seed, 0)
    if test is None:
        images, test = set_test_apart(images, in_place=in_place)
    if (test.classes, test.shape) != (images.classes, images.shape):
        raise ValueError(
            f"test: {test.classes} classes of {test.kind} {test.shape}, but the training "
            f"set has {images.classes} of {images.shape}: give both the same classes="
        )
    if test_as_validation:
        train, validation = images, test
    else:
        train, validation = _parted(
            images, *held_out(images.labels, val, "val", seed), in_place=in_place
        )
    return alike(train, validation, test)


def alike(train: Any, val: Any, test: Any) -> Data:
    """Data whose parts are normalised by the moments of the training part."""
    mean, std = train.moments()
    return Data(
        *(replace(part, mean=mean, std=std, name=train.name) for part in (train, val, test))
    )


def set_test_apart(images: Any, *, in_place: bool = False) -> tuple[Any, Any]:
    """Return four fifths of the images and the fifth that is the test set, whatever the seed."""
    rows = _stratified(images.labels, round(TEST_SHARE * len(images)), "test", seed=0)
    return _parted(images, *rows, in_place=in_place)


def sample(images: Any, rows: int, seed: int, *, in_place: bool = False) -> Any:
    """Return so many of the images, with the shares of the classes, in their order."""
    if integer("rows", rows, 1) > len(images):
        raise ValueError(f"rows={rows}, but {images.name} has {len(images)} besides the test set")
    index = _stratified(images.labels, rows, "rows", integer("seed", seed, 0))[1]
    return compacted(images, index) if in_place else images.take(index)


def _parted(images: Any, rest: Tensor, rows: Tensor, *, in_place: bool) -> tuple[Any, Any]:
    """Two parts of images; in place the first takes their memory."""
    chosen = images.take(rows)
    return compacted(images, rest) if in_place else images.take(rest), chosen


def compacted(images: Any, index: Tensor) -> Any:
    """The rows at an ascending index, moved to the front of the memory that they lie in."""
    tensor = images.contents()[0]
    rows = max(1, CHUNK // max(1, tensor[0].numel()))
    for block, target in zip(index.split(rows), tensor[: len(index)].split(rows), strict=True):
        target.copy_(tensor[block])  # gathered first: no row is written before it is read
    return images.within(tensor[: len(index)], index.to(tensor.device))


def held_out(labels: Tensor, share: float | int, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest, and of the rows that are set apart with the shares of the classes.

    Parameters
    ----------
    labels : Tensor (n,), int64
    share : float or int
        In [0, 1), or a number of rows.
    name : {"val", "test"}
        Of the part that is set apart.
    seed : int

    Raises
    ------
    TypeError, ValueError
        If it is neither, or leaves the training part without a row of some class.
    """
    return _stratified(labels, _count(share, len(labels), name), name, integer("seed", seed, 0))


def _count(val: float | int, n: int, name: str) -> int:
    """Return the number of images set apart."""
    if isinstance(val, (int, np.integer)) and not isinstance(val, bool):
        count = int(val)
    elif 0 <= number(name, val) < 1:
        count = round(val * n)
    else:
        raise ValueError(
            f"{name}={val} must be a share in [0, 1) or a number of images such as 5000"
        )
    if not 0 <= count < n or (val and not count):
        part = {"val": "validation", "test": "test"}[name]
        raise ValueError(
            f"{name}={val} leaves {count} {part} and {n - count} training images of {n}: both must be "
            f"> 0, or {name}=0 to train on all of them"
        )
    return count


def _stratified(labels: Tensor, count: int, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of `count` images with the classes' shares, each in order.

    Classes get the whole part of their share, and the largest fractions one image more. One image of
    every class stays in the part that is trained on.
    """
    host_labels = labels.cpu().numpy()
    sizes = np.bincount(host_labels)
    quota, remainder = np.divmod(sizes * count, len(host_labels))  # exact
    quota[np.argsort(-remainder, kind="stable")[: count - quota.sum()]] += 1
    lower, upper = (sizes > 0, sizes) if name == "rows" else (0 * sizes, sizes - (sizes > 0))
    _shift(quota, np.minimum(lower, sizes), upper, f"{name}={count}")
    purpose = ("test", "val", "rows").index(name)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))
    mask = np.zeros(len(host_labels), dtype=bool)
    for label, size in enumerate(quota):
        mask[generator.permutation(np.flatnonzero(host_labels == label))[:size]] = True
    return torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))


def _shift(quota: np.ndarray, lower: np.ndarray, upper: np.ndarray, what: str) -> None:
    """Bring quotas between bounds, in place, without changing their sum.

    Raises
    ------
    ValueError
        If the sum is outside what the bounds allow.
    """
    total = int(quota.sum())
    if not lower.sum() <= total <= upper.sum():
        raise ValueError(
            f"{what} does not leave one image of every class for training: choose a number in "
            f"{lower.sum()}..{upper.sum()}"
        )
    np.clip(quota, lower, upper, out=quota)
    while (deficit := total - int(quota.sum())) != 0:
        # one image at a time to or from the class with the most room: few are ever moved
        room = upper - quota if deficit > 0 else quota - lower
        quota[int(np.argmax(room))] += int(np.sign(deficit))
