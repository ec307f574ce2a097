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
    triangle_bytes,
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
    for capacity in (1, 24):  # in the second there is room for Q, but not yet for all residuals
        again = GrowingBasis(24, capacity, NumpyBackend(), krylov=True)
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


def nearly_parallel(size=1e-8):
    """Two rows whose difference is too small to be a direction of its own."""
    rng = np.random.default_rng(3)
    one, other = np.linalg.qr(rng.standard_normal((12, 2)))[0].T
    return np.vstack([one, one + size * other])


def outside(rows, *spans):
    left = rows
    for _ in range(2):
        for span in spans:
            left = left - (left @ span.T) @ span
    return np.linalg.norm(left, axis=1)


def test_required_rows_are_in_the_span_to_their_last_digit():
    rows = nearly_parallel()
    basis = GrowingBasis(12, 2, NumpyBackend(), krylov=False)
    assert len(basis.new_directions(rows)) == 1
    new = basis.new_directions(rows, required=rows)
    assert len(new) == 2
    assert_allclose(new @ new.T, np.eye(2), atol=1e-13)
    assert outside(rows, new).max() < 1e-15
    # what the rounding of their products is larger than is not looked for
    assert len(basis.new_directions(rows, required=rows, atol=1e-7)) == 1
    assert len(basis.new_directions(rows, required=rows, atol=1e-9)) == 2
    # nor what the basis holds already
    basis.append(new[1:], new[1:] @ np.diag(np.arange(1.0, 13)))
    more = basis.new_directions(rows, required=rows)
    assert outside(rows, basis.Q, more).max() < 1e-14
    assert_allclose(more @ basis.Q.T, 0, atol=1e-13)
    none = basis.new_directions(basis.Q, required=3 * basis.Q)
    assert none.shape == (0, 12)


@pytest.mark.parametrize("left", [1, 3])
def test_no_more_rows_than_there_is_room_for(left):
    """Of a space that is nearly full the rest, whatever is required."""
    rng = np.random.default_rng(4)
    Q = np.linalg.qr(rng.standard_normal((12, 12)))[0].T
    basis = GrowingBasis(12, 2, NumpyBackend(), krylov=False)
    basis.append(Q[: 12 - left], Q[: 12 - left] @ np.diag(np.arange(1.0, 13)))
    rows = rng.standard_normal((6, 12))
    new = basis.new_directions(rows, required=rows)
    assert len(new) == left
    assert_allclose(new @ basis.Q.T, 0, atol=1e-12)
    assert outside(rows, basis.Q, new).max() < 1e-12 * np.linalg.norm(rows)


def converged(problem, blocks=9):
    basis = grown(problem, krylov=False, blocks=blocks)
    return basis, *basis.ritz()


def true_norms(basis, problem, lams, steps):
    """Of residuals that are small beside their terms, in extended precision."""
    big = np.longdouble
    Q, K, Y = (x.astype(big) for x in (basis.Q, problem.K, problem.Y))
    T, V = basis.T, np.linalg.eigh(basis.T)
    found = np.empty((len(lams), steps, Y.shape[1]))
    for i, lam in enumerate(lams):
        before = (V[1].T @ basis.Q @ problem.Y).astype(big)
        a = np.zeros_like(before)
        for step in range(steps):
            now = before / (V[0] + lam)[:, None]
            a = now if step == 0 else now - a
            # r = a'(W'R) with a = c_{i-1} - c_i
            found[i, step] = np.linalg.norm((R_of(Q, K, T) @ (V[1] @ a)).astype(float), axis=0)
            before, a = V[0][:, None] * now, now
    return found


def R_of(Q, K, T):  # noqa: N802 - the field's name
    return (Q @ K - T @ Q).T


@pytest.mark.parametrize("many", [False, True])
def test_few_residuals_come_from_themselves_and_many_from_the_gram_matrix(many):
    problem = from_spectrum(DELTA, c=2)
    basis, values, vectors = converged(problem)
    lams = np.geomspace(0.1, 5, 40 if many else 2)
    seen = basis.residuals(values, vectors, problem.Y.T, lams, 3)
    assert seen.exact is not many
    assert (seen.norms.size > basis.k) is many
    truth = true_norms(basis, problem, lams, 3)
    certified = basis.certified(seen, vectors, np.arange(len(lams)))
    assert certified.exact is seen.exact
    assert_allclose(certified.norms, truth, rtol=1e-3, atol=1e-13)
    if not many:
        assert_allclose(seen.norms, truth, rtol=1e-3, atol=1e-13)


def test_as_many_residuals_as_rows_are_still_few():
    problem = from_spectrum(DELTA, c=2)
    basis, values, vectors = converged(problem, blocks=3)
    assert basis.k == 6
    for steps, exact in ((3, True), (4, False)):
        seen = basis.residuals(values, vectors, problem.Y.T, LAMS[:1], steps)
        assert seen.exact is exact


def test_more_residuals_than_twice_the_rows_come_from_a_triangle(monkeypatch):
    problem = from_spectrum(DELTA, c=2)
    basis, values, vectors = converged(problem, blocks=3)
    seen = basis.residuals(values, vectors, problem.Y.T, LAMS[[0, 0, 1]], 2)
    made, formed = [], []
    triangle, times = GrowingBasis._triangle, GrowingBasis._times
    monkeypatch.setattr(GrowingBasis, "_triangle", lambda self: made.append(1) or triangle(self))

    def counted(self, combinations, rows):
        formed.append(len(combinations))
        return times(self, combinations, rows)

    monkeypatch.setattr(GrowingBasis, "_times", counted)
    by_rows = basis.certified(seen, vectors, np.arange(3))  # 12 of 6 rows: no more than twice
    assert not made
    monkeypatch.setattr("sdgpu.solvers.galerkin.ROWS", 2)
    parts = basis.certified(seen, vectors, np.arange(3))
    assert formed == [4] * 3 + [2] * 6
    many = basis.residuals(values, vectors, problem.Y.T, np.array([0.01, 0.01, 0.3, 1.0]), 2)
    by_triangle = basis.certified(many, vectors, np.arange(4))
    assert made
    for one, other in (
        (parts, by_rows),
        (by_triangle, basis.certified(many, vectors, np.arange(2))),
    ):
        assert_allclose(one.norms[:2], other.norms[:2], rtol=1e-6, atol=1e-12)
        assert_allclose(one.sums[:2], other.sums[:2], rtol=1e-6, atol=1e-12)


def test_memory_of_a_triangle():
    assert triangle_bytes(10_000, 100) == 24 * 100 * 1024
    assert triangle_bytes(10_000, 1000) == 24 * 1000 * 4000
    assert triangle_bytes(500, 1000) == 24 * 1000 * 500
