"""Chains of solves against dense ones: their units, bounds, goals, and what is kept of them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers import resolvents
from sdgpu.solvers.cg import CG
from sdgpu.solvers.galerkin import GrowingBasis
from sdgpu.solvers.preconditioners import pivoted_cholesky
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.units import Units
from tests.problems import Cheap, assert_near, from_spectrum, most_bytes, refits

N = 60
LAMS = np.array([0.02, 1.0, 90.0])  # the last beyond all eigenvalues
DELTA = np.geomspace(1e-3, 32.0, N)
EPS = np.finfo(float).eps


def make(*, kernel=1.0, targets=(1.0, 1.0), rank=0, rows=4, **named):
    """Resolvents in some units, with a basis of the targets and a few more directions."""
    problem = from_spectrum(DELTA, c=2)
    backend, units = NumpyBackend(), Units(kernel, np.array(targets))
    operator = units.scaled(DenseOperator(Precomputed(), problem.K))
    Y = problem.Y / units.targets
    watch = Stopwatch(lambda: None, progress=named.pop("progress", None))
    sketch = None
    if rank:
        sketch = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch)
    space = GrowingBasis(N, 4, backend, krylov=False)
    more = np.random.default_rng(1).standard_normal((rows, N))
    new = space.new_directions(np.vstack([Y.T, more]), required=Y.T)
    space.append(new, operator.matmat(new.T).T)
    named = {"tol": 1e-8, "steps": 3} | named
    return problem, Resolvents(
        operator, backend, Y, units, space=space, sketch=sketch, watch=watch, **named
    )


@pytest.mark.parametrize("rank", [0, 20])
@pytest.mark.parametrize(("kernel", "targets"), [(1.0, (1.0, 1.0)), (8.0, (2.0, 0.25))])
def test_solutions_are_those_of_refits_whatever_the_units(kernel, targets, rank):
    problem, found = make(kernel=kernel, targets=targets, rank=rank, kept_lams=frozenset(LAMS))
    assert_near(found.targets, problem.Y, rtol=1e-15)
    duals, fitted = found.duals(LAMS, 3), found.fitted(LAMS, 3)
    assert duals.shape == fitted.shape == (3, 3, N, 2)
    for i, lam in enumerate(LAMS):
        fits, dual = refits(problem.K, problem.Y, lam, 0.0, 3)
        size = np.linalg.norm(fits[0], axis=0)
        assert (np.linalg.norm(fitted[i] - fits, axis=1) <= found.error * size).all()
        for step in range(3):
            assert_near(duals[i, step], dual[step], rtol=1e-6)
            assert_near(fitted[i, step], fits[step], rtol=1e-6)
    assert found.error <= 1e-8
    assert found.summary.startswith("converged: relative error of the predictions at most ")


@pytest.mark.parametrize("kernel", [8.0, 64.0])
def test_a_negative_ridge_beyond_all_eigenvalues(kernel):
    """A limit of a negative alpha; both signs may be asked for at once."""
    problem, found = make(kernel=kernel, rank=20, steps=1)
    lams = np.array([-50.0, 2.0, -1e4])
    for lam, dual in zip(lams, found.duals(lams, 1)[:, 0], strict=True):
        assert_near(dual, np.linalg.solve(problem.K + lam * np.eye(N), problem.Y), rtol=1e-6)
    assert found.error <= 1e-8


def test_the_largest_eigenvalue_lies_between_what_is_seen_and_its_bound():
    for rows in (4, 40):
        problem, found = make(kernel=8.0, rows=rows)
        Q, T = found.space.Q, found.space.T
        top = np.linalg.eigvalsh(T)[-1]
        assert_allclose(found.largest, 8 * top, rtol=1e-12)
        assert found.largest <= DELTA[-1] * (1 + 1e-12)
        outside = np.trace(problem.K) / 8 - np.trace(T)
        left = np.linalg.norm(Q @ problem.K / 8 - T @ Q)
        assert_allclose(found.largest_bound, 8 * (max(top, outside) + left), rtol=1e-10)
        assert found.largest_bound >= DELTA[-1]


class Spy(CG):
    """What conjugate gradients are asked."""

    def solve(self, *args, **named):
        found = super().solve(*args, **named)
        type(self).asked.append((args, named, found))
        return found


@pytest.fixture
def asked(monkeypatch):
    Spy.asked = []
    monkeypatch.setattr(resolvents, "CG", Spy)
    return Spy.asked


@pytest.mark.parametrize("noise", [1e-14, 1e-5])
@pytest.mark.parametrize("lam", [*LAMS, -40.0])
def test_the_error_is_that_of_all_residuals_and_of_rounding(asked, lam, noise):
    problem, found = make(tol=1e-3, noise=noise)
    T, Q, Y = found.space.T, found.space.Q, problem.Y
    steps, top = 1 if lam < 0 else 3, np.linalg.eigvalsh(T)[-1]
    duals = found.duals(np.array([lam]), steps)[0]
    small = np.linalg.solve(T + lam * np.eye(len(T)), Q @ Y)
    size = np.maximum(
        np.linalg.norm(T @ small, axis=0), 1e-6 * top / (top + abs(lam)) * np.linalg.norm(Y, axis=0)
    )
    left = np.cumsum([np.linalg.norm(solved.R, axis=1) for _, _, solved in asked], axis=0)
    lengths, wanted = np.linalg.norm(duals, axis=1), 0.0
    near = abs(lam / (lam + top)) if lam < 0 else 1.0
    for step in range(steps):
        grown = sum(g * lengths[step - j] for j, g in enumerate((1, 1 / 4, 4 / 27)[: step + 1]))
        wanted = max(wanted, ((left[step] + noise * top * grown * near) / size).max())
    assert_allclose(found.error, wanted, rtol=2e-3 if noise < 1e-5 else 1e-5)
    _, other = make(tol=1e-3, noise=noise)
    other.solve(3 * abs(lam), 1)
    found.solve(3 * abs(lam), 1)
    assert_allclose(found.error, max(other.error, wanted), rtol=2e-3)


@pytest.mark.parametrize("noise", [1e-14, 1e-3])
def test_each_solve_has_its_share_of_the_tolerance_or_what_rounding_allows(asked, noise):
    problem, found = make(tol=1e-4, noise=noise)
    found.solve(LAMS, 3)
    assert len(asked) == 3
    T, Q = found.space.T, found.space.Q
    top = np.linalg.eigvalsh(T)[-1]
    for step, (_, named, solved) in enumerate(asked):
        for i, lam in enumerate(LAMS):
            shifted = T + lam * np.eye(len(T))
            small = np.linalg.solve(shifted, Q @ problem.Y)
            size = np.linalg.norm(T @ small, axis=0)
            for _ in range(step):
                small = np.linalg.solve(shifted, T @ small)
            floor = noise * top * np.linalg.norm(small, axis=0) / 8
            mine = slice(2 * i, 2 * i + 2)
            assert_allclose(named["goals"][mine], np.maximum(1e-4 * size / 3, floor), rtol=1e-9)
            R = np.linalg.norm(solved.R[mine], axis=1)
            assert (named["goals"][mine] * (1 + 1e-9) >= R).all()


def test_a_kernel_of_zeros_asks_for_no_more_than_the_rounding_of_the_targets(asked):
    _, found = make(tol=1e-8)
    zero = DenseOperator(Precomputed(), np.zeros((N, N)))
    space = GrowingBasis(N, 4, NumpyBackend(), krylov=False)
    new = space.new_directions(found.Y.T)
    space.append(new, 0 * new)
    none = Resolvents(zero, found.backend, found.Y, found.units, 1e-8, 2, space, None, found.watch)
    assert_allclose(none.duals(np.array([0.5]), 1)[0, 0], found.Y / 0.5, rtol=1e-14)
    assert_allclose(asked[0][1]["goals"], EPS**2 * np.linalg.norm(found.Y, axis=0), rtol=1e-12)
    assert none.largest == 0


def test_a_solve_starts_from_the_galerkin_solution(asked):
    """What is left to correct is its residual, known without a pass."""
    problem, found = make()
    found.solve(LAMS[:2], 2)
    T, Q, K = found.space.T, found.space.Q, problem.K
    for step, ((_, residual, ridges), _, _) in enumerate(asked):
        assert_allclose(ridges, np.repeat(LAMS[:2], 2))
        for i, lam in enumerate(LAMS[:2]):
            own = np.linalg.solve(T + lam * np.eye(len(T)), Q @ problem.Y)
            before = problem.Y
            if step:
                own = np.linalg.solve(T + lam * np.eye(len(T)), T @ own)
                before = found.fitted(np.array([lam]), 1)[0, 0]
            start = Q.T @ own
            wanted = before - K @ start - lam * start
            assert_near(residual[2 * i : 2 * i + 2].T, wanted, rtol=1e-9)


def test_what_was_made_last_is_kept():
    """Chains take the place of chains and single solves that of single ones; the fit's own stay."""
    _, found = make(kernel=8.0, kept_lams=frozenset([1.0]))

    def costs(lam, steps):
        before = found.passes
        found.duals(np.array([lam]), steps)
        return found.passes > before

    assert costs(1.0, 3)
    assert costs(0.1, 3)  # another chain
    assert costs(0.2, 1)  # a single solve
    assert not any(costs(lam, steps) for lam, steps in ((1.0, 3), (0.1, 3), (0.2, 1), (0.1, 2)))
    assert costs(0.3, 1)
    assert not any(costs(lam, steps) for lam, steps in ((1.0, 3), (0.1, 3), (0.3, 1)))
    assert costs(0.2, 1)
    assert costs(0.4, 2)
    assert not any(costs(lam, steps) for lam, steps in ((1.0, 3), (0.4, 2), (0.2, 1)))
    assert costs(0.1, 3)
    assert costs(0.1, 4)  # a longer chain goes on from what there is
    assert len(found._sums) == len(found._lengths) == len(found._solutions) == 3
    found.solve(np.array([1.0, 0.6]), 3)  # one that is kept, and a new one
    assert costs(0.1, 3)


def test_lam_asked_for_twice_are_solved_once_and_32_rows_at_a_time(asked):
    _, found = make()
    found.solve(np.geomspace(0.1, 1.0, 20).repeat(2), 1)
    assert [len(args[2]) for args, _, _ in asked] == [32, 8]
    assert found.passes == sum(solved.passes for _, _, solved in asked)
    assert found.iterations == sum(solved.iterations for _, _, solved in asked)
    assert found.passes > found.iterations > 0
    asked.clear()
    wide = Resolvents(
        found.operator,
        found.backend,
        np.tile(found.Y, (1, 20)),
        Units(1.0, np.ones(40)),
        1e-8,
        3,
        found.space,
        None,
        found.watch,
    )
    wide.solve(LAMS[:2], 1)
    assert [len(args[2]) for args, _, _ in asked] == [40, 40]


@pytest.mark.parametrize("warns", [False, True])
def test_a_solve_that_misses_its_goal_warns_if_it_should(warns, monkeypatch):
    monkeypatch.setattr(resolvents, "CG", lambda backend, tol: CG(backend, tol, max_iterations=2))
    _, found = make(warns=warns)
    if warns:
        with pytest.warns(UserWarning, match=r"^lam = 0.02: not converged"):
            found.solve(LAMS, 1)
    else:
        found.solve(LAMS, 1)
    assert found.status.startswith("not converged")
    assert found.summary.startswith("not converged: relative error")


def test_progress_of_a_solve():
    heard = []
    _, found = make(progress=heard.append)
    found.solve(0.5, 2)
    stages = list(dict.fromkeys(event.stage for event in heard))
    assert stages == ["cg, step 1", "cg, step 2"]
    first = [event for event in heard if event.stage == "cg, step 1"]
    assert [event.done for event in first] == list(range(1, len(first) + 1))
    assert all(event.total == event.done + 1 for event in heard)
    assert np.isnan([event.seconds_left for event in heard]).all()


def test_a_sentence_for_what_was_reached():
    _, found = make(tol=1e-3, noise=1e-2)
    found.solve(0.02, 1)
    assert found.error > 1e-3
    assert found.summary == (
        f"limited by rounding: relative error of the predictions at most {found.error:.1e} after "
        f"{found.passes} passes of conjugate gradients"
    )
    found.error = 1e-3  # no more than the tolerance
    assert found.summary.startswith("converged: ")
    found.status, found.error = "stagnated: so", 0.5
    assert found.summary.startswith("stagnated: relative error of the predictions at most 5.0e-01")
    assert found.summary.endswith("; worst solve: so")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize(("c", "lams", "steps"), [(1, 40, 1), (2, 16, 4), (40, 1, 2)])
def test_solutions_and_vectors_of_a_solve_take_what_was_said(c, lams, steps, rank):
    """A third more, once: 11 or 12 vectors for each row had been counted as 8."""
    n, backend, watch = 3000, NumpyBackend(), Stopwatch(lambda: None)
    operator = Cheap(n)
    Y = np.random.default_rng(1).standard_normal((n, c))
    space = GrowingBasis(n, 1, backend, krylov=False)
    new = space.new_directions(Y[:, :1].T)
    space.append(new, operator.matmat(new.T).T)
    sketch = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch) if rank else None
    units = Units(1.0, np.ones(c))
    found = Resolvents(operator, backend, Y, units, 1e-6, steps, space, sketch, watch)
    found.solve(1.0, 1)  # what is imported is no part of it
    used = most_bytes(lambda: found.solve(np.geomspace(10.0, 20.0, lams), steps))
    said = Resolvents.peak_bytes(n, c, lams, steps)
    assert 0.75 * said <= used <= 1.01 * said


def test_a_sketch_saves_iterations():
    lams = np.array([1e-3])
    counts = {}
    for rank in (0, 40):
        _, found = make(rank=rank, steps=1)
        found.duals(lams, 1)
        counts[rank] = found.iterations
    assert 0 < counts[40] < counts[0] / 2


def test_targets_with_zeros_have_a_size():
    _, found = make(steps=1)
    found.Y[:3] = 0.0
    assert_allclose(found._norms, np.linalg.norm(found.Y, axis=0), rtol=1e-12)
