"""Estimators with features: rows a few at a time are all rows at once, and scikit-learn's rules hold."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

import sdgpu

LANDMARKS = np.random.default_rng(4).standard_normal((20, 3))
FEATURES = sdgpu.Nystrom(landmarks=LANDMARKS)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    return X, np.sin(X[:, 0]) + 0.1 * rng.standard_normal(300)


def regressor(**options):
    named = {"gamma": 0.3, "lam": 0.1, "alpha": 0.3, "steps": 3, "features": FEATURES} | options
    return sdgpu.SelfDistillationRegressor(**named)


@pytest.mark.parametrize("outputs", [1, 2])
def test_blocks_are_the_whole(data, outputs):
    X, y = data
    Y = y if outputs == 1 else np.stack([y, X[:, 1]], axis=1)
    blocks, whole = regressor(), regressor().fit(X, Y)
    for start in range(0, 300, 70):
        assert blocks.partial_fit(X[start : start + 70], Y[start : start + 70]) is blocks
    assert blocks.predict(X).shape == Y.shape
    np.testing.assert_allclose(blocks.predict(X), whole.predict(X), rtol=0, atol=1e-10)
    assert blocks.moments_.rows == 300
    assert blocks.info_.n == 300


def test_after_a_fit_rows_are_added(data):
    X, y = data
    more = regressor().fit(X[:200], y[:200]).partial_fit(X[200:], y[200:])
    np.testing.assert_allclose(more.predict(X), regressor().fit(X, y).predict(X), atol=1e-10)
    again = more.fit(X[:50], y[:50])  # starts anew
    assert again.moments_.rows == 50


def test_predictions_between_blocks_change_nothing(data):
    X, y = data
    model = regressor().partial_fit(X[:150], y[:150])
    first = model.predict(X)
    model.partial_fit(X[150:], y[150:])
    assert np.abs(model.predict(X) - first).max() > 1e-6
    np.testing.assert_allclose(model.predict(X), regressor().fit(X, y).predict(X), atol=1e-10)


def test_the_fit_is_that_of_the_library(data):
    X, y = data
    path = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), [0.1], features=FEATURES).path(0.1, 0.3, 3)
    np.testing.assert_allclose(regressor().fit(X, y).predict(X), path.predict(X)[-1], atol=1e-12)


def test_classes(data):
    X, y = data
    labels = np.where(y > 0.5, "high", np.where(y < -0.5, "low", "middle"))
    named = {"gamma": 0.3, "lam": 0.1, "features": FEATURES}
    model, whole = (sdgpu.SelfDistillationClassifier(**named) for _ in range(2))
    whole.fit(X, labels)
    order = np.argsort(y)  # each block lacks labels that others have
    for part in np.array_split(order, 3):
        model.partial_fit(X[part], labels[part], classes=["low", "middle", "high"])
    np.testing.assert_allclose(model.decision_function(X), whole.decision_function(X), atol=1e-10)
    assert (model.predict(X) == whole.predict(X)).all()
    assert list(model.classes_) == ["high", "low", "middle"]
    with pytest.raises(ValueError, match=r"y holds \['none'\], which classes does not"):
        model.partial_fit(X[:1], ["none"])
    assert model.moments_.rows == 300
    with pytest.raises(ValueError, match="classes is missing"):
        sdgpu.SelfDistillationClassifier(**named).partial_fit(X, labels)
    with pytest.raises(ValueError, match="classes holds one label"):
        sdgpu.SelfDistillationClassifier(**named).partial_fit(X, labels, classes=["low"])


def test_without_features_there_is_none(data):
    assert not hasattr(sdgpu.SelfDistillationRegressor(), "partial_fit")
    with pytest.raises(AttributeError, match=r"has no attribute .partial_fit."):
        sdgpu.SelfDistillationRegressor().partial_fit(*data)
    assert hasattr(clone(regressor()), "partial_fit")


@pytest.mark.parametrize("selection", ["validation", "loo", "gcv"])
def test_choosing_with_features(data, selection):
    X, y = data
    model = sdgpu.SelfDistillationRegressorCV(
        gamma=0.3, features=FEATURES, selection=selection, steps=3, random_state=0
    ).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.info_.method == "features"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator",
    [
        sdgpu.SelfDistillationRegressor(kernel="linear", features=sdgpu.Explicit()),
        sdgpu.SelfDistillationClassifier(gamma=0.3, features=sdgpu.RandomFourier(50)),
    ],
    ids=["regressor", "classifier"],
)
def test_scikit_learn_agrees(estimator):
    check_estimator(estimator)
