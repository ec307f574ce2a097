"""Weights and an intercept on several ranks: the equations themselves, and the fit of one process."""

import numpy as np
import pytest

import sdgpu
from sdgpu.engine.scaling_parts import Layout
from tests.engine.test_weighted_rows import (
    ALPHAS,
    CASES,
    HOWS,
    KERNEL,
    LAMS,
    NEW,
    RNG,
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
from tests.problems import assert_near
from tests.ranks import cuts, on_ranks

TRUTH = RNG.normal(size=(M, C)) + Y.mean(axis=0)
SHARES = {"uneven": [9, 31], "one": [N], "empty": [17, 0, 23], "four": [1, 20, 3, 16]}
GRID = {"alphas": [0.0, 0.5, 1.0], "steps": 3}


def joined(found, name, axis):
    return np.concatenate([one[name] for one in found], axis=axis)


def own(weights, rows):
    return None if weights is None else weights[rows]


@pytest.mark.parametrize("how", ["lanczos", "subspace", "cg"])
@pytest.mark.parametrize(("name", "intercept"), CASES)
def test_all_steps(name, intercept, how, rng):
    """Paths, limits, predictors and sweeps on weighted validation rows."""
    options = {"kernel": KERNEL, **HOWS[how], "lams": LAMS, "intercept": intercept}
    options["operator"] = "tiled"
    w, weights_new = WEIGHTS[name], rng.uniform(0, 2, M) * (np.arange(M) != 3)
    shares = SHARES[rng.choice(list(SHARES))]
    new_parts = cuts(M, len(shares), rng)
    lam = float(rng.choice(LAMS))

    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], sample_weight=own(w, rows), distributed=ranks, **options)
        path, limit, mine = fit.path(lam, ALPHAS, T), fit.limit(lam, 0.5), new_parts[ranks.rank]
        sweep = fit.sweep(NEW[mine], TRUTH[mine], sample_weight=weights_new[mine], **GRID)
        return {
            "there": path.predict(NEW[mine]),
            "here": path.fitted,
            "dual": path.dual,
            "limit": limit.predict(NEW[mine]),
            "limit here": limit.fitted,
            "second": path.predictor(2).predict(NEW),
            "chosen": fit.predictor(sweep.best()).predict(NEW),
            "sweep": sweep.dataset,
            "plain": fit.sweep(NEW[mine], TRUTH[mine], **GRID).dataset,
        }

    found = on_ranks(cuts(N, shares, rng), work)
    weights = np.ones(N) if w is None else w
    kappa = kernel_of(KERNEL)
    there, here = steps(kappa, X, Y, weights, lam, ALPHAS, intercept, NEW)
    close(joined(found, "there", 1), there)
    close(joined(found, "here", 1), here)
    half = steps(kappa, X, Y, weights, 2 * lam, [], intercept, NEW)
    close(joined(found, "limit", 0), half[0][0])
    close(joined(found, "limit here", 0), half[1][0])
    one = sdgpu.fit(X, Y, sample_weight=w, **options)
    close(joined(found, "dual", 1), one.path(lam, ALPHAS, T).dual, 1e-7)
    wanted = one.sweep(NEW, TRUTH, sample_weight=weights_new, **GRID)
    plain = one.sweep(NEW, TRUTH, **GRID).dataset
    for rank in found:
        close(rank["second"], there[1])
        assert_near(rank["chosen"], one.predictor(wanted.best()).predict(NEW), 1e-7)
        for variable in ("mse", "limit_mse", "star_mse", "joint_mse", "train_mse"):
            assert_near(rank["sweep"][variable].values, wanted.dataset[variable].values, 1e-7)
            assert_near(rank["plain"][variable].values, plain[variable].values, 1e-7)
            same = rank["sweep"][variable].values == found[0]["sweep"][variable].values
            assert same.all()  # the same bits on every rank


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_other_precisions_and_rows_that_go_round(intercept, dtype, monkeypatch, rng):
    ring = Layout("ring", 0.0, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr("sdgpu.engine.rank_fitting.layout_of_fit", lambda *_: ring)
    w, kappa = WEIGHTS["some 0"], kernel_of(KERNEL)
    options = {"lams": LAMS, "dtype": dtype, "tol": 1e-4, "method": "subspace"}

    def work(ranks, rows):
        how = {"sample_weight": w[rows], "intercept": intercept, "distributed": ranks, **options}
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, **how)
        return {"there": fit.path(1.0, ALPHAS, T).predict(NEW if ranks.rank else NEW[:0])}

    found = on_ranks(cuts(N, [15, 25], rng), work)
    there, _ = steps(kappa, X, Y, w, 1.0, ALPHAS, intercept, NEW)
    close(joined(found, "there", 1), there, 1e-4)


def test_two_rows_and_one(rng):
    """The smallest problems: one row with an intercept is its target everywhere."""
    for n, shares in ((1, [0, 1]), (2, [1, 1]), (2, [0, 2, 0])):
        x, y, w = X[:n], Y[:n], np.array([2.0, 0.5])[:n]

        def work(ranks, rows, x=x, y=y, w=w):
            how = {"sample_weight": w[rows], "intercept": True, "distributed": ranks}
            fit = sdgpu.fit(x[rows], y[rows], KERNEL, 0.5, method="lanczos", dtype="float64", **how)
            return fit.path(0.5, 0.3, 3).predict(NEW[: 3 * (ranks.rank == 0)])

        found = np.concatenate(on_ranks(cuts(n, shares, rng), work), axis=1)
        there, _ = steps(kernel_of(KERNEL), x, y, w, 0.5, [0.3, 0.3], True, NEW[:3])
        close(found, there)


def test_features_judge_on_weighted_rows(rng):
    w, weights_new = WEIGHTS["real"], rng.uniform(0.1, 2, M)
    options = {"kernel": KERNEL, "lams": LAMS, "features": sdgpu.Nystrom(12), "intercept": True}
    new_parts = cuts(M, [5, 0, 2], rng)

    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], sample_weight=w[rows], distributed=ranks, **options)
        mine = new_parts[ranks.rank]
        judged = {"sample_weight": weights_new[mine], "metrics": ["mae", "rmse"], **GRID}
        return fit.sweep(NEW[mine], TRUTH[mine], **judged).dataset

    one = sdgpu.fit(X, Y, sample_weight=w, **options)
    wanted = one.sweep(NEW, TRUTH, sample_weight=weights_new, metrics=["mae", "rmse"], **GRID)
    for found in on_ranks(cuts(N, [10, 10, 20], rng), work):
        for variable in ("mse", "mae", "rmse", "limit_mse"):
            assert_near(found[variable].values, wanted.dataset[variable].values, 1e-8)


BAD = [
    (lambda r, n: -np.ones(n) if r else np.ones(n), "rank 1: sample_weight has -1 at row 0"),
    (lambda r, n: np.zeros(n), "sample_weight is 0 for all rows"),
    (lambda r, n: np.ones(n) if r else None, "different sample_weight"),
    (lambda r, n: np.ones(n + r), "rank 1: sample_weight has 31 rows"),
    (lambda r, n: np.full(n, 1e200 if r else 1.0), "sample_weight up to 1e\\+200"),
    (lambda r, n: np.full(n, np.nan if r else 1.0), "rank 1: sample_weight has"),
]


@pytest.mark.parametrize(("make", "text"), BAD)
def test_weights_that_are_none(make, text, rng):
    def work(ranks, rows):
        bad = make(ranks.rank, rows.stop - rows.start)
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, distributed=ranks)
        with pytest.raises(ValueError, match=text):
            fit.sweep(X[rows], Y[rows], sample_weight=bad)
        with pytest.raises(ValueError, match=text):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, sample_weight=bad, distributed=ranks)

    on_ranks(cuts(N, [10, 30], rng), work)


def test_ranks_that_differ_in_the_intercept(rng):
    def work(ranks, rows):
        with pytest.raises(ValueError, match="different intercept"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, intercept=bool(ranks.rank), distributed=ranks)

    on_ranks(cuts(N, [10, 30], rng), work)


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
@pytest.mark.parametrize(("name", "intercept"), CASES)
def test_a_list_of_devices(name, intercept, method):
    w = WEIGHTS[name]
    how = {"lams": LAMS, "method": method, "tol": 1e-11, "dtype": "float64", "probes": 32}
    how |= {"sample_weight": w, "intercept": intercept}
    two, one = (sdgpu.fit(X, Y, KERNEL, device=d, **how) for d in (["cpu"] * 3, "cpu"))
    weights = np.ones(N) if w is None else w
    there, here = steps(kernel_of(KERNEL), X, Y, weights, 1.0, ALPHAS, intercept, NEW)
    path = two.path(1.0, ALPHAS, T)
    close(path.predict(NEW), there)
    close(path.fitted, here)
    close(path.predictor().predict(NEW), there[-1])
    interval = [fit.path(1.0, ALPHAS, T).interval(NEW, 0.5, folds=3) for fit in (two, one)]
    close(interval[0].upper, interval[1].upper, 1e-7)
    sweeps = [fit.sweep(**GRID).dataset["mse"].values for fit in (two, one)]
    np.testing.assert_allclose(*sweeps, rtol=0.05)


def test_a_checkpoint_knows_the_weights(tmp_path, monkeypatch, rng):
    monkeypatch.setattr("sdgpu.solvers.checkpoint.INTERVAL", 0.0)
    path = tmp_path / "basis.safetensors"

    def fitted(weights, counts, **options):
        def work(ranks, rows):
            how = {"method": "lanczos", "checkpoint": path, "distributed": ranks, **options}
            fit = sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, sample_weight=weights[rows], **how)
            return fit.path(1.0, 0.5, 2).fitted

        return np.concatenate(on_ranks(cuts(N, counts, rng), work), axis=1)

    first = fitted(WEIGHTS["real"], [10, 30])
    assert_near(fitted(WEIGHTS["real"], [20, 5, 15]), first, 1e-6)
    with pytest.raises(ValueError, match="other Y, roots"):
        fitted(WEIGHTS["whole"], [10, 30])
    with pytest.raises(ValueError, match="other"):
        fitted(WEIGHTS["real"], [10, 30], intercept=True)
