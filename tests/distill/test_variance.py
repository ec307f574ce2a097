"""Variances of a step against the explicit linear smoother, and against draws."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.distill.variance import variances

KERNEL = sdgpu.Gaussian(0.7)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((23, 2))
    return X, np.sin(X[:, 0]), rng.standard_normal((6, 2))


def smoothers(X, new, lam, alphas):
    """w(x) of every step as the rows of explicit matrices, (T, m, n)."""
    n, K, k = len(X), KERNEL(X), KERNEL(new, X)
    inverse, S, found = np.linalg.inv(K + lam * np.eye(n)), None, []
    for alpha in (None, *alphas):
        mixed = np.eye(n) if alpha is None else alpha * np.eye(n) + (1 - alpha) * S
        found.append(k @ inverse @ mixed)
        S = K @ inverse @ mixed
    return np.stack(found)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("noise", [None, 0.03])
def test_against_the_explicit_smoother(data, library, noise):
    X, y, new = data
    alphas, lam = [0.2, -0.4, 1.3], 0.3
    path = sdgpu.fit(library(X), library(y), KERNEL, lams=lam).path(lam, alphas, 4)
    found = path.variance(library(new), noise=noise)
    nu = lam if noise is None else noise
    W, K, k = smoothers(X, new, lam, alphas), KERNEL(X), KERNEL(new, X)
    quadratic = np.einsum("tmn,nj,tmj->tm", W, K + nu * np.eye(23), W)
    wanted = 1 - 2 * np.einsum("tmn,mn->tm", W, k) + quadratic
    assert type(found.posterior) is type(library(y))
    assert_allclose(found.posterior, wanted, rtol=1e-9, atol=1e-12)
    assert_allclose(found.sampling, nu * (W**2).sum(axis=-1), rtol=1e-9)
    assert found.noise == nu


def test_step_one_is_the_posterior_and_the_smallest(data):
    X, y, new = data
    found = sdgpu.fit(X, y, KERNEL, lams=0.3).path(0.3, 0.0, 5).variance(new).posterior
    k = KERNEL(new, X)
    wanted = 1 - np.einsum("mn,nj,mj->m", k, np.linalg.inv(KERNEL(X) + 0.3 * np.eye(23)), k)
    assert_allclose(found[0], wanted, rtol=1e-10)
    assert (np.diff(found, axis=0) > 0).all()


def test_the_error_of_draws_of_the_process(data, rng):
    X, _, new = data
    path = sdgpu.fit(X, np.zeros(23), KERNEL, lams=0.3).path(0.3, 0.1, 3)
    found, W = path.variance(new), smoothers(X, new, 0.3, [0.1, 0.1])
    both = np.concatenate([X, new])
    root = np.linalg.cholesky(KERNEL(both) + 1e-10 * np.eye(29))
    f = root @ rng.standard_normal((29, 40_000))
    y = f[:23] + np.sqrt(0.3) * rng.standard_normal((23, 40_000))
    errors = np.einsum("tmn,ns->tms", W, y) - f[23:]
    assert_allclose((errors**2).mean(axis=-1), found.posterior, rtol=0.05)


def test_weights_of_each_output_and_precomputed(data):
    X, y, new = data
    Y, alphas = np.stack([y, -y], axis=1), np.array([[0.1, 0.8], [0.5, -0.2]])
    found = sdgpu.fit(X, Y, KERNEL, lams=0.3).path(0.3, alphas, 3).variance(new)
    assert found.posterior.shape == (3, 6, 2)
    given = sdgpu.fit(KERNEL(X), y, "precomputed", lams=0.3)
    for q in range(2):
        path = given.path(0.3, alphas[:, q], 3)
        one = path.variance(KERNEL(new, X), prior=np.ones(6))
        assert_allclose(one.posterior, found.posterior[..., q], rtol=1e-9)
    with pytest.raises(ValueError, match="prior is missing"):
        path.variance(KERNEL(new, X))
    with pytest.raises(ValueError, match="prior"):
        path.variance(KERNEL(new, X), prior=np.ones(5))


def test_a_grown_basis_refuses(rng):
    X = rng.standard_normal((300, 2))
    fitted = sdgpu.fit(X, X[:, 0], KERNEL, lams=3.0, method="lanczos", tol=1e-3)
    with pytest.raises(ValueError, match="method='eigh'"):
        fitted.path(steps=2).variance(X[:3])
    with pytest.raises(ValueError, match="noise"):
        sdgpu.fit(X[:9], X[:9, 0], KERNEL, lams=3.0).path(steps=2).variance(X[:3], noise=0.0)


def test_a_variance_that_rounding_makes_negative_is_zero():
    """A row that is known: kappa(x, x) and p^2 C_0 cancel."""
    p, eigenvalues = np.array([[2.0, 1.0]]), np.array([1.5, 3.0])
    dual = 1 / (eigenvalues + 0.5)[None]
    prior = (p**2 @ dual[0]) * (1 - 1e-12)
    posterior, sampling = variances(p, prior, eigenvalues, dual, 0.5)
    assert posterior == 0
    assert_allclose(sampling, 0.5 * (p**2 @ dual[0] ** 2)[None], rtol=1e-14)
