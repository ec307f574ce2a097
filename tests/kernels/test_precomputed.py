"""Kernels that the caller brings: a function of matrices or of two rows, and matrices of few digits."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

import sdgpu
from sdgpu.backend.backends import TorchBackend
from sdgpu.kernels import FunctionKernel
from tests.problems import assert_near

EPS = {"float16": 2**-10, "bfloat16": 2**-7}


def squares(x, y):
    return float(sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)))


FORMS = {
    "a product": (lambda x, y: x @ y, sdgpu.Linear()),
    "numpy's": (np.dot, sdgpu.Linear()),
    "a number of Python": (lambda x, y: np.exp(-0.5 * squares(x, y)), sdgpu.Gaussian(0.5)),
    "of matrices": (lambda A, B: A @ B.T, sdgpu.Linear()),
}


@pytest.mark.parametrize(
    ("form", "as_array"),
    [
        (f, a)
        for f in FORMS
        for a in (np.asarray, torch.tensor)
        if (f, a) != ("numpy's", torch.tensor)
    ],
)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (2, 1), (3, 3), (5, 5), (2, 2), (9, 2)])
def test_functions_of_matrices_and_of_rows(form, n, d, as_array):
    function, kernel = FORMS[form]
    rng = np.random.default_rng([n, d])
    X, Y, new = (rng.standard_normal(shape) for shape in ((n, d), (n, 2), (d, d)))
    wanted = sdgpu.fit(X, Y, kernel).path()
    found = sdgpu.fit(as_array(X), as_array(Y), function).path()
    assert_near(np.asarray(found.predict(as_array(new))), wanted.predict(new), rtol=1e-10)
    assert_near(
        np.asarray(found.variance(as_array(new)).posterior), wanted.variance(new).posterior, 1e-8
    )


def test_estimators_take_what_kernel_ridge_takes():
    rng = np.random.default_rng(4)
    X, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    kernel = FORMS["a number of Python"][0]
    ours = sdgpu.SelfDistillationRegressor(kernel=kernel, lam=0.7, steps=1).fit(X, y)
    assert_near(ours.predict(X), KernelRidge(kernel=kernel, alpha=0.7).fit(X, y).predict(X), 1e-10)


def test_errors_of_the_function_are_its_own():
    X = np.eye(3)

    def broken(A, B):
        raise RuntimeError("of mine")

    with pytest.raises(RuntimeError, match="of mine"):
        FunctionKernel(broken)(X)
    with pytest.raises(ValueError, match=r"returned shape \(2, 3\) for \(2, 2\)"):
        FunctionKernel(lambda A, B: A)(X[:2])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("gamma", [0.01, 0.5])
@pytest.mark.parametrize("given", ["matrix", "function"])
def test_kernels_of_few_digits_are_not_indefinite(kind, gamma, given):
    """Rounding makes eigenvalues negative by less than eps of the largest."""
    rng = np.random.default_rng(3)
    X = torch.tensor(rng.standard_normal((120, 3)))
    Y, kernel, half = X[:, :1].sin(), sdgpu.Gaussian(gamma), getattr(torch, kind)
    K = kernel(X)
    if gamma < 0.1:
        values = torch.linalg.eigvalsh(K.to(half).double())
        assert values[0] < -1e-6 * values[-1]
    wanted = torch.linalg.solve(K + 10 * torch.eye(120), Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the answers are not exact
        if given == "matrix":
            found = sdgpu.fit(K.to(half), Y, "precomputed", lams=10.0)
        else:
            device = TorchBackend("cpu")  # the function gets tensors
            found = sdgpu.fit(X, Y, lambda A, B: kernel(A, B).to(half), lams=10.0, device=device)
    assert_near(np.asarray(found.path(steps=1).dual[0], dtype=float), wanted, rtol=10 * EPS[kind])


def test_indefinite_matrices_are_refused_in_every_precision():
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        K = torch.diag(torch.tensor([1.0, 1.0, -0.5], dtype=kind))
        with pytest.raises(ValueError, match="not positive semi-definite"):
            sdgpu.fit(K, torch.ones(3), "precomputed")


@pytest.mark.filterwarnings("ignore:inaccurate")
def test_estimators_know_the_precision_of_a_matrix():
    X = np.random.default_rng(0).standard_normal((50, 3))
    K, y = sdgpu.Gaussian(0.01)(X).astype(np.float16), X[:, 0]
    for make in (sdgpu.SelfDistillationRegressor, sdgpu.SelfDistillationRegressorCV):
        assert make(kernel="precomputed").fit(K, y).score(K, y) > 0.2
    assert (
        sdgpu.SelfDistillationClassifier(kernel="precomputed").fit(K, y > 0).score(K, y > 0) > 0.9
    )
    model = sdgpu.SelfDistillationRegressor().fit(X.astype(np.float16), y)
    assert_near(model.predict(X), sdgpu.SelfDistillationRegressor().fit(X, y).predict(X), 4e-3)
