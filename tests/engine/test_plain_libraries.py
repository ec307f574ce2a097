"""A library with the array API standard and nothing more: every method, and what fits of it answer."""

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.backends import PlainBackend
from tests.problems import assert_near

N, M = 60, 9
RNG = np.random.default_rng(4)
X, X_NEW = RNG.standard_normal((N, 3)), RNG.standard_normal((M, 3))
Y, Y_NEW = np.sin(X), np.sin(X_NEW)
WEIGHTS = np.linspace(0, 1, N)
ANSWERS = {
    "predict": lambda fit, own: fit.path(0.1, 0.3, 3).predict(own(X_NEW)),
    "dual": lambda fit, own: fit.path(0.1, 0.3, 3).dual,
    "fitted": lambda fit, own: fit.path(0.1, 0.3, 3).fitted,
    "predictor": lambda fit, own: fit.path(0.1, 0.3, 3).predictor().predict(own(X_NEW)),
    "another lam": lambda fit, own: fit.path(0.5, 0.3, 3).predict(own(X_NEW)),
    "limit": lambda fit, own: fit.limit(0.1, 0.5).predict(own(X_NEW)),
    "interval": lambda fit, own: fit.path(0.1, 0.3, 2).interval(own(X_NEW), folds=4).lower,
    "mse": lambda fit, own: fit.sweep(own(X_NEW), own(Y_NEW), alphas=[0, 0.5], steps=2).dataset.mse,
    "left out": lambda fit, own: fit.sweep(alphas=[0, 0.5], steps=2).dataset.mse,
    "loo": lambda fit, own: fit.loo(0.1, 0.3, 3),
    "variance": lambda fit, own: fit.path(0.1, 0.3, 3).variance(own(X_NEW)).posterior,
}


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize(
    ("method", "operator"),
    [
        ("eigh", "dense"),
        ("primal", "dense"),
        ("lanczos", "dense"),
        ("lanczos", "tiled"),
        ("subspace", "tiled"),
        ("cg", "tiled"),
    ],
)
def test_answers_are_those_of_numpy(method, operator, weighted):
    strict = pytest.importorskip("array_api_strict")
    kernel = sdgpu.Linear() if method == "primal" else sdgpu.Gaussian(0.3)
    how = {"method": method, "operator": operator, "intercept": weighted, "tol": 1e-9}
    fits = []
    for own, device in ((strict.asarray, PlainBackend(strict)), (np.asarray, "cpu")):
        weights = own(WEIGHTS) if weighted else None
        fits.append(
            sdgpu.fit(
                own(X), own(Y), kernel, [0.1, 1.0], sample_weight=weights, device=device, **how
            )
        )
    for name, answer in ANSWERS.items():
        if method in ("subspace", "cg") and name == "variance":
            continue  # they do not know all eigenvalues
        found, wanted = answer(fits[0], strict.asarray), answer(fits[1], np.asarray)
        # what a basis has not seen is estimated, in float32 by tiles
        rough = name in ("left out", "loo") and method in ("lanczos", "subspace", "cg")
        assert_near(np.asarray(found), wanted, 1e-3 if rough else 1e-6)
