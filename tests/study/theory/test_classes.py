"""Scores against scikit-learn, pseudo-labels and logistic steps against explicit refits."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.selection.class_scores import class_scores, probabilities, score_terms
from sdgpu.study.theory.classes import logistic_path, pseudo_label_path

KERNEL = sdgpu.Gaussian(0.5)


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 2))
    labels = (X[:, 0] + 0.5 * rng.standard_normal(60) > 0).astype(int) + (X[:, 1] > 1)
    new = rng.standard_normal((40, 2))
    truth = (new[:, 0] > 0).astype(int) + (new[:, 1] > 1)
    return X, np.eye(3)[labels], new, truth


def test_scores(rng):
    P, labels = rng.dirichlet(np.ones(4), size=200), rng.integers(0, 4, 200)
    found = class_scores(P, labels)
    assert_allclose(found["accuracy"], accuracy_score(labels, P.argmax(axis=1)))
    assert_allclose(found["nll"], log_loss(labels, P, labels=range(4)))
    assert_allclose(found["brier"], ((P - np.eye(4)[labels]) ** 2).sum(axis=1).mean())
    confidence, right, total = P.max(axis=1), P.argmax(axis=1) == labels, 0.0
    for b in range(15):
        own = (confidence >= b / 15) & ((confidence < (b + 1) / 15) | (b == 14))
        if own.any():
            total += own.mean() * abs(right[own].mean() - confidence[own].mean())
    assert_allclose(found["ece"], total)


def test_ties_are_what_argmax_makes_of_them(backend):
    rows = np.array([[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [-1, -1, -2], [0.1, 0.7, 0.2]])
    for label in range(3):
        truth = np.eye(3)[np.full(len(rows), label)].T
        right = score_terms(*(backend.asarray(x) for x in (rows.T, rows.T, truth)))[0]
        assert (to_numpy(right) == (rows.argmax(axis=1) == label)).all()


def test_the_grid_is_that_of_paths(data):
    X, Y, new, truth = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0])
    found = fitted.sweep(new, np.eye(3)[truth], alphas=[-0.2, 0.4], steps=3, classes=True).dataset
    for lam in (0.1, 1.0):
        for alpha in (-0.2, 0.4):
            P = probabilities(fitted.path(lam, alpha, 3).predict(new))
            wanted = class_scores(P, truth)
            for name, values in wanted.items():
                assert_allclose(found[name].sel(lam=lam, alpha=alpha), values, atol=1e-12)


@pytest.mark.parametrize("teacher", ["hard", "soft"])
def test_pseudo_labels_against_refits(data, teacher):
    X, Y, new, _ = data
    K, mixed, answer = KERNEL(X), Y, Y
    found = pseudo_label_path(
        sdgpu.fit(X, Y, KERNEL, lams=0.3), Y, 0.3, [0.2, 0.7], 3, teacher=teacher, temperature=0.5
    )
    for step, alpha in enumerate([None, 0.2, 0.7]):
        if step:
            p = probabilities(answer)
            q = (
                np.eye(3)[answer.argmax(axis=1)]
                if teacher == "hard"
                else p**2 / (p**2).sum(1)[:, None]
            )
            mixed = alpha * Y + (1 - alpha) * q
        dual = np.linalg.solve(K + 0.3 * np.eye(60), mixed)
        answer = K @ dual
        assert_allclose(found.dual[step], dual, atol=1e-9)
        assert_allclose(found.predict(new)[step], KERNEL(new, X) @ dual, atol=1e-9)


def test_logistic_steps_are_optimal(data):
    X, Y, new, _ = data
    K, lam = KERNEL(X), 0.5
    found = logistic_path(sdgpu.fit(X, Y, KERNEL, lams=lam), Y, lam, [0.3, 0.6], 3)
    u = Y
    for step in range(3):
        if step:
            alpha = [0.3, 0.6][step - 1]
            u = alpha * Y + (1 - alpha) * softmax(found.fitted[step - 1], axis=1)
        # stationarity of the objective over functions f = K w: lam w = u - softmax(K w)
        w = found.dual[step]
        assert_allclose(lam * w, u - softmax(K @ w, axis=1), atol=1e-4)
        assert_allclose(found.fitted[step], K @ w, atol=1e-4)
    assert found.predict(new).shape == (3, 40, 3)


def test_bad_input(data):
    X, Y, *_ = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.3)
    one = np.stack([np.ones(60), np.zeros(60)], axis=1)
    for path in (pseudo_label_path, logistic_path):
        with pytest.raises(ValueError, match="one class only"):
            path(fitted, one, 0.3)
    with pytest.raises(ValueError, match="at least two classes"):
        logistic_path(fitted, Y[:, 0], 0.3)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        logistic_path(fitted, Y, 0.3, 1.5)
    with pytest.raises(ValueError, match="teacher"):
        pseudo_label_path(fitted, Y, 0.3, teacher="firm")
