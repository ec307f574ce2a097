"""Expected risk against explicit smoothers, draws of noise, and formulas of others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.expected_risk import RiskTriangles, risk_at_points, risk_at_training
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import tails
from tests.problems import from_spectrum, refits

DELTA = np.array([0.0, 0.05, 0.2, 0.4, 0.9, 1.3, 3.0])
LAMS = np.array([0.02, 0.3, 4.0])


def smoothers(K, K_new, lam, alphas, steps):
    """Matrices S with f(X_new; tau) = S Y for tau = 1..T, by refits of the identity: (T, m, n)."""
    _, dual = refits(K, np.eye(len(K)), lam, alphas, steps)
    return K_new @ dual


def brute(K, K_new, mean, truth, lam, alphas, steps):
    """Squared bias and variance of unit noise at steps 1..T."""
    S = smoothers(K, K_new, lam, alphas, steps)
    bias = np.mean((S @ mean - truth) ** 2, axis=(1, 2))
    return bias, np.sum(S**2, axis=(1, 2)) / len(K_new)


def at_points(problem, lams=LAMS, steps=4):
    own = problem.delta, problem.V.T @ problem.Y, problem.K_new @ problem.V, problem.Y_new
    return risk_at_points(*own, lams=lams, steps=steps)


def at_training(problem, lams=LAMS, steps=4):
    return risk_at_training(problem.delta, problem.V.T @ problem.Y, lams, steps)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -0.7, 1.6])
@pytest.mark.parametrize("c", [1, 3])
def test_grid_is_that_of_explicit_smoothers(alpha, c):
    problem = from_spectrum(DELTA, c=c, m=9)
    cases = (
        (at_points(problem), problem.K_new, problem.Y_new),
        (at_training(problem), problem.K, problem.Y),
    )
    for triangles, K_new, truth in cases:
        risk = triangles.grid(np.array([alpha]), 0.7)
        for i, lam in enumerate(LAMS):
            bias, variance = brute(problem.K, K_new, problem.Y, truth, lam, alpha, 4)
            assert_allclose(risk.bias[i, 0], bias, rtol=1e-10)
            assert_allclose(risk.variance[i, 0], 0.49 * variance, rtol=1e-10)
            assert_allclose(risk.total[i, 0], bias + 0.49 * variance, rtol=1e-10)


@given(st.lists(st.floats(-1.0, 2.0), min_size=0, max_size=3).map(np.array), st.floats(0.0, 2.0))
def test_schedules_are_those_of_explicit_smoothers(alphas, std):
    alphas = alphas.astype(float)
    problem, T = from_spectrum(DELTA, c=2, m=9), len(alphas) + 1
    found = at_points(problem).schedule(alphas, std)
    assert found.bias.shape == (3, T)
    for i, lam in enumerate(LAMS):
        bias, variance = brute(problem.K, problem.K_new, problem.Y, problem.Y_new, lam, alphas, T)
        assert_allclose(found.total[i], bias + std**2 * variance, rtol=1e-9)
    each = np.tile(tails(alphas), (3, 1))
    assert_allclose(at_points(problem).combination(each, std).total, found.total[:, -1], rtol=1e-12)


def test_risk_is_the_mean_over_draws_of_noise():
    """4,000 draws; four standard errors."""
    problem, rng, lam, alphas = (
        from_spectrum(DELTA, m=9),
        np.random.default_rng(0),
        0.3,
        [0.4, -0.2],
    )
    S = smoothers(problem.K, problem.K_new, lam, alphas, 3)
    Y = problem.Y + 0.5 * rng.standard_normal((7, 4000))
    losses = np.mean((S @ Y - problem.Y_new) ** 2, axis=1)  # (T, draws)
    expected = at_points(problem).schedule(np.array(alphas), 0.5).total[1]
    error = losses.std(axis=1, ddof=1) / np.sqrt(4000)
    assert (np.abs(losses.mean(axis=1) - expected) < 4 * error).all()


def test_noise_that_shifts_the_mean():
    """Corrupted labels: the expected targets are one thing, the truth another."""
    problem = from_spectrum(DELTA, c=2)
    mean, truth = problem.Y, 0.3 * problem.Y[::-1] + 1
    found = risk_at_training(
        problem.delta, problem.V.T @ mean, LAMS, 3, truth=problem.V.T @ truth
    ).schedule(np.array([0.2, 0.5]), 1.0)
    for i, lam in enumerate(LAMS):
        bias, variance = brute(problem.K, problem.K, mean, truth, lam, [0.2, 0.5], 3)
        assert_allclose(found.bias[i], bias, rtol=1e-10)
        assert_allclose(found.variance[i], variance, rtol=1e-10)


def test_bias_does_not_cancel_where_lam_is_small():
    delta, lam = np.array([1.0, 2.0]), 1e-12
    Z = np.array([[1.0], [3.0]])
    bias = risk_at_training(delta, Z, np.array([lam]), 1).schedule(np.zeros(0), 0.0).bias
    assert_allclose(bias, np.mean((lam / (delta + lam) * Z[:, 0]) ** 2), rtol=1e-14)


def test_weights_of_the_expected_risk_are_its_optima():
    """alpha*, the joint optimum, and no nearby schedule is better."""
    problem, std = from_spectrum(DELTA, m=20), 0.6
    triangles = at_points(problem, steps=3)
    R = triangles.expected(std)
    star, joint = greedy_weights(R), joint_weights(R)
    for i in range(3):

        def risk(alphas, i=i):
            return triangles.schedule(np.asarray(alphas), std).total[i, -1]

        direct = minimize(risk, star.alphas[i, :1], method="Nelder-Mead", options={"xatol": 1e-7})
        assert_allclose(direct.x, star.alphas[i, :1], atol=1e-4)
        assert_allclose(risk(joint.alphas[i]), joint.losses[i, -1], rtol=1e-8)
        assert joint.losses[i, -1] <= star.losses[i].min() + 1e-12
        rng = np.random.default_rng(1)
        for _ in range(20):
            assert risk(joint.alphas[i] + 1e-3 * rng.standard_normal(2)) >= joint.losses[i, -1]


def test_alpha_star_follows_the_slope_of_the_ridge_risk():
    """alpha* = 1 + (lam / 2) R'(lam) / ||step 2 - step 1||^2 (Dang, Patil and Rinaldo 2026)."""
    problem, std, h = from_spectrum(DELTA), 0.6, 1e-6
    lams = np.geomspace(1e-2, 10, 7)
    triangles = at_training(problem, lams, 2)
    alpha = greedy_weights(triangles.expected(std)).alphas[:, 0]
    up, down = (
        at_training(problem, lams * np.exp(sign * h), 1).schedule(np.zeros(0), std).total[:, 0]
        for sign in (1, -1)
    )
    slope = (up - down) / (2 * h)  # lam R'(lam)
    distance = []
    for lam in lams:
        S = smoothers(problem.K, problem.K, lam, 0.0, 2)
        change = S[1] - S[0]
        bias = np.mean((change @ problem.Y) ** 2)
        distance.append(bias + std**2 * np.sum(change**2) / len(problem.K))
    assert_allclose(alpha, 1 + slope / (2 * np.array(distance)), rtol=1e-5, atol=1e-5)
    assert (np.sign(alpha - 1) == np.sign(slope)).all()
    assert alpha.min() < 0 < 1 < alpha.max()


def test_linear_features_are_das_and_sanghavi():
    """Their optimal teacher's weight xi for the error of the parameters, which exceeds 1 with noise."""
    s, theta, lam = np.array([2.0, 1.0, 0.5, 0.1]), np.array([1.0, -0.5, 0.8, 0.3]), 0.4
    delta, Z = s**2, (s * theta)[:, None]  # X = V diag(s) U'; the parameters are U diag(s) V' dual
    triangles = risk_at_points(delta, Z, np.diag(s), theta[:, None], lams=np.array([lam]), steps=2)
    a = delta / (delta + lam)
    w, signal = (a / s) ** 2, theta**2
    for std in (0.0, 0.3, 1.0, 1e4):
        above = std**2 * np.sum(w * (1 - a)) - np.sum(signal * (1 - a) ** 2 * a)
        below = std**2 * np.sum(w * (1 - a) ** 2) + np.sum(signal * (1 - a) ** 2 * a**2)
        alpha = greedy_weights(triangles.expected(std)).alphas[0, 0]
        assert_allclose(1 - alpha, above / below, rtol=1e-10)
    assert alpha < 0


@pytest.mark.parametrize("truth", [None, 2.0])
def test_every_library(backend, truth):
    problem = from_spectrum(DELTA, c=2, m=6)
    Z = problem.V.T @ problem.Y
    host = problem.delta, Z, problem.K_new @ problem.V, problem.Y_new
    mine = [backend.asarray(array) for array in host]
    other = None if truth is None else truth * Z
    pairs = (
        (risk_at_points(*mine, lams=LAMS, steps=3), risk_at_points(*host, lams=LAMS, steps=3)),
        (
            risk_at_training(
                *mine[:2], LAMS, 3, truth=other if other is None else backend.asarray(other)
            ),
            risk_at_training(*host[:2], LAMS, 3, truth=other),
        ),
    )
    for found, wanted in pairs:
        plain = RiskTriangles(to_numpy(found.bias), to_numpy(found.variance))
        grid = np.array([0.0, 0.7])
        assert_allclose(plain.grid(grid, 0.3).total, wanted.grid(grid, 0.3).total, rtol=1e-11)
        R, S = to_numpy(found.expected(0.3)), wanted.expected(0.3)
        assert_allclose(np.swapaxes(R, 1, 2) @ R, np.swapaxes(S, 1, 2) @ S, atol=1e-12)


def test_one_row_and_one_step():
    one = np.ones(1)
    found = risk_at_points(one, one[:, None], np.ones((1, 1)), one[:, None], lams=one, steps=1)
    assert_allclose(found.grid(np.zeros(1), 2.0).total, 0.25 + 4 * 0.25)
