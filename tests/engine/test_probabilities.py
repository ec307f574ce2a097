"""Probabilities of the classifiers: calibrated on explicit refits without each row, and what they are worth."""

import pickle

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

import sdgpu
from sdgpu import SelfDistillationClassifier, SelfDistillationClassifierCV
from sdgpu.engine.probabilities import temperature_of
from sdgpu.selection.class_scores import class_scores, probabilities


def noisy(rng, n, c=3):
    X = rng.standard_normal((n, 2))
    labels = np.clip((X[:, 0] + 0.7 * rng.standard_normal(n)) * 1.5 + c / 2, 0, c - 1).astype(int)
    labels[:c] = range(c)
    return X, labels


def likeliest(scores, labels, weights, c):
    """beta by a grid and a bounded search of the likelihood itself, with a row of unknown class."""

    def loss(log_beta):
        logs = scipy.special.log_softmax(np.exp(log_beta) * scores, axis=1)
        total = weights.sum()
        known = weights @ logs[np.arange(len(labels)), labels]
        # the unknown row is spread over the scores of all rows alike
        spread = weights @ logs.sum(axis=1) / c / total
        return -(known + spread)

    grid = np.linspace(-6, 8, 400)
    start = grid[np.argmin([loss(g) for g in grid])]
    bounds = (start - 0.1, start + 0.1)
    how = {"method": "bounded", "bounds": bounds, "options": {"xatol": 1e-10}}
    return float(np.exp(scipy.optimize.minimize_scalar(loss, **how).x))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("c", [2, 3])
def test_beta_is_the_likeliest_of_scores_by_refits(rng, c, intercept, weighted):
    X, labels = noisy(rng, 40, c)
    weights = rng.uniform(0.3, 3, 40) if weighted else None
    how = {"gamma": 0.5, "lam": 0.7, "alpha": [0.3, 1.2], "steps": 3, "fit_intercept": intercept}
    model = SelfDistillationClassifier(**how).fit(X, labels, weights)
    scores = np.empty((40, c))
    for i in range(40):
        rest = np.arange(40) != i
        own = None if weights is None else weights[rest]
        fit = sdgpu.fit(
            X[rest],
            np.eye(c)[labels[rest]],
            sdgpu.Gaussian(0.5),
            0.7,
            sample_weight=own,
            intercept=intercept,
        )
        scores[i] = fit.path(0.7, [0.3, 1.2], 3).predict(X[[i]])[-1, 0]
    w = np.ones(40) if weights is None else weights
    beta = likeliest(scores, labels, w, c)
    new = rng.standard_normal((25, 2))
    found = model.predict_proba(new)
    raw = sdgpu.fit(
        X, np.eye(c)[labels], sdgpu.Gaussian(0.5), 0.7, sample_weight=weights, intercept=intercept
    )
    raw = raw.path(0.7, [0.3, 1.2], 3).predict(new)[-1]
    assert_allclose(found, scipy.special.softmax(beta * raw, axis=1), rtol=1e-5)
    assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert (model.classes_[found.argmax(axis=1)] == model.predict(new)).all()
    assert_allclose(model.predict_log_proba(new), np.log(found))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"features": sdgpu.Nystrom(12)},
        {"kernel": "linear"},
        {"kernel": "poly", "features": sdgpu.Explicit()},
        {"kernel": "precomputed"},
        {"class_weight": "balanced"},
    ],
    ids=str,
)
def test_repeated_rows_are_whole_weights(rng, how):
    X, labels = noisy(rng, 30)
    weights = rng.integers(0, 4, 30)
    weights[:3] = 1
    new = rng.standard_normal((9, 2))
    rows, precomputed = np.repeat(np.arange(30), weights), how.get("kernel") == "precomputed"
    kernel = sdgpu.Gaussian(0.5)
    if "Nystrom" in str(how):  # the landmarks of both
        how = {"features": sdgpu.Nystrom(landmarks=X[:12])}
    models = [
        SelfDistillationClassifier(lam=0.4, steps=3, **({"gamma": 0.5} | how)) for _ in range(2)
    ]
    given = kernel(X, X) if precomputed else X
    own = kernel(X[rows], X[rows]) if precomputed else X[rows]
    models[0].fit(given, labels, sample_weight=weights)
    models[1].fit(own, labels[rows])
    new_rows = [kernel(new, X), kernel(new, X[rows])] if precomputed else [new, new]
    found, wanted = (m.predict_proba(rows) for m, rows in zip(models, new_rows, strict=True))
    assert np.ptp(found) > 0.1
    assert_allclose(found, wanted, rtol=1e-6)


def test_sparse_rows_and_their_copies(rng):
    X, labels = noisy(rng, 40)
    X[:, 1] = np.where(X[:, 1] > 0, X[:, 1], 0)
    X[30:35] = X[:5]
    how = {"kernel": "linear", "lam": 0.3, "fit_intercept": True}
    dense = SelfDistillationClassifier(**how).fit(X, labels)
    sparse = SelfDistillationClassifier(**how).fit(scipy.sparse.csr_array(X), labels)
    assert_allclose(sparse.predict_proba(X), dense.predict_proba(X), rtol=1e-7)


def test_scores_that_tell_all_or_nothing_have_a_beta(rng):
    truth = np.eye(3)[np.arange(30) % 3]
    sure = temperature_of(truth, truth).beta
    assert 1 < sure < 100
    assert temperature_of(1e-3 * truth, truth).beta == pytest.approx(1e3 * sure, rel=1e-6)
    wrong = temperature_of(-truth, truth).beta
    assert 0 < wrong < 1e-5  # the order of the classes stays
    assert temperature_of(np.zeros((30, 3)), truth).beta == 1
    X, labels = rng.standard_normal((30, 2)), rng.integers(3, size=30)
    model = SelfDistillationClassifier(lam=1e-3).fit(X, labels)
    found = model.predict_proba(X)
    assert (model.classes_[found.argmax(axis=1)] == model.predict(X)).all()


DATA = {"digits": load_digits, "breast_cancer": load_breast_cancer, "wine": load_wine}


@pytest.mark.parametrize("name", DATA)
def test_calibration_beats_clipping(name):
    X, y = DATA[name](return_X_y=True)
    clipped, ours = [], []
    for seed in range(3):
        parts = train_test_split(X, y, test_size=0.4, random_state=seed, stratify=y)
        X_train, X_test, y_train, y_test = (part[:500] for part in parts)
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
        model = SelfDistillationClassifierCV(gamma="median", selection="loo").fit(X_train, y_train)
        raw = probabilities(model._raw(X_test))
        for P, scores in ((raw, clipped), (model.predict_proba(X_test), ours)):
            found = class_scores(P, y_test)
            scores.append((found["nll"], found["ece"], found["brier"]))
    clipped, ours = np.mean(clipped, axis=0), np.mean(ours, axis=0)
    assert (ours < [0.8, 0.5, 0.8] * clipped).all()


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
def test_estimated_leverages_are_near(rng, method):
    X, labels = noisy(rng, 200)
    how = {"gamma": 0.5, "lam": 1.0, "steps": 3}
    exact = SelfDistillationClassifier(**how, method="eigh").fit(X, labels)
    found = SelfDistillationClassifier(**how, method=method).fit(X, labels)
    assert_allclose(found._temperature.beta, exact._temperature.beta, rtol=0.05)


def test_files_clones_and_what_is_kept(rng, tmp_path):
    X, labels = noisy(rng, 60)
    for model in (SelfDistillationClassifier(), SelfDistillationClassifierCV(random_state=0)):
        model.fit(X, labels)
        again = pickle.loads(pickle.dumps(model))
        assert (again.predict_proba(X) == model.predict_proba(X)).all()
        assert_allclose(clone(model).fit(X, labels).predict_proba(X), model.predict_proba(X))
    plain = SelfDistillationClassifier(probability=False).fit(X, labels)
    assert not hasattr(plain, "predict_proba")
    with pytest.raises(AttributeError, match="predict_proba"):
        plain.predict_proba(X)


def test_partial_fit_says_what_it_cannot(rng):
    X, labels = noisy(rng, 80)
    model = SelfDistillationClassifier(features=sdgpu.Nystrom(10), lam=0.1)
    model.fit(X[:40], labels[:40]).predict_proba(X)
    model.partial_fit(X[40:60], labels[40:60])
    with pytest.raises(
        ValueError, match="keeps no rows that could be left out; calibrate on held-"
    ):
        model.predict_proba(X)
    remedy = CalibratedClassifierCV(FrozenEstimator(model), cv=2).fit(X[60:], labels[60:])
    assert log_loss(labels, remedy.predict_proba(X), labels=[0, 1, 2]) < 1.1
    model.fit(X, labels)
    assert model.predict_proba(X).shape == (80, 3)
    with pytest.raises(ValueError, match="class_weight='balanced' needs all rows"):
        SelfDistillationClassifier(features=sdgpu.Nystrom(10), class_weight="balanced").partial_fit(
            X, labels, classes=[0, 1, 2]
        )


def test_a_row_that_determines_itself_still_predicts():
    X = np.eye(4)
    model = SelfDistillationClassifier("linear", lam=0, steps=1).fit(X, [0, 1, 0, 1])
    assert model.predict(X).tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"could not be calibrated: row \d determines itself"):
        model.predict_proba(X)


@pytest.mark.parametrize("cv", [False, True])
@pytest.mark.parametrize("own", ["balanced", {"no": 1.0, "yes": 5.0}])
def test_class_weights_are_weights_of_rows(rng, own, cv):
    X, codes = noisy(rng, 70, 2)
    labels = np.array(["no", "yes"])[codes]
    weights = rng.uniform(0, 2, 70)
    weights[::7] = 0
    make = SelfDistillationClassifierCV if cv else SelfDistillationClassifier
    how = {"random_state": 0} if cv else {"lam": 0.3}
    present = weights > 0
    rows = np.zeros(70)
    own_weight = own
    if own == "balanced":  # so many of each class, by their weights
        own_weight = {name: 1 / weights[labels == name].sum() for name in ("no", "yes")}
        own_weight = {name: weights.sum() / 2 * w for name, w in own_weight.items()}
    rows[present] = weights[present] * compute_sample_weight(own_weight, labels[present])
    found = make(class_weight=own, **how).fit(X, labels, weights)
    wanted = make(fit_intercept=True, **how).fit(X, labels, rows)
    assert_allclose(found.decision_function(X), wanted.decision_function(X), rtol=1e-9)
    assert_allclose(found.predict_proba(X), wanted.predict_proba(X), rtol=1e-9)
    plain = make(fit_intercept=True, **how).fit(X, labels, weights)
    assert (found.decision_function(X) != plain.decision_function(X)).any()


def test_class_weights_that_are_none(rng):
    X, labels = noisy(rng, 30, 2)
    with pytest.raises(ValueError, match=r"class_weight=\{0: -1, 1: 1\} must be >= 0"):
        SelfDistillationClassifier(class_weight={0: -1, 1: 1}).fit(X, labels)
    with pytest.raises(ValueError, match="class_weight"):
        SelfDistillationClassifier(class_weight="balance").fit(X, labels)
    with pytest.raises(ValueError, match="fit_intercept='aut' is not known: did you mean 'auto'"):
        SelfDistillationClassifier(fit_intercept="aut").fit(X, labels)
    model = SelfDistillationClassifier(
        features=sdgpu.Nystrom(8), class_weight={0: 1.0, 1: 3.0}, lam=0.2
    )
    parts = clone(model).partial_fit(X[:15], labels[:15], classes=[0, 1])
    parts.partial_fit(X[15:], labels[15:])
    wanted = SelfDistillationClassifier(
        features=parts.moments_.map and sdgpu.Nystrom(landmarks=parts.moments_.map.landmarks),
        class_weight={0: 1.0, 1: 3.0},
        lam=0.2,
    ).fit(X, labels)
    assert_allclose(parts.decision_function(X), wanted.decision_function(X), rtol=1e-7)
