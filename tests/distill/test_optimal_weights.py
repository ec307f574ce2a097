"""Losses from triangles, alpha* and the joint optimum, against brute force."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.joint_weights import joint_status, joint_weights
from sdgpu.distill.loss_triangles import grid_losses, merge_rows, step_columns, step_losses
from sdgpu.distill.optimal_weights import greedy_weights, loss_of_schedule
from sdgpu.distill.schedules import coefficients, grid_tails, tails
from tests.problems import assert_near, brute_alpha_star, from_spectrum, refits, validation_losses

DELTA = np.array([0.05, 0.2, 0.4, 0.9, 1.3, 2.0, 3.0])


def triangle_of(problem, lam, steps, *, blocks=1):
    """R from refits: u_i is step i with alpha = 0."""
    _, dual = refits(problem.K, problem.Y, lam, 0.0, steps)
    predictions = problem.K_new @ dual  # (T, m, c)
    basis = np.concatenate([predictions[:1], np.diff(predictions, axis=0)])
    columns = step_columns(basis.reshape(steps, -1).T, problem.Y_new.ravel())
    triangle = None
    for part in np.array_split(columns, blocks):
        triangle = merge_rows(triangle, part)
    return triangle


@pytest.mark.parametrize("blocks", [1, 3])
def test_losses_of_a_grid_are_those_of_refits(blocks):
    problem = from_spectrum(DELTA, c=3, m=9)
    alphas = np.array([0.0, 0.25, 0.9, 1.0, -0.5, 1.7])
    triangle = triangle_of(problem, 0.3, 5, blocks=blocks)
    losses = grid_losses(triangle[None], grid_tails(alphas, 5))[0] / problem.Y_new.size
    for row, alpha in zip(losses, alphas, strict=True):
        assert_allclose(row, validation_losses(problem, 0.3, alpha, 5), rtol=1e-10)


def test_losses_of_a_schedule():
    problem = from_spectrum(DELTA, c=2)
    schedule = np.array([0.3, -0.2, 1.4])
    triangle = triangle_of(problem, 0.3, 4)
    expected = validation_losses(problem, 0.3, schedule, 4) * problem.Y_new.size
    assert_allclose(step_losses(triangle, tails(schedule)), expected[-1], rtol=1e-10)
    assert_allclose(loss_of_schedule(triangle, schedule), expected, rtol=1e-10)


@pytest.mark.parametrize("chunk", [20, 3])
def test_chunks_of_weights_change_nothing(monkeypatch, chunk):
    problem = from_spectrum(DELTA)
    triangle, grid = triangle_of(problem, 0.3, 4)[None], grid_tails(np.linspace(-1, 2, 23), 4)
    whole = grid_losses(triangle, grid)
    monkeypatch.setattr("sdgpu.distill.loss_triangles._CHUNK", chunk)
    assert_allclose(grid_losses(triangle, grid), whole, rtol=1e-14)


def test_fewer_rows_than_steps():
    problem = from_spectrum(DELTA, m=2)
    triangle = triangle_of(problem, 0.3, 6)
    assert triangle.shape == (6, 6)
    losses = loss_of_schedule(triangle, np.full(5, 0.4)) / problem.Y_new.size
    assert_allclose(losses, validation_losses(problem, 0.3, 0.4, 6), rtol=1e-10)


def test_triangles_on_every_library(backend):
    columns = np.random.default_rng(0).standard_normal((2, 8, 3))
    triangle = to_numpy(merge_rows(None, backend.asarray(columns)))
    gram = np.swapaxes(columns, 1, 2) @ columns
    assert_allclose(np.swapaxes(triangle, 1, 2) @ triangle, gram, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_triangles_of_any_batch_and_few_rows(rows):
    rng = np.random.default_rng(rows)
    basis, targets = rng.standard_normal((2, 3, rows, 4)), rng.standard_normal((2, 3, rows))
    columns = step_columns(basis, targets)
    assert (columns[..., :3] == basis[..., 1:]).all()
    assert (columns[..., 3] == basis[..., 0] - targets).all()
    triangle = merge_rows(None, columns)
    twice = merge_rows(triangle, columns)
    for found, times in ((triangle, 1), (twice, 2)):
        assert found.shape == (2, 3, 4, 4)
        gram = np.swapaxes(columns, -1, -2) @ columns
        assert_allclose(np.swapaxes(found, -1, -2) @ found, times * gram, atol=1e-13 * rows)


@pytest.mark.parametrize("clip", [False, True])
@given(seed=st.integers(0, 200), lam=st.floats(0.01, 3.0), c=st.integers(1, 3))
def test_algorithm_1_is_the_explicit_one(clip, seed, lam, c):
    problem = from_spectrum(DELTA, c=c, m=8, seed=seed)
    found = greedy_weights(triangle_of(problem, lam, 4), clip=clip)
    expected = brute_alpha_star(problem, lam, 4, clip=clip)
    assert_allclose(found.alphas, expected, rtol=1e-5, atol=1e-6)
    losses = validation_losses(problem, lam, found.alphas, 4) * problem.Y_new.size
    assert_allclose(found.losses, losses, rtol=1e-9)


def test_alpha_star_is_the_best_of_its_step():
    problem = from_spectrum(DELTA, m=20)
    found = greedy_weights(triangle_of(problem, 0.5, 3))
    first = found.alphas[0]

    def loss(alpha):
        return validation_losses(problem, 0.5, [first, alpha], 3)[-1]

    best = minimize_scalar(loss, bracket=(found.alphas[1] - 1, found.alphas[1] + 1))
    assert_allclose(best.x, found.alphas[1], atol=1e-6)


def test_zero_denominator_gives_one():
    assert_allclose(greedy_weights(np.diag([0.0, 0.0, 2.0])).alphas, 1.0)


def test_weights_per_output_are_separate_problems():
    problem = from_spectrum(DELTA, c=3, m=9)
    singles = []
    for j in range(3):
        one = replace(problem, Y=problem.Y[:, [j]], Y_new=problem.Y_new[:, [j]])
        singles.append(triangle_of(one, 0.3, 4))
    found = greedy_weights(np.stack(singles))
    for j, triangle in enumerate(singles):
        assert_near(found.alphas[j], greedy_weights(triangle).alphas)


def test_joint_optimum_beats_a_direct_search():
    """The gradient of the loss over the weights vanishes, and no schedule nearby is better."""
    problem = from_spectrum(DELTA, m=30, c=2)
    triangle = triangle_of(problem, 0.5, 4)
    found = joint_weights(triangle)
    size = problem.Y_new.size
    assert_allclose(
        validation_losses(problem, 0.5, found.alphas, 4)[-1] * size, found.losses[-1], rtol=1e-9
    )
    assert_allclose(found.coefficients, coefficients(found.alphas), rtol=1e-6, atol=1e-8)
    assert_allclose(found.coefficients.sum(), 1, atol=1e-8)
    rng = np.random.default_rng(3)
    for _ in range(50):
        nearby = found.alphas + 1e-3 * rng.standard_normal(3)
        assert loss_of_schedule(triangle, nearby)[-1] >= found.losses[-1]
    assert (np.diff(found.losses) <= 1e-12).all()
    assert found.losses[-1] <= greedy_weights(triangle).losses[-1] + 1e-12


def test_joint_optimum_says_what_is_wrong_with_it():
    problem = from_spectrum([0.0, 0.0, 0.0, 1.0], m=6)  # one direction: D_2.. are parallel to D_1
    found = joint_weights(triangle_of(problem, 0.5, 4))
    assert "independent" in joint_status(found) or "ill-conditioned" in joint_status(found)
    assert np.isfinite(found.losses).all()
    assert "no weight" in joint_status(joint_weights(np.ones((1, 1))))
    good = joint_weights(triangle_of(from_spectrum(DELTA, m=30), 0.5, 2))
    assert joint_status(good) == "well-conditioned"
    wild = joint_weights(triangle_of(from_spectrum(DELTA, m=30), 0.5, 6))
    assert "cancel each other" in joint_status(wild)


def test_joint_optima_of_many_lam_at_once():
    problem = from_spectrum(DELTA, m=30)
    triangles = np.stack([triangle_of(problem, lam, 4) for lam in (0.2, 1.0)])
    together = joint_weights(triangles)
    for i, triangle in enumerate(triangles):
        alone = joint_weights(triangle)
        assert_near(together.alphas[i], alone.alphas)
        assert_allclose(together.losses[i], alone.losses)
        assert together.rank[i] == alone.rank


@given(seed=st.integers(0, 300))
def test_longer_joint_chains_are_never_worse(seed):
    """Also where directions are dropped: lam is far below most eigenvalues."""
    problem = from_spectrum(DELTA, m=7, seed=seed)
    losses = joint_weights(triangle_of(problem, 2.6e-4, 7)).losses
    assert (np.diff(losses) <= 0).all()


def test_ridge_tames_the_joint_optimum():
    problem = from_spectrum(DELTA, m=30)
    triangle = triangle_of(problem, 0.5, 6)
    free, tame = joint_weights(triangle), joint_weights(triangle, ridge=1e-2)
    assert np.abs(tame.coefficients).max() < np.abs(free.coefficients).max()
    assert tame.losses[-1] >= free.losses[-1]


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e150])
def test_weights_do_not_depend_on_the_unit_of_the_targets(size):
    triangle = np.triu(np.random.default_rng(3).standard_normal((2, 5, 5)))
    unit = 2.0 ** np.round(np.log2(size))
    for make in (greedy_weights, joint_weights):
        with np.errstate(all="raise", under="ignore"):
            found, wanted = make(unit * triangle), make(triangle)
        assert (found.alphas == wanted.alphas).all()
        assert_near(found.losses, unit * unit * wanted.losses, rtol=1e-12 if size > 1e-150 else 1)
