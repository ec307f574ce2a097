"""All eigenvalues on ranks: rank 0 decomposes, and what is asked is that of one process."""

import numpy as np
import pytest

import sdgpu
from tests.engine.test_rank_left_out import left_out_refits
from tests.engine.test_weighted_rows import (
    ALPHAS,
    CASES,
    HOWS,
    KERNEL,
    LAMS,
    NEW,
    WEIGHTS,
    M,
    N,
    T,
    X,
    Y,
    close,
    kernel_of,
    steps,
)
from tests.ranks import cuts, on_ranks

SHARES = {"uneven": [9, 31], "one": [N], "empty": [17, 0, 23], "late": [0, 40]}
GRID = {"alphas": [0.0, 0.5, 1.0], "steps": 3}


def rows_of(found, name, axis):
    return np.concatenate([one[name] for one in found], axis=axis)


@pytest.mark.parametrize("how", ["eigh", "primal"])
@pytest.mark.parametrize(("name", "intercept"), [("none", False), *CASES])
def test_everything_equals_one_process(name, intercept, how, rng):
    options = {"kernel": KERNEL, **HOWS[how], "lams": LAMS, "intercept": intercept}
    w, shares = WEIGHTS[name], SHARES[rng.choice(list(SHARES))]
    new_parts = cuts(M, len(shares), rng)
    truth = rng.normal(size=(M, Y.shape[1])) + Y.mean(axis=0)

    def ask(fit, mine=slice(None)):
        path = fit.path(1.0, ALPHAS, T)
        found = {"there": path.predict(NEW[mine]), "here": path.fitted, "dual": path.dual}
        found |= {"limit": fit.limit(1.0, 0.4).predict(NEW[mine]), "loo": fit.loo(1.0, ALPHAS, T)}
        found["variance"] = path.variance(NEW[mine]).posterior
        found["upper"] = path.interval(NEW[mine], 0.5, folds=3).upper
        if how == "eigh" or not (intercept or w is not None):
            jackknife = path.interval(NEW[mine], 0.8)
            found["jackknife"] = np.stack([jackknife.lower, jackknife.upper])
        found["basis"] = fit.spectrum.basis
        found["by lam"] = fit.path([1.0, 2.0, 0.5], [0.3, 0.4], 3).predict(NEW[mine])
        found["loo by lam"] = fit.loo([1.0, 2.0, 0.5], [0.3, 0.4], 3)
        by_lam = {"lams": [[1.0, 2.0, 0.5], [0.5, 1.0, 1.0]], **GRID}
        found["sweep by lam"] = fit.sweep(NEW[mine], truth[mine], **by_lam).dataset
        found["left out by lam"] = fit.sweep(**by_lam, metrics=["mae"]).dataset
        found["sweep"] = fit.sweep(NEW[mine], truth[mine], **GRID).dataset
        found["left out"] = fit.sweep(**GRID, metrics=["mae"]).dataset
        found["gcv"] = fit.gcv_sweep(steps=3).dataset
        found["alone"] = path.predictor().predict(NEW)
        return found

    def work(ranks, rows):
        own = None if w is None else w[rows]
        fit = sdgpu.fit(X[rows], Y[rows], sample_weight=own, distributed=ranks, **options)
        assert fit.info.status.startswith("exact")
        return ask(fit, new_parts[ranks.rank])

    one = ask(sdgpu.fit(X, Y, sample_weight=w, **options))
    found = on_ranks(cuts(N, shares, rng), work)
    weights = np.ones(N) if w is None else w
    there, here = steps(kernel_of(options["kernel"]), X, Y, weights, 1.0, ALPHAS, intercept, NEW)
    close(rows_of(found, "there", 1), there)
    close(rows_of(found, "here", 1), here)
    if how == "eigh":
        close(rows_of(found, "loo", 1), left_out_refits(X, Y, weights, intercept), 1e-8)
    for name_of, axis in [
        ("dual", 1),
        ("loo", 1),
        ("variance", 1),
        ("upper", 1),
        ("by lam", 1),
        ("loo by lam", 1),
    ]:
        close(rows_of(found, name_of, axis), one[name_of], 1e-7)
    if "jackknife" in one:
        close(rows_of(found, "jackknife", 2), one["jackknife"], 1e-7)
    close(rows_of(found, "limit", 0), one["limit"], 1e-9)
    gram = rows_of(found, "basis", 0)
    close(gram.T @ gram, np.eye(gram.shape[1]), 1e-9)
    for rank in found:
        close(rank["alone"], there[-1])
        for kind, names in [
            ("sweep", ("mse", "limit_mse", "star_mse")),
            ("left out", ("mse", "limit_mse", "mae", "joint_mse")),
            ("gcv", ("gcv", "degrees_of_freedom")),
            ("sweep by lam", ("mse", "star_mse")),
            ("left out by lam", ("mse", "mae", "joint_mse")),
        ]:
            for variable in names:
                np.testing.assert_allclose(
                    rank[kind][variable], one[kind][variable], rtol=1e-6, atol=1e-12
                )
                np.testing.assert_array_equal(rank[kind][variable], found[0][kind][variable])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows(n, rng):
    parts = cuts(n, 3, rng)

    def work(ranks, rows):
        fit = sdgpu.fit(X[:n][rows], Y[:n][rows], KERNEL, 0.5, method="eigh", distributed=ranks)
        return fit.path(0.5, 0.3, 3).fitted

    found = np.concatenate(on_ranks(parts, work), axis=1)
    close(found, sdgpu.fit(X[:n], Y[:n], KERNEL, 0.5).path(0.5, 0.3, 3).fitted)


@pytest.mark.parametrize("smoother", ["gradient_flow", "iterated", "cutoff"])
def test_smoothers_and_the_fit_of_least_norm(smoother, rng):
    """What needs all eigenvalues."""

    def work(ranks, rows):
        how = {"method": "eigh", "distributed": ranks}
        other = sdgpu.fit(X[rows], Y[rows], KERNEL, LAMS, smoother=smoother, **how)
        least = sdgpu.fit(X[rows], Y[rows], KERNEL, 0.0, **how)
        return other.path(1.0, 0.3, 3).fitted, least.path(alphas=0.3, steps=2).fitted

    found = on_ranks(cuts(N, [10, 30], rng), work)
    one = sdgpu.fit(X, Y, KERNEL, LAMS, smoother=smoother).path(1.0, 0.3, 3).fitted
    close(np.concatenate([rank[0] for rank in found], axis=1), one)
    least = np.concatenate([rank[1] for rank in found], axis=1)
    close(least, sdgpu.fit(X, Y, KERNEL, 0.0).path(alphas=0.3, steps=2).fitted, 1e-6)


class Negative(sdgpu.Gaussian):
    """No kernel: -exp(-gamma r^2)."""

    def profile(self, tile, a_norms, b_norms):
        tile = super().profile(tile, a_norms, b_norms)
        tile *= -1.0
        return tile


def test_what_rank_0_finds_is_told_to_all(rng):
    def work(ranks, rows):
        how = {"method": "eigh", "distributed": ranks}
        with pytest.raises(MemoryError, match="rank 0: n = 40 rows need at least"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, memory="20kB", **how)
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, **how)
        with pytest.raises(ValueError, match="other targets of a fit with distributed="):
            fit.with_targets(Y)
        few = sdgpu.fit(X[rows][:2], Y[rows][:2], KERNEL, 1.0, **how)
        with pytest.raises(ValueError, match=r"rank 0: coverage=0.9 needs 9 training rows"):
            few.path(1.0).interval(NEW)
        with pytest.raises(ValueError, match="different lam, alphas and coverage"):
            fit.path(1.0).interval(NEW, 0.8 + 0.1 * ranks.rank)
        with pytest.raises(ValueError, match="rank 1: X_new has 2 features"):
            fit.path(1.0).interval(NEW[:, : 3 - ranks.rank])
        with pytest.raises(ValueError, match="lams=0 needs all eigenvalues: take method='eigh'"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 0.0, distributed=ranks)
        with pytest.raises(ValueError, match="smoother='cutoff' needs all eigenvalues"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, smoother="cutoff", distributed=ranks)
        return fit.info

    def negative(ranks, rows):
        how = {"method": "eigh", "distributed": ranks}
        sdgpu.fit(X[rows], Y[rows], Negative(0.2), 1.0, **how)

    with pytest.raises(ValueError, match=r"rank 0: .*positive semi-definite"):
        on_ranks(cuts(N, [10, 30], rng), negative)
    infos = on_ranks(cuts(N, [10, 30], rng), work)
    assert {info.method for info in infos} == {"eigh"}
    assert {info.k for info in infos} == {N}
