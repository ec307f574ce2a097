"""
Intervals that keep their promise, at every step
================================================
The jackknife+ needs the fits without each row. They are all in one decomposition, for later steps too: no refit.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu.study.pictures.palette import PALETTE
from sdgpu.study.real_data.datasets import load, split

ASKED, STEPS = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]), 3


def coverage(source, rows):
    """Share of test targets inside, (asked, step) and for the Gaussian-process reading, over four splits."""
    data, inside, gaussian = load(source, rows=rows, seed=0), [], []
    for seed in range(4):
        parts = split(data, seed=seed)
        X, y, X_test, y_test = parts.X_train, parts.Y_train[:, 0], parts.X_test, parts.Y_test[:, 0]
        kernel = sdgpu.Gaussian(gamma=0.5 / sdgpu.median_distance(X) ** 2)
        fit = sdgpu.fit(X, y, kernel, [0.03 * len(X)], intercept=True, method="eigh")
        path = fit.path(alphas=0.3, steps=STEPS)
        for share in ASKED:
            ends = path.interval(X_test, share)
            inside.append(((ends.lower <= y_test) & (y_test <= ends.upper)).mean(axis=1))
        noise = np.mean((y - path.fitted[0]) ** 2)  # as if it were normal, and of one size
        spread = np.sqrt(path.variance(X_test).posterior[0] + noise)
        gaussian.append([(abs(y_test - path.predict(X_test)[0]) <= z * spread).mean() for z in Z])
    return np.reshape(inside, (4, len(ASKED), STEPS)).mean(axis=0), np.mean(gaussian, axis=0)


Z = np.array([0.674, 0.842, 1.036, 1.282, 1.645, 1.960])  # of the normal distribution
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained", sharey=True)
for ax, (source, rows) in zip(axes, {"diabetes": None, "flights": 1250}.items(), strict=True):
    found, gaussian = coverage(source, rows)
    print(
        source, "asked", ASKED, *(f"\n  step {s + 1} {found[:, s].round(3)}" for s in range(STEPS))
    )
    print("  Gaussian process", gaussian.round(3))
    ax.plot(ASKED, ASKED, color="black", lw=1, label="what was asked for")
    for step in range(STEPS):
        ax.plot(
            ASKED,
            found[:, step],
            "os^"[step],
            color=PALETTE[step],
            label=f"jackknife+, step {step + 1}",
        )
    ax.plot(ASKED, gaussian, "x--", color=PALETTE[4], label="Gaussian process, step 1")
    ax.set(title=source, xlabel="coverage asked for")
axes[0].set_ylabel("share of test targets inside")
axes[0].legend(fontsize=8)
plt.show()
