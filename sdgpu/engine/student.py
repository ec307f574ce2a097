"""Students of teachers that are not themselves: another kernel, another lam, predictions from elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.arrays import inputs
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.checks import choice
from sdgpu.backend.prediction_files import check_probabilities
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.smoothers import Smoother
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.student_model import Student, teacher_shares
from sdgpu.engine.student_targets import StudentTargets
from sdgpu.engine.teachers import TeacherPredictions, teachers_at
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features

__all__ = ["student"]


@underflow_is_zero
def student(
    teacher: Any,
    kernel: Kernel | str | Any,
    lams: Any,
    X: Any = None,
    Y: Any = None,
    *,
    unlabelled: Any = None,
    teacher_lams: Any = None,
    weights: Any = None,
    teacher_output: str | None = None,
    temperature: float = 1.0,
    method: str = "auto",
    features: Features | None = None,
    smoother: str | Smoother = "ridge",
    intercept: bool = False,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    tol: float = 1e-6,
    steps: int = 10,
    seed: int = 0,
) -> Student:
    """Fit a student to targets alpha Y + (1 - alpha) (predictions of a teacher).

    Parameters
    ----------
    teacher : Fit, TeacherPredictions, array_like (n, c), path, module, callable, or list of them
        A fit with another kernel or lam; or predictions at the student's rows, the unlabelled ones last:
        arrays, files, networks, functions of rows (:class:`sdgpu.TeacherPredictions`, which has top-k too).
        Of several the mean with `weights`.
    kernel, lams
        The student's, as in :func:`sdgpu.fit`.
    X : array_like (n, d), optional
    Y : array_like (n,) or (n, c), optional
        Rows with labels; by default those of the (first) teacher, if it is a fit without weights and
        features. With `unlabelled` they may have no rows: arrays (0, d) and (0, c).
    unlabelled : array_like (u, d), optional
        Rows without: their truth is what the teacher says of them, whatever alpha.
    teacher_lams : array_like (L1,), optional
        Of a teacher that is a fit: its own lams by default.
    weights : array_like (M,) or "fitted", optional
        Of several teachers, that sum to 1; equal by default. "fitted" keeps the teachers apart, for
        :meth:`Student.fit_weights`.
    teacher_output : {"predictions", "probabilities", "logits"}, optional
        What the numbers of predictions are (:class:`sdgpu.TeacherPredictions`); by default what their file
        says, else predictions, which are taken as they are.
    temperature : float, default 1
        Of logits.
    method, features, smoother, intercept, device, memory, tol, steps, seed
        Of the student, as in :func:`sdgpu.fit`.

    Returns
    -------
    Student
        Data are read into NumPy, and NumPy's arrays come back; `device` works.

    Raises
    ------
    TypeError, ValueError
        For missing X or Y, predictions of other rows or outputs, and what are no probabilities or logits.

    Notes
    -----
    One fit with c (1 + M L1) outputs, c (1 + 2 M L1) with unlabelled rows; M is 1 unless the teachers are
    kept apart. After it and the teacher's own
    decomposition every (teacher_lam, lam, alpha, step) is algebra (:mod:`sdgpu.distill.students`).

    References
    ----------
    Weak to strong: Dong et al. (2025), Ildiz et al. (2025), Wu et al. (2026).

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 30)[:, None]
    >>> y = np.sin(6 * X[:, 0])
    >>> teacher = sdgpu.fit(X, y, sdgpu.Laplacian(1.0), [0.1, 1.0])
    >>> s = sdgpu.student(teacher, sdgpu.Gaussian(10.0), [0.01, 0.1], X, y)
    >>> s.sweep(X, y, alphas=[0.0, 0.5, 1.0]).dataset["mse"].shape
    (2, 2, 3)
    """
    teachers = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    if not teachers:
        raise ValueError("teacher is an empty list: name at least one")
    rows, Y_host, flat = _labelled_rows(teachers[0], X, Y)
    said = [
        one
        if isinstance(one, (Fit, TeacherPredictions))
        else TeacherPredictions(one, teacher_output, temperature)
        for one in teachers
    ]
    (n, c), every = Y_host.shape, rows
    if unlabelled is not None:
        more = inputs(to_numpy(unlabelled), "unlabelled", features=rows.shape[1])
        every = np.concatenate([rows, np.asarray(more, dtype=rows.dtype)])
    if not len(every):
        raise ValueError("X has no rows: without labels name those of the student, unlabelled=")
    apart = isinstance(weights, str) and choice("weights", weights, ("fitted",)) == "fitted"
    shares = teacher_shares(None if apart else weights, len(said))
    said = [one if isinstance(one, Fit) else one.read(every) for one in said]
    if any(isinstance(one, TeacherPredictions) and one.of_classes for one in said):
        _check_one_hot(Y_host)
    lams_of_teacher, told = teachers_at(said, every, Y_host, teacher_lams)
    mixes: tuple[tuple[tuple[float, Any], ...], ...] = tuple(((1.0, one),) for one in said)
    if not apart:
        mixes = (tuple(zip(shares.tolist(), said, strict=True)),)
        told, shares = np.tensordot(shares, told, axes=1)[None], np.ones(1)
    layout = StudentTargets(c, len(lams_of_teacher), len(shares), n, len(every) - n)
    how: dict[str, Any] = {"method": method, "features": features, "smoother": smoother}
    how |= {"intercept": intercept, "device": device, "memory": memory, "tol": tol, "seed": seed}
    fitted = fit(every, layout.stacked(Y_host, told), kernel, lams, steps=steps, **how)
    return Student(fitted, lams_of_teacher, shares, layout, Y_host, mixes, flat)


def _labelled_rows(teacher: Any, X: Any, Y: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """X (n, d) and Y (n, c) on the host, and whether Y had one axis."""
    if X is None and Y is None and isinstance(teacher, Fit):
        X, Y = _own_rows(teacher)
    if X is None or Y is None:
        raise ValueError("X and Y are missing: name the labelled rows that the student learns from")
    rows = np.asarray(to_numpy(X))
    try:
        Y_host = np.asarray(to_numpy(Y), dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "Y must hold numbers: of classes one-hot rows, np.eye(classes)[labels]"
        ) from error
    if len(Y_host) != len(rows):
        raise ValueError(f"Y has {len(Y_host)} rows, but its inputs have {len(rows)}")
    flat = Y_host.ndim == 1
    return rows, Y_host[:, None] if flat else Y_host, flat


def _check_one_hot(Y: np.ndarray) -> None:
    """Labels beside probabilities must be some."""
    if not len(Y) or Y.shape[1] == 1:
        return  # which has an error of its own
    remedy = "beside a teacher's probabilities labels are one-hot rows, np.eye(classes)[labels]"
    check_probabilities("Y", Y, remedy)


def _own_rows(teacher: Fit) -> tuple[Any, Any]:
    """X and Y of a fit that has them as they were."""
    model = teacher.parts.model
    if teacher.info.method == "features" or model.weighting is not None:
        raise ValueError(
            "X and Y are missing: a teacher with features, weights or an intercept does not have its rows "
            "and targets as they were"
        )
    Y = np.asarray(to_numpy(teacher.parts.solution.targets))
    return to_numpy(model.operator.X), Y[:, 0] if model.template.flat else Y
