"""scikit-learn's own checks, and the estimators where scikit-learn users put them."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import sdgpu
from sdgpu.engine.estimators import (
    SelfDistillationClassifier,
    SelfDistillationClassifierCV,
    SelfDistillationRegressor,
    SelfDistillationRegressorCV,
)
from tests.problems import assert_near

ALL = [
    SelfDistillationRegressor(),
    SelfDistillationRegressorCV(),
    SelfDistillationClassifier(),
    SelfDistillationClassifierCV(),
]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        *ALL,
        SelfDistillationClassifier(class_weight="balanced"),
        SelfDistillationClassifierCV(selection="loo", scoring="accuracy"),
        SelfDistillationRegressorCV(cv=3, per_output=True),
    ],
    legacy=True,
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return StandardScaler().fit_transform(X[:200]), (y[:200] - y.mean()) / y.std()


def test_one_step_is_kernel_ridge(diabetes):
    X, y = diabetes
    ours = SelfDistillationRegressor(lam=0.7, steps=1).fit(X, y)
    theirs = KernelRidge(alpha=0.7, kernel="rbf").fit(X, y)
    assert_near(ours.predict(X), theirs.predict(X), rtol=1e-9)
    assert_near(ours.dual_coef_, theirs.dual_coef_, rtol=1e-8)


def test_steps_are_those_of_fit(diabetes):
    X, y = diabetes
    ours = SelfDistillationRegressor(gamma=0.1, lam=0.7, alpha=[0.2, 1.4], steps=3).fit(X, y)
    path = sdgpu.fit(X, y, sdgpu.Gaussian(0.1), lams=0.7).path(alphas=[0.2, 1.4], steps=3)
    assert_near(ours.predict(X[:5]), path.predict(X[:5])[-1])


def test_pipeline_and_grid_search(diabetes):
    X, y = diabetes
    model = make_pipeline(StandardScaler(), SelfDistillationRegressor(gamma="median"))
    name = "selfdistillationregressor"
    grid = {f"{name}__lam": [0.1, 1.0], f"{name}__alpha": [0.2, 0.8], f"{name}__steps": [1, 3]}
    search = GridSearchCV(model, grid, cv=3, n_jobs=2).fit(X, y)
    assert search.best_score_ > 0.3
    assert cross_val_score(search.best_estimator_, X, y, cv=3).mean() > 0.3


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_pickle_joblib_clone(estimator, diabetes, tmp_path):
    X, y = diabetes
    target = y > 0 if "Classifier" in type(estimator).__name__ else y
    model = clone(estimator).fit(X, target)
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        assert (again.predict(X) == model.predict(X)).all()
    assert len(pickle.dumps(model)) < 60 * X.nbytes  # no (n, n) basis inside
    assert clone(model).get_params() == estimator.get_params()


def test_a_fit_can_be_pickled(diabetes):
    X, y = diabetes
    fitted = sdgpu.fit(X, y, lams=0.5)
    again = pickle.loads(pickle.dumps(fitted))
    assert_near(again.path(steps=3).predict(X), fitted.path(steps=3).predict(X))


@pytest.mark.parametrize("over", ["fixed", "ridge", "star", "clipped", "joint"])
def test_cv_chooses_on_held_out_rows(diabetes, over):
    X, y = diabetes
    model = SelfDistillationRegressorCV(gamma="median", over=over, random_state=0, steps=3).fit(
        X, y
    )
    assert model.score(X, y) > 0.3
    assert model.best_.mse == float(
        model.sweep_.dataset[{"fixed": "mse"}.get(over, f"{over}_mse")].min()
    )
    assert model.lam_ > 0


@pytest.mark.parametrize("selection", ["loo", "gcv"])
def test_cv_chooses_on_the_training_rows(diabetes, selection):
    X, y = diabetes
    model = SelfDistillationRegressorCV(gamma=0.02, selection=selection, steps=3).fit(X, y)
    fitted = sdgpu.fit(
        X, y, sdgpu.Gaussian(0.02), lams=np.geomspace(1e-6, 1, 25) * len(X), method="eigh"
    )
    best = fitted.sweep(steps=3).best("gcv" if selection == "gcv" else "fixed")
    assert (model.lam_, model.step_) == (best.lam, best.step)
    weights = 0.0 if best.step == 1 else best.alpha
    assert_near(model.predict(X), fitted.path(best.lam, weights, int(best.step)).fitted[-1])
    assert model.info_.n == len(X)


def test_cv_with_a_precomputed_kernel(diabetes):
    X, y = diabetes
    kernel = sdgpu.Gaussian(0.05)
    given = SelfDistillationRegressorCV("precomputed", random_state=0).fit(kernel(X), y)
    by_name = SelfDistillationRegressorCV("rbf", gamma=0.05, random_state=0).fit(X, y)
    assert given.lam_ == by_name.lam_
    assert_near(given.predict(kernel(X[:9], X)), by_name.predict(X[:9]), rtol=1e-6)


def test_classifier_on_digits():
    X, y = load_digits(return_X_y=True)
    model = SelfDistillationClassifierCV(gamma="median", random_state=0).fit(X[:500], y[:500])
    assert model.score(X[500:900], y[500:900]) > 0.9
    assert model.decision_function(X[:3]).shape == (3, 10)
    fixed = SelfDistillationClassifier(gamma="median", lam=0.01).fit(X[:500], y[:500])
    assert fixed.score(X[500:900], y[500:900]) > 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda X, y: SelfDistillationRegressor(gamma="wide").fit(X, y), "gamma='wide'"),
        (lambda X, y: SelfDistillationRegressor(lam=-1).fit(X, y), "lam=-1 must be >= 0"),
        (lambda X, y: SelfDistillationRegressor(kernel="rbff").fit(X, y), "did you mean 'rbf'"),
        (lambda X, y: SelfDistillationRegressorCV(over="best").fit(X, y), "over='best'"),
        (
            lambda X, y: SelfDistillationRegressorCV(validation_fraction=1.5).fit(X, y),
            "between 0 and 1",
        ),
        (lambda X, y: SelfDistillationClassifier().fit(X, np.ones(len(X), int)), "only one class"),
    ],
)
def test_bad_input(make, words, diabetes):
    with pytest.raises(ValueError, match=words):
        make(*diabetes)
