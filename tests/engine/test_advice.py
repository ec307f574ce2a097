"""Advice: nested comparisons against explicit refits, every kind of fit, and how often it is right."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.study.theory.spiked import SpikedModel
from tests.problems import refits

KERNEL = sdgpu.Gaussian(0.5)
LAMS = np.geomspace(1e-2, 10, 7)


def data(n=60, c=1, seed=0, noise=0.4):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    F = np.stack([np.sin((2 + j) * X[:, 0]) + X[:, 1] for j in range(c)], axis=1)
    Y = F + noise * rng.standard_normal((n, c))
    return (X, Y[:, 0]) if c == 1 else (X, Y)


def left_out_by_refits(K, Y, lam, steps):
    """u_1 .. u_T at each row, fitted without it: (T, n, c)."""
    n, found = len(K), []
    for i in range(n):
        others = np.delete(np.arange(n), i)
        _, dual = refits(K[np.ix_(others, others)], Y[others], lam, 0.0, steps)
        found.append(K[i, others] @ dual)
    return np.stack(found, axis=1)


def best_by_lstsq(u, Y, rows, t):
    """Lam and coefficients over u_1 .. u_t, with sum 1, of least squares on some rows."""
    best = (np.inf, 0, None)
    ordinary = np.argmin([np.sum((one[0, rows] - Y[rows]) ** 2) for one in u])
    for i, one in enumerate(u):
        if t > 1 and LAMS[i] < LAMS[ordinary] / 4:
            continue
        basis = one[:t, rows].reshape(t, -1)
        D, error = np.diff(basis, axis=0).T, basis[0] - Y[rows].ravel()
        s = np.linalg.lstsq(D, -error, rcond=None)[0] if t > 1 else np.zeros(0)
        loss = float(np.sum((error + D @ s) ** 2))
        if loss < best[0]:
            best = (loss, i, -np.diff(np.concatenate([[1.0], s, [0.0]])))
    return best


@pytest.mark.parametrize(("n", "c"), [(20, 1), (31, 2), (130, 1)])
def test_gains_are_those_of_explicit_refits(n, c):
    X, Y = data(n, c)
    advice = sdgpu.fit(X, Y, KERNEL, LAMS, method="eigh").advise(LAMS, steps=3)
    Y, K, folds = Y.reshape(n, c), KERNEL(X), max(10, min(n // 10, 40))
    u = np.stack([left_out_by_refits(K, Y, lam, 3) for lam in LAMS])
    losses = np.empty((folds, 3))
    for f in range(folds):
        inside = np.arange(n) % folds == f
        for t in (1, 2, 3):
            _, i, weights = best_by_lstsq(u, Y, ~inside, t)
            errors = np.einsum("t,tnc->nc", weights, u[i][:t][:, inside]) - Y[inside]
            losses[f, t - 1] = np.sum(errors**2) / (n * c)
    assert_allclose(advice.table["nested_mse"], losses.sum(axis=0), rtol=1e-6)
    gain = losses[:, None, :] - losses[:, :, None]
    assert_allclose(advice.table["gain"], gain.sum(axis=0), atol=1e-6 * losses.sum())
    spread = np.sqrt(folds * gain.var(axis=0, ddof=1))
    assert_allclose(advice.table["standard_error"], spread, atol=1e-6 * losses.sum())
    for t in (1, 2, 3):
        loss, i, _ = best_by_lstsq(u, Y, np.full(n, fill_value=True), t)
        assert_allclose(advice.table["mse"][t - 1], loss / (n * c), rtol=1e-7)
        assert advice.table["lam"][t - 1] == LAMS[i]


def test_what_is_advised_can_be_carried_out():
    """The weights give the leave-one-out loss that the table states, and the predictor is the path's."""
    X, y = data()
    fit = sdgpu.fit(X, y, KERNEL, LAMS)
    table = fit.advise(steps=4).table
    for t in (1, 2, 3, 4):
        weights = table["alpha"].values[t - 1, : t - 1]
        left_out = fit.loo(float(table["lam"][t - 1]), weights, t)[-1]
        assert_allclose(np.mean((left_out - y) ** 2), table["mse"][t - 1], rtol=1e-8)
    model = SpikedModel(200, 300, (30.0,), (9.0,))
    draw = model.draw(0)
    fit = sdgpu.fit(draw.X, draw.Y, "linear", model.lams(4))
    advice = fit.advise()
    assert advice.worthwhile
    assert advice.steps == 2
    predicted = fit.predictor(advice.best).predict(draw.X)
    path = fit.path(advice.lam, advice.alphas, advice.steps)
    assert_allclose(predicted, path.fitted[-1], atol=1e-8 * np.abs(predicted).max())


def test_words_say_the_numbers():
    model = SpikedModel(200, 300, (30.0,), (9.0,))
    draw = model.draw(0)
    advice = sdgpu.fit(draw.X, draw.Y, "linear", model.lams(4)).advise()
    text = str(advice)
    assert text.startswith("Distillation is worth it here: 2 steps save ")
    assert f"lam = {advice.lam:.4g} with alpha = {advice.alphas[0]:.3g};" in text
    assert f"{100 * advice.gain / advice.table['nested_mse'][0].item():.2g} % +-" in text
    assert advice.relative_gain == advice.gain / advice.table["nested_mse"][0].item()
    assert advice.gain > advice.standard_error
    draw = SpikedModel(200, 300).draw(0)
    advice = sdgpu.fit(draw.X, draw.Y, "linear", model.lams(4)).advise()
    assert not advice.worthwhile
    assert advice.steps == 1
    assert advice.alphas.shape == (0,)
    assert str(advice).startswith("Distillation is not worth it here: 2 steps save ")
    assert "end of the grid" not in str(advice)
    assert not advice.at_edge


def test_a_grid_that_does_not_hold_the_best_lam_is_said():
    X, y = data(noise=1.0)
    advice = sdgpu.fit(X, y, KERNEL, LAMS).advise([1e-2, 2e-2])
    assert advice.at_edge
    assert "end of the grid" in str(advice)


def test_every_kind_of_fit():
    X, Y = data(80, 2)
    fit = sdgpu.fit(X, Y, KERNEL, LAMS, method="eigh")
    wanted = fit.advise(steps=3)
    torch_fit = sdgpu.fit(torch.tensor(X), torch.tensor(Y), KERNEL, LAMS)
    assert_allclose(torch_fit.advise(steps=3).table["gain"], wanted.table["gain"], atol=1e-9)
    features = sdgpu.fit(X, Y, KERNEL, LAMS, features=sdgpu.Nystrom(landmarks=X), intercept=False)
    found = features.advise(wanted.table["lam"].values, steps=3)
    again = fit.advise(wanted.table["lam"].values, steps=3)
    assert_allclose(found.table["nested_mse"], again.table["nested_mse"], rtol=1e-4)
    unweighted = sdgpu.fit(X, Y, KERNEL, LAMS, method="eigh", sample_weight=np.full(80, 1.0))
    assert_allclose(unweighted.advise(steps=3).table["gain"], wanted.table["gain"], atol=1e-8)
    weights = np.where(np.arange(80) < 20, 0.0, 1.0)
    weighted = sdgpu.fit(X, Y, KERNEL, LAMS, method="eigh", sample_weight=weights, intercept=True)
    rest = sdgpu.fit(X[20:], Y[20:], KERNEL, LAMS, method="eigh", intercept=True)
    grid = LAMS[2:]
    assert_allclose(
        weighted.advise(grid, steps=2).table["mse"],
        rest.advise(grid, steps=2).table["mse"],
        rtol=1e-7,
    )


@pytest.mark.parametrize(("signal", "steps"), [(1 / 30, 1), (9.0, 2)])
def test_features_are_tested_with_what_lies_outside(signal, steps):
    """Fewer features than rows: most of the noise is in no eigenvector that the fit knows."""
    draw = SpikedModel(200, 30, (30.0,), (signal,), noise=2.0).draw(1)
    lams = np.geomspace(1, 1e4, 12)
    exact = sdgpu.fit(draw.X, draw.Y, "linear", lams, method="eigh").advise(lams)
    how = {"features": sdgpu.Explicit(), "intercept": False}
    found = sdgpu.fit(draw.X, draw.Y, "linear", lams, **how).advise(lams)
    assert_allclose(found.table["gain"], exact.table["gain"], atol=1e-6)
    assert_allclose(found.table["chance"][0], exact.table["chance"][0], atol=0.1)
    assert (found.steps > 1) == (exact.steps > 1)


@pytest.mark.parametrize("seed", range(6))
def test_numbers_stay_numbers_whatever_the_scale(seed):
    """Targets and lam of any size, without noise, with constant or zero targets."""
    X, y = data(40, seed=seed)
    K = KERNEL(X)
    for scale in (1e-100, 1.0, 1e100):
        advice = sdgpu.fit(K, scale * y, "precomputed", [1e-6, 1.0]).advise()
        plain = sdgpu.fit(K, y, "precomputed", [1e-6, 1.0]).advise()
        assert advice.steps == plain.steps
        assert_allclose(advice.relative_gain, plain.relative_gain, rtol=1e-4, atol=1e-9)
    for targets in (np.zeros(40), np.ones(40), np.sin(X[:, 0])):
        advice = sdgpu.fit(X, targets, KERNEL, [1e-6, 1.0]).advise()
        assert np.isfinite(advice.gain)
        assert np.isfinite(advice.standard_error)
        assert str(advice)
    assert sdgpu.fit(X, np.zeros(40), KERNEL, [1e-6]).advise().steps == 1


@pytest.mark.parametrize(
    ("how", "asked", "words"),
    [
        (
            {"method": "cg"},
            {},
            "needs all eigenvalues, which method='cg' does not make: fit with method='eigh'$",
        ),
        ({"method": "subspace"}, {}, "method='subspace' estimates leverages"),
        ({"smoother": "cutoff"}, {}, "leave-one-out"),
        ({}, {"steps": 1}, "steps"),
        ({}, {"lams": [1e-9]}, "below"),
        ({}, {"lams": [[0.1, 1.0], [1.0, 10.0]]}, "one-dimensional"),
    ],
)
def test_what_is_refused(how, asked, words):
    X, y = data()
    with pytest.raises(ValueError, match=words):
        sdgpu.fit(X, y, KERNEL, LAMS, **how).advise(**asked)


def test_grids_of_any_kind():
    """The least norm, lam = 0, is no end of a geometric grid; twice the same lam is one."""
    X, y = data()
    fit = sdgpu.fit(X, y, "linear", 0)
    found = fit.advise(steps=2)
    assert found.table["lam"].min() > 0
    fit = sdgpu.fit(X, y, KERNEL, LAMS)
    once, twice = fit.advise(LAMS), fit.advise([*LAMS[::-1], *LAMS])
    assert_allclose(twice.table["gain"], once.table["gain"])
    assert fit.advise([1.0]).at_edge


def test_few_rows_say_too_little():
    X, y = data(19)
    with pytest.raises(ValueError, match="n = 19 rows say too little"):
        sdgpu.fit(X, y, KERNEL, LAMS).advise()
