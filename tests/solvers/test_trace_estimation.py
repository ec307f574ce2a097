"""What random signs tell of powers of H, sign by sign, against dense matrices."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers import trace_estimation as probes
from sdgpu.solvers.galerkin import triangle_bytes
from sdgpu.solvers.preconditioners import pivoted_cholesky
from sdgpu.solvers.quadratic_forms import WIDE, WIDE_RELATIVE, power_filters
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.trace_estimation import GROUPS, Probes
from tests.problems import Cheap, assert_near, from_spectrum, most_bytes

N = 90
LAMS = np.array([0.5, 0.01])  # in no order
DELTA = np.geomspace(1e-3, 10.0, N)


@pytest.fixture(autouse=True)
def _precise(monkeypatch):
    """Spaces that know every form to its last digit: what is left to test is what is made of them."""
    monkeypatch.setattr(probes, "TOL", 1e-13)
    monkeypatch.setattr(probes, "SHARP_TOL", 1e-13)


def make(*, sketched, count=16, n=N, known=8):
    problem = from_spectrum(DELTA[-n:], c=2)
    operator, backend = DenseOperator(Precomputed(), problem.K), NumpyBackend()
    watch = Stopwatch(lambda: None)
    # Ritz vectors of a space that is no invariant one
    rng = np.random.default_rng(2)
    span = problem.V[:, -known:] + 0.02 * rng.standard_normal((n, known))
    Q = np.linalg.qr(span)[0]
    values, turn = np.linalg.eigh(Q.T @ problem.K @ Q)
    ritz = Spectrum(values, Q @ turn, (Q @ turn).T @ problem.Y, 0, 0.0, "lanczos")
    sketch = pivoted_cholesky(operator, 12, backend, seed=0, watch=watch) if sketched else None
    found = Probes(lambda: operator, backend, sketch, ritz, LAMS, 3, count, 5, watch)
    part = (ritz.basis * values) @ ritz.basis.T
    if sketched:
        F = sketch.F.astype(float)
        part = F.T @ F
    return problem, found, part


def powers(K, lam, steps):
    """H, .., H^T."""
    H = K @ np.linalg.inv(K + lam * np.eye(len(K)))
    return [np.linalg.matrix_power(H, q) for q in range(1, steps + 1)]


@pytest.mark.parametrize("sketched", [False, True])
def test_traces_of_each_sign_are_those_of_what_it_sees_beyond_the_known_part(sketched):
    problem, found, part = make(sketched=sketched)
    G = found._signs
    assert G.shape == (16, N)
    assert (np.abs(G) == 1).all()
    assert abs(G.mean()) < 0.1
    lams = np.array([0.1, 3.0])  # served or not
    traces = found.traces(lams, 4)
    assert traces.shape == (16, 2, 4)
    for i, lam in enumerate(lams):
        for q, (H, P) in enumerate(
            zip(powers(problem.K, lam, 4), powers(part, lam, 4), strict=True)
        ):
            wanted = np.trace(P) + np.sum(G * (G @ (H - P)), axis=1)
            assert_allclose(traces[:, i, q], wanted, rtol=1e-5)


@pytest.mark.parametrize("sketched", [False, True])
def test_diagonals_are_means_over_a_group_but_for_the_rows_that_matter(sketched):
    problem, found, part = make(sketched=sketched)
    G = found._signs
    lams = np.geomspace(0.05, 3.0, 5)  # more than one part of them
    known, each = found.diagonals(lams, 3)
    assert known.shape == (5, 3, N)
    assert each.shape == (GROUPS, 5, 3, N)
    rows, _ = found._sharp_rows
    assert len(rows) == 64
    others = np.setdiff1d(np.arange(N), rows)
    for i, lam in enumerate(lams):
        for q, (H, P) in enumerate(
            zip(powers(problem.K, lam, 3), powers(part, lam, 3), strict=True)
        ):
            assert_allclose(known[i, q, rows], np.diag(H)[rows], rtol=1e-9)
            assert_allclose(known[i, q, others], np.diag(P)[others], atol=1e-5)
            seen = (G * (G @ (H - P))).reshape(GROUPS, 2, N).mean(axis=1)
            assert_allclose(each[:, i, q, others], seen[:, others], atol=2e-5)
            assert (each[:, i, q, rows] == 0).all()


def test_few_rows_are_all_computed_by_themselves():
    problem, found, _ = make(sketched=False, n=20, count=8, known=3)
    rows, own = found._sharp_rows
    assert (rows == np.arange(20)).all()
    assert own.coordinates.shape[1] == 20
    known, _ = found.diagonals(np.array([0.1]), 1)
    assert_allclose(known[0, 0], np.diag(powers(problem.K, 0.1, 1)[0]), rtol=1e-9)


@pytest.mark.parametrize("sketched", [False, True])
def test_influence_is_what_an_error_of_a_leverage_does(sketched):
    """|error|^2 sqrt(H_ii) (1 - H_ii)^-2.5, and 1 / (1 - H_ii) of the smallest lam in every second turn."""
    problem, found, part = make(sketched=sketched)
    G, ritz = found._signs, found.ritz
    wanted = []
    for lam in np.sort(LAMS):
        H, P = powers(problem.K, lam, 1)[0], powers(part, lam, 1)[0]
        seen = (G * (G @ (H - P))).reshape(GROUPS, 2, N).mean(axis=1)
        without = [np.delete(seen, i, axis=0).mean(axis=0) for i in range(GROUPS)]
        leverage = np.diag(P) + np.maximum(seen.mean(axis=0), np.max(without, axis=0))
        diagonal = np.diag(problem.K)
        rest = np.maximum(1 - leverage, 1 - diagonal / (diagonal + lam))
        # of the ridge of the fit, on its own Ritz vectors
        filters = lam / (ritz.eigenvalues + lam)
        errors = ritz.basis @ (filters[:, None] * ritz.Z)
        loss = (errors**2).sum(axis=1)
        wanted.append(loss * np.sqrt(np.maximum(1 - rest, 0)) / rest**2.5)
        if len(wanted) == 1:
            sharp = 1 / rest
    influence = found._influence()
    assert influence.shape == (4, N)
    for row, own in zip(influence, (sharp, wanted[0], sharp, wanted[1]), strict=True):
        assert_near(row, own, rtol=1e-2)
    ranked = np.argsort(-influence, axis=1)
    assert (found._sharp_rows[0] == probes._round_robin(ranked, 64)).all()


def test_rankings_take_turns():
    ranked = np.array([[3, 1, 2, 0, 4], [1, 0, 3, 2, 4]])
    assert list(probes._round_robin(ranked, 1)) == [3]
    assert list(probes._round_robin(ranked, 2)) == [1, 3]
    assert list(probes._round_robin(ranked, 3)) == [0, 1, 3]
    assert list(probes._round_robin(ranked, 5)) == [0, 1, 2, 3, 4]


def test_bias_is_the_mean_bound_between_the_lam_that_were_served():
    _, found, _ = make(sketched=False)
    bounds = found._probe_space.bounds.mean(axis=2)  # of 0.01 and 0.5, steps 1 .. 3
    assert bounds.shape == (2, 3)
    between = np.sqrt(0.01 * 0.5)
    bias = found.bias(np.array([0.5, 0.01, between]), 2)
    assert_allclose(bias, [bounds[1, :2], bounds[0, :2], bounds[:, :2].mean(axis=0)], rtol=1e-12)
    more = found.bias(np.array([0.5, 0.01]), 5)
    assert_allclose(more[:, :3], bounds[::-1], rtol=1e-12)
    worst = bounds[::-1].max(axis=1)
    assert_allclose(more[:, 3:], np.stack([worst * 4 / 3, worst * 5 / 3], axis=1), rtol=1e-12)


def test_eigenvectors_of_a_sketch_that_float32_left_none_of_are_dropped():
    _, found, _ = make(sketched=True)
    sketch = found.sketch
    values = np.array([-1e-9, 1e-7, 1e-6, 1e-4, 3.0, 20.0])
    vectors = np.eye(6)[:, ::-1]
    object.__setattr__(sketch, "eigenvalues", values)
    object.__setattr__(sketch, "vectors", vectors)
    turn, kept = found._whitening
    assert_allclose(kept, values[3:])  # not below 1e-6 of 20
    assert_allclose(turn, (vectors[:, 3:] / np.sqrt(values[3:])).T)


def test_signs_follow_from_the_seed():
    first, again = (make(sketched=False)[1]._signs for _ in range(2))
    assert (first == again).all()


@pytest.mark.parametrize("sketched", [False, True])
@pytest.mark.parametrize("lams", [1, 6])
def test_spaces_of_signs_and_of_rows_take_what_was_said(lams, sketched):
    """Room for rows that a space will never have was made: 1.25 of what was said."""
    n, backend, watch = 1000, NumpyBackend(), Stopwatch(lambda: None)
    operator, grid = Cheap(n, 200, small=0.1), np.geomspace(1e-2, 1.0, lams)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((n, 2)))[0]
    ritz = Spectrum(np.array([1.0, 2.0]), basis, np.ones((2, 2)), 0, 0.0, "lanczos")
    sketch = pivoted_cholesky(operator, 30, backend, seed=0, watch=watch) if sketched else None

    def used(diagonals):
        own = Probes(lambda: operator, backend, sketch, ritz, grid, 4, 8, 0, watch)
        ask = own.diagonals if diagonals else own.traces
        return most_bytes(lambda: ask(grid, 4)) / own.peak_bytes(diagonals=diagonals)

    used(True)
    assert 0.4 <= used(False) <= 1
    assert 0.4 <= used(True) <= 1


@pytest.mark.parametrize("known", [3, 400])
def test_memory_is_counted_term_by_term(known):
    """Rows and images of a space, blocks in the making, residuals of the grid; once more for single rows."""
    n, count, lams, steps = 5000, 16, np.array([0.5, 0.01]), 3
    ritz = Spectrum(np.ones(known), np.zeros((n, known)), np.zeros((known, 1)), 0, 0.0, "lanczos")
    watch = Stopwatch(lambda: None)
    found = Probes(lambda: None, NumpyBackend(), None, ritz, lams, steps, count, 5, watch)
    size = 48 * 16  # of the space, at most

    def space(s, wide):
        rows_and_images, blocks = 2 * n * size, 7 * wide * s * n
        residuals = 2 * len(lams) * steps * s * size
        copy = max(8 * n * size, triangle_bytes(n, size))
        return 8 * (rows_and_images + blocks + residuals) + copy

    assert found.peak_bytes(diagonals=False) == space(16, WIDE)
    # the first space stays while that of four rows for each probe grows
    assert found.peak_bytes(diagonals=True) == 8 * n * size + space(64, WIDE_RELATIVE)
    few = Spectrum(np.ones(2), np.zeros((9, 2)), np.zeros((2, 1)), 0, 0.0, "lanczos")
    small = Probes(lambda: None, NumpyBackend(), None, few, lams, steps, count, 5, watch)
    n, size = 9, 9
    assert small.peak_bytes(diagonals=False) == space(16, WIDE)


@pytest.mark.parametrize("columns", [1, 96, 10_000])
def test_lam_at_a_time_are_as_many_as_columns_allow(monkeypatch, columns):
    _, found, _ = make(sketched=True)
    whole = found.diagonals(LAMS, 3)
    calls = []

    def counted(values, lams, steps):
        calls.append(len(lams))
        return power_filters(values, lams, steps)

    monkeypatch.setattr(probes, "COLUMNS", columns)
    monkeypatch.setattr(probes, "power_filters", counted)
    for one, other in zip(found.diagonals(LAMS, 3), whole, strict=True):
        assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert calls[0] == {1: 1, 96: 2, 10_000: 2}[columns]
