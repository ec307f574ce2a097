"""`memory=` is a promise: the resident set of a fresh process grows by less."""

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.backend import arrays
from sdgpu.backend.backends import TorchBackend, to_numpy
from sdgpu.backend.memory import parse_bytes
from sdgpu.operators import TiledOperator
from sdgpu.solvers.galerkin import GrowingBasis
from sdgpu.solvers.resolvent_solution import ResolventSolution

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("n", "d", "method", "operator", "memory", "kind"),
    [
        (500, 20_000, "eigh", "dense", "300MB", "gaussian"),
        (500, 20_000, "subspace", "tiled", "250MB", "gaussian"),
        (3000, 1000, "subspace", "tiled", "150MB", "gaussian"),
        (3000, 4, "subspace", "dense", "120MB", "gaussian"),
        (4000, 4, "lanczos", "tiled", "70MB", "gaussian"),
        (4000, 4, "cg", "tiled", "70MB", "gaussian"),
        (1500, 300, "lanczos", "tiled", "120MB", "laplacian"),
        (1500, 50_000, "eigh", "dense", "120MB", "sparse"),
        (3000, 50_000, "lanczos", "tiled", "90MB", "sparse"),
        (3000, 50_000, "subspace", "dense", "140MB", "sparse"),
    ],
)
def test_the_peak_stays_below(n, d, method, operator, memory, kind):
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory_probe",
        str(n),
        str(d),
        method,
        operator,
        memory,
        kind,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    used, planned, status = run.stdout.split(maxsplit=2)
    assert float(used) <= float(planned) <= parse_bytes(memory)
    assert status.startswith(("exact", "converged"))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    return rng.standard_normal((150, 4)), rng.standard_normal(150)


class Rows(np.ndarray):
    """An array that can be watched as it dies."""


@pytest.mark.parametrize("method", ["eigh", "lanczos"])
def test_the_callers_data_are_not_kept(data, method):
    X = data[0].copy().view(Rows)
    alive = weakref.ref(X)
    fitted = sdgpu.fit(X, data[1], "rbf", 1.0, method=method)
    before = fitted.path(steps=2).predict(data[0])
    X[:] = np.nan  # nor looked at
    del X
    gc.collect()
    assert alive() is None
    assert np.array_equal(fitted.path(steps=2).predict(data[0]), before)


@pytest.mark.parametrize(
    ("make", "copied"),
    [
        (lambda X: X, True),
        (lambda X: X[:, ::-1], True),
        (torch.tensor, True),
        (lambda X: X.astype(np.float32), False),
        (lambda X: X.astype(np.int64), False),
        (lambda X: X.tolist(), False),
    ],
)
def test_what_was_converted_is_not_copied_again(data, make, copied):
    """The fit has its own memory either way."""
    given = make(data[0])
    array = sdgpu.backend.backends.NumpyBackend().asarray(arrays.inputs(given, "X"))
    assert arrays.may_share(array, given) == copied


def test_rows_are_looked_at_once(data, monkeypatch):
    seen, original = [], arrays._not_finite

    def counted(array):
        seen.append(tuple(array.shape))
        return original(array)

    monkeypatch.setattr(arrays, "_not_finite", counted)
    for method, operator in (("eigh", "auto"), ("lanczos", "tiled"), ("subspace", "dense")):
        seen.clear()
        sdgpu.fit(*data, "rbf", 1.0, method=method, operator=operator, tol=1e-3)
        assert seen.count((150, 4)) == 1


def test_nan_is_counted_wherever_it_is(monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 8)
    X = np.zeros((9, 3))
    X[0, 0], X[8, 2], X[4] = np.nan, np.inf, -np.inf
    with pytest.raises(ValueError, match="X has 5 entries"):
        arrays.inputs(X, "X")


def test_solutions_of_other_lam_are_not_kept_for_ever(data):
    lams = np.array([1.0, 10.0])
    fitted = sdgpu.fit(*data, "rbf", lams, method="cg", steps=3, tol=1e-8)
    exact = sdgpu.fit(*data, "rbf", lams, method="eigh")
    solution = fitted._solution
    assert isinstance(solution, ResolventSolution)

    def kept():
        return sum(map(len, solution.resolvents._solutions.values()))

    assert kept() == 2 * 3
    most = []
    for low in (1.0, 2.0, 3.0):
        fitted.sweep(*data, lams=[low, 4 * low], steps=3)
        most.append(kept())
    assert max(most[1:]) <= most[1]  # those of one sweep take the place of another's
    for k in range(40):
        fitted.limit(5.0 + k, 0.5).predict(data[0][:1])
        fitted.path(5.0 + k, 0.5, 2).predict(data[0][:1])
    assert kept() <= 2 * 3 + 2 + 1
    for fit in (fitted, exact):  # and what was dropped is made again
        found = fit.path(2.0, 0.5, 3).predict(data[0][:5])
    np.testing.assert_allclose(fitted.path(2.0, 0.5, 3).predict(data[0][:5]), found, atol=1e-6)


def test_kept_tiles_survive_a_halving(rng, monkeypatch):
    """A device that runs out of memory in the middle of a product: smaller tiles, and all of them new."""
    X, V = rng.standard_normal((1300, 3)), rng.standard_normal((1300, 2))
    kernel = sdgpu.Gaussian(0.3)
    operator = TiledOperator(kernel, X, "float64", tile=600, keep=True, workers=1)
    original, calls = TiledOperator._tiles, []

    def short(self, pieces, room):
        values_of = original(self, pieces, room)

        def make(i, j):
            calls.append((i, j))
            if len(calls) == 4:
                raise RuntimeError("CUDA out of memory")
            return values_of(i, j)

        return make

    monkeypatch.setattr(TiledOperator, "_tiles", short)
    wanted = kernel(X) @ V
    for _ in range(2):
        np.testing.assert_allclose(operator.matmat(V), wanted, atol=1e-10 * np.abs(wanted).max())
    assert {tuple(tile.shape) for tile in operator._tile_cache.values()} == {
        (300, 300),
        (100, 300),
        (100, 100),
    }


def test_joint_optima_that_take_minutes_are_refused_before_the_work(data):
    fitted = sdgpu.fit(*data, "rbf", [1.0, 2.0])
    for ask in (
        lambda: fitted.joint_alphas(lam=1.0, steps=2000),
        lambda: fitted.sweep(alphas=[0.5], steps=2000),
    ):
        start = time.perf_counter()
        with pytest.raises(ValueError, match="steps=2000: the joint optima"):
            ask()
        assert time.perf_counter() - start < 1


def test_a_checkpoint_of_one_block_resumes_with_one_block_of_residuals(rng):
    """A Krylov basis keeps the residuals of its newest block alone; a compressed one those of all rows."""
    n, backend = 40, TorchBackend("cpu")
    K = np.diag(np.arange(1.0, n + 1))
    first = GrowingBasis(n, 12, backend, krylov=True)
    blocks = []
    for passes in (1, 2):
        block = rng.standard_normal((4, n)) if passes == 1 else first.R
        new = first.new_directions(backend.asarray(block))
        first.append(new, new @ backend.asarray(K))
        blocks.append(first.state(passes))
    first.compress(np.eye(8)[:5])
    blocks.append(first.state(2))
    for state, krylov, rows in zip(blocks, (True, True, False), (4, 4, 5), strict=True):
        again = GrowingBasis(n, 12, backend, krylov=True)
        again.restore(state)
        assert again.krylov == krylov
        assert tuple(again.R.shape) == (rows, n)
        assert int(again._R.shape[0]) == (rows if krylov else 12)
        np.testing.assert_array_equal(to_numpy(again.R), state.R)
