"""Rows of a growing basis and what it says of residuals, against dense Galerkin solutions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.solvers.galerkin import (
    FAINT,
    GrowingBasis,
    gram_rounding,
    orthonormal_rows,
    relative_to,
    unit_rows,
)
from tests.problems import EPS, from_spectrum

DELTA = np.geomspace(1e-3, 5.0, 24)
LAMS = np.array([0.01, 0.3, 6.0])


def grown(problem, *, krylov, blocks=3):
    """A block Krylov basis of the targets."""
    basis = GrowingBasis(24, 2, NumpyBackend(), krylov=krylov)
    block = problem.Y.T
    for _ in range(blocks):
        new = basis.new_directions(block)
        basis.append(new, new @ problem.K)
        block = new @ problem.K
    return basis


def check(basis, problem):
    """Q, T and R are what the module says, and the residuals those of dense Galerkin solutions."""
    K, Y, Q = problem.K, problem.Y, basis.Q
    k = basis.k
    assert_allclose(Q @ Q.T, np.eye(k), atol=1e-12)
    assert_allclose(basis.T, Q @ K @ Q.T, atol=1e-12)
    R = Q @ K - basis.T @ Q
    assert_allclose(basis.R, R[-len(basis.R) :], atol=1e-12)
    assert_allclose(np.linalg.norm(R[: k - len(basis.R)]), 0, atol=1e-11)
    assert_allclose(basis.squared_residual_norm, np.sum(basis.R**2), rtol=1e-12)
    values, vectors = basis.ritz()
    seen = basis.residuals(values, vectors, Y.T, LAMS, 3)
    for i, lam in enumerate(LAMS):
        before, total = Y, np.zeros_like(Y)
        for step in range(3):
            w = Q.T @ np.linalg.solve(basis.T + lam * np.eye(k), Q @ before)
            r = before - K @ w - lam * w
            total = total + r
            size = np.linalg.norm(Y)
            assert_allclose(seen.norms[i, step], np.linalg.norm(r, axis=0), atol=1e-7 * size)
            assert_allclose(seen.sums[i, step], np.linalg.norm(total, axis=0), atol=1e-7 * size)
            inner = Q @ w
            assert_allclose(seen.duals[i, step], np.linalg.norm(inner, axis=0), rtol=1e-9)
            fitted = Q.T @ (basis.T @ inner)
            assert_allclose(seen.fitted[i, step], np.linalg.norm(fitted, axis=0), rtol=1e-9)
            before = K @ w
        first = np.maximum(
            seen.fitted[i, 0],
            FAINT * values[-1] / (values[-1] + lam) * np.linalg.norm(Q @ Y, axis=0),
        )
        assert_allclose(seen.sizes[i, 0], first, rtol=1e-12)
    some = basis.certified(seen, vectors, np.arange(3))
    assert_allclose(some.norms, seen.norms, atol=1e-7 * np.linalg.norm(Y))
    assert_allclose(some.sums, seen.sums, atol=1e-7 * np.linalg.norm(Y))


@pytest.mark.parametrize("krylov", [False, True])
def test_residuals_are_those_of_dense_solutions(krylov):
    problem = from_spectrum(DELTA, c=2)
    basis = grown(problem, krylov=krylov)
    assert basis.k == 6
    assert basis.width == (2 if krylov else 0)
    check(basis, problem)


@pytest.mark.parametrize("krylov", [False, True])
def test_a_compressed_basis_keeps_its_solutions(krylov):
    problem = from_spectrum(DELTA, c=2)
    basis = grown(problem, krylov=krylov, blocks=4)
    own = np.random.default_rng(0).standard_normal((3, 8))
    span = np.linalg.qr(np.column_stack([basis.Q @ problem.Y, own.T]))[0]
    wanted = span.T @ basis.Q
    basis.compress(np.vstack([(basis.Q @ problem.Y).T, own]))
    assert basis.k == 5
    assert_allclose(basis.Q.T @ basis.Q, wanted.T @ wanted, atol=1e-12)
    check(basis, problem)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("krylov", [False, True])
def test_a_restored_basis_is_what_it_was_and_grows_on(krylov, blocks):
    """A Krylov space has the residuals of its last block alone, which are all after one pass."""
    problem = from_spectrum(DELTA, c=2)
    basis = grown(problem, krylov=krylov, blocks=blocks)
    state = basis.state(blocks)
    again = GrowingBasis(24, 1, NumpyBackend(), krylov=krylov)
    again.restore(state)
    assert (again.krylov, again.width) == (krylov, basis.width)
    check(again, problem)
    for one in (basis, again):
        new = one.new_directions(one.R[-2:])
        one.append(new, new @ problem.K)
    assert_allclose(again.Q, basis.Q, atol=1e-12)
    check(again, problem)


def test_a_restored_basis_that_was_compressed_is_no_krylov_space():
    problem = from_spectrum(DELTA, c=2)
    basis = grown(problem, krylov=True, blocks=4)
    basis.compress(np.vstack([(basis.Q @ problem.Y).T, np.eye(3, 8)]))
    again = GrowingBasis(24, 1, NumpyBackend(), krylov=True)
    again.restore(basis.state(4))
    assert not again.krylov
    check(again, problem)


def test_ritz_values_of_an_indefinite_matrix_are_clamped():
    basis = GrowingBasis(3, 2, NumpyBackend(), krylov=False)
    basis.append(np.eye(3)[:2], np.diag([-0.5, 2.0, 1.0])[:2])
    values, vectors = basis.ritz()
    assert_allclose(values, [0.0, 2.0], atol=1e-15)
    assert_allclose(np.abs(vectors), np.eye(2), atol=1e-15)


def test_an_interrupt_finds_a_whole_basis_or_none():
    problem = from_spectrum(DELTA, c=2)
    basis = grown(problem, krylov=False)
    assert basis.consistent
    with pytest.raises(ValueError):  # noqa: PT011 - whatever ends it
        basis.append(problem.Y.T, problem.K[:, :5])
    assert not basis.consistent
    other = grown(problem, krylov=True)
    other.compress(np.eye(4, 6))
    assert other.consistent


def test_no_room_is_made_for_rows_that_will_not_come():
    problem = from_spectrum(DELTA, c=2)
    for most, rooms in ((None, [4, 7, 11]), (6, [4, 6, 8])):
        basis = GrowingBasis(24, 4, NumpyBackend(), krylov=False, max_rows=most)
        block, held = problem.Y.T, []
        for _ in range(4):
            new = basis.new_directions(block)
            basis.append(new, new @ problem.K)
            block = new @ problem.K
            held.append(len(basis._Q))
            assert len(basis._R) == len(basis._Q)
        assert held[1:] == rooms
        check(basis, problem)


def test_the_norm_is_the_larger_of_what_is_seen():
    basis = GrowingBasis(4, 2, NumpyBackend(), krylov=False, diagonal=3.0)
    assert basis.norm(np.array([1.0, 2.0])) == 3
    assert basis.norm(np.array([1.0, 4.0])) == 4
    assert basis.norm(np.zeros(0)) == 3
    assert GrowingBasis(4, 2, NumpyBackend(), krylov=False).norm(np.array([0.1, 0.5])) == 0.5


def test_formulas_of_rounding():
    assert_allclose(gram_rounding(9.0), 24 * np.sqrt(EPS), rtol=1e-12)
    fitted = np.array([[[1.0, 1e-9]], [[0.5, 1e-9]]])
    found = relative_to(fitted, np.array([2.0, 3.0]), 4.0, np.array([1.0, 12.0]))
    assert_allclose(found[:, 0], [[1.0, FAINT * 0.8 * 3], [0.5, FAINT * 0.25 * 3]], rtol=1e-12)


def test_rows_of_any_size_become_directions():
    rows = np.array([[3e-200, 4e-200, 0.0], [0.0, 0.0, 0.0], [0.0, 6e200, 8e200]])
    found = unit_rows(rows, NumpyBackend())
    assert_allclose(found, [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]], rtol=1e-14)
    assert unit_rows(rows[:0], NumpyBackend()).shape == (0, 3)


def test_rows_that_repeat_are_dropped():
    rng = np.random.default_rng(1)
    base = np.linalg.qr(rng.standard_normal((20, 4)))[0].T
    rows = rng.standard_normal((3, 20))
    inside = rng.standard_normal((2, 4)) @ base
    block = np.vstack([rows, rows[:1] - 2 * rows[1:2], inside, 1e-9 * rows[2:]])
    found = orthonormal_rows(block, [base], NumpyBackend())
    assert found.shape == (3, 20)
    assert_allclose(found @ found.T, np.eye(3), atol=1e-13)
    assert_allclose(found @ base.T, 0, atol=1e-13)
    left = rows - (rows @ base.T) @ base
    assert_allclose(left - (left @ found.T) @ found, 0, atol=1e-12)
    assert len(orthonormal_rows(inside, [base], NumpyBackend())) == 0
