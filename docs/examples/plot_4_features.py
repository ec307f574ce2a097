"""
Rows without end: features in place of the matrix
=================================================
Nystrom features make a model whose cost grows with n, not with its square. How many are enough? The exact fit is beside.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu

rng = np.random.default_rng(0)


def rows(n):
    X = rng.uniform(-2, 2, (n, 2))
    return X, np.sin(3 * X[:, 0]) * np.cos(2 * X[:, 1]) + 0.3 * rng.standard_normal(n)


X, y = rows(2000)
X_val, y_val = rows(1000)
kernel, lams = sdgpu.Gaussian(2.0), np.geomspace(1e-4, 1e2, 20)
exact = sdgpu.fit(X, y, kernel, lams, method="eigh").sweep(X_val, y_val).best()

sizes, losses = [10, 20, 40, 80, 160, 320], []
for k in sizes:
    fit = sdgpu.fit(X, y, kernel, lams, features=sdgpu.Nystrom(k))
    losses.append(fit.sweep(X_val, y_val).best().mse)

figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.plot(sizes, losses, "o-", color="#0072B2", label="k Nystrom features")
ax.axhline(exact.mse, color="#222222", ls=":", label="exact")
ax.set(xscale="log", yscale="log", xlabel="k", ylabel="validation loss")
ax.legend()
plt.show()
