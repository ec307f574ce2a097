"""The joint optimum with care: coefficients in a box, few of them, and judged on rows it has not seen.

Theorem 4.1 writes step T as sum_i c_i u_i with sum c = 1. Coefficients in [0, 1] are the schedules with
all weights in [0, 1]; other boxes keep them from cancelling each other. Everything works on the triangle
of :mod:`sdgpu.distill.loss_triangles`, whose columns are already orthogonalised, in T x T numbers.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy

from sdgpu.distill.joint_weights import JointWeights, joint_weights
from sdgpu.distill.loss_triangles import merge_rows, step_losses
from sdgpu.distill.schedules import from_tails

__all__ = ["nested_losses", "restricted_weights"]

FLOOR = 1e-7  # relative singular value at which directions count as equal: 1e-14 of the loss


def restricted_weights(
    triangle: np.ndarray, *, ridge: float, box: tuple[float, float] | None, terms: int | None
) -> JointWeights:
    """Joint optimum of 1..T steps with restricted coefficients.

    min ||sum_i c_i (u_i - Y)||^2 over sum c = 1, low <= c_i <= high, at most `terms` of them not 0.

    Parameters
    ----------
    triangle : array (T, T)
    ridge : float
        As in :func:`sdgpu.distill.joint_weights.joint_weights`, for which this is without box and terms.
    box : pair of floats, optional
    terms : int, optional
        All subsets of that size are tried, so the optimum is exact.

    Returns
    -------
    JointWeights

    References
    ----------
    Lawson and Hanson (1974), chapter 23: least squares with inequalities by non-negative least squares.
    """
    free = joint_weights(triangle, ridge=ridge)
    if box is None and terms is None:
        return free
    T = len(triangle)
    losses, schedules = np.empty(T), np.full((T, T - 1), np.nan)
    tails = np.zeros((T, T - 1))
    for t in range(1, T + 1):
        s = _best(triangle, t, ridge, box, min(terms or t, t))
        losses[t - 1] = step_losses(triangle, s)
        tails[t - 1, : t - 1] = s
        schedules[t - 1, : t - 1] = from_tails(s)
    c = -np.diff(np.concatenate([[1.0], tails[-1], [0.0]]))
    return JointWeights(
        alphas=schedules[-1].copy(),
        coefficients=c,
        losses=losses,
        schedules=schedules,
        tails=tails,
        condition=free.condition,
        rank=free.rank,
    )


def nested_losses(
    folds: np.ndarray, *, ridge: float, box: tuple[float, float] | None, terms: int | None
) -> np.ndarray:
    """Sums of squared errors of 1..T steps on rows that had no part in choosing, for each fold.

    Parameters
    ----------
    folds : array (F, T, T)
        One triangle for each part of the rows; the weights for one are chosen on all others.

    Returns
    -------
    array (F, T)
    """
    losses = np.empty(folds.shape[:2])
    for f in range(len(folds)):
        other_folds = np.concatenate(np.delete(folds, f, axis=0))  # ((F - 1) T, T)
        best = restricted_weights(merge_rows(None, other_folds), ridge=ridge, box=box, terms=terms)
        for t in range(1, folds.shape[-1] + 1):
            losses[f, t - 1] = step_losses(folds[f], best.tails[t - 1, : t - 1])
    return losses


def _best(
    triangle: np.ndarray, t: int, ridge: float, box: tuple[float, float] | None, terms: int
) -> np.ndarray:
    """Tails (t - 1,) of the best chain of t steps."""
    D, error = triangle[:, : t - 1], triangle[:, -1]
    tails, best_loss = np.zeros(t - 1), np.inf
    for subset in combinations(range(t), terms):
        indices = np.array(subset)
        # all tails before the first of the subset are 1, and those between two of it are the same
        start = error + D[:, : indices[0]].sum(axis=1)
        moves = np.zeros((len(D), 0))
        if terms > 1:
            moves = np.add.reduceat(D[:, : indices[-1]], indices[:-1], axis=1)
        y = _solve(moves, start, ridge, box)
        loss = float(np.sum((start + moves @ y) ** 2))
        if loss < best_loss:
            best_loss = loss
            tails = np.repeat([1.0, *y, 0.0], np.diff([0, *indices, t - 1]))
    return tails


def _solve(
    moves: np.ndarray, start: np.ndarray, penalty: float, box: tuple[float, float] | None
) -> np.ndarray:
    """min ||start + moves y||^2 over the tails y (p - 1,), with c = -diff(1, y, 0) in the box."""
    p = moves.shape[1] + 1
    if p == 1:
        return np.zeros(0)
    scale = np.linalg.norm(moves, axis=0)
    scale = np.where(scale == 0, 1.0, scale)
    U, singular, Wt = np.linalg.svd(moves / scale, full_matrices=False)
    floored = np.maximum(singular, FLOOR * max(singular[0], 1e-300))
    damped = np.sqrt(floored**2 + penalty)
    M = Wt.T / damped / scale[:, None]  # y = M v, with ||v + g|| to be minimised
    g = (U.T @ start) * singular / damped
    free = -M @ g
    if box is None:
        return free
    # c = first + N y
    N = np.eye(p, p - 1, -1) - np.eye(p, p - 1)
    base = np.eye(p)[0] + N @ free
    h = np.concatenate([box[0] - base, base - box[1]])
    if (h <= 0).all():
        return free
    # least distance: min ||r|| with G r >= h, from non-negative least squares
    G = np.concatenate([N @ M, -N @ M])
    u, _ = scipy.optimize.nnls(np.concatenate([G.T, h[None, :]]), np.eye(p)[-1])
    direction = G.T @ u
    y = free + M @ (direction / (1 - h @ u))
    c = np.clip(np.eye(p)[0] + N @ y, *box)  # rounding may leave the box
    return 1 - np.cumsum(c / c.sum())[:-1]
