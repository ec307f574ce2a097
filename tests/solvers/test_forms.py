"""Quadratic forms of resolvents against dense matrices, and their bounds."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.device.backend import NumpyBackend
from sdgpu.device.timing import Stopwatch
from sdgpu.kernels import Gaussian
from sdgpu.operators import DenseOperator
from sdgpu.solvers import forms
from sdgpu.solvers.preconditioners import pivoted_cholesky

LAMS = np.array([0.3, 5.0, 60.0])
N = 150


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((N, 2))


def explicit(K, G, steps):
    """g'H^q g, (L, T, s)."""
    found = []
    for lam in LAMS:
        H = K @ np.linalg.inv(K + lam * np.eye(len(K)))
        found.append(
            [np.sum(G @ np.linalg.matrix_power(H, q) * G, axis=1) for q in range(1, steps + 1)]
        )
    return np.array(found)


def grow(X, G, *, rank, tol, relative, room):
    backend, watch = NumpyBackend(), Stopwatch(lambda: None)
    operator = DenseOperator(Gaussian(0.5), X)
    sketch = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch) if rank else None
    found = forms.grow_forms(
        operator, backend, sketch, G, LAMS, 3, watch, tol=tol, relative=relative, room=room
    )
    filters = forms.power_filters(found.values, LAMS, 3)  # (L, T, k)
    return found, filters @ found.along**2


@pytest.mark.parametrize("rank", [0, 25])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("room", [20, N])
def test_forms_are_within_their_bounds(rows, rank, relative, room):
    rng = np.random.default_rng(1)
    G = np.eye(N)[[3, 70, 149]] if relative else rng.choice([-1.0, 1.0], (3, N))
    found, values = grow(rows, G, rank=rank, tol=1e-4, relative=relative, room=room)
    wanted = explicit(Gaussian(0.5)(rows), G, 3)
    assert found.bounds.shape == wanted.shape
    assert (np.abs(values - wanted) <= found.bounds + 1e-12 * np.abs(wanted).max()).all()
    assert len(found.values) <= room
    if room == N:
        rest = 1 - wanted[:, :1] if relative else N
        assert (found.bounds <= 2e-4 * rest * (1 if relative else 3)).all()
    # the bounds say something: they are not far above errors of second order
    assert (found.bounds[-1] < 1e-3 * (G**2).sum(axis=1)).all()


def test_powers_are_those_of_shrinkage():
    values = np.array([0.0, 0.4, 7.0])
    found = forms.power_filters(values, LAMS, 4)
    for i, lam in enumerate(LAMS):
        for q in range(1, 5):
            assert_allclose(found[i, q - 1], (values / (values + lam)) ** q, rtol=1e-13)


def test_bounds_of_second_order():
    """By hand, g = 1, 1 / 4, 4 / 27: of a few residuals, and of one."""
    r1, r2, r3 = norms = np.random.default_rng(2).random((3, 2, 4))
    found = forms._second_order(np.moveaxis(norms, 0, 1), np.moveaxis(norms.cumsum(axis=0), 0, 1))
    e1, e2, e3 = r1, r2 + r1 / 4, r3 + r2 / 4 + 4 / 27 * r1
    s1, s2, s3 = r1, r1 + r2, r1 + r2 + r3
    for q, wanted in enumerate((e1 * s1, e1 * s2 + e2 * s1, e1 * s3 + e2 * s2 + e3 * s1)):
        assert_allclose(found[:, q], wanted, rtol=1e-14)


def test_what_a_leverage_leaves_does_not_cancel():
    """Unit vectors in the space and partly outside of it: outside, H is 0."""
    values = np.array([0.5, 2.0, 1e12])
    inside = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    along = inside * np.array([1.0, 0.6, 1.0])
    found = forms._scale(values, along, LAMS)
    for i, lam in enumerate(LAMS):
        wanted = (lam / (values + lam)) @ along**2 + np.array([0.0, 1 - 0.36, 0.0])
        assert_allclose(found[i, 0], wanted, rtol=1e-12, atol=1e-15)
    alone = forms._scale(np.array([1e12]), np.ones((1, 1)), np.array([1e-8]))
    assert_allclose(alone, 1e-20, rtol=1e-12)
