"""
Rows that stay where they are
=============================
Eight hundred rows are shared among workers that send spectra and no row. What is lost, when a server takes the mean of
their fits? The data have two strong directions, and the truth lies along them: there more steps of self-distillation help.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu import federated

rng = np.random.default_rng(0)
d, N = 200, 800
scales = np.ones(d)
scales[:2] = np.sqrt([60.0, 8.0])
truth = np.concatenate([[0.4, 1.0], 1.2 * rng.standard_normal(d - 2) / np.sqrt(d)])
X, X_val = (rng.standard_normal((n, d)) * scales for n in (N, 4000))
y, y_val = X @ truth + 1.5 * rng.standard_normal(N), X_val @ truth

space = federated.FeatureSpace(sdgpu.Linear(), sdgpu.Explicit(), d=d)
lams, workers, steps = np.geomspace(10, 1e5, 13), [1, 2, 4, 8, 16], 3
curves = {"all rows in one place": [], "mean, weights for the mean": []}
curves |= {"mean, weights for one worker": [], "mean of ridges": []}


def loss(fit, alphas=None):
    """The best over lam: of the weights that are best for this fit, of given ones, or of step 1."""
    if alphas is None:
        return float(fit.sweep(X_val, y_val, alphas=[0.0], steps=steps).dataset["joint_mse"].min())
    found = [fit.path(lam, alphas[i], steps).predict(X_val)[-1] for i, lam in enumerate(lams)]
    return min(np.mean((predicted - y_val) ** 2) for predicted in found)


for count in workers:
    parts = np.array_split(np.arange(N), count)
    messages = [space.spectrum(X[rows], y[rows]) for rows in parts]
    everyone, mean = space.fit(messages, lams), space.average(messages, lams)
    alone = space.fit(messages[:1], lams / count)
    sweep = alone.sweep(X_val, y_val, alphas=[0.0], steps=steps).dataset
    local = sweep["joint_alpha"].sel(chain=steps, step=slice(2, None)).values
    curves["all rows in one place"].append(loss(everyone))
    curves["mean, weights for the mean"].append(loss(mean))
    curves["mean, weights for one worker"].append(loss(mean, local))
    ridge = mean.sweep(X_val, y_val, alphas=[1.0], steps=1).dataset["mse"].min()
    curves["mean of ridges"].append(float(ridge))

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, values), line in zip(curves.items(), ("-", "o-", "s--", "^:"), strict=True):
    ax.plot(workers, values, line, label=name)
ax.set(xscale="log", xticks=workers, xlabel="workers", ylabel="squared error against the truth")
ax.set_xticks(workers, [str(count) for count in workers])
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# What a worker of 200 rows would send, in bytes: its rows, its moments, ten eigenpairs.
rows = slice(0, 200)
sums = space.moments(X[rows], y[rows]).sums.state()[0]
ten = space.spectrum(X[rows], y[rows], rank=10)
print(X[rows].nbytes, sum(array.nbytes for array in sums.values()), ten.nbytes)
