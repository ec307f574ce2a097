"""Fits of rows on several ranks equal those of one process."""

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.ranks import OneRank
from sdgpu.backend.thread_ranks import run_threads
from sdgpu.engine.scaling_parts import Layout
from tests.problems import assert_near, refits
from tests.ranks import LIMIT, cuts, on_ranks

KERNEL = sdgpu.Gaussian(0.5)


def problem(n, c, rng, d=3):
    X = rng.standard_normal((n, d))
    Y = np.sin(X @ rng.standard_normal((d, c))) + 0.1 * rng.standard_normal((n, c))
    return X, Y


def together(found, i, axis=0):
    return np.concatenate([one[i] for one in found], axis=axis)


CASES = [
    (1, [1], 1, "lanczos"),
    (1, [0, 1, 0], 2, "subspace"),
    (2, [0, 2], 1, "subspace"),
    (6, 3, 2, "lanczos"),
    (60, [13, 47], 1, "lanczos"),
    (200, 3, 2, "subspace"),
    (320, [100, 0, 220], 3, "subspace"),
    (320, 4, 1, "lanczos"),
]


@pytest.mark.parametrize(("n", "counts", "c", "method"), CASES)
@pytest.mark.filterwarnings("ignore:limited by rounding")
def test_everything_equals_one_process(n, counts, c, method, rng):
    """Paths, predictions, limits, sweeps and generalised cross-validation, over nine decades of lam."""
    X, Y = problem(n, c, rng)
    new, Y_new = problem(7, c, rng)
    lams = np.geomspace(1e-7, 1e2, 6) * n
    alphas = rng.uniform(-0.5, 1.5, 3)
    how = {"kernel": KERNEL, "lams": lams, "method": method, "tol": 1e-10, "dtype": "float64"}
    one = sdgpu.fit(X, Y, **how)
    parts = cuts(n, counts, rng)
    new_parts = cuts(7, len(parts), rng)
    lam = float(rng.choice(lams))

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], distributed=ranks, **how)
        mine = new_parts[ranks.rank]
        path, limit = fitted.path(lam, alphas, 4), fitted.limit(lam, 0.4)
        return (
            path.fitted,
            path.dual,
            path.predict(new[mine]),
            limit.predict(new[mine]),
            fitted.sweep(new[mine], Y_new[mine], steps=4).dataset,
            fitted.gcv_sweep(steps=3).dataset,
            path.predictor().predict(new),
            fitted.info,
            fitted.spectrum.basis,
        )

    found = on_ranks(parts, work)
    path = one.path(lam, alphas, 4)
    assert_near(together(found, 0, 1), path.fitted, 1e-9)
    assert_near(together(found, 2, 1), path.predict(new), 1e-9)
    assert_near(together(found, 3), one.limit(lam, 0.4).predict(new), 1e-9)
    scale = np.abs(path.dual).max() * max(
        1.0, n / lam
    )  # what rounding of K leaves of dual coefficients
    np.testing.assert_allclose(together(found, 1, 1), path.dual, rtol=0, atol=1e-10 * scale)
    sweep = one.sweep(new, Y_new, steps=4).dataset
    for rank in found:
        for name in ("mse", "limit_mse", "train_mse", "ridge_mse"):
            np.testing.assert_allclose(rank[4][name], sweep[name], rtol=1e-7, atol=1e-12)
        assert_near(rank[6], path.predict(new)[-1], 1e-9)
        assert rank[4].attrs["validation_rows"] == 7
        assert rank[7].n == n
        assert rank[7].status.startswith(("converged", "limited by rounding"))
        for name, values in found[0][4].items():
            np.testing.assert_array_equal(rank[4][name], values)  # the same on every rank
        for name, values in found[0][5].items():
            np.testing.assert_array_equal(rank[5][name], values)
    assert together(found, 8).shape[0] == n


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
def test_the_usual_tolerance(method, rng):
    """Without a sketch to 1e-10. One in float32 has other last digits: the certificates hold for both."""
    X, Y = problem(400, 2, rng)
    how = {"kernel": KERNEL, "lams": [0.1, 1.0], "method": method, "dtype": "float64"}
    one = sdgpu.fit(X, Y, **how)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], distributed=ranks, **how)
        return fitted.path(0.1, 0.3, 5).fitted, fitted.info

    found = on_ranks(cuts(400, [100, 300], rng), work)
    wanted, info = one.path(0.1, 0.3, 5).fitted, found[0][1]
    errors = info.error_estimate + one.info.error_estimate
    assert_near(together(found, 0, 1), wanted, 1e-10 if method == "lanczos" else errors)
    assert abs(info.passes - one.info.passes) <= 1


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_other_precisions_against_refits(dtype, rng):
    X, Y = problem(150, 2, rng)
    how = {"kernel": KERNEL, "lams": [1.0], "dtype": dtype, "method": "subspace", "tol": 1e-4}
    fitted, _ = refits(KERNEL(X, X), Y, 1.0, [0.2, 0.2], 3)

    def work(ranks, rows):
        made = sdgpu.fit(X[rows], Y[rows], distributed=ranks, **how)
        return made.path(1.0, 0.2, 3).fitted, made.info

    found = on_ranks(cuts(150, 3, rng), work)
    assert_near(together(found, 0, 1), fitted, 1e-4)
    assert all(info.precision == dtype for _, info in found)
    assert len({info.error_estimate for _, info in found}) == 1


def test_rows_that_go_round_the_ring(rng, monkeypatch):
    """Where all rows of X would take too much of the memory."""
    ring = Layout("ring", 0.0, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr("sdgpu.engine.rank_fitting.layout_of_fit", lambda *_: ring)
    X, Y = problem(120, 1, rng)
    how = {"kernel": KERNEL, "lams": [0.1], "tol": 1e-9, "dtype": "float64"}
    wanted = sdgpu.fit(X, Y, method="eigh", kernel=KERNEL, lams=[0.1]).path(0.1, 0.5, 3)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], distributed=ranks, **how)
        return fitted.path(0.1, 0.5, 3).fitted, fitted._model.operator.travel

    found = on_ranks(cuts(120, 4, rng), work)
    assert {travel for _, travel in found} == {"ring"}
    assert_near(together(found, 0, 1), wanted.fitted, 1e-8)


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
@pytest.mark.parametrize("counts", [4, [20, 0, 41, 30, 19, 10]])
def test_copies_of_rows_by_every_solver(method, counts, rng, monkeypatch):
    """The 1.5D layout: the numbers of one process, of the solvers' own code; weights and an intercept too."""
    spread = Layout("1.5D", 0.0, 0.0, 0.0, 0.0, 0.0, copies=2)
    monkeypatch.setattr("sdgpu.engine.rank_fitting.layout_of_fit", lambda *_: spread)
    X, Y = problem(120, 2, rng)
    w, new = rng.uniform(0.5, 2.0, 120), rng.standard_normal((8, X.shape[1]))
    how = {"kernel": KERNEL, "lams": [0.1], "tol": 1e-11, "dtype": "float64", "intercept": True}
    wanted = sdgpu.fit(X, Y, method="eigh", sample_weight=w, **how).path(0.1, 0.5, 3)
    parts = cuts(120, counts, rng)
    new_parts = cuts(8, len(parts), rng)

    def work(ranks, rows):
        again = {"method": method, "distributed": ranks, "sample_weight": w[rows]}
        path = sdgpu.fit(X[rows], Y[rows], **again, **how).path(0.1, 0.5, 3)
        return path.fitted, path.predict(new[new_parts[ranks.rank]]), path._model.operator

    found = on_ranks(parts, work)
    assert {operator.operator.travel for _, _, operator in found} == {"copies"}
    assert_near(together(found, 0, 1), wanted.fitted, 1e-10)
    assert_near(together(found, 1, 1), wanted.predict(new), 1e-10)


@pytest.mark.parametrize(
    ("n", "counts", "c"), [(1, [0, 1], 1), (60, 3, 2), (250, [100, 0, 150], 1)]
)
@pytest.mark.filterwarnings("ignore:limited by rounding", "ignore:lam =")
def test_conjugate_gradients(n, counts, c, rng):
    X, Y = problem(n, c, rng)
    new, Y_new = problem(9, c, rng)
    lams = np.geomspace(1e-4, 10, 3) * n
    how = {"kernel": KERNEL, "lams": lams, "method": "cg", "tol": 1e-10, "dtype": "float64"}
    one, lam = sdgpu.fit(X, Y, **{**how, "method": "eigh"}), float(lams[0])
    alphas = rng.uniform(0, 1, (3, c)) if c > 1 else rng.uniform(0, 1, 3)
    parts = cuts(n, counts, rng)
    new_parts = cuts(9, len(parts), rng)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], distributed=ranks, **how)
        mine = new_parts[ranks.rank]
        path = fitted.path(lam, alphas, 4)
        sweep = fitted.sweep(new[mine], Y_new[mine], steps=3, alphas=[0.0, 0.3, 1.0]).dataset
        limits = [fitted.limit(lam, alpha).predict(new[mine]) for alpha in (0.5, 0.0)]
        return path.fitted, path.predict(new[mine]), *limits, sweep, fitted.path(lam, 0.3, 3).fitted

    found = on_ranks(parts, work)
    path = one.path(lam, alphas, 4)
    assert_near(together(found, 0, 1), path.fitted, 1e-8)
    assert_near(together(found, 1, 1), path.predict(new), 1e-8)
    assert_near(together(found, 2), one.limit(lam, 0.5).predict(new), 1e-8)
    assert not together(found, 3).any()
    assert_near(together(found, 5, 1), one.path(lam, 0.3, 3).fitted, 1e-8)
    wanted = one.sweep(new, Y_new, steps=3, alphas=[0.0, 0.3, 1.0]).dataset
    for rank in found:
        for name in ("mse", "limit_mse", "train_mse"):
            np.testing.assert_allclose(rank[4][name], wanted[name], rtol=1e-6, atol=1e-12)


def test_one_rank_is_a_plain_fit(rng):
    X, Y = problem(80, 1, rng)
    how = {"kernel": KERNEL, "lams": [0.1], "method": "subspace", "dtype": "float64"}
    wanted = sdgpu.fit(X, Y, **how).path(0.1, 0.5, 3)
    found = sdgpu.fit(X, Y, distributed=True, **how).path(0.1, 0.5, 3)
    assert_near(found.fitted, wanted.fitted, 1e-12)
    assert_near(found.predict(X[:5]), wanted.predict(X[:5]), 1e-12)
    assert sdgpu.fit(X[:, 0:1], Y[:, 0], "rbf", 0.1, distributed=OneRank()).path().fitted.shape == (
        2,
        80,
    )


def test_metrics_and_choices(rng):
    X, Y = problem(90, 2, rng)
    new, Y_new = problem(31, 2, rng)
    how = {"kernel": KERNEL, "lams": [0.01, 0.1], "tol": 1e-9, "dtype": "float64"}
    metrics = ["mae", "rmse", "r2", "max_error"]
    one = sdgpu.fit(X, Y, method="subspace", **how)
    asked = {"steps": 3, "metrics": metrics, "standard_errors": True, "per_output": True}
    wanted = one.sweep(new, Y_new, **asked)
    parts, new_parts = cuts(90, 3, rng), cuts(31, [30, 0, 1], rng)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], distributed=ranks, method="subspace", **how)
        mine = new_parts[ranks.rank]
        sweep = fitted.sweep(new[mine], Y_new[mine], **asked)
        best = sweep.best("mae")
        weights = fitted.joint_alphas(new[mine], Y_new[mine], 0.1, 3, folds=5)
        greedy = fitted.optimal_alphas(new[mine], Y_new[mine], 0.1, 3)
        return sweep.dataset, fitted.predictor(best).predict(new), weights, greedy

    chosen = one.predictor(wanted.best("mae")).predict(new)
    joint = one.joint_alphas(new, Y_new, 0.1, 3, folds=5)
    for dataset, predicted, weights, greedy in on_ranks(parts, work):
        for name in (*metrics, "mse_per_output", "mae_se"):
            np.testing.assert_allclose(dataset[name], wanted.dataset[name], rtol=1e-7)
        assert_near(predicted, chosen, 1e-8)
        np.testing.assert_allclose(weights.nested_mse, joint.nested_mse, rtol=1e-6)
        assert_near(greedy.alphas, one.optimal_alphas(new, Y_new, 0.1, 3).alphas, 1e-5)


def test_predictors_go_their_own_way(tmp_path, rng):
    X, Y = problem(40, 1, rng)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, distributed=ranks)
        predictor = fitted.path(0.1, 0.5, 3).predictor()
        if ranks.rank == 0:  # alone: the others do not call
            predictor.save(tmp_path / "f.safetensors")
            return predictor.predict(X), fitted.limit(0.1, 0.5), None
        return None, fitted.limit(0.1, 0.5), predictor.predict(X[:3])

    found = on_ranks(cuts(40, 2, rng), work)
    opened = sdgpu.open_predictor(tmp_path / "f.safetensors")
    assert_near(opened.predict(X), found[0][0], 1e-12)
    assert_near(found[1][2], found[0][0][:3], 1e-13)


DIFFERENT = [
    ({"lams": lambda r: [0.1 * (r + 1)]}, "different lams"),
    ({"kernel": lambda r: sdgpu.Gaussian(0.5 + r)}, "different kernel"),
    ({"tol": lambda r: 10.0 ** (-6 - r)}, "different tol"),
    ({"steps": lambda r: 10 + r}, "different steps"),
    ({"seed": lambda r: r}, "different seed"),
    ({"method": lambda r: ["lanczos", "subspace"][r]}, "different method"),
    ({"dtype": lambda r: ["float32", "float64"][r]}, "different dtype"),
    ({"memory": lambda r: f"{r + 1}GiB"}, "different memory"),
]


@pytest.mark.parametrize(("options", "text"), DIFFERENT)
def test_ranks_that_disagree(options, text, rng):
    X, Y = problem(20, 1, rng)
    base = {"kernel": KERNEL, "lams": [0.1]}

    def work(ranks, rows):
        own = {**base, **{name: make(ranks.rank) for name, make in options.items()}}
        with pytest.raises(ValueError, match=text) as caught:
            sdgpu.fit(X[rows], Y[rows], distributed=ranks, **own)
        return str(caught.value)

    told = on_ranks(cuts(20, [10, 10], rng), work)
    assert told[0] == told[1]
    assert "rank 0" in told[0]
    assert "rank 1" in told[0]


def _nan(X, Y, rank):
    X = X.copy()
    X[0, 0] = np.nan if rank else X[0, 0]
    return X, Y


BAD_ROWS = [
    (_nan, "rank 1: X has 1 entries that are NaN"),
    (lambda X, Y, r: (X[:, : 3 - r], Y), "different numbers of features"),
    (lambda X, Y, r: (X, np.hstack([Y] * (r + 1))), "different numbers of outputs"),
    (lambda X, Y, r: (X.astype([np.float64, np.float32][r]), Y), "different dtypes"),
    (lambda X, Y, r: (X, Y if r else Y[:, 0]), "different axes of Y"),
    (lambda X, Y, r: (X, Y[: len(Y) - r]), "rank 1: Y has 9 rows, but its inputs have 10"),
    (lambda X, Y, r: (X[:0], Y[:0]), "no rows on any rank"),
    (lambda X, Y, r: (X + 1j if r else X, Y), "rank 1: X is complex"),
]


@pytest.mark.parametrize(("change", "text"), BAD_ROWS)
def test_rows_that_do_not_go_together(change, text, rng):
    X, Y = problem(20, 1, rng)

    def work(ranks, rows):
        with pytest.raises((ValueError, TypeError), match=text):
            sdgpu.fit(*change(X[rows], Y[rows], ranks.rank), KERNEL, 0.1, distributed=ranks)

    on_ranks(cuts(20, [10, 10], rng), work)


NOT_THERE = [
    ({"method": "primal"}, "method='primal' is for kernels with fewer"),
    ({"method": "qr"}, "method='qr' is not for rows of several ranks"),
    ({"operator": "keops"}, "operator='keops' is not for rows"),
    ({"kernel": "precomputed"}, "has no rows to spread"),
    ({"lams": 0.0}, "lams=0 needs all eigenvalues"),
    ({"probes": 12}, "probes=12 must be a multiple"),
    ({"memory": "1kB"}, "memory"),
]


@pytest.mark.parametrize(("options", "text"), NOT_THERE)
def test_what_ranks_cannot_do_is_refused_by_name(options, text, rng):
    X, Y = problem(20, 1, rng)

    def work(ranks, rows):
        with pytest.raises((ValueError, MemoryError), match=text):
            sdgpu.fit(
                X[rows], Y[rows], distributed=ranks, **{"kernel": KERNEL, "lams": 0.1, **options}
            )

    on_ranks(cuts(20, [10, 10], rng), work)
    with pytest.raises(TypeError, match="distributed='gloo' must be True"):
        sdgpu.fit(X, Y, KERNEL, 0.1, distributed="gloo")


FEATURES = [
    sdgpu.Nystrom(12),
    sdgpu.Nystrom(9, landmarks="uniform"),
    sdgpu.RandomFourier(20),
    sdgpu.Explicit(),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("n", "counts", "which"),
    [(5, [0, 5], 2), (60, 3, 0), (60, [20, 40], 1), (60, [0, 60, 0], 2), (50, 4, 3)],
)
def test_features(n, counts, which, dtype, rng):
    """The same landmarks, the same sums: the model is on every rank, and predicts there alone."""
    X, Y = problem(n, 2, rng)
    new, Y_new = problem(11, 2, rng)
    features, weights = FEATURES[which], rng.uniform(0.5, 2, n)
    kernel = sdgpu.Polynomial(2) if which == 3 else KERNEL
    how = {"kernel": kernel, "lams": [0.1, 1.0], "features": features, "dtype": dtype}
    how |= {"intercept": bool(rng.integers(2))}
    one = sdgpu.fit(X, Y, sample_weight=weights, **how)
    parts = cuts(n, counts, rng)
    new_parts = cuts(11, len(parts), rng)

    def work(ranks, rows):
        own = {"sample_weight": weights[rows], "distributed": ranks}
        fitted = sdgpu.fit(X[rows], Y[rows], **own, **how)
        predicted = fitted.path(0.1, 0.3, 3).predict(new) if ranks.rank else None  # not by all
        mine = new_parts[ranks.rank]
        sweep = fitted.sweep(new[mine], Y_new[mine], steps=3, metrics=["mae"]).dataset
        return predicted, sweep, fitted.gcv_sweep(steps=2).dataset, fitted.info

    found = on_ranks(parts, work)
    rtol = 1e-9 if dtype == "float64" else 1e-4
    wanted = one.sweep(new, Y_new, steps=3, metrics=["mae"]).dataset
    for rank, (predicted, sweep, gcv, info) in enumerate(found):
        if rank:
            assert_near(predicted, one.path(0.1, 0.3, 3).predict(new), rtol)
        for name in ("mse", "mae", "train_mse"):
            np.testing.assert_allclose(sweep[name], wanted[name], rtol=10 * rtol, atol=1e-7 * rtol)
        np.testing.assert_array_equal(gcv["gcv"], found[0][2]["gcv"])
        assert (info.n, info.method) == (n, "features")


def test_landmarks_are_those_of_one_process(rng, monkeypatch):
    """Candidates too, where there are more rows than candidates and blocks begin anywhere."""
    monkeypatch.setattr("sdgpu.engine.rank_features.MOST_ROWS", 16)
    monkeypatch.setattr("sdgpu.engine.streaming.MOST_ROWS", 16)
    X, Y = problem(100, 1, rng)
    features = sdgpu.Nystrom(5, landmarks="uniform")
    monkeypatch.setattr(type(features), "sample_rows", property(lambda self: 20))
    one = sdgpu.fit(X, Y, KERNEL, 0.1, features=features, seed=3)

    def work(ranks, rows):
        options = {"features": features, "seed": 3, "distributed": ranks}
        return sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, **options)._model.operator.map.landmarks

    for landmarks in on_ranks(cuts(100, [37, 0, 63], rng), work):
        np.testing.assert_array_equal(landmarks, one._model.operator.map.landmarks)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"features": lambda r: sdgpu.Nystrom(3 + r)}, "different features"),
        ({"intercept": lambda r: bool(r)}, "different intercept"),
        ({"sample_weight": lambda r: np.ones(10) if r else None}, "different sample_weight"),
        ({"method": lambda r: "cg"}, "method: not for features="),
        ({"lams": lambda r: 0.0}, "lams=0, the fit of least norm"),
        ({"checkpoint": lambda r: f"{r}.safetensors"}, "different checkpoint"),
        ({"checkpoint": lambda r: "sums.txt"}, r"must end in \.safetensors"),
        ({"sample_weight": lambda r: -np.ones(10 - r)}, "rank"),
    ],
)
def test_features_that_ranks_do_not_share(options, text, rng):
    X, Y = problem(20, 1, rng)
    base = {"kernel": KERNEL, "lams": 0.1, "features": sdgpu.Nystrom(4)}

    def work(ranks, rows):
        own = {**base, **{name: make(ranks.rank) for name, make in options.items()}}
        with pytest.raises(ValueError, match=text):
            sdgpu.fit(X[rows], Y[rows], distributed=ranks, **own)

    on_ranks(cuts(20, [10, 10], rng), work)


def test_questions_without_an_answer_are_refused_by_name(rng):
    X, Y = problem(200, 1, rng)

    def work(ranks, rows):
        fitted = sdgpu.fit(X[rows], Y[rows], KERNEL, 1.0, distributed=ranks)
        path = fitted.path(1.0, 0.5, 2)
        for ask, text in [
            (lambda: path.interval(X[:2]), "intervals need all eigenvectors"),
            (lambda: path.gradient(X[:2]), "derivatives of predictions"),
            (lambda: path.variance(X[:2]), "method='eigh'"),
            (lambda: fitted.with_targets(Y), "other targets of a fit with distributed="),
            (lambda: fitted.sweep(X, Y, metrics=["auc"]), "auc"),
            (lambda: fitted.sweep(X[:0], Y[:0]), "no rows on any rank"),
            (lambda: fitted.sweep(X, Y, steps=2 + ranks.rank), "different steps"),
            (lambda: path.predict(X[:, : 3 - ranks.rank]), "rank 1: X_new has 2 features"),
        ]:
            with pytest.raises(ValueError, match=text):
                ask()

    on_ranks(cuts(200, [90, 110], rng), work)


def test_the_plan_is_that_of_rank_0(rng, monkeypatch):
    X, Y = problem(20, 1, rng)
    plan = sdgpu.plan(20, 3, 1, [0.1], method="lanczos", operator="tiled")

    def work(ranks, rows):
        given = sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, distributed=ranks, plan=plan)
        wrong = sdgpu.plan(21, 3, 1, [0.1], method="lanczos")
        with pytest.raises(ValueError, match="plan= was made for n = 21"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, distributed=ranks, plan=wrong)
        other = sdgpu.plan(20, 3, 1, [0.1], method="lanczos", operator="keops")
        with pytest.raises(ValueError, match="plan= says lanczos with keops"):
            sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, distributed=ranks, plan=other)
        exact = sdgpu.plan(20, 3, 1, [0.1], method="eigh")
        fit = sdgpu.fit(X[rows], Y[rows], KERNEL, 0.1, distributed=ranks, plan=exact)
        assert fit.info.method == "eigh"
        return given.info

    for info in on_ranks(cuts(20, 2, rng), work):
        assert (info.method, info.operator, info.n) == ("lanczos", "tiled", 20)


def test_ranks_that_all_bring_the_same_rows_are_told(rng):
    """The first mistake of everyone: all of X on each rank."""
    X, Y = problem(20, 1, rng)

    def work(ranks, rows):
        return sdgpu.fit(X, Y, KERNEL, 0.1, distributed=ranks).info.n

    with pytest.warns(UserWarning, match="all 2 ranks have brought the same 20 rows"):
        assert on_ranks(cuts(40, [20, 20], rng), work) == [40, 40]


def test_a_failure_on_one_rank_ends_all(rng):
    X, Y = problem(20, 1, rng)

    class Broken(sdgpu.Gaussian):
        def profile(self, tile, a_norms, b_norms):
            raise ZeroDivisionError("of this kernel")

    def work(ranks):
        rows = slice(10 * ranks.rank, 10 * ranks.rank + 10)
        sdgpu.fit(X[rows], Y[rows], Broken(0.5), 0.1, distributed=ranks)

    with pytest.raises(ZeroDivisionError):
        run_threads(work, 2, timeout=LIMIT)
