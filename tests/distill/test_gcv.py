"""Generalised cross-validation against explicit smoothers, and the jackknife against its definition."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.gcv import jackknife_error, one_shot
from tests.problems import from_spectrum

DELTA = np.array([0.0, 0.05, 0.2, 0.4, 0.9, 1.3, 2.0, 3.0])
LAMS = np.array([0.03, 0.5, 4.0])


def scores(problem, lam, left):
    """R, R0 and C of each output from explicit smoothers and 1 - t1, 1 - t2."""
    n = len(problem.K)
    H = problem.K @ np.linalg.inv(problem.K + lam * np.eye(n))
    r, q = (
        (problem.Y - S @ problem.Y) / (n**0.5 * w) for S, w in zip((H, H @ H), left, strict=True)
    )
    return (r * r).sum(axis=0), (q * q).sum(axis=0), (r * q).sum(axis=0)


def true_left(problem, lam):
    n = len(problem.K)
    H = problem.K @ np.linalg.inv(problem.K + lam * np.eye(n))
    return 1 - np.trace(H) / n, 1 - np.trace(H @ H) / n


@pytest.mark.parametrize("per_output", [False, True])
def test_one_shot_is_the_minimum_of_the_explicit_parabola(per_output):
    problem = from_spectrum(DELTA, c=3)
    found = one_shot(DELTA, problem.V.T @ problem.Y, LAMS, 8, per_output=per_output)
    for i, lam in enumerate(LAMS):
        R, R0, C = (
            x if per_output else x.mean() for x in scores(problem, lam, true_left(problem, lam))
        )
        alpha = (R0 - C) / (R + R0 - 2 * C)
        assert_allclose(found.ridge_score[i], R, rtol=1e-10)
        assert_allclose(found.distilled_score[i], R0, rtol=1e-10)
        assert_allclose(found.covariance[i], C, rtol=1e-10)
        assert_allclose(found.alpha[i], alpha, rtol=1e-8)
        least = alpha**2 * R + (1 - alpha) ** 2 * R0 + 2 * alpha * (1 - alpha) * C
        assert_allclose(found.score[i], least, rtol=1e-8)
    assert found.alpha.shape == ((3, 3) if per_output else (3,))
    assert (found.alpha_error == 0).all()
    assert (found.score_error == 0).all()


@pytest.mark.parametrize("per_output", [False, True])
def test_errors_of_estimated_traces_are_those_of_the_jackknife(per_output):
    problem, p = from_spectrum(DELTA, c=2), 5
    exact = np.array([[8 * (1 - w) for w in true_left(problem, lam)] for lam in LAMS])
    traces = exact + 0.2 * np.random.default_rng(4).standard_normal((p, 3, 2))
    found = one_shot(DELTA, problem.V.T @ problem.Y, LAMS, 8, traces, per_output=per_output)

    def parabola(lam, trace):
        R, R0, C = (x if per_output else x.mean() for x in scores(problem, lam, 1 - trace / 8))
        alpha = (R0 - C) / (R + R0 - 2 * C)
        return alpha, alpha**2 * R + (1 - alpha) ** 2 * R0 + 2 * alpha * (1 - alpha) * C

    for i, lam in enumerate(LAMS):
        whole = parabola(lam, traces[:, i].mean(axis=0))
        without = [parabola(lam, np.delete(traces[:, i], j, axis=0).mean(axis=0)) for j in range(p)]
        for k, (value, error) in enumerate(
            ((found.alpha, found.alpha_error), (found.score, found.score_error))
        ):
            each = np.array([one[k] for one in without])
            spread = np.sqrt((p - 1) / p * ((each - each.mean(axis=0)) ** 2).sum(axis=0))
            assert_allclose(value[i], whole[k], rtol=1e-8)
            assert_allclose(error[i], spread, rtol=1e-7)


def test_fits_with_the_same_residuals_have_the_weight_one():
    Z = np.random.default_rng(0).standard_normal((4, 2))
    found = one_shot(np.zeros(4), Z, np.array([0.3]), 4)  # no fit at all: r = q = Y
    assert_allclose(found.alpha, 1)
    assert_allclose(found.score, np.mean(Z**2))


def test_fits_that_differ_by_rounding_have_the_weight_one():
    Z = np.random.default_rng(0).standard_normal((8, 1))
    found = one_shot(DELTA, Z, np.geomspace(1e13, 1e17, 30), 8)
    assert (found.alpha == 1).all()


@pytest.mark.parametrize("unit", [2.0**-60, 2.0**60])
def test_the_one_shot_weight_has_no_unit(unit):
    problem = from_spectrum(DELTA, c=2)
    Z = problem.V.T @ problem.Y
    found, wanted = one_shot(DELTA, unit * Z, LAMS, 8), one_shot(DELTA, Z, LAMS, 8)
    assert (found.alpha == wanted.alpha).all()
    assert (found.score == unit**2 * wanted.score).all()
    flat = one_shot(DELTA, unit * Z, np.array([1e16]), 8)
    assert flat.alpha == 1


def test_targets_of_zeros_have_the_weight_one():
    found = one_shot(DELTA, np.zeros((8, 2)), LAMS, 8)
    assert (found.alpha == 1).all()
    assert (found.score == 0).all()


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).standard_normal((6, 3))
    without = (values.sum(axis=0) - values) / 5
    standard = values.std(axis=0, ddof=1) / np.sqrt(6)
    assert_allclose(jackknife_error(without), standard, rtol=1e-12)
    assert_allclose(jackknife_error(without, values.mean(axis=0)), standard, rtol=1e-12)


def test_jackknife_counts_the_bias():
    """Of the square of a mean the jackknife estimates the bias var / p without an error."""
    values = np.random.default_rng(2).standard_normal((6, 3)) + 2
    without = ((values.sum(axis=0) - values) / 5) ** 2
    bias = values.var(axis=0, ddof=1) / 6
    found = jackknife_error(without, values.mean(axis=0) ** 2)
    assert_allclose(found**2, jackknife_error(without) ** 2 + bias**2, rtol=1e-10)
