"""Kernel values of sparse rows against those of the same rows made dense."""

import numpy as np
import pytest
import scipy.sparse
import torch

import sdgpu
from sdgpu.kernels import kernel_matrices
from tests.problems import assert_near

SCALE = np.linspace(0.5, 2, 40)
KERNELS = [
    sdgpu.Linear(),
    sdgpu.Linear(SCALE),
    sdgpu.Polynomial(3, 0.5, 1.0),
    sdgpu.Cosine(),
    sdgpu.Cosine(2.0),
    sdgpu.Tanimoto(),
    sdgpu.Tanimoto(SCALE),
    sdgpu.Gaussian(0.2),
    sdgpu.Gaussian(0.5, SCALE),
    sdgpu.Matern(0.5, 2.0),
    sdgpu.Matern(3.5, 2.0),
    sdgpu.RationalQuadratic(0.7, 2.0),
    sdgpu.ArcCosine(0),
    sdgpu.ArcCosine(2, SCALE),
    sdgpu.NNGP(2),
    sdgpu.NTK(1),
    sdgpu.NTK(3, bias_var=0.2),
    2.0 * sdgpu.Gaussian(0.2) * sdgpu.Linear() + sdgpu.On([3, 7, 0, 9], sdgpu.Tanimoto()),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel_matrices, "SPARSE_TILE", 7)
    monkeypatch.setattr(kernel_matrices, "TILE", 5)


@pytest.fixture
def rows(rng):
    X = scipy.sparse.random_array((25, 40), density=0.1, rng=rng, format="csr")
    dense = X.toarray()
    dense[3] = dense[11]  # repeated
    dense[5] = dense[11] * (1 + 1e-9)  # and nearly so
    dense[7] = 0
    return dense


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "make",
    [scipy.sparse.csr_array, scipy.sparse.coo_matrix, lambda x: torch.tensor(x).to_sparse()],
    ids=["csr", "coo", "torch"],
)
def test_values_are_those_of_dense_rows(kernel, dtype, make, rows, rng):
    A, B = rows.astype(dtype), rng.standard_normal((9, 40)).astype(dtype)
    rtol = 1e-13 if dtype == "float64" else 3e-6
    wanted, crossed = kernel(A.astype(float)), kernel(A.astype(float), B.astype(float))
    K = kernel(make(A))
    assert type(K) is np.ndarray
    assert K.dtype == dtype
    assert (K == K.T).all()
    assert_near(K, wanted, rtol)
    for left, right in ((make(A), B), (A, make(B)), (make(A), make(B))):
        found = kernel(left, right)
        assert found.dtype == dtype
        assert_near(found, crossed, rtol)
    assert_near(np.diag(K), kernel.diagonal(kernel.rows(scipy.sparse.csr_array(A), None)), rtol)


@pytest.mark.parametrize("kernel", [sdgpu.Gaussian(0.3), sdgpu.Matern(0.5)], ids=repr)
def test_long_rows_keep_the_distance_of_near_ones(kernel, rng):
    """Rows of length 1e4 that differ by 1e-3: of squares alone no digit would be left."""
    X = np.zeros((20, 40))
    X[:, 5] = 1e4
    X[:, 30] = 1e-3 * np.arange(20)
    assert_near(kernel(scipy.sparse.csr_array(X)), kernel(X[:, 30:31]), 1e-11)


def test_no_row_is_made_dense(rng):
    """100,000 features: one block of rows would be a gigabyte."""
    X = scipy.sparse.random_array((1500, 10**6), density=3e-5, rng=rng, format="csr")
    K = sdgpu.Gaussian(0.1)(X)
    products = (X @ X.T).toarray()
    squares = products.diagonal()
    assert_near(K, np.exp(-0.1 * (squares[:, None] + squares - 2 * products)), 1e-12)


def test_a_fit_of_them(rows, rng):
    """As the kernel matrix, which is what an exact fit of few sparse rows needs."""
    X, Y, new = scipy.sparse.csr_array(rows), rng.standard_normal((25, 2)), rows[:4] * 1.1
    kernel = sdgpu.Tanimoto()
    fitted = sdgpu.fit(kernel(X), Y, "precomputed", 0.1).path(alphas=0.3, steps=3)
    wanted = sdgpu.fit(rows, Y, kernel, 0.1).path(alphas=0.3, steps=3)
    assert_near(fitted.predict(kernel(scipy.sparse.csr_array(new), X)), wanted.predict(new), 1e-10)


@pytest.mark.parametrize(
    ("kernel", "A", "B", "error", "words"),
    [
        (
            sdgpu.Laplacian(),
            np.eye(3),
            None,
            TypeError,
            "has no values of sparse rows: pass X.toarray",
        ),
        (
            sdgpu.Gaussian() + sdgpu.Periodic(),
            np.eye(3),
            None,
            TypeError,
            "has no values of sparse rows",
        ),
        (sdgpu.ChiSquared(), np.eye(3), None, TypeError, "has no values of sparse rows"),
        (sdgpu.Gaussian(), np.eye(3), np.eye(2), ValueError, "B has 2 features, but A has 3"),
        (sdgpu.Gaussian(), np.eye(3) * np.nan, None, ValueError, "A has .* NaN or infinite"),
        (sdgpu.Gaussian(), np.eye(3) * 1j, None, TypeError, "A has dtype complex128"),
        (
            sdgpu.Gaussian(0.5, [1.0, 2.0]),
            np.eye(3),
            None,
            ValueError,
            "2 entries, but the data have 3",
        ),
        (
            sdgpu.On(3, sdgpu.Gaussian()),
            np.eye(3),
            None,
            ValueError,
            "names column 3, but the data",
        ),
    ],
)
def test_bad_input(kernel, A, B, error, words):
    with pytest.raises(error, match=words):
        kernel(scipy.sparse.csr_array(A), None if B is None else scipy.sparse.csr_array(B))


def test_no_rows():
    empty = scipy.sparse.csr_array((0, 3))
    assert sdgpu.Gaussian()(empty).shape == (0, 0)
    assert sdgpu.Gaussian()(scipy.sparse.csr_array(np.eye(3)), empty).shape == (3, 0)
