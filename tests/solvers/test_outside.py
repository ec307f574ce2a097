"""A basis that does not hold the targets, as of a model of few features: against explicit smoothers."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.gcv import one_shot
from sdgpu.distill.loss_triangles import grid_losses
from sdgpu.distill.schedules import grid_tails
from sdgpu.selection.training_error import training_losses
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum

N, LAMS, ALPHAS, STEPS = 9, np.array([0.1, 2.0]), np.array([0.0, 0.4, 1.3]), 3


@pytest.fixture
def features(rng):
    """Phi Phi' of four features, and targets that are in no span of them."""
    phi, Y = rng.standard_normal((N, 4)), rng.standard_normal((N, 2))
    V, singular, _ = np.linalg.svd(phi, full_matrices=False)
    V, delta = V[:, ::-1], singular[::-1] ** 2
    Z = V.T @ Y
    outside = (Y**2).sum(axis=0) - (Z**2).sum(axis=0)
    spectrum = Spectrum(
        eigenvalues=delta,
        basis=V,
        Z=Z,
        below_rounding=0,
        most_negative=0.0,
        method="features",
        outside=outside,
    )
    return phi @ phi.T, Y, SpectralSolution(spectrum, Y=Y)


def steps_of(K, Y, lam, alpha):
    """y(1) .. y(T) by refits."""
    H, mixed, found = K @ np.linalg.inv(K + lam * np.eye(len(K))), Y, []
    for _ in range(STEPS):
        found.append(H @ mixed)
        mixed = alpha * Y + (1 - alpha) * found[-1]
    return found


def test_training_errors_count_what_is_outside(features):
    K, Y, solution = features
    found = grid_losses(solution.training(LAMS, STEPS), grid_tails(ALPHAS, STEPS))
    for i, lam in enumerate(LAMS):
        for j, alpha in enumerate(ALPHAS):
            wanted = [((y - Y) ** 2).sum() for y in steps_of(K, Y, lam, alpha)]
            assert_allclose(found[i, j], wanted, rtol=1e-12)


def test_generalised_cross_validation_counts_it_and_the_missing_eigenvalues(features):
    K, Y, solution = features
    own = training_losses(solution, LAMS, ALPHAS, STEPS, estimate=True, accuracy=0.0)
    spectrum = solution.spectrum
    shot = one_shot(spectrum.eigenvalues, spectrum.Z, LAMS, N, outside=spectrum.outside)
    for i, lam in enumerate(LAMS):
        H = K @ np.linalg.inv(K + lam * np.eye(N))
        ridge = ((Y - H @ Y) ** 2).mean() / (1 - np.trace(H) / N) ** 2
        assert_allclose(own["gcv"][i, :, 0], ridge, rtol=1e-12)
        assert_allclose(shot.ridge_score[i], ridge, rtol=1e-12)
        twice = ((Y - H @ H @ Y) ** 2).mean() / (1 - np.trace(H @ H) / N) ** 2
        assert_allclose(own["gcv"][i, 0, 1], twice, rtol=1e-12)
        assert_allclose(shot.distilled_score[i], twice, rtol=1e-12)


def test_leave_one_out_judges_by_the_targets_themselves(features):
    K, Y, solution = features
    assert_allclose(solution.targets, Y)
    left = solution.left_out(LAMS, STEPS)
    errors = solution.left_out_ridge(LAMS)
    for i, lam in enumerate(LAMS):
        for row in range(N):
            kept = np.delete(np.arange(N), row)
            inverse = np.linalg.inv(K[np.ix_(kept, kept)] + lam * np.eye(N - 1))
            mixed = Y[kept]
            for step in range(STEPS):
                dual = inverse @ mixed
                value = K[row, kept] @ dual
                if step == 0:
                    assert_allclose(errors[i, row], Y[row] - value, rtol=1e-9, atol=1e-12)
                assert_allclose(left.steps[i, step, row], value, rtol=1e-9, atol=1e-12)
                mixed = K[np.ix_(kept, kept)] @ dual
