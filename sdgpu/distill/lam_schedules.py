"""A lam for each step: chains as their last step sees them.

With H_t the smoother of step t, y(t) = H_t (alpha_t Y + (1 - alpha_t) y(t - 1)), Theorem 4.1 holds with a
basis for each step,

    y(t) = u_1 + sum_{j<t} s_j D_j,    u_1 = H_t Y,    D_j = -H_t .. H_(t-j+1) (1 - H_(t-j)) Y,

and the same tail products s_j of the weights. So each step of each schedule of lam is a lam of its own for
what makes losses of lam: a row (lam_t, lam_(t-1), .., lam_1), the last step first, whose triangle is right
for step t alone. Greedy weights, joint optima and grids then take the triangle of each step.

References
----------
Borup and Andersen (2021), Proposition D.1; Moniri and Hassani (2025) for students that regularise more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.distill.joint_weights import JointWeights, steady_joint_weights
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.smoothers import RIDGE, Smoother, like

__all__ = [
    "backward_dual_filters",
    "backward_rows",
    "by_step",
    "joint_by_step",
    "of_own_step",
    "rests_of_steps",
    "shortened",
]


def backward_rows(lams: np.ndarray) -> np.ndarray:
    """Rows (S T, T) of the steps of schedules (S, T): lam of the step itself, of the one before, ..

    Rows of early steps go on with the first lam: what they say of more steps than they have is not used.

    Examples
    --------
    >>> backward_rows(np.array([[1.0, 2.0, 3.0]]))
    array([[1., 1., 1.],
           [2., 1., 1.],
           [3., 2., 1.]])
    """
    T = lams.shape[1]
    index = np.maximum(np.arange(T)[:, None] - np.arange(T), 0)
    return lams[:, index].reshape(-1, T)


def of_own_step(values: np.ndarray, steps: int) -> np.ndarray:
    """Values (S T, A, T, ..) of rows: what each says of its own step, (S, A, T, ..)."""
    split = values.reshape(-1, steps, *values.shape[1:])  # (S, T, A, T, ..)
    return np.stack([split[:, t, :, t] for t in range(steps)], axis=2)


def by_step(triangles: np.ndarray, steps: int) -> np.ndarray:
    """Triangles (S T, .., T, T) with the step as the first axis, (T, S, .., T, T)."""
    return np.moveaxis(triangles.reshape(-1, steps, *triangles.shape[1:]), 1, 0)


def shortened(triangles: np.ndarray, t: int) -> np.ndarray:
    """Triangles (.., t, t) of chains of t steps from those of more."""
    T = triangles.shape[-1]
    return np.asarray(merge_rows(None, triangles[..., [*range(t - 1), T - 1]]))


def joint_by_step(triangles: np.ndarray, noise: np.ndarray) -> JointWeights:
    """Joint optima of 1..T steps, each with the triangle of its own last step.

    Parameters
    ----------
    triangles : array (T, S, T, T)
    noise : array (S,)
        As in :func:`sdgpu.distill.joint_weights.steady`.

    Returns
    -------
    JointWeights
        Of batches (S,). Chains of more steps have other lam, and need not be better.
    """
    T, S = triangles.shape[:2]
    losses, schedules = np.empty((S, T)), np.full((S, T, T - 1), np.nan)
    products = np.zeros((S, T, T - 1))
    for t in range(1, T + 1):
        own = steady_joint_weights(shortened(triangles[t - 1], t), noise)
        losses[:, t - 1] = own.losses[:, -1]
        schedules[:, t - 1, : t - 1] = own.alphas
        products[:, t - 1, : t - 1] = own.tails[:, -1]
    return JointWeights(
        alphas=own.alphas,
        coefficients=own.coefficients,
        losses=losses,
        schedules=schedules,
        tails=products,
        condition=own.condition,
        rank=own.rank,
    )


def backward_dual_filters(eigenvalues: Any, lams: Any, smoother: Smoother = RIDGE) -> Any:
    """Dual filters of u_1, D_1, .., D_(T-1), for lam of the last step, of the one before, ..

    Parameters
    ----------
    eigenvalues : array (k,)
    lams : array (.., T)
    smoother : Smoother, default ridge

    Returns
    -------
    array (.., T, k)
        With equal lam :func:`sdgpu.distill.filters.step_dual_filters`.
    """
    xp, lams = compat.array_namespace(eigenvalues), like(eigenvalues, lams)
    scale = smoother.dual(eigenvalues, lams[..., 0])
    a, rest = smoother.shrinkage(eigenvalues, lams), smoother.complement(eigenvalues, lams)
    filters, kept = [scale + xp.zeros_like(a[..., 0, :])], -scale
    for j in range(1, lams.shape[-1]):
        filters.append(kept * rest[..., j, :])
        kept = kept * a[..., j, :]
    return xp.stack(filters, axis=-2)


def rests_of_steps(
    smoother: Smoother, eigenvalues: np.ndarray, lams: np.ndarray, steps: int
) -> Iterator[np.ndarray]:
    """1 - a_t, a_t (1 - a_(t-1)), a_t a_(t-1) (1 - a_(t-2)), .., T arrays (L, k).

    1 - B(t) is their sum, each times s_j. `lams` are one for all steps (L,), or rows (L, T) with the last
    step first.
    """
    a, rest = smoother.shrinkage(eigenvalues, lams), smoother.complement(eigenvalues, lams)
    if lams.ndim == 1:
        a, rest = (np.broadcast_to(x[:, None], (len(lams), steps, x.shape[1])) for x in (a, rest))
    kept = np.ones_like(a[:, 0])
    for j in range(steps):
        yield kept * rest[:, j]
        kept = kept * a[:, j]
