"""Restricted joint optima against a general optimiser, and the warning when they fit noise."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

import sdgpu
from sdgpu.distill.loss_triangles import merge_rows, step_columns
from sdgpu.selection.restricted_weights import restricted_weights


@pytest.fixture
def problem(rng):
    """Nearly parallel columns u_i (m, T), and targets."""
    m, T = 40, 5
    start = rng.standard_normal((m, 1))
    u = start + 0.5 * np.cumsum(rng.standard_normal((m, T)) * 0.4 ** np.arange(T), axis=1)
    y = u @ np.array([1.5, -1.0, 0.9, -0.7, 0.3]) + 0.3 * rng.standard_normal(m)
    basis = np.concatenate([u[:, :1], np.diff(u, axis=1)], axis=1)
    return u, y, np.asarray(merge_rows(None, step_columns(basis, y)))


@pytest.mark.parametrize("box", [(0.0, 1.0), (-0.5, 1.2)])
def test_a_box_against_a_general_optimiser(problem, box):
    u, y, triangle = problem
    found = restricted_weights(triangle, ridge=0.0, box=box, terms=None)
    for t in range(2, 6):
        own = u[:, :t]
        wanted = minimize(
            lambda c, own=own: np.sum((own @ c - y) ** 2),
            np.full(t, 1 / t),
            method="SLSQP",
            jac=lambda c, own=own: 2 * own.T @ (own @ c - y),
            bounds=[box] * t,
            constraints={
                "type": "eq",
                "fun": lambda c: c.sum() - 1,
                "jac": lambda c: np.ones_like(c),
            },
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        assert found.losses[t - 1] <= wanted.fun * (1 + 1e-6)
        assert_allclose(found.losses[t - 1], wanted.fun, rtol=1e-5)
    assert_allclose(found.coefficients.sum(), 1)
    assert found.coefficients.min() >= box[0] - 1e-12
    assert found.coefficients.max() <= box[1] + 1e-12


def test_the_unit_box_is_all_classical_schedules(problem):
    _, _, triangle = problem
    found = restricted_weights(triangle, ridge=0.0, box=(0.0, 1.0), terms=None)
    assert ((found.alphas >= -1e-12) & (found.alphas <= 1 + 1e-12)).all()


def test_few_terms_are_the_best_subset(problem):
    u, y, triangle = problem
    found = restricted_weights(triangle, ridge=0.0, box=None, terms=2)
    assert np.count_nonzero(found.coefficients) == 2
    losses = []
    for i in range(5):
        for j in range(i + 1, 5):
            d = u[:, j] - u[:, i]
            e = y - u[:, i]
            losses.append(np.sum((e - d * (d @ e) / (d @ d)) ** 2))
    assert_allclose(found.losses[-1], min(losses), rtol=1e-9)


def test_without_restrictions_it_is_the_joint_optimum(problem):
    _, _, triangle = problem
    free = restricted_weights(triangle, ridge=0.0, box=None, terms=None)
    wide = restricted_weights(triangle, ridge=0.0, box=(-1e3, 1e3), terms=None)
    assert_allclose(wide.losses, free.losses, rtol=1e-6)


def test_the_ridge_is_that_of_the_joint_optimum(problem):
    _, _, triangle = problem
    for ridge in (1e-3, 0.1):
        free = restricted_weights(triangle, ridge=ridge, box=None, terms=None)
        for box, terms in (((-1e3, 1e3), None), (None, 5)):
            same = restricted_weights(triangle, ridge=ridge, box=box, terms=terms)
            assert_allclose(same.tails, free.tails, rtol=1e-9, atol=1e-12)
            assert_allclose(same.coefficients, free.coefficients, rtol=1e-8, atol=1e-10)


def noisy(rng, m):
    X = rng.standard_normal((60, 2))
    y = np.sin(2 * X[:, 0]) + 0.1 * rng.standard_normal(60)
    new = rng.standard_normal((m, 2))
    return X, y, new, np.sin(2 * new[:, 0]) + 2.0 * rng.standard_normal(m)


def test_noise_is_found_by_nested_validation(rng):
    X, y, new, targets = noisy(rng, 15)
    fitted = sdgpu.fit(X, y, sdgpu.Gaussian(0.5), lams=0.1)
    with pytest.warns(UserWarning, match="it fits noise"):
        found = fitted.joint_alphas(new, targets, steps=8)
    assert found.mse[-1] < found.mse[0]
    assert found.nested_mse[-1] > found.nested_mse.min()
    assert "fits noise" in found.status


def test_nested_losses_are_those_of_separate_choices(rng):
    X, y, new, targets = noisy(rng, 23)
    fitted = sdgpu.fit(X, y, sdgpu.Gaussian(0.5), lams=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fitted.joint_alphas(new, targets, steps=3)
    total = 0.0
    for f in range(5):
        rows = np.arange(23) % 5 == f
        alphas = fitted.joint_alphas(new[~rows], targets[~rows], steps=3, folds=1).alphas
        total += np.sum(
            (fitted.path(alphas=alphas, steps=3).predict(new[rows])[-1] - targets[rows]) ** 2
        )
    assert_allclose(found.nested_mse[-1], total / 23, rtol=1e-6)


def test_leave_one_out_and_few_rows(rng):
    X, y, new, targets = noisy(rng, 6)
    fitted = sdgpu.fit(X, y, sdgpu.Gaussian(0.5), lams=0.1)
    assert np.isnan(fitted.joint_alphas(new, targets, steps=2).nested_mse).all()
    boxed = fitted.joint_alphas(steps=4, box=(0, 1), terms=3)
    assert boxed.alphas.min() >= -1e-12
    assert np.isfinite(boxed.nested_mse).all()


def test_bad_restrictions(rng):
    X, y, new, targets = noisy(rng, 6)
    fitted = sdgpu.fit(X, y, sdgpu.Gaussian(0.5), lams=0.1)
    with pytest.raises(ValueError, match=r"box=\(0.2, 1\)"):
        fitted.joint_alphas(new, targets, steps=3, box=(0.2, 1))
    with pytest.raises(TypeError, match="pair"):
        fitted.joint_alphas(new, targets, steps=3, box=0.5)
    with pytest.raises(ValueError, match="terms=4 of steps=3"):
        fitted.joint_alphas(new, targets, steps=3, terms=4)
    with pytest.raises(ValueError, match="subsets"):
        fitted.joint_alphas(new, targets, steps=40, terms=12)
    with pytest.raises(ValueError, match="folds"):
        fitted.joint_alphas(new, targets, steps=3, folds=0)


def test_only_chains_that_can_be_carried_out_are_promised():
    """The linear kernel of diabetes: weights of -1.3e12, a claimed loss that no path delivers."""
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    fit = sdgpu.fit(X[:300], y[:300], "linear", lams=np.geomspace(1e-4, 1e4, 8))
    data = fit.sweep(X[300:], y[300:], steps=10).dataset
    mse = data["joint_mse"].values
    assert (np.diff(mse, axis=1) <= 1e-12 * mse[:, :1]).all()
    for i, lam in enumerate(fit.lams):
        for step in (2, 5, 10):
            alphas = data["joint_alpha"].isel(lam=i).sel(chain=step, step=slice(2, step)).values
            found = fit.path(lam, alphas, step).predict(X[300:])[-1]
            reached = np.mean((found - y[300:]) ** 2)
            assert reached <= 1.03 * mse[i, step - 1]


def test_a_joint_optimum_that_no_path_delivers_is_not_given(rng):
    X, y = rng.standard_normal((90, 3)), rng.standard_normal(90)
    fit = sdgpu.fit(X[:60], y[:60], "linear", lams=1e3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit.joint_alphas(X[60:], y[60:], steps=8)
    reached = np.mean((fit.path(alphas=found.alphas, steps=8).predict(X[60:])[-1] - y[60:]) ** 2)
    assert reached <= 1.03 * found.mse[-1]


def test_weights_that_do_not_stand_the_move_to_all_rows(rng):
    X = rng.uniform(size=(80, 1))
    y = np.sin(6 * X[:, 0]) + 0.15 * rng.standard_normal(80)
    model = sdgpu.SelfDistillationRegressorCV("poly", over="joint", steps=10, random_state=0)
    with pytest.warns(UserWarning, match="fixed weights are taken"):
        model.fit(X, y)
    assert np.mean((model.predict(X) - y) ** 2) < 0.1
    assert model.best_.criterion == "mse"


def test_products_of_weights_decide_what_overflows():
    from sdgpu.backend.checks import schedule

    schedule([-1.3e12, *[0.5] * 8], 10)  # one large weight is no overflow
    with pytest.raises(ValueError, match="overflow"):
        schedule([-1e30] * 5, 6)


@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_the_ridge_has_no_unit(rng, box):
    """It was multiplied by the squared error of step 1: weights depended on the unit of the targets."""
    X, y = rng.standard_normal((90, 3)), rng.standard_normal(90)
    found = [
        sdgpu.fit(X[:60], scale * y[:60], lams=0.5)
        .joint_alphas(X[60:], scale * y[60:], steps=4, ridge=1e-3, box=box, folds=1)
        .coefficients
        for scale in (1.0, 37.0, 1e-3)
    ]
    assert_allclose(found[1], found[0], rtol=1e-8, atol=1e-10)
    assert_allclose(found[2], found[0], rtol=1e-8, atol=1e-10)
