"""Callers who let NumPy raise, and spreads that are nothing but rounding."""

import warnings

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.rounding import mean_and_spread
from sdgpu.study.compare import compare
from sdgpu.study.real_data.datasets import Dataset, split
from sdgpu.study.theory.classes import logistic_path, pseudo_label_path
from sdgpu.study.theory.noise import noise_std
from sdgpu.study.theory.regimes import label_noise_weights
from sdgpu.study.theory.risk import expected_risk
from sdgpu.study.theory.selection_rules import select

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
    yield "small targets", X, 1e-160 * Y, new, 1e-160 * truth
    yield "constant", 0 * X + 14.62, 0 * Y + 0.1, new, truth


CASES = {name: arrays for name, *arrays in cases()}


# a solver sees no kernel but two that differ; K of tiny rows is 0
RUNS = [
    (kernel, case, method)
    for kernel in KERNELS
    for case in CASES
    for method in ("eigh", "subspace", "cg")
    if (method == "eigh" or kernel in ("gaussian", "cosine"))
    and not (case == "tiny" and kernel in ("linear", "ntk"))
]


@pytest.mark.parametrize(("kernel", "case", "method"), RUNS)
def test_underflow_is_zero(kernel, case, method):
    """Kernel values of far rows, squares and high powers underflow: 0 is what they are."""
    X, Y, new, truth = CASES[case]
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
        if method == "eigh" and case != "small targets":  # no tolerance is so small
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
        label_noise_weights(X, one_hot, X, one_hot, kernel, lams=[0.5], rates=[0.2], draws=2)
        expected_risk(fitted, one_hot, X, one_hot, lams=0.5, steps=3)
        for estimator in (
            sdgpu.SelfDistillationRegressor(),
            sdgpu.SelfDistillationRegressorCV(random_state=0, steps=3),
            sdgpu.SelfDistillationClassifier(),
        ):
            estimator.fit(X, labels).predict(X)
        estimator.predict_proba(X)


def test_overflow_is_still_the_callers():
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        sdgpu.Linear()(np.full((2, 2), 1e200))


CONSTANTS = [0.1, 14.62, 1 / 3, 2e7 + 0.1, 1e-300, 1e200, -0.7]


@pytest.mark.parametrize("value", CONSTANTS)
@pytest.mark.parametrize("rows", [5, 1000, 100_003])
def test_what_is_constant_has_no_spread(value, rows):
    mean, spread = mean_and_spread(np.full((rows, 2), value))
    assert (mean == value).all()
    assert (spread == 0).all()


def test_what_differs_by_rounding_alone_has_no_spread():
    values = np.array([[0.3, 1.0], [0.1 + 0.2, 1 + 1e-9], [0.3, 1.0]])
    spread = mean_and_spread(values)[1]
    assert spread[0] == 0
    np.testing.assert_allclose(spread[1], np.sqrt(2) / 3 * 1e-9, rtol=1e-6)


def test_spreads_are_those_of_numpy():
    values = np.random.default_rng(3).standard_normal((50, 4)) * [1, 1e-9, 1e9, 1] + [0, 1, 0, 1e6]
    mean, spread = mean_and_spread(values)
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(spread, values.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("value", CONSTANTS)
def test_constant_features_and_targets_stay_small(value):
    """One test row that differs was 1e12 standard deviations away."""
    rng = np.random.default_rng(5)
    X = np.column_stack([rng.standard_normal(100), np.full(100, value)])
    parts = split(Dataset("made", X, np.full((100, 1), value)))
    assert (parts.X_train[:, 1] == 0).all()
    assert (parts.Y_train == 0).all()
    assert (parts.Y_test == 0).all()
    if abs(value) < 100:
        odd = X.copy()
        order = np.random.default_rng(0).permutation(100)
        odd[order[0], 1] = value + 0.5  # a test row
        differing = split(Dataset("made", odd, X[:, :1])).X_test[:, 1]
        np.testing.assert_allclose(np.sort(differing)[[0, -1]], [0, 0.5])
    with pytest.raises(ValueError, match="constant targets"):
        noise_std(np.full((1000, 2), value), 2.0)


def test_rows_that_differ_by_rounding_have_no_distance():
    X = np.array([[0.1 + 0.2, 14.62], [0.3, 14.62], [0.3, 14.62]])
    for array in (X, X.astype(np.float32) * np.float32(1 + 2**-23)):
        with pytest.raises(ValueError, match="fewer than two different rows"):
            sdgpu.median_distance(array)
    far = np.array([[0.3], [0.1 + 0.2], [1.3], [1.3]])
    for size in (1.0, 1e-170, 1e170):
        np.testing.assert_allclose(sdgpu.median_distance(size * far), size, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:y is 2e")  # far from 0, without an intercept
@pytest.mark.parametrize(
    "make", [sdgpu.SelfDistillationRegressor, sdgpu.SelfDistillationRegressorCV]
)
def test_targets_keep_their_digits_beside_float32(make):
    X = np.linspace(-1, 1, 40)[:, None]
    dates = 2e7 + np.round(100 * X[:, 0])  # float32 knows even numbers only
    chosen = {"lam": 1e-6} if make is sdgpu.SelfDistillationRegressor else {"random_state": 0}
    wide, narrow = (
        make(gamma=1.0, steps=1, **chosen).fit(A, dates) for A in (X, X.astype(np.float32))
    )
    assert narrow.predict(X.astype(np.float32)).dtype == np.float64
    np.testing.assert_allclose(
        narrow.predict(X.astype(np.float32)), wide.predict(X), rtol=0, atol=0.1
    )


def test_warnings_point_at_the_caller():
    rng = np.random.default_rng(0)
    X, Y, new, truth = (
        rng.standard_normal(shape) for shape in ((40, 2), (40, 1), (20, 2), (20, 1))
    )
    with pytest.warns(UserWarning, match="inaccurate") as seen:
        fitted = sdgpu.fit(X, Y, "rbf", lams=1e-300)
    assert seen[0].filename == __file__
    fitted = sdgpu.fit(X, Y, "rbf", lams=1e-4)
    with pytest.warns(UserWarning, match="fits noise") as seen:
        fitted.joint_alphas(new, truth, steps=8)
    assert seen[0].filename == __file__
