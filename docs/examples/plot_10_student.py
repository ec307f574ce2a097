"""
What a teacher is worth
=======================
The teacher has seen 600 labelled rows, the student has 60 of its own. What is it worth to listen? The loss of the student
over the weight of its labels, with its own rows alone and with 400 more that only the teacher has labelled.
"""

import numpy as np
from matplotlib import pyplot as plt

import sdgpu

rng = np.random.default_rng(1)
X_teacher, X, U, X_val = (rng.standard_normal((n, 3)) for n in (600, 60, 400, 2000))
y_teacher, y, _, y_val = (
    np.sin(2 * x[:, 0]) + x[:, 1] ** 2 + rng.standard_normal(len(x))
    for x in (X_teacher, X, U, X_val)
)

teacher = sdgpu.fit(X_teacher, y_teacher, sdgpu.Laplacian(0.3), [3.0], intercept=True)
taught = float(np.mean((teacher.path(steps=1).predict(X_val)[0] - y_val) ** 2))
lams, alphas = np.geomspace(0.3, 30, 15), np.linspace(0, 1.2, 121)

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for rows, name in ((None, "labelled rows alone"), (U, "and 400 without labels")):
    s = sdgpu.student(teacher, sdgpu.Gaussian(0.15), lams, X, y, unlabelled=rows, intercept=True)
    mse = s.sweep(X_val, y_val, alphas=alphas).dataset["mse"].min("lam").squeeze()
    ax.plot(alphas, mse, label=name)
    best = int(np.argmin(mse.values))
    ax.plot(alphas[best], mse[best], "k*")
ax.axhline(taught, color="gray", linestyle="--", label="the teacher")
ax.set(xlabel="alpha, the weight of the labels", ylabel="validation error, best lam")
ax.legend()
plt.show()

# %%
# At alpha = 1 the teacher is not heard on labelled rows; on the others it always is.
print(taught)
