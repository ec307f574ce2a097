"""Generalised cross-validation of steps, and the one-shot weight that it gives without a grid.

GCV replaces each leverage of leave-one-out by their mean. For a smoother S of step tau,

    GCV = ||Y - S Y||^2 / n / (1 - tr S / n)^2.

With H = K (K + lam)^-1, residuals r = Y - H Y of the ordinary fit and q = Y - H^2 Y of pure distillation,
their corrected inner products R, R0 and C estimate the risks and the covariance of both; step 2 with
weight alpha is alpha times the first plus 1 - alpha times the second, so the best weight is that of a
parabola.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OneShot", "one_shot"]


@dataclass(frozen=True)
class OneShot:
    """The one-shot weight of step 2 and what it is estimated to bring.

    Attributes
    ----------
    alpha : float or array (L,) or (c,) or (L, c)
        Weight of the ground truth at step 2; any real number.
    score : array of the shape of alpha
        GCV of step 2 with that weight.
    ridge_score, distilled_score, covariance : arrays of the shape of alpha
        R of step 1, R0 of step 2 with alpha = 0, and C between them.
    """

    alpha: Any
    score: Any
    ridge_score: Any
    distilled_score: Any
    covariance: Any


def one_shot(
    eigenvalues: np.ndarray, Z: np.ndarray, lams: np.ndarray, *, per_output: bool = False
) -> OneShot:
    """One-shot weights of every lam from all eigenvalues.

    R = ||r||^2 / (n (1 - t1)^2), R0 = ||q||^2 / (n (1 - t2)^2), C = <r, q> / (n (1 - t1) (1 - t2)) with
    t1 = tr H / n, t2 = tr H^2 / n; 1 - alpha = (R - C) / (R + R0 - 2 C).

    Parameters
    ----------
    eigenvalues : array (n,)
    Z : array (n, c)
        V'Y.
    lams : array (L,)
    per_output : bool, default False
        One weight for each output instead of a shared one.

    Returns
    -------
    OneShot
        Arrays (L,), or (L, c).

    Notes
    -----
    O(L n c). Where both fits have the same residuals no weight is better than another, and alpha is 1.

    References
    ----------
    Dang, Patil and Rinaldo (2026); Golub, Heath and Wahba (1979) for GCV.
    """
    n = len(eigenvalues)
    rest = lams[:, None] / (eigenvalues + lams[:, None])  # 1 - a, (L, n)
    twice = rest * (2 - rest)  # 1 - a^2
    weights = [product / n for product in (rest * rest, twice * twice, rest * twice)]
    squares = Z * Z
    sums = [weight @ squares for weight in weights]  # (L, c)
    if not per_output:
        sums = [total.mean(axis=1) for total in sums]
    left, left_twice = (row.mean(axis=1) for row in (rest, twice))  # 1 - t1, 1 - t2
    if per_output:
        left, left_twice = left[:, None], left_twice[:, None]
    R, R0, C = sums[0] / left**2, sums[1] / left_twice**2, sums[2] / (left * left_twice)
    curvature = R + R0 - 2 * C
    flat = curvature <= 1e-14 * (R + R0)
    xi = np.where(flat, 0.0, (R - C) / np.where(flat, 1.0, curvature))
    return OneShot(1 - xi, R - xi * (R - C), R, R0, C)
