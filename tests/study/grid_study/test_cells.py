"""Cells against refits: every loss of the grid, every choice, with noise, features and precisions."""

import numpy as np
import pytest

import sdgpu
from sdgpu.engine.cross_intervals import fold_labels
from sdgpu.study import read_study
from sdgpu.study.grid_study import cell_data
from sdgpu.study.grid_study.cell_fit import fit_cells
from sdgpu.study.grid_study.cells import decompositions
from sdgpu.study.real_data import large_data
from sdgpu.study.real_data.datasets import load, split
from sdgpu.study.real_data.globe import LandMask
from tests.problems import assert_near

LAMS, ALPHAS, STEPS = (0.5, 5.0), (0.0, 0.3, 1.0), 3


def tables(**more):
    return {
        "name": "test",
        "seeds": [3],
        "data": {"source": "diabetes", "rows": 60},
        "kernel": {"name": "gaussian", "gamma": 0.05},
        "grid": {"lams": list(LAMS), "alphas": list(ALPHAS), "steps": STEPS},
        **more,
    }


def results(**more):
    jobs = decompositions(read_study(tables(**more)))
    return [result for job in jobs for result in fit_cells(job)]


def refit(K, Y, lam, alphas):
    """Predictions of every step are k' of these duals: explicit solves."""
    targets, duals = Y, []
    for step in range(len(alphas) + 1):
        duals.append(np.linalg.solve(K + lam * np.eye(len(K)), targets))
        if step < len(alphas):
            targets = alphas[step] * Y + (1 - alphas[step]) * (K @ duals[-1])
    return duals


def kernel(A, B):
    return np.exp(-0.05 * ((A[:, None] - B) ** 2).sum(-1))


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_losses_and_choices_are_those_of_refits(noise):
    rules = [
        "ridge",
        "fixed",
        "star",
        "gcv",
        "limit",
        "loo",
        "ridge_loo",
        "advice",
        "oracle",
        "mae",
    ]
    choose = {"rules": rules, "metrics": ["mae"]}
    (found,) = results(noise={"levels": [noise]}, choose=choose)
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    Y, Y_val = (
        values + noise * np.random.default_rng([3, draw]).standard_normal(values.shape)
        for draw, values in ((1, parts.Y_train), (2, parts.Y_val))
    )
    K, K_val, K_test = (
        kernel(rows, parts.X_train) for rows in (parts.X_train, parts.X_val, parts.X_test)
    )
    mse = np.empty((2, 3, STEPS))
    for i, lam in enumerate(LAMS):
        for j, alpha in enumerate(ALPHAS):
            duals = refit(K, Y, lam, [alpha] * (STEPS - 1))
            mse[i, j] = [np.mean((K_val @ dual - Y_val) ** 2) for dual in duals]
    assert_near(found.arrays["mse"], mse, rtol=1e-9)
    assert found.record["n"] == 36
    chosen = found.record["chosen"]
    assert list(chosen) == rules
    i, j, step = np.unravel_index(mse.argmin(), mse.shape)
    fixed = chosen["fixed"]
    assert (fixed["lam"], fixed["step"]) == (LAMS[i], step + 1)
    assert fixed["value"] == pytest.approx(mse.min(), rel=1e-9)
    for choice in chosen.values():
        assert choice["note"] == ""
        if choice["step"] == np.inf:  # the limit: ridge with lam / alpha
            lam = choice["lam"] / choice["alpha"][0]
            dual = np.linalg.solve(K + lam * np.eye(len(K)), Y)
        else:
            weights, last = choice["alpha"], int(choice["step"])
            weights = weights * (last - 1) if len(weights) == 1 else weights
            dual = refit(K, Y, choice["lam"], weights[: last - 1])[-1]
        errors = K_test @ dual - parts.Y_test  # clean
        assert choice["test_mse"] == pytest.approx(np.mean(errors**2), rel=1e-8)
        assert choice["test_mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-8)
    assert chosen["oracle"]["test_mse"] == min(
        chosen[rule]["test_mse"] for rule in ("oracle", "fixed", "loo", "ridge", "gcv")
    )


def test_levels_of_noise_share_a_decomposition_and_have_the_numbers_of_their_own(monkeypatch):
    calls = []
    fit = sdgpu.fit
    monkeypatch.setattr(sdgpu, "fit", lambda *args, **how: calls.append(1) or fit(*args, **how))
    together = results(noise={"levels": [0.0, 0.5, 1.0]})
    assert len(calls) == 1
    alone = [results(noise={"levels": level})[0] for level in (0.0, 0.5, 1.0)]
    for one, other in zip(together, alone, strict=True):
        assert one.record["key"] == other.record["key"]
        for name, values in one.arrays.items():
            # weights of Algorithm 1 divide small differences
            rtol = 1e-6 if "star" in name or "clipped" in name or "joint" in name else 1e-10
            np.testing.assert_allclose(values, other.arrays[name], rtol=rtol)
    calls.clear()
    grown = results(noise={"levels": [0.0, 0.5]}, method={"name": "lanczos"})
    assert len(calls) == 2  # a basis that grew from targets serves them alone
    for one, other in zip(grown, together, strict=False):
        assert_near(one.arrays["mse"], other.arrays["mse"], rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        (
            {"name": "gaussian", "width_over_median": 2.0},
            lambda m: sdgpu.Gaussian(0.5 / (2 * m) ** 2),
        ),
        ({"name": "laplacian", "width_over_median": 2.0}, lambda m: sdgpu.Laplacian(0.5 / m)),
        (
            {"name": "matern", "nu": 0.5, "width_over_median": 2.0},
            lambda m: sdgpu.Matern(0.5, lengthscale=2 * m),
        ),
        (
            {"name": "polynomial", "degree": 2, "coef0": 0.5},
            lambda m: sdgpu.Polynomial(2, coef0=0.5),
        ),
        (
            {"name": "matern", "nu": 3.5, "lengthscale": 2.0},
            lambda m: sdgpu.Matern(3.5, lengthscale=2.0),
        ),
        (
            {"name": "rationalquadratic", "power": 0.5, "width_over_median": 2.0},
            lambda m: sdgpu.RationalQuadratic(0.5, lengthscale=2 * m),
        ),
        (
            {"name": "periodic", "period": 3.0, "lengthscale": 0.7},
            lambda m: sdgpu.Periodic(3.0, 0.7),
        ),
        (
            {"name": "wendland", "order": 2, "width_over_median": 3.0},
            lambda m: sdgpu.Wendland(2, 3 * m, dimension=10),
        ),
        ({"name": "tanimoto"}, lambda m: sdgpu.Tanimoto()),
        ({"name": "linear"}, lambda m: sdgpu.Linear()),
        ({"name": "cosine"}, lambda m: sdgpu.Cosine()),
        ({"name": "arccosine", "degree": 1}, lambda m: sdgpu.ArcCosine(1)),
        ({"name": "nngp", "depth": 2}, lambda m: sdgpu.NNGP(2)),
        ({"name": "ntk", "depth": 2, "bias_var": 0.1}, lambda m: sdgpu.NTK(2, bias_var=0.1)),
    ],
)
def test_kernels(kernel, wanted):
    study = read_study(tables(kernel=kernel))
    (job,) = decompositions(study)
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    made = wanted(sdgpu.median_distance(parts.X_train))
    assert repr(cell_data.kernel_of(job.kernel, job.data, job.seed)) == repr(made)


def test_features_precisions_and_classes():
    methods = [{"features": "nystrom", "size": [5, 20]}, {"features": "own"}, {"name": "cg"}]
    found = results(
        data={"source": "digits", "rows": 120},
        kernel={"name": "linear"},
        method=methods,
        compute={"precision": ["float64", "float32"]},
        choose={"rules": ["ridge", "accuracy"], "metrics": ["accuracy", "ece"]},
        noise={"kind": "symmetric", "levels": [0.0, 0.2]},
    )
    assert len(found) == 4 * 2 * 2
    for result in found:
        record = result.record
        choice = record["chosen"]["accuracy"]
        assert record["classes"] == 10
        assert 0 <= choice["test_accuracy"] <= 1
        assert choice["criterion"] == "accuracy"
        assert result.arrays["accuracy"].shape == (2, 3, STEPS)
    assert all(
        r.record["precision"] == "float32" and "limited by dtype='float32'" in text
        for r in found
        for text in r.record["warnings"]
    )
    exact = [r for r in found if r.record["method"] in ("own", "cg") and r.record["noise"] == 0]
    assert {r.record["precision"] for r in exact} == {"float64", "float32"}
    for result in found:
        assert result.record["fit"]["precision"] in ("float64", "mixed", result.record["precision"])


def test_metrics_and_simple_rules():
    """Every metric is judged on test rows; simple rules take a larger lam at hardly any loss."""
    real = ["mae", "rmse", "r2", "explained_variance", "max_error", "pinball_0.9", "huber_1"]
    rules = ["fixed", "fixed_1se", "ridge_1se", "mae", "mae_1se", "r2"]
    grid = {"lams_over_n": "1e-4:1:12", "alphas": [0.0, 0.5], "steps": 3}
    (found,) = results(grid=grid, choose={"rules": rules, "metrics": real})
    chosen = found.record["chosen"]
    assert list(chosen) == rules
    for rule, choice in chosen.items():
        assert choice["note"] == "", rule
        assert all(np.isfinite(choice[f"test_{name}"]) for name in real)
    for rule in ("fixed", "mae"):
        assert chosen[f"{rule}_1se"]["lam"] > chosen[rule]["lam"]
        assert chosen[rule]["value"] < chosen[f"{rule}_1se"]["value"] < 1.5 * chosen[rule]["value"]
    assert chosen["r2"]["test_r2"] < 1
    classes = ["auc", "f1", "f1_macro", "balanced_accuracy", "top_3"]
    (found,) = results(
        data={"source": "digits", "rows": 120},
        choose={"rules": [*classes, "top_3_1se"], "metrics": classes},
    )
    for choice in found.record["chosen"].values():
        assert choice["note"] == ""
        assert all(0 <= choice[f"test_{name}"] <= 1 for name in classes)


def test_rows_that_are_read_in_blocks(monkeypatch):
    sea = np.repeat(np.repeat(np.random.default_rng(0).random((8, 12)) < 0.6, 9, 0), 8, 1)
    monkeypatch.setattr(large_data, "land_mask", lambda: LandMask(np.packbits(sea, axis=1)))
    cell_data.split_of.cache_clear()
    (found,) = results(
        data={"source": "earth", "rows": 2000},
        kernel={"name": "gaussian", "gamma": 10},
        method={"features": "nystrom", "size": 40},
    )
    assert found.record["n"] > 1000
    assert found.record["chosen"]["ridge"]["test_accuracy"] > 0.6
    cell_data.split_of.cache_clear()


def test_a_rule_that_fails_costs_no_other():
    found = results(
        grid={"lams": [1e-9], "alphas": [-5.0], "steps": 3}, choose={"rules": ["ridge", "limit"]}
    )[0]
    assert found.record["chosen"]["limit"].keys() == {"note"}
    assert "limit_mse" in found.record["chosen"]["limit"]["note"]
    assert np.isfinite(found.record["chosen"]["ridge"]["test_mse"])


def test_what_is_kept_is_what_was_asked_for():
    few = results(results={"keep": []})[0].arrays
    assert few.keys() == {"lam", "ridge_mse", "star_mse", "alpha_star", "clipped_mse", "joint_mse"}
    metrics = {"metrics": ["mae"], "rules": ["mae"]}
    more = results(results={"keep": ["gcv", "metrics"]}, choose=metrics)[0].arrays
    assert more.keys() == {*few, "gcv", "mae"}


@pytest.mark.filterwarnings("ignore:.*ended at a bound")
@pytest.mark.parametrize("by", ["marginal", "validation"])
def test_kernels_are_learned_in_each_cell(by):
    method = {"learn": "width", "learn_by": by}
    quiet, noisy = results(method=method, noise={"levels": [0.0, 1.0]})
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    tuned = sdgpu.tune(
        parts.X_train,
        parts.Y_train,
        sdgpu.Gaussian(0.05),
        LAMS,
        over=["width"],
        by=(parts.X_val, parts.Y_val) if by == "validation" else by,
    )
    assert quiet.record["learned"] == repr(tuned.kernel) != noisy.record["learned"]
    fit = sdgpu.fit(parts.X_train, parts.Y_train, tuned.kernel, LAMS, method="eigh")
    sweep = fit.sweep(parts.X_val, parts.Y_val, alphas=ALPHAS, steps=STEPS)
    assert quiet.record["chosen"]["fixed"]["lam"] == sweep.best().lam
    assert f"learned width by {by}" in quiet.record["method"]


def test_other_smoothers_than_ridge():
    cell = results(method={"smoother": "gradient_flow"})[0]
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    fit = sdgpu.fit(
        parts.X_train, parts.Y_train, sdgpu.Gaussian(0.05), LAMS, smoother="gradient_flow"
    )
    sweep = fit.sweep(parts.X_val, parts.Y_val, alphas=ALPHAS, steps=STEPS)
    np.testing.assert_allclose(cell.arrays["mse"], sweep.dataset["mse"].values, rtol=1e-10)
    assert cell.record["method"].endswith("gradient_flow")


def test_rounds_of_synthetic_labels():
    """Test risk to the clean targets, of noise as large as that of the cell, in every scheme."""
    table = {"rounds": 4, "weights": [0.0, 0.5], "schemes": ["mix", "accumulate"]}
    noise = {"levels": [0.0, 0.5]}
    quiet, noisy = results(synthetic_labels=table, noise=noise)
    assert noisy.record["fit"]["method"] == "eigh"
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    fit = sdgpu.fit(parts.X_train, parts.Y_train, sdgpu.Gaussian(0.05), LAMS, method="eigh")
    spread = float(np.std(parts.Y_train))
    for i, scheme in enumerate(table["schemes"]):
        how = {"rounds": 4, "weights": [0.0, 0.5], "scheme": scheme, "noise": 0.5 * spread}
        rows = {"X_new": parts.X_test, "truth_new": parts.Y_test}
        made = sdgpu.synthetic_labels(fit, parts.Y_train, **how, **rows)
        for name in ("risk", "bias", "variance"):
            found = noisy.arrays[f"synthetic_{name}"][i]
            np.testing.assert_allclose(found, made.dataset[name].values, rtol=1e-8)
        best = noisy.arrays["synthetic_best_weight"][i]
        np.testing.assert_allclose(best, made.best_weight()["weight"].values, atol=1e-6)
    assert (quiet.arrays["synthetic_variance"] == 0).all()
    assert results(noise=noise)[1].record["key"] != noisy.record["key"]


@pytest.mark.parametrize("factor", [0.1, 5.0])
def test_later_steps_with_another_lam(factor):
    rules = ["ridge", "fixed", "star", "limit", "loo", "oracle", "gcv", "fixed_1se"]
    more = {"later_lam_over_first": [1.0, factor]}
    same, other = results(method=more, choose={"rules": rules})
    assert same.record["method"] == "auto"
    assert other.record["method"] == f"auto, later lam x {factor:g}"
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    K, K_val, K_test = (
        kernel(rows, parts.X_train) for rows in (parts.X_train, parts.X_val, parts.X_test)
    )
    losses, test = np.empty((2, len(LAMS), len(ALPHAS), STEPS))
    for i, lam in enumerate(LAMS):
        for j, alpha in enumerate(ALPHAS):
            targets = parts.Y_train
            for step in range(STEPS):
                own = lam * (factor if step else 1.0)
                dual = np.linalg.solve(K + own * np.eye(len(K)), targets)
                targets = alpha * parts.Y_train + (1 - alpha) * (K @ dual)
                losses[i, j, step] = np.mean((K_val @ dual - parts.Y_val) ** 2)
                test[i, j, step] = np.mean((K_test @ dual - parts.Y_test) ** 2)
    assert_near(other.arrays["mse"], losses, rtol=1e-8)
    assert np.isnan(other.arrays["limit_mse"]).all()
    assert not np.isnan(same.arrays["limit_mse"]).any()
    chosen = other.record["chosen"]
    fixed = chosen["fixed"]  # one of several that are equal: at alpha = 1 steps 2 and 3 are one
    place = LAMS.index(fixed["lam"]), ALPHAS.index(fixed["alpha"][0]), int(fixed["step"]) - 1
    assert losses[place] == pytest.approx(losses.min(), rel=1e-8)
    assert fixed["test_mse"] == pytest.approx(test[place], rel=1e-8)
    assert chosen["oracle"]["test_mse"] == pytest.approx(test.min(), rel=1e-8)
    assert "have no limit_mse" in chosen["limit"]["note"]
    assert "no order" in chosen["fixed_1se"]["note"]
    assert chosen["loo"]["note"] == chosen["gcv"]["note"] == chosen["star"]["note"] == ""


@pytest.mark.parametrize("unlabelled", [0.0, 0.5])
def test_students_against_refits(unlabelled):
    """Another kernel as the teacher, which has the labels that the student lacks."""
    table = {"name": "polynomial", "degree": 2, "lams": [0.3, 3.0], "unlabelled": unlabelled}
    choose = {"rules": ["fixed", "student"], "metrics": ["mae"]}
    (found,) = results(teacher=table, choose=choose, noise={"levels": [0.5]})
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    Y, Y_val = (
        values + 0.5 * np.random.default_rng([3, draw]).standard_normal(values.shape)
        for draw, values in ((1, parts.Y_train), (2, parts.Y_val))
    )
    n = len(Y) - int(unlabelled * len(Y))
    K, K_val, K_test = (
        kernel(rows, parts.X_train) for rows in (parts.X_train, parts.X_val, parts.X_test)
    )
    weak = sdgpu.Polynomial(2)(parts.X_train)
    mse, tests = np.empty((2, 2, 3, STEPS)), np.empty((2, 2, 3, STEPS))
    for t, teacher_lam in enumerate(table["lams"]):
        P = weak @ np.linalg.solve(weak + teacher_lam * np.eye(len(weak)), Y)
        G = np.concatenate([Y[:n], P[n:]])
        for i, lam in enumerate(LAMS):
            for j, alpha in enumerate(ALPHAS):
                previous = P
                for step in range(STEPS):
                    targets = alpha * G + (1 - alpha) * previous
                    dual = np.linalg.solve(K + lam * np.eye(len(K)), targets)
                    previous = K @ dual
                    mse[t, i, j, step] = np.mean((K_val @ dual - Y_val) ** 2)
                    tests[t, i, j, step] = np.mean((K_test @ dual - parts.Y_test) ** 2)
    assert_near(found.arrays["student_mse"], mse, rtol=1e-8)
    chosen = found.record["chosen"]["student"]  # of alpha = 1 all steps are one
    point = (
        table["lams"].index(chosen["teacher_lam"]),
        LAMS.index(chosen["lam"]),
        ALPHAS.index(chosen["alpha"][0]),
        int(chosen["step"]) - 1,
    )
    np.testing.assert_allclose(mse[point], mse.min(), rtol=1e-8)
    np.testing.assert_allclose(chosen["value"], mse.min(), rtol=1e-8)
    np.testing.assert_allclose(chosen["test_mse"], tests[point], rtol=1e-8)
    assert chosen["test_mae"] > 0
    other = {**table, "unlabelled": 0.25}
    keys = {results(teacher=one, choose=choose)[0].record["key"] for one in (table, other)}
    assert len(keys) == 2


def test_students_with_features_and_one_step():
    choose, grid = {"rules": ["student"]}, {"lams": list(LAMS), "alphas": [0.0, 1.0], "steps": 1}
    table, method = {"name": "linear", "lams": [1.0]}, {"features": "fourier", "size": 20}
    (found,) = results(teacher=table, choose=choose, grid=grid, method=method)
    assert found.arrays["student_mse"].shape == (1, 2, 2, 1)
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    teacher = sdgpu.fit(parts.X_train, parts.Y_train, sdgpu.Linear(), 1.0, intercept=True)
    how = {"features": sdgpu.RandomFourier(20), "intercept": True, "seed": 3}
    made = sdgpu.student(teacher, sdgpu.Gaussian(0.05), LAMS, parts.X_train, parts.Y_train, **how)
    mse = made.sweep(parts.X_val, parts.Y_val, alphas=[0.0, 1.0]).dataset["mse"].values
    assert_near(found.arrays["student_mse"][..., 0], mse, 1e-7)


@pytest.mark.parametrize("method", [{"name": "eigh"}, {"name": "lanczos"}, {"features": "own"}])
@pytest.mark.parametrize("folds", [None, 4])
def test_intervals_of_choices_are_those_of_refits(method, folds):
    """The share of test targets inside, and the mean width, by fits without each row or fold."""
    linear = {"kernel": {"name": "linear"}} if "features" in method else {}
    interval = {"coverage": 0.8} | ({} if folds is None else {"folds": folds})
    if folds is None and method != {"name": "eigh"}:
        with pytest.raises(ValueError, match="without folds"):
            read_study(tables(method=method, interval=interval, **linear))
        return
    choose = {"rules": ["ridge", "fixed", "star", "limit"]}
    (found,) = results(method=method, interval=interval, choose=choose, **linear)
    parts = split(load("diabetes", rows=60, seed=3), seed=3)
    n, truth = len(parts.X_train), parts.Y_test[:, 0]
    labels = np.arange(n) if folds is None else fold_labels(folds, n, 3)
    constant = "features" in method  # which fit an intercept
    for rule in ("ridge", "fixed", "star"):
        one = found.record["chosen"][rule]
        alphas = np.broadcast_to(one["alpha"], one["step"] - 1) if one["step"] > 1 else []
        low, high = [], []
        for fold in np.unique(labels):
            rest, out = labels != fold, np.flatnonzero(labels == fold)
            how = {"lams": one["lam"], "method": "eigh", "intercept": constant}
            kappa = sdgpu.Linear() if constant else sdgpu.Gaussian(0.05)
            fit = sdgpu.fit(parts.X_train[rest], parts.Y_train[rest], kappa, **how)
            path = fit.path(one["lam"], np.array(alphas, dtype=float), one["step"])
            there = path.predict(parts.X_test)[-1][:, 0]
            errors = np.abs(path.predict(parts.X_train[out])[-1] - parts.Y_train[out])[:, 0]
            low += [there - error for error in errors]
            high += [there + error for error in errors]
        lower = np.sort(low, axis=0)[int(np.floor(0.2 * (n + 1) + 1e-9)) - 1]
        upper = np.sort(high, axis=0)[int(np.ceil(0.8 * (n + 1) - 1e-9)) - 1]
        inside = np.mean((lower <= truth) & (truth <= upper))
        np.testing.assert_allclose(one["test_interval_coverage"], inside, atol=1e-12)
        np.testing.assert_allclose(one["test_interval_width"], np.mean(upper - lower), rtol=1e-5)
    assert np.isnan(found.record["chosen"]["limit"]["test_interval_coverage"])
