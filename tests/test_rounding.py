"""Callers who let NumPy raise, and spreads that are nothing but rounding."""

import warnings

import numpy as np
import pytest

import sdgpu
from sdgpu.study.classes import logistic_path, pseudo_label_path
from sdgpu.study.compare import compare
from sdgpu.study.datasets import Dataset, split
from sdgpu.study.regimes import label_noise_weights
from sdgpu.study.risk import expected_risk
from sdgpu.study.selection import select

KERNELS = {
    "gaussian": sdgpu.Gaussian(0.5),
    "laplacian": sdgpu.Laplacian(0.5),
    "matern": sdgpu.Matern(1.5, 1.0),
    "linear": sdgpu.Linear(),
    "cosine": sdgpu.Cosine(),
    "ntk": sdgpu.NTK(2),
}


def cases():
    rng = np.random.default_rng(0)
    X, new = rng.standard_normal((60, 3)), rng.standard_normal((12, 3))
    Y, truth = np.sin(X[:, :2]), np.sin(new[:, :2])
    yield "far", 100 * X, Y, 1e4 * new, truth
    yield "float32", *((100 * a).astype(np.float32) for a in (X, Y, new, truth))
    yield "tiny", 1e-170 * X, Y, 1e-170 * new, truth
    yield "constant", 0 * X + 14.62, 0 * Y + 0.1, new, truth


CASES = {name: arrays for name, *arrays in cases()}


@pytest.mark.parametrize("method", ["eigh", "subspace", "cg"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_underflow_is_zero(kernel, case, method):
    """Kernel values of far rows, squares and high powers underflow: 0 is what they are."""
    if method != "eigh" and kernel not in ("gaussian", "cosine"):
        pytest.skip("the solver sees no kernel")
    X, Y, new, truth = CASES[case]
    if case == "tiny" and kernel in ("linear", "ntk"):
        pytest.skip("K is 0")
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fitted = sdgpu.fit(X, Y, KERNELS[kernel], lams=[0.5, 2.0], method=method)
        fitted.path(0.5, 0.3, 4).predict(new)
        fitted.limit(0.5, 0.3).predict(new)
        fitted.loo(0.5, 0.3, 3)
        fitted.sweep(new, truth, alphas=[0.0, 0.5], steps=3)
        fitted.sweep(alphas=[0.0, 0.5], steps=3)
        fitted.optimal_alphas(new, truth, 0.5, 3)
        fitted.joint_alphas(lam=0.5, steps=3)
        if method == "eigh":
            fitted.gcv()
            fitted.gcv_sweep(alphas=[0.5], steps=3)
            fitted.diagonal(0.5, 0.3, 6)
            fitted.path(0.5).variance(new)
            eps = 0.995 * float(np.mean(np.sum(Y.astype(float) ** 2, axis=1)))
            sdgpu.constrained_path(X, Y, "laplacian", eps=eps, alpha=0.2, steps=3)


def test_studies_and_estimators_where_numpy_raises():
    rng = np.random.default_rng(1)
    X = 10 * rng.standard_normal((60, 2))
    labels = (X[:, 0] > 0).astype(int)
    one_hot, kernel = np.eye(2)[labels], sdgpu.Gaussian(0.5)
    parts = split(Dataset("made", X, np.sin(X)))
    with np.errstate(all="raise"):
        fitted = sdgpu.fit(X, one_hot, kernel, lams=0.5)
        fitted.sweep(X, one_hot, alphas=[0.5], steps=3, classes=True)
        pseudo_label_path(fitted, one_hot, 0.5, 0.3, 3)
        logistic_path(fitted, one_hot, 0.5, 0.3, 2)
        compare(parts, kernel, lams=np.array([0.1, 1.0]), steps=3)
        select(parts, kernel, np.array([0.1, 1.0]), steps=3)
        label_noise_weights(X, one_hot, X, one_hot, kernel, [0.5], [0.2], draws=2)
        expected_risk(fitted, one_hot, X, one_hot, lams=0.5, steps=3)
        for estimator in (
            sdgpu.SelfDistillationRegressor(),
            sdgpu.SelfDistillationRegressorCV(random_state=0, steps=3),
            sdgpu.SelfDistillationClassifier(),
        ):
            estimator.fit(X, labels).predict(X)


def test_overflow_is_still_the_callers():
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        sdgpu.Linear()(np.full((2, 2), 1e200))
