"""Rows of dask: the same as in memory, by threads of this process and on a cluster of two more."""

import sys
import threading

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from sdgpu.backend.rows import as_source, checked_blocks
from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.dask_source import dask_blocks, dask_frame, dask_rows
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.rows.source import RowSource
from tests.backend.test_joined_sources import readers
from tests.backend.test_row_sources import assert_same
from tests.local_cluster import local_cluster

N, D, C = 41, 3, 2
RNG = np.random.default_rng(4)
X, Y, WEIGHTS = RNG.standard_normal((N, D)), RNG.standard_normal((N, C)), RNG.random(N)
FRAME = pd.DataFrame(
    dict(zip("abc", X.T, strict=True)) | {"w": WEIGHTS, "y": Y[:, 0], "z": Y[:, 1]}
)
CUTS = [(0, 20), (20, 20), (20, 41)]


def arrays():
    """Cut unlike each other, X along its columns too."""
    weights = da.from_array(WEIGHTS, chunks=7)
    return as_source(da.from_array(X, chunks=(10, 2)), da.from_array(Y, chunks=(15, 1)), weights)


def arrays_beside_numpy():
    return as_source(da.from_array(X, chunks=(10, 3)), Y, WEIGHTS)


def arrays_of_unknown_rows():
    rows = da.from_array(np.concatenate([X, Y, WEIGHTS[:, None]], axis=1), chunks=(13, 6))
    rows = rows[rows[:, 0] > -np.inf]
    return as_source(rows[:, :3], rows[:, 3:5], rows[:, 5])


def frame():
    return as_source(dd.from_pandas(FRAME, npartitions=4), ["y", "z"], "w")


def frames():
    whole = dd.from_pandas(FRAME, npartitions=4)
    return as_source(whole[list("abc")], whole[["y", "z"]], whole["w"])


def delayed_arrays():
    parts = [dask.delayed(lambda part: part)((X[a:b], Y[a:b], WEIGHTS[a:b])) for a, b in CUTS]
    return as_source(parts)


def delayed_frames():
    pieces = [FRAME.iloc[a:b] for a, b in CUTS]
    split = dask.delayed(lambda piece: (piece[list("abc")], piece[["y", "z"]], piece["w"]))
    return dask_blocks([split(piece) for piece in pieces], d=D, c=C, n=N)


KINDS = [
    arrays,
    arrays_beside_numpy,
    arrays_of_unknown_rows,
    frame,
    frames,
    delayed_arrays,
    delayed_frames,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind):
    source = kind()
    assert isinstance(source, RowSource)
    assert (source.d, source.c, source.dtype, source.rereadable) == (D, C, "float64", True)
    assert source.n in (None, N)
    for rows in (1, 7, 1000):
        assert_same(source, ArraySource(X, Y, WEIGHTS), rows)
    assert not readers()


def test_what_is_known_beforehand():
    assert (arrays().n, frame().n, arrays_of_unknown_rows().n) == (N, None, None)
    assert (frame().columns, frame().outputs) == (tuple("abc"), ("y", "z"))
    assert (frames().columns, arrays().columns) == (tuple("abc"), None)
    flat = as_source(da.from_array(X), da.from_array(Y[:, 0]))
    assert (flat.c, as_source(da.from_array(X)).c) == (1, 0)
    assert_same(flat, ArraySource(X, Y[:, 0]), 7)
    last = dask_frame(dd.from_pandas(FRAME[list("aby")], npartitions=2))
    assert (last.columns, last.outputs) == (("a", "b"), ("y",))


@pytest.mark.parametrize("precision", ["float16", "float32", "int32", "bool"])
def test_precisions_are_those_of_the_features(precision):
    values = (X * 3).astype(precision)
    table = pd.DataFrame(values, columns=list("abc"))
    for value in (da.from_array(values, chunks=(9, 3)), dd.from_pandas(table, npartitions=3)):
        assert_same(as_source(value), ArraySource(values), 7)
    assert_same(dask_blocks([dask.delayed(values)]), ArraySource(values), 7)


def test_nullable_columns():
    table = pd.DataFrame(
        {"a": pd.array([1, 2, 3], "Int64"), "t": pd.array([True, False, True], "boolean")}
    )
    wanted = ArraySource(np.array([[1.0, 1], [2, 0], [3, 1]]))
    assert_same(as_source(dd.from_pandas(table, npartitions=2)), wanted, 2)


def test_partitions_can_be_worked_on_where_they_are():
    source = arrays()
    assert len(source.partitions()) == 5
    sums = dask.compute(
        *[dask.delayed(lambda part: part[0].sum(axis=0))(p) for p in source.partitions()]
    )
    assert np.allclose(sum(sums), X.sum(axis=0), rtol=1e-14, atol=1e-13)
    part, truth, weights = source.partitions()[1].compute()
    assert np.array_equal(part, X[10:20])
    assert np.array_equal(truth, Y[10:20])
    assert np.array_equal(weights, WEIGHTS[10:20])


def test_places_name_the_partition():
    places = [block.place for block in arrays().blocks(1)]
    assert places == [f"X, partition {i}, row {10 * i}" for i in range(5)]
    bad = X.copy()
    bad[25, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"X at X, partition 2, row 20, row 5 of the block, is NaN"
    ):
        list(checked_blocks(as_source(da.from_array(bad, chunks=(10, 3))), 41))


def test_missing_values_name_the_column():
    for column, values in (
        ("b", FRAME["b"].mask(FRAME.index == 33)),
        ("y", FRAME["y"].mask(FRAME.index == 33)),
    ):
        source = as_source(
            dd.from_pandas(FRAME.assign(**{column: values}), npartitions=4), ["y", "z"]
        )
        match = (
            rf"X, partition 3: column '{column}' has no value in row \d of the partition: remove"
        )
        with pytest.raises(ValueError, match=match):
            list(checked_blocks(source, 10))
    weights = FRAME["w"].mask(FRAME.index == 2)
    source = as_source(dd.from_pandas(FRAME.assign(w=weights), npartitions=4), "y", "w")
    with pytest.raises(ValueError, match="weights has no value in row 2"):
        list(checked_blocks(source, 10))


def fail_at(wrong, error):
    def part(number):
        if number == wrong:
            raise error
        return X[number * 10 : number * 10 + 10]

    return dask_blocks([dask.delayed(part)(number) for number in range(4)], d=D)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("this is wrong"), ValueError),
        (TypeError("this is wrong"), TypeError),
        (KeyError("this is wrong"), RuntimeError),
        (MemoryError("this is wrong"), RuntimeError),
    ],
)
def test_errors_of_a_partition_name_it_in_its_place(error, kind):
    found = fail_at(2, error).blocks(10)
    assert [len(next(found).X) for _ in range(2)] == [10, 10]
    with pytest.raises(kind, match=r"dask, partition 2: .*this is wrong"):
        next(found)
    assert not readers()


def test_one_partition_is_computed_ahead():
    computed, ahead = [], threading.Event()

    def part(number):
        computed.append(number)
        if number == 2:
            ahead.set()
        return X[:2]

    source = dask_blocks([dask.delayed(part)(number) for number in range(6)], d=D)
    assert not computed
    found = source.blocks(2)
    next(found)
    assert ahead.wait(10)
    assert computed == [0, 1, 2]  # one waits for its place behind the one ahead
    found.close()
    assert not readers()
    assert len(computed) <= 4


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: dask_rows(da.ones((4, 2)) * 1j), TypeError, "X has dtype complex128"),
        (lambda: dask_rows(da.ones(4)), ValueError, r"X must be \(rows, features\)"),
        (lambda: dask_rows(da.ones((4, 2, 2))), ValueError, "X must have one or two axes"),
        (lambda: dask_rows(da.ones((4, 0))), ValueError, r"X must be \(rows, features\)"),
        (lambda: dask_rows(da.ones((0, 2))), ValueError, "has no rows"),
        (lambda: dask_rows(da.ones((4, 2)), da.ones(5)), ValueError, "Y has 5 rows, but X has 4"),
        (lambda: dask_rows(da.ones((4, 2)), np.ones(5)), ValueError, "Y has 5 rows, but X has 4"),
        (lambda: dask_rows(da.ones((4, 2)), da.ones((4, 0))), ValueError, r"Y must be \(rows,\)"),
        (
            lambda: dask_rows(da.ones((4, 2)), None, da.ones((4, 1))),
            ValueError,
            r"weights must be \(rows,\)",
        ),
        (lambda: dask_rows(da.ones((4, 2)), [1.0] * 4), TypeError, "Y is a list beside X of dask"),
        (
            lambda: as_source(X, da.ones(N)),
            TypeError,
            r"Y is of dask and X is not: pass Y.compute\(\)",
        ),
        (
            lambda: as_source(da.ones((4, 2)), "y"),
            TypeError,
            "Y='y' names columns, but X is an array",
        ),
        (lambda: dask_blocks([]), ValueError, "parts is empty"),
        (
            lambda: dask_blocks([dask.delayed(np.ones(3))]),
            ValueError,
            r"partition 0: X must be \(rows",
        ),
        (lambda: dask_blocks([dask.delayed((X,) * 4)]), ValueError, "partition 0: it has 4 parts"),
        (lambda: as_source([dask.delayed(X)], Y), TypeError, "list of delayed blocks"),
    ],
)
def test_what_does_not_go_together(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_partitions_that_do_not_go_together():
    table = dd.from_pandas(FRAME, npartitions=4)
    with pytest.raises(ValueError, match="Y has 2 partitions, but X has 4: repartition it"):
        as_source(table[["a"]], dd.from_pandas(FRAME, npartitions=2)["y"])
    unknown = da.from_array(X, chunks=(20, 3))
    unknown = unknown[unknown[:, 0] > 0]
    with pytest.raises(TypeError, match=r"X.compute_chunk_sizes\(\)"):
        as_source(unknown, Y)
    source = as_source(unknown, da.from_array(Y, chunks=(20, 2)))  # more rows than are left of X
    with pytest.raises(ValueError, match="rows of X and 20 of Y"):
        list(checked_blocks(source, 10))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (["x"] * N, "str"),
        (pd.Categorical(["x"] * N), "category"),
        (pd.date_range("2020", periods=N), "datetime64"),
        ([1j] * N, "complex128"),
    ],
)
def test_columns_that_hold_no_numbers(column, kind):
    table = dd.from_pandas(FRAME.assign(bad=column), npartitions=2)
    with pytest.raises(
        TypeError, match=rf"column 'bad' of X has type .*{kind}.*: encode it as numbers"
    ):
        as_source(table, ["y"])
    with pytest.raises(TypeError, match=r"column 'bad' of Y has type"):
        as_source(table[["a"]], table[["bad"]])
    assert dask_frame(table, "y", features=["a"]).d == 1
    with pytest.raises(ValueError, match="target='q' is no column of X"):
        as_source(table, "q")
    with pytest.raises(TypeError, match="have no names that are text"):
        dask_frame(dd.from_pandas(pd.DataFrame(X), npartitions=2), "y")


def test_no_rows_at_all_is_an_error():
    empty = dd.from_pandas(FRAME, npartitions=3)
    empty = empty[empty["a"] > 100]
    with pytest.raises(ValueError, match="X has no rows: its partitions are empty"):
        list(checked_blocks(as_source(empty, "y"), 10))


def test_dask_is_not_installed(monkeypatch):
    value = da.ones((4, 2))
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(ImportError, match=r"dask is not installed: pip install 'sdgpu\[cluster\]'"):
        dask_rows(value)


def test_a_cluster_of_two_processes(tmp_path):
    """Rows, errors and early ends, through whatever client is active."""
    with local_cluster(2, local_directory=str(tmp_path)) as client:
        for kind in (arrays, frame, delayed_arrays):
            assert_same(kind(), ArraySource(X, Y, WEIGHTS), 7)
        assert not readers()  # no thread of ours computes
        ahead = [block.place for block in prefetched(arrays().blocks(10))]
        assert len(ahead) == 5
        found = arrays().blocks(10)
        next(found)
        found.close()
        source = fail_at(2, KeyError("this is wrong"))
        with pytest.raises(RuntimeError, match="dask, partition 2: 'this is wrong'"):
            list(source.blocks(10))
        sums = [dask.delayed(lambda part: part[0].sum())(part) for part in arrays().partitions()]
        assert np.isclose(sum(client.gather(client.compute(sums))), X.sum(), rtol=1e-12)
    assert_same(arrays(), ArraySource(X, Y, WEIGHTS), 7)  # by threads again
