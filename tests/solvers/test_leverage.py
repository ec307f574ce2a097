"""Diagonals and traces of the smoother's powers: exact ones against dense matrices, estimates against sums."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.distill.leave_one_out import leave_one_out
from sdgpu.solvers.leverage import Estimated, Exact, left_out, left_out_numbers
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.trace_estimation import COLUMNS, GROUPS
from tests.problems import from_spectrum

N, STEPS = 12, 3
LAMS = np.array([0.3, 2.0, 0.05])


def dense_powers(K, lam, steps=STEPS):
    """H^0, .., H^T."""
    H = K @ np.linalg.inv(K + lam * np.eye(len(K)))
    return [np.linalg.matrix_power(H, q) for q in range(steps + 1)]


@pytest.fixture
def problem():
    return from_spectrum(np.r_[np.zeros(3), np.geomspace(1e-2, 5.0, N - 3)], c=2)


@pytest.fixture
def exact(problem):
    delta, V = np.linalg.eigh(problem.K)
    return Exact(Spectrum(np.maximum(delta, 0), V, V.T @ problem.Y, 3, 0.0, "eigh"))


def test_exact_ones_are_those_of_the_matrix(problem, exact):
    diagonals, replicates = exact.diagonals(LAMS, STEPS)
    traces, complements = exact.traces(LAMS, STEPS), exact.complements(LAMS, STEPS)
    assert exact.exact
    assert exact.copies == 1
    assert replicates == []
    assert traces.shape == complements.shape == (1, 3, STEPS)
    for i, lam in enumerate(LAMS):
        H = dense_powers(problem.K, lam)
        for q in range(STEPS + 1):
            assert_allclose(diagonals.powers[i, q, :, 0], np.diag(H[q]), rtol=0, atol=1e-13)
        assert_allclose(diagonals.rest[i, :, 0], 1 - np.diag(H[1]), rtol=0, atol=1e-13)
        assert_allclose(exact.rests(LAMS)[i], diagonals.rest[i], rtol=0, atol=1e-13)
        for q in range(STEPS):
            assert_allclose(traces[0, i, q], np.trace(H[q + 1]), rtol=1e-12)
            assert_allclose(complements[0, i, q], np.trace(H[q] - H[q + 1]), rtol=1e-12)
    assert (exact.bias(LAMS, STEPS) == np.zeros((3, STEPS))).all()


def test_eigenvectors_of_zero_may_be_missing(exact):
    own = exact.spectrum
    kept = np.flatnonzero(own.eigenvalues > 1e-6)
    fewer = Exact(
        Spectrum(own.eigenvalues[kept], own.basis[:, kept], own.Z[kept], 0, 0.0, "elsewhere")
    )
    assert_allclose(fewer.traces(LAMS, STEPS), exact.traces(LAMS, STEPS), rtol=1e-10)
    assert_allclose(fewer.complements(LAMS, STEPS), exact.complements(LAMS, STEPS), rtol=1e-10)
    assert_allclose(fewer.rests(LAMS), exact.rests(LAMS), rtol=0, atol=1e-10)


def test_what_exact_ones_take(exact):
    assert exact.numbers(1000, 5) == 500_000
    assert exact.trace_numbers(1000) == 0
    # predictions, powers and products of every step
    assert left_out_numbers(exact, 1000, 2, 5) == 500_000 + 3 * 1000 * 2 * 5


class FakeProbes:
    """What :class:`Estimated` asks of probes, in numbers that are known: K in units of `unit`."""

    count = 16

    def __init__(self, K):
        rng = np.random.default_rng(0)
        self.K, self.ritz = K, SimpleNamespace(basis=np.zeros((len(K), 2)))
        self.diagonal = np.diag(K).copy()
        self.spread = 0.01 * rng.standard_normal((GROUPS, 1, STEPS, len(K)))

    def peak_bytes(self, *, diagonals):
        return 8_000 if diagonals else 800

    def traces(self, lams, steps):
        return np.stack(
            [[np.trace(P) for P in dense_powers(self.K, lam, steps)[1:]] for lam in lams]
        )[None]

    def bias(self, lams, steps):
        return np.outer(lams, np.arange(1.0, steps + 1))

    def scatter(self, lams):
        return 0.5 * lams

    def diagonals(self, lams, steps):
        own = np.stack([[np.diag(P) for P in dense_powers(self.K, lam, steps)[1:]] for lam in lams])
        return 0.75 * own, 0.25 * own[None] + self.spread[:, :, :steps]


@pytest.mark.parametrize("unit", [1.0, 1e-9, 2.0**40])
def test_estimates_are_asked_for_in_the_units_of_the_probes(problem, unit):
    """K and lam a million times smaller are the same problem."""
    probes = FakeProbes(problem.K)
    estimated = Estimated(probes, NumpyBackend(), unit)
    lams = LAMS * unit
    assert not estimated.exact
    assert estimated.copies == GROUPS + 1
    traces = estimated.traces(lams, STEPS)
    assert_allclose(traces, probes.traces(LAMS, STEPS), rtol=1e-12)
    assert_allclose(estimated.bias(lams, STEPS), probes.bias(LAMS, STEPS), rtol=1e-12)
    complements = estimated.complements(lams, STEPS)
    assert complements.shape == (1, 3, STEPS)
    for i, lam in enumerate(LAMS):
        H = dense_powers(problem.K, lam)
        for q in range(STEPS):
            assert_allclose(complements[0, i, q], np.trace(H[q] - H[q + 1]), rtol=1e-10)


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_replicates_leave_one_group_out(problem, unit):
    probes = FakeProbes(problem.K)
    estimated = Estimated(probes, NumpyBackend(), unit)
    mean, replicates = estimated.diagonals(LAMS * unit, STEPS)
    known, groups = probes.diagonals(LAMS, STEPS)
    bound = np.diag(problem.K) / (np.diag(problem.K) + LAMS[:, None])
    assert len(replicates) == GROUPS
    for result, parts in (
        (mean, groups),
        *((replicate, np.delete(groups, g, axis=0)) for g, replicate in enumerate(replicates)),
    ):
        powers = known + parts.mean(axis=0)
        leverage = np.clip(powers[:, 0], 0.0, bound)
        assert_allclose(result.powers[:, 0, :, 0], np.ones((3, N)))
        assert_allclose(result.powers[:, 1, :, 0], leverage, rtol=1e-12, atol=1e-14)
        assert_allclose(result.powers[:, 2:, :, 0], powers[:, 1:], rtol=1e-12, atol=1e-14)
        assert_allclose(result.rest[..., 0], 1 - leverage, rtol=1e-12, atol=1e-14)
    assert_allclose(estimated.rests(LAMS * unit), mean.rest)


@pytest.mark.parametrize("unit", [1.0, 1e-9])
def test_leverages_stay_where_they_must_be(problem, unit):
    """Between 0 and K_ii / (K_ii + lam), whatever the probes say."""
    probes = FakeProbes(problem.K)
    bound = np.diag(problem.K) / (np.diag(problem.K) + LAMS[:, None])
    for shift, value in ((5.0, bound), (-5.0, 0 * bound)):
        probes.spread = np.full((GROUPS, 1, STEPS, N), shift)
        mean, _ = Estimated(probes, NumpyBackend(), unit).diagonals(LAMS * unit, STEPS)
        assert_allclose(mean.powers[:, 1, :, 0], value, rtol=1e-12)
        assert_allclose(mean.rest[..., 0], 1 - value, rtol=1e-12)


def test_what_estimates_take(problem):
    estimated = Estimated(FakeProbes(problem.K), NumpyBackend())
    assert estimated.trace_numbers(N) == 100
    # images of all powers or a block of columns, and the diagonals of each group twice
    few = 1000 + 2 * N * COLUMNS + 2 * N * STEPS * GROUPS
    assert estimated.numbers(N, STEPS) == few
    many = 1000 + 2 * N * 30 * FakeProbes.count + 2 * N * 30 * GROUPS
    assert estimated.numbers(N, 30) == many
    assert left_out_numbers(estimated, N, 2, 30) == many + 3 * N * 2 * 30 * (GROUPS + 1)


def test_rows_left_out_are_those_of_the_recursion(problem, exact):
    fitted = np.stack([[P @ problem.Y for P in dense_powers(problem.K, lam)] for lam in LAMS])
    result = left_out(fitted, exact, LAMS)
    diagonals, _ = exact.diagonals(LAMS, STEPS)
    assert result.steps.shape == (3, STEPS, N, 2)
    assert_allclose(result.steps, leave_one_out(fitted, diagonals.powers, diagonals.rest))
    assert_allclose(result.targets, problem.Y)
    assert result.replicates == []
    for i, lam in enumerate(LAMS):  # the ordinary fit without a row, refitted
        for row in range(N):
            others = np.delete(np.arange(N), row)
            K = problem.K[np.ix_(others, others)]
            dual = np.linalg.solve(K + lam * np.eye(N - 1), problem.Y[others])
            assert_allclose(
                result.steps[i, 0, row], problem.K[row, others] @ dual, rtol=0, atol=1e-10
            )
    estimated = Estimated(FakeProbes(problem.K), NumpyBackend())
    assert len(left_out(fitted, estimated, LAMS).replicates) == GROUPS
