"""The recursion (3)-(5) with a solver passed in, against explicit refits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.recursion import recursion
from tests.problems import from_spectrum, lams, refits, schedules, spectra


@given(spectra(), lams, schedules(), st.integers(1, 3))
def test_recursion_is_the_refits(delta, lam, alphas, c):
    problem = from_spectrum(delta, c=c)
    shifted = problem.K + lam * np.eye(len(delta))
    steps = recursion(lambda u: np.linalg.solve(shifted, u), problem.Y, lam, alphas)
    fitted, dual = refits(problem.K, problem.Y, lam, alphas, len(alphas) + 1)
    size = 1e-12 * np.prod(1 + np.abs(1 - alphas)) * (1 + delta.max() / lam)
    assert_allclose(steps.fitted, fitted, atol=size)
    assert_allclose(steps.dual, dual, atol=size / lam)


def test_weights_per_output(backend):
    problem = from_spectrum([0.1, 1.0, 2.0], c=2)
    shifted = backend.asarray(problem.K + 0.3 * np.eye(3))
    Y, weights = (
        backend.asarray(problem.Y),
        backend.asarray(np.array([[0.2, 0.7], [0.0, 1.5], [-0.3, 0.4]])),
    )
    steps = recursion(lambda u: backend.xp.linalg.solve(shifted, u), Y, 0.3, weights)
    for j, schedule in enumerate(([0.2, 0.0, -0.3], [0.7, 1.5, 0.4])):
        fitted, _ = refits(problem.K, problem.Y[:, [j]], 0.3, schedule, 4)
        assert_allclose(to_numpy(steps.fitted)[..., [j]], fitted, atol=1e-13)


def test_mixed_target_has_the_minimiser_of_the_two_target_loss():
    """Footnote 8 mended: the two losses differ by alpha (1 - alpha) / 2 |y1 - y2|^2."""
    rng = np.random.default_rng(0)
    f, y1, y2 = rng.standard_normal((3, 6))
    alpha = 0.3
    two = alpha / 2 * np.sum((f - y1) ** 2) + (1 - alpha) / 2 * np.sum((f - y2) ** 2)
    one = np.sum((f - alpha * y1 - (1 - alpha) * y2) ** 2) / 2
    assert_allclose(two - one, alpha * (1 - alpha) / 2 * np.sum((y1 - y2) ** 2))
