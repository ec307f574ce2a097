"""How many steps: the best lam and weights of 1..T steps, judged on rows that had no part in choosing.

More steps fit more of the noise of the rows that chose them. So each part of the rows (a fold) is judged
with the lam and the weights that all other parts choose, for every number of steps. Differences between
two numbers of steps are paired: both see the same rows, and the spread of the difference over the folds
is its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.distill.joint_weights import JointWeights, steady_joint_weights
from sdgpu.distill.loss_triangles import merge_rows, step_losses
from sdgpu.distill.step_tests import fair_lams
from sdgpu.selection.losses import Validation

__all__ = ["StepChoice", "choose_steps"]


@dataclass(frozen=True, eq=False)
class StepChoice:
    """The best chain of 1..T steps and what it is worth. Losses are means over rows and outputs.

    Attributes
    ----------
    lam_index : array (T,) of int
        Its lam, as a number of the grid.
    schedules, tails : array (T, T - 1)
        Its weights of steps 2..t, then NaN, and their tail products, then 0.
    losses : array (T,)
        Loss on the rows that chose it.
    nested : array (T,)
        Loss where each fold is judged with the choice of the others.
    gain : array (T, T)
        nested[b] - nested[a]: what a + 1 steps save against b + 1.
    standard_error : array (T, T)
        Of the gain, from its spread over folds.
    """

    lam_index: np.ndarray
    schedules: np.ndarray
    tails: np.ndarray
    losses: np.ndarray
    nested: np.ndarray
    gain: np.ndarray
    standard_error: np.ndarray


def choose_steps(validation: Validation, lams: np.ndarray, noise: float) -> StepChoice:
    """The best lam and weights of 1..T steps, with lam among :func:`sdgpu.distill.step_tests.fair_lams`.

    Parameters
    ----------
    validation : Validation
        With triangles (L, T, T) and those of at least two folds (F, L, T, T).
    lams : array (L,)
    noise : float
        Relative error of a prediction: only chains that keep their loss when they are carried out with it
        (:func:`sdgpu.distill.joint_weights.steady`).

    Returns
    -------
    StepChoice

    Notes
    -----
    O(F^2 L T^3): rows were seen when the triangles were made.
    """
    assert validation.folds is not None
    folds, scale = validation.folds, validation.scale
    size = np.asarray(noise * np.sqrt(validation.zero))
    best, index, tails = _best(validation.triangles, lams, size)
    T, F = best.losses.shape[-1], len(folds)
    judged = np.empty((F, T))
    for f in range(F):
        others = np.concatenate(list(np.delete(folds, f, axis=0)), axis=-2)  # (L, (F - 1) T, T)
        _, lam, s = _best(np.asarray(merge_rows(None, others)), lams, size)
        judged[f] = _losses(folds[f], lam, s)
    gain, variance = _paired(judged)
    return StepChoice(
        lam_index=index,
        schedules=best.schedules[index, np.arange(T)],
        tails=tails,
        losses=scale * best.losses[index, np.arange(T)],
        nested=scale * judged.sum(axis=0),
        gain=scale * gain,
        standard_error=scale * np.sqrt(variance),
    )


def _paired(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a saves against b (T, T), summed over folds, and its variance, from losses (F, T)."""
    difference = losses[:, None, :] - losses[:, :, None]
    return difference.sum(axis=0), len(losses) * difference.var(axis=0, ddof=1)


def _best(
    triangles: np.ndarray, lams: np.ndarray, size: np.ndarray
) -> tuple[JointWeights, np.ndarray, np.ndarray]:
    """Joint optima of all lam; of each number of steps the best lam (T,) and its tails (T, T - 1)."""
    best = steady_joint_weights(triangles, np.broadcast_to(size, triangles.shape[:1]))
    losses = best.losses.copy()
    ordinary = lams[losses[:, 0].argmin()]
    losses[~fair_lams(lams, ordinary)[:, 0], 1:] = np.inf
    index = losses.argmin(axis=0)
    return best, index, best.tails[index, np.arange(len(index))]


def _losses(triangles: np.ndarray, index: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Sums of squared errors (T,) of chains with a lam and tails each, from triangles (L, T, T)."""
    return np.array([step_losses(triangles[index[t]], tails[t, :t]) for t in range(len(index))])
