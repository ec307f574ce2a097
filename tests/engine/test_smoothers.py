"""Other smoothers than ridge, against what they are: flows, rounds and projections, step by step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch

import sdgpu
from sdgpu.distill.schedules import boosting_schedule
from sdgpu.distill.smoothers import Cutoff, GradientFlow, IteratedTikhonov, Landweber, Tikhonov
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.3)
Dual = Callable[[np.ndarray, float], np.ndarray]


def problem(n: int = 14, c: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(7)
    return tuple(rng.standard_normal(shape) for shape in ((n, 3), (n, c), (6, 3), (6, c)))


def ridge(K: np.ndarray, lam: float) -> np.ndarray:
    return np.linalg.inv(K + lam * np.eye(len(K)))


def flow(K: np.ndarray, lam: float) -> np.ndarray:
    """The integral of exp(-s K / lam) / lam over [0, 1], from the exponential of a larger matrix."""
    n = len(K)
    block = np.block([[-K / lam, np.eye(n)], [np.zeros((n, 2 * n))]])
    return scipy.linalg.expm(block)[:n, n:] / lam


def rounds_of_ridge(K: np.ndarray, lam: float, rounds: int = 2) -> np.ndarray:
    dual, left = np.zeros_like(K), np.eye(len(K))
    for _ in range(rounds):
        dual = dual + ridge(K, lam) @ left
        left = np.eye(len(K)) - K @ dual
    return dual


def descent(K: np.ndarray, lam: float) -> np.ndarray:
    top = np.linalg.eigvalsh(K)[-1]
    dual = np.zeros_like(K)
    for _ in range(round(top / lam)):
        dual = dual + (np.eye(len(K)) - K @ dual) / top
    return dual


def components(K: np.ndarray, lam: float) -> np.ndarray:
    delta, V = np.linalg.eigh(K)
    return V[:, delta >= lam] / delta[delta >= lam] @ V[:, delta >= lam].T


#: What makes the dual coefficients of one fit from its targets, n x n.
TRUTH: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "ridge": ridge,
    "gradient_flow": flow,
    "iterated": rounds_of_ridge,
    "landweber": descent,
    "cutoff": components,
}


def whole_rounds(K: np.ndarray) -> np.ndarray:
    """lam for which gradient descent has whole rounds: 40 and 3."""
    return np.linalg.eigvalsh(K)[-1] / np.array([40.0, 3.0])


def chain(make: Callable, K: np.ndarray, Y: np.ndarray, lam: float, alphas: np.ndarray) -> list:
    """Dual coefficients of all steps, by refits."""
    solve = make(K, lam)
    duals = [solve @ Y]
    for alpha in alphas:
        duals.append(solve @ (alpha * Y + (1 - alpha) * K @ duals[-1]))
    return duals


@pytest.mark.parametrize("name", TRUTH)
def test_steps_are_those_of_refits(name: str) -> None:
    X, Y, X_new, _ = problem()
    K, cross, alphas = KERNEL(X), KERNEL(X_new, X), np.array([0.3, 1.4, -0.2])
    lams = whole_rounds(K)
    fit = sdgpu.fit(X, Y, KERNEL, lams, smoother=name)
    assert fit.info.smoother == name
    for lam in lams:
        duals = np.stack(chain(TRUTH[name], K, Y, lam, alphas))
        path = fit.path(lam, alphas, steps=4)
        assert_near(path.dual, duals, 1e-9)
        assert_near(path.fitted, K @ duals, 1e-9)
        assert_near(path.predict(X_new), cross @ duals, 1e-9)


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.7])
def test_limits_are_where_the_steps_go(name: str, alpha: float) -> None:
    X, Y, _, _ = problem()
    lam = float(whole_rounds(KERNEL(X))[1])
    fit = sdgpu.fit(X, Y, KERNEL, lam, smoother=name)
    far = fit.path(lam, alpha, steps=4000).fitted[-1]
    scale = max(float(np.abs(far).max()), 1e-3)
    np.testing.assert_allclose(fit.limit(lam, alpha).fitted, far, atol=1e-7 * scale)


@pytest.mark.parametrize("name", TRUTH)
def test_sweeps_and_weights(name: str) -> None:
    X, Y, X_val, Y_val = problem()
    K, cross = KERNEL(X), KERNEL(X_val, X)
    lams, alphas = whole_rounds(K), np.array([0.0, 0.25, 1.0, 1.5])
    fit = sdgpu.fit(X, Y, KERNEL, lams, smoother=name)
    found = fit.sweep(X_val, Y_val, alphas=alphas, steps=3).dataset
    assert found.attrs["smoother"] == name
    for i, lam in enumerate(np.sort(lams)):
        for j, alpha in enumerate(alphas):
            duals = chain(TRUTH[name], K, Y, lam, np.full(2, alpha))
            losses = [np.mean((cross @ dual - Y_val) ** 2) for dual in duals]
            assert_near(found["mse"].values[i, j], losses, 1e-9)
            limit = np.mean((fit.limit(lam, alpha).predict(X_val) - Y_val) ** 2)
            np.testing.assert_allclose(found["limit_mse"].values[i, j], limit, rtol=1e-9)
        # the best weight of step 2 by its normal equation
        first, second = (cross @ x for x in chain(TRUTH[name], K, Y, lam, np.zeros(1)))
        difference = first - second
        if np.linalg.norm(difference) > 1e-9:
            star = -np.sum(difference * (second - Y_val)) / np.sum(difference**2)
            found_star = fit.optimal_alphas(X_val, Y_val, lam=lam).alphas[0]
            np.testing.assert_allclose(found_star, star, rtol=1e-7)
            np.testing.assert_allclose(found["alpha_star"].values[i, 1], star, rtol=1e-7)
        mse = fit.joint_alphas(X_val, Y_val, lam=lam, steps=3, folds=1).mse
        assert mse[-1] <= found["star_mse"].values[i, -1] * (1 + 1e-9)


@pytest.mark.parametrize("name", TRUTH)
def test_degrees_of_freedom(name: str) -> None:
    X, Y, _, _ = problem()
    K = KERNEL(X)
    lam = float(whole_rounds(K)[1])
    fit = sdgpu.fit(X, Y, KERNEL, lam, smoother=name)
    if name == "ridge":
        found = fit.gcv_sweep(alphas=[0.5], steps=2).dataset
    else:
        with pytest.warns(UserWarning, match="not consistent"):
            found = fit.gcv_sweep(alphas=[0.5], steps=2).dataset
    H = K @ TRUTH[name](K, lam)
    traces = [np.trace(H), np.trace(0.5 * H + 0.5 * H @ H)]
    assert_near(found["degrees_of_freedom"].values[0, 0], traces, 1e-9)
    residual = Y - H @ Y
    np.testing.assert_allclose(found["train_mse"].values[0, 0, 0], np.mean(residual**2), rtol=1e-9)


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_boosting_is_self_distillation(rounds: int) -> None:
    """m steps with the weights m / (m - t + 1) are m rounds of ridge on the residuals."""
    X, Y, X_new, _ = problem()
    lam = 0.3
    boosted = sdgpu.fit(X, Y, KERNEL, lam, smoother=IteratedTikhonov(rounds))
    distilled = sdgpu.fit(X, Y, KERNEL, lam).path(lam, boosting_schedule(rounds), steps=rounds)
    truth = KERNEL(X_new, X) @ rounds_of_ridge(KERNEL(X), lam, rounds) @ Y
    assert_near(boosted.path(lam, steps=1).predict(X_new)[0], truth, 1e-9)
    assert_near(distilled.predict(X_new)[-1], truth, 1e-9)


@pytest.mark.parametrize("name", TRUTH)
def test_features_weights_and_an_intercept(name: str) -> None:
    """The same smoother of the centred, weighted feature matrix, written out."""
    X, Y, X_new, _ = problem(40)
    weights = np.random.default_rng(1).uniform(0.5, 2, 40)
    features = sdgpu.Nystrom(landmarks=X[:8])
    how = {"sample_weight": weights, "intercept": True, "smoother": name}
    fit = sdgpu.fit(X, Y, KERNEL, 0.7, features=features, **how)
    dense = sdgpu.fit(X, Y, KERNEL, 0.7, method="eigh", **how)
    delta, V = np.linalg.eigh(KERNEL(X[:8]))
    whiten = V / np.sqrt(delta)
    Phi, new = KERNEL(X, X[:8]) @ whiten, KERNEL(X_new, X[:8]) @ whiten
    for model, rows, new_rows, near in (
        (fit, Phi @ Phi.T, new @ Phi.T, 1e-6),
        (dense, KERNEL(X), KERNEL(X_new, X), 1e-9),
    ):
        roots, share = np.sqrt(weights), weights / weights.sum()
        P = np.eye(40) - np.outer(roots, roots) / weights.sum()
        K = P @ (roots[:, None] * rows * roots) @ P
        lam = 0.7
        if name == "landweber":  # rounds that are not whole: by the matrix power
            top, vectors = np.linalg.eigh(K)
            g = 1 - np.clip(1 - top / top[-1], 0, 1) ** (top[-1] / lam)
            inverse = np.divide(g, top, out=np.full_like(g, 1 / lam), where=np.abs(top) > 1e-12)
            solve = (vectors * inverse) @ vectors.T
        else:
            solve = TRUTH[name](K, lam)
        target = P @ (roots[:, None] * Y)
        dual = roots[:, None] * (P @ (solve @ target))
        fitted = rows @ dual
        offset = share @ (Y - fitted)
        truth = new_rows @ dual + offset
        assert_near(model.path(lam, steps=1).predict(X_new)[0], truth, near)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries_and_precisions(library: str, dtype: str) -> None:
    X, Y, X_new, _ = (x.astype(dtype) for x in problem())
    arrays = (X, Y, X_new) if library == "numpy" else tuple(map(torch.from_numpy, (X, Y, X_new)))
    truth = KERNEL(X_new.astype(float), X.astype(float)) @ flow(KERNEL(X.astype(float)), 0.4) @ Y
    found = sdgpu.fit(*arrays[:2], KERNEL, 0.4, smoother="gradient_flow").path(0.4, steps=1)
    predicted = found.predict(arrays[2])[0]
    assert str(predicted.dtype).endswith(dtype)
    assert_near(np.asarray(predicted), truth, 1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("smoother", [GradientFlow(), IteratedTikhonov(5), Landweber(), Cutoff()])
@pytest.mark.parametrize("lam", [1e-12, 1e-3, 1.0, 1e12])
def test_every_lam_of_every_spectrum(smoother, lam) -> None:
    """g in [0, 1], g + (1 - g) = 1, g / delta within its slope; eigenvalues over 24 decades, and zeros."""
    delta = np.concatenate([[0.0, 0.0], np.geomspace(1e-12, 1.0, 30)])
    for eigenvalues in (delta, np.zeros(3), np.ones(1), delta * 1e150, delta * 1e-150):
        largest = float(eigenvalues[-1]) or 1.0
        ridge_lam = lam * largest
        with np.errstate(all="ignore"):
            g, rest, dual = (
                getattr(smoother, what)(eigenvalues, ridge_lam)
                for what in ("shrinkage", "complement", "dual")
            )
        for values in (g, rest, dual):
            assert np.isfinite(values).all()
            assert (values >= 0).all()
        assert (g <= 1).all()
        np.testing.assert_allclose(g + rest, 1.0, atol=1e-15)
        np.testing.assert_allclose(dual * eigenvalues, g, atol=1e-15)
        # Landweber with less than one round has g = 1 for the largest
        slope = smoother.slope * max(1.0, lam) / ridge_lam
        assert (dual <= slope * (1 + 1e-12)).all()
        assert (np.diff(g) >= -1e-15).all()


def test_one_decomposition_serves_all() -> None:
    X, Y, X_new, _ = problem()
    fit = sdgpu.fit(X, Y, KERNEL, 0.2)
    for name in TRUTH:
        once = fit.with_smoother(name)
        anew = sdgpu.fit(X, Y, KERNEL, 0.2, smoother=name, method="eigh")
        assert_near(once.path(0.2).predict(X_new), anew.path(0.2).predict(X_new), 1e-13)
        assert_near(once.diagonal(0.2), anew.diagonal(0.2), 1e-13)
    back = fit.with_smoother(IteratedTikhonov(4)).with_smoother("ridge")
    assert back.info == fit.info
    loaded = fit.with_smoother("cutoff").path(0.2).predictor()
    assert_near(loaded.predict(X_new), fit.with_smoother("cutoff").path(0.2).predict(X_new)[-1], 0)


def test_the_flow_is_early_stopping() -> None:
    """lam = n / t: gradient descent of small steps on the mean squared error, stopped at t."""
    X, Y, _, _ = problem()
    K, t, step, n = KERNEL(X), 20.0, 1e-3, 14
    dual = np.zeros_like(Y)
    for _ in range(int(t / step)):
        dual = dual - step * (K @ dual - Y) / n
    found = sdgpu.fit(X, Y, KERNEL, n / t, smoother="gradient_flow").path(n / t, steps=1).dual[0]
    assert_near(found, dual, 1e-3)


def test_a_cut_through_an_eigenvalue_says_so() -> None:
    """Whether an eigenvalue is kept that is lam to its rounding, nobody knows."""
    X, Y, _, _ = problem()
    delta = np.linalg.eigvalsh(KERNEL(X))
    with pytest.warns(UserWarning, match="inaccurate with smoother='cutoff'"):
        fit = sdgpu.fit(X, Y, KERNEL, delta[-3], smoother="cutoff")
    assert fit.info.error_estimate > 0.1
    assert fit.info.status.startswith("inaccurate")
    between = float(np.sqrt(delta[-3] * delta[-4]))
    safe = sdgpu.fit(X, Y, KERNEL, between, smoother="cutoff")
    assert safe.info.error_estimate < 1e-9
    for name in ("gradient_flow", "iterated"):
        assert sdgpu.fit(X, Y, KERNEL, delta[-3], smoother=name).info.error_estimate < 1e-9


REFUSED = {
    "loo": lambda fit, X: fit.loo(0.2),
    "left-out sweep": lambda fit, X: fit.sweep(),
    "left-out weights": lambda fit, X: fit.optimal_alphas(lam=0.2),
    "one-shot": lambda fit, X: fit.gcv(0.2),
    "variance": lambda fit, X: fit.path(0.2).variance(X),
    "interval": lambda fit, X: fit.path(0.2).interval(X),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_of_ridge_alone(what: str) -> None:
    X, Y, X_new, _ = problem()
    fit = sdgpu.fit(X, Y, KERNEL, 0.2, smoother="gradient_flow")
    with pytest.raises(
        ValueError, match=r"of ridge alone, and this fit has smoother='gradient_flow'"
    ):
        REFUSED[what](fit, X_new)


def test_refusals() -> None:
    X, Y, _, _ = problem()
    with pytest.raises(ValueError, match="smoother='flow' is unknown: take one of 'ridge'"):
        sdgpu.fit(X, Y, KERNEL, 0.2, smoother="flow")
    with pytest.raises(TypeError, match="has no name, projects, slope"):
        sdgpu.fit(X, Y, KERNEL, 0.2, smoother=3)
    with pytest.raises(TypeError, match="has no parameters"):
        sdgpu.fit(X, Y, KERNEL, 0.2, smoother=Tikhonov)
    with pytest.raises(ValueError, match="rounds=0 must be a whole number >= 1"):
        IteratedTikhonov(0)
    for method in ("lanczos", "subspace", "cg"):
        with pytest.raises(ValueError, match=r"smoother='cutoff' needs all eigenvalues"):
            sdgpu.fit(X, Y, KERNEL, 0.2, smoother="cutoff", method=method)
        grown = sdgpu.fit(*problem(150)[:2], KERNEL, 5.0, method=method, tol=1e-2)
        with pytest.raises(ValueError, match="needs"):
            grown.with_smoother("cutoff")
    with pytest.raises(ValueError, match="lams must be > 0"):
        sdgpu.fit(X, Y, KERNEL, -1.0, smoother="gradient_flow")


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("kind", ["eigh", "primal", "features"])
def test_a_lam_for_each_step(name: str, kind: str) -> None:
    """Each step solved with its own lam; weights shared, and one schedule for each output."""
    X, Y, X_new, _ = problem(40)
    kernel = KERNEL if kind == "eigh" else sdgpu.Linear() + sdgpu.Linear() * sdgpu.Linear()
    K = kernel(X)
    lams = np.linalg.eigvalsh(K)[-1] / np.array([5.0, 2.0, 7.0])
    how = {"features": sdgpu.Explicit()} if kind == "features" else {"method": kind}
    fit = sdgpu.fit(X, Y, kernel, lams, smoother=name, **how)
    for alphas in (np.array([0.4, -0.3]), np.array([[0.4, 1.3], [-0.3, 0.0]])):
        duals = [TRUTH[name](K, lams[0]) @ Y]
        for lam, alpha in zip(lams[1:], alphas, strict=True):
            target = alpha * Y + (1 - alpha) * (K @ duals[-1])
            duals.append(TRUTH[name](K, lam) @ target)
        path = fit.path(lams, alphas, steps=3)
        assert_near(path.predict(X_new), kernel(X_new, X) @ np.stack(duals), 1e-8)
        if kind != "features":
            assert_near(path.fitted, K @ np.stack(duals), 1e-8)
    with pytest.raises(ValueError, match="lam has 3 entries for steps=2: give one for each step"):
        fit.path(lams)
    with pytest.raises(ValueError, match="is below the smallest fitted one"):
        fit.path(lams / 10, steps=3)
    if name == "ridge":
        with pytest.raises(ValueError, match="this path has one for each step"):
            fit.path(lams, steps=3).interval(X_new)


def test_a_lam_for_each_step_needs_all_eigenvalues() -> None:
    X, Y, _, _ = problem(150)
    for method in ("subspace", "lanczos", "cg"):
        grown = sdgpu.fit(X, Y, KERNEL, 5.0, method=method, tol=1e-2)
        with pytest.raises(ValueError, match="one for each step needs all eigenvalues"):
            grown.path([5.0, 6.0])


@pytest.mark.parametrize("name", ["ridge", "gradient_flow", "iterated", "landweber", "cutoff"])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_lam_0_is_the_fit_of_least_norm_with_every_smoother(name: str, scale: float) -> None:
    """Endless time, endless rounds: the same interpolation, without an overflow on the way."""
    X = np.random.default_rng(0).normal(size=(25, 2))
    y = np.sin(X[:, 0])
    kernel = scale * sdgpu.Gaussian(1.0)
    with np.errstate(all="raise", under="ignore"):
        fitted = sdgpu.fit(X, y, kernel, lams=0, smoother=name)
        path = fitted.path(0.0, 0.5, steps=3)
        limit = fitted.limit(0.0, 0.5)
    dual = np.linalg.solve(kernel(X, X) / scale, y)
    for step in range(3):
        assert_near(path.fitted[step], y, rtol=1e-7)
        assert_near(path.predict(X + 0.1)[step], sdgpu.Gaussian(1.0)(X + 0.1, X) @ dual, rtol=1e-6)
    assert_near(limit.fitted, y, rtol=1e-7)
