"""The three ways to write a schedule, against each other and against equation (6)."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from sdgpu.device.backend import to_numpy
from sdgpu.distill.schedules import (
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


def test_on_every_library(backend):
    alphas = backend.asarray(np.array([[0.2, -0.4, 1.5], [0.0, 1.0, 0.5]]))
    plain = coefficients(to_numpy(alphas))
    assert_near(to_numpy(coefficients(alphas)), plain)
