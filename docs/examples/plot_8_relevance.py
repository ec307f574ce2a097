"""
Which features matter?
======================

A length scale for each feature, learned by the gradient of exact leave-one-out: a feature that does not matter
gets a long one. Here for the diabetes data of scikit-learn, 442 patients.
"""

# %%
import warnings

import numpy as np
from sklearn.datasets import load_diabetes

import sdgpu
from sdgpu.study.pictures import plot_relevance

data = load_diabetes()
X = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
y = (data.target - data.target.mean()) / data.target.std()
train, test = np.split(np.random.default_rng(0).permutation(len(X)), [300])

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # length scales at their bound: features that do not matter
    tuned = sdgpu.tune(X[train], y[train], sdgpu.Gaussian(0.5 / X.shape[1]), [1e-2, 1e3])
plain = sdgpu.fit(X[train], y[train], sdgpu.Gaussian(0.5 / X.shape[1]), np.geomspace(1e-2, 1e3, 20))
best = plain.sweep(steps=1).best()

# %%
# The relevance of each feature, 1 / lengthscale.
ax = plot_relevance(tuned, data.feature_names)

# %%
# Errors on rows that were held out: one width, and a length scale for each feature.
for name, path in (
    ("one width", plain.path(best.lam, steps=1)),
    ("learned", tuned.fit.path(steps=1)),
):
    print(f"{name}: {np.mean((path.predict(X[test])[0] - y[test]) ** 2):.3f}")
