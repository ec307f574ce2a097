"""Noise estimated from leave-one-out residuals: by hand with refits, and what the weights bring."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.engine.reweighting import LEAST, SMOOTHING

KERNEL, LAMS = sdgpu.Gaussian(0.5), np.geomspace(0.05, 20, 5)


def clean(X):
    return np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]


def spread(X):
    return 0.3 * np.exp(1.2 * X[:, 1])


def noisy(rng, n, size=spread):
    X = rng.standard_normal((n, 2))
    return X, clean(X) + size(X) * rng.standard_normal(n)


def ridge(K, K_new, y, w, lam):
    """Weighted kernel ridge regression with a constant, by one dense system, at new rows."""
    n = len(y)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n], system[:n, n] = K + lam * np.diag(1 / w), 1
    system[n, :n] = 1
    found = np.linalg.solve(system, np.append(y, 0))
    return K_new @ found[:n] + found[n]


def left_out_ridge(K, y, w, lams):
    """Leave-one-out predictions of every lam by refits, and their weighted squared errors."""
    n, found = len(y), np.empty((len(lams), len(y)))
    for i in range(n):
        rest = np.arange(n) != i
        for number, lam in enumerate(lams):
            K_rest = K[np.ix_(rest, rest)]
            found[number, i] = ridge(K_rest, K[i, rest], y[rest], w[rest], lam)
    return found, (w * (found - y) ** 2).sum(axis=1) / w.sum()


@pytest.mark.parametrize("weighted", [False, True])
def test_every_step_by_hand(rng, weighted):
    X, y = noisy(rng, 22)
    new = rng.standard_normal((6, 2))
    known = rng.uniform(0.5, 2, 22) if weighted else np.ones(22)
    own = known if weighted else None
    model = sdgpu.reweighted_fit(X, y, KERNEL, LAMS, intercept=True, sample_weight=own)
    K = KERNEL(X, X)
    found, losses = left_out_ridge(K, y, known, LAMS)
    assert model.before.lam == LAMS[losses.argmin()]
    squares = known * (y - found[losses.argmin()]) ** 2
    logs = np.log(np.maximum(squares / squares.mean(), LEAST))
    root = np.sqrt(known)
    centred = np.eye(22) - np.outer(root, root) / known.sum()
    largest = np.linalg.eigvalsh(centred @ (root[:, None] * K * root) @ centred)[-1]
    lams = SMOOTHING * largest / known.mean()
    found, losses = left_out_ridge(K, logs, np.ones(22), lams)
    inverse = known * np.exp(-found[losses.argmin()])
    weights = inverse / inverse.sum() * known.sum()
    assert_allclose(model.weights, weights, rtol=1e-6)
    assert np.ptp(np.log(weights)) > 1
    _, losses = left_out_ridge(K, y, weights, LAMS)
    lam = LAMS[losses.argmin()]
    assert model.best.lam == lam
    assert_allclose(model.predict(new), ridge(K, KERNEL(new, X), y, weights, lam), rtol=1e-6)
    lam = lams[left_out_ridge(K, logs, np.ones(22), lams)[1].argmin()]
    log_variance = ridge(K, KERNEL(new, X), logs, np.ones(22), lam)
    # E log chi^2_1 = -1.2704
    assert_allclose(
        model.variance(new), np.exp(log_variance + 1.2703628) * squares.mean(), rtol=1e-6
    )


def errors(size, seeds=range(10)):
    """Mean squared distance from the clean function, without weights, estimated and known ones."""
    found, lams = [], np.geomspace(1e-2, 1e2, 25)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        X, y = noisy(rng, 300, size)
        new, how = rng.standard_normal((1000, 2)), {"intercept": True, "method": "eigh"}
        model = sdgpu.reweighted_fit(X, y, KERNEL, lams, intercept=True)
        plain = sdgpu.fit(X, y, KERNEL, lams, **how).predictor(model.before)
        w = size(X) ** -2.0
        known = sdgpu.fit(X, y, KERNEL, lams, sample_weight=w / w.mean(), **how)
        known = known.predictor(known.sweep(alphas=[0.0], steps=1).best())
        found.append(
            [np.mean((one.predict(new) - clean(new)) ** 2) for one in (plain, model, known)]
        )
    return np.mean(found, axis=0)


def test_it_pays_where_noise_differs_and_costs_little_where_not():
    plain, ours, known = errors(spread)
    assert ours < 0.6 * plain
    assert ours < 1.2 * known
    plain, ours, known = errors(lambda X: 0.5 + 0 * X[:, 0])
    assert_allclose(known, plain)
    assert ours < 1.1 * plain


def test_the_noise_that_is_found(rng):
    X, y = noisy(rng, 400)
    model = sdgpu.reweighted_fit(X, y, KERNEL, LAMS, intercept=True)
    new = rng.uniform(-1.5, 1.5, (200, 2))
    ratio = np.log(model.variance(new) / spread(new) ** 2)
    assert abs(np.median(ratio)) < 0.5
    assert np.corrcoef(np.log(model.variance(new)), np.log(spread(new)))[0, 1] > 0.9
    assert np.asarray(model.weights).mean() == pytest.approx(1)


def test_libraries_outputs_features_and_absent_rows(rng):
    X, y = noisy(rng, 60)
    Y = np.stack([y, 100 * (clean(X) + spread(X) * rng.standard_normal(60))], axis=1)
    new, w = rng.standard_normal((5, 2)), rng.integers(0, 3, 60).astype(float)
    how = {"intercept": True, "rounds": 2, "alphas": [0.0, 0.5], "steps": 3}
    host = sdgpu.reweighted_fit(X, Y, KERNEL, LAMS, sample_weight=w, **how)
    assert host.predict(new).shape == (5, 2)
    assert ((host.weights == 0) == (w == 0)).all()
    present = w > 0
    without = sdgpu.reweighted_fit(
        X[present], Y[present], KERNEL, LAMS, sample_weight=w[present], **how
    )
    assert_allclose(host.weights[present], without.weights, rtol=1e-6)
    assert_allclose(host.predict(new), without.predict(new), rtol=1e-6, atol=1e-8)
    tensors = [torch.tensor(a) for a in (X, Y, w, new)]
    found = sdgpu.reweighted_fit(*tensors[:2], KERNEL, LAMS, sample_weight=tensors[2], **how)
    assert isinstance(found.weights, torch.Tensor)
    assert_allclose(found.weights, host.weights, rtol=1e-6, atol=1e-9)
    assert_allclose(found.predict(tensors[3]), host.predict(new), rtol=1e-6, atol=1e-8)
    assert_allclose(found.variance(tensors[3]), host.variance(new), rtol=1e-6)
    recipe = sdgpu.Nystrom(landmarks=X[:25])
    features = sdgpu.reweighted_fit(X, Y, KERNEL, LAMS, features=recipe, **how)
    assert features.predict(new).shape == (5, 2)
    assert features.fit.info.k <= 25


def test_what_it_is_not_for(rng):
    X, y = noisy(rng, 20)
    for data, kernel, words in (
        ((X, None), KERNEL, "give X and Y as arrays"),
        ((sdgpu.rows.as_source(X, y), None), KERNEL, "give X and Y as arrays"),
        ((KERNEL(X, X), y), "precomputed", "not for kernel='precomputed'"),
    ):
        with pytest.raises(ValueError, match=words):
            sdgpu.reweighted_fit(*data, kernel, LAMS)
    with pytest.raises(ValueError, match="rounds"):
        sdgpu.reweighted_fit(X, y, KERNEL, LAMS, rounds=0)
    with pytest.raises(ValueError, match="sample_weight"):
        sdgpu.reweighted_fit(X, y, KERNEL, LAMS, sample_weight=-np.ones(20))
    exact = sdgpu.reweighted_fit(X, 0 * y, KERNEL, LAMS, intercept=True)  # no noise at all
    assert_allclose(exact.weights, 1)
    assert_allclose(exact.predict(X), 0, atol=1e-12)
