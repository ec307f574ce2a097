"""CV+ and leave-one-out of features on several ranks: fits without each fold, and one process."""

import numpy as np
import pytest

import sdgpu
from sdgpu.engine.cross_intervals import fold_labels
from tests.engine.test_cross_intervals import LAM, by_refits
from tests.engine.test_weighted_rows import (
    ALPHAS,
    CASES,
    KERNEL,
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
)
from tests.problems import assert_near
from tests.ranks import cuts, on_ranks

SHARES = {"uneven": [9, 31], "one": [N], "empty": [17, 0, 23]}


def intervals(w, counts, folds, rng, **options):
    """Ends (T, m, c) from ranks; `folds` is a number, or labels of all rows."""
    parts = cuts(N, counts, rng)
    new_parts = cuts(M, len(parts), rng)

    def work(ranks, rows):
        own = None if w is None else w[rows]
        fit = sdgpu.fit(X[rows], Y[rows], lams=LAM, sample_weight=own, distributed=ranks, **options)
        labels = folds if isinstance(folds, int) else folds[rows]
        new = NEW[new_parts[ranks.rank]]
        found = fit.path(LAM, ALPHAS, T).interval(new, 0.5, folds=labels, seed=7)
        return found.lower, found.upper

    found = on_ranks(parts, work)
    return [np.concatenate([rank[end] for rank in found], axis=1) for end in (0, 1)]


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
@pytest.mark.parametrize(("name", "intercept"), [("none", False), CASES[1], CASES[3], CASES[5]])
def test_every_step(name, intercept, method, rng):
    w, counts = WEIGHTS[name], SHARES[rng.choice(list(SHARES))]
    how = {"kernel": KERNEL, "method": method, "tol": 1e-11, "dtype": "float64"}
    low, high = intervals(w, counts, 4, rng, intercept=intercept, **how)
    weights, labels = np.ones(N) if w is None else w, fold_labels(4, N, 7)
    wanted = by_refits(weights, intercept, kernel_of(KERNEL), labels, 0.5)
    close(low, wanted[0], 1e-7)
    close(high, wanted[1], 1e-7)


def test_labels_of_the_own_rows(rng):
    """Words too; a fold may be on one rank alone."""
    labels = np.array(["a", "b", "c", "d"])[np.sort(rng.integers(0, 4, N))]
    how = {"kernel": KERNEL, "method": "lanczos", "tol": 1e-11, "dtype": "float64"}
    low, high = intervals(None, [10, 30], labels, rng, **how)
    wanted = by_refits(np.ones(N), False, kernel_of(KERNEL), labels, 0.5)
    close(low, wanted[0], 1e-7)
    close(high, wanted[1], 1e-7)


@pytest.mark.parametrize("counts", SHARES.values())
@pytest.mark.parametrize(("name", "intercept"), [("none", False), *CASES[1:5]])
@pytest.mark.filterwarnings("ignore:the joint optimum")
def test_features(name, intercept, counts, rng):
    """Intervals and leave-one-out: the sums of ranks without a fold, the own rows read once more."""
    w, parts = WEIGHTS[name], cuts(N, counts, rng)
    options = {"kernel": KERNEL, "intercept": intercept, "features": sdgpu.Nystrom(12), "lams": LAM}
    asked = {"alphas": [0.0, 0.4, 1.0], "steps": 3, "metrics": ["mae", "max_error"]}

    def ask(fit):
        found = {"loo": fit.loo(LAM, ALPHAS, T), "sweep": fit.sweep(**asked).dataset}
        found["joint"] = fit.joint_alphas(lam=LAM, steps=3).nested_mse
        return found

    def work(ranks, rows):
        own = None if w is None else w[rows]
        fit = sdgpu.fit(X[rows], Y[rows], sample_weight=own, distributed=ranks, **options)
        return ask(fit)

    one = sdgpu.fit(X, Y, sample_weight=w, **options)
    wanted, found = ask(one), on_ranks(parts, work)
    assert_near(np.concatenate([rank["loo"] for rank in found], axis=1), wanted["loo"], 1e-8)
    for rank in found:
        for variable in ("mse", "limit_mse", "star_mse", "mae", "max_error"):
            assert_near(rank["sweep"][variable].values, wanted["sweep"][variable].values, 1e-8)
        np.testing.assert_allclose(rank["joint"], wanted["joint"], rtol=1e-6)
        assert rank["sweep"].attrs["validation_rows"] == wanted["sweep"].attrs["validation_rows"]
    how = {name: value for name, value in options.items() if name != "lams"}
    interval = one.path(LAM, ALPHAS, T).interval(NEW, 0.5, folds=4, seed=7)
    low, high = intervals(w, counts, 4, rng, **how)
    close(low, interval.lower, 1e-7)
    close(high, interval.upper, 1e-7)


def test_validation_rows_of_a_source_are_refused(rng):
    """Each rank would judge by its own alone."""

    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, LAM, features=sdgpu.Nystrom(5), distributed=ranks)
        with pytest.raises(ValueError, match="X_val as a source of a fit with distributed="):
            fit.sweep(sdgpu.rows.as_source(X[rows], Y[rows]))

    on_ranks(cuts(N, [10, 30], rng), work)


def test_what_is_refused(rng):
    def work(ranks, rows):
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, LAM, distributed=ranks)
        path = fit.path(LAM, 0.5, 2)
        solved = sdgpu.fit(X[rows], Y[rows], KERNEL, LAM, method="cg", distributed=ranks)
        for ask, text in [
            (lambda: solved.path(LAM).interval(NEW), r"lam > 0, or pass folds=10"),
            (lambda: path.interval(NEW, folds=3 + ranks.rank), "different folds"),
            (lambda: path.interval(NEW, folds=3, seed=ranks.rank), "different seed"),
            (lambda: path.interval(NEW, 0.5 + 0.1 * ranks.rank, folds=3), "different lam, alphas"),
            (lambda: path.interval(NEW[:, : 3 - ranks.rank], folds=3), "rank 1: X_new has 2"),
            (lambda: path.interval(NEW, folds=np.zeros(3)), "folds has shape"),
        ]:
            with pytest.raises(ValueError, match=text):
                ask()
        return path.interval(NEW[: 2 * ranks.rank], folds=3).lower.shape

    assert on_ranks(cuts(N, [10, 30], rng), work) == [(2, 0, C), (2, 2, C)]
