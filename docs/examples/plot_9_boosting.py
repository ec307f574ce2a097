"""
Boosting is self-distillation
=============================
m rounds of ridge, each on the residuals of the one before, are m steps of self-distillation with weights above 1:
alpha_t = m / (m - t + 1). The left panel shows what is left of each part of the targets by several smoothers of one
decomposition, the right one the error of boosting, round by round, as crosses on the chain of its schedule, and the
best schedules of as many steps.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu
from sdgpu.distill.schedules import boosting_schedule
from sdgpu.distill.smoothers import IteratedTikhonov, as_smoother

rng = np.random.default_rng(0)
X, X_val = rng.standard_normal((300, 3)), rng.standard_normal((2000, 3))
y, y_val = (np.sin(2 * x[:, 0]) + x[:, 1] + rng.standard_normal(len(x)) for x in (X, X_val))
lam, rounds = 60.0, np.arange(1, 13)
fit = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), lams=[lam])

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
delta = np.geomspace(1e-2, 1e2, 200)
for name in ("ridge", "gradient_flow", "iterated", "cutoff"):
    left.semilogx(delta, as_smoother(name).complement(delta, 1.0), label=name.replace("_", " "))
left.set(xlabel="eigenvalue over lam", ylabel="share of the target that is left", title="Smoothers")
left.legend()


def error(predicted):
    return float(np.mean((predicted - y_val) ** 2))


boosting = [
    error(fit.with_smoother(IteratedTikhonov(int(m))).path(lam, steps=1).predict(X_val)[0])
    for m in rounds
]
distilled = [
    error(fit.path(lam, boosting_schedule(int(m)), steps=int(m)).predict(X_val)[-1]) for m in rounds
]
joint = fit.joint_alphas(X_val, y_val, lam=lam, steps=len(rounds), ridge=1e-8, folds=1)
right.plot(rounds, distilled, "-", label="self-distillation with boosting's weights")
right.plot(rounds, boosting, "x", label="boosting: ridge on residuals")
right.plot(rounds, joint.mse, "--", label="best weights for these rows")
right.set(xlabel="rounds, or steps", ylabel="validation error", title=f"lam = {lam:g}")
right.legend()
plt.show()

# %%
# The two agree to rounding.
print(np.max(np.abs(np.array(boosting) - distilled)))
