"""Splits that cannot leak, and errors that name the culprit."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sdgpu.nn.augment import normalise
from sdgpu.nn.data import Data, generated_images, images_from_arrays, load_images, split_images


def marked(n=200, classes=4, uneven=False):
    """Images whose first two pixels carry their number, so that they can be told apart."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 3, 5, 6), dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.divmod(np.arange(n), 256)
    labels = np.arange(n) % classes
    if uneven:
        labels = np.minimum(rng.geometric(0.5, n) - 1, classes - 1)
    return images_from_arrays(pixels, labels, classes=classes)


def numbers(images):
    first = images.pixels[:, 0, 0, :2].long()
    return (256 * first[:, 0] + first[:, 1]).tolist()


@pytest.mark.parametrize("val", [0.1, 20, 0.37])
@pytest.mark.parametrize("uneven", [False, True])
def test_parts_are_disjoint_complete_and_stratified(val, uneven):
    images = marked(uneven=uneven)
    data = split_images(images, val=val, seed=3)
    parts = [numbers(part) for part in (data.train, data.val, data.test)]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(range(200))
    assert all(part == sorted(part) for part in parts)
    assert len(data.test) == 40
    assert len(data.val) == (val if isinstance(val, int) else round(val * 160))
    shares = torch.bincount(images.labels) / 200
    for part in (data.train, data.val, data.test):
        # a class gets its share but for less than one image; twice, as the test is taken first
        assert bool((abs(torch.bincount(part.labels) - shares * len(part)) < 2).all())
        assert torch.equal(part.labels, images.labels[numbers(part)])


def test_seeds_change_the_validation_set_and_never_the_test_set():
    images = marked()
    one, two, again = (split_images(images, seed=seed) for seed in (1, 2, 1))
    assert numbers(one.val) != numbers(two.val)
    assert numbers(one.val) == numbers(again.val)
    assert numbers(one.test) == numbers(two.test)


def test_moments_are_those_of_the_training_part():
    data = split_images(marked())
    host = data.train.pixels.numpy() / 255
    for part in (data.train, data.val, data.test):
        # sums of whole numbers are exact: what is left is NumPy's own rounding
        assert_allclose(part.mean, host.mean(axis=(0, 2, 3)), rtol=1e-13)
        assert_allclose(part.std, host.std(axis=(0, 2, 3)), rtol=1e-12)
    batch = normalise(data.train.pixels, data.train.mean, data.train.std, torch.float64)
    assert_allclose(batch.mean(dim=(0, 2, 3)), 0, atol=1e-12)
    assert_allclose(batch.std(dim=(0, 2, 3), correction=0), 1, rtol=1e-12)


def test_moments_at_the_end_of_the_range():
    """White images are the largest sums; their channels are constant, so they are not scaled."""
    white = images_from_arrays(np.full((600, 2, 3, 3), 255, np.uint8), np.arange(600) % 2)
    assert white.mean == (1.0, 1.0)
    assert white.std == (1.0, 1.0)
    halves = np.zeros((600, 3, 3), np.uint8)
    halves[::2] = 255
    assert images_from_arrays(halves, np.arange(600) % 2).std == (0.5,)


def test_test_rows_leave_no_trace_in_training():
    images, other = marked(), marked()
    held = numbers(split_images(images).test)
    other.pixels[held, :, 1:] = 255
    one, two = split_images(images), split_images(other)
    assert one.train.mean == two.train.mean
    assert torch.equal(one.val.pixels, two.val.pixels)


def test_validation_on_the_test_set_only_by_name():
    images, test = marked(), marked(n=80)
    apart = split_images(images, test)
    assert len(apart.train) == 180
    leaking = split_images(images, test, test_as_validation=True)
    assert len(leaking.train) == 200
    assert torch.equal(leaking.val.pixels, leaking.test.pixels)
    digits = load_images("digits", test_as_validation=True)
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1438, 359, 359)


def test_take_and_one_hot():
    images = marked()
    index = torch.tensor([7, 3, 7])
    taken = images.take(index)
    assert numbers(taken) == [7, 3, 7]
    assert len(taken) == 3
    assert (taken.mean, taken.classes, taken.name) == (images.mean, 4, "images")
    assert taken.one_hot().dtype == torch.float32
    assert taken.one_hot(torch.float64).tolist() == np.eye(4)[[3, 3, 3]].tolist()
    assert images.to("cpu").pixels is images.pixels
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.classes = 3


@pytest.mark.gpu
def test_on_cuda():
    data = load_images("generated", device="cuda")
    assert data.train.pixels.device.type == data.test.labels.device.type == "cuda"
    assert data.val.one_hot().device.type == "cuda"
    assert data.train.take(torch.arange(3)).pixels.device.type == "cuda"
    assert load_images("generated", device="auto").train.pixels.device.type == "cuda"
    here = load_images("generated")
    assert here.train.mean == data.train.mean
    assert torch.equal(here.val.pixels, data.val.pixels.cpu())


def test_digits():
    from sklearn.datasets import load_digits

    data = load_images("digits", seed=4)
    assert isinstance(data, Data)
    assert data.train.pixels.shape == (1294, 1, 8, 8)
    assert (data.train.classes, data.train.name) == (10, "digits")
    known = load_digits()
    rows = {
        (image.tobytes(), label) for image, label in zip(known.images, known.target, strict=True)
    }
    for part in (data.train, data.val, data.test):
        back = np.rint(part.pixels[:, 0].numpy() / 255 * 16)
        assert {(i.tobytes(), t) for i, t in zip(back, part.labels.numpy(), strict=True)} <= rows


def test_generated_images_can_be_learned_and_are_not_trivial():
    one, two = generated_images(1000, seed=1), generated_images(1000, seed=1)
    assert torch.equal(one.pixels, two.pixels)
    assert not torch.equal(one.pixels, generated_images(1000, seed=2).pixels)
    assert one.pixels.shape == (1000, 3, 32, 32)
    assert torch.bincount(one.labels).tolist() == [100] * 10
    X = one.pixels.flatten(1).double()
    means = torch.stack([X[:500][one.labels[:500] == label].mean(dim=0) for label in range(10)])
    right = torch.cdist(X[500:], means).argmin(dim=1) == one.labels[500:]
    assert float(right.double().mean()) > 0.9
    noisy = generated_images(300, classes=3, channels=1, size=8, noise=3.0)
    assert noisy.pixels.shape == (300, 1, 8, 8)
    data = load_images("generated", rows=400)
    assert (len(data.train), len(data.val), len(data.test)) == (360, 40, 500)


def test_rows_are_a_stratified_sample_without_the_test_set():
    whole, part = load_images("digits"), load_images("digits", rows=200)
    assert torch.equal(whole.test.pixels, part.test.pixels)
    assert len(part.train) + len(part.val) == 200
    both = torch.cat([part.train.labels, part.val.labels])
    assert 18 <= int(torch.bincount(both).min()) <= int(torch.bincount(both).max()) <= 22
    other = load_images("digits", rows=200, seed=1)
    assert not torch.equal(other.train.pixels, part.train.pixels)


@pytest.mark.parametrize("form", ["grey", "colour"])
@pytest.mark.parametrize("prefix", ["", "npz:"])
def test_npz(tmp_path, form, prefix):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 6, 5) if form == "grey" else (60, 6, 5, 3), dtype=np.uint8)
    labels = (np.arange(60) % 3).astype(np.uint16)
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    data = load_images(f"{prefix}{tmp_path / 'own.npz'}", val=6)
    assert data.train.pixels.shape[1:] == ((1, 6, 5) if form == "grey" else (3, 6, 5))
    assert (len(data.train), len(data.val), len(data.test)) == (42, 6, 12)
    np.savez_compressed(
        tmp_path / "own.npz",
        images=images,
        labels=labels,
        test_images=images[:9],
        test_labels=labels[:9],
    )
    data = load_images(f"{prefix}{tmp_path / 'own.npz'}", val=6)
    assert (len(data.train), len(data.test)) == (54, 9)
    shown = data.test.pixels[:, 0] if form == "grey" else data.test.pixels.permute(0, 2, 3, 1)
    assert np.array_equal(shown.numpy(), images[:9])


def test_bad_npz(tmp_path):
    path = tmp_path / "bad.npz"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_images(str(path))
    np.savez(
        path, images=np.zeros((4, 2, 2), np.uint8), labels=np.array([{}, 1, 2, 3], dtype=object)
    )
    with pytest.raises(ValueError, match=r"no npz file of plain arrays.*labels.npy holds objects"):
        load_images(str(path))
    np.savez(path, images=np.zeros((4, 2, 2), np.uint8), y=np.zeros(4))
    with pytest.raises(ValueError, match=r"has no array labels, only \['images', 'y'\]"):
        load_images(str(path))
    np.savez(path, images=np.zeros((40, 3, 8, 9), np.uint8), labels=np.arange(40) % 2)
    assert load_images(str(path)).train.shape == (3, 8, 9)
    np.savez(path, images=np.zeros((40, 7, 8, 9), np.uint8), labels=np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"7 channels if they are .* more than 4"):
        load_images(str(path))
    np.savez(path, images=np.zeros((40, 8, 9), np.uint8), labels=np.arange(40) % 2, test_labels=[1])
    with pytest.raises(ValueError, match="has no array test_images"):
        load_images(str(path))
    rng = np.random.default_rng(0)
    np.savez_compressed(
        path, images=rng.integers(0, 256, (40, 8, 9), dtype=np.uint8), labels=np.arange(40) % 2
    )
    good = path.read_bytes()
    for damaged in (
        b"",
        b"no archive",
        good[: len(good) // 2],
        good[:900] + b"\xff" * 40 + good[940:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no npz file of plain arrays, or a damaged one"):
            load_images(str(path))
    np.save(tmp_path / "array", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(ValueError, match="no npz file of plain arrays, or a damaged one"):
        load_images(str(path))


PIXELS, LABELS = np.zeros((8, 3, 4, 4), np.uint8), np.arange(8) % 2


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "message"),
    [
        (PIXELS / 255, LABELS, TypeError, r"float64; if they lie in \[0, 1\]: \(255 \* pixels\)"),
        (
            PIXELS.astype(np.int64),
            LABELS,
            TypeError,
            "pixels must be uint8, 0 to 255, got torch.int64$",
        ),
        (PIXELS.astype(object), LABELS, TypeError, "pixels must be numbers, got dtype object"),
        (PIXELS[0, 0], LABELS, ValueError, r"pixels must be \(n, H, W\) or \(n, C, H, W\)"),
        (PIXELS[:0], LABELS[:0], ValueError, r"none of them 0, got shape \(0, 3, 4, 4\)"),
        (PIXELS[:, :, :0], LABELS, ValueError, r"none of them 0, got shape \(8, 3, 0, 4\)"),
        (
            np.zeros((8, 9, 9, 3), np.uint8),
            LABELS,
            ValueError,
            "9 channels.* set channels_last=True",
        ),
        (PIXELS, LABELS[:7], ValueError, r"labels must be \(8,\), one per image, got \(7,\)"),
        (
            PIXELS,
            LABELS[:, None],
            ValueError,
            r"labels must be \(8,\), one per image, got \(8, 1\)",
        ),
        (
            PIXELS,
            LABELS / 1,
            TypeError,
            "labels must be whole numbers from 0 on, got torch.float64",
        ),
        (PIXELS, LABELS > 0, TypeError, "labels must be whole numbers from 0 on, got torch.bool"),
        (PIXELS, np.array(list("abababab")), TypeError, "labels must be numbers, got dtype <U1"),
        (PIXELS, LABELS - 1, ValueError, "label -1 is out of range: .*classes are 0 to"),
        (PIXELS, 2 * LABELS, ValueError, "no image of class 1 among 8: give more images, number"),
        (PIXELS, 0 * LABELS, ValueError, "all labels are 0"),
    ],
)
def test_bad_arrays(pixels, labels, error, message):
    with pytest.raises(error, match=f"photos: .*{message}"):
        images_from_arrays(pixels, labels, name="photos")


def test_bad_numbers():
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        images_from_arrays(PIXELS, LABELS, classes=1)
    with pytest.raises(ValueError, match=r"no image of class 1, 2, 3, 4, 5, .. among 8"):
        images_from_arrays(PIXELS, 9 * LABELS)
    with pytest.raises(ValueError, match="label 2 is out of range: 2 classes are 0 to 1"):
        images_from_arrays(PIXELS, 2 * LABELS, classes=2)
    images = marked()
    for val in (200, -3, 1.0, 1.5, 1e-9, float("nan"), True, "0.1"):
        with pytest.raises((ValueError, TypeError), match="val="):
            split_images(images, marked(), val=val)
    with pytest.raises(ValueError, match=r"val=197 does not leave one image .* in 0\.\.196"):
        split_images(images, marked(), val=197)
    with pytest.raises(
        ValueError, match=r"test: 3 classes of images \(3, 5, 6\), but the training set"
    ):
        split_images(images, marked(n=60, classes=3))
    with pytest.raises(ValueError, match="rows=5000, but digits has 1438 besides the test set"):
        load_images("digits", rows=5000)
    with pytest.raises(ValueError, match=r"rows=9 does not leave one image .* in 10\.\.1438"):
        load_images("digits", rows=9)
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        load_images("digits", seed=-1)
    with pytest.raises(ValueError, match="n=5 images cannot show classes=10"):
        generated_images(5)
    with pytest.raises(ValueError, match=r"noise=-1 must be >= 0"):
        generated_images(50, noise=-1)


def test_bad_names():
    with pytest.raises(ValueError, match=r"name='cifar' is not known: did you mean 'cifar10'"):
        load_images("cifar")
    with pytest.raises(ValueError, match="name=3 is not known"):
        load_images(3)
    with pytest.raises(
        ValueError, match=r"folder='here' is for cifar10, cifar100 and mnist, not digits"
    ):
        load_images("digits", "here")
    with pytest.raises(ValueError, match="device='gpu' is not known: use 'cpu', 'cuda', 'auto'"):
        load_images("digits", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda', but torch sees no CUDA device"):
            load_images("digits", device="cuda")


def test_arrays_in_any_layout():
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    labels = np.arange(12, dtype=np.int8)[::-1] % 3
    images = images_from_arrays(pixels, labels, channels_last=True)
    assert np.array_equal(images.pixels.numpy(), pixels.transpose(0, 3, 1, 2))
    assert images.pixels.is_contiguous()
    assert images.labels.dtype == torch.int64
    shared = torch.zeros((6, 1, 4, 4), dtype=torch.uint8)
    assert images_from_arrays(shared, torch.arange(6) % 2).pixels.data_ptr() == shared.data_ptr()
