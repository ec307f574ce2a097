"""Filters against the recursion with explicit solves, on every library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.filters import (
    dual_filter,
    limit_dual_filter,
    limit_exists,
    limit_rate,
    limit_train_filter,
    residual_filter,
    shrinkage,
    step_dual_filters,
    train_filter,
)
from sdgpu.distill.schedules import tails
from tests.problems import from_spectrum, lams, refits, schedules, spectra

EDGES = np.array([0.0, 1e-300, 1e-12, 1e-3, 1.0, 1e6])


@given(spectra(), lams, schedules())
def test_filters_are_the_refits(delta, lam, alphas):
    problem = from_spectrum(delta, c=2)
    fitted, dual = refits(problem.K, problem.Y, lam, alphas, len(alphas) + 1)
    Z = problem.V.T @ problem.Y
    B, C, R = (
        make(problem.delta, lam, alphas) for make in (train_filter, dual_filter, residual_filter)
    )
    # rounding of the solve, amplified by weights outside [0, 1]
    size = 1e-13 * np.prod(1 + np.abs(1 - alphas)) * (1 + delta.max() / lam) * 40
    assert_allclose(problem.V @ (B[..., None] * Z), fitted, atol=size)
    assert_allclose(problem.V @ (C[..., None] * Z), dual, atol=size / lam)
    assert_allclose(problem.V @ (R[..., None] * Z), problem.Y - fitted, atol=size)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, -0.7, 1.8])
def test_edges_of_the_spectrum(backend, alpha):
    """Eigenvalue 0, 1e-300 and huge: finite, and consistent with each other."""
    xp, delta = backend.xp, backend.asarray(EDGES)
    alphas = xp.full((4,), alpha, dtype=xp.float64)
    B, C, R = (
        to_numpy(make(delta, 0.2, alphas)) for make in (train_filter, dual_filter, residual_filter)
    )
    assert all(np.isfinite(values).all() for values in (B, C, R))
    assert_allclose(B, EDGES * C, rtol=1e-12, atol=1e-310)
    assert_allclose(B + R, 1, rtol=1e-12, atol=1e-12 * np.abs(B).max())
    assert (B[:, 0] == 0).all()
    B_inf = to_numpy(limit_train_filter(delta, 0.2, alpha))
    C_inf = to_numpy(limit_dual_filter(delta, 0.2, alpha))
    if alpha >= 0:
        assert_allclose(B_inf, EDGES * C_inf, rtol=1e-12, atol=1e-310)


def test_small_shrinkage_keeps_its_digits():
    """a^6 of an eigenvalue 1e-8: 1e-48, right to the last digits."""
    B = train_filter(np.array([1e-8]), 1.0, np.zeros(5))
    assert_allclose(B[-1], (1e-8 / (1 + 1e-8)) ** 6, rtol=1e-14)


def test_residual_keeps_its_digits():
    """1 - B for lam = 1e-14 delta, where 1 - B itself would have no digit left."""
    R = residual_filter(np.array([1.0]), 1e-14, np.array([0.5]))
    a = 1 / (1 + 1e-14)
    exact = 1e-14 / (1 + 1e-14) * (1 + 0.5 * a)
    assert_allclose(R[-1], exact, rtol=1e-14)


@given(spectra(), lams, st.floats(0.0, 1.9))
def test_limit_is_the_last_of_many_steps(delta, lam, alpha):
    steps = 200
    rate = float(limit_rate(delta, lam, alpha))
    B = train_filter(delta, lam, np.full(steps - 1, alpha))[-1]
    limit = limit_train_filter(delta, lam, alpha)
    assert_allclose(B, limit, atol=rate**steps + 1e-13)
    assert bool(limit_exists(delta, lam, alpha))


def test_limit_is_ridge_with_amplified_lam():
    delta = np.array([0.0, 0.1, 1.0, 7.0])
    assert_allclose(limit_train_filter(delta, 0.2, 0.25), shrinkage(delta, 0.8))
    assert_allclose(limit_dual_filter(delta, 0.2, 0.25), 1 / (delta + 0.8))


def test_limit_outside_the_classical_range():
    delta = np.array([0.1, 10.0])
    assert not bool(limit_exists(delta, 0.1, 2.5))
    assert not bool(limit_exists(delta, 0.1, -0.5))
    # converges while |1 - alpha| a < 1, although alpha < 0
    assert bool(limit_exists(delta, 100.0, -0.5))
    B = train_filter(delta, 100.0, np.full(400, -0.5))[-1]
    assert_allclose(B, limit_train_filter(delta, 100.0, -0.5), rtol=1e-12)


@given(spectra(), lams, schedules(low=0.0, high=1.0))
def test_lemma_4_2_monotone_for_fixed_weights(delta, lam, alphas):
    if alphas.size == 0:
        return
    fixed = np.full(6, abs(alphas[0]) % 1)
    B = train_filter(delta, lam, fixed)
    assert ((B >= 0) & (B <= 1)).all()
    assert (np.diff(B, axis=0) <= 1e-15).all()
    one = train_filter(delta, lam, np.ones(6))
    assert (one == one[0]).all()


@given(spectra(), lams, schedules())
def test_basis_of_theorem_4_1_carries_every_schedule(delta, lam, alphas):
    """C(T) = u_1 + sum_j s_j D_j: equation (7) and Theorem 4.1 in difference form."""
    basis = step_dual_filters(delta, lam, len(alphas) + 1)
    combined = basis[0] + tails(alphas) @ basis[1:] if alphas.size else basis[0]
    direct = dual_filter(delta, lam, alphas)[-1]
    size = np.prod(1 + np.abs(1 - alphas)) / lam
    assert_allclose(combined, direct, rtol=1e-10, atol=1e-13 * size)


def test_grid_broadcasts(backend):
    delta = backend.asarray(np.array([0.1, 1.0, 3.0]))
    ridges, weights = np.array([0.1, 0.2])[:, None], np.array([[0.0] * 3, [0.5] * 3, [1.0] * 3])
    B = train_filter(delta, ridges, weights)
    assert tuple(B.shape) == (2, 3, 4, 3)
    one = train_filter(delta, 0.2, weights[1])
    assert_allclose(to_numpy(B)[1, 1], to_numpy(one))


def test_identity_of_the_ridge_path():
    """f_{alpha=0, step 2} - f_{step 1} = lam d f / d lam."""
    delta, lam, h = np.array([0.3, 2.0]), 0.5, 1e-6
    change = np.diff(dual_filter(delta, lam, np.zeros(1)), axis=0)[0]
    slope = (1 / (delta + lam + h) - 1 / (delta + lam - h)) / (2 * h)
    assert_allclose(change, lam * slope, rtol=1e-8)


def test_collapse_exists_where_shrinkage_rounds_to_one():
    delta = np.array([1.0])
    assert bool(limit_exists(delta, 1e-30, 0.0))
    assert not bool(limit_exists(delta, 1e-30, 2.0))
    assert bool(limit_exists(delta, 1e-2, 2.0))  # the rate is below 1 there
    found = limit_exists(delta, np.array([1e-30, 1e-2]), np.array([-1e-9, -1e-9]))
    assert found.tolist() == [False, True]


@pytest.mark.parametrize("make", [train_filter, dual_filter, residual_filter])
def test_grids_with_more_weights_than_steps(make):
    delta, ridges = np.array([0.0, 0.4, 1.0, 3.0]), np.array([0.1, 0.2])
    weights = np.random.default_rng(3).uniform(-1, 2, (5, 2))
    grid = make(delta, ridges[:, None], weights)
    assert grid.shape == (2, 5, 3, 4)
    for i, lam in enumerate(ridges):
        for j, alphas in enumerate(weights):
            assert_allclose(grid[i, j], make(delta, lam, alphas), rtol=1e-14)


def test_limits_of_grids():
    delta, ridges, weights = np.array([0.0, 0.4, 3.0]), np.array([0.1, 9.0]), np.array([0.3, 1.7])
    B, C = (
        make(delta, ridges[:, None], weights) for make in (limit_train_filter, limit_dual_filter)
    )
    for i, lam in enumerate(ridges):
        for j, alpha in enumerate(weights):
            assert_allclose(C[i, j], 1 / (delta + lam / alpha), rtol=1e-14)
            assert_allclose(B[i, j], delta / (delta + lam / alpha), rtol=1e-14)
            rate = np.abs((1 - alpha) * delta / (delta + lam)).max()
            assert_allclose(limit_rate(delta, ridges[:, None], weights)[i, j], rate, rtol=1e-14)
