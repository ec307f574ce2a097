"""Leave-one-out, generalised cross-validation and metrics on several ranks: refits, and one process."""

import numpy as np
import pytest

import sdgpu
from tests.engine.test_weighted_rows import (
    ALPHAS,
    CASES,
    KERNEL,
    LAMS,
    WEIGHTS,
    C,
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

SHARES = {"uneven": [9, 31], "one": [N], "empty": [17, 0, 23], "four": [1, 20, 3, 16]}
METRICS = ["mae", "r2", "max_error"]


def left_out_refits(x, y, weights, intercept, lam=1.0):
    """(T, n, c) by a fit without each row."""
    wanted, kappa = np.empty((T, *y.shape)), kernel_of(KERNEL)
    for i in range(len(x)):
        rest = np.where(np.arange(len(x)) == i, 0.0, weights)
        wanted[:, i] = steps(kappa, x, y, rest, lam, ALPHAS, intercept, x[i : i + 1])[0][:, 0]
    return wanted


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
@pytest.mark.parametrize(("name", "intercept"), [("none", False), *CASES])
def test_rows_left_out(name, intercept, method, rng):
    """Estimates on ranks are those of one process: the same probes, the same rows that are computed exactly."""
    w, shares = WEIGHTS[name], SHARES[rng.choice(list(SHARES))]
    how = {"lams": LAMS, "method": method, "tol": 1e-11, "intercept": intercept, "probes": 64}
    how |= {"operator": "tiled", "dtype": "float64"}
    asked = {"alphas": [0.0, 0.4, 1.0], "steps": 3, "metrics": METRICS, "per_output": True}

    def ask(fit):
        values, error = fit.loo(1.0, ALPHAS, T, return_std=True)
        found = {"loo": values, "error": error, "sweep": fit.sweep(**asked).dataset}
        found["star"] = fit.optimal_alphas(lam=1.0, steps=3).alphas
        found["joint"] = fit.joint_alphas(lam=1.0, steps=3).mse
        found["gcv"] = fit.gcv_sweep(steps=3).dataset
        if method != "cg":
            found["one shot"] = fit.gcv(1.0).alpha
        return found

    def work(ranks, rows):
        own = None if w is None else w[rows]
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, sample_weight=own, distributed=ranks, **how)
        return ask(fit)

    found = on_ranks(cuts(N, shares, rng), work)
    one = ask(sdgpu.fit(X, Y, KERNEL, sample_weight=w, **how))
    values = np.concatenate([rank["loo"] for rank in found], axis=1)
    errors = np.concatenate([rank["error"] for rank in found], axis=1)
    wanted = left_out_refits(X, Y, np.ones(N) if w is None else w, intercept)
    assert (np.abs(values - wanted) <= 6 * errors + 1e-6 * np.abs(wanted).max()).mean() > 0.97
    assert_near(values, one["loo"], 1e-5)
    for rank in found:
        for variable in ("mse", "limit_mse", "star_mse", "joint_mse", "mse_per_output", *METRICS):
            assert_near(rank["sweep"][variable].values, one["sweep"][variable].values, 1e-4)
            same = rank["sweep"][variable].values == found[0]["sweep"][variable].values
            assert same.all()
        assert rank["sweep"].attrs["validation_rows"] == one["sweep"].attrs["validation_rows"]
        assert_near(rank["star"], one["star"], 1e-3)
        np.testing.assert_allclose(rank["joint"], one["joint"], rtol=1e-3)
        for variable in ("gcv", "degrees_of_freedom", "train_mse"):
            assert_near(rank["gcv"][variable].values, one["gcv"][variable].values, 1e-5)
        if method != "cg":
            assert_near(rank["one shot"], one["one shot"], 1e-4)


@pytest.mark.parametrize("shares", [[12], [5, 7], [0, 4, 8]])
@pytest.mark.parametrize("intercept", [False, True])
def test_all_eigenvectors_are_known(shares, intercept, rng):
    """A basis of as many vectors as rows leaves nothing to estimate: exact, as by refits."""
    x, y = X[:12], Y[:12]
    how = {
        "lams": 1.0,
        "method": "lanczos",
        "tol": 1e-13,
        "intercept": intercept,
        "dtype": "float64",
    }

    def work(ranks, rows):
        fit = sdgpu.fit(x[rows], y[rows], KERNEL, distributed=ranks, **how)
        exact = fit._solution.leverages.exact
        return fit.loo(1.0, ALPHAS, T), exact, fit.sweep(steps=2, alphas=[0.5]).dataset["mse"]

    found = on_ranks(cuts(12, shares, rng), work)
    wanted = left_out_refits(x, y, np.ones(12), intercept)
    values = np.concatenate([rank[0] for rank in found], axis=1)
    if found[0][1]:
        close(values, wanted, 1e-8)
    else:
        close(values, wanted, 1e-3)
    first = np.mean((wanted[0] - y) ** 2)
    np.testing.assert_allclose(found[0][2].values[0, 0, 0], first, rtol=1e-3)


def test_a_row_that_determines_itself_is_named(rng):
    """On all ranks, by its number among all rows."""
    x = np.array([[0.0], [0.1], [50.0]])

    def work(ranks, rows):
        how = {"method": "lanczos", "dtype": "float64", "distributed": ranks, "tol": 1e-3}
        fit = sdgpu.fit(x[rows], np.ones(3)[rows], sdgpu.Gaussian(1.0), 1e-16, **how)
        if not fit._solution.leverages.exact:
            return "estimated"
        with pytest.raises(ValueError, match=r"row [0-2] determines itself"):
            fit.loo(1e-16)
        return "exact"

    assert on_ranks(cuts(3, [1, 2], rng), work) == ["exact", "exact"]


def test_metrics_that_see_all_rows_at_once(rng):
    """By validation rows and left out, with weights and without: those of one process."""
    n, m = 90, 31
    x, new = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    y, truth = (np.eye(2)[(rows[:, 0] + 0.5 * rows[:, 1] > 0).astype(int)] for rows in (x, new))
    w, weights_new = rng.uniform(0.5, 2, n), rng.uniform(0.5, 2, m)
    asked = {"metrics": ["auc", "accuracy"], "steps": 3, "alphas": [0.0, 0.5]}
    how = {"lams": [0.1, 1.0], "method": "subspace", "tol": 1e-9, "dtype": "float64"}
    new_parts = cuts(m, [30, 0, 1], rng)

    def work(ranks, rows):
        fit = sdgpu.fit(x[rows], y[rows], KERNEL, sample_weight=w[rows], distributed=ranks, **how)
        mine = new_parts[ranks.rank]
        return (
            fit.sweep(new[mine], truth[mine], **asked).dataset,
            fit.sweep(new[mine], truth[mine], sample_weight=weights_new[mine], **asked).dataset,
            fit.sweep(**asked).dataset,
        )

    one = sdgpu.fit(x, y, KERNEL, sample_weight=w, **how)
    wanted = (
        one.sweep(new, truth, **asked).dataset,
        one.sweep(new, truth, sample_weight=weights_new, **asked).dataset,
        one.sweep(**asked).dataset,
    )
    for found in on_ranks(cuts(n, [20, 70, 0], rng), work):
        for dataset, known, rtol in zip(found, wanted, (1e-10, 1e-10, 0.02), strict=True):
            for name in ("auc", "accuracy"):
                np.testing.assert_allclose(dataset[name], known[name], rtol=rtol)


def test_weights_and_choices_of_each_output(rng):
    """By validation rows and by rows left out."""
    how = {"lams": LAMS, "method": "lanczos", "tol": 1e-10, "dtype": "float64", "probes": 64}
    new, truth = X[:7] + 0.1, Y[:7] + 0.2
    new_parts = cuts(7, [3, 0, 4], rng)

    def ask(fit, mine=slice(None)):
        own = new[mine], truth[mine]
        greedy = fit.optimal_alphas(*own, 1.0, 3, per_output=True)
        left = fit.optimal_alphas(lam=1.0, steps=3, per_output=True)
        best = fit.sweep(*own, None, [0.0, 0.3], 3, per_output=True).best(per_output=True)
        path = fit.path(1.0, greedy.alphas, 3).predict(new[mine])
        return greedy.alphas, left.alphas, best, fit.predictor(best).predict(new), path

    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, distributed=ranks, **how)
        return ask(fit, new_parts[ranks.rank])

    found = on_ranks(cuts(N, [9, 31, 0], rng), work)
    one = ask(sdgpu.fit(X, Y, KERNEL, **how))
    for rank in found:
        assert_near(rank[0], one[0], 1e-6)
        assert_near(rank[1], one[1], 1e-3)
        np.testing.assert_array_equal(rank[2].lam, one[2].lam)
        np.testing.assert_array_equal(rank[2].step, one[2].step)
        assert_near(rank[3], one[3], 1e-7)
    assert_near(np.concatenate([rank[4] for rank in found], axis=1), one[4], 1e-6)


def test_ranks_that_ask_for_other_rows_left_out(rng):
    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, LAMS, distributed=ranks)
        with pytest.raises(ValueError, match="different lam and steps"):
            fit.loo(1.0, 0.5, 2 + ranks.rank)
        with pytest.raises(ValueError, match="sample_weight is that of X_val"):
            fit.sweep(sample_weight=np.ones(3))
        return fit.loo(1.0, 0.5, 2).shape

    assert on_ranks(cuts(N, [10, 30], rng), work) == [(2, 10, C), (2, 30, C)]
