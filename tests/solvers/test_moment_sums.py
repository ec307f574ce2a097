"""Sums over rows against dense products in float64, however the rows are cut, weighted and shifted."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdgpu.backend.backends import NumpyBackend
from sdgpu.solvers.feature_solution import decompose_moments
from sdgpu.solvers.moment_sums import MomentSums
from tests.problems import assert_near

N, K, C = 23, 5, 2
RNG = np.random.default_rng(4)
PHI, Y = RNG.standard_normal((N, K)) + 0.5, RNG.standard_normal((N, C)) + np.array([3.0, -40.0])
WEIGHTS = RNG.uniform(0.0, 3.0, N)
WEIGHTS[3] = 0.0
OFFSET = np.array([2.5, -41.0])
SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_squares", "offset")
ERRORS = ("gram_error", "cross_error", "sum_error", "square_error")


def dense(phi, Y, weights=None, offset=None):
    """G, B, s, t, q, y0, W and n by matrix products."""
    w = np.ones(len(phi)) if weights is None else weights
    y0 = np.zeros(C) if offset is None else offset
    R = Y - y0
    return {
        "gram": phi.T @ np.diag(w) @ phi,
        "cross": phi.T @ np.diag(w) @ R,
        "feature_sum": phi.T @ w,
        "target_sum": R.T @ w,
        "target_squares": (R * R).T @ w,
        "offset": y0,
        "weight": w.sum(),
        "rows": len(phi),
    }


def assert_sums(sums, wanted, rtol=1e-13):
    for name in SUMS:
        assert_near(getattr(sums, name), wanted[name], rtol)
    assert_near(sums.weight, wanted["weight"], rtol)
    assert sums.rows == wanted["rows"]
    assert (sums.size, sums.outputs) == (K, C)


def of(part=slice(None), weights=None, offset=OFFSET, **how):
    w = None if weights is None else weights[part]
    return MomentSums.of_block(PHI[part], Y[part], w, offset, **how)


def added(parts):
    sums = MomentSums.zeros(K, C, parts[0].offset)
    for part in parts:
        sums.merge(part)
    return sums


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("offset", [np.zeros(C), OFFSET], ids=["plain", "offset"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_one_block(weights, offset, library):
    w = None if weights is None else library(weights)
    sums = MomentSums.of_block(library(PHI), library(Y), w, offset)
    assert_sums(sums, dense(PHI, Y, weights, offset))
    assert sums.audited == 0
    for name in SUMS:
        assert isinstance(getattr(sums, name), np.ndarray)
        assert getattr(sums, name).dtype == np.float64


def test_features_and_targets_of_two_libraries():
    sums = MomentSums.of_block(torch.tensor(PHI), Y, WEIGHTS, OFFSET)
    assert_sums(sums, dense(PHI, Y, WEIGHTS, OFFSET))


def test_nothing_yet():
    sums = MomentSums.zeros(K, C)
    assert_sums(sums, dense(PHI[:0], Y[:0]))
    given_offset = OFFSET.copy()
    sums = MomentSums.zeros(K, C, given_offset)
    given_offset[:] = 0
    assert sums.offset.tolist() == OFFSET.tolist()


@given(cuts=st.sets(st.integers(0, N)), weighted=st.booleans(), shift=st.booleans())
def test_any_split_into_blocks(cuts, weighted, shift):
    weights = WEIGHTS if weighted else None
    parts = [of(slice(*ends), weights) for ends in pairwise(sorted({0, N, *cuts}))]
    if shift:  # blocks of other offsets
        parts = [part.shifted(OFFSET + i) for i, part in enumerate(parts)]
    assert_sums(added(parts), dense(PHI, Y, weights, OFFSET), rtol=1e-11)
    assert_sums(added(parts[::-1]), dense(PHI, Y, weights, parts[-1].offset), rtol=1e-11)


@given(weights=st.lists(st.integers(0, 3), min_size=N, max_size=N))
def test_weights_are_repeated_rows(weights):
    w = np.array(weights)
    sums, times = of(weights=w.astype(float)), np.repeat(np.arange(N), w)
    wanted = dense(PHI[times], Y[times], None, OFFSET)
    assert_sums(sums, {**wanted, "rows": N}, rtol=1e-12)


def test_merging_changes_nothing_else():
    one, two = of(slice(0, 9), WEIGHTS), of(slice(9, N), WEIGHTS, offset=np.zeros(C))
    before = copy.deepcopy(two)
    one.merge(two)
    assert_sums(two, {name: getattr(before, name) for name in (*SUMS, "weight", "rows")}, rtol=0)
    own = MomentSums.zeros(K, C, OFFSET)
    own.merge(before.shifted(OFFSET))
    own.gram[:] = 0
    assert_near(before.gram, two.gram, rtol=0)


@pytest.mark.parametrize("offset", [np.zeros(C), OFFSET, np.array([1e3, -1e3])])
def test_other_offsets(offset):
    sums = of(weights=WEIGHTS)
    shifted = sums.shifted(offset)
    assert_sums(shifted, dense(PHI, Y, WEIGHTS, offset), rtol=1e-12)
    assert_sums(shifted.shifted(OFFSET), dense(PHI, Y, WEIGHTS, OFFSET), rtol=1e-9)
    assert sums.shifted(OFFSET.copy()) is sums


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("offset", [np.zeros(C), OFFSET], ids=["plain", "offset"])
def test_less_their_means(weights, offset):
    sums = of(weights=weights, offset=offset)
    w = np.ones(N) if weights is None else weights
    mean, target_mean = w @ PHI / w.sum(), w @ Y / w.sum()
    assert_near(sums.feature_mean, mean, rtol=1e-13)
    assert_near(sums.target_mean, target_mean, rtol=1e-13)
    for intercept, P, T in ((False, PHI, Y), (True, PHI - mean, Y - target_mean)):
        wanted = dense(P, T, weights)
        found = sums.centred(intercept=intercept)
        for value, name in zip(found, ("gram", "cross", "target_squares"), strict=True):
            assert_near(value, wanted[name], rtol=1e-11)
    assert_sums(sums, dense(PHI, Y, weights, offset))  # as they were


def test_squares_of_constant_targets_are_not_below_zero():
    sums = MomentSums.of_block(PHI, np.full((N, C), 0.1), None, np.zeros(C))
    G, B, squares = sums.centred(intercept=True)
    assert (squares >= 0).all()
    assert squares.max() < 1e-14
    assert np.abs(B).max() < 1e-13
    assert np.linalg.eigvalsh(G)[0] > 0


@pytest.mark.parametrize("part", [slice(0, 1), slice(5, 14), slice(0, N)])
@pytest.mark.parametrize("offset", [OFFSET, np.zeros(C)], ids=["same offset", "another"])
def test_rows_taken_away(part, offset):
    sums, away = of(weights=WEIGHTS), of(part, WEIGHTS, offset)
    sums.subtract(away)
    left = np.delete(np.arange(N), np.arange(N)[part])
    wanted = dense(PHI[left], Y[left], WEIGHTS[left], OFFSET)
    whole = dense(PHI, Y, WEIGHTS, OFFSET)
    for name in SUMS:  # digits are those of what was there
        size = np.abs(whole[name]).max()
        assert np.abs(getattr(sums, name) - wanted[name]).max() <= 1e-12 * size
    assert sums.rows == len(left)
    assert abs(sums.weight - wanted["weight"]) < 1e-12 * whole["weight"]
    assert (sums.target_squares >= 0).all()


def other_rows(scale=1.0, shift=0.0):
    rng = np.random.default_rng(11)
    return scale * rng.standard_normal((4, K)), shift + rng.standard_normal((4, C))


@pytest.mark.parametrize(
    ("away", "words"),
    [
        (lambda: added([of(), of(slice(0, 1))]), "24 rows of weight 24 cannot be taken from 23"),
        (lambda: of(slice(0, 2), 30 * WEIGHTS), r"2 rows of weight .* cannot be taken from 23"),
        (lambda: MomentSums.of_block(*other_rows(10.0), None, OFFSET), "were never added"),
        (lambda: MomentSums.of_block(*other_rows(shift=1e3), None, OFFSET), "were never added"),
        (lambda: MomentSums.of_block(*other_rows(0.0, 99.0), None, OFFSET), "were never added"),
    ],
    ids=["more rows", "more weight", "larger", "other targets", "targets alone"],
)
def test_rows_that_were_never_added(away, words):
    sums = of()
    before = copy.deepcopy(sums)
    with pytest.raises(ValueError, match=words):
        sums.subtract(away())
    for name in (*SUMS, "weight", "rows"):
        assert np.array_equal(getattr(sums, name), getattr(before, name))


def test_rows_that_were_taken_away_already():
    sums, few = of(slice(0, 8)), of(slice(0, 4))
    sums.subtract(few)
    with pytest.raises(ValueError, match="were never added"):
        sums.subtract(few)


@pytest.mark.parametrize(("k", "c"), [(K + 1, C), (K, C + 1)])
def test_sums_of_other_sizes(k, c):
    with pytest.raises(ValueError, match=rf"{k} features and {c} outputs do not add to .* 5 and 2"):
        of().merge(MomentSums.zeros(k, c))


def audited(part=slice(None), weights=None, offset=OFFSET):
    w = None if weights is None else weights[part]
    single = PHI.astype(np.float32)[part]
    return MomentSums.of_block(single, Y[part], w, offset, exact=PHI[part])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_what_float32_makes_of_them(weights, library):
    single, w = PHI.astype(np.float32), None if weights is None else library(weights)
    sums = MomentSums.of_block(library(single), library(Y), w, OFFSET, exact=library(PHI))
    exact = dense(PHI, Y, weights, OFFSET)
    assert sums.audited == N
    for name, error in (
        ("gram", "gram_error"),
        ("cross", "cross_error"),
        ("feature_sum", "sum_error"),
    ):
        assert 0 < np.abs(getattr(sums, error)).max() < 1e-5 * np.abs(exact[name]).max()
        assert_near(getattr(sums, name) - getattr(sums, error), exact[name], rtol=1e-13)
    E = single.astype(float) - PHI
    w = np.ones(N) if weights is None else weights
    assert_near(sums.square_error, E.T @ np.diag(w) @ E, rtol=1e-12)
    # float64 alone, whatever the features are
    assert_near(sums.target_squares, exact["target_squares"], rtol=1e-13)


def test_targets_far_from_zero_keep_their_digits_beside_their_offset():
    far = Y + 2e7
    near, lost = (
        MomentSums.of_block(PHI.astype(np.float32), far, None, offset, exact=PHI)
        for offset in (OFFSET + 2e7, np.zeros(C))
    )
    exact = dense(PHI, far, None, OFFSET + 2e7)
    assert_near(near.cross, exact["cross"], rtol=1e-5)
    assert np.abs(lost.shifted(OFFSET + 2e7).cross - exact["cross"]).max() > 0.1
    assert np.abs(lost.cross_error).max() > 1e4 * np.abs(near.cross_error).max()


@given(cuts=st.sets(st.integers(1, N - 1), max_size=3))
def test_audits_add_up(cuts):
    parts = [
        audited(slice(*ends)) if i % 2 == 0 else of(slice(*ends))
        for i, ends in enumerate(pairwise(sorted({0, N, *cuts})))
    ]
    sums = added(parts)
    seen = [part for part in parts if part.audited]
    assert sums.audited == sum(part.rows for part in seen)
    for name in ERRORS:
        assert_near(getattr(sums, name), sum(getattr(part, name) for part in seen), rtol=1e-12)
    assert sums.shifted(OFFSET + 1.0).audited == sums.audited


@pytest.mark.parametrize("offset", [OFFSET, np.zeros(C)], ids=["same offset", "another"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("intercept", [False, True])
def test_errors_of_what_ridge_works_on(intercept, weights, offset):
    sums, exact = audited(weights=weights).shifted(offset), of(weights=weights).shifted(offset)
    dG, dB, squares = sums.centred_errors(intercept=intercept)
    for error, single, double in zip(
        (dG, dB),
        sums.centred(intercept=intercept),
        exact.centred(intercept=intercept),
        strict=False,
    ):
        size = np.abs(double).max()
        assert np.abs(single - double - error).max() < 1e-13 * size
        assert np.abs(error).max() > 1e-10 * size  # which is no part of it
    assert_near(squares, sums.square_error, rtol=0)
    assert exact.centred_errors(intercept=intercept) is None


def test_errors_of_some_rows_stand_for_all():
    part = audited(slice(0, 8))
    sums = added([part, of(slice(8, N))])
    found = sums.centred_errors(intercept=False)
    for value, wanted in zip(found, part.centred_errors(intercept=False), strict=True):
        assert_near(value, wanted * N / 8, rtol=1e-12)
    sums.subtract(of(slice(6, N)))  # fewer are left than were audited
    found = sums.centred_errors(intercept=False)
    for value, wanted in zip(found, part.centred_errors(intercept=False), strict=True):
        assert_near(value, wanted, rtol=1e-12)


@pytest.mark.parametrize("make", [of, audited])
def test_states(make):
    sums = make(weights=WEIGHTS)
    arrays, numbers = sums.state()
    again = MomentSums.restored(arrays, numbers, K, C)
    assert {"rows": N, "weight": sums.weight, "audited": sums.audited} == numbers
    for name in (*SUMS, *ERRORS, "weight", "rows", "audited"):
        assert np.array_equal(getattr(again, name), getattr(sums, name))
    again.merge(sums)
    assert arrays["gram"] is sums.gram
    assert_near(again.gram, 2 * sums.gram, rtol=1e-14)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gram": np.zeros((K, K - 1))}, r"gram is float64 of shape \(5, 4\)"),
        ({"gram": np.zeros((K, K), dtype=np.float32)}, "gram is float32"),
        ({"gram": np.full((K, K), np.nan)}, "gram holds NaN or infinity"),
        ({"cross": np.zeros((C, K))}, "cross is float64"),
        ({"feature_sum": np.zeros(C)}, "feature_sum is float64"),
        ({"offset": np.zeros(K)}, "offset is float64"),
        ({"target_sum": np.full(C, np.inf)}, "target_sum holds NaN or infinity"),
        ({"target_squares": np.zeros((C, 1))}, "target_squares is float64"),
        ({"sum_error": np.zeros((K, K))}, "sum_error is float64"),
        ({"square_error": np.zeros(K)}, "square_error is float64"),
        ({"cross_error": np.zeros((K, K))}, "cross_error is float64"),
        ({"rows": -1}, "rows=-1 must be at least 0"),
        ({"audited": -1}, "audited=-1 must be at least 0"),
        ({"weight": -1.0}, "weight=-1.0 must be >= 0"),
        ({"weight": np.nan}, "weight=nan must be finite"),
        ({"weight": np.inf}, "weight=inf must be finite"),
        ({"rows": 0}, "a weight of 23 without rows"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_states_of_something_else(change, words):
    arrays, numbers = audited().state()
    arrays |= {name: value for name, value in change.items() if name in arrays}
    numbers |= {name: value for name, value in change.items() if name in numbers}
    with pytest.raises(ValueError, match=words):
        MomentSums.restored(arrays, numbers, K, C)


@pytest.mark.parametrize("name", [*SUMS, *ERRORS, "rows", "weight", "audited"])
def test_states_that_lack_something(name):
    arrays, numbers = audited().state()
    (arrays if name in arrays else numbers).pop(name)
    with pytest.raises(KeyError, match=name):
        MomentSums.restored(arrays, numbers, K, C)


@pytest.mark.parametrize("intercept", [False, True])
def test_their_spectrum_is_that_of_the_features(intercept, backend):
    phi = PHI @ np.diag([1.0, 1.0, 1.0, 1e-3, 0.0])  # one direction has nothing
    sums = MomentSums.of_block(phi, Y, None, OFFSET)
    P, T = (phi - phi.mean(axis=0), Y - Y.mean(axis=0)) if intercept else (phi, Y)
    spectrum = decompose_moments(sums, backend, intercept=intercept)
    delta, basis, Z, outside = (
        np.asarray(x) for x in (spectrum.eigenvalues, spectrum.basis, spectrum.Z, spectrum.outside)
    )
    assert_near(delta, np.linalg.eigvalsh(P @ P.T)[-K:], rtol=1e-12)
    assert spectrum.below_rounding == 1
    assert (delta[0], spectrum.method) == (0, "features")
    assert_near(basis @ basis.T, P.T @ P, rtol=1e-12)
    U = P @ basis[:, 1:] / delta[1:]  # eigenvectors of P P'
    assert_near(U.T @ U, np.eye(K - 1), rtol=1e-8)
    assert_near(Z[1:], U.T @ T, rtol=1e-8)
    assert not Z[0].any()
    assert not basis[:, 0].any()
    assert_near(outside, ((T - U @ (U.T @ T)) ** 2).sum(axis=0), rtol=1e-8)


def test_no_features_at_all():
    sums = MomentSums.of_block(0 * PHI, Y, None, OFFSET)
    spectrum = decompose_moments(sums, NumpyBackend(), intercept=False)
    assert not spectrum.eigenvalues.any()
    assert not spectrum.Z.any()
    assert spectrum.below_rounding == K
    assert_near(spectrum.outside, (Y**2).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("audited", [False, True])
def test_turned_sums_are_those_of_turned_features(audited):
    rng = np.random.default_rng(3)
    phi, Y, w = rng.standard_normal((30, 5)), rng.standard_normal((30, 2)), rng.uniform(0, 2, 30)
    columns = rng.standard_normal((5, 4))
    exact = (phi + 1e-3 * rng.standard_normal(phi.shape)) if audited else None
    found = MomentSums.of_block(phi, Y, w, np.ones(2), exact=exact).turned(columns)
    turned = exact @ columns if audited else None
    wanted = MomentSums.of_block(phi @ columns, Y, w, np.ones(2), exact=turned)
    (arrays, numbers), (others, same) = found.state(), wanted.state()
    assert numbers == same
    assert arrays.keys() == others.keys()
    for name in arrays:
        np.testing.assert_allclose(arrays[name], others[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_sums_around_means_of_any_rows(weights):
    """Of features and targets less means that are not their own, whatever offset the sums have."""
    means = np.linspace(-1.0, 2.0, K), np.array([1.0, -30.0])
    sums = MomentSums.of_block(PHI, Y, weights, OFFSET)
    found, wanted = sums.around(*means), dense(PHI - means[0], Y - means[1], weights)
    for name in SUMS:
        assert_near(getattr(found, name), wanted[name], 1e-12)
    assert (found.weight, found.rows) == (sums.weight, sums.rows)
