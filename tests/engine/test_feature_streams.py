"""Fits of rows that come in blocks: sources, cuts, workers, precision, interrupts, and what is refused."""

import pickle
import threading
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.threads import in_order
from sdgpu.engine import requests, streaming
from sdgpu.engine.streaming import block_rows, sample_rows
from sdgpu.selection import left_out_blocks
from sdgpu.selection.validation_rows import StreamedRows
from tests.problems import assert_near

N, M, D, C = 90, 20, 3, 2
RNG = np.random.default_rng(6)
X, X_NEW = RNG.standard_normal((N, D)), RNG.standard_normal((M, D))
Y = np.sin(X[:, :C]) + 0.2 * RNG.standard_normal((N, C)) + 5
Y_NEW = np.sin(X_NEW[:, :C]) + 5
WEIGHTS = RNG.uniform(0, 2, N)
KERNEL, LAMS = sdgpu.Gaussian(0.4), np.array([0.5, 0.05])
FEATURES = sdgpu.Nystrom(landmarks=X[:11])
SWEEP = {"alphas": [0.0, 0.4], "steps": 3}


def fit(X=X, Y=None, lams=LAMS, features=FEATURES, **how):
    return sdgpu.fit(X, Y, KERNEL, lams, features=features, **how)


def answers(fitted, rows=X_NEW, truth=Y_NEW):
    path = fitted.path(0.05, [0.3, -0.2], 3)
    sweep = fitted.sweep(rows, truth, **SWEEP).dataset
    return [np.asarray(path.predict(rows)), sweep["mse"].values, sweep["gcv"].values]


def assert_same_answers(one, other, rtol=1e-10):
    for left, right in zip(answers(one), answers(other), strict=True):
        assert_near(left, right, rtol)


def pieces(*cuts, weights=None):
    """Blocks of these rows, as generators give them."""
    ends = [0, *cuts, N]
    for part in (slice(*pair) for pair in pairwise(ends)):
        yield (X[part], Y[part]) if weights is None else (X[part], Y[part], weights[part])


def once(*cuts, **how):
    items = pieces(*cuts)
    return sdgpu.rows.blocks(lambda: items, d=D, c=C, rereadable=False, **how)


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "sdgpu-reader"]


@pytest.fixture
def small(monkeypatch):
    """Blocks of seven rows."""
    monkeypatch.setattr(streaming, "MOST_ROWS", 7)
    monkeypatch.setattr(streaming, "FEWEST_ROWS", 1)


SOURCES = {
    "arrays": lambda: sdgpu.rows.arrays(X, Y),
    "blocks": lambda: sdgpu.rows.blocks(lambda: pieces(1, 40, 41, 80), d=D, c=C),
    "blocks of known length": lambda: sdgpu.rows.blocks(lambda: pieces(30), d=D, c=C, n=N),
    "once": lambda: once(13, 26, 39),
    "once, with nothing between": lambda: once(0, 13, 13, 13, 90),
    "weights of one": lambda: sdgpu.rows.blocks(lambda: pieces(9, weights=np.ones(N)), d=D, c=C),
    "torch": lambda: sdgpu.rows.arrays(torch.tensor(X), torch.tensor(Y)),
}


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_sources_give_what_arrays_give(name, intercept):
    found, wanted = fit(SOURCES[name](), intercept=intercept), fit(X, Y, intercept=intercept)
    convert = torch.tensor if name == "torch" else np.asarray
    parts = answers(found, convert(X_NEW), convert(Y_NEW)), answers(wanted)
    for left, right in zip(*parts, strict=True):
        assert_near(left, right, rtol=1e-10)
    assert (found.info.n, found.info.d, found.info.c, found.info.k) == (N, D, C, 11)
    assert found.info.method == "features"
    assert found.info.operator == "NystromMap"
    assert "exact for these features" in found.info.status
    assert not readers()


@pytest.mark.parametrize("name", ["blocks", "blocks of known length", "once"])
@pytest.mark.parametrize("metrics", [(), ("mae",)])
@pytest.mark.parametrize("rows", [None, 8])
@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_validation_rows_of_a_source(name, metrics, rows, monkeypatch):
    """Also of one that can be read once: no row is lost to a look at the first."""
    fitted = fit(X, Y, intercept=True)
    if rows is not None:
        blocks = StreamedRows.blocks
        monkeypatch.setattr(StreamedRows, "blocks", lambda self, entries: blocks(self, 11 * rows))
    found = fitted.sweep(SOURCES[name](), **SWEEP, metrics=metrics).dataset
    wanted = fitted.sweep(X, Y, **SWEEP, metrics=metrics).dataset
    for variable in wanted.data_vars:
        # joint optima are flat, and weights on few rows nearly so
        rtol = 1e-4 if "joint" in variable or "alpha" in variable else 1e-9
        assert_near(np.nan_to_num(found[variable]), np.nan_to_num(wanted[variable]), rtol)
    assert found.attrs["validation_rows"] == N
    assert_near(
        fitted.optimal_alphas(SOURCES[name](), lam=0.05, steps=3).alphas,
        fitted.optimal_alphas(X, Y, lam=0.05, steps=3).alphas,
        rtol=1e-7,
    )
    found, wanted = (
        fitted.joint_alphas(*data, lam=0.05, steps=3) for data in ((SOURCES[name](),), (X, Y))
    )
    assert_allclose(found.mse, wanted.mse, rtol=1e-7)
    assert_allclose(found.nested_mse, wanted.nested_mse, rtol=1e-7)


def test_sources_that_can_be_read_again_are_left_out_row_by_row():
    again, plain = (fit(*data, intercept=True) for data in ((SOURCES["blocks"](),), (X, Y)))
    assert_near(again.loo(0.05, 0.3, 3), plain.loo(0.05, 0.3, 3), rtol=1e-9)
    left, right = (one.sweep(**SWEEP).dataset["mse"] for one in (again, plain))
    assert_near(left, right, rtol=1e-9)
    spent = fit(once(13))
    for call in (lambda: spent.loo(0.05), lambda: spent.sweep(**SWEEP)):
        with pytest.raises(
            ValueError, match=r"leave-one-out.*keeps no training rows; fit a source that"
        ):
            call()


@pytest.mark.parametrize("rows", [1, 7, 89])
@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_blocks_of_rows_that_are_left_out(rows, monkeypatch):
    fitted = fit(X, Y, intercept=True)

    def found():
        sweep = fitted.sweep(**SWEEP, metrics=["mae"]).dataset
        joint = fitted.joint_alphas(lam=0.05, steps=2, folds=3)
        numbers = [sweep[name].values for name in ("mse", "limit_mse", "mae")]
        return [*numbers, fitted.loo(0.05, 0.3, 3), joint.mse, joint.nested_mse]

    wanted = found()
    for module in (left_out_blocks, requests):
        monkeypatch.setattr(module, "ENTRIES", 11 * rows)
    for left, right in zip(found(), wanted, strict=True):
        assert_near(left, right, rtol=1e-9)


def test_names_of_columns():
    frame, targets = pd.DataFrame(X, columns=list("abc")), pd.DataFrame(Y, columns=["y", "z"])
    fitted = fit(frame, targets)
    assert_same_answers(fitted, fit(X, Y))
    path = fitted.path(0.05)
    assert_near(path.predict(frame), path.predict(X), rtol=1e-12)
    with pytest.raises(ValueError, match="X_new"):
        path.predict(frame[["b", "a", "c"]])
    assert_same_answers(fit(frame.assign(y=Y[:, 0], z=Y[:, 1]), ["y", "z"]), fitted)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 2, 7, 89])
def test_cuts_change_at_most_rounding(rows, dtype, monkeypatch):
    single = X.astype(dtype)
    whole = fit(single, Y, sample_weight=WEIGHTS, intercept=True)
    monkeypatch.setattr(streaming, "MOST_ROWS", rows)
    monkeypatch.setattr(streaming, "FEWEST_ROWS", 1)
    assert block_rows(11) == rows
    cut = fit(single, Y, sample_weight=WEIGHTS, intercept=True)
    assert_same_answers(cut, whole, rtol=1e-10 if dtype == "float64" else 1e-5)
    assert cut.info.n == N


def test_blocks_of_wide_features_are_short(monkeypatch):
    assert block_rows(1) == block_rows(100) == 8192
    assert block_rows(4096) == 1024
    assert block_rows(8000) == 2000  # sums of k x k numbers cost more than rows
    assert block_rows(10**6) == 2048
    monkeypatch.setattr(streaming, "NUMBERS", 110)
    monkeypatch.setattr(streaming, "FEWEST_ROWS", 3)
    assert block_rows(11) == 10
    assert_same_answers(fit(X, Y), fit(sdgpu.rows.arrays(X, Y)))


def delayed(weights):
    """A module of features whose blocks take unequal time: others overtake them."""

    def function(rows):
        time.sleep(0.003 * (abs(hash(rows[0, 0])) % 3))
        return np.concatenate([rows, np.cos(rows @ weights)], axis=1)

    return function


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "features", [FEATURES, sdgpu.Explicit(delayed(X[:4, :].T))], ids=["nystrom", "delayed"]
)
def test_workers_change_no_bit(features, dtype, small, monkeypatch):
    found = []
    for workers in (1, 2, 7):
        monkeypatch.setattr(streaming, "block_workers", lambda backend, workers=workers: workers)
        fitted = fit(once(*range(5, 90, 5)), features=features, dtype=dtype, intercept=True)
        found.append(
            (fitted.spectrum, fitted.path(0.05).predict(X_NEW), fitted.info.error_estimate)
        )
    for spectrum, predictions, error in found[1:]:
        assert np.array_equal(spectrum.eigenvalues, found[0][0].eigenvalues)
        assert np.array_equal(spectrum.Z, found[0][0].Z)
        assert np.array_equal(predictions, found[0][1])
        assert error == found[0][2]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order_and_few_wait(workers):
    made = []

    def items():
        for i in range(30):
            made.append(i)
            yield i

    found = []
    for result in in_order(lambda i: (time.sleep(0.002 * (i % 3)), i)[1], items(), workers):
        found.append(result)
        assert len(made) - len(found) <= 2 * workers
    assert found == list(range(30))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_where_its_result_would(workers):
    def work(i):
        if i >= 5:
            raise ValueError(f"item {i}")
        return i

    found, before = [], threading.active_count()
    with pytest.raises(ValueError, match="item 5"):
        found.extend(in_order(work, iter(range(100)), workers))
    results = in_order(work, iter(range(100)), workers)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_random_samples_of_a_stream(small):
    source = sdgpu.rows.blocks(lambda: pieces(1, 40, 41, 80), d=D, c=C)
    for count in (1, 7, 30, 89):
        found = sample_rows(source, count, 3)
        places = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in found]
        assert len(found) == count == len(set(places))
        assert places == sorted(places)
        assert np.array_equal(sample_rows(sdgpu.rows.arrays(X, Y), count, 3), found)
        assert count == 89 or not np.array_equal(sample_rows(source, count, 4), found)
    for count in (90, 1000):
        assert np.array_equal(sample_rows(source, count, 3), X)
    drawn = [
        sample_rows(sdgpu.rows.arrays(np.arange(20.0)[:, None]), 5, seed).ravel().astype(int)
        for seed in range(300)
    ]
    share = np.bincount(np.concatenate(drawn), minlength=20) / 300
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.1875 / 300)
    pairs = np.mean([[{i, i + 7} <= set(rows) for i in range(13)] for rows in drawn], axis=0)
    wanted = 5 * 4 / (20 * 19)  # rows of neighbouring blocks have nothing to do with each other
    assert np.abs(pairs - wanted).max() < 5 * np.sqrt(wanted / 300)


@pytest.mark.parametrize("landmarks", ["rpcholesky", "uniform", "kmeans"])
def test_landmarks_are_picked_from_the_rows(landmarks):
    features = sdgpu.Nystrom(11, landmarks)
    found = [fit(*data, features=features, seed=5) for data in ((X, Y), (SOURCES["blocks"](),))]
    assert_same_answers(*found, rtol=1e-8)
    assert found[0].info.k == 11
    assert abs(answers(fit(X, Y, features=features, seed=6))[0] - answers(found[0])[0]).max() > 1e-6


def test_a_fit_can_be_pickled():
    fitted = fit(X.astype(np.float32), Y, intercept=True, progress=lambda event: None)
    before = answers(fitted)
    again = pickle.loads(pickle.dumps(fitted))
    for left, right in zip(answers(again), before, strict=True):
        assert np.array_equal(left, right)
    assert np.array_equal(again.loo(0.05), fitted.loo(0.05))
    assert again.info.status == fitted.info.status


def test_a_fit_does_not_follow_changes_of_the_data():
    rows, targets = X.copy(), Y.copy()
    fitted = fit(rows, targets)
    before = fitted.path(0.05).predict(X_NEW)
    rows[:] = targets[:] = 0
    assert np.array_equal(fitted.path(0.05).predict(X_NEW), before)


def test_progress_hears_of_rows(small):
    heard = []
    fitted = fit(once(40, n=N), progress=heard.append)
    rows = [
        (event.done, event.total) for event in heard if event.stage == "rows" and event.total > 1
    ]
    assert rows == [(min(7 * i, N), N) for i in range(1, 14)]
    fitted.sweep(SOURCES["once"](), **SWEEP)
    assert {"features", "rows", "eigh", "validation"} <= {event.stage for event in heard}


class BrokenError(Exception):
    """What a source may raise."""


@pytest.mark.parametrize("failure", [KeyboardInterrupt, BrokenError])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("number", [0, 1, 6])
def test_an_interrupt_of_the_reader_ends_cleanly(failure, workers, number, small, monkeypatch):
    monkeypatch.setattr(streaming, "block_workers", lambda backend: workers)

    def broken():
        for i, parts in enumerate(pieces(*range(10, 90, 10))):
            if i == number:
                raise failure
            yield parts

    with pytest.raises(failure) as caught:
        fit(sdgpu.rows.blocks(broken, d=D, c=C))
    assert caught.tb is not None  # which holds what its frames hold
    assert not readers()


def endless():
    while True:
        yield X, Y


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, BrokenError])
@pytest.mark.parametrize("where", ["progress", "features"])
def test_an_interrupt_of_the_work_ends_the_reader(where, failure, workers, monkeypatch):
    monkeypatch.setattr(streaming, "block_workers", lambda backend: workers)
    before, calls = threading.active_count(), []

    def fail(_):
        calls.append(1)
        if len(calls) > 4:
            raise failure

    def features(rows):
        fail(rows)
        return rows

    source = sdgpu.rows.blocks(endless, d=D, c=C)
    how = {"progress": fail} if where == "progress" else {"features": sdgpu.Explicit(features)}
    with pytest.raises(failure) as caught:
        fit(source, **how)
    assert caught.tb is not None
    assert not readers()
    assert threading.active_count() == before


def test_a_reader_that_nobody_waits_for_ends():
    items = prefetched(iter(range(10**9)))
    assert next(items) == 0
    items.close()
    assert not readers()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_place_of_a_number_that_is_none(bad, small):
    def broken(name):
        for number, (rows, targets) in enumerate(pieces(10, 20, 30, 40)):
            rows, targets = rows.copy(), targets.copy()
            if number == 3:
                {"X": rows, "Y": targets}[name][4, 1] = bad
            yield rows, targets

    for name in "XY":
        source = sdgpu.rows.blocks(lambda name=name: broken(name), d=D, c=C)
        with pytest.raises(
            ValueError, match=f"{name} at block 3, row 4 of the block, is NaN or infin"
        ):
            fit(source)
        with pytest.raises(ValueError, match=f"{name} at block 3, row 4"):
            fit(X, Y).sweep(source, **SWEEP)
    assert not readers()
