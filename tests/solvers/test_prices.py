"""What solvers say of their time and memory: operations over rates, counted term by term."""

from dataclasses import replace

import numpy as np
import pytest

from sdgpu.backend.rates import NOMINAL
from sdgpu.solvers.cg import CG
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.primal import Primal
from sdgpu.solvers.subspace import Subspace

#: So fast that what it does takes no time.
NEVER = 1e300
UNIT = replace(NOMINAL, products=1.0, products32=1.0, powers=1.0)


def only(**rates):
    """Rates at which one kind of work counts alone, a unit of time each."""
    fast = dict.fromkeys(("products", "products32", "powers", "powers32"), NEVER)
    return replace(NOMINAL, **(fast | rates))


def test_an_eigendecomposition():
    n = 7000
    assert Eigh.seconds(n, only(products=1.0)) == pytest.approx(4.2 * n**3 * 1.1)
    assert Eigh.seconds(n, only(powers=1.0)) == pytest.approx(n * n / 2)
    both = Eigh.seconds(n, replace(UNIT, products=2.0, powers=4.0))
    assert both == pytest.approx(4.2 * n**3 * 1.1 / 2 + n * n / 8)
    # half of the rate at 700 rows
    assert Eigh.seconds(700, only(products=1.0)) == pytest.approx(2 * 4.2 * 700**3)


@pytest.mark.parametrize(("n", "rank", "columns"), [(1000, 50, 8), (300, 0, 1), (77, 13, 30)])
def test_an_iteration_of_conjugate_gradients(n, rank, columns):
    one = CG.pass_seconds(n, columns, rank, only(products=1.0))
    # F, F', twice each, and some thirty numbers of a row for its vectors
    assert one == pytest.approx(columns * (4 * n * rank + 60 * n))
    assert CG.pass_seconds(n, columns, rank, only(products=5.0)) == pytest.approx(one / 5)


@pytest.mark.parametrize(("n", "rank"), [(1000, 50), (4000, 400), (100, 100)])
def test_a_sketch(n, rank):
    assert Sketch.seconds(n, rank, only(products32=1.0)) == pytest.approx(2 * n * rank**2)
    assert Sketch.seconds(n, rank, only(products=1.0)) == pytest.approx(6 * rank**3)
    assert Sketch.seconds(n, rank, only(powers=1.0)) == pytest.approx(n * rank)
    total = Sketch.seconds(n, rank, replace(UNIT, products=2.0, products32=4.0, powers=8.0))
    parts = np.array([2 * n * rank**2 / 4, 6 * rank**3 / 2, n * rank / 8])
    assert total == pytest.approx(parts.sum())


@pytest.mark.parametrize("rank", [8, 5000])
def test_memory_of_a_sketch(rank):
    """F in float32, top vectors and blocks in float64, and a few matrices of its rank."""
    n, step = 10**6, 10**6
    each_row = (Sketch.peak_bytes(n + step, rank) - Sketch.peak_bytes(n, rank)) / step
    wide = (each_row - 4 * rank) / 8
    assert 0 < wide <= 5 * rank
    assert Sketch.peak_bytes(0, rank) == 40 * rank * rank


def test_a_kernel_of_few_features():
    n, k = 5000, 30
    assert Primal.seconds(n, k, only(products=1.0)) == pytest.approx(6 * n * k**2 + 20 * k**3)
    assert Primal.seconds(n, k, only(powers=1.0)) == pytest.approx(n * k)
    assert Primal.peak_bytes(n, k, 2) == 8 * (n * 4 * (k + 2) + 12 * k**2)


@pytest.mark.parametrize(
    ("rank", "size", "grid"),
    [(0, 300, 0), (0, 300, 600), (0, 300, 601), (64, 300, 40), (64, 2000, 9)],
)
def test_memory_of_a_basis(rank, size, grid):
    """Q and R, blocks of the first pass, T with what decomposes it, residuals; a copy or a triangle."""
    n, block = 5000, 16
    columns = 4 * block if rank else block
    rows = 2 * n * size + 6 * n * columns
    small = 6 * size * size + 4 * grid * size
    triangle = 24 * size * min(n, max(4 * size, 1024)) if grid > 2 * size else 0
    wanted = 8 * (rows + small) + max(8 * n * size, triangle) + Sketch.peak_bytes(n, rank)
    assert Subspace.peak_bytes(n, size, rank, block, grid) == wanted
    if not grid:
        assert Subspace.peak_bytes(n, size, rank, block) == wanted


@pytest.mark.parametrize(("vectors", "columns"), [(200, 16), (31, 8)])
def test_a_pass_of_a_basis(vectors, columns):
    """Of half of the vectors that there will be: orthogonalisation, Rayleigh-Ritz, with a sketch R R' and F."""
    n, rank, half = 4000, 50, vectors / 2
    alone = 8 * n * half * columns + 25 * half**3 / 3
    one = Subspace.pass_seconds(n, vectors, columns, 0, only(products=1.0))
    assert one == pytest.approx(alone)
    assert Subspace.pass_seconds(n, vectors, columns, 0, only(products32=1.0)) < 1e-200
    with_sketch = 8 * n * half * columns + 25 * half**3 + n * half**2 / 2
    both = Subspace.pass_seconds(n, vectors, columns, rank, only(products=1.0))
    assert both == pytest.approx(with_sketch)
    single = Subspace.pass_seconds(n, vectors, columns, rank, only(products32=1.0))
    assert single == pytest.approx(4 * n * rank * columns)
    total = Subspace.pass_seconds(
        n, vectors, columns, rank, replace(UNIT, products=2.0, products32=4.0)
    )
    assert total == pytest.approx(with_sketch / 2 + n * rank * columns)
