"""Moments: rows that are added, merged and taken away against one fit of all of them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.engine import streaming
from tests.problems import assert_near

N, D, C = 60, 3, 2
RNG = np.random.default_rng(9)
X, X_NEW = RNG.standard_normal((N, D)), RNG.standard_normal((15, D))
Y = np.sin(X[:, :C]) + 0.3 * RNG.standard_normal((N, C)) + [4.0, -2.0]
WEIGHTS = RNG.integers(0, 4, N).astype(float)
KERNEL, LAMS = sdgpu.Gaussian(0.4), np.array([0.3, 0.02])
FIXED = sdgpu.Nystrom(landmarks=RNG.standard_normal((10, D)))
KINDS = {
    "nystrom": (KERNEL, FIXED),
    "fourier": (KERNEL, sdgpu.RandomFourier(12)),
    "own": (sdgpu.Polynomial(2, 0.3), sdgpu.Explicit()),
    "function": (KERNEL, sdgpu.Explicit(lambda rows: np.concatenate([rows, np.cos(rows)], axis=1))),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def moments(kind=KINDS["nystrom"], parts=(), **how):
    found = sdgpu.Moments(*kind, d=D, c=C, **how)
    for part in parts:
        assert found.add(X[part], Y[part]) is found
    return found


def cut(*ends):
    return [slice(*pair) for pair in zip((0, *ends), (*ends, N), strict=True)]


def answers(fitted):
    path, grid = fitted.path(0.02, [0.3, -0.1], 3), fitted.gcv_sweep(alphas=[0.0, 0.4], steps=3)
    return [path.predict(X_NEW), grid.dataset["train_mse"].values, grid.dataset["gcv"].values]


def assert_fits_alike(found, wanted, rtol=1e-9, lams=LAMS):
    """With an intercept and without."""
    for intercept in (False, True):
        fitted = sdgpu.fit(found, lams=lams, intercept=intercept)
        for left, right in zip(answers(fitted), answers(wanted(intercept)), strict=True):
            assert_near(left, right, rtol)


def whole(kind, rows=slice(None), weights=None, **how):
    """The fit of rows that are there at once."""
    w = None if weights is None else weights[rows]
    kernel, features = kind
    return lambda intercept: sdgpu.fit(
        X[rows],
        Y[rows],
        kernel,
        LAMS,
        features=features,
        sample_weight=w,
        intercept=intercept,
        **how,
    )


def state(m):
    """All that a file would hold, and what it does not."""
    if m._sums is None:
        return None
    arrays, numbers = copy.deepcopy(m.sums.state())
    return {**arrays, **numbers, "map": m._map}


def assert_unchanged(m, before):
    after = state(m)
    assert (after is None) == (before is None)
    for name in before or ():
        assert (
            after[name] is before[name]
            if name == "map"
            else np.array_equal(after[name], before[name])
        )


@pytest.mark.parametrize("parts", [cut(), cut(30), cut(1, 2, 59), cut(*range(5, 60, 5))], ids=len)
def test_rows_that_are_added_are_all_rows(kind, parts):
    found = moments(kind, parts)
    assert (found.rows, found.weight, found.map.size) == (N, N, found.sums.size)
    assert_fits_alike(found, whole(kind))


def test_weights(kind):
    found = sdgpu.Moments(*kind, d=D, c=C)
    for part in cut(20, 33):
        found.add(X[part], Y[part], WEIGHTS[part])
    assert (found.rows, found.weight) == (N, WEIGHTS.sum())
    fits = [sdgpu.fit(found, lams=LAMS, intercept=True), whole(kind, weights=WEIGHTS)(True)]
    assert_near(*(fit.path(0.02, 0.3, 3).predict(X_NEW) for fit in fits), rtol=1e-9)
    times = np.repeat(np.arange(N), WEIGHTS.astype(int))
    repeated = whole(kind, times)(True)
    assert_near(
        fits[0].path(0.02, 0.3, 3).predict(X_NEW), repeated.path(0.02, 0.3, 3).predict(X_NEW), 1e-9
    )


def test_whatever_holds_rows(kind):
    parts = cut(10, 20, 30, 40)
    found = sdgpu.Moments(*kind, d=D, c=C)
    found.add(X[parts[0]].tolist(), Y[parts[0]].tolist())
    found.add(sdgpu.rows.arrays(X[parts[1]], Y[parts[1]], np.ones(10)))
    once = iter([(X[part], Y[part]) for part in parts[2:4]])
    found.add(sdgpu.rows.blocks(lambda: once, d=D, c=C, rereadable=False))
    found.add(X[parts[4]].astype(np.float32).astype(float), Y[parts[4]])
    near = np.concatenate([X[:40], X[40:].astype(np.float32)])
    fits = sdgpu.fit(found, lams=LAMS), sdgpu.fit(near, Y, kind[0], LAMS, features=kind[1])
    for left, right in zip(*map(answers, fits), strict=True):
        assert_near(left, right, rtol=1e-9)


def test_tensors():
    found = sdgpu.Moments(*KINDS["nystrom"], d=D, c=C)
    for part in cut(20):
        found.add(torch.tensor(X[part]), torch.tensor(Y[part]), torch.ones(len(X[part])))
    assert_fits_alike(found, whole(KINDS["nystrom"]))
    assert isinstance(answers(sdgpu.fit(found, lams=LAMS))[0], np.ndarray)


def test_one_output_has_no_axis():
    found = sdgpu.Moments(KERNEL, FIXED, d=D).add(X, Y[:, 0])
    predictions = sdgpu.fit(found, lams=0.1).path(steps=3).predict(X_NEW)
    assert predictions.shape == (3, 15)
    wanted = sdgpu.fit(X, Y[:, 0], KERNEL, 0.1, features=FIXED).path(steps=3).predict(X_NEW)
    assert_near(predictions, wanted, rtol=1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_merged_in_any_order(kind, order):
    parts = [moments(kind, [part]) for part in cut(5, 25, 26)]
    before = [state(part) for part in parts]
    found = sdgpu.Moments(*kind, d=D, c=C)
    for i in order:
        assert found.merge(parts[i]) is found
    assert_fits_alike(found, whole(kind))
    for part, own in zip(parts, before, strict=True):
        assert_unchanged(part, own)
    assert_fits_alike(moments(kind).merge(found).merge(moments(kind)), whole(kind))


def test_a_merge_takes_the_landmarks_of_the_first_rows():
    """Of moments without rows: they have no landmarks yet."""
    features = sdgpu.Nystrom(8)
    first = moments((KERNEL, features), cut(30)[:1])
    empty = moments((KERNEL, features)).merge(first)
    assert empty.map is first.map
    empty.add(X[30:], Y[30:])
    first.add(X[30:], Y[30:])
    assert_near(empty.sums.gram, first.sums.gram, rtol=1e-12)
    assert_near(empty.sums.gram, first.sums.gram.T, rtol=1e-12)
    assert first.merge(moments((KERNEL, features))) is first  # nothing to add
    assert (first.rows, empty.rows) == (N, N)


def test_landmarks_are_picked_from_the_first_rows(monkeypatch):
    monkeypatch.setattr(streaming, "MOST_ROWS", 16)
    found = moments((KERNEL, sdgpu.Nystrom(8)), cut(20))
    chosen = found.map
    assert chosen.size == 8
    assert all((row == X[:20]).all(axis=1).any() for row in chosen.landmarks)
    found.add(X, Y)
    assert found.map is chosen
    wanted = sdgpu.fit(
        np.concatenate([X, X]),
        np.concatenate([Y, Y]),
        KERNEL,
        LAMS,
        features=sdgpu.Nystrom(landmarks=chosen.landmarks),
    )
    assert_near(
        sdgpu.fit(found, lams=LAMS).path(0.02).predict(X_NEW),
        wanted.path(0.02).predict(X_NEW),
        1e-8,
    )
    same, other = (moments((KERNEL, sdgpu.Nystrom(8)), cut(20)[:1], seed=seed) for seed in (0, 1))
    assert np.array_equal(same.map.landmarks, chosen.landmarks)
    assert not np.array_equal(other.map.landmarks, chosen.landmarks)
    blocks = [(X[:3], Y[:3]), (X[3:20], Y[3:20])]  # the first block has too few
    stream = sdgpu.Moments(KERNEL, sdgpu.Nystrom(8), d=D, c=C)
    stream.add(sdgpu.rows.blocks(lambda: iter(blocks), d=D, c=C))
    assert np.array_equal(stream.map.landmarks, chosen.landmarks)


@pytest.mark.parametrize(
    "other",
    [
        lambda: moments((KERNEL, sdgpu.Nystrom(8)), cut(20)[1:]),
        lambda: moments((KERNEL, sdgpu.Nystrom(landmarks=FIXED.landmarks + 1e-9)), cut()),
        lambda: moments((sdgpu.Gaussian(0.41), FIXED), cut()),
        lambda: moments((KERNEL, sdgpu.RandomFourier(10)), cut()),
        lambda: sdgpu.Moments(KERNEL, FIXED, d=D, c=1).add(X, Y[:, 0]),
        lambda: moments((sdgpu.Linear(), sdgpu.Explicit()), cut()),
        lambda: moments(KINDS["function"], cut()),
    ],
    ids=["picked", "moved", "kernel", "kind", "outputs", "own", "function"],
)
@pytest.mark.parametrize("mine", [FIXED, sdgpu.Nystrom(8)], ids=["given", "picked"])
def test_other_features_do_not_add_up(mine, other):
    found = moments((KERNEL, mine), cut(20)[:1])
    before = state(found)
    with pytest.raises(
        ValueError, match="of other kernels or features do not add up: make both with"
    ):
        found.merge(other())
    assert_unchanged(found, before)


def test_functions_add_up_if_they_are_one():
    kernel, features = KINDS["function"]
    found = moments((kernel, features), cut(20)[:1])
    found.merge(moments((kernel, sdgpu.Explicit(features.function)), cut(20)[1:]))
    assert_fits_alike(found, whole((kernel, features)))
    with pytest.raises(ValueError, match="do not add up"):
        found.merge(moments((kernel, sdgpu.Explicit(np.sin)), cut()))


class BrokenError(Exception):
    """What a source may raise."""


def broken(failure):
    """Three good blocks and one that fails."""
    for part in cut(10, 20, 30)[:3]:
        yield X[part], Y[part]
    if isinstance(failure, type):
        raise failure
    yield failure


@pytest.mark.parametrize("first", [True, False], ids=["first rows", "later rows"])
@pytest.mark.parametrize("features", [sdgpu.Nystrom(8), FIXED], ids=["picked", "given"])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ((X[30:] * np.nan, Y[30:]), ValueError),
        ((X[30:], Y[30:] * np.inf), ValueError),
        ((X[30:, :2], Y[30:]), ValueError),
        ((X[30:], Y[30:], -np.ones(30)), ValueError),
        (BrokenError, BrokenError),
        (KeyboardInterrupt, KeyboardInterrupt),
    ],
    ids=["NaN", "infinite target", "width", "weights", "error", "interrupt"],
)
def test_an_error_in_the_middle_changes_nothing(first, features, failure, error, monkeypatch):
    monkeypatch.setattr(streaming, "MOST_ROWS", 7)
    monkeypatch.setattr(streaming, "FEWEST_ROWS", 1)
    found = moments((KERNEL, features), [] if first else cut()[:1])
    before = state(found)
    for change in (found.add, *([] if first else [found.subtract])):
        source = sdgpu.rows.blocks(lambda: broken(failure), d=D, c=C)
        with pytest.raises(error):
            change(source)
        assert_unchanged(found, before)
    if first:
        found.add(X, Y)
    assert_fits_alike(
        found, whole((KERNEL, sdgpu.Nystrom(landmarks=found.map.landmarks))), rtol=1e-8
    )


def test_an_error_after_the_landmarks_were_picked_changes_nothing():
    """The source fails when it is read for the second time."""
    found, passes = moments((KERNEL, sdgpu.Nystrom(8))), iter([X, X * np.nan])
    source = sdgpu.rows.blocks(lambda: iter([(next(passes), Y)]), d=D, c=C)
    with pytest.raises(ValueError, match="X at block 0, row 0 of the block, is NaN"):
        found.add(source)
    assert found.rows == 0
    with pytest.raises(ValueError, match="the landmarks are picked from the first rows: add some"):
        _ = found.map
    found.add(X[30:], Y[30:])
    assert all((row == X[30:]).all(axis=1).any() for row in found.map.landmarks)


@pytest.mark.parametrize("part", cut(1, 40))
def test_rows_that_are_taken_away_were_never_there(kind, part):
    found = moments(kind, cut(7, 50))
    assert found.subtract(X[part], Y[part]) is found
    left = np.delete(np.arange(N), np.arange(N)[part])
    assert (found.rows, found.weight) == (len(left), len(left))
    assert_fits_alike(found, whole(kind, left), rtol=1e-7)
    found.add(X[part], Y[part])
    assert_fits_alike(found, whole(kind), rtol=1e-7)


def test_weights_are_taken_away_too():
    found = sdgpu.Moments(*KINDS["nystrom"], d=D, c=C).add(X, Y, WEIGHTS)
    found.subtract(X[:20], Y[:20], WEIGHTS[:20])
    fitted = sdgpu.fit(found, lams=LAMS, intercept=True).path(0.02)
    wanted = whole(KINDS["nystrom"], slice(20, N), WEIGHTS)(True).path(0.02)
    assert_near(fitted.predict(X_NEW), wanted.predict(X_NEW), rtol=1e-8)


@pytest.mark.parametrize(
    ("rows", "targets", "words"),
    [
        (np.tile(X, (2, 1)), np.tile(Y, (2, 1)), "120 rows of weight 120 cannot be taken from 60"),
        (FIXED.landmarks, np.zeros((10, C)), "these rows were never added"),
        (X[:9], Y[:9] + 100, "these rows were never added"),
    ],
    ids=["more", "others", "other targets"],
)
def test_rows_that_were_never_added(rows, targets, words):
    """Where that can be known: without them there would be less than nothing."""
    found = sdgpu.Moments(*KINDS["nystrom"], d=D, c=C).add(X + 2, Y)  # far from the landmarks
    before = state(found)
    with pytest.raises(ValueError, match=words):
        found.subtract(rows, targets)
    assert_unchanged(found, before)


def test_all_rows_taken_away():
    found = moments(parts=cut()).subtract(X, Y)
    assert (found.rows, found.weight) == (0, 0)
    with pytest.raises(ValueError, match="moments of 0 rows of weight 0: add rows first"):
        sdgpu.fit(found)
    assert_fits_alike(found.add(X, Y), whole(KINDS["nystrom"]), rtol=1e-7)


@pytest.mark.parametrize("intercept", [False, True])
def test_float32(intercept):
    rows = X.astype(np.float32)
    found = moments(dtype="float32")
    for part in cut(20, 41):
        found.add(rows[part], Y[part])
    fitted = sdgpu.fit(found, lams=LAMS, intercept=intercept)
    assert fitted.info.precision == "float32"
    wanted = sdgpu.fit(rows, Y, KERNEL, LAMS, features=FIXED, intercept=intercept, dtype="float64")
    left, right = (one.path(0.02, 0.3, 3).predict(rows) for one in (fitted, wanted))
    assert_near(left, right, rtol=1.5 * fitted.info.error_estimate)
    assert 1e-8 < fitted.info.error_estimate < 1e-4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_targets_far_from_zero_keep_their_digits(dtype):
    """Dates and energies: 2e7 is where float32 knows even numbers alone."""
    near, far = moments(dtype=dtype), moments(dtype=dtype)
    for part in cut(20, 41):
        near.add(X[part], Y[part])
        far.add(X[part], Y[part] + 2e7)
    far.subtract(X[:5], Y[:5] + 2e7)
    near.subtract(X[:5], Y[:5])
    found, wanted = (sdgpu.fit(one, lams=LAMS, intercept=True) for one in (far, near))
    left, right = (one.path(0.02, 0.3, 3).predict(X_NEW) for one in (found, wanted))
    assert np.abs(left - 2e7 - right).max() < 1e-5
    assert_allclose(*(one.gcv(0.02).score for one in (found, wanted)), rtol=1e-5)
    left, right = (one.gcv_sweep(steps=3).dataset["train_mse"] for one in (found, wanted))
    assert_allclose(left, right, rtol=1e-5)


def test_a_fit_does_not_follow_later_rows():
    found = moments(parts=cut(30)[:1])
    fitted = sdgpu.fit(found, lams=LAMS, intercept=True)
    before = answers(fitted)
    found.add(X[30:], Y[30:] + 10)
    for left, right in zip(answers(fitted), before, strict=True):
        assert np.array_equal(left, right)
    assert (fitted.info.n, found.rows) == (30, N)


def test_pickles_and_copies():
    found = moments((KERNEL, sdgpu.Nystrom(8)), cut(20)[:1])
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        again.add(X[20:], Y[20:])
        assert (again.rows, found.rows) == (N, 20)
