"""The errors that estimated leverages state, against leave-one-out from all eigenvectors."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import sdgpu


def problems():
    """Nearly a unit matrix, heavy tails, smooth kernels, narrow ones: few probes see little of some."""
    rng = np.random.default_rng(0)
    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    Z = rng.normal(size=(700, 3))
    T = rng.standard_t(2, size=(700, 3))
    z, t = (np.sin(2 * V[:, 0]) + V[:, 1] / 2 + 0.3 * rng.normal(size=700) for V in (Z, T))
    yield "nearly a unit matrix", X, y, sdgpu.Gaussian(1.0)
    yield "diabetes", X, y, sdgpu.Gaussian(0.1)
    yield "kink", X, y, sdgpu.Laplacian(0.1)
    yield "smooth", Z, z, sdgpu.Gaussian(0.5)
    yield "narrow", Z, z, sdgpu.Gaussian(20.0)
    yield "heavy tails", T, t, sdgpu.Gaussian(0.5)


@pytest.mark.parametrize("problem", list(problems()), ids=lambda problem: problem[0])
def test_estimates_are_within_what_they_state(problem):
    """A few standard errors, for lam so small that 1 - H_ii is smaller than what probes scatter by.

    One row with H_ii near 1 can make a loss as large as one likes, so an estimate may be too large there;
    too small it would be chosen.
    """
    _, X, y, kernel = problem
    lams = np.geomspace(1e-3, 1e2, 8)
    options = {"alphas": [1.0, 0.3, 2.0], "steps": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = sdgpu.fit(X, y, kernel, lams, method="eigh").sweep(**options).dataset
        estimate = sdgpu.fit(X, y, kernel, lams, method="subspace").sweep(**options).dataset
    assert (exact["mse_error"] == 0).all()
    distance = (estimate["mse"] - exact["mse"]) / estimate["mse_error"]
    assert float(distance.min()) > -3.5
    assert float(distance.max()) < 4
    # and they say something where there is nothing to fear
    assert float((estimate["mse_error"] / exact["mse"])[-1].max()) < 0.01
