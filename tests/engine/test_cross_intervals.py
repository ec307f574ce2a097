"""CV+ of every step and method against fits without each fold, one by one, and the coverage that it gives."""

import pickle

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

import sdgpu
from sdgpu.backend.backends import PlainBackend, TorchBackend
from sdgpu.distill.jackknife_plus import interval_ranks, merged_ends
from sdgpu.engine.cross_intervals import fold_labels
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
    steps,
)

LAM = 1.0


def by_refits(w, intercept, kappa, labels, coverage, alphas=ALPHAS):
    """Ends (T, m, c) from a fit without each fold, all n numbers ordered."""
    low, high = [], []
    for fold in np.unique(labels):
        rest, out = np.where(labels == fold, 0.0, w), np.flatnonzero((labels == fold) & (w > 0))
        found = steps(kappa, X, Y, rest, LAM, alphas, intercept, np.concatenate([NEW, X[out]]))[0]
        for place, i in enumerate(out):
            error = np.abs(found[:, M + place : M + place + 1] - Y[i])
            low.append(found[:, :M] - error)
            high.append(found[:, :M] + error)
    n = len(low)
    low, high = np.sort(np.stack(low), axis=0), np.sort(np.stack(high), axis=0)
    return (
        low[int(np.floor((1 - coverage) * (n + 1) + 1e-9)) - 1],
        high[int(np.ceil(coverage * (n + 1) - 1e-9)) - 1],
    )


HOWS = {
    "eigh": (KERNEL, {"method": "eigh"}, 1e-8),
    "primal": (sdgpu.Polynomial(2, 0.3, 1.0), {"method": "primal"}, 1e-8),
    "lanczos": (KERNEL, {"method": "lanczos", "tol": 1e-11}, 1e-8),
    "tiled": (KERNEL, {"method": "subspace", "operator": "tiled", "tol": 1e-11}, 1e-8),
    "cg": (KERNEL, {"method": "cg", "tol": 1e-11}, 1e-7),
    "own": (sdgpu.Polynomial(2, 0.3, 1.0), {"features": sdgpu.Explicit()}, 1e-7),
    "nystrom": (KERNEL, {"features": sdgpu.Nystrom(landmarks=X)}, 1e-6),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("name", "intercept"), [("none", False), *CASES])
def test_every_step_of_every_method(name, intercept, how):
    (kernel, options, tol), w = HOWS[how], WEIGHTS[name]
    fit = sdgpu.fit(X, Y, kernel, [LAM], sample_weight=w, intercept=intercept, **options)
    w, labels = np.ones(N) if w is None else w, fold_labels(4, N, 7)
    for coverage in (0.5, 0.9):
        found = fit.path(LAM, ALPHAS, T).interval(NEW, coverage, folds=4, seed=7)
        low, high = by_refits(w, intercept, kernel_of(kernel), labels, coverage)
        close(found.lower, low, tol)
        close(found.upper, high, tol)
        assert found.coverage == coverage
    assert found.lower.shape == (T, M, C)
    assert (found.lower <= found.upper).all()


@pytest.mark.parametrize("how", ["eigh", "lanczos", "own"])
@pytest.mark.parametrize("intercept", [False, True])
def test_as_many_folds_as_rows_are_the_jackknife(how, intercept):
    kernel, options, tol = HOWS[how]
    exact = "primal" if how == "own" else "eigh"
    wanted = sdgpu.fit(X, Y, kernel, [LAM], method=exact, intercept=intercept)
    wanted = wanted.path(LAM, ALPHAS, T).interval(NEW, 0.8)
    fit = sdgpu.fit(X, Y, kernel, [LAM], intercept=intercept, **options)
    found = fit.path(LAM, ALPHAS, T).interval(NEW, 0.8, folds=N)
    close(found.lower, wanted.lower, tol)
    close(found.upper, wanted.upper, tol)


@pytest.mark.parametrize("how", ["eigh", "lanczos", "own"])
def test_folds_of_rows_without_weight(how):
    """Rows of weight 0 in a fold of their own: it has no say, and is no error."""
    kernel, options, tol = HOWS[how]
    w = WEIGHTS["some 0"]
    labels = np.where(w == 0, 9, np.arange(N) % 3)
    fit = sdgpu.fit(X, Y, kernel, [LAM], sample_weight=w, intercept=True, **options)
    found = fit.path(LAM, ALPHAS, T).interval(NEW, 0.8, folds=labels)
    low, high = by_refits(w, True, kernel_of(kernel), np.arange(N) % 3, 0.8)
    close(found.lower, low, tol)
    close(found.upper, high, tol)


def test_other_libraries_and_operators():
    strict = pytest.importorskip("array_api_strict")
    wanted = sdgpu.fit(X, Y, KERNEL, [LAM], intercept=True).path(LAM, ALPHAS, T)
    wanted = wanted.interval(NEW, 0.8, folds=5)
    for device in (PlainBackend(strict), TorchBackend("cpu")):
        fit = sdgpu.fit(X, Y, KERNEL, [LAM], intercept=True, device=device)
        close(fit.path(LAM, ALPHAS, T).interval(NEW, 0.8, folds=5).lower, wanted.lower, 1e-9)
    how = {"method": "lanczos", "tol": 1e-11, "operator": sdgpu.operators.TiledOperator}
    fit = sdgpu.fit(X, Y, KERNEL, [LAM], intercept=True, **how)
    close(fit.path(LAM, ALPHAS, T).interval(NEW, 0.8, folds=5).lower, wanted.lower, 1e-8)


def test_groups_are_left_out_together():
    names = np.array(["a", "b", "c", "d", "e"])[np.arange(N) % 5]
    path = sdgpu.fit(X, Y, KERNEL, [LAM]).path(LAM, ALPHAS, T)
    low, high = by_refits(np.ones(N), False, kernel_of(KERNEL), np.arange(N) % 5, 0.8)
    for labels in (names, list(names), np.arange(N) % 5):
        found = path.interval(NEW, 0.8, folds=labels)
        close(found.lower, low, 1e-8)
        close(found.upper, high, 1e-8)


def test_precomputed_kernels_flat_targets_and_schedules():
    K, cross = kernel_of(KERNEL)(X, X), kernel_of(KERNEL)(NEW, X)
    wanted = sdgpu.fit(X, Y, KERNEL, [LAM]).path(LAM, ALPHAS, T).interval(NEW, 0.8, folds=5)
    for method in ("eigh", "lanczos"):
        fit = sdgpu.fit(K, Y, sdgpu.Precomputed(), [LAM], method=method, tol=1e-11)
        close(fit.path(LAM, ALPHAS, T).interval(cross, 0.8, folds=5).upper, wanted.upper, 1e-8)
    alphas = np.stack([ALPHAS, 1 - ALPHAS], axis=1)
    for options in ({"method": "eigh"}, {"method": "lanczos", "tol": 1e-11}):
        both = (
            sdgpu.fit(X, Y, KERNEL, [LAM], **options)
            .path(LAM, alphas, T)
            .interval(NEW, 0.8, folds=5)
        )
        for c in range(C):
            flat = sdgpu.fit(X, Y[:, c], KERNEL, [LAM], **options).path(LAM, alphas[:, c], T)
            found = flat.interval(NEW, 0.8, folds=5)
            assert found.lower.shape == (T, M)
            close(both.lower[..., c], found.lower, 1e-8)


def test_torch_float32_no_rows_and_pickles():
    torch = pytest.importorskip("torch")
    for options in ({}, {"features": sdgpu.Nystrom(10)}, {"method": "lanczos"}):
        fit = sdgpu.fit(torch.asarray(X), torch.asarray(Y), KERNEL, [LAM], **options)
        found = fit.path(LAM).interval(torch.asarray(NEW), folds=5)
        assert isinstance(found.upper, torch.Tensor)
        wanted = sdgpu.fit(X, Y, KERNEL, [LAM], **options).path(LAM)
        close(found.upper.numpy(), wanted.interval(NEW, folds=5).upper, 1e-8)
        again = pickle.loads(pickle.dumps(wanted))
        close(again.interval(NEW, folds=5).upper, wanted.interval(NEW, folds=5).upper, 1e-12)
        assert wanted.interval(NEW[:0], folds=5).lower.shape == (2, 0, C)
        single = sdgpu.fit(X.astype("f4"), Y.astype("f4"), KERNEL, [LAM], **options).path(LAM)
        assert single.interval(NEW.astype("f4"), folds=5).lower.dtype == np.float32


def test_sources_of_rows_with_weights(tmp_path):
    """Blocks of a file are cut where they may; the folds are those of the arrays."""
    rng = np.random.default_rng(0)
    rows, w = rng.normal(size=(3000, 3)), rng.integers(0, 3, 3000).astype(float)
    y = np.sin(rows[:, 0]) + 0.1 * rng.normal(size=3000)
    features = sdgpu.Nystrom(landmarks=rows[:20])
    options = {"features": features, "intercept": True}
    wanted = sdgpu.fit(rows, y, KERNEL, [LAM], sample_weight=w, **options).path(LAM, 0.3, 2)
    wanted = wanted.interval(NEW, folds=3)
    np.savez(tmp_path / "rows.npz", X=rows, Y=y, weights=w)
    source = sdgpu.rows.open(tmp_path / "rows.npz")
    read = sdgpu.fit(source, kernel=KERNEL, lams=[LAM], **options).path(LAM, 0.3, 2)
    close(read.interval(NEW, folds=3).upper, wanted.upper, 1e-9)
    labels = fold_labels(3, 3000, 0)
    low, high = [], []
    for k in range(3):
        rest = np.where(labels == k, 0.0, w)
        path = sdgpu.fit(rows, y, KERNEL, [LAM], sample_weight=rest, **options).path(LAM, 0.3, 2)
        held = np.flatnonzero((labels == k) & (w > 0))
        error = abs(path.predict(rows[held]) - y[held])
        low.append(path.predict(NEW)[..., None] - error[:, None, :])
        high.append(path.predict(NEW)[..., None] + error[:, None, :])
    low, high = (np.sort(np.concatenate(parts, axis=-1), axis=-1) for parts in (low, high))
    ranks = interval_ranks(int((w > 0).sum()), 0.9)
    close(wanted.lower, low[..., ranks[0]], 1e-9)
    close(wanted.upper, high[..., ranks[1]], 1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_ends_are_order_statistics(seed):
    """By halving and by ordering; with ties, folds of one row and of none, numbers far apart."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, rng.integers(2, 6))
    sizes[0] = max(sizes[0], 10)
    values = rng.normal(size=(len(sizes), 5)) * 10.0 ** rng.integers(-6, 6)
    errors = [abs(rng.normal(size=size)) * 10.0 ** rng.integers(-6, 6) for size in sizes]
    if seed % 3 == 0:
        values, errors = np.round(values), [np.round(part) for part in errors]
    n = int(sizes.sum())
    for ranks in ((0, n - 1), interval_ranks(n, 0.5), (n // 3, n // 2)):
        low, high = merged_ends(values, errors, ranks)
        every = [
            np.sort(np.concatenate([v + sign * e for v, e in zip(column, errors, strict=True)]))
            for sign in (-1, 1)
            for column in values.T
        ]
        np.testing.assert_allclose(low, [part[ranks[0]] for part in every[:5]], rtol=1e-14)
        np.testing.assert_allclose(high, [part[ranks[1]] for part in every[5:]], rtol=1e-14)


# coverage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"method": "eigh"}, {"features": sdgpu.Nystrom(40)}])
def test_coverage_on_diabetes(options):
    """Of 25 random halves: on average what was asked for, less two standard errors."""
    rows, y = load_diabetes(return_X_y=True)
    inside = {0.8: [], 0.9: []}
    for seed in range(25):
        order = np.random.default_rng(seed).permutation(len(rows))
        train, test = order[:220], order[220:]
        fit = sdgpu.fit(
            rows[train], y[train], sdgpu.Gaussian(10.0), [5.0], intercept=True, **options
        )
        for coverage, shares in inside.items():
            ends = fit.path(5.0, 0.3, 2).interval(rows[test], coverage, folds=10)
            shares.append(np.mean((ends.lower[-1] <= y[test]) & (y[test] <= ends.upper[-1])))
    for coverage, shares in inside.items():
        error = np.std(shares) / np.sqrt(len(shares))
        assert coverage - 2 * error - 0.005 <= np.mean(shares) <= coverage + 0.04


def test_coverage_where_the_noise_has_heavy_tails():
    """200 draws of 60 rows: the promise 2 c - 1 - (2 / n)^1/2 holds, and c itself nearly."""
    shares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(160, 1))
        y = np.sin(2 * x[:, 0]) + 0.3 * rng.standard_t(2, size=160)
        path = sdgpu.fit(x[:60], y[:60], sdgpu.Gaussian(1.0), [1.0]).path(1.0, 0.5, 2)
        ends = path.interval(x[60:], 0.8, folds=6, seed=seed)
        shares.append(np.mean((ends.lower[-1] <= y[60:]) & (y[60:] <= ends.upper[-1])))
    error = np.std(shares) / np.sqrt(len(shares))
    assert 0.8 - 3 * error <= np.mean(shares) <= 0.87


# what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eigh", "lanczos", "nystrom"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coverage": 0.0}, "coverage=0.0 must be between 0 and 1"),
        ({"coverage": 1.0}, "coverage=1.0 must be"),
        ({"coverage": 0.99}, "coverage=0.99 needs 99 training rows, and there are 40"),
        ({"folds": 1}, "folds=1 must be at least 2"),
        ({"folds": 41}, "folds=41 for 40 rows: there are at most as many as rows"),
        ({"folds": np.zeros(N)}, "folds has the same label for all rows"),
        ({"folds": np.arange(3)}, "a number, or a label for each of 40 rows"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_refusals(how, options, words):
    kernel, how_, _ = HOWS[how]
    path = sdgpu.fit(X, Y, kernel, [LAM], **how_).path(LAM)
    with pytest.raises(ValueError, match=words):
        path.interval(NEW, **{"folds": 4, **options})


@pytest.mark.filterwarnings("ignore:inaccurate")
def test_a_fold_that_nothing_else_knows():
    path = sdgpu.fit(np.eye(12), np.arange(12.0), sdgpu.Linear(), [1e-16], method="eigh").path(
        1e-16
    )
    with pytest.raises(ValueError, match="fold 0 determines itself at lam"):
        path.interval(np.eye(12)[:2], 0.5, folds=3)


def test_rows_that_are_gone():
    moments = sdgpu.Moments(KERNEL, sdgpu.Nystrom(9), d=X.shape[1], c=C).add(X, Y)
    path = sdgpu.fit(moments, lams=[LAM]).path(LAM)
    with pytest.raises(ValueError, match="fits without folds need the rows"):
        path.interval(NEW, folds=4)
    with pytest.raises(ValueError, match="fit with method='eigh'"):
        path.interval(NEW)  # its k features are no rows
    refitted = sdgpu.refit_path(X, Y, KERNEL, lam=LAM, alphas=0.3, steps=2)
    with pytest.raises(ValueError, match="fits without folds need the rows"):
        refitted.interval(NEW, folds=4)
    many = sdgpu.RandomFourier(1000)
    wide = sdgpu.fit(X, Y, KERNEL, [LAM], features=many, memory="600MB").path(LAM)
    with pytest.raises(MemoryError, match="what 40 folds are fitted by needs"):
        wide.interval(NEW, folds=40)


def test_other_targets_are_the_new_ones():
    fit = sdgpu.fit(X, Y, KERNEL, [LAM], intercept=True, method="eigh")
    other = fit.with_targets(-2 * Y[:, 0]).path(LAM).interval(NEW, folds=5)
    wanted = sdgpu.fit(X, -2 * Y[:, 0], KERNEL, [LAM], intercept=True, method="eigh")
    close(other.upper, wanted.path(LAM).interval(NEW, folds=5).upper, 1e-10)
