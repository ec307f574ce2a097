"""
Labels that the model made
==========================
Each round learns from labels that the round before made. Replaced, they lose the truth; accumulated, they lose it slowly;
mixed with true ones, they settle. Lines are closed forms, dots the means of 200 simulations. The right panel shows the
best share of true labels in endless rounds: 0.618 where ridge hardly matters, and never below one half.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu

rng = np.random.default_rng(0)
X = rng.standard_normal((200, 2))
truth = np.sin(2 * X[:, 0]) + X[:, 1]
lams = np.geomspace(1e-9, 1e2, 45)
fit = sdgpu.fit(X, truth, sdgpu.Laplacian(1.0), lams, method="eigh")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for scheme, weights, name in (
    ("replace", None, "replaced"),
    ("accumulate", [0.0], "accumulated"),
    ("mix", [0.618], "0.618 true ones in each round"),
):
    s = sdgpu.synthetic_labels(
        fit, truth, rounds=40, scheme=scheme, weights=weights, noise=0.5, lams=[0.3]
    )
    risk, drawn = s.dataset["risk"].squeeze(), s.simulate(200)["risk"].squeeze()
    (line,) = left.loglog(risk["round"], risk, label=name)
    left.loglog(drawn["round"][::3], drawn[::3], ".", color=line.get_color())
left.set(xlabel="round", ylabel="mean squared error to the truth", title="lam = 0.3")
left.legend()

for noise in (0.3, 1.0, 3.0):
    s = sdgpu.synthetic_labels(fit, truth, noise=noise)
    right.semilogx(lams, s.best_weight()["weight"], label=f"noise {noise:g}")
right.axhline((5**0.5 - 1) / 2, color="gray", linestyle="--", label="one over the golden ratio")
right.axhline(0.5, color="gray", linestyle=":")
right.set(xlabel="lam", ylabel="best share of true labels", title="Endless rounds")
right.legend()
plt.show()

# %%
# What is left of the efficiency where least squares keeps all labels of 40 rounds: towards 6 / pi^2 = 0.608.
kept = sdgpu.synthetic_labels(fit, truth, rounds=40, scheme="accumulate", lams=lams[:1])
variance = kept.dataset["variance"].squeeze()
print(float(variance[0] / variance[-1]))
