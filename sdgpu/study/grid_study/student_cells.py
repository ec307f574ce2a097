"""What a cell keeps of a student: its losses by lam of teacher and student, and its best choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import sdgpu
from sdgpu.engine.fitted import Fit
from sdgpu.engine.student_model import Student
from sdgpu.kernels import Kernel
from sdgpu.study.grid_study.cells import Decomposition
from sdgpu.study.real_data.datasets import Split

__all__ = ["STUDENT_AXES", "StudentCell", "student_cell"]

#: Axes of what is kept, after those of the cell; "lam" is that of the grid.
STUDENT_AXES = {
    "student_mse": ("teacher_lam", "lam", "alpha", "step"),
    "student_alpha_star": ("teacher_lam", "lam"),
}


@dataclass(frozen=True, eq=False)
class StudentCell:
    """A student and its losses at the validation rows.

    Attributes
    ----------
    arrays : dict of str to array
        Of :data:`STUDENT_AXES`.
    best : dict
        teacher_lam, lam, alpha, step and mse of the point with the smallest loss.
    student : Student
    """

    arrays: dict[str, np.ndarray]
    best: dict[str, float]
    student: Student

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predictions of the best point, (m, c)."""
        best = self.best
        steps = int(best["step"])
        found = self.student.predict(X, best["teacher_lam"], best["lam"], best["alpha"], steps)
        return np.asarray(found[-1])


def student_cell(
    job: Decomposition, parts: Split, Y: Any, Y_val: Any, *, teacher_kernel: Kernel, how: Any
) -> StudentCell:
    """Fit the teacher to all training rows, the student to those that keep their labels and to the others.

    Parameters
    ----------
    job : Decomposition
    parts : Split
    Y, Y_val : array (n, c), (m, c)
        With the noise of the cell.
    teacher_kernel : Kernel
    how : dict
        kernel, features, device and memory of the student.
    """
    table, grid, method = job.config.teacher, job.config.grid, job.method
    assert table is not None
    n = len(parts.X_train)
    labelled = n - int(table.unlabelled * n)
    place = {"device": how["device"], "memory": how["memory"]}
    teacher: Fit = sdgpu.fit(
        parts.X_train,
        Y,
        teacher_kernel,
        table.ridges(n),
        intercept=method.has_intercept,
        seed=job.seed,
        **place,
    )
    student = sdgpu.student(
        teacher,
        how["kernel"],
        grid.ridges(n),
        parts.X_train[:labelled],
        Y[:labelled],
        unlabelled=None if labelled == n else parts.X_train[labelled:],
        method=method.name,
        features=how["features"],
        smoother=method.smoother,
        intercept=method.has_intercept,
        tol=job.config.compute.tol,
        steps=grid.steps,
        seed=job.seed,
        **place,
    )
    sweep = student.sweep(parts.X_val, Y_val, alphas=grid.alphas, steps=grid.steps)
    mse = sweep.dataset["mse"].values
    arrays = {
        "student_mse": mse if grid.steps > 1 else mse[..., None],
        "student_alpha_star": sweep.dataset["alpha_star"].values,
    }
    return StudentCell(arrays, {"step": 1.0, **sweep.best()}, student)
