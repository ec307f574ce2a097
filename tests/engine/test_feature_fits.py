"""Answers of fits with `features=`: those of the exact engine with K = Phi Phi', and of refits of it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from tests.problems import assert_near, refits

N, M, D, C, T = 40, 17, 3, 2, 4
RNG = np.random.default_rng(8)
X, X_NEW = RNG.standard_normal((N, D)), RNG.standard_normal((M, D))


def truth(rows):
    return np.sin(2 * rows[:, :C]) + 0.2 * np.cos(rows).sum(axis=1, keepdims=True) + [1.0, -3.0]


Y = truth(X) + 0.3 * RNG.standard_normal((N, C))
Y_NEW = truth(X_NEW) + 0.3 * RNG.standard_normal((M, C))
LAMS, ALPHAS = np.array([0.3, 0.02, 4.0]), np.array([-0.4, 0.0, 0.3, 1.0, 1.5])
SCHEDULE = np.array([0.3, -0.2, 1.1])
PER_OUTPUT = np.array([[0.3, 0.9], [-0.2, 0.0], [1.1, 0.5]])
MODELS = {
    "nystrom": (sdgpu.Gaussian(0.4), sdgpu.Nystrom(landmarks=X[:9])),
    "own": (sdgpu.Polynomial(2, 0.3), sdgpu.Explicit()),
    "fourier": (2.0 * sdgpu.Matern(1.5, 1.2), sdgpu.RandomFourier(14)),
    "more features than rows": (sdgpu.Laplacian(0.3), sdgpu.RandomFourier(60)),
}


@dataclass(frozen=True)
class Dense:
    """K = Phi Phi' of a model, less the means with an intercept."""

    Phi: np.ndarray
    Phi_new: np.ndarray
    Y: np.ndarray
    intercept: bool

    @property
    def mean(self):
        return self.Y.mean(axis=0) if self.intercept else np.zeros(self.Y.shape[1])

    def part(self, rows):
        return Dense(self.Phi[rows], self.Phi_new, self.Y[rows], self.intercept)

    def centred(self, Phi):
        return Phi - self.Phi.mean(axis=0) if self.intercept else Phi

    @property
    def gram(self):
        return self.centred(self.Phi) @ self.centred(self.Phi).T

    @property
    def cross(self):
        return self.centred(self.Phi_new) @ self.centred(self.Phi).T

    def steps(self, Phi, lam, alphas, steps=T):
        """Predictions of refits at other features, (T, m, c)."""
        alphas = np.broadcast_to(np.asarray(alphas, dtype=float).T, (self.Y.shape[1], steps - 1))
        cross = self.centred(Phi) @ self.centred(self.Phi).T
        found = [
            cross @ refits(self.gram, (self.Y - self.mean)[:, j : j + 1], lam, alphas[j], steps)[1]
            for j in range(self.Y.shape[1])
        ]
        return np.concatenate(found, axis=-1) + self.mean

    def without_each(self, lam, alphas, steps=T):
        """Predictions at each row by refits without it, (T, n, c)."""
        found = np.empty((steps, *self.Y.shape))
        for i in range(len(self.Y)):
            others = np.delete(np.arange(len(self.Y)), i)
            found[:, i] = self.part(others).steps(self.Phi[i : i + 1], lam, alphas, steps)[:, 0]
        return found

    def smoothers(self, lam, alpha, steps=T):
        """Matrices from targets to predictions of each step, the mean included."""
        n = len(self.Y)
        H = self.gram @ np.linalg.inv(self.gram + lam * np.eye(n))
        S = [H]
        for _ in range(steps - 1):
            S.append(H @ (alpha * np.eye(n) + (1 - alpha) * S[-1]))
        centre = np.full((n, n), 1 / n) if self.intercept else np.zeros((n, n))
        return [centre + s @ (np.eye(n) - centre) for s in S]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture(params=[False, True], ids=["plain", "intercept"])
def intercept(request):
    return request.param


@pytest.fixture
def fitted(model, intercept):
    kernel, features = model
    return sdgpu.fit(X, Y, kernel, LAMS, features=features, intercept=intercept)


@pytest.fixture
def dense(model, intercept):
    kernel, features = model
    phi = features.prepare(kernel, None, D, 0)
    return Dense(phi.transform(X), phi.transform(X_NEW), Y, intercept)


@pytest.fixture
def exact(dense):
    """The fit of the n x n matrix, of targets less their means."""
    fit = sdgpu.fit(dense.gram, Y - dense.mean, "precomputed", LAMS, method="eigh")
    return fit, dense.cross, Y_NEW - dense.mean


@pytest.mark.parametrize("alphas", [0.0, 0.3, SCHEDULE, PER_OUTPUT], ids=str)
def test_paths(fitted, dense, alphas):
    for lam in LAMS:
        path = fitted.path(lam, alphas, T)
        wanted = dense.steps(dense.Phi_new, lam, alphas)
        assert_near(path.predict(X_NEW), wanted, rtol=1e-8)
        assert_near(path.predict(X), dense.steps(dense.Phi, lam, alphas), rtol=1e-8)
        assert_near(path.predictor(2).predict(X_NEW), wanted[1], rtol=1e-8)
        assert path.predict(X_NEW[:0]).shape == (T, 0, C)
        assert path.dual.shape == (T, fitted.info.k, C)
        assert path.steps == T


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.01, 1.7, 0.0])
def test_limits_are_ridge(fitted, dense, alpha):
    for lam in LAMS:
        limit = fitted.limit(lam, alpha)
        wanted = np.broadcast_to(dense.mean, (M, C))
        if alpha:
            wanted = dense.steps(dense.Phi_new, lam / alpha, 0.0, 1)[0]
        assert_near(limit.predict(X_NEW), wanted, rtol=1e-8)
        assert limit.dual.shape == (fitted.info.k, C)
    with pytest.raises(ValueError, match="alpha=-90 has no limit"):
        fitted.limit(0.02, -90.0)


def test_sweeps_are_those_of_the_matrix(fitted, dense, exact):
    exact_fit, K_new, Y_new = exact
    found = fitted.sweep(X_NEW, Y_NEW, alphas=ALPHAS, steps=T).dataset
    wanted = exact_fit.sweep(K_new, Y_new, alphas=ALPHAS, steps=T).dataset
    for name in ("mse", "train_mse", "limit_mse", "ridge_mse", "star_mse", "clipped_mse"):
        assert_allclose(found[name], wanted[name], rtol=1e-7)
    assert_allclose(found["joint_mse"], wanted["joint_mse"], rtol=1e-5)  # flat where it is best
    assert_near(found["alpha_star"][:, 1:], wanted["alpha_star"][:, 1:], rtol=1e-5)
    assert (found["mse_error"] == 0).all()
    assert found.attrs["validation_rows"] == M
    for lam in LAMS:
        for alpha in ALPHAS:
            point = found.sel(lam=lam, alpha=alpha)
            errors = dense.steps(dense.Phi_new, lam, alpha) - Y_NEW
            assert_allclose(point["mse"], (errors**2).mean(axis=(1, 2)), rtol=1e-7)
            for step, S in enumerate(dense.smoothers(lam, alpha)):
                train = ((Y - S @ Y) ** 2).mean()
                assert_allclose(point["train_mse"][step], train, rtol=1e-7)
                assert_allclose(point["degrees_of_freedom"][step], np.trace(S), rtol=1e-8)
                gcv = train / (1 - np.trace(S) / N) ** 2
                assert_allclose(point["gcv"][step], gcv, rtol=1e-7)


def test_limits_of_the_grid(fitted):
    found = fitted.sweep(X_NEW, Y_NEW, alphas=[0.0, 0.25, 1.0, 3.0], steps=2).dataset["limit_mse"]
    for lam in LAMS:
        for alpha in (0.0, 0.25, 1.0):
            errors = fitted.limit(lam, alpha).predict(X_NEW) - Y_NEW
            assert_allclose(found.sel(lam=lam, alpha=alpha), (errors**2).mean(), rtol=1e-9)
    assert np.isnan(found.sel(lam=0.02, alpha=3.0))


@pytest.mark.parametrize("how", [{}, {"clip": True}, {"per_output": True}], ids=str)
def test_the_best_weight_of_each_step(fitted, exact, how):
    exact_fit, K_new, Y_new = exact
    for lam in LAMS:
        found = fitted.optimal_alphas(X_NEW, Y_NEW, lam, T, **how)
        wanted = exact_fit.optimal_alphas(K_new, Y_new, lam, T, **how)
        assert_near(found.alphas, wanted.alphas, rtol=1e-5)
        assert_allclose(found.mse, wanted.mse, rtol=1e-8)
        reached = fitted.path(lam, found.alphas, T).predict(X_NEW) - Y_NEW
        assert_allclose(found.mse, (reached**2).mean(axis=(1, 2)), rtol=1e-7)


@pytest.mark.parametrize("how", [{}, {"ridge": 1e-3}, {"box": (0, 1)}, {"terms": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_the_best_weights_of_all_steps(fitted, exact, how):
    exact_fit, K_new, Y_new = exact
    found = fitted.joint_alphas(X_NEW, Y_NEW, 0.3, 3, **how)
    wanted = exact_fit.joint_alphas(K_new, Y_new, 0.3, 3, **how)
    assert_allclose(found.mse, wanted.mse, rtol=1e-7)
    assert_allclose(found.nested_mse, wanted.nested_mse, rtol=1e-5)
    reached = fitted.path(0.3, found.alphas, 3).predict(X_NEW)[-1] - Y_NEW
    assert_allclose(found.mse[-1], (reached**2).mean(), rtol=1e-6)


@pytest.mark.parametrize("per_output", [False, True])
def test_one_shot_weights(fitted, dense, per_output, request):
    S = dense.smoothers(0.3, 0.0)[:2]
    left = [(Y - s @ Y) / (1 - np.trace(s) / N) for s in S]

    def risk(alpha):
        scores = ((alpha * left[0] + (1 - alpha) * left[1]) ** 2).mean(axis=0)
        return scores if per_output else scores.mean()

    found = fitted.gcv(0.3, per_output=per_output)
    assert_allclose(found.score, risk(found.alpha), rtol=1e-7)
    assert_allclose(found.ridge_score, risk(1.0), rtol=1e-7)
    assert_allclose(found.distilled_score, risk(0.0), rtol=1e-7)
    for change in (-1e-3, 1e-3):
        assert (risk(found.alpha + change) > found.score).all()
    assert_allclose(fitted.gcv(per_output=per_output).alpha[0], found.alpha)
    assert np.all(found.score_error == 0)


def test_the_grid_by_generalised_cross_validation(fitted):
    alone = fitted.gcv_sweep(alphas=ALPHAS, steps=T).dataset
    beside = fitted.sweep(X_NEW, Y_NEW, alphas=ALPHAS, steps=T).dataset
    for name in ("gcv", "degrees_of_freedom", "train_mse"):
        assert_allclose(alone[name], beside[name], rtol=1e-12)
    assert (alone["gcv_error"] == 0).all()


@pytest.mark.parametrize("alphas", [0.3, SCHEDULE, PER_OUTPUT], ids=str)
def test_rows_left_out_are_refits(fitted, dense, alphas):
    for lam in LAMS[:2]:
        assert_near(fitted.loo(lam, alphas, T), dense.without_each(lam, alphas), rtol=1e-7)
    error = fitted.loo(0.3, alphas, T, return_std=True)[1]
    assert error.shape == (T, N, C)
    assert not error.any()


def test_sweeps_without_validation_rows(fitted, dense):
    lams, alphas = [0.3, 4.0], [0.0, 0.4]
    found = fitted.sweep(lams=lams, alphas=alphas, steps=T).dataset
    for lam in lams:
        for alpha in alphas:
            errors = dense.without_each(lam, alpha) - Y
            mse = found["mse"].sel(lam=lam, alpha=alpha)
            assert_allclose(mse, (errors**2).mean(axis=(1, 2)), rtol=1e-7)
        ridge = dense.without_each(lam / 0.4, 0.0, 1)[0] - Y
        assert_allclose(found["limit_mse"].sel(lam=lam, alpha=0.4), (ridge**2).mean(), rtol=1e-7)
    assert found.attrs["validation_rows"] == N


@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_weights_without_validation_rows(fitted):
    lam = 0.3

    def loss(alphas, steps=3):
        return ((fitted.loo(lam, alphas, steps) - Y) ** 2).mean(axis=(1, 2))

    greedy = fitted.optimal_alphas(lam=lam, steps=3)
    joint = fitted.joint_alphas(lam=lam, steps=3)
    assert_allclose(greedy.mse, loss(greedy.alphas), rtol=1e-7)
    assert_allclose(joint.mse[-1], loss(joint.alphas)[-1], rtol=1e-5)
    for change in (-1e-3, 1e-3):
        assert loss(greedy.alphas + np.array([change, 0]))[1] > greedy.mse[1]
    assert joint.mse[-1] <= greedy.mse[-1] * (1 + 1e-9)
    each = fitted.optimal_alphas(lam=lam, steps=2, per_output=True)
    assert_allclose(each.mse, loss(each.alphas, 2), rtol=1e-7)
    assert each.mse[1] <= greedy.mse[1] * (1 + 1e-9)


def test_the_collapse_without_validation_rows(fitted, dense):
    """To the mean of the other rows with an intercept, else to 0."""
    found = fitted.sweep(alphas=[0.0, 0.4], steps=2).dataset["limit_mse"].sel(alpha=0.0)
    means = [dense.part(np.delete(np.arange(N), i)).mean for i in range(N)]
    assert_allclose(found, np.full(3, ((np.array(means) - Y) ** 2).mean()), rtol=1e-9)


TIMES = np.random.default_rng(3).integers(0, 4, N)


def test_weights_are_repeated_rows(model, intercept):
    kernel, features = model
    how = {"features": features, "intercept": intercept}
    weighted = sdgpu.fit(X, Y, kernel, LAMS, sample_weight=TIMES, **how)
    repeated = sdgpu.fit(
        np.repeat(X, TIMES, axis=0), np.repeat(Y, TIMES, axis=0), kernel, LAMS, **how
    )
    for lam in LAMS:
        found, wanted = (fit.path(lam, SCHEDULE, T) for fit in (weighted, repeated))
        assert_near(found.predict(X_NEW), wanted.predict(X_NEW), rtol=1e-8)
        found, wanted = (fit.limit(lam, 0.3).predict(X_NEW) for fit in (weighted, repeated))
        assert_near(found, wanted, rtol=1e-8)
    phi = features.prepare(kernel, None, D, 0)
    rows = np.repeat(np.arange(N), TIMES)
    dense = Dense(phi.transform(X)[rows], phi.transform(X_NEW), Y[rows], intercept)
    wanted = dense.steps(dense.Phi_new, 0.3, SCHEDULE)
    assert_near(weighted.path(0.3, SCHEDULE, T).predict(X_NEW), wanted, rtol=1e-8)
    assert (weighted.info.n, repeated.info.n) == (N, TIMES.sum())


def test_metrics_see_targets_as_they_are(model, intercept):
    kernel, features = model
    labels, labels_new = ((truth(rows)[:, 0] > 1).astype(int) for rows in (X, X_NEW))
    one_hot, one_hot_new = np.eye(2)[labels], np.eye(2)[labels_new]
    fitted = sdgpu.fit(X, one_hot, kernel, LAMS, features=features, intercept=intercept)
    sweep = fitted.sweep(X_NEW, one_hot_new, alphas=ALPHAS, steps=T, metrics=["mae", "accuracy"])
    alone = fitted.sweep(alphas=ALPHAS, steps=T, metrics=["mae", "accuracy"])
    for lam in LAMS:
        for alpha in ALPHAS:
            for dataset, values, wanted in (
                (sweep.dataset, fitted.path(lam, alpha, T).predict(X_NEW), one_hot_new),
                (alone.dataset, fitted.loo(lam, alpha, T), one_hot),
            ):
                point, right = dataset.sel(lam=lam, alpha=alpha), wanted.argmax(axis=1)
                assert_allclose(point["mae"], abs(values - wanted).mean(axis=(1, 2)), rtol=1e-9)
                found = (values.argmax(axis=2) == right).mean(axis=1)
                assert_allclose(point["accuracy"], found)
    with pytest.raises(ValueError, match="Y_val is not one-hot"):
        fitted.sweep(X_NEW, Y_NEW, classes=True)


def test_one_target_has_no_axis(fitted, model, intercept):
    kernel, features = model
    flat = sdgpu.fit(X, Y[:, 0], kernel, LAMS, features=features, intercept=intercept)
    path, whole = (fit.path(0.3, SCHEDULE, T) for fit in (flat, fitted))
    assert_near(path.predict(X_NEW), whole.predict(X_NEW)[..., 0], rtol=1e-9)
    assert_near(path.dual, whole.dual[..., 0], rtol=1e-9)
    assert_near(flat.loo(0.3, SCHEDULE, T), fitted.loo(0.3, SCHEDULE, T)[..., 0], rtol=1e-9)
    assert flat.limit(0.3).predict(X_NEW).shape == (M,)
    assert flat.optimal_alphas(X_NEW, Y_NEW[:, 0], 0.3, 3).alphas.shape == (2,)
    column = sdgpu.fit(X, Y[:, :1], kernel, LAMS, features=features, intercept=intercept)
    assert column.path(0.3).predict(X_NEW).shape == (2, M, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tensors_in_tensors_out(fitted, model, intercept, dtype):
    kernel, features = model
    tensors = [torch.tensor(array, dtype=dtype) for array in (X, Y, X_NEW, Y_NEW)]
    found = sdgpu.fit(*tensors[:2], kernel, LAMS, features=features, intercept=intercept)
    path = found.path(0.3, SCHEDULE, T)
    rtol = 1e-9 if dtype is torch.float64 else 1e-4
    for value, wanted in (
        (path.predict(tensors[2]), fitted.path(0.3, SCHEDULE, T).predict(X_NEW)),
        (found.limit(0.3, 0.5).predict(tensors[2]), fitted.limit(0.3, 0.5).predict(X_NEW)),
        (found.loo(0.3, SCHEDULE, T), fitted.loo(0.3, SCHEDULE, T)),
    ):
        assert isinstance(value, torch.Tensor)
        assert value.dtype == dtype
        assert_near(value.numpy(), wanted, rtol=rtol)
    assert isinstance(path.dual, torch.Tensor)
    left = found.sweep(*tensors[2:], alphas=ALPHAS, steps=T).dataset["mse"]
    assert_allclose(
        left, fitted.sweep(X_NEW, Y_NEW, alphas=ALPHAS, steps=T).dataset["mse"], rtol=rtol
    )
    with pytest.raises(ValueError, match="X_new is numpy on cpu"):
        path.predict(X_NEW)


def test_variances_are_those_of_the_matrix(fitted, dense, exact):
    exact_fit, K_new, _ = exact
    found = fitted.path(0.3, SCHEDULE, T).variance(X_NEW, noise=0.2)
    prior = (dense.centred(dense.Phi_new) ** 2).sum(axis=1)
    wanted = exact_fit.path(0.3, SCHEDULE, T).variance(K_new, noise=0.2, prior=prior)
    assert_near(found.posterior, wanted.posterior, rtol=1e-7)
    assert_near(found.sampling, wanted.sampling, rtol=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.4, np.clip(SCHEDULE, 0, 1)], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.6, 2.0])
def test_a_tolerance_is_that_of_the_matrix(fitted, dense, exact, alpha, share):
    exact_fit, K_new, _ = exact
    targets, Phi = Y - dense.mean, dense.centred(dense.Phi)
    left = targets - Phi @ np.linalg.lstsq(Phi, targets, rcond=1e-10)[0]
    total, least = (targets**2).sum() / N, (left**2).sum() / N
    eps = least + share * (total - least)
    found, wanted = (
        sdgpu.constrain(fit, eps=eps, alpha=alpha, steps=T) for fit in (fitted, exact_fit)
    )
    lams = [np.nan_to_num(path.lams, posinf=-1.0) for path in (found, wanted)]
    assert_near(*lams, rtol=1e-6)
    assert_near(found.losses, wanted.losses, rtol=1e-8)
    assert found.regime.name == wanted.regime.name
    assert_allclose(found.regime.ratio, wanted.regime.ratio, rtol=1e-9)
    assert_allclose(found.regime.smallest_eps, least, rtol=1e-6, atol=1e-9)
    assert_near(found.predict(X_NEW), wanted.predict(K_new) + dense.mean, rtol=1e-6)
    with pytest.raises(ValueError, match="keeps no training rows"):
        _ = found.fitted
    if least > 1e-3:
        with pytest.raises(ValueError, match="out of reach at step 1"):
            sdgpu.constrain(fitted, eps=0.9 * least)


def test_the_spectrum_is_that_of_the_matrix(fitted, dense, exact):
    delta, k = np.zeros(max(N, fitted.info.k)), fitted.info.k
    delta[-N:] = np.maximum(np.linalg.eigvalsh(dense.gram), 0)
    assert_near(fitted.spectrum.eigenvalues, delta[-k:], rtol=1e-10)
    B = fitted.diagonal(0.3, 0.4, 3)
    a = delta[-k:] / (delta[-k:] + 0.3)
    assert_near(B[1], a * (0.4 + 0.6 * a), rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda fit: fit.path(0.3).fitted, r"path.fitted: a feature model keeps no training rows"),
        (lambda fit: fit.with_targets(Y), "other targets: a feature model keeps no training rows"),
        (lambda fit: fit.path(0.01), "lam=0.01 is below the smallest fitted one, 0.02"),
        (lambda fit: fit.path(), "lam is missing: the fit serves 3 of them"),
        (
            lambda fit: fit.path(0.3).predict(X_NEW[:, :2]),
            "X_new has 2 features, but the fit has 3",
        ),
        (lambda fit: fit.sweep(X_NEW, Y_NEW[:, :1]), "Y_val has 1 outputs, but the fit has 2"),
        (lambda fit: fit.sweep(X_NEW, Y_NEW[1:]), "Y_val has 16 rows, but its inputs have 17"),
        (lambda fit: fit.sweep(X_NEW * np.nan, Y_NEW), "X_val has 51 entries that are NaN"),
        (lambda fit: fit.path(0.3, SCHEDULE, 3), r"alphas has shape \(3,\), but steps=3"),
    ],
)
def test_questions_that_are_refused(fitted, call, words):
    with pytest.raises(ValueError, match=words):
        call(fitted)


def test_limits_have_no_predictions_at_the_training_rows(fitted):
    with pytest.raises(ValueError, match="keeps no training rows"):
        _ = fitted.limit(0.3).fitted


@pytest.mark.parametrize("library", [np.array, torch.tensor])
@pytest.mark.parametrize("features", [sdgpu.Explicit(), sdgpu.Explicit(lambda rows: rows)])
def test_the_callers_rows_stay_as_they_are(library, features):
    """Features that are the rows themselves are not weighted in place."""
    rows, truth = library(X), library(Y)
    weights = np.linspace(0, 2, N)
    sdgpu.fit(rows, truth, sdgpu.Linear(), LAMS, features=features, sample_weight=weights)
    np.testing.assert_array_equal(np.asarray(rows), X)
    np.testing.assert_array_equal(np.asarray(truth), Y)
