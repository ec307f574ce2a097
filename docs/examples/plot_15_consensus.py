"""
Wrong labels, and a teacher that knows better
=============================================
A share of the labels of 300 digits is wrong. A network that was trained on them labels better than they do, and a second
one can learn from it: from its probabilities, from its most likely classes, or from the labels where both agree
(consensus retraining). Test accuracies of four seeds each, and their means.
"""

import dataclasses

import numpy as np
import torch
from matplotlib import pyplot as plt

from sdgpu.nn import Teacher, consensus, predict, score, train, with_label_noise
from sdgpu.study.networks.experiments import preset

torch.set_num_threads(1)  # layers this small want one
experiment = preset("digits")
data = experiment.load()
NAMES = ("the labels", "its probabilities", "its classes", "labels where both agree")


def accuracies(share, seed):
    """Test accuracies in %, and what share of the rows is left and of these is wrong."""
    part = with_label_noise(data.train, share, seed=seed)
    noisy = dataclasses.replace(data, train=part)
    config = experiment.config.replace(seed)
    start = experiment.network(data, seed)
    first = train(start, noisy, None, config).model
    agreed = consensus(noisy, first, config)
    hard = dataclasses.replace(config, hard=True)
    models = (
        first,
        train(start, noisy, Teacher(first, 0.0), config).model,
        train(start, noisy, Teacher(first, 0.0), hard).model,
        train(start, agreed.data, None, config).model,
    )
    left = agreed.data.train
    wrong = float((left.labels != left.clean_labels).double().mean())
    return [100 * score(predict(m, data.test), data.test).accuracy for m in models], (
        agreed.share,
        wrong,
    )


figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for place, share in enumerate((0.2, 0.4)):
    found = [accuracies(share, seed) for seed in range(4)]
    table = np.array([numbers for numbers, _ in found])
    for column, name in enumerate(NAMES):
        x, color = place + 0.2 * (column - 1.5), f"C{column}"
        ax.plot(np.full(4, x), table[:, column], ".", color=color)
        ax.plot(
            x,
            table[:, column].mean(),
            "_",
            ms=24,
            mew=3,
            color=color,
            label=None if place else name,
        )
    left = np.mean([kept for _, kept in found], axis=0)
    print(share, np.round(table.mean(axis=0), 2), np.round(left, 3))
ax.set(
    xticks=[0, 1], xticklabels=["20 %", "40 %"], xlabel="wrong labels", ylabel="test accuracy, %"
)
ax.set_ylim(79, 100)
ax.legend(title="learned from", loc="upper center", ncols=2)
plt.show()
