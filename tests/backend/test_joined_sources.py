"""Sources one after the other, read ahead, and made of whatever callers hand in."""

import threading

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from sdgpu.backend import rows as row_sources
from sdgpu.backend.rows import JoinedSource, as_source, blocks, checked_blocks
from sdgpu.backend.rows.array_source import ArraySource
from sdgpu.backend.rows.prefetch import prefetched
from tests.backend.test_row_sources import (
    FEATURES,
    NARROW,
    TARGETS,
    WEIGHTS,
    C,
    D,
    N,
    X,
    Y,
    assert_same,
    feather,
    npy,
    parquet,
    several_files,
    store,
    table,
)

# ---- several sources


def test_joined_sources_go_on_where_others_end():
    halves = [ArraySource(X[part], Y[part], WEIGHTS[part]) for part in (slice(20), slice(20, N))]
    joined = JoinedSource(halves)
    for rows in (1, 7, 1000):
        assert_same(joined, ArraySource(X, Y, WEIGHTS), rows)
    assert (joined.n, joined.d, joined.c) == (N, D, C)
    assert JoinedSource([*halves, ArraySource(NARROW, Y)]).dtype == "float64"
    assert JoinedSource([ArraySource(NARROW)] * 2).dtype == "float32"
    assert [block.place for block in joined.blocks(15)] == ["X, row 0", "X, row 15"] * 2


def test_joined_sources_know_what_all_know():
    known = ArraySource(X, Y)
    once = blocks(lambda: iter([(X, Y)]), d=D, c=C, rereadable=False)
    assert JoinedSource([known, once]).n is None
    assert not JoinedSource([known, once]).rereadable
    assert JoinedSource([known, known]).n == 2 * N
    assert JoinedSource([known, known]).rereadable


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"X": X[:, :2]}, "first has 3 features, other has 2"),
        ({"Y": Y[:, :1]}, "first has 2 outputs, other has 1"),
        ({"Y": None}, "first has 2 outputs, other has 0"),
        ({"columns": None}, "first names its features, other does not"),
        ({"columns": ("a", "c", "b")}, "feature 1 of first is 'b', that of other is 'c'"),
        ({"outputs": ("y", "x")}, "output 1 of first is 'z', that of other is 'x'"),
    ],
)
def test_sources_that_do_not_go_together(other, match):
    first = {"X": X, "Y": Y, "columns": tuple(FEATURES), "outputs": tuple(TARGETS)}
    with pytest.raises(ValueError, match=match):
        JoinedSource(
            [ArraySource(**first, name="first"), ArraySource(**(first | other), name="other")]
        )


def test_joined_sources_that_break_their_word():
    with pytest.raises(ValueError, match="sources is empty"):
        JoinedSource([])
    mixed = [ArraySource(X, Y, name="first"), ArraySource(X, Y, WEIGHTS, name="other")]
    for pair in (mixed, mixed[::-1]):
        with pytest.raises(ValueError, match="other has weights, first has none"):
            list(checked_blocks(JoinedSource(pair), 100))
    short = blocks(lambda: iter([(X, Y)]), d=D, c=C, n=N + 1)
    with pytest.raises(ValueError, match="source 1 said 42 rows and gave 41"):
        list(checked_blocks(JoinedSource([ArraySource(X, Y), short]), 7))


def test_files_of_other_columns_are_named(tmp_path):
    pq.write_table(table(), tmp_path / "1.parquet")
    pq.write_table(table().rename_columns(list("ycwaBz")), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match=r"of .*1.parquet is 'b', that of .*2.parquet is 'B'"):
        row_sources.open(tmp_path / "*.parquet")
    np.savez(tmp_path / "3.npz", X=X, y=Y[:, 0])
    with pytest.raises(ValueError, match=r"1.parquet has 5 features, .*3.npz has 3"):
        row_sources.open([tmp_path / "1.parquet", tmp_path / "3.npz"])


# ---- read ahead


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "sdgpu-reader"]


def test_errors_arrive_where_their_rows_would_have(tmp_path):
    bad = X.copy()
    bad[30, 1] = np.inf
    np.save(tmp_path / "t.npy", bad)
    found = prefetched(checked_blocks(row_sources.open(tmp_path / "t.npy"), 10))
    assert [next(found)[0] for _ in range(3)] == [0, 10, 20]
    with pytest.raises(ValueError, match=r"t.npy, row 30, row 0 of the block, is NaN or infinite"):
        next(found)
    assert not readers()


@pytest.mark.parametrize("kind", [parquet, feather, npy, store, several_files])
def test_closing_early_ends_the_thread(tmp_path, kind):
    found = prefetched(kind(tmp_path).blocks(5))
    next(found)
    assert len(readers()) == 1
    found.close()
    assert not readers()


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    prefetched(npy(tmp_path).blocks(5))
    assert not readers()


def test_at_most_one_block_waits():
    made, read = [], threading.Event()

    def make():
        for number in range(6):
            made.append(number)
            if number == 2:
                read.set()
            yield X[:1]

    found = prefetched(make())
    next(found)
    assert read.wait(10)  # one waits, the next was made and waits for its place
    assert len(made) == 3
    assert len(list(found)) == 5


# ---- what callers hand in


def test_sources_stay_what_they_are():
    source = ArraySource(X, Y)
    assert as_source(source) is source
    for keywords in ({"Y": Y}, {"weights": WEIGHTS}):
        with pytest.raises(TypeError, match=f"leave {next(iter(keywords))} out"):
            as_source(source, **keywords)


def test_arrays_are_not_copied():
    assert as_source(X).X is X
    tensor = torch.tensor(X)
    assert as_source(tensor).X.data_ptr() == tensor.data_ptr()


def test_names_of_frames():
    whole = table().to_pandas()
    source = as_source(whole[FEATURES], whole[TARGETS])
    assert (source.columns, source.outputs) == (tuple(FEATURES), tuple(TARGETS))
    assert as_source(whole, "y").outputs == ("y",)
    assert as_source(whole, "y").columns == ("c", "w", "a", "b", "z")
    assert as_source(whole).c == 0
    assert as_source(whole[FEATURES], whole["y"]).outputs is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X[:, 0],), ValueError, r"X must be \(rows, features\)"),
        ((np.array(1.0),), ValueError, "X must be an array of rows, got a single number"),
        ((X[:0],), ValueError, "X has no rows"),
        ((X, Y[:4]), ValueError, "Y has 4 rows, but X has 41"),
        ((X, Y, WEIGHTS[:, None]), ValueError, r"weights must be \(rows,\)"),
        ((X, "y"), TypeError, r"Y='y' names columns, but X \(ndarray\) has no names"),
        ((X, Y, "w"), TypeError, "weights='w' is the name of a column"),
        ((sparse.csr_array(X * 1j),), TypeError, "X has dtype complex128"),
        ((np.ma.masked_array(X),), TypeError, "X is a masked array"),
        ((np.array([["a"]]),), TypeError, "X has dtype <U1"),
        ((None,), TypeError, "X must be an array of numbers, got NoneType"),
        ((iter([X]),), TypeError, r"pass list\(X\)"),
        (("t.npy", Y), TypeError, "Y is a ndarray beside a path"),
        (("nowhere.npy",), FileNotFoundError, "nowhere.npy does not exist"),
    ],
)
def test_what_is_no_source(arguments, error, match):
    with pytest.raises(error, match=match):
        as_source(*arguments)
    frame = pd.DataFrame({"a": [1.0], "b": ["text"]})
    with pytest.raises(TypeError, match="column 'b'"):
        as_source(frame)
    with pytest.raises(ValueError, match="target='c' is no column of X"):
        as_source(frame, "c")
