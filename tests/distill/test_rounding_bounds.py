"""The bound on rounding against its definition, and against matrices that were moved."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.rounding_bounds import backward_error, decay, dual_lengths, rounding_bound
from tests.problems import EPS, from_spectrum

DELTA = np.array([0.0, 0.01, 0.2, 0.4, 0.9, 1.3, 2.0])
LAMS = np.array([1e-3, 0.3, 5.0])


@pytest.mark.parametrize("m", [0, 1, 2, 3, 7])
def test_decay_is_the_largest_value_of_its_polynomial(m):
    a = np.linspace(0, 1, 100_001)
    assert_allclose(decay(m), (a**m * (1 - a)).max(), rtol=1e-8)


def test_backward_error_grows_with_the_root_of_the_rows():
    assert_allclose(backward_error(100), (8 + 10 + 4) * EPS, rtol=1e-12)
    assert_allclose(backward_error(10_000, 40.0), (8 + 100 + 40) * EPS, rtol=1e-12)


def weights(K, Y, lam, steps):
    """w_i = (K + lam)^-1 A^(i-1) Y by solves, (T, n, c)."""
    shifted, found = K + lam * np.eye(len(K)), []
    for _ in range(steps):
        found.append(np.linalg.solve(shifted, Y if not found else K @ found[-1]))
    return np.array(found)


def test_lengths_are_those_of_explicit_solves():
    problem = from_spectrum(DELTA, c=2)
    found = dual_lengths(DELTA, problem.V.T @ problem.Y, LAMS, 4)
    for i, lam in enumerate(LAMS):
        wanted = np.linalg.norm(weights(problem.K, problem.Y, lam, 4), axis=1)
        assert_allclose(found[i], wanted, rtol=1e-9)


def test_bound_is_the_sum_of_the_header():
    lengths = np.random.default_rng(0).random((2, 4, 3))
    found = rounding_bound(lengths, 7.0, 1e-3)
    for step in range(1, 5):
        wanted = sum(
            (j**j / (j + 1) ** (j + 1)) * lengths[:, step - j - 1] for j in range(step)
        )  # 0^0 = 1
        assert_allclose(found[:, step - 1], 7e-3 * wanted, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_small_change_of_the_matrix_moves_an_answer_further(seed):
    problem = from_spectrum(DELTA, c=2, seed=seed)
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    noise = 1e-7
    E = noise * DELTA[-1] * (Q * rng.choice([-1.0, 1.0], 7)) @ Q.T  # ||E|| = noise ||K||
    bound = rounding_bound(dual_lengths(DELTA, problem.V.T @ problem.Y, LAMS, 4), DELTA[-1], noise)
    for i, lam in enumerate(LAMS):
        moved = (problem.K + E) @ weights(problem.K + E, problem.Y, lam, 4) - problem.K @ weights(
            problem.K, problem.Y, lam, 4
        )
        assert (np.linalg.norm(moved, axis=1) <= 1.01 * bound[i]).all()
