"""Tests of the number of steps: columns and losses by brute force, the null as it is meant, and its size."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.distill.step_tests import GcvColumns, enough_steps, fair_lams

LAMS = np.geomspace(1e-3, 1e3, 7)


def corrected(delta, lam, steps, n, unpenalised, outside):
    """Residuals of steps 1..T with alpha = 0 over 1 - trace / n, rows of the eigenvectors and what is outside."""
    a = delta / (delta + lam)
    columns = []
    for t in range(1, steps + 1):
        residual = np.append(1 - a**t, np.sqrt(outside))
        columns.append(residual / (1 - (np.sum(a**t) + unpenalised) / n))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("k", "n", "unpenalised"), [(9, 9, 0), (1, 30, 0), (12, 40, 1), (0, 25, 1)]
)
def test_columns_are_corrected_residuals(k, n, unpenalised):
    delta = np.sort(np.random.default_rng(k).lognormal(0, 2, k))
    found = GcvColumns.of(delta, LAMS, 4, n, unpenalised).values
    for columns, lam in zip(found, LAMS, strict=True):
        wanted = corrected(delta, lam, 4, n, unpenalised, n - k - unpenalised)
        assert_allclose(columns[:, -1], wanted[:, 0], rtol=1e-10)
        differences = np.diff(wanted, axis=1)
        scale = np.abs(wanted).max()
        assert_allclose(columns[:, :-1], differences, atol=1e-12 * scale)


def test_differences_do_not_cancel():
    """For lam far below the eigenvalues 1 - a^t are all nearly t lam / delta."""
    delta = np.linspace(1, 2, 5)
    (columns,) = GcvColumns.of(delta, np.array([1e-12]), 3, 10).values
    assert_allclose(
        columns[:-1, 0] / columns[:-1, -1], 1.0, rtol=1e-9
    )  # D_1 = u_2 - u_1 ~ lam / delta
    assert columns.shape == (6, 3)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_losses_are_least_squares_over_the_weights(k):
    """Over every lam that is fair beside the best one of the ordinary fit."""
    rng = np.random.default_rng(k)
    delta, n = np.sort(rng.lognormal(0, 1, k)), k + 7
    columns = GcvColumns.of(delta, LAMS, 3, n)
    variances = rng.uniform(0.5, 3, k + 1)
    squares = rng.chisquare(1, (5, k + 1))
    found = columns.losses(variances, squares)
    for draw, losses in zip(squares, found, strict=True):
        wanted = np.full((len(LAMS), 3), np.inf)
        for i, lam in enumerate(LAMS):
            basis = corrected(delta, lam, 3, n, 0, n - k) * np.sqrt(draw * variances)[:, None]
            for t in range(1, 4):
                D = np.diff(basis[:, :t], axis=1)
                scale = np.where(np.any(D, axis=0), np.linalg.norm(D, axis=0), 1.0)
                s = np.linalg.lstsq(D / scale, -basis[:, 0], rcond=1e-9)[0] if t > 1 else []
                error = basis[:, 0] + (D / scale) @ s
                wanted[i, t - 1] = error @ error
        fair = 0.25 * LAMS[wanted[:, 0].argmin()] <= LAMS
        assert_allclose(fair_lams(LAMS, LAMS[wanted[:, 0].argmin()])[:, 0], fair)
        wanted[~fair, 1:] = np.inf
        assert_allclose(losses, wanted.min(axis=0), rtol=1e-5, atol=1e-12 * wanted[0, 0])
    assert (np.diff(found, axis=1) <= 1e-12 * found[:, :1]).all()


def chance(Z, delta, lam, steps=3, draws=99):
    """The first chance of targets in the eigenbasis."""
    n = len(Z)
    columns = GcvColumns.of(delta, np.geomspace(lam / 50, lam * 50, 9), steps, n)
    degrees, squares = np.append(np.ones(n), 0.0), np.append(Z * Z, 0.0)
    how = {"lam": lam, "degrees": degrees, "draws": draws}
    return enough_steps(delta, squares, columns, **how)[1][0]


def test_chances_are_uniform_where_ridge_is_the_best():
    """Z_j ~ N(0, 1 + delta_j / lam): a chance below x has probability x, or less."""
    rng = np.random.default_rng(0)
    delta, lam = np.sort(rng.lognormal(0, 1.5, 60)), 1.3
    draws = 150
    chances = np.array(
        [
            chance(np.sqrt(1 + delta / lam) * rng.standard_normal(60), delta, lam)
            for _ in range(draws)
        ]
    )
    for level in (0.05, 0.2, 0.5):
        assert np.mean(chances <= level) < level + 3 * np.sqrt(level * (1 - level) / draws)
    assert np.mean(chances <= 0.5) > 0.2  # and it is not that nothing is ever claimed


def test_as_many_steps_as_spikes_with_signals_of_their_own():
    rng = np.random.default_rng(1)
    delta = np.concatenate([np.sort(rng.uniform(0.5, 1.5, 298)), [3.0, 150.0]])
    Z = np.sqrt(1 + delta / 2.0) * rng.standard_normal(300)
    columns = GcvColumns.of(delta, np.geomspace(0.05, 1500, 40), 4, 300)
    how = {"lam": 2.0, "degrees": np.append(np.ones(300), 0.0)}

    def steps(Z):
        return enough_steps(delta, np.append(Z * Z, 0.0), columns, **how)[0]

    assert steps(Z) == 1
    Z[-1] = 1e3
    assert steps(Z) == 2
    Z[-2] = 40.0
    assert steps(Z) == 3


def test_more_outputs_say_more():
    """Degrees of freedom count: the same squares of ten outputs are no chance any more."""
    rng = np.random.default_rng(2)
    delta = np.append(np.sort(rng.uniform(0.5, 1.5, 99)), 12.0)
    squares = np.append((1 + delta / 2.0) * rng.chisquare(10, 100) / 10, 0.0)
    squares[-2] = 60.0
    columns = GcvColumns.of(delta, np.geomspace(0.05, 500, 30), 3, 100)
    one, ten = (
        enough_steps(delta, squares, columns, lam=2.0, degrees=np.append(np.full(100, d), 0.0))[1][
            0
        ]
        for d in (1.0, 10.0)
    )
    assert ten <= one


def test_nothing_is_claimed_of_targets_of_zero():
    columns = GcvColumns.of(np.ones(5), LAMS, 3, 5)
    steps, chances = enough_steps(np.ones(5), np.zeros(6), columns, lam=1.0, degrees=np.ones(6))
    assert steps == 1
    assert np.isnan(chances).all()
