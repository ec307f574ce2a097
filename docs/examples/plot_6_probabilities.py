"""
Probabilities of a classifier, calibrated without a calibration set
===================================================================
Fitted one-hot values are no probabilities. One number makes some of them, chosen on the scores that every training row
has by the fit without it; all of these are in the one decomposition.
"""

import warnings

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import sdgpu
from sdgpu.selection.class_scores import class_scores, probabilities
from sdgpu.study.pictures.palette import PALETTE


def by_kind(X, y, seed):
    """Probabilities of test rows, in four ways, and their labels."""
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.4, random_state=seed, stratify=y)
    X, y = X[:600], y[:600]
    scaler = StandardScaler().fit(X)
    X, X_test = scaler.transform(X), scaler.transform(X_test)
    model = sdgpu.SelfDistillationClassifierCV(gamma="median", selection="loo").fit(X, y)
    one_hot, weights = np.eye(y.max() + 1), 0.0 if model.step_ == 1 else model.alpha_
    kernel = sdgpu.Gaussian(0.5 / sdgpu.median_distance(X) ** 2)
    fit = sdgpu.fit(X, one_hot[y], kernel, model.lam_, method="eigh")
    left_out = fit.loo(None, weights, model.step_)[-1]
    values = fit.path(None, weights, model.step_).predict(X_test)[-1]
    sigmoids = [
        LogisticRegression(C=1e6).fit(left_out[:, [j]], y == j).predict_proba(values[:, [j]])[:, 1]
        for j in range(len(one_hot))
    ]
    logistic = LogisticRegression(C=100.0, max_iter=5000).fit(left_out, y)
    found = {
        "clipped": probabilities(values),
        "predict_proba": model.predict_proba(X_test),
        "a sigmoid a class": np.stack(sigmoids, axis=1) / np.sum(sigmoids, axis=0)[:, None],
        "logistic regression": logistic.predict_proba(values),
    }
    return found, y_test


warnings.simplefilter("ignore", RuntimeWarning)
sources = {"digits": load_digits, "breast cancer": load_breast_cancer, "wine": load_wine}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for ax, (name, load) in zip(axes, sources.items(), strict=True):
    scores = {}
    for seed in range(2):
        found, labels = by_kind(*load(return_X_y=True), seed)
        for kind, P in found.items():
            scores.setdefault(kind, []).append(class_scores(P, labels))
    print(name)
    for number, (kind, each) in enumerate(scores.items()):
        nll, ece, right = (np.mean([s[key] for s in each]) for key in ("nll", "ece", "accuracy"))
        print(f"  {kind:20} log loss {nll:.4f}  calibration error {ece:.4f}  accuracy {right:.4f}")
        ax.bar(number, nll, color=PALETTE[number], label=kind)
    ax.set(title=name, xticks=[], ylabel="log loss of test rows" if ax is axes[0] else "")
axes[0].legend(fontsize=8)
plt.show()
