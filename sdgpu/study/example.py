"""The paper's illustrative example (Section 4.5), with the numbers that its figures come from.

The paper prints gamma = 1/80; its figures come from gamma = 80. Its targets are not sampled anew:
they are the fixed ones of Mobahi et al. (2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Gaussian

__all__ = ["PAPER_LOSSES", "Example", "example_losses", "paper_example"]

LAM = 0.2
STEPS = 6
KERNEL = Gaussian(gamma=80.0)

_TARGETS = (
    0.38476636465198066, 1.2333967683416893, 1.33232242218057, 0.6920159488889518,
    -0.29756145531871736, -0.24189291901377769, -0.7964485769175675, -0.9616480167034174,
    -0.49672509509916934, -0.3469066003991437, 0.5589512650600734,
)  # fmt: skip

#: Losses that the authors' notebook prints: steps 1..6, then the limit, by weight.
PAPER_LOSSES = {
    0.0: (0.16477, 0.15076, 0.14915, 0.15561, 0.16735, 0.18251, 0.49505),
    0.25: (0.16477, 0.15309, 0.14958, 0.14903, 0.14946, 0.15011, 0.15250),
}


@dataclass(frozen=True, eq=False)
class Example:
    """Data and decomposition of the example.

    Attributes
    ----------
    X, y : array (11, 1), (11,)
        Training data.
    X_val, truth : array (101, 1), (101,)
        x = 0, 0.01, .., 1 and sin(2 pi x): the points of the losses, and the validation set of
        alpha*.
    fit : Fit
    """

    X: np.ndarray
    y: np.ndarray
    X_val: np.ndarray
    truth: np.ndarray
    fit: Fit


def paper_example() -> Example:
    """Make the example: 11 points, Gaussian kernel with gamma = 80, lam = 0.2.

    Examples
    --------
    >>> example = paper_example()
    >>> example_losses(example, 0.25).round(5)
    array([0.16477, 0.15309, 0.14958, 0.14903, 0.14946, 0.15011, 0.1525 ])
    """
    X = np.arange(11)[:, None] / 10
    y = np.array(_TARGETS)
    X_val = np.arange(101)[:, None] / 100
    return Example(X, y, X_val, np.sin(2 * np.pi * X_val[:, 0]), fit(X, y, KERNEL, lams=LAM))


def example_losses(example: Example, alpha: float) -> np.ndarray:
    """Mean squared error to the truth at steps 1..6 and in the limit, (7,)."""
    steps = example.fit.path(alphas=alpha, steps=STEPS).predict(example.X_val)
    limit = example.fit.limit(alpha=alpha).predict(example.X_val)
    return np.mean((np.vstack([steps, limit]) - example.truth) ** 2, axis=1)
