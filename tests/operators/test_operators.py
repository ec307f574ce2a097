"""One conformance suite for every operator, kernel and library, with tiles of 7 rows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.kernels import NTK, Gaussian, Laplacian, Linear, Matern, Polynomial, Precomputed
from sdgpu.operators import DenseOperator, KeOpsOperator
from sdgpu.operators.keops import why_not
from tests.problems import assert_near

KERNELS = [Gaussian(0.2), Laplacian(0.2), Matern(1.5), Polynomial(2), Gaussian(0.2) + Linear()]


@pytest.fixture(params=KERNELS, ids=lambda kernel: type(kernel).__name__)
def kernel(request):
    return request.param


def test_conformance(kernel, backend, rng):
    A, new, V = (
        rng.standard_normal((23, 5)),
        rng.standard_normal((9, 5)),
        rng.standard_normal((23, 3)),
    )
    operator = DenseOperator(kernel, backend.asarray(A), tile=7)
    K = to_numpy(kernel(backend.asarray(A)))
    assert operator.n == 23
    assert_allclose(to_numpy(operator.matmat(backend.asarray(V))), K @ V, rtol=1e-12, atol=1e-12)
    assert_allclose(to_numpy(operator.diag()), K.diagonal())
    assert_allclose(
        to_numpy(operator.columns([0, 7, 22])), K[:, [0, 7, 22]], rtol=1e-12, atol=1e-14
    )
    cross = operator.cross(backend.asarray(new))
    wanted = to_numpy(kernel(backend.asarray(np.vstack([new, A])), None))[:9, 9:]
    assert cross.shape == (9, 23)
    assert_allclose(to_numpy(cross.dense()), wanted, rtol=1e-11, atol=1e-13)
    assert_allclose(to_numpy(cross @ backend.asarray(V)), wanted @ V, rtol=1e-11, atol=1e-12)


def test_strided_and_read_only_input(rng):
    A = np.asfortranarray(rng.standard_normal((20, 8)))[::-2, ::2]
    A.flags.writeable = False
    operator = DenseOperator(Gaussian(0.1), A, tile=3)
    assert_near(operator.matmat(np.eye(10)), Gaussian(0.1)(A.copy()), rtol=1e-13)


def test_cross_is_an_array_and_works_in_blocks(rng):
    A, new = rng.standard_normal((30, 4)), rng.standard_normal((25, 4))
    cross = DenseOperator(Gaussian(0.1), A).cross(new)
    assert_near(np.asarray(cross), cross.dense())
    blocks = list(cross.blocks(entries=60))
    assert [rows.stop - rows.start for rows, _ in blocks] == [2] * 12 + [1]
    assert_near(np.vstack([block for _, block in blocks]), cross.dense())


def test_no_new_rows(rng):
    operator = DenseOperator(Gaussian(0.1), rng.standard_normal((5, 2)))
    assert operator.cross(np.ones((0, 2))).matmat(np.ones((5, 3))).shape == (0, 3)


def test_precomputed(rng):
    A = rng.standard_normal((6, 3))
    K = A @ A.T
    operator = DenseOperator(Precomputed(), K)
    assert_near(operator.matmat(np.eye(6)), K)
    assert operator.gram() is not K
    assert_allclose(operator.diag(), K.diagonal())
    assert_near(operator.columns([1, 4]), K[:, [1, 4]])
    assert_near(operator.cross(K[:2]) @ np.eye(6), K[:2])
    with pytest.raises(ValueError, match="square"):
        DenseOperator(Precomputed(), K[:3])
    with pytest.raises(ValueError, match="not symmetric"):
        DenseOperator(Precomputed(), K + np.triu(np.ones((6, 6)), 1))
    with pytest.raises(ValueError, match="4 features, but the fit has 6"):
        operator.cross(np.ones((1, 4)))


def test_values_between_new_pairs_need_a_formula():
    operator = DenseOperator(Precomputed(), np.eye(3))
    with pytest.raises(TypeError, match="no values between new pairs"):
        operator.kernel.tile(operator.rows, operator.rows)


def test_angles_of_nearly_parallel_rows_in_keops(rng):
    """4 - (4 - x), as a clip of lazy tensors was, leaves nothing of the squared chord x = 1e-12."""
    if why_not():
        pytest.skip(why_not())
    rows = rng.standard_normal((6, 3))
    pairs = np.vstack([rows, rows + 1e-6 * rng.standard_normal((6, 3))])
    V = np.vstack([np.eye(6), -np.eye(6)])  # differences of near pairs alone
    wanted = DenseOperator(NTK(1), pairs).matmat(V)
    assert_allclose(KeOpsOperator(NTK(1), pairs).matmat(V), wanted, rtol=0, atol=1e-12)
