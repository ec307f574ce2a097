"""What solvers say of their time and memory: operations over rates, counted term by term."""

from dataclasses import replace

import numpy as np
import pytest

from sdgpu.backend.rates import NOMINAL
from sdgpu.solvers.cg import CG
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.primal import Primal

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
