"""Files of moments: whole or not there, the same bits, damage named, nothing executed; and what is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sdgpu
from sdgpu.backend import sealed_tensors
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.solvers.checkpoint import Checkpoint, State
from tests.damage import cut as cut_off
from tests.damage import damages, flipped, lengthened, zeroed
from tests.engine.test_moments import (
    FIXED,
    KERNEL,
    KINDS,
    WEIGHTS,
    C,
    D,
    N,
    X,
    Y,
    answers,
    assert_fits_alike,
    assert_unchanged,
    cut,
    moments,
    state,
    whole,
)
from tests.test_foreign_files import Canary

SAVED = {
    **{name: KINDS[name] for name in ("nystrom", "fourier", "own")},
    "sum": (KERNEL + 0.5 * sdgpu.Linear([1.0, 2.0, 0.5]), sdgpu.Nystrom(9)),
    "product": (sdgpu.Linear() * sdgpu.Polynomial(2), sdgpu.Explicit()),
    "multiple": (2.0 * sdgpu.Matern(1.5), sdgpu.RandomFourier(6, orthogonal=True)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "days.safetensors"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SAVED)
def test_there_and_back(name, dtype, path):
    found = sdgpu.Moments(*SAVED[name], d=D, c=C, dtype=dtype, seed=5).add(X, Y, WEIGHTS)
    for _ in range(2):  # a second time over the first
        found.save(path)
    again = sdgpu.open_moments(path)
    before, after = state(found), state(again)
    for key in before.keys() - {"map"}:
        assert np.array_equal(after[key], before[key])
    assert (again.d, again.c, again.dtype, again.kernel) == (D, C, dtype, found.kernel)
    assert (again.rows, again.weight) == (N, WEIGHTS.sum())
    fits = [sdgpu.fit(m, lams=[0.02, 0.3], intercept=True) for m in (found, again)]
    for left, right in zip(*map(answers, fits), strict=True):
        assert np.array_equal(left, right)
    assert fits[0].info.error_estimate == fits[1].info.error_estimate
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", SAVED)
def test_rows_are_added_after_opening(name, path):
    found = moments(SAVED[name], cut(25)[:1])
    found.save(str(path))
    again, other = sdgpu.open_moments(path), sdgpu.open_moments(str(path))
    again.add(X[25:40], Y[25:40])
    other.add(X[40:], Y[40:])
    kernel, features = SAVED[name]
    if isinstance(features, sdgpu.Nystrom):
        features = sdgpu.Nystrom(landmarks=found.map.landmarks)
    # both hold the rows of the file: once too many
    again.merge(other).subtract(X[:25], Y[:25])
    assert_fits_alike(again, whole((kernel, features)), rtol=1e-6)
    assert found.rows == sdgpu.open_moments(path).rows == 25


def test_open_ones_do_not_share_memory(path):
    found = moments(parts=cut())
    found.save(path)
    one, two = sdgpu.open_moments(path), sdgpu.open_moments(path)
    one.add(X, Y)
    assert_unchanged(two, {**state(found), "map": two.map})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moments(KINDS["function"], cut()), "features= is a function: it cannot be saved"),
        (
            lambda: sdgpu.Moments(lambda A, B: A @ B.T, FIXED, d=D, c=C).add(X, Y),
            "cannot go into a file: it is no formula of this package",
        ),
    ],
    ids=["features", "kernel"],
)
def test_code_is_not_saved(make, words, path):
    with pytest.raises(TypeError, match=words):
        make().save(path)
    assert list(path.parent.iterdir()) == []


def test_bad_paths(path):
    found = moments(parts=cut())
    for name in ("days", "days.nc", "days.pkl"):
        with pytest.raises(ValueError, match=rf"{name}' must end in .safetensors"):
            found.save(path.parent / name)
        with pytest.raises(ValueError, match=rf"{name}' must end in .safetensors"):
            sdgpu.open_moments(path.parent / name)
    with pytest.raises(FileNotFoundError, match=r"days\.safetensors"):
        sdgpu.open_moments(path)
    with pytest.raises(FileNotFoundError, match="no"):
        found.save(path.parent / "no" / "days.safetensors")
    with pytest.raises(ValueError, match="picked from the first rows"):
        moments((KERNEL, sdgpu.Nystrom(4))).save(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there(failure, path, monkeypatch):
    found = moments(parts=cut(30)[:1])
    found.save(path)
    content = path.read_bytes()
    found.add(X[30:], Y[30:])

    def full(tensors, target, **_):
        Path(target).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(sealed_tensors, "save_file", full)
    with pytest.raises(type(failure)):
        found.save(path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert sdgpu.open_moments(path).rows == 30


@pytest.mark.parametrize("kind", [flipped, cut_off, zeroed, lengthened])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_damage_is_named_or_harmless(kind, dtype, path):
    small = sdgpu.Moments(KERNEL, sdgpu.Nystrom(4), d=D, c=1, dtype=dtype).add(X[:9], Y[:9, 0])
    small.save(path)
    wanted, named, harmless = state(small), 0, 0
    every = list(damages(path.read_bytes(), 3, kind, times=200))
    for content in every:
        path.write_bytes(content)
        try:
            found = state(sdgpu.open_moments(path))
        except ValueError as error:
            named += str(error).startswith(f"moments {path} is damaged (")
        else:
            harmless += all(np.array_equal(found[k], wanted[k]) for k in wanted.keys() - {"map"})
    assert named + harmless == len(every) > 150
    assert named > 0.9 * len(every)


def test_a_planted_pickle_does_not_run(path):
    canary = path.parent / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match=r"moments .*days\.safetensors is damaged"):
        sdgpu.open_moments(path)
    assert not canary.exists()


def test_files_of_another_kind(path):
    Checkpoint(path, {}).save(State(np.eye(2), np.eye(2), np.eye(2), 3))
    with pytest.raises(ValueError, match=r"days\.safetensors holds no moments: 'moments'"):
        sdgpu.open_moments(path)
    save_file({"gram": np.eye(2)}, path)
    with pytest.raises(ValueError, match="it has no checksum: an older version wrote it"):
        sdgpu.open_moments(path)


LINEAR = {"kind": "Linear", "lengthscale": None}


@pytest.mark.parametrize(
    ("numbers", "arrays", "words"),
    [
        ({"moments": 2}, {}, "it is of version 2, not 1"),
        ({"moments": None}, {}, "it is of version None, not 1"),
        ({"kernel": {"kind": "FunctionKernel"}}, {}, "'FunctionKernel' is no kernel"),
        ({"kernel": {"kind": "Gaussian", "gamma": -1}}, {}, "gamma=-1 must be > 0"),
        ({"kernel": "Gaussian"}, {}, "a str describes no kernel"),
        ({"map": {"kind": "callable"}}, {}, "'callable' is no feature map"),
        ({"map": {}}, {}, "None is no feature map"),
        ({"map": []}, {}, "a list describes no feature map"),
        ({"map": {"kind": "own", "d": 3}}, {}, "has no features of its own"),
        ({"map": {"kind": "fourier", "scale": 1.0}}, {}, "lacks 'frequencies'"),
        ({"map": {"kind": "own", "d": 10**7}, "kernel": LINEAR}, {}, "no features of its own"),
        (
            {"map": {"kind": "own", "d": 20_000}, "kernel": LINEAR},
            {},
            r"gram is float64 of shape \(4, 4\)",
        ),
        ({}, {"map.landmarks": np.zeros((3, D))}, "3 landmarks with 4 of whitening"),
        ({}, {"map.whitening": np.zeros((4, 3))}, r"gram is float64 of shape \(4, 4\)"),
        ({}, {"map.whitening": np.zeros((4, 10**6))}, r"gram is float64 of shape \(4, 4\)"),
        ({}, {"map.whitening": np.full((4, 4), np.nan)}, "whitening is no matrix"),
        ({}, {"map.landmarks": np.zeros((4, D + 1))}, "rows of 3 for a map of 4"),
        ({"d": 4}, {}, "rows of 4 for a map of 3"),
        ({"d": "3"}, {}, "rows of 3 for a map of 3"),
        ({"c": 2}, {}, r"is float64 of shape \(4, 1\)|is float64 of shape \(1,\)"),
        ({"c": 0}, {}, "c=0 must be at least 1"),
        ({"c": 1.5}, {}, "c=1.5 must be a whole number"),
        ({"c": 10**9}, {}, "is float64 of shape"),
        ({"dtype": "float16"}, {}, "dtype='float16' is not known"),
        ({"dtype": ["float64"]}, {}, "dtype=.* is not known"),
        ({"seed": -1}, {}, "seed=-1 must be at least 0"),
        ({"rows": -5}, {}, "rows=-5 must be at least 0"),
        ({"rows": True}, {}, "rows=True must be a whole number"),
        ({"rows": 0}, {}, "a weight of 9 without rows"),
        ({"weight": "9"}, {}, "weight='9' must be a real number"),
        ({"audited": 3}, {}, "'gram_error'"),
        ({}, {"gram": np.zeros((4, 4), dtype=np.int64)}, "gram is int64"),
        ({}, {"gram": np.full((4, 4), np.inf)}, "gram holds NaN or infinity"),
        ({}, {"cross": np.zeros((1, 4))}, "cross is float64 of shape"),
        ({}, {"offset": np.zeros(0)}, "offset is float64 of shape"),
    ],
)
def test_files_that_others_made(numbers, arrays, words, path):
    """With checksums of their own: nothing in them is believed."""
    sdgpu.Moments(KERNEL, sdgpu.Nystrom(4), d=D, c=1).add(X[:9], Y[:9, 0]).save(path)
    own_arrays, own_numbers = read_tensors(path, "moments")
    write_tensors(path, own_arrays | arrays, own_numbers | numbers)
    with pytest.raises(ValueError, match=words) as caught:
        sdgpu.open_moments(path)
    assert str(caught.value).startswith(f"{path} holds no moments: ")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "name", ["kernel", "map", "d", "c", "dtype", "seed", "rows", "weight", "audited", "gram"]
)
def test_files_that_lack_something(name, path):
    sdgpu.Moments(KERNEL, sdgpu.Nystrom(4), d=D, c=1).add(X[:9], Y[:9, 0]).save(path)
    arrays, numbers = read_tensors(path, "moments")
    (arrays if name in arrays else numbers).pop(name)
    write_tensors(path, arrays, numbers)
    with pytest.raises(ValueError, match=f"holds no moments: '{name}' is missing"):
        sdgpu.open_moments(path)


def test_texts_in_texts_are_refused(path):
    """A kernel as deep as JSON may be; what is more is no JSON."""
    sdgpu.Moments(KERNEL, sdgpu.Nystrom(4), d=D, c=1).add(X[:9], Y[:9, 0]).save(path)
    arrays, numbers = read_tensors(path, "moments")
    texts = {name: json.dumps(value) for name, value in numbers.items()}
    for depth in (60, 400, 100_000):
        front, back = '{"kind": "Sum", "kernels": [', "]}"
        texts["kernel"] = front * depth + json.dumps(LINEAR) + back * depth
        checksum = sealed_tensors._checksum(arrays, texts)
        save_file(arrays, path, metadata={**texts, "checksum": checksum})
        with pytest.raises(ValueError, match=r"days\.safetensors") as caught:
            sdgpu.open_moments(path)
        assert len(str(caught.value)) < 500
    assert load_file(path).keys() == arrays.keys()


KILLED = """
import os, random, select, signal, sys, time
from pathlib import Path
import numpy as np
import sdgpu
from sdgpu.backend.storage import clean_leftovers

path, rng = Path(sys.argv[1]), random.Random(7)
X = np.random.default_rng(0).standard_normal((400, 2))
moments = sdgpu.Moments(sdgpu.Gaussian(0.3), sdgpu.Nystrom(100), d=2).add(X, X[:, 0])
moments.save(path)
ready, tell = os.pipe()
for i in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        try:
            while True:
                moments.add(X[:10], X[:10, 0])
                moments.save(path)
                os.write(tell, b"1")
        finally:
            os._exit(1)
    os.read(ready, 1)  # one save is done
    time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, (signal.SIGKILL, signal.SIGTERM)[i % 2])
    os.waitpid(child, 0)
    clean_leftovers(path)
    assert {*os.listdir(path.parent)} == {path.name}, os.listdir(path.parent)
    while select.select([ready], [], [], 0)[0]:
        os.read(ready, 1 << 16)
    found = sdgpu.open_moments(path)
    assert found.weight == found.rows > 400, found.rows
    assert not found.rows % 10
"""


def test_many_kills_of_a_save(path):
    """After each the file is whole and alone."""
    times = 50 if os.environ.get("CI") else 12
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(times)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sdgpu.open_moments(path).rows > 400


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: sdgpu.Moments(KERNEL, sdgpu.Nystrom, d=3),
            TypeError,
            "features=<class .* is wanted",
        ),
        (lambda: sdgpu.Moments(KERNEL, None, d=3), TypeError, r"features=None: sdgpu.Nystrom\("),
        (lambda: sdgpu.Moments("rbff", FIXED, d=3), ValueError, "kernel='rbff' is not known"),
        (lambda: sdgpu.Moments(KERNEL, FIXED, d=0), ValueError, "d=0 must be at least 1"),
        (lambda: sdgpu.Moments(KERNEL, FIXED, d=3, c=0), ValueError, "c=0 must be at least 1"),
        (lambda: sdgpu.Moments(KERNEL, FIXED, d=2.0), TypeError, "d=2.0 must be a whole number"),
        (
            lambda: sdgpu.Moments(KERNEL, FIXED, d=3, seed=-1),
            ValueError,
            "seed=-1 must be at least 0",
        ),
        (lambda: sdgpu.Moments(KERNEL, FIXED, d=3, dtype="mixed"), ValueError, "dtype='mixed'"),
        (
            lambda: sdgpu.Moments(KERNEL, FIXED, d=4),
            ValueError,
            "landmarks has 3 features, but the rows",
        ),
        (
            lambda: sdgpu.Moments(KERNEL, sdgpu.Explicit(), d=3),
            ValueError,
            "no finite number of features",
        ),
        (
            lambda: sdgpu.Moments("precomputed", sdgpu.Nystrom(4), d=3).add(X[:, :3], Y[:, 0]),
            ValueError,
            "not a",
        ),
        (lambda: moments().add(X), TypeError, "Y"),
        (lambda: moments().add(X[:, :2], Y), ValueError, "X has 2 features, but the fit has 3"),
        (lambda: moments().add(X, Y[:, 0]), ValueError, "Y has 1 outputs, but the fit has 2"),
        (lambda: moments().add(X, Y[1:]), ValueError, "Y has 59 rows, but its inputs have 60"),
        (lambda: moments().add(X[:0], Y[:0]), ValueError, "X has no rows"),
        (lambda: moments().add(X, Y, WEIGHTS[1:]), ValueError, "sample_weight has 59 rows"),
        (lambda: moments().add(X, Y, -WEIGHTS), ValueError, "weights at .* are negative"),
        (lambda: moments().add(X, Y, np.ones((N, 2))), ValueError, "sample_weight has 2 outputs"),
        (
            lambda: moments().add(sdgpu.rows.arrays(X, Y), Y),
            ValueError,
            "Y and sample_weight: a source",
        ),
        (
            lambda: moments().add(sdgpu.rows.arrays(X)),
            ValueError,
            "3 features and 0 outputs do not go",
        ),
        (lambda: moments().add(sdgpu.rows.arrays(X[:, 1:], Y)), ValueError, "with d=3, c=2"),
        (
            lambda: moments((KERNEL, sdgpu.Nystrom(70)), cut()),
            ValueError,
            "size=70 landmarks of 60 rows",
        ),
        (
            lambda: moments((KERNEL, sdgpu.Nystrom(7))).map,
            ValueError,
            "picked from the first rows: add",
        ),
        (
            lambda: moments((KERNEL, sdgpu.Nystrom(7))).subtract(X, Y),
            ValueError,
            "picked from the first",
        ),
        (
            lambda: sdgpu.fit(moments((KERNEL, sdgpu.Nystrom(7)))),
            ValueError,
            "picked from the first rows",
        ),
        (lambda: sdgpu.fit(moments()), ValueError, "moments of 0 rows of weight 0: add rows first"),
        (
            lambda: sdgpu.fit(moments(parts=cut()), Y),
            ValueError,
            "Y: not for moments, which have their own",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), kernel=KERNEL),
            ValueError,
            "kernel: not for moments",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), features=FIXED),
            ValueError,
            "features: not for moments",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), dtype="float32"),
            ValueError,
            "dtype: not for moments",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), sample_weight=WEIGHTS),
            ValueError,
            "sample_weight: not",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), checkpoint="a.safetensors"),
            ValueError,
            "checkpoint: not",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut()), method="eigh"),
            ValueError,
            "method: not for features=",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut())).loo(),
            ValueError,
            "leave-one-out: a feature model keeps",
        ),
        (
            lambda: sdgpu.fit(moments(parts=cut())).sweep(),
            ValueError,
            "leave-one-out: a feature model",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()
