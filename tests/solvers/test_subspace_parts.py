"""The parts of a growing subspace one by one: bounds, progress, first blocks, and what is kept."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers import subspace
from sdgpu.solvers.basis_progress import BasisProgress
from sdgpu.solvers.galerkin import GrowingBasis, Residuals, gram_rounding
from sdgpu.solvers.subspace import Subspace
from tests.problems import EPS, Cheap, from_spectrum, most_bytes

N = 50
LAMS = np.array([0.01, 0.3, 6.0])
DELTA = np.geomspace(1e-3, 5.0, N)


def residuals(norms, sums, sizes):
    nothing = np.zeros_like(norms)
    return Residuals(norms, nothing, sums, nothing, nothing, sizes)


def test_bounds_are_the_smaller_of_two_sums():
    """||r_1|| + .. + ||r_i||, or s_i + s_(i-1) / 4 + 4 / 27 s_(i-2), over the size of y_1; 0 for targets of 0."""
    rng = np.random.default_rng(0)
    norms, sums = rng.random((2, 3, 2)), rng.random((2, 3, 2)) * 3
    sizes = np.array([[[0.5, 0.0]], [[4.0, 2.0]]])
    found = subspace._bounds(residuals(norms, sums, sizes))
    for i, j in ((0, 0), (1, 0), (1, 1)):
        r, s = norms[i, :, j], sums[i, :, j]
        second = [s[0], s[1] + s[0] / 4, s[2] + s[1] / 4 + 4 / 27 * s[0]]
        wanted = np.minimum(np.cumsum(r), second) / sizes[i, 0, j]
        assert_allclose(found[i, :, j], wanted, rtol=1e-13)
    assert (found[0, :, 1] == 0).all()


def test_rows_that_depend_on_others_span_no_more():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3, 8))
    rows = np.vstack([rows, rows[0] - rows[1], rows[2] + 1e-12 * rng.standard_normal(8)])
    found = subspace._independent(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert found.shape == (3, 8)
    assert_allclose(found @ found.T, np.eye(3), atol=1e-13)
    assert_allclose(rows - (rows @ found.T) @ found, 0, atol=1e-11)


def progress(*errors, passes=None, limit=30, n=100, **named):
    """A run that has seen these errors, one a pass."""
    settings = {"tol": 1e-6, "max_passes": 100, "patience": np.inf} | named
    run = BasisProgress(**settings, limit=limit, n=n)
    for error in errors:
        run.passes += 1
        run.note(error)
    run.passes = run.passes if passes is None else passes
    return run


def test_passes_to_come_follow_from_those_that_were():
    assert progress().error == np.inf
    assert progress().forecast == 100
    assert progress(1e-1, 1e-2).forecast == 100  # too early to tell
    assert progress(1e-1, 1e-1, 1e-2).forecast == 9  # 3 log 1e-6 / log 1e-2
    assert progress(1e-2, passes=10).forecast == 30
    assert progress(1e-9, passes=10).forecast == 10
    assert progress(0.9, passes=10).forecast == 100
    for error in (0.0, 1.0, 2.0):
        assert progress(error, passes=10).forecast == 100


def test_the_next_look_is_half_way_and_at_most_eight_passes_off():
    assert progress(0.1).next_look == 3
    assert progress(0.1, 0.1).next_look == 4
    assert progress(0.1, 0.1, 1e-2).next_look == 3 + 3
    assert progress(0.1, 0.1, 0.1).next_look == 3 + 7
    assert progress(0.9, 0.9, 0.9).next_look == 3 + 8
    assert progress(1e-5, 1e-5, 1e-6).next_look == 3 + 1
    run = progress(0.1, 0.1, 1e-2)
    assert not run.due(30)
    assert run.due(31)  # full
    run.passes = 5
    assert not run.due(30)
    run.passes = 6
    assert run.due(30)
    assert progress(0.1, 0.1, 1e-2, passes=4, max_passes=4).due(30)


def test_an_error_that_does_not_fall_for_fifteen_passes_has_stalled():
    falling = [0.04 * 0.9**i for i in range(40)]
    assert not progress(*falling).stalled
    assert progress(0.02, *[0.015] * 15).stalled
    assert not progress(0.02, *[0.015] * 14).stalled
    assert not progress(0.02, *[0.013] * 15).stalled  # it fell by more than 0.7
    assert not progress(0.2, *[0.19] * 30).stalled  # large errors may wander
    assert not progress(0.02, *[0.015] * 14, 0.05).stalled
    assert progress(0.02, *[0.015] * 14, 0.049).stalled
    assert progress(0.02, *[0.015] * 15).should_stop(10)


def test_a_run_is_over_when_it_is_there_or_will_not_come_there_in_time():
    assert progress(1e-6).should_stop(10)
    assert not progress(1.1e-6).should_stop(10)
    assert progress(0.5).should_stop(100)  # the whole space
    assert not progress(0.5).should_stop(99)
    late = progress(1e-2, passes=20, patience=55.0)  # 60 passes in all
    assert late.should_stop(10)
    assert late.given_up
    early = progress(1e-2, passes=10, patience=55.0)
    assert not early.should_stop(10)
    assert not early.given_up
    assert not progress(1e-2, passes=20, patience=65.0).should_stop(10)
    assert not progress(1e-2, passes=7, patience=1.0).should_stop(10)
    assert progress(1e-2, passes=8, patience=1.0).should_stop(10)
    there = progress(1e-7, passes=20, patience=1.0)
    assert there.should_stop(10)
    assert not there.given_up


def test_sentences_of_every_end():
    run = progress(4e-7, passes=7)
    run.rounding = 5e-7
    assert run.status(12, full=False) == (
        "converged: relative error of the predictions at most 9.0e-07 after 7 passes, 12 basis vectors"
    )
    run.rounding, run.restarts = 6e-7, 2
    assert run.status(12, full=False) == "converged: " + run.status(12, full=False)[11:]
    assert " after 7 passes and 2 restarts" in run.status(12, full=False)
    run.rounding = 7e-7
    run.goal = 7e-7
    limited = run.status(12, full=False)
    assert limited.startswith(
        "limited by rounding: relative error of the predictions at most 1.1e-06"
    )
    assert "7.0e-07 is what float64 may leave" in limited
    run = progress(1e-2, passes=7)
    run.given_up = True
    assert run.status(12, full=False).startswith("given up: ")
    run.given_up = False
    assert "allow more passes" in run.status(12, full=False)
    assert "the precision allows no more" in run.status(12, full=True)
    run.restarts = 1
    assert "a basis of 30 vectors" in run.status(12, full=True)
    assert "allow more passes" in run.status(12, full=False)


def test_what_a_run_tells():
    heard = []
    watch = Stopwatch(lambda: None, progress=heard.append)
    run = progress(0.1)
    run.report(watch)
    assert heard[-1][:4] == ("passes", 1, 100, 0.1)
    assert np.isnan(heard[-1].seconds_left)
    run = progress(*(10.0 ** -(i / 2) for i in range(1, 11)))
    run.report(watch)
    assert heard[-1][:3] == ("passes", 10, 12)
    run.passes = 14
    run.report(watch)
    assert heard[-1][:3] == ("passes", 14, 14)


class Echo:
    """A sketch that gives its question back."""

    largest = 0.0

    def solve(self, R, lams):
        self.lams = lams
        return 1.0 * R


def test_the_first_block_holds_the_targets_and_guesses_or_noise():
    rows = np.random.default_rng(0).standard_normal((3, N))
    solver = Subspace(NumpyBackend(), 1e-6, block=8, seed=4)
    plain = solver._start(rows, LAMS, None)
    assert plain.shape == (8, N)
    assert_allclose(plain[:3], rows)
    again = solver._start(rows, LAMS, None)
    assert (plain == again).all()
    assert np.abs(plain[3:].mean()) < 0.3
    assert 0.8 < plain[3:].std() < 1.2
    assert replace(solver, block=2)._start(rows, LAMS, None).shape == (4, N)
    # 4 blocks, but a quarter of the rows at most: 12, of which 3 are the targets
    sketch = Echo()
    wide = solver._start(rows, LAMS, sketch)
    assert_allclose(wide, np.tile(rows, (4, 1)))
    assert_allclose(sketch.lams, np.repeat([0.01, np.sqrt(0.06), 6.0], 3), rtol=1e-12)
    many = np.random.default_rng(0).standard_normal((3, 400))
    assert solver._start(many, LAMS, sketch).shape == (3 + 27, 400)
    assert_allclose(sketch.lams[::3], np.geomspace(0.01, 6.0, 9))
    assert replace(solver, block=2)._start(rows, LAMS, sketch).shape == (6, N)
    few = np.random.default_rng(0).standard_normal((3, 10))
    assert replace(solver, block=2)._start(few, LAMS, sketch).shape == (6, 10)
    # targets of zeros are no guess
    assert solver._start(0 * rows, LAMS, sketch)[3:].std() > 0.8


def grown(*, krylov=False, more=20):
    problem = from_spectrum(DELTA, c=2)
    space = GrowingBasis(
        N, 4, NumpyBackend(), krylov=krylov, diagonal=float(np.diag(problem.K).max())
    )
    rng = np.random.default_rng(1)
    new = space.new_directions(
        np.vstack([problem.Y.T, rng.standard_normal((more, N))]), required=problem.Y.T
    )
    space.append(new, new @ problem.K)
    return problem, space


def test_a_full_basis_keeps_the_targets_the_solutions_and_the_largest_ritz_vectors():
    problem, space = grown()
    rows, solver = problem.Y.T, Subspace(NumpyBackend(), 1e-6, steps=3)
    values, vectors = space.ritz()
    seen = space.residuals(values, vectors, rows, LAMS, 3)
    own = solver._directions_to_keep(space, values, vectors, seen, rows, lams=LAMS)
    k = space.k
    assert k == 22
    # at most half of the basis and a sixth, here 9 solutions beside 2 targets, and 3 vectors
    assert own.shape == (14, k)
    assert_allclose(own @ own.T, np.eye(14), atol=1e-12)

    def outside(x):
        return np.linalg.norm(x - own.T @ (own @ x), axis=0) / np.linalg.norm(x, axis=0)

    assert outside(space.Q @ problem.Y).max() < 1e-12
    assert outside(vectors[:, -3:]).max() < 1e-12
    assert outside(vectors[:, [-5]]).min() > 1e-3
    for lam in LAMS:
        c = np.linalg.solve(space.T + lam * np.eye(k), space.Q @ problem.Y)
        for _ in range(3):
            assert outside((space.T + LAMS[0] * np.eye(k)) @ c).max() < 0.05
            assert outside(c).max() < 0.05
            c = np.linalg.solve(space.T + lam * np.eye(k), space.T @ c)


def test_solutions_worth_keeping_are_few_where_they_depend_on_each_other():
    """One lam beyond all eigenvalues: all that is to be kept is Y, and K Y to some digits."""
    problem, space = grown()
    values, vectors = space.ritz()
    lams = np.array([1e6])
    seen = space.residuals(values, vectors, problem.Y.T, lams, 1)
    solver = Subspace(NumpyBackend(), 1e-6, steps=1)
    own = solver._directions_to_keep(space, values, vectors, seen, problem.Y.T, lams=lams)
    assert len(own) == 2 + 2 + 3


@pytest.mark.parametrize("lam", [0.01, 0.3, 6.0])
def test_solutions_that_are_few_are_kept_to_their_last_digit(lam):
    problem, space = grown()
    values, vectors = space.ritz()
    lams = np.array([lam])
    seen = space.residuals(values, vectors, problem.Y.T, lams, 2)
    solver = Subspace(NumpyBackend(), 1e-6, steps=2)
    own = solver._directions_to_keep(space, values, vectors, seen, problem.Y.T, lams=lams)
    c = np.linalg.solve(space.T + lam * np.eye(space.k), space.Q @ problem.Y)
    for solutions in (c, np.linalg.solve(space.T + lam * np.eye(space.k), space.T @ c)):
        left = solutions - own.T @ (own @ solutions)
        assert np.linalg.norm(left) < 1e-8 * np.linalg.norm(solutions)


def test_targets_with_zeros_are_still_targets():
    problem, _ = grown()
    rows = problem.Y.T.copy()
    rows[:, ::3] = 0
    rows[1] = 0
    found = Subspace(NumpyBackend(), 1e-6, block=4)._start(rows, LAMS, None)
    assert_allclose(found[:2], rows)
    nothing = Subspace(NumpyBackend(), 1e-6, block=4)._start(np.zeros_like(rows), LAMS, None)
    assert np.abs(nothing).min() > 0


@pytest.mark.parametrize("share", [0.3, 0.05])
def test_solutions_that_matter_less_than_a_thousandth_of_the_tolerance_go(share):
    """What matters are predictions at the smallest lam, (T + lam) c, each over the size of y_1."""
    problem, space = grown()
    values, vectors = space.ritz()
    seen = space.residuals(values, vectors, problem.Y.T, LAMS, 3)
    solver = Subspace(NumpyBackend(), 1e3 * share, steps=3)
    own = solver._directions_to_keep(space, values, vectors, seen, problem.Y.T, lams=LAMS)
    rows = []
    for lam in LAMS:
        c = np.linalg.solve(space.T + lam * np.eye(space.k), space.Q @ problem.Y)
        size = np.linalg.norm(space.T @ c, axis=0)
        for _ in range(3):
            rows.extend(((space.T + LAMS[0] * np.eye(space.k)) @ c / size).T)
            c = np.linalg.solve(space.T + lam * np.eye(space.k), space.T @ c)
    singular = np.linalg.svd(np.stack(rows), compute_uv=False)
    count = np.count_nonzero(singular > share * singular[0])
    assert 1 <= count < 9
    assert len(own) == 2 + count + 3


def test_the_spectrum_of_a_basis_counts_what_is_below_rounding():
    problem, space = grown(more=6)
    solver = Subspace(NumpyBackend(), 1e-6)
    values, vectors = space.ritz()
    values[:3] = 0.0, 7 * EPS * values[-1], 9 * EPS * values[-1]
    found = subspace._spectrum(space, values, vectors, problem.Y.T, solver)
    assert found.below_rounding == 2  # of 8 values: below 8 eps of the largest
    assert found.method == "lanczos"
    assert_allclose(found.basis, space.Q.T @ vectors, atol=1e-15)
    assert_allclose(found.Z, found.basis.T @ problem.Y, atol=1e-13)
    assert_allclose(found.most_negative, np.linalg.eigvalsh(space.T)[0])
    other = subspace._spectrum(space, values, vectors, problem.Y.T, replace(solver, rank=3))
    assert other.method == "subspace"


@pytest.mark.parametrize("noise", [1e-14, 1e-9])
@pytest.mark.parametrize(("tol", "some"), [(1e-9, []), (1e-5, [0, 1]), (1e-3, [])])
def test_bounds_that_the_gram_matrix_may_have_lost_are_looked_up(noise, tol, some, monkeypatch):
    """Where they decide: below the goal; a bound far below the tolerance need not be known better."""
    rng = np.random.default_rng(0)
    problem = from_spectrum(np.r_[0.1 * rng.random(N - 10), np.geomspace(0.1, 2.0, 10)])
    top, lams = problem.V[:, -10:], np.array([1e-3, 0.1, 6.0, 1e4])
    rows = (top @ rng.standard_normal((10, 2))).T + 1e-8 * rng.standard_normal((2, N))
    space = GrowingBasis(N, 4, NumpyBackend(), krylov=False)
    others = np.vstack([top.T + 1e-8 * rng.standard_normal((10, N)), rng.standard_normal((6, N))])
    new = space.new_directions(np.vstack([rows, others]), required=rows)
    space.append(new, new @ problem.K)
    solver = Subspace(NumpyBackend(), tol, steps=5, noise=noise)
    values, vectors = space.ritz()
    seen = space.residuals(values, vectors, rows, lams, 5)
    assert not seen.exact
    run = progress(tol=tol, max_passes=200, limit=N, n=N)
    looked = []
    plain = GrowingBasis.certified

    def certified(self, seen, vectors, some):
        looked.extend(some)
        return plain(self, seen, vectors, some)

    monkeypatch.setattr(GrowingBasis, "certified", certified)
    solver._certified_residuals(space, values, vectors, rows, lams, sketch=None, run=run)
    top = values[-1]
    duals, size = seen.duals, seen.sizes
    decays = [1, 1 / 4, 4 / 27, 27 / 256, 256 / 3125]
    rounding = [
        noise * top * sum(g * duals[:, i - j] for j, g in enumerate(decays[: i + 1]))
        for i in range(5)
    ]
    rounding = np.stack(rounding, axis=1) / size
    assert_allclose(run.rounding, rounding.max(), rtol=1e-10)
    assert_allclose(run.goal, max(tol - run.rounding, run.rounding), rtol=1e-10)
    bounds = subspace._bounds(seen)
    lost = np.cumsum(gram_rounding(space.squared_residual_norm) * duals / size, axis=1)
    wanted = bounds + lost
    if tol < 1e-8 and noise < 1e-9:
        wanted = bounds  # it is not there yet
    wanted[some] = bounds[some]
    if noise < 1e-9:
        assert looked == some
        assert_allclose(run.error, wanted.max(), rtol=1e-2)
    else:  # rounding is larger, and the goal with it
        assert_allclose(run.goal, max(tol - run.rounding, run.rounding))
        assert run.rounding > 1e-8


def test_a_larger_eigenvalue_of_the_sketch_counts():
    problem, space = grown()
    values, vectors = space.ritz()
    solver = Subspace(NumpyBackend(), 1e-6, steps=2)
    runs = []
    for largest in (0.0, 50.0):
        sketch = Echo()
        sketch.largest = largest
        runs.append(progress(max_passes=200, limit=N, n=N))
        solver._certified_residuals(
            space, values, vectors, problem.Y.T, LAMS, sketch=sketch, run=runs[-1]
        )
    top = max(values[-1], np.diag(problem.K).max())
    assert_allclose(runs[1].rounding / runs[0].rounding, 50 / top, rtol=1e-10)


def test_the_worst_residuals_are_preconditioned_next():
    problem, space = grown()
    values, vectors = space.ritz()
    solver, rows = Subspace(NumpyBackend(), 1e-6, block=4, steps=3), problem.Y.T
    seen = space.residuals(values, vectors, rows, LAMS, 3)
    errors = seen.norms * np.random.default_rng(0).random(seen.norms.shape)
    worst = np.argsort(-errors.ravel())[:4]
    sketch = Echo()
    found = solver._next_rows(space, vectors, seen, errors, lams=LAMS, sketch=sketch)
    assert_allclose(np.linalg.norm(found, axis=1), seen.norms.ravel()[worst], rtol=1e-6)
    assert_allclose(sketch.lams, LAMS[worst // 6])
    assert_allclose(solver._next_rows(space, vectors, seen, errors, lams=LAMS, sketch=None), found)
    krylov = grown(krylov=True)[1]
    assert solver._next_rows(krylov, vectors, seen, errors, lams=LAMS, sketch=None) is krylov.R


def test_a_pass_is_a_product_and_its_columns_are_few():
    """One block for each pass, and four for the first of a preconditioned space."""
    problem = from_spectrum(DELTA, c=2)
    for rank, first in ((0, 4), (10, 12)):
        widths = []

        class Counted(DenseOperator):
            def matmat(self, V, widths=widths):
                widths.append(int(V.shape[1]))
                return super().matmat(V)

        found = Subspace(NumpyBackend(), 1e-9, block=4, rank=rank, steps=3).decompose(
            Counted(Precomputed(), problem.K), problem.Y, LAMS[::-1], Stopwatch(lambda: None)
        )
        assert found.passes == len(widths)
        assert widths[0] == first
        assert max(widths[1:]) <= 4
        assert sum(widths) == found.space.k == len(found.spectrum.eigenvalues)
        assert found.status.startswith("converged")


@pytest.mark.parametrize("rank", [0, 40])
@pytest.mark.parametrize(("size", "lams"), [(180, 1), (100, 40), (40, 4)])
def test_a_basis_takes_what_was_said(size, lams, rank):
    n, Y = 3000, np.random.default_rng(1).standard_normal((3000, 2))
    operator, grid = Cheap(n, 60, small=0.1), np.geomspace(1e-2, 1.0, lams)
    solver = Subspace(
        NumpyBackend(), 1e-13, block=8, rank=rank, steps=5, max_size=size, max_passes=30
    )

    def grow():
        found = solver.decompose(operator, Y, grid, Stopwatch(lambda: None))
        assert size // 2 <= found.space.k <= size

    grow()
    said = Subspace.peak_bytes(n, size, rank, 8, lams * 5 * 2)
    assert 0.4 * said <= most_bytes(grow) <= 1.01 * said


def test_the_sketch_is_made_for_the_smallest_lam_and_the_norm_is_no_less_than_the_diagonal():
    problem = from_spectrum(DELTA, c=2)
    solver = Subspace(NumpyBackend(), 1e-6, block=4, rank=10, steps=3)
    operator = DenseOperator(Precomputed(), problem.K)
    found = solver.decompose(operator, problem.Y, np.array([1e9, 0.01]), Stopwatch(lambda: None))
    assert found.sketch.rank == 10
    assert found.space.diagonal == np.diag(problem.K).max()
    none = solver.decompose(operator, problem.Y, np.array([1e9]), Stopwatch(lambda: None))
    assert none.sketch is None


def test_restarts_are_counted(monkeypatch):
    problem, calls, plain = from_spectrum(DELTA, c=2), [], GrowingBasis.compress

    def compress(self, directions):
        calls.append(len(directions))
        plain(self, directions)

    monkeypatch.setattr(GrowingBasis, "compress", compress)
    solver = Subspace(NumpyBackend(), 1e-9, block=4, steps=3, max_size=14, max_passes=20)
    found = solver.decompose(
        DenseOperator(Precomputed(), problem.K), problem.Y, LAMS, Stopwatch(lambda: None)
    )
    assert len(calls) > 1
    assert f"after {found.passes} passes and {len(calls)} restarts" in found.status
    assert max(calls) <= 14
