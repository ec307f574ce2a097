"""
A lam for each step
===================
A teacher may have regularised too little or too much: what does a student with a lam of its own make of it? The error of
step 2, which learns from the teacher alone, for every pair of lam, and for each teacher the best lam of its student.
A teacher with too little ridge is mended by a student with more (Moniri and Hassani, 2025); one with too much is not.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu

rng = np.random.default_rng(0)
X, X_val = rng.standard_normal((200, 3)), rng.standard_normal((1000, 3))
y, y_val = (np.sin(2 * x[:, 0]) + x[:, 1] for x in (X, X_val))
y = y + 0.7 * rng.standard_normal(200)
lams = np.geomspace(1e-2, 1e2, 41)
fit = sdgpu.fit(X, y, sdgpu.Gaussian(0.3), lams, method="eigh")

teacher, student = np.meshgrid(lams, lams, indexing="ij")
schedules = np.column_stack([teacher.ravel(), student.ravel()])
mse = fit.sweep(X_val, y_val, lams=schedules, alphas=[0.0], steps=2).dataset["mse"].values
first, second = (mse[:, 0, step].reshape(41, 41) for step in (0, 1))
best = second.argmin(axis=1)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
picture = left.pcolormesh(lams, lams, np.log10(second.T), shading="nearest")
figure.colorbar(picture, label="log10 of the student's error")
left.plot(lams, lams[best], ".-", color="C1", label="best student")
left.plot(lams, lams, ":", color="C1", label="the same lam")
left.set(xscale="log", yscale="log", xlabel="lam of the teacher", ylabel="lam of the student")
left.legend()
right.loglog(lams, first[:, 0], label="teacher")
right.loglog(lams, np.diagonal(second), ":", label="student with the same lam")
right.loglog(lams, second.min(axis=1), label="student with its best lam")
right.set(xlabel="lam of the teacher", ylabel="validation error")
right.legend()
plt.show()

# %%
# The best student of all, and the best ordinary fit.
print(second.min(), first.min())
