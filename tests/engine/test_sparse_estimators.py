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


@pytest.mark.parametrize("selection", ["validation", "loo", "gcv"])
def test_choices_are_those_of_dense_rows(selection):
    how = {"kernel": "linear", "selection": selection, "random_state": 0}
    sparse = SelfDistillationRegressorCV(**how).fit(SPARSE, Y)
    dense = SelfDistillationRegressorCV(**how).fit(X, Y)
    assert (sparse.lam_, sparse.step_) == (dense.lam_, dense.step_)
    assert_near(sparse.predict(SPARSE), dense.predict(X), rtol=1e-8)


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


def test_grid_search():
    search = GridSearchCV(SelfDistillationRegressor(kernel="linear"), {"lam": [0.1, 1.0]}, cv=3)
    assert search.fit(SPARSE, Y).best_score_ > 0.5


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"kernel": "rbf"}, TypeError, "dense data is required"),
        ({"kernel": lambda x, z: x @ z.T}, TypeError, "dense data is required"),
        ({"kernel": "linear", "features": sdgpu.Nystrom(5)}, TypeError, "dense data is required"),
        ({"kernel": "linear", "features": sdgpu.Explicit(np.tanh)}, TypeError, "dense data"),
        ({"kernel": "linear", "method": "eigh"}, ValueError, "method: not for sparse rows"),
        ({"kernel": "linear", "gamma": "median"}, ValueError, "gamma='median' is of distances"),
        ({"kernel": "no such"}, TypeError, "dense data is required"),
    ],
)
def test_refusals(how, error, words):
    with pytest.raises(error, match=words):
        SelfDistillationRegressor(**how).fit(SPARSE, Y)


def test_more_features_than_rows_are_made_dense():
    """The kernel matrix is the smaller problem then; predictions go on taking sparse rows."""
    for model in (
        SelfDistillationRegressor("linear"),
        SelfDistillationRegressorCV("linear", random_state=0),
    ):
        found = model.fit(SPARSE[:4], Y[:4]).predict(SPARSE)
        assert_near(found, model.fit(X[:4], Y[:4]).predict(X))
    assert_near(model.fit(SPARSE, Y).predict(SPARSE), model.fit(X, Y).predict(X))  # and back


def test_rows_that_would_not_fit_when_dense_are_refused():
    wide = scipy.sparse.csr_matrix((4, 10**9), dtype=np.float64)
    with pytest.raises(MemoryError, match="4 sparse rows of 1,000,000,000 features as dense"):
        SelfDistillationRegressor("linear").fit(wide, Y[:4])
