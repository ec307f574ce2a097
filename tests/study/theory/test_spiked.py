"""Spiked models: exact risks against refits and draws, the figures of the notes, steps against spikes."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.distill.schedules import boosting_schedule
from sdgpu.distill.smoothers import IteratedTikhonov
from sdgpu.study.theory.risk import standard_error
from sdgpu.study.theory.spiked import SpikedModel, least_spectral_risk, spiked_risks
from tests.problems import refits

LAMS = np.array([0.5, 20.0, 900.0])


def models(count):
    """Small models of every shape: fewer rows than dimensions and more, no spike to three."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        n, p, s = rng.integers(1, 14), rng.integers(4, 14), rng.integers(0, 4)
        spikes, signal = tuple(rng.uniform(1, 50, s)), tuple(rng.uniform(0, 3, s))
        yield SpikedModel(int(n), int(p), spikes, signal, bulk=1.5, noise=0.7)


def coefficients(X, lam, alphas, steps):
    """Matrices (T, p, n): coefficients w of every step, for any targets, by refits."""
    _, dual = refits(X @ X.T, np.eye(len(X)), lam, alphas, steps)
    return X.T @ dual


@pytest.mark.parametrize("model", list(models(12)), ids=str)
def test_risk_is_that_of_explicit_refits(model):
    draw = model.draw(3)
    found = draw.triangles(LAMS, 3).schedule(np.array([2.5, -0.3]), model.noise)
    sigma = model.covariance
    for i, lam in enumerate(LAMS):
        for t, W in enumerate(coefficients(draw.X, lam, [2.5, -0.3], 3)):
            bias = draw.risk(W @ draw.X @ draw.beta)
            variance = model.noise**2 * np.sum(sigma[:, None] * W * W)
            assert_allclose(found.bias[i, t], bias, rtol=1e-7, atol=1e-9)
            assert_allclose(found.variance[i, t], variance, rtol=1e-7, atol=1e-12)


def test_risk_is_the_mean_over_noise():
    model = SpikedModel(40, 60, (20.0,), (1.0,))
    draw, rng = model.draw(0), np.random.default_rng(1)
    expected = draw.triangles(np.array([100.0]), 2).schedule(np.array([2.0]), 1.0).total[0]
    Y = draw.X @ draw.beta + rng.standard_normal((400, 40))
    path = sdgpu.fit(draw.X, Y.T, "linear", [100.0], method="eigh").path(100.0, 2.0, 2)
    losses = np.array([[draw.risk(draw.X.T @ w) for w in dual.T] for dual in path.dual]).T
    assert np.all(np.abs(losses.mean(axis=0) - expected) < 3 * standard_error(losses))


def test_boosting_is_in_the_table():
    model = SpikedModel(12, 20, (9.0,), (2.0,), noise=0.5)
    found = spiked_risks(model, draws=1, lams=LAMS, steps=2, rounds=4)
    draw, risks = model.draw(0), np.empty((4, len(LAMS)))
    for m in range(4):
        for i, lam in enumerate(LAMS):
            delta, V = np.linalg.eigh(draw.X @ draw.X.T)
            dual = V * IteratedTikhonov(m + 1).dual(delta, lam) @ V.T
            W = draw.X.T @ dual
            variance = 0.25 * np.sum(model.covariance[:, None] * W * W)
            risks[m, i] = draw.risk(W @ draw.X @ draw.beta) + variance
    assert_allclose(found["boosting"], risks.min(), rtol=1e-8)
    assert found["boosting_rounds"] == 1 + risks.min(axis=1).argmin()
    assert_allclose(boosting_schedule(1), [])


@pytest.mark.parametrize("model", [m for m in models(12) if m.n > 1], ids=str)
def test_least_risk_is_the_least_squares_over_all_filters(model):
    draw = model.draw(5)
    U, roots, W = np.linalg.svd(draw.X, full_matrices=False)
    sigma, S = model.covariance, model.squared_coefficients
    # column j: Sigma^(1/2) w_j d_j^(1/2) u_j' X S^(1/2), and the noise below
    signals = [
        (np.sqrt(sigma) * roots[j] * W[j])[:, None] * (U[:, j] @ draw.X * np.sqrt(S))[None]
        for j in range(len(roots))
    ]
    noises = [
        model.noise * np.outer(np.sqrt(sigma) * roots[j] * W[j], np.eye(len(roots))[j])
        for j in range(len(roots))
    ]
    columns = np.stack(
        [np.concatenate([a.ravel(), b.ravel()]) for a, b in zip(signals, noises, strict=True)], 1
    )
    target = np.concatenate([np.diag(np.sqrt(sigma * S)).ravel(), np.zeros(noises[0].size)])
    c = np.linalg.lstsq(columns, target, rcond=None)[0]
    assert_allclose(least_spectral_risk(draw), np.sum((columns @ c - target) ** 2), rtol=1e-9)


FIGURES = [  # field-notes, 2026-11: 16 draws, risk of 1, 2, .. steps
    ((), (0.7182, 0.7182, 0.7182)),
    ((30.0,), (0.880, 0.756, 0.756)),
    ((60.0, 8.0), (1.082, 0.895, 0.871)),
]


@pytest.mark.parametrize(("spikes", "figures"), FIGURES)
def test_figures_of_the_notes(spikes, figures):
    """Both are means over 16 draws: within three standard errors of their difference."""
    model = SpikedModel(400, 600, spikes, (1.0,) * len(spikes))
    found = spiked_risks(model, steps=3, draws=16, lams=model.lams(24), rounds=3)
    risk = found["risk"].values
    assert np.all(np.abs(risk.mean(axis=0) - figures) < 3 * np.sqrt(2) * standard_error(risk))
    # n and p are not infinite: about 1 / n of the risk, beside three standard errors
    asymptotic = found["asymptotic"].values
    assert np.all(
        np.abs(risk.mean(axis=0) - asymptotic) < 3 * standard_error(risk) + 2 * asymptotic / model.n
    )
    # gains of a step, paired by draw: as many as spikes
    gains = -np.diff(risk, axis=1)
    for step, gain in enumerate(gains.T):
        assert (gain.mean() > 0.01) == (step < len(spikes))
    # nothing that shrinks eigenvalues does better, and s steps nearly reach it
    gap = risk[:, len(spikes)] - found["least"].values
    assert gap.mean() > -3 * standard_error(gap)
    assert abs(gap.mean()) < 3 * standard_error(gap) + 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n"),
        ({"spikes": (1.0,)}, "signal has 0 entries for 1 spikes"),
        ({"spikes": (-1.0,), "signal": (1.0,)}, "spikes"),
        ({"spikes": (1.0,) * 5, "signal": (1.0,) * 5}, "p must be larger"),
        ({"noise": -1.0}, "noise"),
    ],
)
def test_bad_models(change, words):
    with pytest.raises(ValueError, match=words):
        SpikedModel(**{"n": 5, "p": 5, **change})


def test_least_risk_needs_noise():
    with pytest.raises(ValueError, match="noise"):
        least_spectral_risk(SpikedModel(5, 9, noise=0.0).draw(0))
