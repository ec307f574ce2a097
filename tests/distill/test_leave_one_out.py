"""Exact leave-one-out of every step against n refits."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.distill import leave_one_out as loo
from sdgpu.distill.schedules import coefficients
from tests.problems import refits


def brute(K, Y, lam, alphas, steps):
    """Refit without each row, (T, n, c)."""
    n = len(K)
    found = np.empty((steps, *Y.shape))
    for i in range(n):
        others = np.delete(np.arange(n), i)
        _, dual = refits(K[np.ix_(others, others)], Y[others], lam, alphas, steps)
        found[:, i] = K[i, others] @ dual
    return found


def steps_of(V, delta, Z, lams, steps):
    return loo.leave_one_out(
        loo.powers(V, delta, Z, lams, steps),
        loo.diagonals(V, delta, lams, steps),
        loo.rest(V, delta, lams),
    )


@pytest.fixture
def problem(rng):
    X, Y = rng.standard_normal((17, 2)), rng.standard_normal((17, 2))
    K = np.exp(-0.3 * ((X[:, None] - X[None]) ** 2).sum(-1))
    delta, V = np.linalg.eigh(K)
    return K, Y, np.maximum(delta, 0), V


@pytest.mark.parametrize("alphas", [[0.0, 0.0, 0.0], [0.3, -0.4, 1.2]])
def test_every_schedule_is_that_of_the_refits(problem, backend, alphas):
    K, Y, delta, V = problem
    lams = np.array([1e-3, 0.2, 5.0])
    own = [backend.asarray(a) for a in (V, delta, V.T @ Y)]
    found = to_numpy(steps_of(*own, lams, 4))
    for i, lam in enumerate(lams):
        wanted = brute(K, Y, lam, alphas, 4)
        for step in range(1, 5):
            c = coefficients(np.array(alphas[: step - 1]))
            mine = np.einsum("t,tnc->nc", c, found[i, :step])
            assert_allclose(mine, wanted[step - 1], rtol=1e-8, atol=1e-9)


def test_the_limit_is_ridge(problem, backend):
    K, Y, delta, V = problem
    own = [backend.asarray(a) for a in (V, delta, V.T @ Y)]
    lam = np.array([0.2 / 0.4])
    errors = to_numpy(loo.ridge_errors(*own, lam) / loo.rest(*own[:2], lam))
    wanted = brute(K, Y, 0.2, [0.4] * 79, 80)[-1]
    assert_allclose(Y - errors[0], wanted, atol=1e-8)
    assert_allclose(Y - errors[0], to_numpy(steps_of(*own, lam, 1))[0, 0], atol=1e-12)


def test_a_row_that_determines_itself_is_named(backend):
    V, delta = np.eye(3), np.array([1.0, 2.0, 1e20])
    own = [backend.asarray(a) for a in (V, delta, np.ones((3, 1)))]
    with pytest.raises(ValueError, match=r"row 2 determines itself at lam = 0.5"):
        steps_of(*own, np.array([1.0, 0.5]), 2)


def test_a_basis_that_holds_the_targets_is_enough(problem, backend):
    K, _, delta, V = problem
    kept = V[:, -5:]
    Y = kept @ np.random.default_rng(2).standard_normal((5, 2))
    lams = np.array([0.1, 2.0, 7.0])
    own = [backend.asarray(a) for a in (kept, delta[-5:], kept.T @ Y)]
    powers = to_numpy(loo.powers(*own, lams, 3))
    errors = to_numpy(loo.ridge_errors(*own, lams))
    assert powers.shape == (3, 4, 17, 2)
    for i, lam in enumerate(lams):
        H = K @ np.linalg.inv(K + lam * np.eye(17))
        for q in range(4):
            assert_allclose(powers[i, q], np.linalg.matrix_power(H, q) @ Y, atol=1e-10)
        assert_allclose(errors[i], Y - H @ Y, atol=1e-10)


def test_diagonals_are_those_of_powers(problem, backend):
    K, _, delta, V = problem
    lams = np.array([0.1, 2.0])
    own = [backend.asarray(a) for a in (V, delta)]
    found = to_numpy(loo.diagonals(*own, lams, 3))
    for i, lam in enumerate(lams):
        H = K @ np.linalg.inv(K + lam * np.eye(17))
        for q in range(4):
            assert_allclose(found[i, q, :, 0], np.diag(np.linalg.matrix_power(H, q)), atol=1e-10)
