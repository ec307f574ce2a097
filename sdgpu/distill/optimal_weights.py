"""The weights alpha* (16) of Algorithm 1: at every step the one that minimises its validation loss.

They work on the triangles R of :mod:`sdgpu.distill.loss_triangles`, so a chain of T steps costs O(T^3)
numbers for each lam (or each output), whatever the number of validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.distill.loss_triangles import in_units, step_losses
from sdgpu.distill.schedules import tails

__all__ = ["GreedyWeights", "greedy_weights", "loss_of_schedule"]


@dataclass(frozen=True, eq=False)
class GreedyWeights:
    """What Algorithm 1 found.

    Attributes
    ----------
    alphas : array (..., T - 1)
        alpha* of steps 2..T.
    losses : array (..., T)
        Sums of squared errors of steps 1..T.
    """

    alphas: np.ndarray
    losses: np.ndarray


def greedy_weights(
    triangle: np.ndarray, *, clip: bool = False, by_step: bool = False
) -> GreedyWeights:
    """Algorithm 1: at every step the weight (16) that minimises the validation loss of that step.

    alpha*_t = 1 - <P0 - P1, Yv - P1> / ||P0 - P1||^2, with P1 the prediction of step 1 and P0 that of
    step t with alpha_t = 0. A zero denominator (the teacher's student equals the ground-truth fit)
    gives 1.

    Parameters
    ----------
    triangle : array (..., T, T)
        One R for each lam, or for each output where the weights are per output.
    clip : bool, default False
        Clip every alpha* to [0, 1] before the next step builds on it.
    by_step : bool, default False
        Whether there is a triangle for each step, (T, ..., T, T): of a lam for each step
        (:mod:`sdgpu.distill.lam_schedules`).

    Returns
    -------
    GreedyWeights
        The greedy chain is not monotone in the loss: step t + 1 has to build on the teacher that
        step t chose. Look at the best step, not only at the last.
    """
    T = triangle.shape[-1]
    triangles, unit = in_units(triangle)
    if not by_step:
        triangles, unit = (np.broadcast_to(x, (T, *x.shape)) for x in (triangles, unit))
    batch = triangles.shape[1:-2]
    alphas = np.empty((*batch, T - 1))
    losses = np.empty((*batch, T))
    products = np.zeros((*batch, 0))  # tails s of the step before
    losses[..., 0] = step_losses(triangles[0], products)
    for t in range(2, T + 1):
        triangle = triangles[t - 1]
        error = triangle[..., :, -1]  # P1 - Yv
        # the step with alpha_t = 0 shifts the tails: s_1 = 1, s_{j+1} = s_j of the teacher
        shifted_tails = np.concatenate([np.ones((*batch, 1)), products], axis=-1)
        change = np.einsum("...ij,...j->...i", triangle[..., :, : t - 1], shifted_tails)  # P0 - P1
        denominator = np.einsum("...i,...i->...", change, change)
        inner = -np.einsum("...i,...i->...", change, error)  # <P0 - P1, Yv - P1>
        zero = denominator <= np.finfo(float).tiny
        alpha = 1 - inner / np.where(zero, 1.0, denominator)  # (16)
        alpha = np.where(zero, 1.0, alpha)
        if clip:
            alpha = np.clip(alpha, 0.0, 1.0)
        alphas[..., t - 2] = alpha
        products = (1 - alpha)[..., None] * shifted_tails
        losses[..., t - 1] = step_losses(triangle, products)
    unit = np.moveaxis(unit[..., 0], 0, -1)
    return GreedyWeights(alphas, losses * unit * unit)


def loss_of_schedule(triangle: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Sums of squared errors of steps 1..T of one schedule (T - 1,), as (..., T)."""
    T = triangle.shape[-1]
    return np.stack(
        [step_losses(triangle, tails(alphas[: t - 1])) for t in range(1, T + 1)], axis=-1
    )
