"""The joint optimum with care: coefficients in a box, few of them, and judged on rows it has not seen.

Theorem 4.1 writes step T as sum_i c_i u_i with sum c = 1. Coefficients in [0, 1] are the schedules with
all weights in [0, 1]; other boxes keep them from cancelling each other. Everything works on the triangle
of :mod:`sdgpu.distill.losses`, whose columns are already orthogonalised, in T x T numbers.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import nnls

from sdgpu.distill.losses import merge_rows, step_losses
from sdgpu.distill.schedules import from_tails
from sdgpu.distill.weights import JointWeights, joint_weights

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
        As in :func:`sdgpu.distill.weights.joint_weights`, for which this is without box and terms.
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
    losses, schedules, c = np.empty(T), np.full((T, T - 1), np.nan), np.ones(1)
    for t in range(1, T + 1):
        c = _best(triangle, t, ridge, box, min(terms or t, t))
        rest = np.cumsum(c[::-1])[::-1][1:]  # s_j = c_{j+1} + .. + c_t
        losses[t - 1] = step_losses(triangle, rest)
        schedules[t - 1, : t - 1] = from_tails(rest)
    return JointWeights(schedules[-1].copy(), c, losses, schedules, free.condition, free.rank)


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
    found = np.empty(folds.shape[:2])
    for f in range(len(folds)):
        others = np.concatenate(np.delete(folds, f, axis=0))  # ((F - 1) T, T)
        best = restricted_weights(merge_rows(None, others), ridge=ridge, box=box, terms=terms)
        for t in range(1, folds.shape[-1] + 1):
            # infinite weights belong to coefficients that no schedule has; those of c are always finite
            steps = np.nan_to_num(best.schedules[t - 1, : t - 1], posinf=0.0, neginf=0.0)
            tails = np.cumprod(np.flip(1 - steps))
            found[f, t - 1] = step_losses(folds[f], tails)
    return found


def _best(
    triangle: np.ndarray, t: int, ridge: float, box: tuple[float, float] | None, terms: int
) -> np.ndarray:
    """Coefficients (t,) of the best chain of t steps."""
    error = triangle[:, -1:]
    moved = np.cumsum(triangle[:, : t - 1], axis=1)
    E = np.concatenate([error, error + moved], axis=1)  # u_i - Y
    penalty = np.sqrt(ridge) * np.linalg.norm(error)
    found, best = np.full(t, 1.0 / t), np.inf
    for subset in combinations(range(t), terms):
        own = list(subset)
        c = np.zeros(t)
        c[own] = _solve(E[:, own], penalty, box)
        loss = float(np.sum((E @ c) ** 2))
        if loss < best:
            found, best = c, loss
    return found


def _solve(E: np.ndarray, penalty: float, box: tuple[float, float] | None) -> np.ndarray:
    """min ||E c||^2 with sum c = 1, in the box."""
    p = E.shape[1]
    c = np.full(p, 1.0 / p)
    if p == 1:
        return c
    # directions that keep the sum: Helmert's
    N = np.linalg.qr(np.eye(p) - 1.0 / p)[0][:, : p - 1]
    moved = E @ N
    scale = np.linalg.norm(moved, axis=0)
    scale = np.where(scale == 0, 1.0, scale)
    U, singular, Wt = np.linalg.svd(moved / scale, full_matrices=False)
    singular = np.sqrt(np.maximum(singular, FLOOR * max(singular[0], 1e-300)) ** 2 + penalty**2)
    M = (N / scale) @ Wt.T / singular  # c = c_0 + M v with ||v + g|| to be minimised
    g = U.T @ (E @ c)
    if box is None:
        return c - M @ g
    base = c - M @ g
    G = np.concatenate([M, -M])
    h = np.concatenate([box[0] - base, base - box[1]])
    if (h <= 0).all():
        return base
    A = np.concatenate([G.T, h[None, :]])
    target = np.zeros(p)
    target[-1] = 1.0
    u, _ = nnls(A, target)
    left = A @ u - target
    found = base + M @ (-left[:-1] / left[-1])
    found = np.clip(found, *box)
    return found / found.sum()
