"""The three ways to write a schedule, against each other and against equation (6)."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.schedules import (
    all_tails,
    coefficients,
    from_tails,
    grid_tails,
    schedule_from_coefficients,
    tails,
)
from tests.problems import assert_near, schedules


def equation_6(alphas):
    """Coefficients of A^1..A^T as the paper prints them: alpha_i eta(i+1, T), eta(2, T)."""
    T = len(alphas) + 1
    weight = {tau: alphas[tau - 2] for tau in range(2, T + 1)}

    def eta(i):
        return np.prod([1 - weight[j] for j in range(i, T + 1)])

    c = np.zeros(T)
    for i in range(2, T + 1):
        c[T - i] = weight[i] * eta(i + 1)  # power T - i + 1
    c[T - 1] = eta(2)
    return c


@given(schedules())
def test_coefficients_are_equation_6(alphas):
    c = coefficients(alphas)
    assert_allclose(c, equation_6(alphas), rtol=1e-12, atol=1e-14)
    assert_allclose(c.sum(), 1, atol=1e-12 * np.prod(1 + np.abs(1 - alphas)))


@given(schedules(low=-0.9, high=0.9))
def test_schedule_comes_back(alphas):
    if (alphas == 1).any():
        alphas = np.where(alphas == 1, 0.5, alphas)
    assert_allclose(schedule_from_coefficients(coefficients(alphas)), alphas, atol=1e-9)


def test_a_weight_of_one_forgets_the_past():
    assert_allclose(from_tails(tails(np.array([0.3, 1.0, 0.4]))), [1.0, 1.0, 0.4])


def test_impossible_coefficients_are_refused():
    with pytest.raises(ValueError, match="infinite weight"):
        schedule_from_coefficients(np.array([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="sum to 1"):
        schedule_from_coefficients(np.array([0.5, 0.2]))


def test_grid_tails_are_tails_of_constant_schedules():
    grid = grid_tails(np.array([0.0, 0.25, 1.0, -2.0]), 5)
    for row, alpha in zip(grid, (0.0, 0.25, 1.0, -2.0), strict=True):
        assert_allclose(row[1:], tails(np.full(4, alpha)))


def test_rows_of_schedules_have_coefficients_each():
    alphas = np.random.default_rng(2).uniform(-1, 2, (2, 3, 4))
    found = coefficients(alphas)
    for i in np.ndindex(2, 3):
        assert_allclose(found[i], equation_6(alphas[i]), rtol=1e-13, atol=1e-15)


def test_on_every_library(backend):
    alphas = backend.asarray(np.array([[0.2, -0.4, 1.5], [0.0, 1.0, 0.5]]))
    plain = coefficients(to_numpy(alphas))
    assert_near(to_numpy(coefficients(alphas)), plain)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_tails_of_every_step_are_products(shape):
    alphas = np.random.default_rng(5).uniform(-1, 2, shape)
    rows = all_tails(alphas)
    assert rows.shape == (5, 5, *shape[1:])
    for t in range(1, 6):
        for j in range(5):
            # the last j weights of the t - 1 that step t has
            wanted = np.prod(1 - alphas[t - 1 - j : t - 1], axis=0) if j < t else 0.0 * alphas[0]
            assert_allclose(rows[t - 1, j], wanted, rtol=1e-14)


@pytest.mark.parametrize("size", [1 - 1e-7, 1 + 1e-7])
def test_the_sum_is_held_to_eight_digits(size):
    c = coefficients(np.array([0.3, -0.2, 0.8]))
    with pytest.raises(ValueError, match="sum to 1"):
        schedule_from_coefficients(size * c)
    schedule_from_coefficients(c * (1 + (size - 1) / 100))
