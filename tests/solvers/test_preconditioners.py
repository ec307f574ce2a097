"""Sketches of pivoted columns against the dense approximation that they stand for."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import NumpyBackend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.kernels import Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers.preconditioners import BLOCK, EXHAUSTED, TOP, Sketch, pivoted_cholesky
from tests.problems import Cheap, assert_near, from_spectrum, most_bytes

N = 200
DELTA = np.geomspace(1e-2, 50.0, N)


class Asked(DenseOperator):
    """Remembers the columns that it gave."""

    def columns(self, idx):
        self.__dict__.setdefault("pivots", []).append(np.array(idx))
        return super().columns(idx)


def sketch_of(K, rank, backend=None, **named):
    backend = backend or NumpyBackend()
    heard = []
    watch = Stopwatch(lambda: None, progress=heard.append)
    operator = Asked(Precomputed(), backend.asarray(K))
    found = pivoted_cholesky(operator, rank, backend, seed=0, watch=watch, **named)
    return found, operator.__dict__.get("pivots", []), heard


def test_a_sketch_is_what_its_columns_say(backend):
    """F'F = K_S K_SS^-1 K_S', whatever the blocks in which S was drawn."""
    K = 1e-3 * from_spectrum(DELTA).K
    found, pivots, heard = sketch_of(K, 150, backend)
    assert [len(p) for p in pivots] == [BLOCK, 150 - BLOCK]
    chosen = np.concatenate(pivots)
    assert len(set(chosen)) == 150 == found.rank
    assert [(e.stage, e.done, e.total) for e in heard] == [
        ("sketch", BLOCK, 150),
        ("sketch", 150, 150),
    ]
    F = to_numpy(found.F).astype(float)
    wanted = K[:, chosen] @ np.linalg.solve(K[np.ix_(chosen, chosen)], K[chosen])
    assert_near(F.T @ F, wanted, rtol=1e-4)
    assert_allclose(found.tail, np.trace(K) - np.trace(F.T @ F), rtol=1e-3)
    delta, V = to_numpy(found.eigenvalues), to_numpy(found.vectors)
    assert_near((V * delta) @ V.T, F @ F.T, rtol=1e-6)
    assert_allclose(found.largest, np.linalg.eigvalsh(F.T @ F)[-1], rtol=1e-6)
    top = to_numpy(found.top)
    assert top.shape == (TOP, N)
    assert_allclose(top @ top.T, np.eye(TOP), atol=1e-13)
    assert_near(top @ (F.T @ F) @ top.T, np.diag(delta[-TOP:]), rtol=1e-6)


@pytest.mark.parametrize("rank", [40, 160])  # all eigenvectors are at the top, or some
def test_solves_are_those_of_the_dense_sketch(backend, rank):
    K = from_spectrum(DELTA).K
    found, _, _ = sketch_of(K, rank, backend)
    assert found.top.shape[0] == min(rank, TOP)
    F, top = (to_numpy(x).astype(float) for x in (found.F, found.top))
    rng = np.random.default_rng(0)
    R = np.vstack([rng.standard_normal((3, N)), rng.standard_normal((1, len(top))) @ top])
    lams = np.array([0.5, 3.0, 100.0, 1e-3])
    Z = to_numpy(found.solve(backend.asarray(R), lams))
    for z, r, lam in zip(Z[:3], R, lams, strict=False):
        assert_near(z, np.linalg.solve(F.T @ F + lam * np.eye(N), r), rtol=1e-5)
    # along the top eigenvectors the solution is small beside R / lam, and exact
    along = Z[3] @ top.T
    delta = to_numpy(found.eigenvalues)[-len(top) :]
    assert_allclose(along, (R[3] @ top.T) / (delta + 1e-3), rtol=1e-9)
    one = to_numpy(found.solve(backend.asarray(R), 3.0))
    assert_allclose(one[1], Z[1], rtol=1e-6, atol=1e-9)


def test_pivots_are_drawn_by_what_is_left_of_the_diagonal():
    """Rows of zeros never, and of rows that matter by a thousandth hardly one."""
    _, pivots, _ = sketch_of(np.diag(np.r_[np.zeros(50), np.ones(N - 50)]), 140)
    assert min(np.concatenate(pivots)) >= 50
    _, pivots, _ = sketch_of(np.diag(np.r_[np.full(100, 1e-3), np.ones(100)]), 20)
    assert np.count_nonzero(pivots[0] >= 100) >= 19


def test_pivots_beside_a_huge_one_are_not_taken_for_explained():
    """They were dropped as repetitions, and never drawn again: the tail was 70 times too small."""
    diagonal = np.r_[np.ones(N - 1), 1e6]
    found, pivots, _ = sketch_of(np.diag(diagonal), 190)
    assert N - 1 in pivots[0]
    assert found.rank == 190
    assert_allclose(found.tail, 10, rtol=1e-5)


def test_rows_that_repeat_others_count_once():
    rows = np.random.default_rng(0).standard_normal((7, 20))
    K = np.repeat(np.repeat(rows @ rows.T, 6, axis=0), 6, axis=1)
    found, _, _ = sketch_of(K, 30)
    assert found.rank == 7
    assert_near(found.F.T.astype(float) @ found.F, K, rtol=1e-5)
    assert found.tail < EXHAUSTED * np.trace(K) * 10


@pytest.mark.parametrize("enough", [5.0, 60.0])
def test_it_stops_as_soon_as_little_enough_is_left(enough):
    K = from_spectrum(np.geomspace(1e-4, 50.0, 700)).K
    found, pivots, _ = sketch_of(K, 600, trace_tol=enough)
    assert found.tail <= enough
    before = np.concatenate(pivots[:-1])
    left = K - K[:, before] @ np.linalg.solve(K[np.ix_(before, before)], K[before])
    assert np.trace(left) > enough
    whole, _, _ = sketch_of(K, 600)
    assert whole.rank == 600
    more, _, _ = sketch_of(K, 900)
    assert more.rank <= 700


@pytest.mark.parametrize(("scale", "enough"), [(0.0, 0.0), (1.0, 1e6)])
def test_nothing_to_precondition(backend, scale, enough):
    K = scale * from_spectrum(DELTA).K
    found, pivots, _ = sketch_of(K, 30, backend, trace_tol=enough)
    assert pivots == []
    assert (found.rank, found.largest) == (0, 0.0)
    assert_allclose(found.tail, np.trace(K))
    assert tuple(found.top.shape) == (0, N)
    R = np.random.default_rng(0).standard_normal((2, N))
    lams = np.array([0.5, 4.0])
    assert_allclose(to_numpy(found.solve(backend.asarray(R), lams)), R / lams[:, None])
    assert_allclose(to_numpy(found.solve(backend.asarray(R), 4.0)), R / 4)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_only_eigenvectors_that_float32_holds_are_at_the_top(scale):
    found, _, _ = sketch_of(scale * from_spectrum(np.geomspace(1e-9, 1.0, 60)).K, 50)
    count = np.count_nonzero(found.eigenvalues > 1e-5 * found.largest)
    assert count < found.rank
    assert found.top.shape == (count, 60)
    assert_allclose(found.top @ found.top.T, np.eye(count), atol=1e-13)


@pytest.mark.parametrize(("n", "rank"), [(3000, 20), (2000, 300), (900, 700)])
def test_a_sketch_takes_what_was_said(n, rank):
    operator = Cheap(n, 2 * rank)

    def build():
        found = pivoted_cholesky(
            operator, rank, NumpyBackend(), seed=0, watch=Stopwatch(lambda: None)
        )
        assert found.rank == rank

    build()
    said = Sketch.peak_bytes(n, rank)
    assert 0.4 * said <= most_bytes(build) <= said
