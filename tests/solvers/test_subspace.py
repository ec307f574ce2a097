"""Grown bases against eigendecompositions: predictions, residuals as certificates, and odd targets."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import Gaussian, Matern, Precomputed
from sdgpu.operators import DenseOperator, TiledOperator
from sdgpu.solvers.cg import CG
from sdgpu.solvers.galerkin import GrowingBasis, orthonormal_rows
from sdgpu.solvers.preconditioners import pivoted_cholesky
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.subspace import Subspace
from sdgpu.solvers.units import Units
from tests.problems import assert_near, refits

N = 300


def watch():
    return Stopwatch(lambda: None)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, 3))
    Y = np.sin(X @ rng.standard_normal((3, 2))) + 0.3 * rng.standard_normal((N, 2))
    return X, Y


def worst_error(spectrum, K, Y, lams, steps, alphas=(0.0, 0.5, 1.0)):
    """Largest relative error of the predictions of a spectrum against dense refits."""
    worst = 0.0
    delta, V, Z = (to_numpy(a) for a in (spectrum.eigenvalues, spectrum.basis, spectrum.Z))
    for lam in lams:
        a = delta / (delta + lam)
        for alpha in alphas:
            fits, _ = refits(K, Y, lam, alpha, steps)
            B = np.ones_like(a)
            for tau in range(steps):
                B = a * (B if tau == 0 else (1 - alpha) * B + alpha)
                error = np.linalg.norm(V @ (B[:, None] * Z) - fits[tau], axis=0)
                worst = max(worst, float(np.max(error / np.linalg.norm(fits[0], axis=0))))
    return worst


@pytest.mark.parametrize("rank", [0, 60])
@pytest.mark.parametrize("lowest", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_predictions_are_within_the_estimate(problem, backend, rank, lowest, tol):
    X, Y = problem
    if backend.name != "numpy on cpu" and (lowest, tol) != (1e-4, 1e-8):
        pytest.skip("one case is enough for the other libraries")
    lams = np.geomspace(lowest, 1e-1, 6) * N
    operator = DenseOperator(Gaussian(0.3), backend.asarray(X))
    solver = Subspace(backend, tol, block=8, rank=rank, steps=5)
    found = solver.decompose(operator, backend.asarray(Y), lams, watch())
    assert found.status.startswith("converged")
    assert found.error <= tol
    error = worst_error(found.spectrum, Gaussian(0.3)(X), Y, lams[[0, 3]], 5)
    assert error <= found.error + 3e-11  # it is a bound, up to rounding
    assert found.spectrum.basis.shape[1] <= N
    V = to_numpy(found.spectrum.basis)
    assert_allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-10)


def test_a_sketch_saves_passes():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((1200, 4)), rng.standard_normal((1200, 1))
    operator = DenseOperator(Gaussian(0.1), X)
    passes = [
        Subspace(NumpyBackend(), 1e-4, rank=rank)
        .decompose(operator, Y, np.array([1e-3]), watch())
        .passes
        for rank in (0, 400)
    ]
    assert passes[1] < passes[0]


def test_residuals_are_true_ones(problem):
    X, Y = problem
    K, lams, rng = Gaussian(0.3)(X), np.array([0.1, 3.0]), np.random.default_rng(1)
    for krylov in (False, True):
        space = GrowingBasis(N, 4, NumpyBackend(), krylov=krylov)
        block = space.new_directions(np.vstack([Y.T, rng.standard_normal((2, N))]))
        for _ in range(4):
            space.append(block, block @ K)
            block = space.new_directions(space.R if krylov else rng.standard_normal((3, N)))
        values, vectors = space.ritz()
        seen = space.residuals(values, vectors, Y.T, lams, 3)
        for i, lam in enumerate(lams):
            for j in range(2):
                previous = Y[:, j]
                c = (vectors / (values + lam)) @ (vectors.T @ (space.Q @ Y[:, j]))
                for step in range(3):
                    w = space.Q.T @ c
                    residual = previous - (K + lam * np.eye(N)) @ w
                    assert_allclose(
                        seen.norms[i, step, j], np.linalg.norm(residual), rtol=1e-6, atol=1e-9
                    )
                    assert_allclose(seen.fitted[i, step, j], np.linalg.norm(space.T @ c), rtol=1e-8)
                    previous = K @ w
                    c = (vectors * (values / (values + lam))) @ (vectors.T @ c)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 100))
def test_orthonormal_rows_of_nearly_dependent_ones(rank, held, seed):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((40, held)))[0].T
    base = rng.standard_normal((rank, 40))
    block = np.vstack([base, base + 1e-13 * rng.standard_normal(base.shape), np.zeros((1, 40))])
    new = orthonormal_rows(block, [Q], NumpyBackend())
    assert new.shape == (rank, 40)
    assert_allclose(new @ new.T, np.eye(rank), atol=1e-12)
    assert_allclose(new @ Q.T, 0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 20])
@pytest.mark.parametrize("kind", ["zero", "constant", "repeated", "an eigenvector", "mixed zero"])
def test_odd_targets(kind, rank):
    rng = np.random.default_rng(3)
    X = np.repeat(rng.standard_normal((40, 2)), 2, axis=0)  # duplicate rows: rank 40 of 80
    K = Gaussian(0.4)(X)
    Y = {
        "zero": np.zeros((80, 1)),
        "constant": np.ones((80, 1)),
        "repeated": np.repeat(rng.standard_normal((80, 1)), 3, axis=1),
        "an eigenvector": np.linalg.eigh(K)[1][:, [-1]],
        "mixed zero": np.column_stack([np.zeros(80), rng.standard_normal(80)]),
    }[kind]
    lams = np.array([0.01, 1.0])
    found = Subspace(NumpyBackend(), 1e-8, block=6, rank=rank).decompose(
        DenseOperator(Gaussian(0.4), X), Y, lams, watch()
    )
    assert found.status.startswith("converged")
    fits, _ = refits(K, Y, 0.01, 0.3, 3)
    delta = found.spectrum.eigenvalues
    a = delta / (delta + 0.01)
    B = a * (0.7 * a * (0.7 * a + 0.3) + 0.3)
    assert_allclose(found.spectrum.combine(B[:, None]), fits[2], atol=1e-7)


def test_one_row():
    found = Subspace(NumpyBackend(), 1e-8).decompose(
        DenseOperator(Gaussian(0.4), np.ones((1, 1))), np.ones((1, 1)), np.ones(1), watch()
    )
    assert_allclose(found.spectrum.eigenvalues, [1.0])


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("rank", [0, 2])
def test_few_rows_whose_targets_are_all_zero(n, rank):
    """The basis has room for the targets alone, and they are no direction."""
    operator = DenseOperator(Gaussian(0.4), np.arange(float(n))[:, None])
    solver = Subspace(NumpyBackend(), 1e-8, rank=rank, max_size=1)
    found = solver.decompose(operator, np.zeros((n, 4)), np.ones(1), watch())
    assert found.space.k >= 1
    assert found.error <= 1e-8


def test_what_cannot_be_reached_is_said(problem):
    X, Y = problem
    lams = np.array([1e-6]) * N
    short = Subspace(NumpyBackend(), 1e-10, block=4, max_passes=3)
    found = short.decompose(DenseOperator(Matern(0.5), X), Y, lams, watch())
    assert found.error > 1e-10
    assert "not converged" in found.status
    assert "more passes" in found.status
    small = Subspace(NumpyBackend(), 1e-10, block=4, max_size=20)
    found = small.decompose(DenseOperator(Matern(0.5), X), Y, lams, watch())
    assert found.spectrum.basis.shape[1] <= 20
    assert "restarts" in found.status
    single = TiledOperator(Matern(0.5), X, "float32")
    noisy = Subspace(NumpyBackend(), 1e-16, block=8, max_passes=80).decompose(
        single, Y, lams, watch()
    )
    assert noisy.status.startswith(("not converged", "limited by rounding"))


def test_sketch_explains_what_its_tail_says(problem, backend):
    X, _ = problem
    operator = DenseOperator(Gaussian(0.1), backend.asarray(X))
    sketch = pivoted_cholesky(operator, 80, backend, seed=0, watch=watch())
    F, K = to_numpy(sketch.F).astype(float), Gaussian(0.1)(X)
    assert_allclose(np.trace(K - F.T @ F), sketch.tail, atol=1e-3)
    assert sketch.tail < 0.02 * N
    top = to_numpy(sketch.top)
    assert_allclose(top @ top.T, np.eye(len(top)), atol=1e-10)
    R = backend.asarray(np.random.default_rng(0).standard_normal((3, N)))
    lams = np.array([0.1, 1.0, 10.0])
    found = to_numpy(sketch.solve(R, lams))
    for i, lam in enumerate(lams):
        wanted = np.linalg.solve(F.T @ F + lam * np.eye(N), to_numpy(R)[i])
        assert_allclose(found[i], wanted, atol=2e-4 * np.abs(wanted).max())


def test_sketch_of_low_rank_stops_early():
    X = np.repeat(np.random.default_rng(0).standard_normal((7, 2)), 6, axis=0)
    sketch = pivoted_cholesky(
        DenseOperator(Gaussian(0.4), X), 30, NumpyBackend(), seed=0, watch=watch()
    )
    assert len(sketch.F) <= 12


@pytest.mark.parametrize("rank", [0, 60])
@pytest.mark.parametrize("size", [30, 40])
def test_a_basis_that_is_too_small_restarts(problem, backend, rank, size):
    X, Y = problem
    lams = np.geomspace(1e-2, 1e-1, 6) * N
    operator = DenseOperator(Gaussian(0.3), backend.asarray(X))
    solver = Subspace(backend, 1e-5, block=6, rank=rank, steps=5, max_size=size)
    found = solver.decompose(operator, backend.asarray(Y), lams, watch())
    assert found.status.startswith("converged")
    assert "restarts" in found.status
    assert found.spectrum.basis.shape[1] <= size
    assert worst_error(found.spectrum, Gaussian(0.3)(X), Y, lams, 5) <= found.error <= 1e-5


@pytest.mark.parametrize("rank", [0, 60])
@pytest.mark.parametrize("size", [1, 5, 8, 20, 36])
@pytest.mark.parametrize("passes", [7, 200])
def test_the_bound_holds_for_bases_smaller_than_a_block_or_two(problem, rank, size, passes):
    """Targets were cut away with the rest of a first block, and a last compression was not looked at."""
    X, Y = problem
    lams = np.geomspace(1e-4, 10.0, 4) * N
    solver = Subspace(
        NumpyBackend(), 1e-5, block=16, rank=rank, steps=3, max_size=size, max_passes=passes
    )
    found = solver.decompose(DenseOperator(Gaussian(0.3), X), Y, lams, watch())
    assert found.passes <= passes
    assert found.space.k <= max(size, 2)
    outside = Y.T - (Y.T @ found.space.Q.T) @ found.space.Q
    assert_allclose(outside, 0, atol=1e-12)
    assert worst_error(found.spectrum, Gaussian(0.3)(X), Y, lams, 3, alphas=(0.0,)) <= found.error
    if passes == 7 and size > 8:
        assert "allow more passes" in found.status or "is too small" in found.status


@pytest.mark.parametrize("krylov", [True, False])
def test_compression_keeps_what_it_knows(problem, backend, krylov, rng):
    """After it T = Q K Q' and R = Q K - T Q hold for the smaller basis, without a product."""
    X, _ = problem
    K = Gaussian(0.3)(X)
    space = GrowingBasis(N, 5, backend, krylov=krylov)
    new = space.new_directions(backend.asarray(rng.standard_normal((4, N))))
    for _ in range(3):
        space.append(new, backend.asarray(to_numpy(new) @ K))
        new = space.new_directions(space.R)
    space.compress(rng.standard_normal((5, space.k)))
    Q, R = to_numpy(space.Q), to_numpy(space.R)
    assert Q.shape == (5, N)
    assert_allclose(Q @ Q.T, np.eye(5), atol=1e-13)
    assert_allclose(space.T, Q @ K @ Q.T, atol=1e-11)
    assert_allclose(R, Q @ K - space.T @ Q, atol=1e-11)
    assert not space.krylov
    again = GrowingBasis(N, 3, backend, krylov=True)
    again.restore(space.state(7))
    assert_near(to_numpy(again.R), R)


def test_the_rank_of_a_sketch_adapts_to_lam(problem):
    X, _ = problem
    operator, backend = DenseOperator(Gaussian(0.3), X), NumpyBackend()
    small = pivoted_cholesky(operator, 250, backend, seed=0, watch=watch(), trace_tol=30.0)
    assert small.tail <= 30
    assert len(small.F) < 250
    K, F = Gaussian(0.3)(X), small.F.astype(float)
    # K + lam lies between P and 2 P
    ratio = scipy.linalg.eigvalsh(K + 30 * np.eye(N), F.T @ F + 30 * np.eye(N))
    assert ratio.min() > 1 - 1e-5
    assert ratio.max() < 2


def test_patience_ends(problem):
    X, Y = problem
    solver = Subspace(NumpyBackend(), 1e-10, block=4, patience=0.0)
    found = solver.decompose(DenseOperator(Matern(0.5), X), Y, np.array([1e-6]), watch())
    assert found.given_up
    assert "eigendecomposition" in found.status
    assert found.passes < 20


@pytest.mark.parametrize("rank", [0, 60])
@pytest.mark.parametrize("passes", [0, 2])
def test_resolvents(problem, backend, rank, passes):
    """Solutions of all lam and steps, and of lam that were not on the grid, against dense refits."""
    X, Y = problem
    K, lams = Gaussian(0.3)(X), np.geomspace(1e-4, 1e-1, 3) * N
    operator = DenseOperator(Gaussian(0.3), backend.asarray(X))
    grown = Subspace(backend, 1e-8, block=6, rank=rank, steps=4, max_passes=max(passes, 1))
    base = grown.decompose(operator, backend.asarray(Y), lams, watch())
    units = Units(1.0, np.ones(Y.shape[1]))
    found = Resolvents(
        operator,
        backend,
        backend.asarray(Y),
        units,
        1e-8,
        4,
        base.space,
        base.sketch,
        watch(),
        kept_lams=frozenset(map(float, lams)),
    )
    for grid in (lams, np.array([1.7e-3 * N])):
        duals, fitted = to_numpy(found.duals(grid, 4)), to_numpy(found.fitted(grid, 4))
        for i, lam in enumerate(grid):
            fits, dual = refits(K, Y, lam, 0.0, 4)
            size = np.linalg.norm(fits[0], axis=0)
            assert (np.linalg.norm(fitted[i] - fits, axis=1) <= found.error * size).all()
            assert_allclose(duals[i], dual, atol=1e-5 * np.abs(dual).max())
    assert found.error <= 1e-8
    assert found.summary.startswith("converged")
    before = found.passes
    found.duals(lams, 4)
    assert found.passes == before  # kept
    assert found.iterations > 0


def test_resolvents_that_miss_say_so(problem):
    X, Y = problem
    single = TiledOperator(Matern(0.5), X, "float32")
    backend = NumpyBackend()
    base = Subspace(backend, 1e-12, block=4, max_passes=1).decompose(
        single, Y, np.array([1e-3]), watch()
    )
    units = Units(1.0, np.ones(Y.shape[1]))
    found = Resolvents(single, backend, Y, units, 1e-12, 2, base.space, None, watch(), warns=True)
    with pytest.warns(UserWarning, match="stagnated|not converged"):
        found.duals(np.array([1e-3]), 1)
    assert not found.summary.startswith("converged")
    assert found.error > 1e-12


@pytest.mark.parametrize("rank", [0, 60])
def test_conjugate_gradients(problem, backend, rank):
    X, Y = problem
    K, lam = Gaussian(0.3)(X), 1e-3 * N
    inside = backend.asarray(K)
    operator = DenseOperator(Gaussian(0.3), backend.asarray(X))
    precondition = None
    if rank:
        sketch = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch())
        precondition = sketch.solve
    B = backend.asarray(np.ascontiguousarray(np.column_stack([Y, np.zeros(N)]).T))
    heard = []
    solved = CG(backend, 1e-9).solve(
        lambda V: V @ inside,
        B,
        lam,
        precondition=precondition,
        progress=lambda *now: heard.append(now),
    )
    wanted = np.linalg.solve(K + lam * np.eye(N), to_numpy(B).T).T
    assert_allclose(to_numpy(solved.W), wanted, atol=1e-6 * np.abs(wanted).max())
    assert solved.status.startswith("converged")
    assert solved.residuals[2] == 0
    assert heard[-1][0] == solved.iterations
    warm = CG(backend, 1e-9).solve(
        lambda V: V @ inside, B, lam, start=solved.W, precondition=precondition
    )
    assert warm.iterations <= 2


def test_conjugate_gradients_that_fail_say_so(problem):
    X, Y = problem
    K = Gaussian(0.3)(X)
    short = CG(NumpyBackend(), 1e-12, max_iterations=3).solve(lambda V: V @ K, Y.T, 1e-4)
    assert short.status.startswith("not converged")
    noise = np.random.default_rng(0)

    def noisy(V):
        return (V @ K) * (1 + 1e-4 * noise.standard_normal(V.shape))

    assert "stagnated" in CG(NumpyBackend(), 1e-12).solve(noisy, Y.T, 1e-2).status
    with pytest.raises(ValueError, match="not positive definite"):
        CG(NumpyBackend(), 1e-12).solve(lambda V: -(V @ K), Y.T, 1e-4)


def test_precomputed(problem):
    X, Y = problem
    operator = DenseOperator(Precomputed(), Gaussian(0.3)(X))
    found = Subspace(NumpyBackend(), 1e-8, rank=40).decompose(operator, Y, np.array([1.0]), watch())
    assert found.status.startswith("converged")
