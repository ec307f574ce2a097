"""Everything the issue calls bad input: an error that names the argument and the value."""

import numpy as np
import pytest
import scipy.sparse
import torch

import sdgpu
from tests.engine.test_fitted import KERNEL, data

X, Y, X_VAL, Y_VAL = data()


@pytest.fixture(scope="module")
def fitted():
    return sdgpu.fit(X, Y, KERNEL, lams=[0.2, 1.0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X": np.where(X > 1, np.nan, X)}, ValueError, "X has .* NaN or infinite"),
        ({"Y": np.where(Y > 1, np.inf, Y)}, ValueError, "Y has .* NaN or infinite"),
        ({"X": X[:0], "Y": Y[:0]}, ValueError, "X has no rows"),
        ({"X": X[:, :0]}, ValueError, "X has no features"),
        ({"X": X[None]}, ValueError, "X must be two-dimensional"),
        ({"X": X[:, 0]}, ValueError, "reshape"),
        ({"Y": Y[None]}, ValueError, "Y must be"),
        ({"X": X.astype(object)}, TypeError, "X has dtype object"),
        ({"X": X.astype(str)}, TypeError, "X has dtype <U"),
        ({"X": X.astype(complex)}, TypeError, "X is complex"),
        ({"X": scipy.sparse.csr_array(X), "kernel": "laplacian"}, TypeError, "X is sparse"),
        ({"Y": Y[:-1]}, ValueError, "Y has 24 rows, but its inputs have 25"),
        ({"Y": torch.tensor(Y)}, ValueError, "X is numpy on cpu, Y is torch on cpu"),
        ({"lams": -1.0}, ValueError, "lams must be > 0 .* got -1"),
        ({"lams": [0.0, 1.0]}, ValueError, "lams has 0 beside others"),
        ({"lams": [0.1, -1.0]}, ValueError, "lams must be > 0 .* got -1"),
        ({"lams": [1e-310, 1.0]}, ValueError, "lams=1e-310 is below 2.23e-308, .*: rescale X"),
        ({"lams": []}, ValueError, "lams is empty"),
        ({"lams": float("nan")}, ValueError, "lams must be finite"),
        ({"lams": "small"}, TypeError, "lams='small'"),
        ({"lams": [[0.1]]}, ValueError, "one-dimensional"),
        (
            {"kernel": "gausian"},
            ValueError,
            "kernel='gausian' is not known: did you mean 'gaussian'",
        ),
        ({"method": "eig"}, ValueError, "method='eig' is not known: did you mean 'eigh'"),
        ({"operator": "dens"}, ValueError, "did you mean 'dense'"),
        ({"device": "gpu"}, ValueError, "device='gpu' is not known"),
        ({"memory": "a lot"}, ValueError, "memory='a lot'"),
        (
            {"memory": "10kB"},
            MemoryError,
            r"n = 25 rows need at least .* but 10 kB may be used: at most about 12 rows fit",
        ),
        ({"kernel": "chi2"}, ValueError, "ChiSquared is a kernel of nonnegative rows.* down to -"),
        ({"kernel": sdgpu.On(7, KERNEL)}, ValueError, "names column 7, but the data have"),
        ({"kernel": "precomputed"}, ValueError, "square"),
        (
            {"kernel": "precomputed", "X": np.diag([1.0, -1.0]), "Y": np.ones(2)},
            ValueError,
            "positive semi-definite",
        ),
        (
            {"kernel": "precomputed", "X": np.array([[1.0, 0.5], [0.0, 1.0]]), "Y": np.ones(2)},
            ValueError,
            "symmetric",
        ),
        ({"kernel": lambda A, B: -(A @ B.T)}, ValueError, "positive semi-definite"),
        ({"kernel": lambda A, B: (A @ B.T) * 1j}, TypeError, "complex128 numbers of numpy"),
        ({"kernel": lambda A, B: torch.ones(len(A), len(B))}, TypeError, "numbers of torch"),
        ({"X": np.ma.array(X, mask=X > 1)}, TypeError, "X is a masked array"),
        ({"memory": [1]}, TypeError, r"memory=\[1\]"),
        ({"memory": True}, TypeError, "memory=True"),
        ({"device": "cpu:7"}, ValueError, "only cuda takes an index"),
        ({"progress": 3}, TypeError, "progress=3 must be callable"),
    ],
)
def test_fit(change, error, words):
    arguments = {"X": X, "Y": Y, "kernel": KERNEL, "lams": [0.2, 1.0]} | change
    with pytest.raises(error, match=words):
        sdgpu.fit(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda f: f.path(), ValueError, "lam is missing: the fit serves 2"),
        (lambda f: f.path(0.1), ValueError, "lam=0.1 is below the smallest fitted one, 0.2"),
        (lambda f: f.path(-1.0), ValueError, "lam=-1.0 must be > 0"),
        (lambda f: f.path("a"), TypeError, "lam='a'"),
        (lambda f: f.path(0.2, steps=0), ValueError, "steps=0 must be at least 1"),
        (lambda f: f.path(0.2, steps=2.5), TypeError, "steps=2.5 must be a whole number"),
        (
            lambda f: f.path(0.2, alphas=[0.1, 0.2], steps=4),
            ValueError,
            r"alphas has shape \(2,\), but steps=4",
        ),
        (lambda f: f.path(0.2, alphas=float("nan")), ValueError, "alphas must be finite"),
        (
            lambda f: f.path(0.2, alphas=[0.1, float("inf")], steps=3),
            ValueError,
            "alphas must be finite",
        ),
        (lambda f: f.path(0.2, alphas="half"), TypeError, "alphas='half'"),
        (lambda f: f.path(0.2, alphas=np.ones((1, 3))), ValueError, "array"),
        (
            lambda f: f.path(0.2).predict(X_VAL[:, :2]),
            ValueError,
            "X_new has 2 features, but the fit has 3",
        ),
        (lambda f: f.path(0.2).predict(torch.tensor(X_VAL)), ValueError, "X_new is torch on cpu"),
        (lambda f: f.path(0.2).predict(X_VAL * np.nan), ValueError, "X_new has .* NaN"),
        (lambda f: f.path(0.2).predictor(3), ValueError, "step=3 is beyond the 2 steps"),
        (lambda f: f.diagonal(0.2, alphas=np.ones((1, 2))), ValueError, "alphas has shape"),
        (lambda f: f.limit(0.2, 2.5), ValueError, "alpha=2.5 has no limit"),
        (lambda f: f.limit(0.2, "x"), TypeError, "alpha='x'"),
        (lambda f: f.optimal_alphas(X_VAL, Y_VAL[:-1], 0.2), ValueError, "Y_val has 11 rows"),
        (
            lambda f: f.optimal_alphas(X_VAL, Y_VAL[:, :1], 0.2),
            ValueError,
            "Y_val has 1 outputs, but the fit has 2",
        ),
        (lambda f: f.optimal_alphas(X_VAL[:0], Y_VAL[:0], 0.2), ValueError, "X_val has no rows"),
        (lambda f: f.optimal_alphas(X_VAL, torch.tensor(Y_VAL), 0.2), ValueError, "Y_val is torch"),
        (
            lambda f: f.joint_alphas(X_VAL, Y_VAL, 0.2, ridge=-1),
            ValueError,
            "ridge=-1 must be >= 0",
        ),
        (lambda f: f.sweep(X_VAL, Y_VAL, lams=[0.01, 1.0]), ValueError, "lam=0.01 is below"),
        (
            lambda f: f.sweep(X_VAL, Y_VAL, alphas=[0.1, np.nan]),
            ValueError,
            "alphas must be finite",
        ),
        (lambda f: f.sweep(X_VAL, Y_VAL, steps=-3), ValueError, "steps=-3"),
        (lambda f: f.path(0.2, 1e200, 5), ValueError, r"alphas reach 1e\+200: over steps=5"),
        (lambda f: f.sweep(X_VAL, Y_VAL, alphas=[1e100], steps=6), ValueError, "overflow"),
        (lambda f: f.path(0.2, steps=10**9), MemoryError, "a path of 1000000000 steps"),
        (lambda f: f.diagonal(0.2, steps=10**9), MemoryError, "diagonals of 1000000000 steps"),
        (lambda f: f.optimal_alphas(X_VAL, Y_VAL, 0.2, steps=10**7), MemoryError, "10000000 steps"),
        (
            lambda f: f.joint_alphas(X_VAL, Y_VAL, 0.2, steps=10**7),
            ValueError,
            "steps=10000000: the joint",
        ),
    ],
)
def test_questions_to_a_fit(fitted, call, error, words):
    with pytest.raises(error, match=words):
        call(fitted)


def test_predictions_that_do_not_fit_are_refused_before_the_work():
    fitted = sdgpu.fit(X, Y, KERNEL, lams=1.0, memory="1MB")
    with pytest.raises(MemoryError, match="a prediction of 100,000 rows"):
        fitted.path(steps=3).predict(np.zeros((100_000, 3)))


def test_grids_that_do_not_fit_are_refused_before_the_work():
    fitted = sdgpu.fit(X, Y, KERNEL, lams=1.0, memory="1MB")
    with pytest.raises(MemoryError, match="a grid of 1,000,000 points"):
        fitted.sweep(X_VAL, Y_VAL, alphas=np.linspace(0, 1, 100_000))
    with pytest.raises(MemoryError, match="a path of 5000 steps"):
        fitted.path(steps=5000)
