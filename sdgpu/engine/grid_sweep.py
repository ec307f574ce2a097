"""Sweeps of a fit: what is asked is checked, and memory counted, before any work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.distill.gcv import OneShot
from sdgpu.distill.lam_schedules import backward_rows, of_own_step
from sdgpu.distill.smoothers import RIDGE, smoother_of
from sdgpu.engine.lam_requests import lam_of_steps
from sdgpu.engine.path import Model
from sdgpu.engine.requests import (
    Judge,
    afford_joint,
    afford_steps,
    check_metrics,
    checked_grid,
    one_shot_weights,
    spectrum_for,
)
from sdgpu.engine.results import Info, labelled
from sdgpu.kernels import Kernel
from sdgpu.selection.metrics import (
    CLASSES,
    Metric,
    OutputMetric,
    as_metrics,
    standard_errors,
    sums_of,
)
from sdgpu.selection.sweep import Sweep
from sdgpu.selection.sweep_grid import run_sweep, training_dataset
from sdgpu.selection.training_error import training_losses
from sdgpu.solvers.solution import Solution

__all__ = ["GridRequest", "SweptFit", "gcv_of_grid", "one_shot_of", "sweep_of_grid"]


@dataclass(frozen=True, eq=False)
class SweptFit:
    """What a sweep needs of a fit.

    Attributes
    ----------
    solution : Solution
    model : Model
    lams : array (L,)
        The regularisations that it serves.
    info : Info
    kernel : Kernel
    progress : callable or None
    """

    solution: Solution
    model: Model
    lams: np.ndarray
    info: Info
    kernel: Kernel
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class GridRequest:
    """What is asked of a grid.

    Attributes
    ----------
    lams, alphas : array_like or None
    steps : int
    metrics : iterable of str or Metric
    classes : bool
        Whether those of classes are wanted too.
    errors : bool
        Whether standard errors over rows are.
    per_output : bool
        Whether losses of each output are.
    """

    lams: Any = None
    alphas: Any = None
    steps: int = 10
    metrics: Iterable[str | Metric] = ()
    classes: bool = False
    errors: bool = False
    per_output: bool = False

    def scores(self, outputs: int) -> tuple[Any, ...]:
        """The metrics, their standard errors, and those of each of c outputs."""
        metrics = as_metrics((*as_metrics(self.metrics), *(CLASSES if self.classes else ())))
        scores: tuple[Any, ...] = metrics
        if self.errors:
            scores += standard_errors(metrics)
        if self.per_output:
            scores += tuple(OutputMetric(metric, outputs) for metric in metrics)
        return scores


def sweep_of_grid(fitted: SweptFit, judged: Callable[[int], Judge], request: GridRequest) -> Sweep:
    """A sweep on the rows that `judged` gives for so many steps.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Before any work.
    """
    solution, model, c = fitted.solution, fitted.model, fitted.info.c
    scores = request.scores(c)
    _agree(fitted, request, scores)
    variables = 8 + sum(2 * sums_of(metric, c) + 1 for metric in scores)  # sums, means, itself
    lams, alphas, steps = checked_grid(
        solution,
        model,
        fitted.lams,
        request.lams,
        request.alphas,
        steps=request.steps,
        variables=variables + (2 * c if request.per_output else 0),
    )
    afford_joint(lams.size, steps)
    if request.per_output:
        afford_steps(solution, model, lams.size, steps, outputs=c)
    rows = judged(steps)
    check_metrics(rows, scores)
    kept = [metric for metric in scores if getattr(metric, "needs_all_rows", False)]
    if kept and rows.rows is not None:
        what = (
            f"{', '.join(one.name for one in kept)} of {rows.rows:,} rows, which must all be kept"
        )
        model.afford(lams.size * steps * rows.rows * c, what)
    watch = Stopwatch(model.backend.synchronize, progress=fitted.progress)
    sweep = run_sweep(
        solution,
        rows.losses,
        lams,
        alphas,
        steps,
        left_out=rows.left_out,
        watch=watch,
        metrics=scores,
        accuracy=fitted.info.error_estimate,
        per_output=request.per_output,
        memory=model.memory,
    )
    return labelled(sweep, fitted.info, fitted.kernel, watch.seconds["sweep"])


def _agree(fitted: SweptFit, request: GridRequest, scores: tuple[Any, ...]) -> None:
    """Refuse ranks that ask for other grids."""
    ranks = fitted.model.ranks
    if ranks is not None:
        for name, value in (("lams", request.lams), ("alphas", request.alphas)):
            ranks.agree(name, None if value is None else np.asarray(value).tolist())
        for name, value in (("steps", request.steps), ("per_output", request.per_output)):
            ranks.agree(name, value)
        ranks.agree("metrics", [metric.name for metric in scores])


def gcv_of_grid(fitted: SweptFit, request: GridRequest) -> Sweep:
    """Generalised cross-validation of a grid, from the training data alone.

    Warns
    -----
    UserWarning
        With another smoother than ridge, along whose path it is not consistent (Patil et al. 2024).
    """
    solution, model = fitted.solution, fitted.model
    _agree(fitted, request, ())
    name = smoother_of(solution).name
    if name != RIDGE.name:
        warnings.warn(
            f"generalised cross-validation is not consistent along the path of smoother={name!r} (Patil "
            "et al. 2024): prefer a sweep on validation rows",
            stacklevel=4,
        )
    lams, alphas, steps = checked_grid(
        solution, model, fitted.lams, request.lams, request.alphas, steps=request.steps
    )
    numbers = model.share_of(solution.leverages.trace_numbers(fitted.info.n))
    model.afford(numbers, "generalised cross-validation")
    watch = Stopwatch(model.backend.synchronize, progress=fitted.progress)
    with watch.stage("sweep"):
        accuracy = fitted.info.error_estimate
        rows = backward_rows(lams) if lams.ndim == 2 else lams
        losses = training_losses(solution, rows, alphas, steps, estimate=True, accuracy=accuracy)
        if lams.ndim == 2:
            losses = {name: of_own_step(values, steps) for name, values in losses.items()}
    sweep = Sweep(training_dataset(lams, alphas, steps, losses))
    return labelled(sweep, fitted.info, fitted.kernel, watch.seconds["sweep"])


def one_shot_of(fitted: SweptFit, lam: Any, *, per_output: bool) -> OneShot:
    """The one-shot weight of step 2 at one lam, as numbers, or of all fitted ones, as a curve.

    Raises
    ------
    ValueError
        For method="cg", which has no eigenvalues at all.
    """
    curve = lam is None and len(fitted.lams) > 1
    lams = fitted.lams if curve else np.array([lam_of_steps(fitted.solution, fitted.lams, lam, 2)])
    spectrum = spectrum_for("generalised cross-validation", fitted.solution, fitted.info.method)
    estimates = one_shot_weights(
        fitted.solution, spectrum, fitted.model, lams, per_output=per_output
    )
    if curve:
        return estimates
    values = (getattr(estimates, one.name)[0] for one in fields(OneShot))
    return OneShot(*(value if per_output else float(value) for value in values))
