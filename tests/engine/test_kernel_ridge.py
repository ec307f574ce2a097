"""scikit-learn's own tests of KernelRidge on a subclass that calls lam alpha; the fit of least norm."""

import numpy as np
import pytest
from sklearn.tests import test_kernel_ridge as theirs

import sdgpu

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(30, 4)), RNG.normal(size=(5, 4))
Y = RNG.normal(size=(30, 2))


class KernelRidge(sdgpu.SelfDistillationRegressor):
    """With the names and defaults of scikit-learn."""

    def __init__(self, alpha=1, *, kernel="linear", gamma=None, degree=3, coef0=1):
        super().__init__(kernel, gamma, alpha, steps=1, degree=degree, coef0=coef0)
        self.alpha = alpha

    def _learn(self, X, Y, weights):
        self.lam = self.alpha
        super()._learn(X, Y, weights)


NAMES = [name for name in dir(theirs) if name.startswith("test_") and "sparse" not in name]


@pytest.mark.parametrize("name", NAMES)
def test_theirs(monkeypatch, name):
    monkeypatch.setattr(theirs, "KernelRidge", KernelRidge)
    getattr(theirs, name)()


@pytest.mark.parametrize("container", [*theirs.CSR_CONTAINERS, *theirs.CSC_CONTAINERS])
def test_theirs_of_sparse_rows(monkeypatch, container):
    monkeypatch.setattr(theirs, "KernelRidge", KernelRidge)
    theirs.test_kernel_ridge_sparse(container)


@pytest.mark.parametrize("method", ["auto", "eigh", "primal"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_least_norm_is_the_pseudo_inverse(method, intercept, weighted):
    """Of a linear kernel: NumPy's least squares, at every step."""
    w = RNG.uniform(0.5, 2.0, 30) if weighted else np.ones(30)
    how = {"sample_weight": w if weighted else None, "intercept": intercept, "method": method}
    fit = sdgpu.fit(X, Y, "linear", 0, **how)
    root = np.sqrt(w)[:, None]
    mean_x, mean_y = (w @ A / w.sum() if intercept else 0 * A[0] for A in (X, Y))
    beta = np.linalg.lstsq(root * (X - mean_x), root * (Y - mean_y), rcond=None)[0]
    wanted = (NEW - mean_x) @ beta + mean_y
    path = fit.path(0.0, 0.3, 3)
    np.testing.assert_allclose(path.predict(NEW), np.stack([wanted] * 3), atol=1e-10)
    np.testing.assert_allclose(path.fitted[0], (X - mean_x) @ beta + mean_y, atol=1e-10)
    assert fit.info.status.startswith("exact")
    assert fit.info.below_rounding > 0
    residual = ((w[:, None] * (path.fitted[0] - Y) ** 2).sum()) / (2 * w.sum())
    sweep = fit.sweep(NEW, wanted, alphas=[0.0, 0.5], steps=2).dataset
    np.testing.assert_allclose(sweep["train_mse"].values, residual, rtol=1e-8)
    np.testing.assert_allclose(sweep["mse"].values, 0.0, atol=1e-18)
    np.testing.assert_allclose(sweep["degrees_of_freedom"].values, 4 + intercept, rtol=1e-10)
    wanted_loo = np.empty((30, 2))
    for i in range(30):
        rest = np.arange(30) != i
        fit_i = sdgpu.fit(X[rest], Y[rest], "linear", 0, **(how | {"sample_weight": w[rest]}))
        wanted_loo[i] = fit_i.path(steps=1).predict(X[i : i + 1])[0, 0]
    np.testing.assert_allclose(fit.loo(steps=1)[0], wanted_loo, atol=1e-9)


def test_least_norm_interpolates_with_a_kernel_of_full_rank():
    fit = sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), 0.0)
    np.testing.assert_allclose(fit.path(steps=1).fitted[0], Y, atol=1e-10)
    with pytest.raises(ValueError, match="determines itself"):
        fit.loo()


def test_least_norm_of_other_targets_and_what_it_refuses():
    fit, other = sdgpu.fit(X, Y[:, 0], "linear", 0), sdgpu.fit(X, Y[:, 1], "linear", 0)
    again = fit.with_targets(Y[:, 1])
    np.testing.assert_allclose(again.path().predict(NEW), other.path().predict(NEW), atol=1e-12)
    np.testing.assert_allclose(again.loo(), other.loo(), atol=1e-12)
    for ask in (lambda path: path.interval(NEW, 0.5), lambda path: path.variance(NEW)):
        with pytest.raises(ValueError, match="lam > 0"):
            ask(fit.path())


def test_a_kernel_with_rounding_in_it_says_so():
    """A wide Gaussian has eigenvalues of every size down to rounding."""
    with pytest.warns(UserWarning, match="inaccurate at lam = 0: .* eigenvalues are kept"):
        sdgpu.fit(X, Y, sdgpu.Gaussian(1e-4), 0.0)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"method": "subspace"}, "lams=0, the fit of least norm, needs all eigenvalues"),
        ({"method": "cg"}, "needs all eigenvalues"),
        ({"plan": sdgpu.plan(30, 4, 2, lams=1.0)}, "no plan="),
        ({"lams": [0.0, 1.0]}, "lams has 0 beside others"),
        ({"lams": -1.0}, "lams must be > 0"),
        ({"features": sdgpu.Nystrom(10)}, "lams=0, .* is not for features="),
    ],
)
def test_refusals(how, words):
    how = {"lams": 0.0} | how
    with pytest.raises(ValueError, match=words):
        sdgpu.fit(X, Y, "linear", **how)
