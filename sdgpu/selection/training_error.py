"""Training error, degrees of freedom and GCV of a grid, and how wrong they may be."""

from __future__ import annotations

import numpy as np

from sdgpu.backend.scaling import safe_unit
from sdgpu.distill.loss_triangles import grid_losses
from sdgpu.distill.schedules import grid_tails
from sdgpu.solvers.solution import Solution

__all__ = ["training_losses"]


def training_losses(
    solution: Solution,
    lams: np.ndarray,
    alphas: np.ndarray,
    steps: int,
    *,
    estimate: bool,
    accuracy: float,
) -> dict[str, np.ndarray]:
    """Training error, degrees of freedom and GCV of the grid (L, A, T), the last two with their errors.

    Without `estimate` they are NaN, as nothing is known of the traces. `accuracy` is the relative error of
    the predictions, which counts where residuals are small.
    """
    n, tails = solution.counted, grid_tails(alphas, steps)
    size = solution.target_rms
    unit = safe_unit(size)
    with np.errstate(over="ignore", under="ignore"):  # squares that leave float64: the sweep warns
        train = grid_losses(solution.training(lams, steps) / unit, tails)
        train = train / (solution.weight * solution.outputs)
        train = train * unit * unit
    # n less the degrees of freedom: a sum of its own, so that it does not cancel where they are nearly n
    residual_dof, error, gcv_error = (np.full_like(train, np.nan) for _ in range(3))
    exact = solution.leverages.exact
    if estimate:
        complements = solution.leverages.complements(lams, steps)  # (p, L, T)
        residual_dof = np.cumsum(tails * complements.mean(axis=0)[:, None, :], axis=-1)
    gcv = train / (residual_dof / n) ** 2
    if estimate and exact:
        error, gcv_error = np.zeros_like(residual_dof), np.zeros_like(residual_dof)
    elif estimate:
        p, squares = len(complements), np.zeros_like(residual_dof)
        # deviations from the mean of the probes: few numbers at a time, whatever the grid
        for deviation in complements - complements.mean(axis=0):
            squares += np.cumsum(tails * deviation[:, None, :], axis=-1) ** 2
        bias = solution.leverages.bias(lams, steps)[:, None, :]
        error = np.sqrt(squares / (p * (p - 1)) + bias**2)
        gcv_error = _gcv_error(train, residual_dof / n, error / n)
        gcv_error += _residual_error(size, train, alphas, accuracy) / (residual_dof / n) ** 2
    return {
        "train_mse": train,
        "degrees_of_freedom": n - residual_dof,
        "degrees_of_freedom_error": error,
        "gcv": gcv,
        "gcv_error": gcv_error,
    }


def _gcv_error(train: np.ndarray, residual_share: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How far train / share^2 goes if share is off by its error: infinitely if three of it may be all."""
    # 1 / (share - error)^2 - 1 / share^2, the larger side
    low = np.abs(residual_share) - error
    certain = np.abs(residual_share) > 3 * error
    growth = (
        np.divide(
            np.abs(residual_share), low, out=np.full_like(residual_share, np.inf), where=certain
        )
        ** 2
        - 1
    )
    return train / residual_share**2 * growth


def _residual_error(
    size: float, train: np.ndarray, alphas: np.ndarray, accuracy: float
) -> np.ndarray:
    """What the error of the predictions may make of the training error (L, A, T)."""
    T = train.shape[-1]
    powers = np.abs(1 - alphas[:, None]) ** np.arange(T)  # (A, T)
    # sum_i |c_i| of the combination of u_1 .. u_t: 1 for weights in [0, 1]
    before = np.cumsum(np.concatenate([0 * powers[:, :1], powers[:, :-1]], axis=1), axis=1)
    growth = np.abs(alphas[:, None]) * before + powers
    error = accuracy * size * growth
    return np.asarray(2 * np.sqrt(train) * error + error**2)
