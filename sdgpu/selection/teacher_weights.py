"""Weights of several teachers by least squares: what mix of them makes the best student on validation rows.

The student's step t with a fixed weight alpha of the truth is linear in the weights w of its teachers: with
the truth G_0, 0 on rows without labels, E_m = P_m - G_0 on the labelled rows and V_m = P_m on the others,

    y(t) = y(t)[G_0] + sum_m w_m (y(t)[V_m] + (1 - alpha)^t u_t[E_m]),    sum w = 1.

A QR of [D_1 .. D_(T-1) of G_0, the same of every teacher, u_1[G_0] - Y] serves every alpha, step and kind
of weights; no normal equations. As sum w = 1 the residual is B w with the residuals B of students of single
teachers: what is wanted is the point of the plane through them, or of their simplex, that is nearest to 0.
"""

from __future__ import annotations

import numpy as np
import scipy

from sdgpu.backend.scaling import unit

__all__ = ["KINDS", "fitted_teacher_weights", "nested_teacher_loss", "teacher_residuals"]

KINDS = ("sum_to_one", "simplex")
EQUAL = 1e-12  # relative difference of losses that are the same


def teacher_residuals(
    triangle: np.ndarray, teachers: int, alpha: float, step: int, *, unlabelled: bool
) -> np.ndarray:
    """Residuals of the students of single teachers, (.., p, M): their columns have the norms of the losses.

    Parameters
    ----------
    triangle : array (.., p, p)
        R of [D_1 .. D_(T-1) of G_0; for each teacher u_1, D_1 .. D_(T-1) of V_m where there are rows
        without labels, and E_1 .. E_T; u_1[G_0] - Y].
    teachers : int
        M.
    alpha : float
    step : int
    unlabelled : bool
    """
    p, blocks = triangle.shape[-1], 2 if unlabelled else 1
    T = p // (1 + teachers * blocks)
    tails = (1.0 - alpha) ** np.arange(T + 1)
    truth = np.zeros(p)
    truth[: step - 1], truth[-1] = tails[1:step], 1.0
    columns = np.repeat(truth[:, None], teachers, axis=1)
    for m in range(teachers):
        first = T - 1 + m * T * blocks
        if unlabelled:
            columns[first : first + step, m] = tails[:step]
            first += T
        columns[first + step - 1, m] = tails[step]
    return np.asarray(triangle @ columns)


def fitted_teacher_weights(residuals: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """Weights (M,) that minimise ||residuals w||^2 with sum w = 1, and what is left.

    Parameters
    ----------
    residuals : array (p, M)
        Of students of single teachers.
    kind : {"sum_to_one", "simplex"}
        Any weights, or weights >= 0.

    Notes
    -----
    Of any sign by SVD of the differences to the equal mix, of which the smallest solution is taken: equal
    teachers get equal weights. On the simplex by non-negative least squares of [residuals; 1'] x = [0; 1],
    whose solution is the optimum but for its length.

    References
    ----------
    Lawson and Hanson (1974), chapter 23; Wolpert (1992) and Breiman (1996), stacking.
    """
    M = residuals.shape[1]
    B = residuals / unit(float(np.abs(residuals).max(initial=0.0)))
    if kind == "simplex":
        # where every teacher is perfect the row of ones alone is left: any weights do
        x, _ = scipy.optimize.nnls(np.concatenate([B, np.ones((1, M))]), np.eye(len(B) + 1)[-1])
        w, equal = x / x.sum(), np.full(M, 1 / M)
        if np.sum((B @ equal) ** 2) <= np.sum((B @ w) ** 2) * (1 + EQUAL):
            w = equal  # where all weights do, no teacher is better than others
    else:
        w = np.full(M, 1 / M)
        N = np.linalg.svd(np.ones((1, M)))[2][1:].T  # an orthonormal basis of what sums to 0
        U, sizes, Wt = np.linalg.svd(B @ N, full_matrices=False)
        # differences that are rounding of the residuals are no directions
        keep = sizes > max(B.shape) * np.finfo(float).eps * np.linalg.norm(B)
        w = w - N @ (Wt[keep].T @ ((U[:, keep].T @ (B @ w)) / sizes[keep]))
    return w, float(np.sum((residuals @ w) ** 2))


def nested_teacher_loss(folds: np.ndarray, kind: str) -> float:
    """||residuals w||^2 of rows that had no part in choosing w: each part with the weights of the others.

    Parameters
    ----------
    folds : array (F, p, M)
        Residuals of students of single teachers on each part of the rows.
    kind : {"sum_to_one", "simplex"}
    """
    loss = 0.0
    for f, own in enumerate(folds):
        others = np.concatenate(np.delete(folds, f, axis=0))  # ((F - 1) p, M)
        loss += float(np.sum((own @ fitted_teacher_weights(others, kind)[0]) ** 2))
    return loss
