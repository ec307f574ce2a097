"""The weights that validation rows, or the training rows left out, choose at one lam."""

from __future__ import annotations

from typing import Any

from sdgpu.backend.checks import coefficient_box, integer, positive
from sdgpu.engine.grid_sweep import SweptFit
from sdgpu.engine.lam_requests import lam_of_steps, lam_rows
from sdgpu.engine.requests import afford_joint, afford_steps, schedule_losses
from sdgpu.selection import chosen_weights
from sdgpu.selection.chosen_weights import JointAlphas, OptimalAlphas

__all__ = ["chosen_one_by_one", "chosen_together"]


def chosen_one_by_one(
    fitted: SweptFit,
    X_val: Any,
    Y_val: Any,
    lam: Any,
    steps: int,
    *,
    clip: bool,
    per_output: bool,
    sample_weight: Any,
) -> OptimalAlphas:
    """Algorithm 1: see :meth:`sdgpu.engine.fitted.Fit.optimal_alphas`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Before any work.
    """
    solution, model, steps = fitted.solution, fitted.model, integer("steps", steps, 1)
    lams = lam_rows(lam_of_steps(solution, fitted.lams, lam, steps))
    outputs = fitted.info.c if per_output else 1
    afford_steps(solution, model, len(lams), steps, outputs=outputs)
    options = {"steps": steps, "per_output": per_output, "sample_weight": sample_weight}
    validation = schedule_losses(solution, model, X_val, Y_val, lams, **options)
    return chosen_weights.chosen_greedily(validation, clip=clip, by_step=lams.ndim == 2)


def chosen_together(
    fitted: SweptFit,
    X_val: Any,
    Y_val: Any,
    lam: Any,
    steps: int,
    *,
    ridge: float,
    box: tuple[float, float] | None,
    terms: int | None,
    folds: int,
    sample_weight: Any,
) -> JointAlphas:
    """The joint optimum: see :meth:`sdgpu.engine.fitted.Fit.joint_alphas`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Before any work.
    """
    solution, model, steps = fitted.solution, fitted.model, integer("steps", steps, 1)
    lams = lam_rows(lam_of_steps(solution, fitted.lams, lam, steps))
    penalty, parts = positive("ridge", ridge, zero=True), integer("folds", folds, 1)
    bounds = coefficient_box(box, terms, steps)
    afford_joint(len(lams), steps, parts + (parts > 1))
    afford_steps(solution, model, len(lams), steps, outputs=parts)
    options: dict[str, Any] = {"steps": steps, "per_output": False, "folds": parts}
    options["sample_weight"] = sample_weight
    validation = schedule_losses(solution, model, X_val, Y_val, lams, **options)
    how: dict[str, Any] = {"ridge": penalty, "box": bounds, "terms": terms}
    how |= {"accuracy": fitted.info.error_estimate}
    if lams.ndim == 2:
        return chosen_weights.chosen_jointly_by_step(validation, **how)
    return chosen_weights.chosen_jointly(validation, **how)
