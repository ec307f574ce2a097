"""The refit route: the same objects and numbers as the closed form, and as scikit-learn."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.kernel_ridge import KernelRidge

import sdgpu
from tests.engine.test_fitted import KERNEL, data


@pytest.mark.parametrize("naive", [False, True])
def test_refits_are_the_closed_form(naive, backend):
    X, Y, X_val, _ = data()
    path = sdgpu.refit_path(
        X, Y, KERNEL, lam=0.5, alphas=[0.3, -0.2], steps=3, naive=naive, device=backend
    )
    closed = sdgpu.fit(X, Y, KERNEL, lams=0.5).path(alphas=[0.3, -0.2], steps=3)
    for name in ("fitted", "dual"):
        assert_allclose(getattr(path, name), getattr(closed, name), atol=1e-12)
    assert_allclose(path.predict(X_val), closed.predict(X_val), atol=1e-12)


def test_refits_are_scikit_learns():
    X, Y, X_val, _ = data()
    target = Y
    path = sdgpu.refit_path(X, Y, KERNEL, lam=0.5, alphas=0.3, steps=3)
    for step in range(3):
        model = KernelRidge(alpha=0.5, kernel="rbf", gamma=0.3).fit(X, target)
        assert_allclose(path.predict(X_val)[step], model.predict(X_val), atol=1e-12)
        target = 0.3 * Y + 0.7 * model.predict(X)


def test_weights_per_output():
    X, Y, *_ = data()
    weights = np.array([[0.1, 0.9], [0.5, 2.0]])
    ours = sdgpu.refit_path(X, Y, KERNEL, lam=0.5, alphas=weights, steps=3)
    closed = sdgpu.fit(X, Y, KERNEL, lams=0.5).path(alphas=weights, steps=3)
    assert_allclose(ours.fitted, closed.fitted, atol=1e-12)


def test_too_little_memory():
    X, Y, *_ = data()
    with pytest.raises(MemoryError, match="Cholesky at n = 25"):
        sdgpu.refit_path(X, Y, KERNEL, lam=0.5, alphas=0.0, steps=2, memory=1000)
