"""Leave-one-out of a student: the row leaves the student alone, or its teachers too.

All columns of a student's targets have leave-one-out values (:mod:`sdgpu.distill.leave_one_out`), and its
steps are linear in them. That is the fit without row i to what the teacher says of the others. If the
teacher has learned from row i its word changes without it: with the smoother A (n + u, n) of its ridge, its
predictions P = A Y, and its own leave-one-out predictions f_i,

    P^(-i) = P + A e_i (f_i - Y_i),

so each column needs (S^q M A)_ii too, for the smoother S of the student and a mask M of its rows with or
without labels: n^3 once for each lam of the teacher, n^2 for each pair of lam and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.leave_one_out import diagonals, leave_one_out, rest
from sdgpu.distill.smoothers import RIDGE, smoother_of
from sdgpu.engine.fitted import Fit
from sdgpu.engine.requests import left_out_predictions
from sdgpu.engine.student_targets import StudentTargets
from sdgpu.engine.teachers import rows_beside

__all__ = ["check_left_out_teachers", "left_out_values", "teacher_changes"]


def left_out_values(fit: Fit, lams: np.ndarray, steps: int, labelled: int) -> np.ndarray:
    """u_1 .. u_T of all columns at each row with a label, by the student without it, (L2, T, n, columns).

    Raises
    ------
    ValueError
        If a row determines itself, and for other smoothers than ridge.
    """
    parts, none, found = fit.parts, np.zeros(steps - 1), []
    for lam in lams:
        values, _ = left_out_predictions(parts.solution, parts.model, float(lam), none)
        found.append(to_numpy(values)[:, :labelled])
    return np.stack(found)


def check_left_out_teachers(student: Fit, teachers: Sequence[Any], labels: np.ndarray) -> None:
    """Whether the teachers can forget a row as the student does.

    Raises
    ------
    ValueError
        For teachers that are no fits, of other rows or labels, and fits that are not exact ridge without
        weights and intercept: names it.
    """
    _check_exact(student, "the student")
    rows = _training_rows(student)
    for number, one in enumerate(teachers, start=1):
        if not isinstance(one, Fit):
            raise ValueError(
                f"left_out_of='both': teacher {number} is no fit, and nobody knows what it says without a "
                "row: take left_out_of='student', or validation rows"
            )
        _check_exact(one, f"teacher {number}")
        own = _training_rows(one)
        if own.shape != rows[: len(labels)].shape or not np.array_equal(own, rows[: len(labels)]):
            raise ValueError(
                f"left_out_of='both': teacher {number} has learned from other rows than those with labels; "
                "take left_out_of='student', in which no teacher has seen them"
            )
        if not np.allclose(to_numpy(one.parts.solution.targets), labels, rtol=1e-6, atol=1e-12):
            raise ValueError(
                f"left_out_of='both': teacher {number} has learned other labels than Y"
            )


def _training_rows(fit: Fit) -> np.ndarray:
    return np.asarray(to_numpy(fit.parts.model.operator.X))


def _check_exact(fit: Fit, who: str) -> None:
    solution, model = fit.parts.solution, fit.parts.model
    exact = fit.info.method == "eigh" and smoother_of(solution).name == RIDGE.name
    if not exact or model.weighting is not None:
        raise ValueError(
            f"left_out_of='both': {who} must be ridge of method='eigh' without weights and intercept, and "
            f"is {fit.info.method!r}; take left_out_of='student', or validation rows"
        )


def teacher_changes(
    student: Fit,
    layout: StudentTargets,
    teacher: Fit,
    *,
    teacher_lams: np.ndarray,
    lams: np.ndarray,
    steps: int,
) -> np.ndarray:
    """What u_1 .. u_T of a teacher's columns gain when it forgets each row too.

    Returns
    -------
    array (1 or 2, L1, L2, T, n, c)
        Of E, and of V where there are rows without labels.

    Notes
    -----
    (n + u) n^2 multiplications for each lam of the teacher and n (n + u) for each pair and step.
    """
    n, c = layout.labelled, layout.outputs
    spectrum = student.parts.solution.spectrum
    assert spectrum is not None  # checked: method="eigh"
    V, delta = to_numpy(spectrum.basis), to_numpy(spectrum.eigenvalues)
    own = V[:n]
    powers = [np.ones((len(lams), len(delta)))]
    for _ in range(steps):
        powers.append(powers[-1] * delta / (delta + lams[:, None]))
    diagonal = diagonals(V, delta, lams, steps)[:, :, :n]
    complement = rest(V, delta, lams)[:, :n]
    masks = [slice(0, n)] + ([slice(n, None)] if layout.unlabelled else [])
    found = np.empty((len(masks), len(teacher_lams), len(lams), steps, n, c))
    rows = _training_rows(student)
    for l1, lam in enumerate(teacher_lams):
        A = _teacher_smoother(teacher, rows, float(lam))
        labels = to_numpy(teacher.parts.solution.targets)
        change = to_numpy(teacher.parts.solution.left_out(np.array([lam]), 1).steps)[0, 0] - labels
        for k, mask in enumerate(masks):
            inside = own * (V[mask].T @ A[mask]).T  # (n, k): own_ij (V' M A)_ji
            moved = np.stack([p @ inside.T for p in powers], axis=1)  # (L2, T + 1, n)
            moved[:, 0] = np.diagonal(A[:n]) if k == 0 else 0.0  # S^0, exact where V lacks columns
            left = leave_one_out(moved[..., None], diagonal, complement)  # (L2, T, n, 1)
            found[k, l1] = left * change
    return found


def _teacher_smoother(teacher: Fit, rows: np.ndarray, lam: float) -> np.ndarray:
    """A = kappa(rows, X) (K + lam I)^-1, (n + u, n)."""
    spectrum = teacher.parts.solution.spectrum
    assert spectrum is not None
    V, delta = to_numpy(spectrum.basis), to_numpy(spectrum.eigenvalues)
    values = to_numpy(rows_beside(teacher, rows).cross.matmat(spectrum.basis))
    return np.asarray((values / (delta + lam)) @ V.T)
