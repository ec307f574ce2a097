"""Backends: the same factorisations everywhere, and results that go back where they came from."""

import array_api_strict
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sdgpu.backend import cupy_backend
from sdgpu.backend.arrays import Template
from sdgpu.backend.backends import (
    Backend,
    NumpyBackend,
    TorchBackend,
    cuda_count,
    give_back,
    resolve,
    small_eigh,
    to_numpy,
)
from sdgpu.backend.environment import backends, versions
from tests.problems import assert_near

K = np.array([[2.0, 0.5, 0.1], [0.5, 1.5, 0.2], [0.1, 0.2, 1.0]])


def test_protocol(backend):
    assert isinstance(backend, Backend)
    assert backend.name
    backend.synchronize()


@pytest.mark.parametrize("order", ["C", "F"])
def test_eigh(backend, order):
    eigenvalues, V = backend.eigh(backend.asarray(np.array(K, order=order)))
    eigenvalues, V = to_numpy(eigenvalues), to_numpy(V)
    assert (np.diff(eigenvalues) > 0).all()
    assert_allclose((V * eigenvalues) @ V.T, K, atol=1e-14)


@pytest.mark.parametrize("threads", [1, 2])
def test_eigh_of_tensors_by_either_library(threads):
    """On one thread SciPy has it, on more torch; a transposed or cut matrix is the same matrix."""
    before, backend = torch.get_num_threads(), TorchBackend("cpu")
    generator = np.random.default_rng(0)
    A = generator.standard_normal((40, 60))
    wide = torch.from_numpy(np.pad(A @ A.T, 3))
    truth = np.linalg.eigvalsh(A @ A.T)
    torch.set_num_threads(threads)
    try:
        for matrix in (wide[3:-3, 3:-3], wide[3:-3, 3:-3].T.clone(), wide[3:-3, 3:-3].clone().T):
            eigenvalues, V = backend.eigh(matrix.clone(memory_format=torch.preserve_format))
            assert_allclose(eigenvalues.numpy(), truth, rtol=1e-12)
            assert_allclose((V * eigenvalues) @ V.T, A @ A.T, atol=1e-11)
    finally:
        torch.set_num_threads(before)


def test_cholesky(backend):
    B = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
    factor = backend.cholesky(backend.asarray(K.copy()))
    assert_near(to_numpy(backend.cho_solve(factor, backend.asarray(B))), np.linalg.solve(K, B))
    with pytest.raises(ValueError, match="not positive definite"):
        backend.cholesky(backend.asarray(np.diag([1.0, -1.0])))


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3), dtype=np.float32),
        np.ones((6, 3))[::-2],
        torch.ones(2, 3),
        array_api_strict.ones((2, 3)),
    ],
)
def test_arrays_of_every_library_come_in_as_float64(backend, array):
    inside = backend.asarray(array)
    assert str(inside.dtype).endswith("float64")
    assert to_numpy(inside).shape[1] == 3


def test_read_only_arrays_come_in(backend):
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    assert_near(to_numpy(backend.asarray(array)), array)


@pytest.mark.parametrize(
    "sample", [np.ones((1, 1), dtype=np.float32), torch.ones(1, 1), array_api_strict.ones((1, 1))]
)
def test_results_go_back(backend, sample):
    template = Template(sample[:0, ...], "float32", flat=True)
    result = give_back(template, backend.asarray(np.ones((4, 2, 1))))
    assert type(result) is type(sample)
    assert tuple(result.shape) == (4, 2)
    assert str(result.dtype).endswith("float32")
    exact = give_back(template, backend.asarray(np.ones(3)), axis=False, exact=True)
    assert str(exact.dtype).endswith("float64")


def test_device_names(monkeypatch):
    assert isinstance(resolve("cpu"), NumpyBackend)
    assert resolve(TorchBackend("cpu")) == TorchBackend("cpu")
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        resolve("cuba")
    with pytest.raises(ValueError, match="no float64"):
        resolve("mps")
    with pytest.raises(TypeError, match="name or a Backend"):
        resolve(3)
    monkeypatch.setattr("sdgpu.backend.backends.cuda_count", lambda: 0)
    with pytest.raises(ValueError, match="no CUDA device: use device='cpu'"):
        resolve("cuda")
    assert isinstance(resolve("auto"), NumpyBackend)


def test_cuda_goes_to_cupy_or_torch(monkeypatch):
    monkeypatch.setattr("sdgpu.backend.backends.cuda_count", lambda: 2)
    monkeypatch.setattr(cupy_backend, "works", lambda: False)
    assert resolve("cuda:1") == TorchBackend("cuda:1")
    assert resolve("auto") == TorchBackend("cuda:0")
    monkeypatch.setattr(cupy_backend, "works", lambda: True)
    assert resolve("cuda:1") == cupy_backend.CupyBackend(1)
    with pytest.raises(ValueError, match="2 CUDA devices"):
        resolve("cuda:2")
    with pytest.raises(ValueError, match="must be a number"):
        resolve("cuda:x")


def test_cupy_says_why_not():
    if cuda_count():
        pytest.skip("there is a CUDA device")
    assert "CuPy" in cupy_backend.why_not()


def test_doctor_finds_a_working_backend():
    assert ("numpy", np.__version__) in versions()
    assert any(row.works and row.name == "numpy on cpu" for row in backends())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch", "cupy"])
def test_cuda_backends_do_what_numpy_does(name):
    if name == "cupy" and not cupy_backend.works():
        pytest.skip(cupy_backend.why_not())
    gpu = TorchBackend("cuda:0") if name == "torch" else cupy_backend.CupyBackend(0)
    eigenvalues, V = gpu.eigh(gpu.asarray(K))
    assert_allclose(to_numpy(eigenvalues), np.linalg.eigvalsh(K), rtol=1e-12)
    V = to_numpy(V)
    assert_allclose((V * to_numpy(eigenvalues)) @ V.T, K, atol=1e-12)
    factor = gpu.cholesky(gpu.asarray(K))
    B = np.ones((3, 2))
    assert_near(to_numpy(gpu.cho_solve(factor, gpu.asarray(B))), np.linalg.solve(K, B))
    with pytest.raises(ValueError, match="not positive definite"):
        gpu.cholesky(gpu.asarray(np.diag([1.0, -1.0])))
    tensor = torch.ones(2, 3, device="cuda:0")
    assert to_numpy(gpu.asarray(tensor)).shape == (2, 3)


def test_small_matrices_on_which_divide_and_conquer_fails(monkeypatch):
    """LAPACK gave up on a Gram matrix of 60 dependent rows; QR iterations do not."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 4)) @ rng.standard_normal((4, 12))
    gram = rows @ rows.T

    def gives_up(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    values, vectors = small_eigh(gram)
    np.testing.assert_allclose(vectors * values @ vectors.T, gram, atol=1e-12 * values[-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(20), atol=1e-13)
