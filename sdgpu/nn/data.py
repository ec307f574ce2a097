"""Data sets of images: CIFAR, the digits of scikit-learn, generated ones, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sdgpu.backend.checks import choice, integer, number
from sdgpu.backend.untrusted_files import read_npz
from sdgpu.nn import cifar
from sdgpu.nn.image_splits import sample, set_test_apart, split_images
from sdgpu.nn.images import Images, find_device, images_from_arrays
from sdgpu.nn.label_noise import with_label_noise
from sdgpu.nn.parts import Data

__all__ = [
    "Data",
    "Images",
    "generated_images",
    "images_from_arrays",
    "load_images",
    "split_images",
]

NAMES = (*cifar.PUBLISHED, "digits", "generated")
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
) -> Data:
    """Load images of a known data set or a file, in three parts.

    Parameters
    ----------
    name : str
        ==================  =====================================================================
        "cifar10"           50,000 and 10,000 images 3 x 32 x 32, from files in `folder`
        "cifar100"          the same with 100 classes
        "digits"            1,797 of 8 x 8 that scikit-learn ships, 0..16 stretched to 0..255
        "generated"         2,500 of 3 x 32 x 32 in ten classes, see :func:`generated_images`
        a path ``*.npz``    or ``npz:path``: arrays `images` (n, H, W) or (n, H, W, C), uint8, and
                            `labels` (n,), and `test_images`, `test_labels` if there is a test set
        ==================  =====================================================================
    folder : str or Path, optional
        Where the published files of CIFAR are: their folder, one above it, or the archive
        ``.tar.gz``; by default the folder ``data``.
    val, seed, test_as_validation
        As for :func:`split_images`. Digits, generated and files without a test set have a fifth of
        their images set apart for it, the same for every seed.
    device : str or torch.device, default "cpu"
        "auto": CUDA if there is one.
    rows : int, optional
        Use so many of the images that are not for the test, validation included: a stratified sample
        by `seed`. The test set stays whole.
    label_noise : float, default 0
        This share of the training and validation images gets the label of another class, by `seed`; the
        test set keeps its own. See :func:`~sdgpu.nn.with_label_noise`.

    Raises
    ------
    FileNotFoundError
        If the files are not there; the message says where to put them.
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
    path = _path(name)
    if folder is not None and name not in cifar.PUBLISHED:
        raise ValueError(
            f"folder={str(folder)!r} is for {' and '.join(cifar.PUBLISHED)}, not {name}"
        )
    images, test = _read(name, folder) if path is None else _npz(path)
    if test is None:
        images, test = set_test_apart(images)
    if rows is not None:
        images = sample(images, rows, seed)
    if label_noise:
        images = with_label_noise(images, label_noise, seed=seed)
    parts = split_images(images, test, val=val, seed=seed, test_as_validation=test_as_validation)
    return parts.to(torch_device)


def _path(name: str) -> Path | None:
    """Return the path of a file, or None for a data set that has a name."""
    if isinstance(name, str) and (name.endswith(".npz") or name.startswith("npz:")):
        return Path(name.removeprefix("npz:"))
    choice("name", name, (*NAMES, "a path ending in .npz"))
    return None


def _read(name: str, folder: str | Path | None) -> tuple[Images, Images | None]:
    if name == "generated":
        return generated_images(GENERATED), None
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return images_from_arrays(pixels, digits.target, name=name), None
    train, test = cifar.read(name, folder)
    classes = cifar.PUBLISHED[name].classes
    return (
        images_from_arrays(*train, classes=classes, name=name),
        images_from_arrays(*test, classes=classes, name=f"{name}, test"),
    )


def _npz(path: Path) -> tuple[Images, Images | None]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    train, test = ("images", "labels"), ("test_images", "test_labels")
    arrays, names = read_npz(path, (*train, *test))
    keys = (*train, *test) if {*test} & arrays.keys() else train
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {' and no '.join(missing)}, only {names}")
    images = images_from_arrays(
        arrays["images"], arrays["labels"], channels_last=True, name=str(path)
    )
    if len(keys) == 2:
        return images, None
    return images, images_from_arrays(
        arrays["test_images"],
        arrays["test_labels"],
        classes=images.classes,
        channels_last=True,
        name=f"{path}, test",
    )


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
