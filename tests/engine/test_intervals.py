"""Jackknife+ of every step against fits without each row, one by one, and its coverage on real data."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import sdgpu
from tests.engine.test_weighted_rows import (
    ALPHAS,
    CASES,
    KERNEL,
    LAMS,
    NEW,
    WEIGHTS,
    C,
    M,
    N,
    T,
    X,
    Y,
    close,
    kernel_of,
    steps,
)


def by_refits(w, intercept, kappa, lam, alphas, coverage):
    """Ends (T, m, c) from one fit for each row."""
    low, high = [], []
    for i in np.flatnonzero(w):
        rest = np.where(np.arange(N) == i, 0.0, w)
        both = np.concatenate([NEW, X[i : i + 1]])
        found = steps(kappa, X, Y, rest, lam, alphas, intercept, both)[0]
        error = np.abs(found[:, -1:] - Y[i])
        low.append(found[:, :-1] - error)
        high.append(found[:, :-1] + error)
    n = len(low)
    low, high = np.sort(np.stack(low), axis=0), np.sort(np.stack(high), axis=0)
    return (
        low[int(np.floor((1 - coverage) * (n + 1) + 1e-9)) - 1],
        high[int(np.ceil(coverage * (n + 1) - 1e-9)) - 1],
    )


@pytest.mark.parametrize("how", ["eigh", "primal"])
@pytest.mark.parametrize(("name", "intercept"), [("none", False), *CASES])
def test_every_step(name, intercept, how):
    kernel = KERNEL if how == "eigh" else sdgpu.Polynomial(2, 0.3, 1.0)
    w, kappa = WEIGHTS[name], kernel_of(kernel)
    fit = sdgpu.fit(X, Y, kernel, LAMS, sample_weight=w, intercept=intercept, method=how)
    w = np.ones(N) if w is None else w
    for lam in LAMS:
        for coverage in (0.5, 0.9):
            found = fit.path(lam, ALPHAS, T).interval(NEW, coverage)
            low, high = by_refits(w, intercept, kappa, lam, ALPHAS, coverage)
            close(found.lower, low, 1e-8)
            close(found.upper, high, 1e-8)
    assert found.lower.shape == (T, M, C)
    assert (found.lower <= found.upper).all()


def test_weights_of_each_output_and_flat_targets():
    fit = sdgpu.fit(X, Y, KERNEL, [1.0])
    alphas = np.stack([ALPHAS, 1 - ALPHAS], axis=1)
    found = fit.path(1.0, alphas, T).interval(NEW, 0.8)
    for c in range(C):
        flat = sdgpu.fit(X, Y[:, c], KERNEL, [1.0]).path(1.0, alphas[:, c], T).interval(NEW, 0.8)
        assert flat.lower.shape == (T, M)
        close(found.lower[..., c], flat.lower)
        close(found.upper[..., c], flat.upper)


def test_empty_rows_and_torch():
    torch = pytest.importorskip("torch")
    fit = sdgpu.fit(torch.asarray(X), torch.asarray(Y), KERNEL, [1.0])
    assert fit.path(1.0).interval(torch.zeros((0, X.shape[1]))).lower.shape == (2, 0, C)
    found = fit.path(1.0).interval(torch.asarray(NEW))
    assert isinstance(found.upper, torch.Tensor)
    close(found.upper.numpy(), sdgpu.fit(X, Y, KERNEL, [1.0]).path(1.0).interval(NEW).upper)


@pytest.mark.parametrize("step", [1, 3])
def test_coverage_on_diabetes(step):
    """Of 40 random halves: on average what was asked for, less two standard errors."""
    rows, y = load_diabetes(return_X_y=True)
    inside = {0.8: [], 0.9: []}
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(len(rows))
        train, test = order[:220], order[220:]
        fit = sdgpu.fit(rows[train], y[train], sdgpu.Gaussian(10.0), [5.0], intercept=True)
        for coverage, shares in inside.items():
            ends = fit.path(5.0, 0.3, step).interval(rows[test], coverage)
            shares.append(np.mean((ends.lower[-1] <= y[test]) & (y[test] <= ends.upper[-1])))
    for coverage, shares in inside.items():
        error = np.std(shares) / np.sqrt(len(shares))
        assert coverage - 2 * error - 0.005 <= np.mean(shares) <= coverage + 0.03


@pytest.mark.parametrize(
    ("coverage", "words"),
    [
        (0.0, "coverage=0.0 must be between 0 and 1"),
        (1.0, "coverage=1.0 must be"),
        (-1, "coverage=-1 must be"),
        (0.99, "coverage=0.99 needs 99 training rows, and there are 40"),
        (0.976, "needs 41 training rows"),
    ],
)
def test_refusals(coverage, words):
    path = sdgpu.fit(X, Y, KERNEL, [1.0], method="eigh").path(1.0)
    with pytest.raises(ValueError, match=words):
        path.interval(NEW, coverage)


def test_fits_that_know_no_left_out_functions():
    rows = np.random.default_rng(1).normal(size=(300, X.shape[1]))
    for how in ({"method": "lanczos"}, {"method": "cg"}, {"features": sdgpu.Nystrom(10)}):
        path = sdgpu.fit(rows, rows[:, 0], KERNEL, [10.0], tol=1e-3, **how).path(10.0)
        with pytest.raises(ValueError, match="fit with method='eigh'"):
            path.interval(NEW)
    with pytest.raises(TypeError, match="coverage"):
        sdgpu.fit(X, Y, KERNEL, [1.0]).path(1.0).interval(NEW, "much")
    fit = sdgpu.fit(X[:9], Y[:9], KERNEL, [1.0])
    assert np.isfinite(fit.path(1.0).interval(NEW, 0.9).upper).all()
