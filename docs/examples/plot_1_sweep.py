"""
One decomposition, every regularisation, weight and step
========================================================
A fit decomposes the kernel matrix once. A sweep then has the validation loss of every (lam, alpha, step), the limits
and the best chains, without another solve.
"""

import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_diabetes

import sdgpu
from sdgpu.study.pictures import plot_alpha_star, plot_losses

X, y = load_diabetes(return_X_y=True)
X, y = X / X.std(axis=0), (y - y.mean()) / y.std()
kernel = sdgpu.Gaussian(gamma=0.5 / sdgpu.median_distance(X[:300]) ** 2)

fit = sdgpu.fit(X[:300], y[:300], kernel, lams=np.geomspace(1e-3, 1e2, 30))
sweep = fit.sweep(X[300:], y[300:], alphas=np.linspace(0, 1, 101), steps=10)
print(f"{sweep.dataset['mse'].size:,} losses from one decomposition")
for rule in ("ridge", "fixed", "star", "joint"):
    best = sweep.best(rule)
    print(f"{rule:6} lam = {best.lam:<6.3g} step {best.step:<3g} loss {best.mse:.4f}")

# %%
# The loss of the best step at every (lam, alpha), in per cent above the best. Distilling with a small weight of the
# truth regularises further: it wants a smaller lam.
figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
plot_losses(sweep.dataset["mse"], label="validation loss", ax=ax)
plt.show()

# %%
# Algorithm 1 chooses a weight for every step. With much regularisation the best weight is above 1: the teacher is
# corrected, not followed.
figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
plot_alpha_star(sweep.dataset["alpha_star"], ax=ax)
plt.show()
