"""The computation of a sweep: every (lam, alpha, step) from triangles that one pass makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.gcv import jackknife_error
from sdgpu.distill.joint_weights import ROUNDING, steady_joint_weights
from sdgpu.distill.lam_schedules import backward_rows, joint_by_step, of_own_step
from sdgpu.distill.lam_schedules import by_step as by_step_first
from sdgpu.distill.limit_interpolation import limit_nodes
from sdgpu.distill.loss_triangles import grid_losses
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import grid_tails
from sdgpu.distill.smoothers import smoother_of
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import Validation
from sdgpu.selection.sweep import SCHEDULE, Sweep
from sdgpu.selection.training_error import training_losses
from sdgpu.solvers.solution import Solution

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["run_sweep", "training_dataset"]

_GRID = ("lam", "alpha", "step")


def run_sweep(
    solution: Solution,
    judge: Callable[..., Validation],
    lams: np.ndarray,
    alphas: np.ndarray,
    steps: int,
    *,
    left_out: bool,
    watch: Stopwatch,
    metrics: tuple[Any, ...] = (),
    accuracy: float = 0.0,
    per_output: bool = False,
    memory: int | None = None,
) -> Sweep:
    """Losses of the grid (L, A, T): one pass over the rows to judge on, then small algebra.

    Parameters are those of :meth:`sdgpu.Fit.sweep`, checked and on the device; of schedules of lam (S, T)
    the losses are (S, A, T), without limits. `judge` makes the losses of some rows: (lams, steps, ..) ->
    Validation; `left_out` says that these are the training rows, each judged by the fit without it.
    `accuracy` is the relative error of the predictions; `memory` the bytes for rows that metrics keep.
    """
    by_step = lams.ndim == 2
    own = partial(of_own_step, steps=steps) if by_step else np.asarray
    rows = backward_rows(lams) if by_step else lams
    with watch.stage("sweep"):
        limit_grid, nodes, tails = None, None, grid_tails(alphas, steps)
        if not by_step:
            largest = np.array(
                [solution.largest_bound]
            )  # whether a limit exists depends on it alone
            nodes = limit_nodes(largest, lams, alphas, smoother_of(solution))
            limit_grid = (nodes.lams, nodes.alphas)
        options: dict[str, Any] = {"per_output": True} if per_output else {}
        scores = None
        if metrics:
            outputs = solution.outputs
            scores = GridScores(tails, len(rows), metrics, outputs=outputs, memory=memory)
        validation = judge(rows, steps, limits=limit_grid, scores=scores, watch=watch, **options)
        scale, by_output = validation.scale, validation.triangles
        if per_output:
            validation = validation.of_all_outputs()
        mse = own(scale * grid_losses(validation.triangles, tails))
        error = _estimate_error(solution, validation, lams, tails, mse)
        estimate = solution.leverages.exact or left_out
        how: dict[str, Any] = {"estimate": estimate, "accuracy": accuracy}
        variables = training_losses(solution, rows, alphas, steps, **how)
        variables |= {} if scores is None else scores.scores()
        variables = {"mse_error": error} | {name: own(x) for name, x in variables.items()}
        limit = None
        if nodes is not None:
            limit = scale * nodes.spread(validation.limits, validation.zero)
        dataset = _dataset(
            lams,
            alphas,
            steps,
            mse=mse,
            grid_variables=variables,
            limit=limit,
            validation=validation,
            scale=scale,
            accuracy=accuracy,
        )
        if per_output:
            losses = own(_losses_by_output(by_output, tails) * (scale * validation.outputs))
            dataset["mse_per_output"] = ((*dataset["mse"].dims, "output"), losses)
    for metric in metrics:
        attrs = dataset[metric.name].attrs
        attrs["long_name"] = metric.description
        if metric.larger_is_better is not None:  # what can choose
            attrs["larger_is_better"] = int(metric.larger_is_better)
    return Sweep(dataset)


def _estimate_error(
    solution: Solution, validation: Validation, lams: np.ndarray, tails: np.ndarray, mse: np.ndarray
) -> np.ndarray:
    """Standard error of the losses (L, A, T) where leverages are estimates, else 0."""
    if validation.replicates is None:
        return np.zeros_like(mse)
    scale, steps, leverages = validation.scale, mse.shape[-1], solution.leverages
    replicate_mse = np.stack([scale * grid_losses(R, tails) for R in validation.replicates])
    # what all probes have wrong alike: mse goes with (1 - H_ii)^-2
    residual_dof = solution.counted - leverages.traces(lams, 1).mean(axis=0)  # (L, 1)
    bias = 2 * mse * (leverages.bias(lams, steps) / residual_dof)[:, None, :]
    # and what they scatter by about each row's own 1 - H_ii: the second order of (1 - H_ii)^-2, which no
    # spread over probes shows once estimates are held at their bound
    complement = residual_dof / solution.counted
    relative = np.minimum(3 * leverages.scatter(lams)[:, None] / complement**2, 1.0)
    bias = np.hypot(bias, mse * relative[:, None, :])
    return np.asarray(np.hypot(jackknife_error(replicate_mse, mse), bias))


def _losses_by_output(triangles: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Sums of squared errors (L, A, T, c) from triangles (L, c, T, T)."""
    L, c, T, _ = triangles.shape
    losses = grid_losses(triangles.reshape(L * c, T, T), tails)
    return losses.reshape(L, c, len(tails), T).transpose(0, 2, 3, 1)


def _dataset(
    lams: np.ndarray,
    alphas: np.ndarray,
    steps: int,
    *,
    mse: np.ndarray,
    grid_variables: dict[str, np.ndarray],
    limit: np.ndarray | None,
    validation: Validation,
    scale: float,
    accuracy: float,
) -> xr.Dataset:
    no_weight = np.full((len(lams), 1), np.nan)  # step 1 has no weight
    by_step = lams.ndim == 2
    triangles = by_step_first(validation.triangles, steps) if by_step else validation.triangles
    star, clipped = (
        greedy_weights(triangles, clip=clip, by_step=by_step) for clip in (False, True)
    )
    # what is promised must survive the errors of the predictions that are combined
    noise = np.full(len(lams), np.clip(accuracy, ROUNDING, 1.0) * np.sqrt(validation.zero))
    joint = (joint_by_step if by_step else steady_joint_weights)(triangles, noise)
    grid, chain = _GRID, ("lam", "step")
    first = np.full((len(lams), steps, 1), np.nan)
    variables = {
        "mse": (grid, mse),
        **{name: (_axes(values), values) for name, values in grid_variables.items()},
        **({} if limit is None else {"limit_mse": (("lam", "alpha"), limit)}),
        "ridge_mse": (("lam",), mse[:, 0, 0]),
        "alpha_star": (chain, np.hstack([no_weight, star.alphas])),
        "star_mse": (chain, scale * star.losses),
        "alpha_clipped": (chain, np.hstack([no_weight, clipped.alphas])),
        "clipped_mse": (chain, scale * clipped.losses),
        "joint_mse": (chain, scale * joint.losses),
        "joint_alpha": (
            ("lam", "chain", "step"),
            np.concatenate([first, joint.schedules], axis=-1),
        ),
        "joint_condition": (("lam",), joint.condition),
    }
    dataset = _described(variables, lams, alphas, steps)
    dataset.attrs["validation_rows"] = validation.rows
    dataset.attrs["outputs"] = validation.outputs
    dataset.attrs["refits_replaced"] = len(lams) * (len(alphas) * (steps - 1) + 1)
    return dataset


def training_dataset(
    lams: np.ndarray, alphas: np.ndarray, steps: int, variables: dict[str, np.ndarray]
) -> xr.Dataset:
    """The variables of :func:`training_losses` as a dataset."""
    return _described(
        {name: (_GRID, values) for name, values in variables.items()}, lams, alphas, steps
    )


def _axes(values: np.ndarray) -> tuple[str, ...]:
    return _GRID if values.ndim == len(_GRID) else (*_GRID, "output")


def _described(
    variables: dict[str, Any], lams: np.ndarray, alphas: np.ndarray, steps: int
) -> xr.Dataset:
    import xarray as xr

    taus = np.arange(1, steps + 1)
    coordinates: dict[str, Any] = {"alpha": alphas, "step": taus, "chain": taus}
    if lams.ndim == 2:  # schedules take the place of lam
        names = {"lam": SCHEDULE}
        variables = {
            name: (tuple(names.get(axis, axis) for axis in dims), values)
            for name, (dims, values) in variables.items()
        }
        coordinates["lam"] = ((SCHEDULE, "step"), lams)
    else:
        coordinates["lam"] = lams
    dataset = xr.Dataset(variables, coords=coordinates)
    for name, text in _MEANING.items():
        if name in dataset:
            dataset[name].attrs["long_name"] = text
    return dataset


_MEANING = {
    "lam": "ridge of K + lam I",
    "alpha": "weight of the ground truth at steps 2..T",
    "step": "distillation step, 1 is the ordinary fit",
    "chain": "number of steps for which the weights were chosen together",
    "mse": "mean squared validation error",
    "mse_per_output": "mean squared validation error of each output",
    "mse_error": "standard error of mse, where it is an estimate",
    "train_mse": "mean squared training error",
    "degrees_of_freedom": "trace of the smoother",
    "degrees_of_freedom_error": "standard error of the trace",
    "gcv": "generalised cross-validation",
    "gcv_error": "standard error of gcv",
    "limit_mse": "mean squared validation error of infinitely many steps",
    "ridge_mse": "mean squared validation error of step 1",
    "alpha_star": "weight by Algorithm 1",
    "star_mse": "mean squared validation error of the chain of Algorithm 1",
    "alpha_clipped": "weight by Algorithm 1, clipped to [0, 1]",
    "clipped_mse": "mean squared validation error of the clipped chain",
    "joint_mse": "mean squared validation error of the joint optimum",
    "joint_alpha": "weights of the joint optimum",
    "joint_condition": "condition number of the joint problem",
}
