"""The joint optimum over all weights of a chain: least squares over the tails of Theorem 4.1.

Works on the triangles R of :mod:`sdgpu.distill.loss_triangles`: O(T^4) numbers for all chains of 1..T steps
and each lam, whatever the number of validation rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.backend.checks import GROWTH
from sdgpu.distill.loss_triangles import in_units, step_losses
from sdgpu.distill.schedules import from_tails

__all__ = [
    "ROUNDING",
    "JointWeights",
    "joint_status",
    "joint_weights",
    "steady",
    "steady_joint_weights",
]

# cond([D_1 .. D_{t-1}]) above which the coefficients have fewer than about 6 reliable digits
ILL_CONDITIONED = 1e10
# from the optimum to one that is surely steady
RIDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
_Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # of a least-squares problem

ROUNDING = 1e-14  # relative error of a prediction, at least
# a chain keeps its promise if errors of predictions change the root of its loss by less
KEPT = 1e-2
LARGE = 100.0  # a combination of predictions with such coefficients amplifies their noise as much


@dataclass(frozen=True, eq=False)
class JointWeights:
    """The schedules that minimise the validation loss over all weights at once.

    Attributes
    ----------
    alphas : array (..., T - 1)
        Weights of steps 2..T; infinite where the optimum belongs to no schedule.
    coefficients : array (..., T)
        c over u_1..u_T, with sum 1; they always describe the optimum.
    losses : array (..., T)
        Sums of squared errors of the joint optimum of 1..T steps, not increasing without a ridge.
    schedules : array (..., T, T - 1)
        Row t - 1 holds the weights of the best chain of t steps, then NaN.
    tails : array (..., T, T - 1)
        Its tail products s_1 .. s_{t-1}, then 0: finite where a weight is not.
    condition : array (...)
        Condition number of the scaled least-squares problem of all T steps.
    rank : array (...)
        Independent directions among the T - 1.
    """

    alphas: np.ndarray
    coefficients: np.ndarray
    losses: np.ndarray
    schedules: np.ndarray
    tails: np.ndarray
    condition: np.ndarray
    rank: np.ndarray


def joint_weights(triangle: np.ndarray, *, ridge: float = 0.0) -> JointWeights:
    """Least squares over all T - 1 weights: min ||E + D s||^2 (+ ridge * penalty) over the tails s.

    The tails are a bijection of the weights, so this is the optimum over every schedule (Pareek, Du
    and Oh 2024 for linear models). The columns are scaled to norm 1 and solved by SVD in float64;
    singular values below T eps relative are dropped.

    Parameters
    ----------
    triangle : array (..., T, T)
        One R for each lam.
    ridge : float, default 0
        Tikhonov penalty ridge ||x||^2 on the scaled tails x_j = s_j ||D_j||: a number without a unit, to be
        compared with squared singular values of at most T - 1.

    Returns
    -------
    JointWeights
    """
    T, batch = triangle.shape[-1], triangle.shape[:-2]
    losses, schedules = np.empty((*batch, T)), np.full((*batch, T, T - 1), np.nan)
    products = np.zeros((*batch, T, T - 1))
    solution = np.zeros((*batch, 0))
    condition, rank = np.ones(batch), np.zeros(batch, dtype=int)
    triangle, unit = in_units(triangle)
    losses[..., 0] = step_losses(triangle, solution)
    for t in range(2, T + 1):
        previous = np.concatenate([solution, np.zeros((*batch, 1))], axis=-1)
        solution, condition, rank = _least_squares(triangle, t, ridge)
        losses[..., t - 1] = step_losses(triangle, solution)
        if ridge == 0:
            # dropped directions must not make a longer chain worse than a shorter one
            worse = losses[..., t - 1] > losses[..., t - 2]
            solution = np.where(worse[..., None], previous, solution)
            losses[..., t - 1] = np.where(worse, losses[..., t - 2], losses[..., t - 1])
        products[..., t - 1, : t - 1] = solution
        schedules[..., t - 1, : t - 1] = from_tails(solution)
    alphas, c = schedules[..., -1, :].copy(), _coefficients(solution)
    return JointWeights(
        alphas=alphas,
        coefficients=c,
        losses=losses * unit * unit,
        schedules=schedules,
        tails=products,
        condition=condition,
        rank=rank,
    )


def steady(products: np.ndarray, losses: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Whether chains keep the loss that they promise when they are carried out.

    Predictions u_i that are off by `noise` each are amplified by sum |c_i|: with coefficients of 1e12 that
    cancel nothing is left of the promise.

    Parameters
    ----------
    products : array (..., t - 1)
        Tails of the chains.
    losses : array (...)
        Sums of squared errors that they promise.
    noise : array (...)
        Error of one prediction: the root of a sum of squares, like that of a loss.

    Returns
    -------
    array of bool (...)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        amplified_noise = np.abs(_coefficients(products)).sum(axis=-1) * noise
        # no chain with an infinite weight, or one whose product with the others overflows
        growth = np.log10(np.maximum(np.abs(1 - from_tails(products)), 1.0)).sum(axis=-1)
    return (amplified_noise <= np.maximum(KEPT * np.sqrt(losses), 10 * noise)) & (growth < GROWTH)


def steady_joint_weights(triangle: np.ndarray, noise: np.ndarray) -> JointWeights:
    """Joint optima among the chains that can be carried out.

    Where the optimum of t steps is not :func:`steady`, the one with the smallest ridge that makes it so, or
    what fewer steps do if that is better. Condition and rank are those of the optimum without a ridge.

    Parameters
    ----------
    triangle : array (..., T, T)
    noise : array (...)
        As in :func:`steady`.
    """
    T, batch = triangle.shape[-1], triangle.shape[:-2]
    triangle, unit = in_units(triangle)
    noise = noise / unit[..., 0]
    losses, schedules = np.empty((*batch, T)), np.full((*batch, T, T - 1), np.nan)
    products, best = np.zeros((*batch, T, T - 1)), np.zeros((*batch, 0))
    condition, rank = np.ones(batch), np.zeros(batch, dtype=int)
    losses[..., 0] = step_losses(triangle, best)
    for t in range(2, T + 1):
        # later steps may always do what fewer do, with a first weight of 1
        best, least_loss = (
            np.concatenate([best, np.zeros((*batch, 1))], axis=-1),
            losses[..., t - 2],
        )
        parts, condition, rank = _scaled_svd(triangle, t)
        has_steady = np.zeros(batch, dtype=bool)
        for ridge in RIDGES:
            solution = _solution(*parts, ridge)
            loss = step_losses(triangle, solution)
            newly_steady = ~has_steady & steady(solution, loss, noise)
            better = newly_steady & (loss < least_loss)
            best = np.where(better[..., None], solution, best)
            least_loss = np.where(better, loss, least_loss)
            has_steady |= newly_steady
            if has_steady.all():
                break
        losses[..., t - 1] = least_loss
        products[..., t - 1, : t - 1] = best
        schedules[..., t - 1, : t - 1] = from_tails(best)
    alphas = schedules[..., -1, :].copy()
    return JointWeights(
        alphas=alphas,
        coefficients=_coefficients(best),
        losses=losses * unit * unit,
        schedules=schedules,
        tails=products,
        condition=condition,
        rank=rank,
    )


def _coefficients(products: np.ndarray) -> np.ndarray:
    """c (..., t) over u_1 .. u_t from tails (..., t - 1)."""
    ends = np.ones((*products.shape[:-1], 1))
    return -np.diff(np.concatenate([ends, products, 0 * ends], axis=-1), axis=-1)


def _least_squares(
    triangle: np.ndarray, t: int, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tails of the best chain of t steps with condition and rank, for each triangle."""
    parts, condition, rank = _scaled_svd(triangle, t)
    return _solution(*parts, ridge), condition, rank


def _scaled_svd(triangle: np.ndarray, t: int) -> tuple[_Parts, np.ndarray, np.ndarray]:
    """What :func:`_solution` needs of [D_1 .. D_{t-1}], scaled to columns of norm 1; condition and rank."""
    columns = triangle[..., : t - 1, : t - 1]
    target = -triangle[..., : t - 1, -1]
    scale = np.linalg.norm(columns, axis=-2, keepdims=True)
    # what is too small to have a norm is no direction either
    columns, scale = np.where(scale == 0, 0.0, columns), np.where(scale == 0, 1.0, scale)
    U, singular, Wt = np.linalg.svd(columns / scale)
    largest, smallest = singular[..., :1], singular[..., -1]
    keep = singular > t * np.finfo(float).eps * largest
    safe = np.where(smallest > 0, smallest, 1.0)
    condition = np.where(smallest > 0, largest[..., 0] / safe, np.inf)
    rhs = np.einsum("...ji,...j->...i", U, target) * np.where(keep, singular, 0.0)
    return (rhs, np.where(keep, singular, 1.0), Wt, scale), condition, keep.sum(axis=-1)


def _solution(
    rhs: np.ndarray, singular: np.ndarray, Wt: np.ndarray, scale: np.ndarray, ridge: float
) -> np.ndarray:
    """Tails (..., t - 1): with no ridge and full rank the plain solution."""
    coordinates = rhs / (singular**2 + ridge)
    return np.asarray(np.einsum("...ji,...j->...i", Wt, coordinates) / scale[..., 0, :])


def joint_status(optimum: JointWeights) -> str:
    """Say what to make of one joint optimum, that of a single triangle."""
    T, condition = len(optimum.coefficients), float(optimum.condition)
    largest = float(np.abs(optimum.coefficients).max())
    if T == 1:
        return "one step has no weight to choose"
    if optimum.rank < T - 1:
        return (
            f"only {optimum.rank} of {T - 1} directions are independent in float64: fewer steps reach "
            "the same loss; use fewer steps or ridge > 0"
        )
    if not np.isfinite(optimum.alphas).all():
        return "the optimum belongs to no finite schedule: use its coefficients, or ridge > 0"
    if condition > ILL_CONDITIONED:
        return (
            f"ill-conditioned ({condition:.1e}): the loss is right, the single weights are not; "
            "they may fit noise of the validation set; use fewer steps or ridge > 0"
        )
    if largest > LARGE:
        return (
            f"coefficients up to {largest:.1e} cancel each other: they may fit noise of the "
            f"validation set, and predictions keep about {max(0, 15 - int(np.log10(largest)))} digits; "
            "compare on other data, use fewer steps or ridge > 0"
        )
    return "well-conditioned"
