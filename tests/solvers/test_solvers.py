"""Eigh and Cholesky against NumPy, at the edges of the spectrum."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import FunctionKernel, Gaussian, Polynomial, Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers import Cholesky, Eigh
from tests.problems import assert_near, from_spectrum, most_bytes


def decompose(backend, K, Y):
    operator = DenseOperator(Precomputed(), backend.asarray(K))
    return Eigh(backend).decompose(operator, backend.asarray(Y), Stopwatch(backend.synchronize))


def test_spectrum(backend):
    problem = from_spectrum([0.0, 0.1, 1.0, 5.0], c=3)
    spectrum = decompose(backend, problem.K, problem.Y)
    V = to_numpy(spectrum.basis)
    assert_allclose(to_numpy(spectrum.eigenvalues), problem.delta, atol=1e-14)
    assert_allclose((V * problem.delta) @ V.T, problem.K, atol=1e-14)
    assert_allclose(V @ to_numpy(spectrum.Z), problem.Y, atol=1e-14)
    assert spectrum.below_rounding == 1
    assert spectrum.method == "eigh"


def test_negative_rounding_is_clamped(backend):
    X = np.linspace(0, 1, 40)[:, None]  # a smooth kernel: most eigenvalues are rounding
    operator = DenseOperator(Gaussian(0.5), backend.asarray(X))
    watch = Stopwatch(backend.synchronize)
    spectrum = Eigh(backend).decompose(operator, backend.asarray(np.ones((40, 1))), watch)
    assert float(spectrum.eigenvalues[0]) >= 0
    assert spectrum.below_rounding > 25
    assert set(watch.seconds) == {"gram", "eigh"}


def test_indefinite_kernels_are_refused(backend):
    K = np.diag([1.0, 2.0, -0.5])
    with pytest.raises(
        ValueError, match=r"^the precomputed .* not positive semi-definite: .* go down to -0.5"
    ):
        decompose(backend, K, np.ones((3, 1)))


def test_float32_rounding_of_a_given_matrix_passes(backend):
    problem = from_spectrum(np.geomspace(1e-9, 1, 30))
    K = problem.K.astype(np.float32).astype(np.float64)
    assert float(decompose(backend, K, problem.Y).eigenvalues[0]) == 0


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-6), ("float32", 1e-4)])
def test_what_rounding_of_the_given_numbers_allows(backend, dtype, limit, share):
    """Of the largest eigenvalue by size: -1e-6 of it, or -1e-4 for a matrix of float32."""
    lowest = -share * limit * 4.0
    K = np.diag([1.0, 4.0, lowest])
    operator = DenseOperator(Precomputed(), backend.asarray(K), given_dtype=dtype)

    def solve():
        watch = Stopwatch(backend.synchronize)
        return Eigh(backend).decompose(operator, backend.asarray(np.ones((3, 1))), watch)

    if share > 1:
        with pytest.raises(ValueError, match=r"against a largest of 4"):
            solve()
    else:
        spectrum = solve()
        assert_allclose(to_numpy(spectrum.eigenvalues), [0, 1, 4], atol=1e-15)
        assert_allclose(spectrum.most_negative, lowest, rtol=1e-9)
        assert spectrum.below_rounding == 1


def test_eigenvalues_below_n_eps_of_the_largest_have_no_digit(backend):
    eps = np.finfo(float).eps
    K = np.diag(np.array([0.0, 4.5 * eps, 5.5 * eps, 0.5, 1.0]) * 8)  # n = 5
    assert decompose(backend, K, np.ones((5, 1))).below_rounding == 2


def test_one_entry_that_overflows_is_refused(backend):
    """Of rows that are right: 1e60 cubed twice."""
    X = backend.asarray(np.array([[1.0], [-1e60], [2.0]]))
    operator = DenseOperator(Polynomial(3, 1.0, 1.0), X)
    with pytest.raises(ValueError, match=r"the kernel Polynomial.* \|X\| up to 1e\+60"):
        Eigh(backend).decompose(
            operator, backend.asarray(np.ones((3, 1))), Stopwatch(backend.synchronize)
        )


def test_an_indefinite_kernel_is_named(backend):
    X = backend.asarray(np.arange(4.0)[:, None])
    operator = DenseOperator(FunctionKernel(lambda A, B: -abs(A - B.T)), X)
    with pytest.raises(ValueError, match=r"the kernel FunctionKernel.* is not positive"):
        Eigh(backend).decompose(
            operator, backend.asarray(np.ones((4, 1))), Stopwatch(backend.synchronize)
        )


def test_cholesky_solves(backend):
    problem = from_spectrum([0.0, 0.1, 1.0, 5.0], c=3)
    operator = DenseOperator(Precomputed(), backend.asarray(problem.K))
    factor = Cholesky(backend).factor(operator, 0.3)
    wanted = np.linalg.solve(problem.K + 0.3 * np.eye(4), problem.Y)
    assert_near(to_numpy(factor.solve(backend.asarray(problem.Y))), wanted, rtol=1e-12)
    assert_near(to_numpy(operator.matrix), problem.K)  # untouched


def test_cholesky_of_an_indefinite_matrix(backend):
    operator = DenseOperator(Precomputed(), backend.asarray(np.diag([1.0, -1.0])))
    with pytest.raises(ValueError, match="raise lam"):
        Cholesky(backend).factor(operator, 0.5)


def test_factorisations_take_what_was_said():
    X, Y, backend = np.linspace(0, 1, 400)[:, None], np.ones((400, 1)), NumpyBackend()
    kernel, watch = Gaussian(50.0), Stopwatch(lambda: None)
    for said, call in (
        (Eigh.peak_bytes(400), lambda: Eigh(backend).decompose(DenseOperator(kernel, X), Y, watch)),
        (Cholesky.peak_bytes(400), lambda: Cholesky(backend).factor(DenseOperator(kernel, X), 1.0)),
    ):
        call()
        assert 0.85 * said <= most_bytes(call) <= said
