"""Choosing without validation data: leave-one-out against n refits, GCV and one-shot weights by hand."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from tests.problems import refits

KERNEL = sdgpu.Gaussian(0.4)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((21, 2))
    return X, np.sin(X) + 0.3 * rng.standard_normal((21, 2))


def brute(X, Y, lam, alphas, steps):
    """Refits without each row, (T, n, c)."""
    found = np.empty((steps, *Y.shape))
    for i in range(len(X)):
        others = np.delete(np.arange(len(X)), i)
        _, dual = refits(KERNEL(X[others]), Y[others], lam, alphas, steps)
        found[:, i] = KERNEL(X[i : i + 1], X[others])[0] @ dual
    return found


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("alphas", [0.3, [0.0, -0.5, 1.4]])
def test_predictions_are_those_of_the_refits(data, library, alphas):
    X, Y = data
    fitted = sdgpu.fit(library(X), library(Y), KERNEL, lams=0.2)
    found = fitted.loo(0.2, alphas, 4)
    assert type(found) is type(library(Y))
    wanted = brute(X, Y, 0.2, np.broadcast_to(alphas, 3), 4)
    assert_allclose(np.asarray(found), wanted, rtol=1e-8, atol=1e-9)


def test_schedules_of_each_output(data):
    X, Y = data
    alphas = np.array([[0.3, 0.9], [1.2, -0.1]])
    found = sdgpu.fit(X, Y, KERNEL, lams=0.2).loo(0.2, alphas, 3)
    for q in range(2):
        wanted = brute(X, Y[:, q : q + 1], 0.2, alphas[:, q], 3)
        assert_allclose(found[..., q], wanted[..., 0], rtol=1e-8, atol=1e-9)


def test_the_grid_by_leave_one_out(data):
    X, Y = data
    lams, alphas = np.array([0.05, 0.5]), np.array([-0.2, 0.0, 0.6])
    fitted = sdgpu.fit(X, Y, KERNEL, lams=lams)
    sweep = fitted.sweep(alphas=alphas, steps=3).dataset
    assert sweep.attrs["validation_rows"] == 21
    for i, lam in enumerate(lams):
        for j, alpha in enumerate(alphas):
            wanted = ((brute(X, Y, lam, [alpha] * 2, 3) - Y) ** 2).mean(axis=(1, 2))
            assert_allclose(sweep["mse"][i, j], wanted, rtol=1e-8)
        far = brute(X, Y, lam, [0.6] * 59, 60)[-1]
        assert_allclose(sweep["limit_mse"][i, 2], ((far - Y) ** 2).mean(), rtol=1e-8)
    assert_allclose(sweep["limit_mse"][:, 1], (Y**2).mean())


def test_weights_by_leave_one_out(data):
    X, Y = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.2)
    greedy = fitted.optimal_alphas(lam=0.2, steps=3)
    joint = fitted.joint_alphas(lam=0.2, steps=3, folds=1)
    loss = lambda alphas: ((fitted.loo(0.2, alphas, 3) - Y) ** 2).mean(axis=(1, 2))  # noqa: E731
    assert_allclose(greedy.mse, loss(greedy.alphas), rtol=1e-8)
    assert_allclose(joint.mse[-1], loss(joint.alphas)[-1], rtol=1e-6)
    for change in (-1e-3, 1e-3):
        assert loss(greedy.alphas + np.array([change, 0]))[1] > greedy.mse[1]
        assert loss(joint.alphas + np.array([0, change]))[2] > joint.mse[2]
    each = fitted.optimal_alphas(lam=0.2, steps=3, per_output=True)
    assert each.alphas.shape == (2, 2)
    assert each.mse[1] < greedy.mse[1]  # later steps are greedy: no promise


def test_the_shortcut_of_one_step_is_wrong_for_two(data):
    X, Y = data
    found = sdgpu.fit(X, Y, KERNEL, lams=0.2).loo(0.2, 0.0, 2)
    H = KERNEL(X) @ np.linalg.inv(KERNEL(X) + 0.2 * np.eye(21))
    for S, right in ((H, True), (H @ H, False)):
        shortcut = Y - (Y - S @ Y) / (1 - np.diag(S))[:, None]
        assert np.allclose(found[0 if right else 1], shortcut, atol=1e-6) == right


def test_generalised_cross_validation(data):
    X, Y = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0])
    sweep = fitted.sweep(X, Y, alphas=[0.3], steps=3)
    H = KERNEL(X) @ np.linalg.inv(KERNEL(X) + np.eye(21))
    S = H.copy()
    for step in range(3):
        S = H @ (0.3 * np.eye(21) + 0.7 * S) if step else H
        wanted = ((Y - S @ Y) ** 2).mean() / (1 - np.trace(S) / 21) ** 2
        assert_allclose(float(sweep.dataset["gcv"][1, 0, step]), wanted, rtol=1e-9)
    best = sweep.best("gcv")
    assert (best.criterion, best.value) == ("gcv", float(sweep.dataset["gcv"].min()))
    assert best.mse == float(sweep.dataset["mse"].sel(lam=best.lam, alpha=0.3, step=best.step))
    alone = fitted.gcv_sweep(alphas=[0.3], steps=3).best("gcv")
    assert (alone.value, alone.step) == (best.value, best.step)
    assert np.isnan(alone.mse)  # nothing was judged by rows that had no part in the fit


@pytest.mark.parametrize("per_output", [False, True])
def test_one_shot_weights(data, per_output):
    X, Y = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0])
    H = KERNEL(X) @ np.linalg.inv(KERNEL(X) + np.eye(21))

    def risk(alpha):
        left = [(Y - S @ Y) / (1 - np.trace(S) / 21) for S in (H, H @ H)]
        return ((alpha * left[0] + (1 - alpha) * left[1]) ** 2).mean(axis=0)

    found = fitted.gcv(1.0, per_output=per_output)
    scores = risk(found.alpha) if per_output else risk(found.alpha).mean()
    assert_allclose(found.score, scores, rtol=1e-9)
    for change in (-1e-3, 1e-3):
        moved = risk(found.alpha + change)
        assert (np.asarray(moved if per_output else moved.mean()) > found.score).all()
    curve = fitted.gcv(per_output=per_output)
    assert_allclose(curve.alpha[1], found.alpha)
    assert_allclose(found.ridge_score, risk(1.0) if per_output else risk(1.0).mean(), rtol=1e-9)


def test_what_needs_eigenvalues_says_so(rng):
    X, y = rng.standard_normal((300, 2)), rng.standard_normal(300)
    fitted = sdgpu.fit(X, y, KERNEL, lams=3.0, method="cg", tol=1e-3)
    with pytest.raises(ValueError, match="'eigh'"):
        fitted.gcv()
    with pytest.raises(ValueError, match="'eigh'"):
        fitted.with_targets(y)


def test_other_targets_without_a_decomposition(data):
    X, Y = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.2)
    other = fitted.with_targets(Y[:, 0] ** 2)
    anew = sdgpu.fit(X, Y[:, 0] ** 2, KERNEL, lams=0.2)
    assert_allclose(other.path(steps=3).fitted, anew.path(steps=3).fitted, atol=1e-12)
    assert other.info.c == 1
    assert other.path(steps=3).fitted.shape == (3, 21)
    with pytest.raises(ValueError, match="Y"):
        fitted.with_targets(Y[:3])


def test_missing_half_of_the_validation_data(data):
    X, Y = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.2)
    with pytest.raises((TypeError, ValueError), match="Y_val"):
        fitted.sweep(X)
