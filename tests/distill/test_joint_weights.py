"""The joint optimum and its steady neighbours against normal equations and the promise itself."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.checks import GROWTH
from sdgpu.distill.joint_weights import (
    KEPT,
    RIDGES,
    _least_squares,
    joint_status,
    joint_weights,
    steady,
    steady_joint_weights,
)
from sdgpu.distill.loss_triangles import grid_losses, step_losses
from sdgpu.distill.optimal_weights import greedy_weights, loss_of_schedule
from sdgpu.distill.schedules import all_tails, coefficients, from_tails, grid_tails, tails
from tests.problems import assert_near


@pytest.fixture
def triangles(rng):
    """Two well-conditioned triangles of five steps."""
    return np.triu(rng.standard_normal((2, 5, 5)) + 2 * np.eye(5))


def optimum(R, t, ridge):
    """argmin ||E + D s||^2 + ridge sum (||D_j|| s_j)^2 by normal equations."""
    D, E = R[:, : t - 1], R[:, -1]
    penalty = ridge * np.diag(np.sum(D**2, axis=0))
    return np.linalg.solve(D.T @ D + penalty, -D.T @ E)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.3])
def test_chains_of_every_length_are_those_of_the_normal_equations(triangles, ridge):
    found = joint_weights(triangles, ridge=ridge)
    for i, R in enumerate(triangles):
        assert_allclose(found.losses[i, 0], R[:, -1] @ R[:, -1], rtol=1e-12)
        assert np.isnan(found.schedules[i, 0]).all()
        assert (found.tails[i, 0] == 0).all()
        for t in range(2, 6):
            s = optimum(R, t, ridge)
            assert_allclose(found.tails[i, t - 1, : t - 1], s, rtol=1e-8)
            assert (found.tails[i, t - 1, t - 1 :] == 0).all()
            loss = np.sum((R[:, -1] + R[:, : t - 1] @ s) ** 2)
            assert_allclose(found.losses[i, t - 1], loss, rtol=1e-9)
            alphas = found.schedules[i, t - 1, : t - 1]
            assert_allclose(tails(alphas), s, rtol=1e-8)
            assert np.isnan(found.schedules[i, t - 1, t - 1 :]).all()
        assert_allclose(found.alphas[i], found.schedules[i, -1])
        assert_allclose(found.coefficients[i], coefficients(found.alphas[i]), rtol=1e-6, atol=1e-9)
        D = R[:, :4] / np.linalg.norm(R[:, :4], axis=0)
        assert_allclose(found.condition[i], np.linalg.cond(D), rtol=1e-8)
        assert found.rank[i] == 4


def test_directions_that_repeat_are_counted_once(triangles):
    R = triangles.copy()
    R[0, :, 1] = 3 * R[0, :, 0]
    R[1, :, 2] = 0.0
    found = joint_weights(R)
    assert (found.rank == 3).all()
    assert found.condition[0] > 1e13
    for i, kept in enumerate(([0, 2, 3], [0, 1, 3])):
        D = R[i][:, kept]
        least = np.linalg.lstsq(D, R[i, :, -1], rcond=None)[1]
        assert_allclose(found.losses[i, -1], least.sum(), rtol=1e-9)


def test_of_directions_that_repeat_the_solution_is_the_smallest(triangles):
    R = triangles[0].copy()
    R[:, 2] = -0.7 * R[:, 1]
    found = joint_weights(R)
    for t in range(2, 6):
        D, scale = R[:, : t - 1], np.linalg.norm(R[:, : t - 1], axis=0)
        x = np.linalg.pinv(D / scale, rcond=1e-10) @ -R[:, -1]
        assert_allclose(found.tails[t - 1, : t - 1], x / scale, rtol=1e-9)


def test_a_step_that_changes_nothing_has_no_direction_and_the_weight_one():
    found = joint_weights(np.array([[0.0, 1.0], [0.0, 2.0]]))
    assert (found.rank, found.condition) == (0, np.inf)
    assert found.alphas == 1
    assert found.losses.tolist() == [5.0, 5.0]


def test_what_dropped_directions_would_make_worse_stays_as_it_was(triangles, monkeypatch):
    """A solver that is off where t = 4, as one is that has lost a direction that counts."""

    def off(triangle, t, ridge):
        solution, *rest = _least_squares(triangle, t, ridge)
        return (0.1 * solution if t == 4 else solution, *rest)

    truth, tame = joint_weights(triangles), joint_weights(triangles, ridge=1e-9)
    monkeypatch.setattr("sdgpu.distill.joint_weights._least_squares", off)
    found = joint_weights(triangles)
    assert (truth.losses[:, 3] < truth.losses[:, 2]).all()
    assert (found.losses[:, 3] == truth.losses[:, 2]).all()
    assert (found.tails[:, 3, :2] == truth.tails[:, 2, :2]).all()
    assert (found.tails[:, 3, 2] == 0).all()
    others = [0, 1, 2, 4]
    assert (found.losses[:, others] == truth.losses[:, others]).all()
    # with a ridge a longer chain may be worse
    assert (joint_weights(triangles, ridge=1e-9).losses[:, 3] > tame.losses[:, 2]).all()


def test_every_doubt_of_an_optimum_is_named(triangles):
    good = joint_weights(triangles[0])
    c = good.coefficients / np.abs(good.coefficients).max()
    good = replace(good, coefficients=c, condition=np.array(2.0))
    assert joint_status(good) == "well-conditioned"
    lost = joint_status(replace(good, rank=np.array(3)))
    assert lost.startswith("only 3 of 4 directions are independent")
    for position in range(4):
        alphas = np.where(np.arange(4) == position, np.inf, 0.5)
        assert "no finite schedule" in joint_status(replace(good, alphas=alphas))
    assert joint_status(replace(good, condition=np.array(2e10))).startswith("ill-cond")
    assert joint_status(replace(good, condition=np.array(0.5e10))) == "well-conditioned"
    for size, digits in ((-110.0, 13), (5e7, 8), (1e20, 0)):
        status = joint_status(replace(good, coefficients=np.append(c[:4], size)))
        assert f"keep about {digits} digits" in status
    assert joint_status(replace(good, coefficients=np.append(c[:4], -90.0))) == "well-conditioned"


def test_losses_of_steps_and_grids_are_norms(triangles):
    s = np.random.default_rng(1).standard_normal((2, 3))
    for i, R in enumerate(triangles):
        wanted = np.sum((R[:, -1] + R[:, :3] @ s[i]) ** 2)
        assert_allclose(step_losses(triangles, s)[i], wanted, rtol=1e-13)
    alphas = np.array([-0.5, 0.0, 0.4, 1.0, 1.6, 2.5, 0.1])
    grid = grid_losses(triangles, grid_tails(alphas, 5))
    assert grid.shape == (2, 7, 5)
    for j, alpha in enumerate(alphas):
        rows = all_tails(np.full(4, alpha))
        for t in range(1, 6):
            wanted = step_losses(triangles, np.stack([rows[t - 1, 1:t]] * 2))
            assert_allclose(grid[:, j, t - 1], wanted, rtol=1e-12)
        assert_allclose(loss_of_schedule(triangles, np.full(4, alpha)), grid[:, j], rtol=1e-12)


@pytest.mark.parametrize("clip", [False, True])
def test_every_greedy_weight_is_the_best_of_its_step(triangles, clip):
    found = greedy_weights(triangles, clip=clip)
    assert_allclose(found.losses[:, 0], np.sum(triangles[..., -1] ** 2, axis=-1), rtol=1e-13)
    for i, R in enumerate(triangles):
        assert_allclose(loss_of_schedule(R, found.alphas[i]), found.losses[i], rtol=1e-9)
        for t in range(2, 6):
            first = found.alphas[i, : t - 2]
            losses = [  # a parabola in the last weight
                loss_of_schedule(R, np.append(np.append(first, a), np.zeros(5 - t)))[t - 1]
                for a in (-1.0, 0.0, 1.0)
            ]
            a, b = (losses[0] + losses[2]) / 2 - losses[1], (losses[2] - losses[0]) / 2
            best = np.clip(-b / (2 * a), 0, 1) if clip else -b / (2 * a)
            assert_allclose(found.alphas[i, t - 2], best, rtol=1e-6, atol=1e-9)


def chain(c):
    """Tails of one chain of three steps with coefficients c, and of its shorter ones."""
    s = np.cumsum(c[::-1])[::-1][1:]
    return np.array([[0.0, 0.0], [s[0], 0.0], s])


@pytest.mark.parametrize(
    "c", [[0.2, 0.5, 0.3], [3.0, -4.3, 2.3], [3.2, -4.7, 2.5], [-30.0, 60.0, -29.0]]
)
def test_a_promise_is_kept_if_amplified_noise_is_a_hundredth(c):
    products, size = chain(np.array(c)), np.abs(c).sum()
    for share, kept in ((0.99, True), (1.01, False)):
        # ||noise|| sum |c| against KEPT of the root of the loss 4
        noise = np.array(share * KEPT * 2 / size)
        losses = np.full(3, 4.0)
        assert steady(products, losses, noise)[-1] == (kept or size <= 10)
        # with losses of 0 ten times the noise of one prediction is nothing
        assert steady(products, 0 * losses, noise)[-1] == (size <= 10)
    assert steady(products, np.full(3, 4.0), np.array(1e-9)).all()


def test_weights_whose_product_overflows_are_not_steady():
    for power, kept in ((0.49, True), (0.51, False)):
        alphas = 1 - np.array([10.0 ** (GROWTH * power), 10.0 ** (GROWTH * power)])
        products = np.array([[0.0, 0.0], [0.0, 0.0], tails(alphas)])
        assert steady(products, np.full(3, np.inf), np.array(0.0))[-1] == kept


@pytest.mark.parametrize(("alpha", "growth"), [(-9.0, 1.0), (11.0, 1.0), (0.0, 0.0), (0.5, 0.0)])
def test_each_weight_multiplies_what_comes_before_it(alpha, growth):
    """By |1 - alpha|, and weights that shrink it make no room for others that do not."""
    for count in (int(GROWTH) - 1, int(GROWTH) + 1, (3 if growth else 4) * int(GROWTH)):
        products = tails(np.full(count, alpha))
        kept = growth * count < GROWTH
        assert steady(products, np.array(np.inf), np.array(0.0)) == kept


def test_each_promise_has_its_own_noise(triangles):
    found = joint_weights(triangles)
    together = steady(found.tails, found.losses, np.array([[1e-12], [10.0]]))
    for i, noise in enumerate((1e-12, 10.0)):
        alone = steady(found.tails[i], found.losses[i], np.array(noise))
        assert (together[i] == alone).all()


def test_without_noise_the_steady_optimum_is_the_optimum(triangles):
    found, wanted = steady_joint_weights(triangles, np.zeros(2)), joint_weights(triangles)
    for name in ("alphas", "coefficients", "losses", "tails", "condition", "rank"):
        assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-12, atol=1e-14)


def test_the_smallest_ridge_that_makes_it_steady(rng):
    """Nearly parallel directions: the optimum needs coefficients that noise does not bear."""
    base = rng.standard_normal(6)
    D = base[:, None] + 1e-4 * rng.standard_normal((6, 5))
    R = np.linalg.qr(np.column_stack([D, rng.standard_normal(6)]))[1]
    noise = np.array(1e-5)
    found = steady_joint_weights(R, noise)
    best, steps = None, np.inf
    for t in range(1, 7):
        for ridge in RIDGES:
            one = joint_weights(R, ridge=ridge)
            if steady(one.tails, one.losses, noise)[t - 1]:
                if one.losses[t - 1] <= steps:
                    best, steps = one.tails[t - 1], one.losses[t - 1]
                break
        assert_allclose(found.losses[t - 1], steps, rtol=1e-12)
        assert_allclose(found.tails[t - 1], best, rtol=1e-12)
        if t > 1:
            assert_allclose(found.schedules[t - 1, : t - 1], from_tails(best[: t - 1]), rtol=1e-12)
    assert (np.diff(found.losses) <= 0).all()
    assert steady(found.tails, found.losses, noise).all()
    assert joint_weights(R).losses[-1] < found.losses[-1]  # the optimum itself is not steady
    ends = np.concatenate([[1.0], best, [0.0]])
    assert_near(found.coefficients, -np.diff(ends), rtol=1e-12)


def test_ridges_rise_from_none_to_one_that_is_felt():
    """Of columns of norm 1: the last one changes what every direction contributes by a hundredth or more."""
    assert RIDGES[0] == 0
    assert_allclose(np.diff(np.log10(RIDGES[1:])), 2)
    assert 0 < RIDGES[1] <= 1e-12
    assert RIDGES[-1] >= 1e-2


def test_each_of_a_batch_has_the_ridge_that_it_needs(rng):
    base = rng.standard_normal(6)
    D = base[:, None] + 1e-4 * rng.standard_normal((6, 5))
    R = np.linalg.qr(np.column_stack([D, rng.standard_normal(6)]))[1]
    noise = np.array([0.0, 1e-9, 1e-5, 1e-2])
    together = steady_joint_weights(np.stack([R] * 4), noise)
    for i, level in enumerate(noise):
        alone = steady_joint_weights(R, level)
        assert_allclose(together.losses[i], alone.losses, rtol=1e-12)
        assert_allclose(together.tails[i], alone.tails, rtol=1e-12)
    assert (np.diff(together.losses[1:, -1]) > 0).all()  # of 1e-9 nothing is seen


@pytest.mark.parametrize("unit", [2.0**-300, 2.0**-20, 2.0**30])
def test_steady_optima_do_not_depend_on_the_unit(rng, unit):
    base = rng.standard_normal(6)
    D = base[:, None] + 1e-4 * rng.standard_normal((6, 5))
    R = np.linalg.qr(np.column_stack([D, rng.standard_normal(6)]))[1]
    found, wanted = (steady_joint_weights(u * R, np.array(u * 1e-5)) for u in (unit, 1.0))
    assert (found.tails == wanted.tails).all()
    assert_allclose(found.losses, unit**2 * wanted.losses, rtol=1e-14)


def test_batches_of_any_shape(rng):
    R = np.triu(rng.standard_normal((2, 3, 4, 4)) + 2 * np.eye(4))
    noise = np.full((2, 3), 1e-3)
    together = steady_joint_weights(R, noise)
    greedy, free = greedy_weights(R), joint_weights(R, ridge=0.01)
    fixed = loss_of_schedule(R, np.full(3, 0.4))
    for i in np.ndindex(2, 3):
        alone = steady_joint_weights(R[i], noise[i])
        for name in ("alphas", "coefficients", "losses", "schedules", "tails"):
            assert_allclose(
                getattr(together, name)[i], getattr(alone, name), rtol=1e-10, atol=1e-12
            )
        assert_allclose(fixed[i], loss_of_schedule(R[i], np.full(3, 0.4)), rtol=1e-12)
        assert_allclose(greedy.alphas[i], greedy_weights(R[i]).alphas, rtol=1e-12)
        assert_allclose(
            free.tails[i], joint_weights(R[i], ridge=0.01).tails, rtol=1e-10, atol=1e-12
        )
