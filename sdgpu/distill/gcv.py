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

__all__ = ["OneShot", "jackknife_error", "one_shot"]


@dataclass(frozen=True, eq=False)
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
    alpha_error, score_error : arrays of the shape of alpha
        Standard errors where traces are estimates; 0 where all eigenvalues are known.
    """

    alpha: Any
    score: Any
    ridge_score: Any
    distilled_score: Any
    covariance: Any
    alpha_error: Any
    score_error: Any


def one_shot(
    eigenvalues: np.ndarray,
    Z: np.ndarray,
    lams: np.ndarray,
    n: int,
    traces: np.ndarray | None = None,
    *,
    per_output: bool = False,
    outside: np.ndarray | None = None,
    unpenalised: int = 0,
) -> OneShot:
    """One-shot weights of every lam.

    R = ||r||^2 / (n (1 - t1)^2), R0 = ||q||^2 / (n (1 - t2)^2), C = <r, q> / (n (1 - t1) (1 - t2)) with
    t1 = tr H / n, t2 = tr H^2 / n; 1 - alpha = (R - C) / (R + R0 - 2 C).

    Parameters
    ----------
    eigenvalues : array (k,)
        All of K, or those of a basis that holds the targets.
    Z : array (k, c)
        V'Y.
    lams : array (L,) or (L, 2)
        Of both steps, or of step 1 and of step 2 each.
    n : int
    traces : array (p, L, 2), optional
        Independent estimates of tr H and tr H^2; from the eigenvalues by default, which then are all
        that are not 0.
    per_output : bool, default False
        One weight for each output instead of a shared one.
    outside : array (c,), optional
        ||Y||^2 - ||Z||^2 where the basis does not hold the targets: a residual of both fits.
    unpenalised : int, default 0
        Functions that no penalty holds down, an intercept: a degree of freedom of both fits each.

    Returns
    -------
    OneShot
        Arrays (L,), or (L, c).

    Notes
    -----
    O(L k c p). Where both fits have the same residuals no weight is better than another, and alpha is 1.
    The errors of estimates are those of the jackknife.

    References
    ----------
    Dang, Patil and Rinaldo (2026); Golub, Heath and Wahba (1979) for GCV.
    """
    teacher, own = (lams, lams) if lams.ndim == 1 else lams.T
    r_filter = own[:, None] / (eigenvalues + own[:, None])  # 1 - a, (L, k)
    # 1 - a a' with a' of the teacher
    q_filter = r_filter + (1 - r_filter) * (teacher[:, None] / (eigenvalues + teacher[:, None]))
    weights = [
        product / n for product in (r_filter * r_filter, q_filter * q_filter, r_filter * q_filter)
    ]
    squares = Z * Z
    outside_mean = 0.0 if outside is None else outside / n
    sums = [weight @ squares + outside_mean for weight in weights]  # (L, c)
    if not per_output:
        sums = [total.mean(axis=1) for total in sums]
    if traces is None:
        null_count = n - len(eigenvalues) - unpenalised  # eigenvalues of 0
        complements = (
            np.stack([part.sum(axis=1) + null_count for part in (r_filter, q_filter)]) / n
        )  # 1 - t1, 1 - t2
        estimates = _parabola(sums, complements)
        zero = np.zeros_like(estimates[0])
        return OneShot(*estimates, zero, zero.copy())
    complements = np.moveaxis(1 - traces / n, -1, 0)  # (2, p, L)
    estimates = _parabola(sums, complements.mean(axis=1))
    p = complements.shape[1]
    jackknife_means = (complements.sum(axis=1, keepdims=True) - complements) / (p - 1)
    replicates = [_parabola(sums, jackknife_means[:, j]) for j in range(p)]
    errors = [jackknife_error(np.stack([replicate[i] for replicate in replicates])) for i in (0, 1)]
    return OneShot(*estimates, errors[0], errors[1])


def jackknife_error(replicates: np.ndarray, estimate: np.ndarray | None = None) -> np.ndarray:
    """Error of an estimate from those without one group of p, (p, ..): Efron and Stein (1981).

    With the `estimate` itself (..) its bias counts too, (p - 1) (mean of the replicates - estimate):
    1 / (1 - h)^2 of a noisy h is too large on average.
    """
    p, mean = len(replicates), replicates.mean(axis=0)
    square = (p - 1) * np.mean((replicates - mean) ** 2, axis=0)
    if estimate is not None:
        square = square + ((p - 1) * (mean - estimate)) ** 2
    return np.asarray(np.sqrt(square))


def _parabola(
    sums: list[np.ndarray], complements: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weight, score, R, R0 and C from sums of squares (L,) or (L, c) and 1 - t1, 1 - t2 (2, L)."""
    once, twice = complements if sums[0].ndim == 1 else complements[..., None]
    R, R0, C = sums[0] / once**2, sums[1] / twice**2, sums[2] / (once * twice)
    curvature = R + R0 - 2 * C
    flat = curvature <= 1e-14 * (R + R0)
    xi = np.where(flat, 0.0, (R - C) / np.where(flat, 1.0, curvature))
    return 1 - xi, R - xi * (R - C), R, R0, C
