"""The units of a grown basis: powers of two, of K only where it needs them."""

import numpy as np
import pytest

from sdgpu.backend.backends import to_numpy
from sdgpu.kernels import Linear, Precomputed
from sdgpu.operators import DenseOperator
from sdgpu.solvers.units import PLAIN, Units
from tests.problems import from_spectrum


def units_of(diagonal, Y=None):
    operator = DenseOperator(Precomputed(), np.diag(diagonal))
    return Units.of(operator, np.ones((len(diagonal), 1)) if Y is None else Y)


@pytest.mark.parametrize("size", [0.9 * PLAIN, 1.1 / PLAIN, 1.0, 0.0])
def test_kernels_of_a_usual_size_stay_as_they_are(size):
    assert units_of([0.0, size]).kernel == 1


@pytest.mark.parametrize("size", [1.1 * PLAIN, PLAIN, 1 / PLAIN, 0.9 / PLAIN, 1e300, 1e-300])
def test_others_come_near_one(size):
    unit = units_of([0.0, size, size / 2]).kernel
    assert np.frexp(unit)[0] == 0.5
    assert 1 <= size / unit < 2


def test_each_target_has_its_own():
    Y = np.array([[3.0, 0.0, -1e-200], [-5.0, 0.0, 1e-210]])
    units = units_of([1.0, 1.0], Y).targets
    assert units[1] == 1
    scaled = np.abs(Y / units).max(axis=0)
    assert (scaled[[0, 2]] >= 1).all()
    assert (scaled[[0, 2]] < 2).all()


def test_kernels_that_overflow_are_refused():
    operator = DenseOperator(Linear(), np.full((3, 2), 1e200))
    with pytest.raises(ValueError, match="overflows"), np.errstate(over="ignore"):
        Units.of(operator, np.ones((3, 1)))


def test_an_operator_in_units_is_that_over_the_unit(backend):
    problem = from_spectrum(np.array([0.5, 1.0, 4.0]))
    plain = DenseOperator(Precomputed(), backend.asarray(problem.K))
    assert Units(1.0, np.ones(1)).scaled(plain) is plain
    own = Units(8.0, np.ones(1)).scaled(plain)
    V = backend.asarray(problem.Y)
    index = backend.xp.asarray(np.array([2, 0]))
    assert own.n == 3
    for found, wanted in (
        (own.matmat(V), plain.matmat(V)),
        (own.diag(), plain.diag()),
        (own.columns(index), plain.columns(index)),
    ):
        assert (8 * to_numpy(found) == to_numpy(wanted)).all()
