"""The CV estimators by folds: explicit fits of every fold, and scikit-learn's own grid search."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    PredefinedSplit,
    RepeatedKFold,
    StratifiedKFold,
    cross_val_predict,
)

import sdgpu
from sdgpu import (
    SelfDistillationClassifier,
    SelfDistillationClassifierCV,
    SelfDistillationRegressor,
    SelfDistillationRegressorCV,
)
from sdgpu.engine.parameter_search import SCORERS
from sdgpu.selection.metrics import METRICS, PredictedRows, named_metric
from sdgpu.study.pictures import plot_losses

LAMS, ALPHAS = np.geomspace(1e-2, 30, 6), np.array([0.0, 0.4, 1.2])
GRID = {"gamma": 0.5, "lams": LAMS, "alphas": ALPHAS, "steps": 3}
KERNEL = sdgpu.Gaussian(0.5)


def real(rng, n=60):
    X = rng.standard_normal((n, 2))
    return X, X @ rng.standard_normal((2, 2)) + 0.5 * rng.standard_normal((n, 2))


def labelled(rng, n=60):
    X = rng.standard_normal((n, 2))
    return X, (X[:, 0] + 0.8 * rng.standard_normal(n) > 0).astype(int) + (X[:, 1] > 0.5)


def left_out(X, Y, splits, weights=None, **how):
    """Predictions (L, A, T, m, c) of left-out rows by explicit fits, with their numbers."""
    predictions, rows = [], []
    for train, test in splits:
        own = None if weights is None else weights[train]
        fitted = sdgpu.fit(X[train], Y[train], KERNEL, LAMS, sample_weight=own, **how)
        predictions.append(
            [[fitted.path(lam, alpha, 3).predict(X[test]) for alpha in ALPHAS] for lam in LAMS]
        )
        rows.append(test)
    return np.concatenate([np.array(p) for p in predictions], axis=3), np.concatenate(rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize(
    "cv", [3, KFold(4, shuffle=True, random_state=0), RepeatedKFold(n_splits=2, random_state=0)]
)
def test_losses_are_those_of_explicit_folds(rng, cv, intercept, weighted):
    X, Y = real(rng)
    weights = rng.integers(0, 3, 60).astype(float) if weighted else None
    model = SelfDistillationRegressorCV(**GRID, cv=cv, fit_intercept=intercept)
    model.fit(X, Y, sample_weight=weights)
    splitter = KFold(3) if cv == 3 else cv
    predictions, rows = left_out(X, Y, splitter.split(X), weights, intercept=intercept)
    w = np.ones(len(rows)) if weights is None else weights[rows]
    mse = np.average(((predictions - Y[rows]) ** 2).mean(axis=-1), axis=-1, weights=w)
    assert_allclose(model.sweep_.dataset["mse"], mse, rtol=1e-9)
    lam, alpha, step = np.unravel_index(mse.argmin(), mse.shape)
    assert (model.lam_, model.step_) == (LAMS[lam], step + 1)
    how = {"sample_weight": weights, "intercept": intercept}
    assert plot_losses(model.sweep_.dataset["mse"], label="left-out rows").get_xlabel()
    refitted = sdgpu.fit(X, Y, KERNEL, LAMS[lam], **how)
    chain = 0.0 if step == 0 else ALPHAS[alpha]
    wanted = refitted.path(None, chain, step + 1).predict(X)[-1]
    assert_allclose(model.predict(X), wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("over", ["ridge", "star", "clipped", "joint"])
def test_chains_are_judged_on_all_folds_together(rng, over):
    X, Y = real(rng)
    model = SelfDistillationRegressorCV(**GRID, cv=5, over=over).fit(X, Y)
    best = model.sweep_.best(over)
    losses = []
    for train, test in KFold(5).split(X):
        fitted = sdgpu.fit(X[train], Y[train], KERNEL, best.lam)
        weights = 0.0 if best.step == 1 else best.alpha
        losses.append(fitted.path(None, weights, best.step).predict(X[test])[-1] - Y[test])
    assert_allclose(best.mse, (np.concatenate(losses) ** 2).mean(), rtol=1e-8)


def test_it_is_the_choice_of_a_grid_search(rng):
    X, Y = real(rng)
    grid = {"lam": LAMS, "alpha": ALPHAS, "steps": [1, 2, 3]}
    search = GridSearchCV(
        SelfDistillationRegressor(gamma=0.5), grid, cv=5, scoring="neg_mean_absolute_error"
    ).fit(X, Y)
    model = SelfDistillationRegressorCV(**GRID, cv=5, scoring="neg_mean_absolute_error").fit(X, Y)
    best = search.best_params_
    assert (model.lam_, model.step_) == (best["lam"], best["steps"])
    assert_allclose(model.best_.value, -search.best_score_, rtol=1e-9)  # folds of 12 rows each
    assert_allclose(model.predict(X), search.predict(X), rtol=1e-8)


@pytest.mark.parametrize("scoring", ["r2", "rmse", "pinball_0.9", "explained_variance"])
def test_metrics_are_of_all_left_out_rows(rng, scoring):
    X, Y = real(rng)
    model = SelfDistillationRegressorCV(**GRID, cv=4, scoring=scoring, fit_intercept=True)
    model.fit(X, Y)
    predictions, rows = left_out(X, Y, KFold(4).split(X), intercept=True)
    metric = named_metric(scoring)
    values = np.swapaxes(predictions, -1, -2)
    wanted = metric.result(metric.update(PredictedRows(values, Y[rows].T)), len(rows))
    assert_allclose(model.sweep_.dataset[scoring], wanted, rtol=1e-8)
    assert model.best_.criterion == scoring
    assert model.best_.value == pytest.approx(
        wanted.max() if metric.larger_is_better else wanted.min(), rel=1e-8
    )


@pytest.mark.parametrize("scoring", ["accuracy", "roc_auc", "f1", "neg_log_loss", "top_2"])
def test_classifiers_by_folds(rng, scoring):
    X, y = labelled(rng)
    model = SelfDistillationClassifierCV(**GRID, cv=3, scoring=scoring).fit(X, y)
    predictions, rows = left_out(X, np.eye(3)[y], StratifiedKFold(3).split(X, y))
    metric = named_metric(SCORERS.get(scoring, scoring))
    values = np.swapaxes(predictions, -1, -2)
    wanted = metric.result(metric.update(PredictedRows(values, np.eye(3)[y[rows]].T)), 60)
    assert_allclose(model.sweep_.dataset[metric.name], wanted, rtol=1e-8)
    assert model.predict_proba(X).shape == (60, 3)
    fixed = SelfDistillationClassifier(
        gamma=0.5,
        lam=model.lam_,
        alpha=0.0 if model.step_ == 1 else model.alpha_,
        steps=model.step_,
    ).fit(X, y)
    assert_allclose(model.predict_proba(X), fixed.predict_proba(X), rtol=1e-7)


def test_groups_iterables_and_kernels(rng):
    X, Y = real(rng)
    groups = rng.integers(4, size=60)
    by_groups = SelfDistillationRegressorCV(**GRID, cv=LeaveOneGroupOut())
    by_groups.fit(X, Y, groups=groups)
    splits = list(LeaveOneGroupOut().split(X, Y, groups))
    for cv in (splits, iter(splits), PredefinedSplit(groups)):
        given = SelfDistillationRegressorCV(**GRID, cv=cv).fit(X, Y)
        assert_allclose(given.sweep_.dataset["mse"], by_groups.sweep_.dataset["mse"], rtol=1e-12)
    K = KERNEL(X, X)
    given = SelfDistillationRegressorCV("precomputed", None, LAMS, ALPHAS, 3, cv=splits).fit(K, Y)
    assert_allclose(given.sweep_.dataset["mse"], by_groups.sweep_.dataset["mse"], rtol=1e-7)
    assert_allclose(given.predict(K), by_groups.predict(X), rtol=1e-6, atol=1e-8)
    features = SelfDistillationRegressorCV(
        **GRID, cv=GroupKFold(2), features=sdgpu.Nystrom(landmarks=X[:20])
    )
    features.fit(X, Y, groups=groups)
    assert features.score(X, Y) > 0.2
    for selection in ("loo", "gcv"):  # folds take its place
        given = clone(by_groups).set_params(selection=selection).fit(X, Y, groups=groups)
        assert given.best_ == by_groups.best_
    with pytest.raises(ValueError, match="groups"):
        clone(by_groups).fit(X, Y)


def test_one_standard_error(rng):
    X, Y = real(rng)
    for how in ({"cv": 5}, {"selection": "loo"}, {"random_state": 0}):
        best = SelfDistillationRegressorCV(**GRID, **how).fit(X, Y)
        simple = clone(best).set_params(one_standard_error=True).fit(X, Y)
        assert simple.lam_ > best.lam_
        losses = simple.sweep_.dataset
        error = float(losses["mse_se"].values.ravel()[losses["mse"].values.argmin()])
        assert best.best_.value < simple.best_.value <= best.best_.value + error


@pytest.mark.parametrize("over", ["fixed", "ridge"])
@pytest.mark.parametrize("how", [{"cv": 4}, {"selection": "loo"}, {"random_state": 0}], ids=str)
def test_each_output_has_its_own_choice(rng, how, over):
    X = rng.standard_normal((60, 2))
    clean = np.stack([np.sin(3 * X[:, 0]), X[:, 1], 0.2 * X[:, 0]], axis=1)
    Y = clean + np.array([0.01, 0.5, 2.0]) * rng.standard_normal((60, 3))
    model = SelfDistillationRegressorCV(**GRID, **how, over=over, per_output=True).fit(X, Y)
    assert model.lam_.shape == model.alpha_.shape == model.step_.shape == (3,)
    assert len(set(model.lam_)) > 1
    for j in range(3):
        alone = SelfDistillationRegressorCV(**GRID, **how, over=over).fit(X, Y[:, j])
        assert (alone.lam_, alone.step_) == (model.lam_[j], model.step_[j])
        np.testing.assert_equal(alone.alpha_, model.alpha_[j])
        assert_allclose(model.predict(X)[:, j], alone.predict(X), rtol=1e-6, atol=1e-8)
        assert_allclose(model.dual_coef_[:, j], alone.dual_coef_, rtol=1e-5, atol=1e-7)
    one = SelfDistillationRegressorCV(**GRID, **how, per_output=True).fit(X, Y[:, 0])
    assert one.predict(X).shape == (60,)
    assert one.lam_.shape == (1,)


def test_scoring_by_every_name(rng):
    X, y = labelled(rng)
    for name in (*METRICS, *SCORERS, "mse", "pinball_0.9", "huber_1", "top_2"):
        metric = None if SCORERS.get(name, name) == "mse" else named_metric(SCORERS.get(name, name))
        if getattr(metric, "of_classes", False):
            model = SelfDistillationClassifierCV(**GRID, cv=3, scoring=name).fit(X, y)
        else:
            model = SelfDistillationRegressorCV(**GRID, cv=3, scoring=name).fit(X, y)
        assert model.best_.criterion == ("mse" if metric is None else metric.name)
    model = SelfDistillationRegressorCV(**GRID, selection="loo", scoring=sdgpu.Huber(0.5)).fit(X, y)
    assert model.best_.criterion == "huber_0.5"


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"cv": 1}, ValueError, "n_splits=1"),
        (
            {"scoring": "neg_median_absolute_error"},
            ValueError,
            "scoring='neg_median_absolute_error'",
        ),
        ({"scoring": "pinball_2"}, ValueError, "quantile=2.0"),
        ({"scoring": np.mean}, TypeError, "scorers that are functions put SelfDistillation"),
        ({"scoring": "accuracy"}, ValueError, "scoring='accuracy' is of classes"),
        ({"scoring": "mae", "over": "star"}, ValueError, "among fixed weights, not over='star'"),
        (
            {"scoring": "mae", "selection": "gcv"},
            ValueError,
            "scoring needs losses of left-out rows",
        ),
        (
            {"per_output": True, "selection": "gcv"},
            ValueError,
            "per_output needs losses of left-out",
        ),
        ({"per_output": True, "over": "joint"}, ValueError, "per_output is for over='fixed' or"),
        (
            {"one_standard_error": True, "over": "star"},
            ValueError,
            "one_standard_error is for over",
        ),
        (
            {"one_standard_error": True, "per_output": True},
            ValueError,
            "one_standard_error is of all outputs together",
        ),
        ({"one_standard_error": True, "scoring": "r2"}, ValueError, "'r2' is no mean over rows"),
        ({"cv": [(np.arange(5), np.arange(5, 9)), ([], [1])]}, ValueError, "fold 1 leaves no rows"),
        ({"cv": []}, ValueError, "cv leaves no rows"),
    ],
)
def test_bad_choices(rng, how, error, words):
    X, Y = real(rng, 20)
    with pytest.raises(error, match=words):
        SelfDistillationRegressorCV(**(GRID | how)).fit(X, Y)


@pytest.mark.parametrize("cv", [None, 5])
def test_targets_far_from_zero(rng, cv):
    """With a constant R2 is that of RidgeCV; without one it was -2e7, and a warning names the remedy."""
    X = rng.standard_normal((100, 3))
    y = 1e6 + X @ rng.standard_normal(3) + 0.5 * rng.standard_normal(100)
    theirs = RidgeCV(np.geomspace(1e-4, 1e2, 25)).fit(X[:70], y[:70])
    how = {"lams": np.geomspace(1e-4, 1e2, 25), "random_state": 0, "cv": cv}
    ours = SelfDistillationRegressorCV("linear", fit_intercept=True, **how).fit(X[:70], y[:70])
    wanted = theirs.score(X[70:], y[70:])
    assert 0.5 < wanted < 1
    assert_allclose(ours.score(X[70:], y[70:]), wanted, atol=0.02)
    for estimator in (SelfDistillationRegressorCV("linear", **how), SelfDistillationRegressor()):
        with pytest.warns(
            UserWarning, match=r"y is 1e\+06 .* fit_intercept=True takes the mean off"
        ):
            estimator.fit(X[:70], y[:70])
    SelfDistillationRegressor().fit(X, y - y.mean() + 5)  # not far
    SelfDistillationRegressor().fit(X, np.ones(100))  # does not vary
    SelfDistillationRegressor().fit(X, 1e200 * (y - y.mean()))
    with pytest.warns(UserWarning, match=r"y is 1e\+206 "):
        SelfDistillationRegressor().fit(X, 1e200 * y)


def test_left_out_predictions_agree_with_cross_val_predict(rng):
    X, Y = real(rng)
    model = SelfDistillationRegressor(gamma=0.5, lam=LAMS[2], alpha=0.4, steps=2)
    theirs = cross_val_predict(model, X, Y, cv=4)
    ours = SelfDistillationRegressorCV(**GRID, cv=4).fit(X, Y).sweep_.dataset["mse"]
    found = float(ours.sel(lam=LAMS[2], alpha=0.4, step=2))
    assert_allclose(found, ((theirs - Y) ** 2).mean(), rtol=1e-9)
