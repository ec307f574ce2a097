"""The contract of a solution, whoever made it: every answer against dense refits."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.loss_triangles import step_losses
from sdgpu.distill.schedules import all_tails
from sdgpu.kernels import Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers.galerkin import GrowingBasis
from sdgpu.solvers.leverage import Exact
from sdgpu.solvers.resolvent_solution import ResolventSolution
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.units import Units
from tests.problems import assert_near, from_spectrum, refits

N, C, T = 14, 2, 4
LAMS = np.array([0.4, 0.05, 3.0])
ALPHAS = np.array([0.3, -0.2, 1.1])
PER_OUTPUT = np.array([[0.3, 0.9], [-0.2, 0.0], [1.1, 0.5]])
LIMITS = (np.array([0.4, 0.05, 3.0, 0.4]), np.array([0.5, 0.0, 1.0, 0.25]))
PROBLEM = from_spectrum(np.r_[np.zeros(2), np.geomspace(1e-2, 4.0, N - 2)], c=C)
SMOOTH = PROBLEM.K @ np.random.default_rng(3).standard_normal((N, C))  # targets in the range of K


def spectrum(kept, Y):
    V = PROBLEM.V[:, kept]
    return Spectrum(PROBLEM.delta[kept], V, V.T @ Y, 0, 0.0, "eigh")


def spectral():
    return SpectralSolution(spectrum(slice(0, None), PROBLEM.Y)), PROBLEM.Y


def without_null_vectors():
    """A basis that does not hold all of the targets, which are then given beside it."""
    own = spectrum(slice(2, None), PROBLEM.Y)
    outside = (PROBLEM.Y**2).sum(axis=0) - (own.Z**2).sum(axis=0)
    own = Spectrum(own.eigenvalues, own.basis, own.Z, 0, 0.0, "elsewhere", outside)
    return SpectralSolution(own, Y=PROBLEM.Y), PROBLEM.Y


def of_its_range():
    return SpectralSolution(spectrum(slice(2, None), SMOOTH)), SMOOTH


def resolvent():
    backend, units = NumpyBackend(), Units(2.0, np.array([1.0, 4.0]))
    operator = units.scaled(DenseOperator(Precomputed(), PROBLEM.K))
    Y = PROBLEM.Y / units.targets
    space = GrowingBasis(N, C, backend, krylov=False)
    rows = space.new_directions(Y.T, required=Y.T)
    space.append(rows, operator.matmat(rows.T).T)
    resolvents = Resolvents(
        operator,
        backend,
        Y,
        units,
        tol=1e-11,
        steps=T,
        space=space,
        sketch=None,
        watch=Stopwatch(lambda: None),
    )
    exact = Exact(spectrum(slice(0, None), PROBLEM.Y))
    return ResolventSolution(resolvents, backend, exact), PROBLEM.Y


@pytest.fixture(params=[spectral, without_null_vectors, of_its_range, resolvent])
def case(request):
    return request.param()


def test_sizes_and_bounds(case):
    solution, Y = case
    assert (solution.rows, solution.outputs) == (N, C)
    assert_near(solution.targets, Y, rtol=1e-12)
    assert solution.largest <= PROBLEM.delta[-1] * (1 + 1e-12)
    assert solution.largest > 0.1 * PROBLEM.delta[-1]
    assert solution.largest_bound >= PROBLEM.delta[-1] * (1 - 1e-12)


def test_the_ordinary_fit(case):
    solution, Y = case
    for lam in LAMS:
        fitted, dual = refits(PROBLEM.K, Y, lam, 0.0, 1)
        for outputs in (slice(0, C), slice(1, 2)):
            own_dual, own_fitted = solution.ridge(lam, outputs)
            assert_near(own_fitted, fitted[0][:, outputs], rtol=1e-8)
            # along null vectors of K a basis without them has no coefficients, and needs none
            assert_near(PROBLEM.K @ own_dual, PROBLEM.K @ dual[0][:, outputs], rtol=1e-8)
            assert own_dual.shape == (N, outputs.stop - outputs.start)


@pytest.mark.parametrize("alphas", [ALPHAS, PER_OUTPUT, ALPHAS[:1], ALPHAS[:0]])
def test_chains(case, alphas):
    solution, Y = case
    for lam in LAMS:
        chain = solution.chain(lam, alphas)
        steps = len(alphas) + 1
        assert chain.dual.shape == chain.fitted.shape == (steps, N, C)
        for j in range(C):
            own = alphas if alphas.ndim == 1 else alphas[:, j]
            fitted, dual = refits(PROBLEM.K, Y[:, j : j + 1], lam, own, steps)
            assert_near(chain.fitted[..., j], fitted[..., 0], rtol=1e-7)
            assert_near(PROBLEM.K @ chain.dual[..., j].T, PROBLEM.K @ dual[..., 0].T, rtol=1e-7)
        assert (chain.spectrum is None) == (solution.spectrum is None)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.01, 1.7, 0.0])
def test_limits_are_ridge(case, alpha):
    solution, Y = case
    for lam in LAMS:
        dual, fitted = solution.limit(lam, alpha)
        assert dual.shape == fitted.shape == (N, C)
        if alpha == 0:
            assert (dual == 0).all()
            assert (fitted == 0).all()
            continue
        truth, own = refits(PROBLEM.K, Y, lam / alpha, 0.0, 1)
        assert_near(fitted, truth[0], rtol=1e-8)
        assert_near(PROBLEM.K @ dual, PROBLEM.K @ own[0], rtol=1e-8)


def test_a_limit_that_overflows_is_the_collapse():
    solution, _ = resolvent()
    for alpha in (1e-320, 0.0):
        dual, fitted = solution.limit(1e300, alpha)
        assert not dual.any()
        assert not fitted.any()


def basis_functions(lam, Y, steps):
    """u_1, D_1, .. by refits, as dual coefficients (T, n, c)."""
    _, dual = refits(PROBLEM.K, Y, lam, 0.0, steps)
    return np.concatenate([dual[:1], np.diff(dual, axis=0)])


@pytest.mark.parametrize("count", [0, 1, 4])
def test_columns_project_once_and_serve_every_lam_and_limit(case, count):
    solution, Y = case
    limits = tuple(part[:count] for part in LIMITS)
    expansion = solution.expand(LAMS, T, limits)
    projected = PROBLEM.K_new @ expansion.columns  # (m, k)
    assert expansion.numbers > 0
    for part in (slice(0, 3), slice(1, 2), slice(2, 3)):
        values = expansion.steps(projected, part)
        assert values.shape == (part.stop - part.start, T, len(PROBLEM.K_new), C)
        for i, lam in enumerate(LAMS[part]):
            truth = PROBLEM.K_new @ basis_functions(lam, Y, T)
            for step in range(T):  # relative to u_1: differences fall off
                size = np.abs(truth[0]).max()
                assert_allclose(values[i, step], truth[step], rtol=0, atol=1e-7 * size)
    for part in (slice(0, count), slice(count // 2, count)):
        values = expansion.limits(projected, part)
        assert values.shape == (part.stop - part.start, len(PROBLEM.K_new), C)
        for value, lam, alpha in zip(values, *(x[part] for x in limits), strict=True):
            truth = np.zeros_like(value)
            if alpha:
                truth = PROBLEM.K_new @ refits(PROBLEM.K, Y, lam / alpha, 0.0, 1)[1][0]
            assert_allclose(value, truth, rtol=0, atol=1e-7 * max(np.abs(truth).max(), 1e-300))


def test_numbers_of_a_block_are_what_steps_make():
    """k c of each filter for a spectrum, T c where the columns are the functions themselves."""
    for make, numbers in ((spectral, N * C), (of_its_range, (N - 2) * C), (resolvent, T * C)):
        assert make()[0].expand(LAMS, T, (LIMITS[0][:0], LIMITS[1][:0])).numbers == numbers


def test_rows_left_out(case):
    solution, Y = case
    result, errors = solution.left_out(LAMS, 2), solution.left_out_ridge(LAMS)
    assert result.steps.shape == (3, 2, N, C)
    assert errors.shape == (3, N, C)
    assert_near(result.targets, Y, rtol=1e-12)
    for i, lam in enumerate(LAMS):
        for row in range(N):
            others = np.delete(np.arange(N), row)
            _, dual = refits(PROBLEM.K[np.ix_(others, others)], Y[others], lam, 0.0, 2)
            truth = PROBLEM.K[row, others] @ dual
            size = np.abs(Y).max()
            assert_allclose(result.steps[i, :, row], truth, rtol=0, atol=1e-7 * size)
            assert_allclose(errors[i, row], Y[row] - truth[0], rtol=0, atol=1e-7 * size)


def test_training_triangles_know_the_loss_of_every_schedule(case):
    solution, Y = case
    triangles = solution.training(LAMS, T)
    assert triangles.shape == (3, T, T)
    for R, lam in zip(triangles, LAMS, strict=True):
        for alphas in (ALPHAS, np.zeros(T - 1), np.ones(T - 1)):
            fitted, _ = refits(PROBLEM.K, Y, lam, alphas, T)
            losses = ((fitted - Y) ** 2).sum(axis=(1, 2))
            tails = all_tails(alphas)[:, 1:]
            for step in range(T):
                assert_allclose(step_losses(R, tails[step]), losses[step], rtol=1e-7)


@pytest.mark.parametrize("size", [2.0**600, 2.0**-600])
def test_training_triangles_of_targets_whose_squares_leave_float64(size):
    own = spectrum(slice(0, None), PROBLEM.Y)
    large = Spectrum(own.eigenvalues, own.basis, own.Z * size, 0, 0.0, "eigh")
    assert_allclose(
        SpectralSolution(large).training(LAMS, T) / size,
        SpectralSolution(own).training(LAMS, T),
        rtol=1e-14,
    )


def test_leverages_are_those_of_all_eigenvectors(case):
    solution, _ = case
    H = [PROBLEM.K @ np.linalg.inv(PROBLEM.K + lam * np.eye(N)) for lam in LAMS]
    assert solution.leverages.exact
    traces = [[np.trace(np.linalg.matrix_power(h, q)) for q in (1, 2)] for h in H]
    assert_allclose(solution.leverages.traces(LAMS, 2)[0], traces, rtol=1e-9)


def test_other_targets():
    solution, _ = spectral()
    other = np.random.default_rng(8).standard_normal((N, 3))
    assert_near(
        solution.with_targets(other).ridge(0.4, slice(0, 3))[1],
        refits(PROBLEM.K, other, 0.4, 0.0, 1)[0][0],
    )
    with pytest.raises(ValueError, match="a eigh basis of 12 vectors grew from its own targets"):
        of_its_range()[0].with_targets(other)
    with pytest.raises(ValueError, match="solves serve their own targets alone"):
        resolvent()[0].with_targets(other)


def test_estimates_stand_for_eigenvectors_that_are_not_known():
    own = spectrum(slice(2, None), PROBLEM.Y)
    estimates = Exact(spectrum(slice(0, None), PROBLEM.Y))
    assert SpectralSolution(own, estimates).leverages is estimates
    assert SpectralSolution(own).leverages.spectrum is own


def test_no_eigenvalues_at_all():
    empty = Spectrum(np.zeros(0), np.zeros((N, 0)), np.zeros((0, C)), 0, 0.0, "lanczos")
    solution = SpectralSolution(empty, Y=np.zeros((N, C)))
    assert solution.largest == solution.largest_bound == 0
    assert (solution.ridge(1.0, slice(0, C))[1] == 0).all()
    assert (solution.training(LAMS, T) == 0).all()
