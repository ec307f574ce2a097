"""
Which features matter?
======================

A length scale for each feature, learned by the gradient of the marginal likelihood: a feature that does not matter
gets a long one. Here for Friedman's first function, which knows five of its ten features.
"""

# %%
import warnings

import numpy as np
from sklearn.datasets import make_friedman1

import sdgpu
from sdgpu.study.pictures import plot_relevance

X, y = make_friedman1(700, n_features=10, noise=1.0, random_state=0)
y = (y - y[:200].mean()) / y[:200].std()
start = sdgpu.Gaussian(0.5 / sdgpu.median_distance(X[:200]) ** 2)
lams = np.geomspace(1e-3, 10, 20)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # length scales at their bound: features that do not matter
    tuned = sdgpu.tune(X[:200], y[:200], start, lams, by="marginal")
plain = sdgpu.fit(X[:200], y[:200], start, lams, method="eigh")
best = plain.sweep(steps=1).best()  # by leave-one-out

# %%
# The relevance of each feature, 1 / lengthscale: the function is 10 sin(pi x_0 x_1) + 20 (x_2 - 1/2)^2 + 10 x_3 + 5 x_4.
ax = plot_relevance(tuned)

# %%
# Errors on rows that were held out: one width, and a length scale for each feature.
for name, path in (
    ("one width", plain.path(best.lam, steps=1)),
    ("learned", tuned.fit.path(steps=1)),
):
    print(f"{name}: {np.mean((path.predict(X[200:])[0] - y[200:]) ** 2):.3f}")
