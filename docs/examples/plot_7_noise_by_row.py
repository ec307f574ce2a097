"""
Noise that differs by row, and nobody says how
==============================================
Leave-one-out residuals have the noise in them: its variance is smoothed out of them, and its inverse weighs the rows of
a second fit.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu.study.pictures.palette import PALETTE

KERNEL, LAMS, ROWS = sdgpu.Gaussian(0.5), np.geomspace(1e-2, 1e2, 25), 300


def clean(X):
    return np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]


def errors(spread, draws):
    """Squared distances from the clean function: without weights, with the known and with estimated ones."""
    found = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        X, X_new = rng.normal(size=(ROWS, 2)), rng.normal(size=(2000, 2))
        y = clean(X) + spread(X) * rng.normal(size=ROWS)
        ours = sdgpu.reweighted_fit(X, y, KERNEL, LAMS, intercept=True)
        models = [ours]
        for weights in (spread(X) ** -2.0, np.ones(ROWS)):
            own = weights / weights.mean()
            fit = sdgpu.fit(X, y, KERNEL, LAMS, sample_weight=own, intercept=True, method="eigh")
            models.insert(0, fit.predictor(fit.sweep(alphas=[0.0], steps=1).best()))
        found.append([np.mean((model.predict(X_new) - clean(X_new)) ** 2) for model in models])
    return np.mean(found, axis=0), ours


kinds = {
    "0.3 exp(1.2 x_2)": lambda X: 0.3 * np.exp(1.2 * X[:, 1]),
    "0.5": lambda X: np.full(len(X), 0.5),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for ax, (name, spread) in zip(axes, kinds.items(), strict=True):
    (plain, known, estimated), model = errors(spread, draws=2)
    print(f"noise {name}: no weights {plain:.4f}, known {known:.4f}, estimated {estimated:.4f}")
    line = np.stack([np.zeros(100), np.linspace(-2, 2, 100)], axis=1)
    ax.semilogy(line[:, 1], spread(line), color="black", label="noise")
    ax.semilogy(line[:, 1], np.sqrt(model.variance(line)), color=PALETTE[1], label="as estimated")
    ax.set(title=f"noise {name}", xlabel="x_2", ylabel="standard deviation")
axes[0].legend()
plt.show()
