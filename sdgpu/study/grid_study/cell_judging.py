"""How a cell is judged: sweep, choose by every rule, and the losses of each choice on the test rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.engine.fitted import Fit
from sdgpu.selection.metrics import Metric, PredictedRows, as_metrics
from sdgpu.selection.sweep import Best, Sweep
from sdgpu.study.grid_study.cell_data import (
    kernel_of,
    lams_by_step,
    noise_deviation,
    some_rows,
    split_of,
)
from sdgpu.study.grid_study.cells import Cell, Decomposition
from sdgpu.study.grid_study.configuration import SIMPLE
from sdgpu.study.grid_study.interval_cells import interval_losses
from sdgpu.study.grid_study.label_arrays import label_arrays
from sdgpu.study.grid_study.shared_fits import SharedFit
from sdgpu.study.grid_study.student_cells import StudentCell
from sdgpu.study.real_data.datasets import Split
from sdgpu.study.real_data.large_data import LargeData

__all__ = ["CellResult", "judged"]

ADVISED = 5  # most steps of the rule "advice"
#: Variables of a sweep that a cell keeps whatever it keeps of the grid: small ones.
CURVES = ("ridge_mse", "star_mse", "alpha_star", "clipped_mse", "joint_mse")


@dataclass(frozen=True, eq=False)
class CellResult:
    """What a cell has found.

    Attributes
    ----------
    record : dict
        Labels, sizes, choices and their test losses, seconds, warnings: what JSON can hold.
    arrays : dict of str to array
        lam (L,), and losses of the grid.
    """

    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


def judged(
    job: Decomposition,
    cell: Cell,
    fitted: Fit,
    parts: Split | LargeData,
    Y_val: Any,
    *,
    lams: np.ndarray,
    seconds: dict[str, float],
    taught: StudentCell | None = None,
    shared: SharedFit | None = None,
) -> CellResult:
    """Sweep, choose, judge.

    Parameters
    ----------
    job, cell : Decomposition, Cell
    fitted : Fit
    parts : Split or LargeData
    Y_val : array (m, c)
        With the noise of the cell.
    lams : array (L,)
        The grid.
    seconds : dict
        Spent so far: it goes into the record, with what is spent here.
    taught : StudentCell, optional
        Where the study has a teacher.
    shared : SharedFit, optional
        Where the fit is what a server made of messages.
    """
    config, start = job.config, time.perf_counter()
    grid: dict[str, Any] = {"lams": lams_by_step(job, lams), "steps": config.grid.steps}
    grid["alphas"] = np.array(config.grid.alphas)
    metrics = as_metrics(config.choose.metrics)
    sweep = fitted.sweep(
        parts.X_val, Y_val, **grid, metrics=metrics, standard_errors=config.choose.standard_errors
    )
    seconds["sweep"] = time.perf_counter() - start
    start = time.perf_counter()
    chosen = {}
    for rule in config.choose.rules:
        if rule == "student":
            assert taught is not None
            chosen[rule] = _test_student(taught, parts, metrics)
        else:
            chosen[rule] = _chosen(rule, job, fitted, parts, sweep=sweep, grid=grid, shared=shared)
    seconds["choose"] = time.perf_counter() - start
    info = fitted.info
    record = {
        "key": cell.key,
        "study": config.name,
        **cell.labels,
        "kernel_repr": repr(kernel_of(job.kernel, job.data, job.seed)),
        "n": info.n,
        "d": some_rows(split_of(job.data, job.seed)).shape[1],
        "c": info.c,
        "classes": len(parts.classes),
        "chosen": chosen,
        "seconds": seconds,
        "refits_replaced": int(sweep.dataset.attrs.get("refits_replaced", 0)),
        "fit": {
            "method": info.method,
            "operator": info.operator,
            "precision": info.precision,  # of the work: exact fits are float64 whatever was asked for
            "backend": info.backend,
            "k": info.k,
            "passes": info.passes,
            "error_estimate": info.error_estimate,
            "kernel_difference": info.kernel_difference,
            "bytes": info.bytes,
            "status": info.status,
        },
    }
    arrays = _kept(sweep, lams, config.results.keep, metrics)
    if taught is not None:
        arrays.update(taught.arrays)
    if config.synthetic_labels is not None:
        assert not isinstance(parts, LargeData)
        table, noise = config.synthetic_labels, noise_deviation(parts, cell)
        arrays.update(label_arrays(fitted, parts, table, lams=lams, noise=noise))
    return CellResult(record, arrays)


def _chosen(
    rule: str,
    job: Decomposition,
    fitted: Fit,
    parts: Split | LargeData,
    *,
    sweep: Sweep,
    grid: dict[str, Any],
    shared: SharedFit | None,
) -> dict[str, Any]:
    """The choice of a rule and what it is worth; a note where it has none: one costs not the others."""
    config, found = job.config, {}
    try:
        if shared is not None:
            shared.check_rule(rule)
        best = _best(rule, fitted, sweep, parts, grid)
        found = _test(best, fitted, parts, as_metrics(config.choose.metrics))
        if config.interval is not None:
            test = parts.X_test, parts.Y_test
            found |= interval_losses(best, fitted, test, config.interval, job.seed)
        if shared is not None:
            found |= shared.bound(best)
    except (ValueError, FloatingPointError) as error:
        return {**found, "note": str(error)}
    return found


def _kept(
    sweep: Sweep, lams: np.ndarray, keep: tuple[str, ...], metrics: tuple[Metric, ...]
) -> dict[str, np.ndarray]:
    names = [name for name in keep if name != "metrics"]
    if "metrics" in keep:
        names += [metric.name for metric in metrics]
    arrays = {
        name: sweep.dataset[name].values for name in (*CURVES, *names) if name in sweep.dataset
    }
    if "limit_mse" in names and "limit_mse" not in arrays:  # a lam for each step has no limit
        arrays["limit_mse"] = np.full(sweep.dataset["mse"].shape[:2], np.nan)
    return {"lam": lams, **arrays}


def _best(
    rule: str, fitted: Fit, sweep: Sweep, parts: Split | LargeData, grid: dict[str, Any]
) -> Best:
    if rule == "oracle":
        return fitted.sweep(parts.X_test, parts.Y_test, **grid).best()
    if rule == "advice":
        return fitted.advise(steps=min(max(2, grid["steps"]), ADVISED)).best
    if rule in ("loo", "ridge_loo"):
        left_out = fitted.sweep(**grid)
        return left_out.best("fixed" if rule == "loo" else "ridge")
    if rule.endswith(SIMPLE):
        return sweep.best(rule.removesuffix(SIMPLE), one_standard_error=True)
    return sweep.best(rule)


def _test(
    best: Best, fitted: Fit, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, Any]:
    """The choice and its losses on the test rows."""
    if np.isinf(best.step):
        predicted = fitted.limit(best.lam, best.alpha).predict(parts.X_test)
    else:
        step = int(best.step)
        weights = best.alpha if step > 1 else 0.0
        predicted = fitted.path(best.lam, weights, step).predict(parts.X_test)[-1]
    losses = _test_losses(predicted, parts, metrics)
    weights = np.atleast_1d(np.asarray(best.alpha, dtype=np.float64)).tolist()
    choice = {"lam": float(np.ravel(best.lam)[0]), "alpha": weights, "step": best.step}
    return {**choice, "criterion": best.criterion, "value": best.value, **losses, "note": ""}


def _test_student(
    taught: StudentCell, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, Any]:
    """The same of a student."""
    losses = _test_losses(taught.predict(parts.X_test), parts, metrics)
    best = dict(taught.best)
    choice = {"lam": best["lam"], "alpha": [best["alpha"]], "step": best["step"]}
    choice |= {"teacher_lam": best["teacher_lam"], "criterion": "mse", "value": best["mse"]}
    return {**choice, **losses, "note": ""}


def _test_losses(
    predicted: Any, parts: Split | LargeData, metrics: tuple[Metric, ...]
) -> dict[str, float]:
    truth = np.asarray(parts.Y_test, np.float64)
    # a fit of moments of one output drops the axis
    predicted = np.asarray(predicted, dtype=np.float64).reshape(truth.shape)
    losses = {"test_mse": float(np.mean((predicted - truth) ** 2))}
    rows = PredictedRows(predicted.T, truth.T)
    for metric in metrics:
        losses[f"test_{metric.name}"] = float(metric.result(metric.update(rows), len(truth)))
    if parts.classes and "test_accuracy" not in losses:
        right = predicted.argmax(axis=1) == truth.argmax(axis=1)
        losses["test_accuracy"] = float(np.mean(right))
    return losses
