"""
What distillation does to the spectrum
======================================
Along an eigenvector with eigenvalue d, step t keeps the share B(t) of the target (Lemma 4.2). Without ground truth
(alpha = 0) small eigenvalues are damped by a further factor d / (d + lam) at every step; any alpha > 0 stops that, and
the limit is ridge with lam / alpha.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu.study.pictures import plot_filters

rng = np.random.default_rng(0)
X = rng.standard_normal((200, 3))
y = np.sin(X[:, 0])
fit = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), lams=[0.3])

figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for ax, alpha in zip(axes, (0.0, 0.35), strict=True):
    plot_filters(fit, 0.3, alpha, 8, ax=ax)
    ax.set_title(f"alpha = {alpha}")
plt.show()

# %%
# The limit (17) needs no steps: it is the ordinary fit with another regularisation.
limit = fit.limit(alpha=0.35).predict(X[:3])
ridge = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), lams=[0.3 / 0.35]).path(steps=1).predict(X[:3])[0]
print(limit, ridge)
