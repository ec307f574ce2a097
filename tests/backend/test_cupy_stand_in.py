"""The CuPy backend on a stand-in with CuPy's manners: conformance, and whole fits against NumPy.

What a stand-in cannot show, that kernels are launched and cuSOLVER converges, is marked `gpu` elsewhere.
"""

import importlib.util

import numpy as np
import pytest
import scipy.linalg
import torch

import sdgpu
from sdgpu.backend import backends, cupy_backend, one_device
from sdgpu.backend.arrays import library, where_is
from sdgpu.backend.backends import NumpyBackend, TorchBackend, resolve, to_numpy
from sdgpu.kernels import Gaussian, Matern, Polynomial
from tests.backend.test_backends import (  # noqa: F401 - the conformance suite, on the backend below
    test_arrays_of_every_library_come_in_as_float64,
    test_cholesky,
    test_eigh,
    test_protocol,
    test_read_only_arrays_come_in,
    test_results_go_back,
)
from tests.cuda_stand_in import CudaTensor, pretend_cuda
from tests.cupy_stand_in import ndarray, pretend_cupy
from tests.problems import assert_near
from tests.test_cuda_placement import LAMS, METHODS, X_NEW, Y_NEW, W, X, Y, further_answers

KERNEL = Gaussian(0.5)


@pytest.fixture
def cupy():
    with pretend_cuda(), pretend_cupy():
        import cupy

        yield cupy


@pytest.fixture
def backend(cupy):
    return resolve("cuda")


def test_it_has_the_manners_of_cupy(cupy):
    x, here = cupy.asarray([[1.0, 2.0]]), np.ones((1, 2))
    assert library(x) == "cupy"
    assert "CUDA Device 0" in where_is(x)
    for implicit in (np.asarray, lambda x: here + x, lambda x: x @ here.T):
        with pytest.raises((TypeError, BufferError, RuntimeError)):
            implicit(x)
    for mixture in (
        lambda: cupy.concatenate([x, here]),
        lambda: cupy.sum(here),
        lambda: x.dot(here.T),
    ):
        with pytest.raises(TypeError, match="Unsupported type"):
            mixture()
    with pytest.raises(TypeError, match="Unsupported type"):
        x[0] = here[0]
    with pytest.raises(BufferError, match="CPU arrays"):
        cupy.from_dlpack(here)
    assert isinstance(cupy.sum(x), ndarray)
    assert type(x.get()) is np.ndarray
    assert float(x[0, 1]) == 2
    assert isinstance(x[:, np.array([0])], ndarray)  # indices are sent


def test_memory_is_shared_with_torch_and_not_copied(backend, cupy):
    tensor = torch.arange(6.0, device="cuda", dtype=torch.float64).reshape(2, 3)
    shared = backend.asarray(tensor)
    shared[0, 0] = 7
    assert float(tensor[0, 0]) == 7
    back = TorchBackend("cuda:0").asarray(shared)
    assert isinstance(back, CudaTensor)
    back[1, 2] = 9
    assert float(shared[1, 2]) == 9


def test_it_goes_when_it_is_not_pretended(cupy):
    import sys

    assert cupy_backend.works()
    assert sys.modules["cupy"] is cupy


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_it_there_is_none():
    import sys

    assert "cupy" not in sys.modules
    assert "array_api_compat.cupy" not in sys.modules
    assert not cupy_backend.works()


def test_a_failed_factorisation_is_not_silent(backend, cupy):
    """CuPy looks at cuSOLVER's status only when it is told to; what it then returns is no factor."""
    bad = cupy.asarray(np.diag([1.0, -1.0]))
    assert np.isfinite(cupy.linalg.cholesky(bad).get()).all()
    with pytest.raises(ValueError, match="not positive definite"):
        backend.cholesky(bad)
    nan = cupy.asarray(np.full((2, 2), np.nan))
    assert np.isfinite(cupy.linalg.eigh(nan)[0].get()).all()
    with pytest.raises(ValueError, match=r"of 2 rows failed on the GPU \(Error reported by xsyevd"):
        backend.eigh(nan)


@pytest.mark.parametrize("kind", ["cupy", "torch"])
def test_what_cusolver_refuses_is_said_with_its_remedy(kind, cupy, monkeypatch):
    """No size is refused beforehand: newer versions may take it."""
    backend = resolve("cuda") if kind == "cupy" else TorchBackend("cuda:0")

    def refuses(*_, **__):
        raise RuntimeError("CUSOLVER_STATUS_INVALID_VALUE\nmore")

    K = backend.asarray(np.eye(4))
    monkeypatch.setattr(one_device, "KNOWN_XSYEVD", 3)
    assert_near(to_numpy(backend.eigh(K)[0]), np.ones(4))
    monkeypatch.setattr(cupy.linalg if kind == "cupy" else backend.xp.linalg, "eigh", refuses)
    with pytest.raises(
        MemoryError, match=r"4 rows \(CUSOLVER_STATUS_INVALID_VALUE\).*Update CUDA, or use"
    ):
        backend.eigh(K)
    monkeypatch.setattr(one_device, "KNOWN_XSYEVD", 4)
    with pytest.raises(ValueError, match="use device='cpu'"):
        backend.eigh(K)


def test_lapack_has_a_driver_for_more_rows_than_its_integers_count(monkeypatch, rng):
    rows = rng.standard_normal((30, 40))
    K, drivers, eigh = rows @ rows.T, [], scipy.linalg.eigh

    def noted(*args, driver, **how):
        drivers.append(driver)
        return eigh(*args, driver=driver, **how)

    monkeypatch.setattr(backends.scipy.linalg, "eigh", noted)
    for limit in (30, 29):
        monkeypatch.setattr(backends, "LARGEST_DSYEVD", limit)
        values, V = NumpyBackend().eigh(K.copy())
        assert_near(V * values @ V.T, K, 1e-13)
    assert drivers == ["evd", "evr"]
    n = 32_766  # what the limit says
    assert 2 * n * n + 6 * n + 1 < 2**31 < 2 * (n + 1) ** 2 + 6 * (n + 1) + 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of estimates that scatter
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_fits(method, weighted, cupy):
    kernel = Polynomial(2, 0.3) if method == "primal" else KERNEL

    def answers(place):
        weights = {"sample_weight": place(W), "intercept": True} if weighted else {}
        fitted = sdgpu.fit(place(X), place(Y), kernel, LAMS, steps=3, **METHODS[method], **weights)
        path, new, truth = fitted.path(0.5, alphas=[0.3, -0.2], steps=3), place(X_NEW), place(Y_NEW)
        sweep = fitted.sweep(new, truth, alphas=[0, 0.5], steps=3)
        return [
            path.fitted,
            path.dual,
            path.predict(new),
            path.gradient(new),
            fitted.limit(0.5, 0.3).predict(new),
            fitted.loo(0.5, alphas=0.3, steps=3),
            fitted.predictor(sweep.best()).predict(new),
            sweep.dataset["mse"].values,
            fitted.sweep(alphas=[0, 0.5], steps=3).dataset["mse"].values,
            fitted.optimal_alphas(new, truth, lam=0.5, steps=3).alphas,
            fitted.joint_alphas(new, truth, lam=0.5, steps=3).alphas,
        ]

    compare(answers, cupy, 1e-6 if "tol" in METHODS[method] else 1e-10)


@pytest.mark.parametrize(
    "features", [sdgpu.Nystrom(20), sdgpu.RandomFourier(30)], ids=["nystrom", "fourier"]
)
def test_features(features, cupy):
    """Results are CuPy's too, though torch reads the rows."""

    def answers(place):
        weights = {"sample_weight": place(W), "intercept": True}
        fitted = sdgpu.fit(place(X), place(Y), KERNEL, LAMS, features=features, **weights)
        new = place(X_NEW)
        return [
            fitted.path(0.5, alphas=0.3, steps=3).predict(new),
            fitted.sweep(new, place(Y_NEW), alphas=[0, 0.5], steps=3).dataset["mse"].values,
            fitted.sweep(alphas=[0, 0.5], steps=3).dataset["mse"].values,
        ]

    compare(answers, cupy, 1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a search that ends at a bound
def test_further_answers(cupy, tmp_path):
    (tmp_path / "numpy").mkdir()
    folders = {np.asarray: tmp_path / "numpy", cupy.asarray: tmp_path}
    compare(lambda place: list(further_answers(place, folders[place])), cupy, 1e-7)


@pytest.mark.parametrize(
    "kernel", [Matern(0.5), sdgpu.NTK(2), sdgpu.Laplacian(0.3)], ids=lambda k: type(k).__name__
)
def test_kernels_on_its_arrays(kernel, cupy):
    rows = X.copy()
    rows[3], rows[5] = rows[4], -rows[6]
    found = kernel(cupy.asarray(rows), cupy.asarray(X_NEW))
    assert isinstance(found, ndarray)
    assert_near(found.get(), kernel(rows, X_NEW), 1e-10)
    assert_near(kernel(cupy.asarray(rows)).get(), kernel(rows), 1e-10)


def test_mixed_libraries_are_refused(cupy):
    with pytest.raises(ValueError, match=r"X is cupy on .* Y is numpy on cpu"):
        sdgpu.fit(cupy.asarray(X), Y, KERNEL, LAMS)
    fitted = sdgpu.fit(cupy.asarray(X), cupy.asarray(Y), KERNEL, LAMS)
    with pytest.raises(ValueError, match="bring both to one library"):
        fitted.path(0.5).predict(X_NEW)


def compare(answers, cupy, rtol):
    wanted = answers(np.asarray)
    for found, truth in zip(answers(cupy.asarray), wanted, strict=True):
        if library(truth) == "numpy" and not isinstance(found, np.ndarray):
            assert isinstance(found, ndarray), type(found)
            found = found.get()
        assert_near(found, truth, rtol)
