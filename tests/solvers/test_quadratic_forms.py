"""Quadratic forms of resolvents against dense matrices, and their bounds."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.rounding_bounds import backward_error
from sdgpu.kernels import Gaussian, Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers import quadratic_forms as forms
from sdgpu.solvers.galerkin import GrowingBasis
from sdgpu.solvers.preconditioners import pivoted_cholesky
from tests.problems import from_spectrum

LAMS = np.array([0.3, 5.0, 60.0])
N = 150


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).standard_normal((N, 2))


def explicit(K, G, steps, lams=LAMS):
    """g'H^q g, (L, T, s)."""
    found = []
    for lam in lams:
        H = K @ np.linalg.inv(K + lam * np.eye(len(K)))
        found.append(
            [np.sum(G @ np.linalg.matrix_power(H, q) * G, axis=1) for q in range(1, steps + 1)]
        )
    return np.array(found)


def grow(X, G, *, rank, tol, relative, room, lams=LAMS):
    backend, watch = NumpyBackend(), Stopwatch(lambda: None)
    operator = DenseOperator(Gaussian(0.5), X)
    sketch = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch) if rank else None
    found = forms.grow_forms(
        operator,
        backend,
        sketch,
        G,
        lams=lams,
        steps=3,
        watch=watch,
        tol=tol,
        relative=relative,
        max_size=room,
    )
    filters = forms.power_filters(found.values, lams, 3)  # (L, T, k)
    return found, filters @ found.coordinates**2


@pytest.mark.parametrize("rank", [0, 25])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("room", [20, N])
def test_forms_are_within_their_bounds(rows, rank, relative, room):
    rng = np.random.default_rng(1)
    G = np.eye(N)[[3, 70, 149]] if relative else rng.choice([-1.0, 1.0], (3, N))
    found, values = grow(rows, G, rank=rank, tol=1e-4, relative=relative, room=room)
    wanted = explicit(Gaussian(0.5)(rows), G, 3)
    assert found.bounds.shape == wanted.shape
    assert (np.abs(values - wanted) <= found.bounds + 1e-12 * np.abs(wanted).max()).all()
    assert len(found.values) <= room
    if room == N:
        rest = 1 - wanted[:, :1] if relative else N
        assert (found.bounds <= 2e-4 * rest * (1 if relative else 3)).all()
    # the bounds say something: they are not far above errors of second order
    assert (found.bounds[-1] < 1e-3 * (G**2).sum(axis=1)).all()


def test_vectors_are_in_the_span_to_their_last_digit(rows):
    """Beside guesses for large lam, which are nearly the vectors: 1.3 times the bound was true."""
    lams = np.array([10.0, 100.0, 1000.0])
    G = np.random.default_rng(0).choice([-1.0, 1.0], (3, N))
    found, values = grow(rows, G, rank=25, tol=1e-12, relative=True, room=N, lams=lams)
    wanted = explicit(Gaussian(0.5)(rows), G, 3, lams)
    assert (np.abs(values - wanted) <= found.bounds + 1e-15 * np.abs(wanted)).all()
    assert_allclose(found.coordinates.T @ found.coordinates, G @ G.T, rtol=1e-5)


def test_powers_are_those_of_shrinkage():
    values = np.array([0.0, 0.4, 7.0])
    found = forms.power_filters(values, LAMS, 4)
    for i, lam in enumerate(LAMS):
        for q in range(1, 5):
            assert_allclose(found[i, q - 1], (values / (values + lam)) ** q, rtol=1e-13)


def test_bounds_of_second_order():
    """By hand, g = 1, 1 / 4, 4 / 27: of a few residuals, and of one."""
    r1, r2, r3 = norms = np.random.default_rng(2).random((3, 2, 4))
    found = forms._second_order(np.moveaxis(norms, 0, 1), np.moveaxis(norms.cumsum(axis=0), 0, 1))
    e1, e2, e3 = r1, r2 + r1 / 4, r3 + r2 / 4 + 4 / 27 * r1
    s1, s2, s3 = r1, r1 + r2, r1 + r2 + r3
    for q, wanted in enumerate((e1 * s1, e1 * s2 + e2 * s1, e1 * s3 + e2 * s2 + e3 * s1)):
        assert_allclose(found[:, q], wanted, rtol=1e-14)


def test_what_a_leverage_leaves_does_not_cancel():
    """Unit vectors in the space and partly outside of it: outside, H is 0."""
    values = np.array([0.5, 2.0, 1e12])
    inside = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    along = inside * np.array([1.0, 0.6, 1.0])
    found = forms._scale(values, along, LAMS)
    for i, lam in enumerate(LAMS):
        wanted = (lam / (values + lam)) @ along**2 + np.array([0.0, 1 - 0.36, 0.0])
        assert_allclose(found[i, 0], wanted, rtol=1e-12, atol=1e-15)
    for length in (1.0, 1 + 1e-15):  # rounding left it longer than one
        alone = forms._scale(np.array([1e12]), np.array([[length]]), np.array([1e-8]))
        assert_allclose(alone, 1e-20, rtol=1e-12)


def of_galerkin(space, K, G, lams, steps):
    """||r_i||, ||r_1 + .. + r_i|| and ||w_i|| of dense Galerkin solutions, (L, T, s) each."""
    found = np.zeros((3, len(lams), steps, len(G)))
    for i, lam in enumerate(lams):
        before, total = G.T, 0
        for step in range(steps):
            inner = np.linalg.solve(space.T + lam * np.eye(space.k), space.Q @ before)
            w = space.Q.T @ inner
            r = before - K @ w - lam * w
            total = total + r
            found[:, i, step] = [np.linalg.norm(x, axis=0) for x in (r, total, w)]
            before = K @ w
    return found


def test_bounds_know_what_the_gram_matrix_lost_and_what_rounding_moves():
    """Norms that are wrong by a tenth are looked up where the Gram matrix may have lost them, only there."""
    rng = np.random.default_rng(0)
    problem = from_spectrum(np.r_[0.1 * rng.random(50), np.geomspace(0.1, 2.0, 10)])
    top, lams = problem.V[:, -10:], np.array([1e-3, 0.3, 50.0])
    space = GrowingBasis(60, 4, NumpyBackend(), krylov=False)
    nearly = (top @ rng.standard_normal((10, 1))).T + 1e-8 * rng.standard_normal((1, 60))
    G = np.vstack([nearly, rng.standard_normal((1, 60))])
    others = np.vstack([top.T + 1e-8 * rng.standard_normal((10, 60)), rng.standard_normal((6, 60))])
    new = space.new_directions(np.vstack([G, others]), required=G)
    space.append(new, new @ problem.K)
    values, vectors = space.ritz()
    seen = space.residuals(values, vectors, G, lams, 4)
    norms, sums, duals = of_galerkin(space, problem.K, G, lams, 4)
    found = forms._bounds(
        space, values, vectors, replace(seen, norms=0.9 * norms, sums=0.9 * sums), lams
    )
    for i, (lam, share) in enumerate(zip(lams, (1.0, 1.0, 0.9), strict=True)):
        known = forms._second_order(share * norms[[i]], share * sums[[i]])[0]
        for q in range(4):
            products = sum(duals[i, j] * duals[i, q - j] for j in range(q + 1))
            moved = lam * backward_error(60) * values[-1] * products
            assert_allclose(found[i, q], known[q] + moved, rtol=5e-3)


class Exact:
    """A sketch that knows K, and remembers what it was asked."""

    def __init__(self, K):
        self.K, self.asked = K, []

    def solve(self, R, lams):
        self.asked.append((R, lams))
        eye = np.eye(len(self.K))
        return np.stack(
            [np.linalg.solve(self.K + lam * eye, r) for r, lam in zip(R, lams, strict=True)]
        )


@pytest.mark.parametrize("sketched", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_a_space_grows_by_what_is_worst_until_the_forms_are_known(monkeypatch, relative, sketched):
    """The error is the mean over n for traces, and the largest over 1 - g'H g for leverages."""
    problem = from_spectrum(np.geomspace(1e-3, 10.0, N))
    K, sketch = problem.K, Exact(problem.K)
    rng = np.random.default_rng(4)
    G = np.eye(N)[[3, 70, 149]] if relative else rng.choice([-1.0, 1.0], (3, N))
    lams, spaces, errors, worst = np.array([1e-3, 0.02, 0.5]), [], [], []

    class Seen(GrowingBasis):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            spaces.append(self)

    def heard(event):
        space = spaces[0]
        norms, sums, _ = of_galerkin(space, K, G, lams, 3)
        scale = np.ones((3, 1, 3))
        if relative:
            for i, lam in enumerate(lams):
                inner = np.linalg.solve(space.T + lam * np.eye(space.k), space.T @ space.Q @ G.T)
                scale[i] = 1 - np.sum(G.T * (space.Q.T @ inner), axis=0)
        error = forms._second_order(norms, sums) / scale
        wanted = error.max() if relative else error.sum(axis=2).max() / 3 / N
        assert_allclose(event.error, wanted, rtol=1e-3)
        assert (event.done, event.total) == (len(errors) + 1, len(errors) + 2)
        assert np.isnan(event.seconds_left)
        errors.append(event.error)
        weighed = norms / np.sqrt(scale)
        which = np.argsort(-weighed.ravel())[
            : 6 if relative else 12
        ]  # twice, or four times the vectors
        worst.append((np.sort(norms.ravel()[which]), np.sort(lams[which // 9])))

    monkeypatch.setattr(forms, "GrowingBasis", Seen)
    watch = Stopwatch(lambda: None, progress=heard)
    found = forms.grow_forms(
        DenseOperator(Precomputed(), K),
        NumpyBackend(),
        sketch if sketched else None,
        G,
        lams=lams,
        steps=3,
        watch=watch,
        tol=1e-6,
        relative=relative,
        max_size=N,
    )
    assert len(errors) > 1
    assert errors[-1] <= 1e-6
    assert min(errors[:-1]) > 1e-6
    rows = found.rows.astype(float)
    assert_allclose(rows @ K @ rows.T, np.diag(found.values), atol=1e-5)
    assert_allclose(found.coordinates, rows @ G.T, atol=1e-5)
    if sketched:
        # the first pass has guesses for lam spread over the grid, the later ones the worst residuals
        guesses = 4 if relative else 6
        assert_allclose(sketch.asked[0][0], np.tile(G, (guesses, 1)))
        assert_allclose(
            sketch.asked[0][1], np.repeat(1e-3 * 500 ** (np.arange(guesses) / guesses), 3)
        )
        assert len(sketch.asked) == len(errors)
        for (R, ridges), (norms, those) in zip(sketch.asked[1:], worst, strict=False):
            assert_allclose(np.sort(np.linalg.norm(R, axis=1)), norms, rtol=1e-3)
            assert_allclose(np.sort(ridges), those)


def test_a_krylov_space_of_rows_that_are_nearly_equal_forgets_no_residual(monkeypatch):
    """Their residuals differ by 1e-7: a direction that was dropped would count as zero."""
    X = np.random.default_rng(0).standard_normal((60, 2))
    X[1] = X[0] + 1e-7
    spaces = []

    class Seen(GrowingBasis):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            spaces.append(self)

    monkeypatch.setattr(forms, "GrowingBasis", Seen)
    K = Gaussian(0.5)(X)
    forms.grow_forms(
        DenseOperator(Precomputed(), K),
        NumpyBackend(),
        None,
        np.eye(60)[:3],
        lams=LAMS,
        steps=3,
        watch=Stopwatch(lambda: None),
        tol=0.0,
        relative=True,
        max_size=20,
    )
    space = spaces[0]
    assert space.k <= 20
    R = space.Q @ K - space.T @ space.Q
    assert np.linalg.norm(R[: -space.width]) < 1e-13
    assert space.width < space.k
