"""Chains as their last step sees them, against the recursion with a lam for each step."""

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdgpu.distill.filters import step_dual_filters, stepwise_filters
from sdgpu.distill.joint_weights import steady_joint_weights
from sdgpu.distill.lam_schedules import (
    backward_dual_filters,
    backward_rows,
    by_step,
    joint_by_step,
    of_own_step,
    rests_of_steps,
    shortened,
)
from sdgpu.distill.loss_triangles import grid_losses, merge_rows, step_losses
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import grid_tails, tails
from sdgpu.distill.smoothers import RIDGE, GradientFlow, IteratedTikhonov
from tests.problems import assert_near, schedules, spectra

DELTA = np.array([0.0, 1e-3, 0.2, 1.0, 7.0])


@settings(max_examples=100, deadline=None)
@given(delta=spectra(), alphas=schedules(), seed=st.integers(0, 99))
def test_steps_are_combinations_of_their_own_basis(delta, alphas, seed):
    """y(t) = u_1 + sum_j s_j D_j, and 1 - B(t) likewise, for every step of a schedule of lam."""
    T = len(alphas) + 1
    lams = 10.0 ** np.random.default_rng(seed).uniform(-12, 12, T)
    for smoother in (RIDGE, GradientFlow(), IteratedTikhonov(3)):
        train, dual = stepwise_filters(delta, lams, alphas, smoother)
        rows = backward_rows(lams[None])
        basis = backward_dual_filters(delta, rows, smoother)
        rests = np.stack([*rests_of_steps(smoother, delta, rows, T)], axis=1)
        for t in range(T):
            s = np.concatenate([[1.0], tails(alphas[:t])])
            size = np.abs(s).sum()
            found = s @ basis[t, : t + 1]
            scale = smoother.dual(delta, lams).max() * size
            np.testing.assert_allclose(found, dual[t], rtol=0, atol=1e-13 * scale)
            left = s @ rests[t, : t + 1]
            np.testing.assert_allclose(1 - left, train[t], rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("xp", [np, torch, array_api_strict])
def test_equal_lam_have_the_basis_of_one(xp):
    delta = xp.asarray(DELTA)
    lams = xp.asarray(np.full((2, 4), 0.3))
    found = backward_dual_filters(delta, lams)
    one = step_dual_filters(delta, 0.3, 4)
    for row in range(2):
        np.testing.assert_allclose(np.asarray(found[row, ...]), np.asarray(one), rtol=1e-14)


def test_rows_and_what_they_say():
    lams = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rows = backward_rows(lams)
    assert rows.shape == (6, 3)
    for s in range(2):
        for t in range(3):
            assert rows[3 * s + t, : t + 1].tolist() == lams[s, : t + 1][::-1].tolist()
    values = np.arange(6 * 2 * 3).reshape(6, 2, 3)
    picked = of_own_step(values, 3)
    assert picked.shape == (2, 2, 3)
    for s, a, t in np.ndindex(2, 2, 3):
        assert picked[s, a, t] == values[3 * s + t, a, t]


def test_weights_take_the_triangle_of_each_step():
    """The same triangle for every step is one lam; another for the last moves what it chooses alone."""
    columns = np.random.default_rng(0).standard_normal((3, 20, 4))
    triangles = merge_rows(None, columns)
    same = np.stack([triangles] * 4)
    one, many = greedy_weights(triangles), greedy_weights(same, by_step=True)
    assert_near(many.alphas, one.alphas, 1e-12)
    assert_near(many.losses, one.losses, 1e-12)
    noise = np.full(3, 1e-12)
    assert_near(
        joint_by_step(same, noise).losses, steady_joint_weights(triangles, noise).losses, 1e-9
    )
    other = same.copy()
    other[3] = merge_rows(None, np.random.default_rng(1).standard_normal((3, 20, 4)))
    moved = greedy_weights(other, by_step=True)
    assert_near(moved.alphas[:, :2], one.alphas[:, :2], 1e-12)
    assert (np.abs(moved.alphas[:, 2] - one.alphas[:, 2]) > 1e-3).all()
    for s in range(3):
        assert_near(moved.losses[s, 3], step_losses(other[3, s], tails(moved.alphas[s])), 1e-10)
    rows = np.moveaxis(other, 0, 1).reshape(12, 4, 4)
    assert np.array_equal(by_step(rows, 4), other)
    grid = grid_tails(np.array([0.0, 0.4]), 4)
    short = grid_losses(shortened(other[2], 3), grid[:, :3])[..., 2]
    assert_near(of_own_step(grid_losses(rows, grid), 4)[..., 2], short, 1e-10)
