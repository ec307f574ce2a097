"""Predictions of teachers in files: written, read, refused; top-k against rows written out one by one."""

import contextlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdgpu.backend.prediction_files import (
    check_probabilities,
    dense_top_k,
    read_predictions,
    write_predictions,
)
from tests.damage import damages

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.standard_normal((7, 5))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
LABELS = np.arange(7) % 5


def top(values, k):
    indices = np.argsort(-values, axis=1)[:, :k]
    return np.take_along_axis(values, indices, axis=1), indices


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_was_written_is_read(tmp_path, dtype):
    path = tmp_path / "p.npz"
    write_predictions(path, P.astype(dtype), output="probabilities", labels=LABELS)
    found = read_predictions(path)
    assert found.output == "probabilities"
    assert found.values.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_array_equal(found.values, P.astype(dtype))
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.dense(5), found.values)
    assert len(found) == 7


def test_matrices_and_single_arrays_do_not_say_what_they_are(tmp_path):
    np.save(tmp_path / "p.npy", P)
    np.savez(tmp_path / "p.npz", anything=P)
    pq.write_table(pa.table({f"class {j}": P[:, j] for j in range(5)}), tmp_path / "p.parquet")
    for name in ("p.npy", "p.npz", "p.parquet"):
        found = read_predictions(tmp_path / name)
        assert found.output is found.indices is found.labels is None
        np.testing.assert_array_equal(found.values, P)


def test_whole_numbers_and_one_output(tmp_path):
    np.savez(tmp_path / "p.npz", predictions=np.arange(6, dtype=np.int8))
    found = read_predictions(tmp_path / "p.npz")
    assert found.values.dtype == np.float64
    assert found.output == "predictions"
    np.testing.assert_array_equal(found.values, np.arange(6.0)[:, None])
    np.savez(tmp_path / "p.npz", values=LOGITS.astype(np.float16))
    found = read_predictions(tmp_path / "p.npz")
    assert found.values.dtype == np.float32
    assert found.output is None


@pytest.mark.parametrize("fixed", [False, True])
def test_parquet_of_lists(tmp_path, fixed):
    values, indices = top(LOGITS, 2)
    lists = [pa.list_(kind, 2) if fixed else pa.list_(kind) for kind in (pa.float32(), pa.int32())]
    columns = {
        "name": [f"picture {i}" for i in range(7)],  # of no concern
        "logits": pa.array(list(values), lists[0]),
        "indices": pa.array(list(indices), lists[1]),
        "labels": LABELS,
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=3)
    found = read_predictions(tmp_path / "p.parquet")
    assert found.output == "logits"
    np.testing.assert_array_equal(found.values, values.astype(np.float32))
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.labels, LABELS)
    both = tmp_path / "columns.parquet"
    pq.write_table(pa.table({"0": P[:, 0], "1": P[:, 1], "labels": LABELS}), both)
    np.testing.assert_array_equal(read_predictions(both).values, P[:, :2])
    np.testing.assert_array_equal(read_predictions(both).labels, LABELS)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_row_by_row(k):
    values, indices = top(P, k)
    spread, kept = (
        dense_top_k(values, indices, 5, rest=rest) for rest in ("spread", "renormalise")
    )
    soft = dense_top_k(np.take_along_axis(LOGITS, indices, axis=1), indices, 5, logits=True)
    for row in range(7):
        known = set(indices[row].tolist())
        left = 1 - sum(P[row, j] for j in known)
        for j in range(5):
            expected = P[row, j] if j in known else left / (5 - k)
            assert spread[row, j] == pytest.approx(expected, rel=1e-12)
            expected = P[row, j] / (1 - left) if j in known else 0
            assert kept[row, j] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(soft, kept, rtol=1e-12)
    np.testing.assert_allclose(spread.sum(axis=1), 1, rtol=1e-12)
    if k == 5:
        np.testing.assert_allclose(spread, P, rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "indices", "options", "message"),
    [
        ([[0.5, 0.3]], [[0, 1]], {"classes": 1}, "k=2 of classes=1: there are not so many"),
        ([[0.5, 0.3]], [[0, 2]], {}, r"indices run from 0 to 2, but classes=2"),
        ([[0.5, 0.3]], [[-1, 1]], {}, "indices run from -1 to 1"),
        ([[0.5, 0.3]], [[1, 1]], {"classes": 3}, "row 0 name a class twice"),
        ([[0.5, 0.3]], [[0]], {}, r"indices must be whole numbers \(1, 2\)"),
        ([[5.0, 0.3]], [[0, 1]], {}, "sums to 5.3.*output='logits'"),
        ([[0.5, -0.3]], [[0, 1]], {}, "entries from -0.3"),
        ([[0.0, 0.0]], [[0, 1]], {"rest": "renormalise"}, "which is 0 in a row"),
        ([[5.0, 0.3]], [[0, 1]], {"logits": True, "rest": "spread"}, "what is left is not known"),
        ([[0.5, 0.3]], [[0, 1]], {"rest": "forget"}, "rest='forget' is not known"),
    ],
)
def test_a_top_k_that_is_none(values, indices, options, message):
    options = {"classes": 2} | options
    with pytest.raises(ValueError, match=message):
        dense_top_k(np.array(values), np.array(indices), **options)


def test_logits_are_no_probabilities():
    check_probabilities("teacher", P, "")
    check_probabilities("teacher", P.astype(np.float16), "")
    check_probabilities("teacher", np.zeros((0, 5)), "")
    for wrong in (LOGITS, P / 2, P - 0.01, P * 1.002, np.full((1, 2), np.nan)):
        with pytest.raises(ValueError, match=r"teacher: rows of probabilities.*say what helps"):
            check_probabilities("teacher", wrong, "say what helps")


LARGEST = np.max(P) == P
WRONG = [
    (
        {"probabilities": P, "logits": LOGITS},
        "it must have one of probabilities, logits, predictions, values",
    ),
    ({"a": P, "b": P}, "it must have one of .* but has a, b"),
    (
        {"probabilities": P, "labels": LABELS[:3]},
        r"labels must be whole numbers \(7,\).*got int64 \(3,\)",
    ),
    ({"probabilities": P, "labels": LABELS / 2}, "labels must be whole numbers"),
    ({"probabilities": P, "indices": LABELS}, r"indices must be whole numbers \(7, 5\)"),
    ({"probabilities": np.where(LARGEST, np.inf, P)}, "1 of 7 rows are not, the first of them row"),
    ({"probabilities": P[None]}, r"must be \(n, c\), none of them 0, got shape \(1, 7, 5\)"),
    ({"probabilities": P[:0]}, r"got shape \(0, 5\)"),
    ({"probabilities": np.array([["a", "b"]])}, "predictions must be numbers, got <U1"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_files_that_do_not_agree_with_themselves(tmp_path, arrays, message):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_parquet_that_does_not_fit(tmp_path):
    path = tmp_path / "wrong.parquet"
    for columns, message in (
        ({"logits": [[1.0, 2.0], [3.0]]}, "lists of 1 to 2 entries"),
        ({"logits": [[1.0, None], [3.0, 1.0]]}, "1 of them without a value"),
        ({"logits": [[1.0, 2.0], None]}, "1 rows without a value"),
        ({"a": [1.0, None]}, "column 'a' has 1 rows without a value"),
        ({"a": ["x", "y"]}, "column 'a' is of string"),
        ({"labels": [1, 2]}, "or a column of numbers for each output, but has labels"),
        ({"p": [[1.0], [2.0]]}, "it must have one of"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ValueError, match=message):
            read_predictions(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"p\.csv: predictions are read from \.npy, \.npz, \.parquet"
    ):
        read_predictions(tmp_path / "p.csv")
    for name in ("p.npy", "p.npz", "p.parquet"):
        with pytest.raises(FileNotFoundError, match=name):
            read_predictions(tmp_path / name)
    with pytest.raises(ValueError, match=r"written as \.npz"):
        write_predictions(tmp_path / "p.npy", P, output="logits")
    with pytest.raises(ValueError, match="output='logit' is not known"):
        write_predictions(tmp_path / "p.npz", P, output="logit")


@pytest.mark.parametrize("name", ["p.npy", "p.npz", "p.parquet"])
def test_damage_is_an_error_that_names_the_file_or_changes_nothing_else(tmp_path, name):
    path = tmp_path / name
    if name == "p.npy":
        np.save(path, P)
    elif name == "p.npz":
        write_predictions(path, P, output="probabilities", labels=LABELS)
    else:
        pq.write_table(pa.table({"probabilities": list(P)}), path)
    for content in damages(path.read_bytes(), 0, times=300):
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert np.isfinite(read_predictions(path).values).all()
    path.write_bytes(b"x" + content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_predictions(path)
