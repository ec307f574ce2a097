"""The entries that are not 0 against the whole matrix, and fits with them against refits."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.operators import DenseOperator, SparseOperator
from tests.problems import assert_near

KERNELS = [
    sdgpu.Wendland(0, 0.4),
    sdgpu.Wendland(1, 0.4),
    sdgpu.Wendland(2, [0.2, 0.5, 3.0]),
    sdgpu.Wendland(3, 50.0),
    2.5 * sdgpu.Wendland(1, 0.3) * sdgpu.Gaussian(2.0),
    sdgpu.On([0, 2], sdgpu.Wendland(1, 0.3)) * (sdgpu.Linear() + sdgpu.On(1, sdgpu.Periodic(0.7))),
]


@pytest.fixture
def data(rng):
    X = rng.uniform(0, 3, (700, 3))
    X[11] = X[4]
    return X, rng.uniform(-1, 4, (90, 3)), rng.standard_normal((700, 2))


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_entries_are_those_of_the_matrix(kernel, make, dtype, data):
    X, new, V = (array.astype(dtype) for array in data)
    operator, dense = SparseOperator(kernel, make(X)), DenseOperator(kernel, X.astype(float))
    K, whole = operator.matrix, dense.matrix
    rtol = (
        1e-12 if dtype == "float64" else 3e-4
    )  # a slope of 15 and more, at 7 radii from the centre
    assert isinstance(K, scipy.sparse.csr_array)
    assert str(K.dtype) == dtype
    assert (K != K.T).nnz == 0
    assert_near(K.toarray(), whole, rtol)
    assert ((K.toarray() != 0) == (whole != 0)).mean() > 0.999  # but at the very edge
    assert (operator.n, operator.d, operator.is_precomputed) == (700, 3, False)
    product = operator.matmat(make(V))
    assert type(product) is type(make(V))
    assert_near(to_numpy(product), whole @ V, rtol)
    assert_near(to_numpy(operator.diag()), dense.diag(), rtol)
    assert_near(to_numpy(operator.columns([0, 7, 699])), whole[:, [0, 7, 699]], rtol)
    cross, wanted = operator.cross(make(new)), dense.cross(new.astype(float)).dense()
    assert cross.shape == (90, 700)
    assert_near(to_numpy(cross.dense()), wanted, rtol)
    assert_near(to_numpy(cross @ make(V)), wanted @ V, rtol)
    assert_near(to_numpy(cross.diag()), dense.cross(new.astype(float)).diag(), rtol)
    blocks = list(cross.blocks(entries=7000))
    assert [rows.stop - rows.start for rows, _ in blocks] == [10] * 9
    assert_near(np.vstack([to_numpy(block) for _, block in blocks]), wanted, rtol)


def test_memory_is_that_of_the_entries(rng):
    X = rng.uniform(0, 100, (20_000, 2))
    kernel = sdgpu.Wendland(1, 1.0)
    operator = SparseOperator(kernel, X)
    assert operator.matrix.nnz < 20_000 * 12  # of 4e8
    rows = rng.choice(20_000, 50)
    assert_near(operator.matrix[rows].toarray(), kernel(X[rows], X), 1e-12)
    with pytest.raises(MemoryError, match=r"entries that are not 0 needs .*smaller lengthscale"):
        _ = SparseOperator(kernel, X, memory="1MB").matrix
    with pytest.raises(MemoryError, match="K of 400,000,000 entries"):
        _ = SparseOperator(sdgpu.Wendland(1, 1000.0), X, memory="1GB").matrix


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_are_refits(method, weighted, data):
    X, new, Y = data
    kernel = sdgpu.Wendland(1, 0.5) * sdgpu.Gaussian(0.5)
    how = {"sample_weight": np.linspace(0.5, 2, len(X)), "intercept": True} if weighted else {}
    lams = np.array([0.3, 3.0])
    fitted = sdgpu.fit(X, Y, kernel, lams, method=method, operator=SparseOperator, tol=1e-8, **how)
    assert fitted.info.operator == "SparseOperator"
    assert fitted.info.status.startswith("converged")
    truth = sdgpu.fit(X, Y, kernel, lams, method="eigh", **how)
    for lam in lams:
        found, wanted = (one.path(lam, 0.3, steps=4).predict(new) for one in (fitted, truth))
        assert_near(found, wanted, 1e-7)


def test_what_is_nowhere_zero_is_refused(rng):
    X = rng.standard_normal((5, 2))
    for kernel in (sdgpu.Gaussian(), sdgpu.Wendland() + sdgpu.Gaussian(), sdgpu.Precomputed()):
        with pytest.raises(TypeError, match="is nowhere exactly 0: multiply it by sdgpu"):
            SparseOperator(kernel, X)
    with pytest.raises(ValueError, match="2 features, but the fit has 3"):
        SparseOperator(sdgpu.Wendland(), np.ones((4, 3))).cross(X)


def test_few_rows_and_pickles(rng):
    kernel = sdgpu.Wendland(1, 0.5)
    one = SparseOperator(kernel, np.ones((1, 2)))
    assert_allclose(one.matmat(np.ones((1, 1))), [[1.0]])
    assert one.cross(np.ones((0, 2))).matmat(np.ones((1, 3))).shape == (0, 3)
    assert list(one.cross(np.ones((0, 2))).blocks()) == []
    assert one.cross(np.full((2, 2), 9.0)).dense().tolist() == [[0.0], [0.0]]
    operator = SparseOperator(kernel, rng.standard_normal((30, 2)))
    V = rng.standard_normal((30, 2))
    first = operator.matmat(V)
    assert_allclose(pickle.loads(pickle.dumps(operator)).matmat(V), first)
