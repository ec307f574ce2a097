"""
When does a student beat its teacher?
=====================================
A study compares rules over seeds and levels of noise: how well does each choose lam, alpha and step, judged on
clean test data?
"""

import tempfile

from matplotlib import pyplot as plt

import sdgpu.study
from sdgpu.study.pictures import plot_learning_curves

study = {
    "name": "noise",
    "seeds": [0, 1, 2, 3, 4, 5],
    "data": {"source": "diabetes"},
    "noise": {"levels": [0.0, 0.5, 1.0, 2.0]},
    "kernel": {"name": "gaussian", "width_over_median": 1.0},
    "choose": {"rules": ["ridge", "fixed", "star", "gcv", "oracle"]},
    "compute": {"workers": 1},
}
with tempfile.TemporaryDirectory() as folder:
    results = sdgpu.study.run(study, f"{folder}/noise")
    table = results.summary()
    frame = results.frame
print(table.xs("mean", axis=1, level=1).round(3).to_string())

# %%
# Bars are standard errors over the splits; four levels of noise shared one decomposition for each.
figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
plot_learning_curves(frame, "noise", ax=ax)
plt.show()
