"""Checks of what a fit is asked, before any work: numbers, data and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template
from sdgpu.backend.backends import give_back, taken_rows, to_numpy
from sdgpu.backend.checks import check_growth, integer, lam_grid, served_lam
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.memory import require
from sdgpu.backend.rows import RowSource
from sdgpu.distill.gcv import OneShot, jackknife_error, one_shot
from sdgpu.distill.limit_interpolation import limit_nodes
from sdgpu.distill.smoothers import only_ridge
from sdgpu.engine.lam_requests import lam_rows, schedules_of_lam
from sdgpu.engine.model import Model
from sdgpu.engine.rank_validation import rows_of_ranks
from sdgpu.engine.source_rows import PROBED, first_block, streamed_rows
from sdgpu.engine.training_data import row_weighting
from sdgpu.selection.class_scores import several_classes
from sdgpu.selection.left_out_blocks import ENTRIES, LeftOutRows, leave_blocks_out
from sdgpu.selection.losses import Validation, leave_one_out, validate
from sdgpu.selection.metrics import Metric
from sdgpu.selection.rank_losses import on_all_ranks
from sdgpu.selection.validation_rows import HeldRows
from sdgpu.solvers.leverage import LeftOut, left_out_numbers
from sdgpu.solvers.solution import Solution, combine_own_steps, combine_steps
from sdgpu.solvers.spectrum import Spectrum

__all__ = [
    "Judge",
    "afford_joint",
    "afford_left_out",
    "afford_steps",
    "check_metrics",
    "checked_grid",
    "judge",
    "left_out_predictions",
    "one_shot_weights",
    "schedule_losses",
    "spectrum_for",
    "spectrum_given_back",
]

MAKERS = "'eigh', 'lanczos' or 'subspace'"  # of eigenvalues
JOINT = 1e11  # operations in units of T^4: a minute or two (T = 200: 1.4 s)


def spectrum_for(
    what: str, solution: Solution, method: str, *, needs_all: bool = False
) -> Spectrum:
    """The spectrum of a solution that has one; what needs all eigenvalues looks whether these are all.

    Raises
    ------
    ValueError
        For a solution that is none, with the methods that make one.
    """
    if solution.spectrum is None:
        words, makers = ("all eigenvalues", "'eigh'") if needs_all else ("eigenvalues", MAKERS)
        raise ValueError(
            f"{what} needs {words}, which method={method!r} does not make: fit with method={makers}"
        )
    return solution.spectrum


def spectrum_given_back(spectrum: Spectrum, template: Template) -> Spectrum:
    """A spectrum in the caller's library, in float64."""
    eigenvalues, Z = (
        give_back(template, array, axis=False, exact=True, copy=True)
        for array in (spectrum.eigenvalues, spectrum.Z)
    )
    basis = give_back(template, spectrum.basis, axis=False, exact=True)
    if isinstance(basis, np.ndarray):
        basis = basis.view()
        basis.flags.writeable = False  # n^2 numbers that the fit goes on to use: no copy
    return replace(spectrum, eigenvalues=eigenvalues, basis=basis, Z=Z)


def checked_grid(
    solution: Solution,
    model: Model,
    fit_lams: np.ndarray,
    lams: Any,
    alphas: Any,
    *,
    steps: int,
    variables: int = 8,
) -> tuple[np.ndarray, np.ndarray, int]:
    """A grid (L,) or (S, T), (A,), T of so many numbers for each point, of lam that are served.

    Raises
    ------
    TypeError, ValueError
        For lam below the fit, steps < 1, or weights that are no numbers or overflow.
    MemoryError
        If it does not fit.
    """
    steps = integer("steps", steps, 1)
    if lams is not None and np.ndim(lams) == 2:
        grid_lams = schedules_of_lam(solution, fit_lams, lams, steps)
    else:
        grid_lams = fit_lams if lams is None else lam_grid("lams", lams)
    for lam in grid_lams.flat:
        served_lam(fit_lams, float(lam))
    weights = np.linspace(0, 1, 101) if alphas is None else number_grid("alphas", alphas)
    check_growth(weights, steps)
    points = grid_lams.size * len(weights) * steps
    grid_bytes = 8 * variables * points
    require(grid_bytes, model.memory, f"a grid of {points:,} points", "use a coarser grid")
    limits = 0
    if solution.spectrum is None:  # each limit is a solve
        limits = len(limit_nodes(np.array([solution.largest]), grid_lams, weights).lams)
    rows = grid_lams.size if grid_lams.ndim == 2 else len(grid_lams)
    afford_steps(solution, model, rows, steps, limits=limits)
    return grid_lams, weights, steps


def afford_steps(
    solution: Solution, model: Model, lams: int, steps: int, *, outputs: int = 1, limits: int = 0
) -> None:
    """Refuse more steps than fit: T filters of k numbers, a triangle T x T for each lam.

    Raises
    ------
    MemoryError
    """
    numbers, c = lams * outputs * steps * (steps + 4), solution.outputs
    if solution.spectrum is None:  # the solutions, and their differences
        numbers += 3 * solution.rows * c * (lams * steps + limits)
    else:
        numbers += 4 * int(solution.spectrum.basis.shape[1]) * c * steps
    model.afford(numbers, f"{steps} steps for {lams} lam and {outputs} sets of weights")


def afford_joint(lams: int, steps: int, parts: int = 1) -> None:
    """Refuse joint optima that would take minutes: one factorisation for each number of steps.

    Raises
    ------
    ValueError
    """
    if lams * parts * steps**4 > JOINT:
        most_steps = int((JOINT / (lams * parts)) ** 0.25)
        raise ValueError(
            f"steps={steps}: the joint optima of so many steps take about {lams * parts} x steps^4 "
            f"operations, minutes and more; use at most {most_steps} steps, or optimal_alphas, which "
            "takes steps^3"
        )


def afford_left_out(solution: Solution, model: Model, steps: int) -> None:
    """Refuse leave-one-out that does not fit: the leverages, and the predictions of every step.

    Raises
    ------
    MemoryError
    """
    n = solution.rows
    numbers = left_out_numbers(solution.leverages, n, solution.outputs, steps)
    model.afford(model.share_of(numbers), f"leave-one-out of {n:,} rows")


@dataclass(frozen=True, eq=False)
class Judge:
    """Rows that schedules are judged on: validation rows, or training rows left out one by one.

    Attributes
    ----------
    losses : callable
        (lams, steps, ..) -> Validation.
    left_out : bool
        Whether these are the training rows.
    rows : int or None
        How many, if known.
    truth : array (m, c) or None
        Their targets, for metrics to look at first; of a stream those of its first block.
    weighted, streamed : bool
        Whether the rows have weights, and are read as they are needed.
    """

    losses: Callable[..., Validation]
    left_out: bool
    rows: int | None
    truth: Any
    weighted: bool = False
    streamed: bool = False


def judge(
    solution: Solution,
    model: Model,
    X_val: Any,
    Y_val: Any,
    steps: int,
    *,
    sample_weight: Any = None,
) -> Judge:
    """Check what to judge on, before any work.

    Raises
    ------
    TypeError, ValueError, MemoryError
    """
    if sample_weight is not None and (X_val is None or isinstance(X_val, RowSource)):
        raise ValueError(
            "sample_weight is that of X_val as an array: training rows and sources bring their own"
        )
    if X_val is None and Y_val is None:
        only_ridge(solution, "leave-one-out", "judge on validation rows, X_val and Y_val")
        if model.source is not None:  # a feature model: one more pass
            return _left_out_source(solution, model, model.source)
        afford_left_out(solution, model, steps)
        losses = partial(leave_one_out, solution, offset=model.offset, weighting=model.weighting)
        if model.ranks is not None:
            losses = partial(on_all_ranks, losses, model.ranks)
        how = {"truth": _left_out_truth(solution, model), "weighted": _weighted(model)}
        return Judge(losses, left_out=True, rows=solution.rows, **how)
    if isinstance(X_val, RowSource):
        if Y_val is not None:
            raise ValueError("Y_val: a source brings its own targets")
        model.refuse_ranks("X_val as a source", "pass X_val and Y_val of each rank as arrays")
        stream, truth, weighted = first_block(streamed_rows(model, X_val, solution))
        losses = partial(validate, solution, stream)
        how = {"truth": truth, "weighted": weighted, "streamed": True}
        return Judge(losses, left_out=False, rows=stream.rows, **how)
    if model.ranks is not None:
        own, truth = rows_of_ranks(model, X_val, Y_val, solution.outputs, sample_weight)
        losses = partial(on_all_ranks, partial(validate, solution, own), model.ranks)
        how = {"truth": truth, "weighted": own.weights is not None}
        return Judge(losses, left_out=False, rows=own.rows, **how)
    held = validation_rows(model, X_val, Y_val, solution.outputs, sample_weight)
    truth = held.targets if held.offset is None else held.targets + held.offset
    how = {"truth": truth, "weighted": held.weights is not None}
    return Judge(partial(validate, solution, held), left_out=False, rows=held.rows, **how)


def _left_out_source(solution: Solution, model: Model, source: RowSource) -> Judge:
    """The rows of a feature model, which are read once more: each rank its own."""
    own, ranks = streamed_rows(model, source, solution), model.ranks
    if ranks is None:
        own, truth, weighted = first_block(own)
        rows, losses = own.rows, partial(leave_blocks_out, solution, own)
    else:
        rows = solution.rows
        own = replace(own, first=sum(ranks.gather(source.n)[: ranks.rank]))
        losses = partial(on_all_ranks, partial(leave_blocks_out, solution, own), ranks)
        some = next((block.Y for block in source.blocks(PROBED)), np.zeros((0, source.c)))
        truth = ranks.gather_rows(to_numpy(model.backend.asarray(some)))
        weighted = any(ranks.gather(getattr(source, "weights", None) is not None))
    how = {"truth": truth, "weighted": weighted, "streamed": True}
    return Judge(losses, left_out=True, rows=rows, **how)


def _left_out_truth(solution: Solution, model: Model) -> Any:
    """Targets of the rows that have a weight, as they are; those of all ranks."""
    truth, own = solution.targets, model.backend.own
    if model.weighting is not None:
        present = to_numpy(own(model.weighting.roots)) > 0
        truth = taken_rows(own(model.weighting.values(truth)), np.flatnonzero(present))
    if model.layout is not None:
        truth = model.layout.ranks.gather_rows(own(truth))
    return truth if model.offset is None else truth + model.offset


def _weighted(model: Model) -> bool:
    return model.weighting is not None and model.weighting.weighted


def check_metrics(rows: Judge, metrics: Sequence[Metric]) -> None:
    """Look at the targets, as far as they are known.

    Raises
    ------
    ValueError
        For targets that a metric is not made for, and for one class alone where all are known.
    """
    name = "Y" if rows.left_out else "Y_val"
    for metric in metrics:
        if rows.weighted and not getattr(metric, "takes_weights", False):
            raise ValueError(
                f"metrics: {metric.name!r} knows no weights of rows, and these have some: see "
                "sdgpu.selection.metrics.Metric, or leave it out"
            )
        metric.check(name, rows.truth)
    if not rows.streamed and any(getattr(metric, "of_classes", False) for metric in metrics):
        several_classes(name, rows.truth)


def left_out_steps(solution: Solution, model: Model, lams: np.ndarray, steps: int) -> LeftOut:
    """Leave-one-out predictions of u_1 .. u_T at one lam (1,), or at rows of lam (L, T): (L, T, n, c).

    Raises
    ------
    ValueError, MemoryError
    """
    only_ridge(solution, "leave-one-out", "judge on validation rows")
    if model.ranks is not None:
        model.ranks.agree("lam and steps", [lams.tolist(), steps])
    if model.source is None:
        afford_left_out(solution, model, steps * lams.ndim)
        return solution.left_out(lams, steps)
    if lams.ndim == 2:
        raise ValueError("leave-one-out of a feature model has one lam for all steps")
    n, c = model.source.n or solution.rows, solution.outputs
    model.afford(n * c * (steps + 1), f"leave-one-out of {n:,} rows")
    data = streamed_rows(model, model.source, solution)
    xp, none = model.backend.xp, model.backend.asarray(np.zeros((1, steps, 0, c)))
    predictions, truth = [none], [none[0, 0, ...]]  # of several ranks one may have no rows
    rows = LeftOutRows.of(solution, data)
    for _, X, targets, weights in data.inputs(ENTRIES):
        leverage = rows.leverages(X, targets, weights)
        left = leverage.values(leverage.steps(lams, steps))
        predictions.append(left if model.offset is None else left + model.offset)
        truth.append(targets if model.offset is None else targets + model.offset)
    return LeftOut(xp.concat(predictions, axis=2), xp.concat(truth, axis=0), [])


def left_out_predictions(
    solution: Solution, model: Model, lam: float | np.ndarray, alphas: np.ndarray
) -> tuple[Any, Any]:
    """What steps 1..T predict at each row, fitted without it, and the standard errors of estimates.

    Both (T, n, c), of several ranks of the own rows; the errors 0 where all eigenvectors are known.

    Raises
    ------
    ValueError, MemoryError
    """
    left_out = left_out_steps(solution, model, lam_rows(lam), len(alphas) + 1)
    if isinstance(lam, np.ndarray):  # each step has a basis of its own
        predictions, replicates = combine_own_steps(left_out.steps, alphas), []
    else:
        predictions, *replicates = (
            combine_steps(u[0, ...], alphas) for u in (left_out.steps, *left_out.replicates)
        )
    if model.source is None:  # those of a source are values of the rows already
        predictions, *replicates = (
            model.row_values(u, lambda: solution.chain(lam, alphas).dual)
            for u in (predictions, *replicates)
        )
    own = model.backend.own
    spread = (
        jackknife_error(np.stack([to_numpy(own(x)) for x in replicates])) if replicates else 0.0
    )
    shape = tuple(own(predictions).shape)
    return predictions, model.backend.asarray(np.zeros(shape) + spread)


def one_shot_weights(
    solution: Solution, spectrum: Spectrum, model: Model, lams: np.ndarray, *, per_output: bool
) -> OneShot:
    """The weight of step 2 by generalised cross-validation, for every lam.

    Raises
    ------
    MemoryError
    """
    only_ridge(solution, "the one-shot weight", "use optimal_alphas(X_val, Y_val)")
    n, leverages = solution.counted, solution.leverages
    numbers = model.share_of(leverages.trace_numbers(solution.rows))
    model.afford(numbers, "generalised cross-validation")
    share = n / solution.weight  # squared errors are means over the weights
    outside = None if spectrum.outside is None else share * to_numpy(spectrum.outside)
    return one_shot(
        to_numpy(spectrum.eigenvalues),
        share**0.5 * to_numpy(spectrum.Z),
        lams,
        n,
        None if leverages.exact else leverages.traces(lams, 2),
        per_output=per_output,
        outside=outside,
        unpenalised=leverages.unpenalised,
    )


def schedule_losses(
    solution: Solution,
    model: Model,
    X_val: Any,
    Y_val: Any,
    lams: np.ndarray,
    *,
    steps: int,
    per_output: bool,
    folds: int = 1,
    sample_weight: Any = None,
) -> Validation:
    """What validation data, or the training rows left out one by one, say of every schedule."""
    rows = judge(solution, model, X_val, Y_val, steps, sample_weight=sample_weight)
    enough = rows.rows is None or rows.rows >= 2 * folds
    return rows.losses(lams, steps, per_output=per_output, folds=folds if enough else 1)


def validation_rows(
    model: Model, X_val: Any, Y_val: Any, outputs: int, sample_weight: Any = None
) -> HeldRows:
    """Check validation data and bring them to the device: kappa(X_val, X), Y_val (m, c), weights (m,)."""
    rows = model.template.rows(X_val, "X_val", model.operator.d)
    truth, _ = model.template.truth(Y_val, "Y_val", rows=int(rows.shape[0]), outputs=outputs)
    cross = model.operator.cross(model.on_device(rows))
    targets = model.backend.asarray(truth)
    if model.offset is not None:
        targets = targets - model.offset
    weighting = row_weighting(sample_weight, rows, model.backend, intercept=False)
    weights = None if weighting is None else weighting.roots * weighting.roots
    return HeldRows(cross, targets, model.offset, weights)
