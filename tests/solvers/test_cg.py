"""Conjugate gradients row by row against dense solves, and what they count and say."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend, to_numpy
from sdgpu.solvers.cg import CG
from tests.problems import from_spectrum

DELTA = np.geomspace(1e-2, 10.0, 60)
LAMS = np.array([0.05, 1.0, 20.0, 1.0])


@pytest.fixture
def problem():
    problem = from_spectrum(DELTA, c=3)
    B = np.vstack([problem.Y.T, np.zeros(60)])
    wanted = np.stack(
        [np.linalg.solve(problem.K + lam * np.eye(60), b) for lam, b in zip(LAMS, B, strict=True)]
    )
    return problem.K, B, wanted


def residuals(K, B, W):
    return B - W @ K - LAMS[:, None] * W


@pytest.mark.parametrize("preconditioned", [False, True])
def test_each_row_has_its_own_ridge(problem, backend, preconditioned):
    K, B, wanted = problem
    inside, diagonal = (backend.asarray(x) for x in (K, np.diag(K).copy()))
    calls = []

    def matmat(V):
        calls.append(int(V.shape[0]))
        return V @ inside

    def precondition(R, lam):
        return R / (diagonal + lam[:, None])

    found = CG(backend, 1e-10).solve(
        matmat, backend.asarray(B), LAMS, precondition=precondition if preconditioned else None
    )
    assert_allclose(to_numpy(found.W), wanted, atol=1e-8 * np.abs(wanted).max())
    R = residuals(K, B, to_numpy(found.W))
    assert_allclose(to_numpy(found.R), R, atol=1e-14 * np.abs(B).max() * 100)
    sizes = np.linalg.norm(B[:3], axis=1)
    assert_allclose(found.residuals[:3], np.linalg.norm(R[:3], axis=1) / sizes, rtol=1e-3)
    assert found.residuals[3] == 0
    assert (found.residuals <= 1e-10).all()
    assert found.passes == len(calls)
    assert found.passes == found.iterations + -(-found.iterations // 20)  # true residuals
    assert min(calls[1:-1]) < 3  # rows that are done are dropped


def test_goals_and_known_residuals(problem, backend):
    K, B, wanted = problem
    calls = []

    def matmat(V):
        calls.append(1)
        return V @ backend.asarray(K)

    start = wanted + 1e-3
    goals = np.array([1e-2, 1e-6, 1e-9, 1e-3])
    found = CG(backend, 1e-30).solve(
        matmat,
        backend.asarray(B),
        LAMS,
        goals=goals,
        start=backend.asarray(start),
        residual=backend.asarray(residuals(K, B, start)),
    )
    left = np.linalg.norm(residuals(K, B, to_numpy(found.W)), axis=1)
    assert (left <= goals * (1 + 1e-6)).all()
    assert found.status.startswith("converged")
    assert found.passes == len(calls) == found.iterations + 1 + found.iterations // 20
    done = CG(backend, 1e-3).solve(
        matmat,
        backend.asarray(B),
        LAMS,
        start=backend.asarray(wanted),
        residual=backend.asarray(residuals(K, B, wanted)),
    )
    assert (done.iterations, done.passes) == (0, 0)


def test_what_was_given_is_not_written_to_and_progress_is_that_of_the_worst_row(problem):
    K, B, wanted = problem
    start = wanted + 1e-3 * np.array([[1.0], [3.0], [2.0], [0.0]])  # one row is done
    residual = residuals(K, B, start)
    given, heard = [x.copy() for x in (B, start, residual)], []
    for named in ({}, {"start": start, "residual": residual}):
        CG(NumpyBackend(), 1e-9).solve(
            lambda V: V @ K, B, LAMS, progress=lambda *now: heard.append(now), **named
        )
        for now, before in zip((B, start, residual), given, strict=True):
            assert (now == before).all()
    heard.clear()
    found = CG(NumpyBackend(), 1e-9, max_iterations=3).solve(
        lambda V: V @ K, B, LAMS, progress=lambda *now: heard.append(now)
    )
    assert_allclose(heard[-1][1], found.residuals.max(), rtol=1e-9)
    assert found.residuals[:3].min() > 1e-9


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_error_of_conjugate_gradients_is_the_least(problem, backend, preconditioned):
    """After m passes W minimises the energy over the Krylov space of m vectors P^-1 (A P^-1)^i b."""
    K, B, wanted = problem
    A, b, w = K + 0.05 * np.eye(60), B[0], wanted[0]
    inverse = 1 / np.geomspace(1.0, 9.0, 60) if preconditioned else np.ones(60)
    scale = backend.asarray(inverse)
    for m in (1, 2, 5):
        heard: list = []
        found = CG(backend, 1e-14, max_iterations=m).solve(
            lambda V: V @ backend.asarray(K),
            backend.asarray(b[None]),
            0.05,
            precondition=(lambda R, _: R * scale) if preconditioned else None,
            progress=lambda *now, heard=heard: heard.append(now),
        )
        assert found.iterations == m
        assert found.status.startswith("not converged")
        assert [done for done, _ in heard] == list(range(1, m + 1))
        assert_allclose(heard[-1][1], found.residuals[0], rtol=1e-9)
        spanned = [inverse * b]
        for _ in range(m - 1):
            spanned.append(inverse * (A @ spanned[-1]))
        space = np.linalg.qr(np.stack(spanned).T)[0]
        best = space @ np.linalg.solve(space.T @ A @ space, space.T @ b)
        assert_allclose(to_numpy(found.W)[0], best, atol=1e-9 * np.abs(w).max())


def test_residuals_that_drifted_are_replaced_by_true_ones(problem):
    """A product that is wrong at first, by a thousandth: the iteration goes on until the truth is right."""
    K, B, wanted = problem
    calls = []

    def matmat(V):
        calls.append(1)
        return V @ K * (1.001 if len(calls) <= 15 else 1.0)

    found = CG(NumpyBackend(), 1e-9).solve(matmat, B, LAMS)
    assert found.status.startswith("converged")
    assert_allclose(found.W, wanted, atol=1e-7 * np.abs(wanted).max())
    assert found.passes == len(calls)


def test_products_that_allow_no_more_are_noticed(problem):
    """The true residual falls no further, and one more round of iterations is enough to see it."""
    K, B, _ = problem
    noise = np.random.default_rng(0)

    def matmat(V):
        return V @ K * (1 + 1e-6 * noise.standard_normal(V.shape))

    found = CG(NumpyBackend(), 1e-12).solve(matmat, B, LAMS)
    assert found.status.startswith("stagnated: true relative residual ")
    assert f"{found.residuals.max():.1e} after {found.iterations} iterations" in found.status
    assert 1e-9 < found.residuals.max() < 1e-4
    assert found.iterations < 250


@pytest.mark.parametrize("falling", [False, True])
def test_rows_that_do_not_fall_for_forty_iterations_end_it(falling):
    """One coordinate of many thousand at a time; a second row becomes better for four iterations more."""
    calls = []

    def precondition(R, lam):
        calls.append(1)
        z = np.zeros_like(R)
        z[:, len(calls) - 1] = R[:, len(calls) - 1]
        return z

    B = np.vstack([np.ones(9000), 0.5 ** np.minimum(np.arange(9000), 500)])[: 1 + falling]
    found = CG(NumpyBackend(), 1e-12).solve(lambda V: 0 * V, B, 1.0, precondition=precondition)
    assert found.status.startswith("stagnated")
    # the first is better than nothing, and 40 more are not
    assert found.iterations == (45 if falling else 41)


def test_a_good_start_is_taken_at_its_word(problem, backend):
    """Its residual is found by one product; from the solution nothing is left to do."""
    K, B, wanted = problem
    inside = backend.asarray(K)
    found = CG(backend, 1e-10).solve(
        lambda V: V @ inside, backend.asarray(B), LAMS, start=backend.asarray(wanted)
    )
    assert found.iterations == 0
    assert_allclose(to_numpy(found.W), wanted)
    cold = CG(backend, 1e-10).solve(lambda V: V @ inside, backend.asarray(B), LAMS)
    near = CG(backend, 1e-10).solve(
        lambda V: V @ inside, backend.asarray(B), LAMS, start=backend.asarray(wanted * (1 + 1e-6))
    )
    assert 0 < near.iterations < cold.iterations


def test_an_indefinite_operator_is_refused():
    K = np.diag(np.concatenate([np.full(59, 1.0), [-30.0]]))
    B = np.ones((2, 60))
    for lam in (1.0, np.array([1.0, 50.0])):  # one of the rows is enough
        with pytest.raises(ValueError, match="the operator is not positive definite: x'"):
            CG(NumpyBackend(), 1e-8).solve(lambda V: V @ K, B, lam)
    fine = CG(NumpyBackend(), 1e-8).solve(lambda V: V @ K, B, 50.0)
    assert fine.status.startswith("converged")
