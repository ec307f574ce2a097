"""Conjugate gradients row by row against dense solves, and what they count and say."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.device.backend import to_numpy
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
    inside, diagonal = backend.asarray(K), np.diag(K)
    calls = []

    def matmat(V):
        calls.append(int(V.shape[0]))
        return V @ inside

    def precondition(R, lam):
        return R / backend.asarray(diagonal + lam[:, None])

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
        matmat, backend.asarray(B), LAMS, goals=goals, start=backend.asarray(start),
        residual=backend.asarray(residuals(K, B, start)),
    )  # fmt: skip
    left = np.linalg.norm(residuals(K, B, to_numpy(found.W)), axis=1)
    assert (left <= goals * (1 + 1e-6)).all()
    assert found.status.startswith("converged")
    assert found.passes == len(calls) == found.iterations + 1 + found.iterations // 20
    done = CG(backend, 1e-3).solve(
        matmat, backend.asarray(B), LAMS, start=backend.asarray(wanted),
        residual=backend.asarray(residuals(K, B, wanted)),
    )  # fmt: skip
    assert (done.iterations, done.passes) == (0, 0)


def test_the_error_of_conjugate_gradients_is_the_least(problem, backend):
    """After m passes W minimises the energy over the Krylov space of m vectors."""
    K, B, wanted = problem
    A, b, w = K + 0.05 * np.eye(60), B[0], wanted[0]
    for m in (1, 2, 5):
        found = CG(backend, 1e-14, max_iterations=m).solve(
            lambda V: V @ backend.asarray(K), backend.asarray(b[None]), 0.05
        )
        assert found.iterations == m
        assert found.status.startswith("not converged")
        space = np.linalg.qr(np.stack([np.linalg.matrix_power(A, i) @ b for i in range(m)]).T)[0]
        best = space @ np.linalg.solve(space.T @ A @ space, space.T @ b)
        assert_allclose(to_numpy(found.W)[0], best, atol=1e-9 * np.abs(w).max())
