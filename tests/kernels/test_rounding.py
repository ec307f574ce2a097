"""Every kernel says how far rounding moves its values: `Kernel.rounding`, against extended precision."""

from __future__ import annotations

import numpy as np
import pytest

import sdgpu
from sdgpu.kernels.kernel import column_means
from sdgpu.kernels.kernel_matrices import gram as engine_gram
from sdgpu.kernels.row_preparation import ready_rows
from tests.fuzz.problems import KERNELS, ROWS, random_rows
from tests.fuzz.reference import Wide, gram

pytestmark = pytest.mark.skipif(
    np.finfo(Wide).eps > 1e-18, reason="no extended precision on this machine"
)


def errors(name, parameter, X):
    """Largest error of an entry over eps (K_ii K_jj)^(1/2), and what the kernel says."""
    K = gram(name, X, X, parameter)
    if not 1e-290 < np.abs(K).max() < 1e300:
        return 0.0, 1.0  # beyond float64: zeros, or refused
    kernel = KERNELS[name](parameter)
    rows = ready_rows(kernel, X, column_means(X))
    size = np.sqrt(np.abs(np.diag(K)))
    size = np.outer(size, size)
    error = np.abs(engine_gram(kernel, rows) - K) / np.where(size > 0, size, 1)
    return float(error.max() / np.finfo(X.dtype).eps), kernel.rounding(rows)


@pytest.mark.parametrize("rows", sorted(set(ROWS) - {"vast"}))
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_values_are_as_near_as_is_said(name, rows):
    for seed, (d, parameter, single) in enumerate(
        (d, p, single) for d in (1, 2, 4) for p in (1e-3, 1.0, 30.0) for single in (False, True)
    ):
        X = random_rows(seed, 30, d, rows, name)
        if single:  # numbers of float32 in float64: parallel up to their last bit
            X = np.clip(X, -1e30, 1e30).astype("float32").astype(float)
        error, said = errors(name, parameter, X)
        assert error <= said, (d, parameter, error, said)


@pytest.mark.parametrize("name", ["arccosine0", "arccosine1", "nngp", "ntk", "ntk_bias"])
def test_nearly_parallel_and_opposite_rows_keep_their_angles(name):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(3)
    moves = rng.standard_normal((40, 3)) * np.geomspace(1e-15, 1e-1, 40)[:, None]
    X = np.concatenate([x + moves, -x + moves[::-1], -2 * x[None, :]])
    error, said = errors(name, 0.5, X)
    assert error <= said


@pytest.mark.parametrize(
    ("kernel", "power"),
    [(sdgpu.ArcCosine(1), 1), (sdgpu.ArcCosine(2), 2), (sdgpu.NTK(2), 1), (sdgpu.NNGP(2), 1)],
)
def test_products_of_lengths_do_not_leave_the_range(kernel, power):
    X = np.array([[1.0, 2.0], [2.0, -1.0], [1.0, 1.0]])
    for scale in (2.0 ** (-500 // power), 2.0 ** (500 // power)):
        np.testing.assert_allclose(kernel(X * scale) / scale ** (2 * power), kernel(X), rtol=1e-13)
