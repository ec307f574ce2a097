"""What a status says holds: the faults that random problems found, one by one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.engine.certificate import TrainingResidual, grown_status, probe
from sdgpu.operators import DenseOperator
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
    error = np.linalg.norm(
        fit.spectrum.basis @ (fit.spectrum.eigenvalues[:, None] * fit.spectrum.Z) - kernel(X) @ Y
    )
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


def test_float32_evaluates_a_tile_of_another_shape_with_other_last_bits():
    """Entries of 0.5 came out as 0.5 in a matrix and as 0.50000006 in its columns: no error was seen."""
    X, Y = np.zeros((41, 1)), np.random.default_rng([0, 1]).standard_normal((41, 1))
    lam = 0.205
    fit = sdgpu.fit(X, Y, sdgpu.ArcCosine(0), lams=lam, method="lanczos", dtype="mixed", tol=1e-4)
    truth = refits(np.full((41, 41), 0.5), Y, lam, [], 1)[0][0]
    error = np.linalg.norm(np.asarray(fit.path(lam, steps=1).fitted)[0] - truth)
    assert error <= fit.info.error_estimate * np.linalg.norm(truth)


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_a_kernel_below_float32_is_refused(dtype):
    """The status was "contradicted: .. where the solver says nan; remove a checkpoint"."""
    X, Y = np.random.default_rng(0).standard_normal((2, 30, 2))
    with pytest.raises(ValueError, match=r"up to 1\.\d+e-31, underflow in float32: rescale X"):
        sdgpu.fit(X * 1.5e-16, Y, sdgpu.Linear(), lams=1e-32, method="lanczos", dtype=dtype)
    sdgpu.fit(0 * X, Y, sdgpu.Linear(), lams=1e-32, method="lanczos", dtype=dtype)


def test_predictions_near_the_limit_of_float64_do_not_overflow_on_the_way():
    """Duals of 1e307 whose terms cancel: partial sums were infinite, predictions 1e300."""
    rng = np.random.default_rng(0)
    X, Y = np.round(2 * rng.standard_normal((69, 5))), 1e300 * rng.standard_normal((69, 3))
    Y[:, 1] *= 1e-300
    lam = 3e-8
    with pytest.warns(UserWarning, match="inaccurate"):
        path = sdgpu.fit(X, Y, sdgpu.Linear(), lams=lam, method="eigh").path(lam, steps=1)
    assert np.abs(path.dual).max() > 1e307
    # rounding of this lam moves both by 3e-4 at the most
    assert_allclose(path.predict(X), path.fitted, rtol=0, atol=1e297)
    assert_allclose(path.predict(X)[..., 1], path.fitted[..., 1], rtol=0, atol=1e-3)


def test_a_contradiction_speaks_for_all_rows():
    """A residual is seen on 32 rows: the error that is said is that of all, were they like the worst."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((200, 2)), rng.standard_normal((200, 1))
    operator, lam = DenseOperator(sdgpu.Gaussian(1.0), X), 1e-2
    K = operator.matmat(np.eye(200))
    dual = np.linalg.solve(K + lam * np.eye(200), Y)
    residual = 1e-3 * np.where(np.arange(200)[:, None] % 7, 0.5, 1.0)
    dual += np.linalg.solve(K + lam * np.eye(200), residual)
    largest = float(np.linalg.eigvalsh(K)[-1])
    wrong = SimpleNamespace(ridge=lambda lam, few: (dual, K @ dual), largest=largest)
    seen = probe(wrong, operator, Y, lam)
    size = np.linalg.norm(K @ dual)
    left = np.linalg.norm(residual) / size
    assert seen.certain <= left <= seen.alike
    assert_allclose(seen.expected, left, rtol=0.1)
    assert_allclose(seen.alike, np.sqrt(200) * 1e-3 / size, rtol=1e-2)
    assert_allclose(seen.largest, 1e-3 / np.abs(Y).max(), rtol=1e-6)
    status, error = grown_status("converged", 1e-9, seen, 1e-6, "float64")
    assert status.startswith("contradicted")
    assert error == seen.alike
    # within twice the tolerance it contradicts nothing, but tiles in float32 may be what is left
    near = TrainingResidual(0.0, 1.5e-6, 1.8e-6, 2e-6)
    assert grown_status("converged", 1e-9, near, 1e-6, "float64") == ("converged", 1e-9)
    assert grown_status("converged", 1e-9, near, 1e-6, "mixed")[1] == 1.8e-6
    assert grown_status("converged", 1.5e-6, near, 1e-5, "mixed")[1] == 1.5e-6


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_an_error_that_is_no_number_is_infinite(error):
    status, found = grown_status(
        "converged", error, TrainingResidual(0.0, 0.0, 0.0, 0.0), 1e-6, "mixed"
    )
    assert found == np.inf
    assert status.startswith("limited by dtype='mixed'")


def test_two_near_rows_far_from_the_others_are_seen_in_float32():
    """Only their entry is wrong, and a sample of rows may miss both."""
    rng = np.random.default_rng(0)
    X = 1e6 * rng.standard_normal((61, 1))
    X[29] = X[28] + 7.031  # no multiple of what float32 can tell apart there
    Y = rng.standard_normal((61, 1))

    def kernel(A, B):
        return (-0.1 * abs(A - B.T)).exp() if hasattr(A, "exp") else np.exp(-0.1 * abs(A - B.T))

    with pytest.warns(UserWarning, match="limited by dtype='mixed'"):
        fit = sdgpu.fit(X, Y, kernel, lams=1.0, method="subspace", dtype="mixed")
    truth = refits(kernel(X, X), Y, 1.0, [], 1)[0][0]
    error = np.linalg.norm(np.asarray(fit.path(1.0, steps=1).fitted)[0] - truth)
    assert 1e-6 * np.linalg.norm(truth) < error <= fit.info.error_estimate * np.linalg.norm(truth)
