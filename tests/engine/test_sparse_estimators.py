"""Estimators on sparse rows: the answers of dense rows, scikit-learn's checks, and what is refused."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

import sdgpu
from sdgpu.engine.estimators import (
    SelfDistillationClassifier,
    SelfDistillationClassifierCV,
    SelfDistillationRegressor,
    SelfDistillationRegressorCV,
)
from tests.problems import assert_near

RNG = np.random.default_rng(5)
X = np.where(RNG.random((90, 5)) < 0.4, RNG.standard_normal((90, 5)), 0.0)
Y = X @ RNG.standard_normal((5, 2)) + 0.3 * RNG.standard_normal((90, 2))
LABELS = np.array(["no", "yes"])[(Y[:, 0] > 0).astype(int)]
SPARSE = scipy.sparse.csr_matrix(X)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        SelfDistillationRegressor(kernel="linear"),
        SelfDistillationClassifierCV(kernel="poly", degree=2),
        SelfDistillationRegressorCV(kernel="rbf"),
        SelfDistillationClassifier(kernel=sdgpu.Tanimoto()),
    ],
    legacy=True,
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kernel", ["linear", "poly", "cosine", 2.0 * sdgpu.Linear()], ids=repr)
@pytest.mark.parametrize("features", [None, sdgpu.Explicit()], ids=repr)
def test_regression_as_of_dense_rows(kernel, features):
    how = {"kernel": kernel, "degree": 2, "features": features, "lam": 0.4, "steps": 3}
    sparse = SelfDistillationRegressor(**how).fit(SPARSE, Y)
    dense = SelfDistillationRegressor(**how).fit(X, Y)
    assert_near(sparse.predict(SPARSE), dense.predict(X), rtol=1e-8)
    assert_near(sparse.predict(X), sparse.predict(SPARSE.tocoo()), rtol=1e-12)


@pytest.mark.parametrize("selection", ["validation", "loo", "gcv", "folds"])
@pytest.mark.parametrize("kernel", ["linear", "rbf", sdgpu.Tanimoto()], ids=repr)
def test_choices_are_those_of_dense_rows(kernel, selection):
    how = {"kernel": kernel, "selection": selection, "random_state": 0}
    if selection == "folds":
        how = {"kernel": kernel, "cv": 3}
    sparse = SelfDistillationRegressorCV(**how).fit(SPARSE, Y)
    dense = SelfDistillationRegressorCV(**how).fit(X, Y)
    assert sparse.lam_ == dense.lam_
    # at the smallest lam steps are alike to rounding, and either may win
    near = 1e-8 if sparse.step_ == dense.step_ else 1e-5
    assert_near(sparse.predict(SPARSE), dense.predict(X), rtol=near)


def test_classes_and_rows_that_come_a_few_at_a_time():
    how = {"kernel": "linear", "lam": 0.4, "features": sdgpu.Explicit()}
    whole = SelfDistillationClassifier(**how).fit(SPARSE, LABELS)
    parts = SelfDistillationClassifier(**how)
    for rows in (slice(0, 40), slice(40, 90)):
        parts.partial_fit(SPARSE[rows], LABELS[rows], classes=["no", "yes"])
    assert_near(parts.decision_function(SPARSE), whole.decision_function(X), rtol=1e-8)
    growing = SelfDistillationRegressor(**how).partial_fit(SPARSE[:40], Y[:40])
    growing.partial_fit(SPARSE[40:], Y[40:])
    assert_near(
        growing.predict(X), SelfDistillationRegressor(**how).fit(X, Y).predict(X), rtol=1e-8
    )


@pytest.mark.parametrize(
    "kernel", ["rbf", sdgpu.Matern(2.5), sdgpu.ArcCosine(1), 2.0 * sdgpu.Tanimoto()]
)
@pytest.mark.parametrize("intercept", [False, True])
def test_kernels_without_features_of_their_own(kernel, intercept):
    how = {"kernel": kernel, "lam": 0.4, "steps": 3, "fit_intercept": intercept}
    sparse = SelfDistillationRegressor(**how).fit(SPARSE, Y)
    dense = SelfDistillationRegressor(**how).fit(X, Y)
    assert_near(sparse.predict(SPARSE), dense.predict(X), rtol=1e-8)
    assert_near(sparse.predict(X), sparse.predict(SPARSE.tocoo()), rtol=1e-12)
    assert_near(sparse.dual_coef_, dense.dual_coef_, rtol=1e-8)


@pytest.mark.parametrize("gamma", ["median", "scale"])
@pytest.mark.parametrize("rows", [X, X + 3.0 * (X != 0), np.eye(6)], ids=["any", "far", "eye"])
def test_widths_of_the_data(gamma, rows):
    targets = np.arange(len(rows)) % 4.0
    how = {"gamma": gamma, "lam": 0.1}
    sparse = SelfDistillationRegressor(**how).fit(scipy.sparse.csr_array(rows), targets)
    dense = SelfDistillationRegressor(**how).fit(rows, targets)
    assert_near(sparse.predict(rows), dense.predict(rows), 1e-9)


@pytest.mark.parametrize("cls", [SelfDistillationClassifier, SelfDistillationClassifierCV])
def test_probabilities(cls):
    how = {"kernel": "rbf", "class_weight": "balanced"}
    if cls is SelfDistillationClassifierCV:
        how["random_state"] = 0
    sparse, dense = cls(**how).fit(SPARSE, LABELS), cls(**how).fit(X, LABELS)
    assert_near(sparse.predict_proba(SPARSE), dense.predict_proba(X), rtol=1e-6)


def test_grid_search():
    search = GridSearchCV(SelfDistillationRegressor(kernel="linear"), {"lam": [0.1, 1.0]}, cv=3)
    assert search.fit(SPARSE, Y).best_score_ > 0.5


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"kernel": "laplacian"}, TypeError, "dense data is required"),
        ({"kernel": lambda x, z: x @ z.T}, TypeError, "dense data is required"),
        ({"kernel": "linear", "features": sdgpu.Nystrom(5)}, TypeError, "dense data is required"),
        ({"kernel": "linear", "features": sdgpu.Explicit(np.tanh)}, TypeError, "dense data"),
        ({"kernel": "no such"}, TypeError, "dense data is required"),
    ],
)
def test_refusals(how, error, words):
    with pytest.raises(error, match=words):
        SelfDistillationRegressor(**how).fit(SPARSE, Y)


def test_more_features_than_rows():
    """The kernel matrix is the smaller problem then."""
    for model in (
        SelfDistillationRegressor("linear"),
        SelfDistillationRegressorCV("linear", random_state=0),
    ):
        found = model.fit(SPARSE[:4], Y[:4]).predict(SPARSE)
        assert_near(found, model.fit(X[:4], Y[:4]).predict(X))
    assert_near(model.fit(SPARSE, Y).predict(SPARSE), model.fit(X, Y).predict(X))  # and back
    wide = scipy.sparse.csr_matrix((4, 10**9), dtype=np.float64)
    assert SelfDistillationRegressor("linear").fit(wide, Y[:4]).predict(wide).shape == (4, 2)
