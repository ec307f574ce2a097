"""What a status says holds: the faults that random problems found, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.solvers.checkpoint import Checkpoint, State
from tests.problems import refits

GROWN = ["lanczos", "subspace", "cg"]


@pytest.mark.parametrize("method", ["auto", *GROWN])
@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_a_lam_that_dwarfs_the_trace(method, scale):
    """The sketch has rank 0 then: `fit(X, y, Gaussian(1.0), lams=1000.)` with 1,000 rows crashed."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((700, 3)), rng.standard_normal(700)
    lam = 1e4 * scale
    fit = sdgpu.fit(X, Y, scale * sdgpu.Gaussian(1.0), lams=[lam, 1e3 * lam], method=method)
    assert fit.info.status.startswith(("converged", "exact"))
    K = scale * sdgpu.Gaussian(1.0)(X)
    truth = refits(K, Y[:, None], lam, [0.5], 2)[0][..., 0]
    assert_allclose(fit.path(lam, 0.5, 2).fitted, truth, rtol=0, atol=1e-6 * np.abs(truth).max())
    fit.sweep(steps=2)


@pytest.mark.parametrize("method", ["auto", *GROWN])
def test_a_kernel_that_is_zero(method):
    X, Y = np.zeros((650, 2)), np.random.default_rng(0).standard_normal((650, 2))
    fit = sdgpu.fit(X, Y, sdgpu.Linear(), lams=[1e-3], method=method)
    assert fit.info.status.startswith(("converged", "exact"))
    assert_allclose(fit.path(steps=3).fitted, 0, atol=1e-15)


@pytest.mark.parametrize("method", ["eigh", *GROWN])
@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e300])
def test_outputs_of_any_size(method, size):
    """Y of 1e-170 was predicted as 0 and called converged; a small output beside a large one was off by .78."""
    rng = np.random.default_rng(1)
    X, Y = rng.standard_normal((120, 3)), rng.standard_normal((120, 2))
    kernel, small = sdgpu.Gaussian(0.3), np.array([size, 1.0])
    fit = sdgpu.fit(X, Y * small, kernel, lams=[0.1], method=method)
    assert fit.info.status.startswith(("converged", "exact"))
    truth = refits(kernel(X), Y, 0.1, [0.3], 2)[0]
    path = fit.path(0.1, 0.3, 2)
    for found in (path.fitted, path.predict(X)):
        assert_allclose(found / small, truth, rtol=0, atol=3e-6 * np.abs(truth).max())


@pytest.mark.parametrize("method", ["eigh", *GROWN])
def test_the_certificate_knows_rounding(method):
    """Cosine, lam = 1e-9 of the largest eigenvalue: "at most 2e-7" was said, and 4.6 was true."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, Y = rng.standard_normal((59, 3)), rng.standard_normal((59, 2))
        K = sdgpu.Cosine()(X)
        lam = 1e-9 * float(np.linalg.eigvalsh(K)[-1])
        with pytest.warns(UserWarning, match="rounding"):
            fit = sdgpu.fit(X, Y, sdgpu.Cosine(), lams=lam, method=method)
        truth = refits(K, Y, lam, 0.0, 10)[0]
        error = np.linalg.norm(fit.path(lam, 0.0, 10).fitted - truth, axis=1)
        assert (error <= fit.info.error_estimate * np.linalg.norm(truth[0], axis=0)).all()


def test_a_krylov_space_forgets_no_residual():
    """Directions below 1e-6 of the last block were dropped, and their residual counted as zero."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((25, 1)) * np.arange(1.0, 6.0)
    Y = np.sin(X[:, :1])
    kernel = sdgpu.Gaussian(0.001)
    lam = 5e9
    fit = sdgpu.fit(X, Y, kernel, lams=lam, method="lanczos")
    truth = kernel(X) @ Y / lam  # to 5e-9
    error = np.linalg.norm(fit.spectrum.basis @ (fit.spectrum.eigenvalues[:, None] * fit.spectrum.Z)
                           - kernel(X) @ Y)  # fmt: skip
    assert error <= 1e-13 * np.linalg.norm(kernel(X) @ Y)
    assert_allclose(
        fit.path(lam, steps=1).fitted[0], truth, rtol=0, atol=1e-8 * np.abs(truth).max()
    )


def test_a_residual_that_contradicts_decides(tmp_path):
    """A checkpoint of zeros was "converged, at most 0.0e+00", with a residual of .997 known."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((80, 2)), rng.standard_normal(80)
    path = tmp_path / "basis.safetensors"
    arguments = {"lams": 0.1, "method": "lanczos", "checkpoint": path}
    sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), **arguments)

    def zeros(self):
        return State(np.zeros((8, 80)), np.zeros((8, 80)), np.zeros((8, 8)), 99)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "load", zeros)
        with pytest.warns(UserWarning, match="contradicted"):
            fit = sdgpu.fit(X, Y, sdgpu.Gaussian(0.5), **arguments)
    assert fit.info.error_estimate > 0.5


def test_a_limit_that_cannot_be_decided_is_refused():
    """The largest eigenvalue that conjugate gradients see is a lower bound: it decides nothing."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((200, 6)), rng.standard_normal(200)
    kernel = sdgpu.Gaussian(2.0)
    top = float(np.linalg.eigvalsh(kernel(X))[-1])
    fit = sdgpu.fit(X, Y, kernel, lams=0.5 * top, method="cg")
    exact = sdgpu.fit(X, Y, kernel, lams=0.5 * top, method="eigh")
    for alpha in (-5.0, -0.3, 0.4, 1.9, 2.2, 9.0):
        try:
            limit = fit.limit(alpha=alpha)
        except ValueError:
            continue
        wanted = exact.limit(alpha=alpha).fitted
        assert_allclose(limit.fitted, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(ValueError, match="no limit"):
        fit.limit(alpha=-5.0)
    with pytest.raises(ValueError, match="may have no limit"):
        fit.limit(alpha=-0.53)


def test_float32_that_overflows_is_refused():
    X, Y = 1e60 * np.random.default_rng(0).standard_normal((30, 2)), np.ones(30)
    with pytest.raises(ValueError, match="float64"):
        sdgpu.fit(X, Y, sdgpu.Matern(1.5), method="lanczos", operator="tiled", dtype="float32")
