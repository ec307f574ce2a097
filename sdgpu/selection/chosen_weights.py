"""The weights that validation data choose at one lam: Algorithm 1 and the joint optimum, as results."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdgpu.distill.joint_weights import ROUNDING, joint_status, steady, steady_joint_weights
from sdgpu.distill.lam_schedules import shortened
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.selection.losses import Validation
from sdgpu.selection.restricted_weights import nested_losses, restricted_weights

__all__ = [
    "JointAlphas",
    "OptimalAlphas",
    "chosen_greedily",
    "chosen_jointly",
    "chosen_jointly_by_step",
]


@dataclass(frozen=True, eq=False)
class OptimalAlphas:
    """The chain of Algorithm 1.

    Attributes
    ----------
    alphas : array (T - 1,), or (T - 1, c) per output
        alpha* of steps 2..T, ready for :meth:`Fit.path`.
    mse : array (T,)
        Mean squared validation error of steps 1..T.
    mse_per_output : array (T, c) or None
        The same for each output, where the weights are per output.
    best_step : int
        The step with the smallest loss: the greedy chain is not monotone.
    """

    alphas: np.ndarray
    mse: np.ndarray
    mse_per_output: np.ndarray | None
    best_step: int


@dataclass(frozen=True, eq=False)
class JointAlphas:
    """The joint optimum over all weights.

    Attributes
    ----------
    alphas : array (T - 1,)
        Weights of steps 2..T.
    coefficients : array (T,)
        c over the basis u_1..u_T, with sum 1.
    mse : array (T,)
        Mean squared validation error of the best chains of 1..T steps.
    condition : float
        Condition number of the least-squares problem, without ridge, box or terms.
    nested_mse : array (T,)
        Mean squared error of the best chains of 1..T steps on rows that had no part in choosing their
        weights: each part of the validation rows is judged with the weights of the others. NaN for fewer
        rows than two for each part.
    status : str
        A sentence that says what to make of it.
    """

    alphas: np.ndarray
    coefficients: np.ndarray
    mse: np.ndarray
    condition: float
    nested_mse: np.ndarray
    status: str


def chosen_greedily(validation: Validation, *, clip: bool, by_step: bool = False) -> OptimalAlphas:
    """The chain of Algorithm 1 at the one lam of `validation`, shared or per output as its triangles.

    With `by_step` its lam are those of one schedule, a lam for each step (T, T).
    """
    triangles = validation.triangles if by_step else validation.triangles[0]
    greedy = greedy_weights(triangles, clip=clip, by_step=by_step)
    if greedy.losses.ndim == 2:
        mse_per_output = greedy.losses.T * (validation.scale * validation.outputs)  # (T, c)
        mse, alphas = mse_per_output.mean(axis=1), np.ascontiguousarray(greedy.alphas.T)
        return OptimalAlphas(alphas, mse, mse_per_output, int(np.argmin(mse)) + 1)
    mse = greedy.losses * validation.scale
    return OptimalAlphas(greedy.alphas, mse, None, int(np.argmin(mse)) + 1)


def chosen_jointly(
    validation: Validation,
    *,
    ridge: float,
    box: tuple[float, float] | None,
    terms: int | None,
    accuracy: float,
) -> JointAlphas:
    """The joint optimum at the one lam of `validation`, and what it is worth on rows it has not seen.

    Only chains that keep their loss when they are carried out, with predictions as accurate as said: if the
    optimum does not, the one with the smallest ridge that does.
    """
    triangle = validation.triangles[0]
    joint = restricted_weights(triangle, ridge=ridge, box=box, terms=terms)
    scale = validation.scale
    nested, status = np.full(len(joint.losses), np.nan), joint_status(joint)
    noise = np.asarray(np.clip(accuracy, ROUNDING, 1.0) * np.sqrt(validation.zero))
    if not steady(joint.tails, joint.losses, noise).all():
        largest = float(np.abs(joint.coefficients).max())
        status = (
            f"coefficients up to {largest:.1e} would not keep the promised loss when they are carried out, "
            f"with predictions right to {max(accuracy, ROUNDING):.0e}"
        )
        if ridge == 0 and box is None and terms is None:
            joint = steady_joint_weights(triangle, noise)
            status += ": these are the best that do; ridge > 0 or box=(0, 1) restrict them more"
        else:
            status += ": raise ridge, or take fewer steps"
            warnings.warn(f"the joint optimum: {status}", stacklevel=5)
    if validation.folds is not None and len(validation.folds) > 1:
        fold_losses = nested_losses(validation.folds[:, 0], ridge=ridge, box=box, terms=terms)
        nested = scale * fold_losses.sum(axis=0)
        best = int(np.argmin(nested))
        # the folds judge both, so their differences say how sure that is
        excess = fold_losses[:, -1] - fold_losses[:, best]
        sure = excess.mean() > excess.std(ddof=1) / np.sqrt(len(excess))
        if sure and nested[-1] > 1.001 * nested[best]:
            status = (
                f"it fits noise: on rows that had no part in choosing, the mean squared error of step "
                f"{best + 1} is {nested[best]:.4g} and of step {len(nested)} {nested[-1]:.4g}; {status}"
            )
            warnings.warn(f"the joint optimum: {status}", stacklevel=5)
    return JointAlphas(
        alphas=joint.alphas,
        coefficients=joint.coefficients,
        mse=scale * joint.losses,
        condition=float(joint.condition),
        nested_mse=nested,
        status=status,
    )


def chosen_jointly_by_step(
    validation: Validation,
    *,
    ridge: float,
    box: tuple[float, float] | None,
    terms: int | None,
    accuracy: float,
) -> JointAlphas:
    """The joint optimum of a lam for each step, from the triangles (T, T, T) of each last step.

    `mse` and `nested_mse` of chains of 1..T steps, which have the first lam of the schedule.
    """
    T = len(validation.triangles)
    found = []
    for t in range(1, T + 1):
        folds = validation.folds
        own = replace(
            validation,
            triangles=shortened(validation.triangles[t - 1 : t], t),
            folds=None if folds is None else shortened(folds[:, t - 1 : t], t),
        )
        with warnings.catch_warnings():
            if t < T:  # what is said of shorter chains is not of the one that was asked for
                warnings.simplefilter("ignore")
            few = None if terms is None else min(terms, t)
            how: dict[str, Any] = {"ridge": ridge, "box": box, "terms": few, "accuracy": accuracy}
            found.append(chosen_jointly(own, **how))
    mse, nested = (
        np.array([getattr(x, name)[-1] for x in found]) for name in ("mse", "nested_mse")
    )
    return replace(found[-1], mse=mse, nested_mse=nested)
