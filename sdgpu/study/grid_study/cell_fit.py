"""The work on one decomposition: fit once; for each cell sweep, choose by every rule, judge the choices."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

import sdgpu
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.kernels import Kernel
from sdgpu.study.grid_study.cell_data import (
    features_of,
    kernel_of,
    lams_by_step,
    noisy_targets,
    split_of,
)
from sdgpu.study.grid_study.cell_judging import CellResult, judged
from sdgpu.study.grid_study.cells import Cell, Decomposition, KernelPoint
from sdgpu.study.grid_study.federated_cells import SharedCells
from sdgpu.study.grid_study.shared_distances import share_distances
from sdgpu.study.grid_study.student_cells import StudentCell, student_cell
from sdgpu.study.real_data.datasets import Split
from sdgpu.study.real_data.large_data import LargeData

__all__ = ["fit_cells"]


@underflow_is_zero
def fit_cells(job: Decomposition, *, device: str = "auto", memory: Any = None) -> list[CellResult]:
    """Fit, and all cells of it.

    Noise is drawn for training and validation targets from the seed of the cell; one eigendecomposition
    serves all levels of it, other methods fit each anew, as their bases grow from the targets. Where rows
    are shared out, workers compute their moments once for each level.

    Parameters
    ----------
    job : Decomposition
    device : str, default "auto"
    memory : bytes or "8GiB", optional
        As for :func:`sdgpu.fit`.
    """
    how: dict[str, Any] = {"device": device, "memory": memory}
    make = _CellsOfAllRows(job, **how) if job.sharing is None else SharedCells(job, **how)
    results = []
    for cell in job.cells:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            result = make(cell)
        texts = dict.fromkeys(str(w.message) for w in heard if issubclass(w.category, UserWarning))
        result.record["warnings"] = list(texts)
        results.append(result)
    return results


class _CellsOfAllRows:
    """Makes the cells of a decomposition."""

    def __init__(self, job: Decomposition, *, device: str, memory: Any) -> None:
        start = time.perf_counter()
        parts = split_of(job.data, job.seed)
        kernel = kernel_of(job.kernel, job.data, job.seed)
        # who else needs rows and kernel
        alone = job.method.learn is None and job.config.teacher is None
        if not isinstance(parts, LargeData) and alone:
            parts, kernel = share_distances(parts, kernel, job)
        rows = parts.train.n if isinstance(parts, LargeData) else len(parts.X_train)
        self._job, self._parts, self._kernel = job, parts, kernel
        self._place: dict[str, Any] = {"device": device, "memory": memory}
        self._lams = job.config.grid.ridges(rows or 0)
        self._fitted: Fit | None = None
        self._loaded = time.perf_counter() - start

    def __call__(self, cell: Cell) -> CellResult:
        start, job, parts = time.perf_counter(), self._job, self._parts
        Y_train, Y_val = noisy_targets(parts, job, cell)
        # a kernel that is learned from the targets is another one for others
        before = None if job.method.learn else self._fitted
        shared = before is not None and before.info.method == "eigh"
        if before is not None and shared:
            fitted = before.with_targets(Y_train)
        else:
            fitted = self._fit(Y_train, Y_val)
        self._fitted = fitted
        seconds = {"load": 0.0 if shared else self._loaded, "fit": time.perf_counter() - start}
        taught = _taught(job, fitted, parts, (Y_train, Y_val), place=self._place)
        how: dict[str, Any] = {"lams": self._lams, "seconds": seconds, "taught": taught}
        result = judged(job, cell, fitted, parts, Y_val, **how)
        if job.method.learn is not None:
            result.record["learned"] = repr(fitted.kernel)
        return result

    def _fit(self, Y: Any, Y_val: Any) -> Fit:
        job, parts = self._job, self._parts
        large = isinstance(parts, LargeData)
        own = _learned(self._kernel, job, parts, (Y, Y_val))
        # a source is read once: landmarks are of the sample that came with it
        sample = parts.sample if isinstance(parts, LargeData) else None
        return sdgpu.fit(
            parts.train if isinstance(parts, LargeData) else parts.X_train,
            None if large else Y,
            own,
            np.unique(lams_by_step(job, self._lams)),
            features=features_of(job.method, own, job.seed, pick_from=sample),
            method=_method(job),
            operator=job.method.operator,
            tol=job.config.compute.tol,
            dtype=job.precision,
            steps=job.config.grid.steps,
            intercept=job.method.has_intercept,
            smoother=job.method.smoother,
            seed=job.seed,
            **self._place,
        )


def _method(job: Decomposition) -> str:
    """That of the fit: rounds of labels, and a lam for each step, take all eigenvalues."""
    whole = job.config.synthetic_labels is not None or job.method.later_lam != 1
    return "eigh" if whole and job.method.features is None else job.method.name


def _taught(
    job: Decomposition,
    fitted: Fit,
    parts: Split | LargeData,
    targets: tuple[Any, Any],
    *,
    place: dict[str, Any],
) -> StudentCell | None:
    """The student of a cell, where the study has a teacher."""
    table = job.config.teacher
    if table is None or isinstance(parts, LargeData):
        return None
    point = KernelPoint(
        table.name, tuple((name, values[0]) for name, values in table.given.items())
    )
    teacher_kernel = kernel_of(point, job.data, job.seed)
    features = features_of(job.method, fitted.kernel, job.seed)
    how = {"kernel": fitted.kernel, "features": features, **place}
    return student_cell(job, parts, *targets, teacher_kernel=teacher_kernel, how=how)


def _learned(
    kernel: Kernel, job: Decomposition, parts: Split | LargeData, targets: tuple[Any, Any]
) -> Kernel:
    """The kernel of a cell, its parameters learned where the study asks for it."""
    method = job.method
    if method.learn is None:
        return kernel
    if isinstance(parts, LargeData):
        raise ValueError(f"learn={list(method.learn)} needs rows in memory: leave it out here")
    by = (parts.X_val, targets[1]) if method.learn_by == "validation" else method.learn_by
    lams = job.config.grid.ridges(len(parts.X_train))
    intercept = method.has_intercept and method.learn_by != "validation"
    return sdgpu.tune(
        parts.X_train, targets[0], kernel, lams, over=method.learn, by=by, intercept=intercept
    ).kernel
