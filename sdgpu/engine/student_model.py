"""`Student`: one decomposition that answers every teacher lam, lam, weight of the truth and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import (
    check_growth,
    choice,
    grid,
    integer,
    lam_grid,
    schedule,
    served_lam,
    shares,
)
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.students import mixed_steps, student_losses, student_weights
from sdgpu.engine.fitted import Fit
from sdgpu.engine.student_left_out import check_left_out_teachers, left_out_values, teacher_changes
from sdgpu.engine.student_results import StudentSweep, TeacherWeights
from sdgpu.engine.student_targets import StudentTargets, validation_blocks
from sdgpu.selection.losses import merged_folds
from sdgpu.selection.teacher_weights import (
    KINDS,
    fitted_teacher_weights,
    nested_teacher_loss,
    teacher_residuals,
)

__all__ = ["Student", "teacher_shares"]

NUMBERS = 2**22  # values of all columns, lam and steps, of a block


@dataclass(frozen=True, eq=False)
class Student:
    """A decomposition that answers every teacher lam, lam, weight and step.

    Made by :func:`sdgpu.student`.

    Attributes
    ----------
    fit : Fit
        Of the student's rows; its outputs are the truth and what each teacher adds, side by side.
    teacher_lams : array (L1,)
        Of the teachers' grid; NaN for predictions that have none.
    weights : array (M,)
        Of the teachers that are kept apart; [1.0] where they were mixed beforehand.
    outputs : int
        c.
    labelled : int
        Student's rows that have a label.
    """

    fit: Fit
    teacher_lams: np.ndarray
    weights: np.ndarray
    _targets: StudentTargets = field(repr=False)
    _labels: np.ndarray = field(repr=False)
    _teachers: tuple[tuple[tuple[float, Any], ...], ...] = field(repr=False)  # shares of each mix
    _flat: bool = field(repr=False)

    @property
    def outputs(self) -> int:
        """c."""
        return self._targets.outputs

    @property
    def labelled(self) -> int:
        """n."""
        return self._targets.labelled

    @underflow_is_zero
    def predict(
        self,
        X_new: Any,
        teacher_lam: float | None = None,
        lam: float | None = None,
        alpha: Any = 0.0,
        steps: int = 1,
    ) -> Any:
        """Predictions of steps 1..T at new rows.

        Parameters
        ----------
        X_new : array_like (m, d)
        teacher_lam, lam : float, optional
            One of the grid of teachers, and any lam that the student's fit serves; not needed where there
            is one.
        alpha : number or array (T,), default 0
            Weights of the truth at steps 1..T.
        steps : int, default 1
            T; step 1 learns from the teacher, later ones from the step before.

        Returns
        -------
        array (T, m, c)
            For 1-D targets (T, m).
        """
        steps, lam = integer("steps", steps, 1), served_lam(self.fit.lams, lam)
        alphas = _weights_of_steps(alpha, steps)
        new = np.asarray(to_numpy(X_new))
        plain = self.fit.path(lam, 0.0, steps=steps).predict(new)  # u_1 .. u_T of all columns
        return self._steps(plain, self._teacher(teacher_lam), alphas)

    @underflow_is_zero
    def loo(
        self,
        teacher_lam: float | None = None,
        lam: float | None = None,
        alpha: Any = 0.0,
        steps: int = 1,
        *,
        left_out_of: str = "student",
    ) -> Any:
        """Leave-one-out predictions of steps 1..T at the rows with labels, without a refit.

        Parameters
        ----------
        teacher_lam, lam, alpha, steps
            As in :meth:`predict`.
        left_out_of : {"student", "both"}, default "student"
            Whom the row leaves. "student": what the teacher says stands still. If the teacher has learned
            from the same rows, its word on the others has seen the label of row i, and these errors are
            too small; "both" is honest then: each teacher is fitted without the row too, in closed form.

        Returns
        -------
        array (T, n, c)
            For 1-D targets (T, n). Of the student alone exact if all eigenvalues are known (method="eigh",
            features of rows that can be read again), else the leverages are estimated.

        Raises
        ------
        ValueError
            Without labels, if a row determines itself, for other smoothers than ridge; of "both" for
            teachers and students that are not exact fits (method="eigh", no weights, no intercept) of the
            same rows.

        Notes
        -----
        n^2 T C multiplications for all C columns; of "both" (n + u) n^2 more for each lam of each teacher.
        """
        steps, lam = integer("steps", steps, 1), served_lam(self.fit.lams, lam)
        alphas = _weights_of_steps(alpha, steps)
        teacher = self._teacher(teacher_lam)
        values = self._left_out(np.array([lam]), steps, np.array([teacher]), left_out_of)
        return self._steps(values[0], teacher, alphas)

    @underflow_is_zero
    def sweep(
        self,
        X_val: Any = None,
        Y_val: Any = None,
        *,
        teacher_lams: Any = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 1,
        left_out_of: str = "student",
    ) -> StudentSweep:
        """Validation loss of every (teacher_lam, lam, alpha) and, with steps > 1, step.

        Parameters
        ----------
        X_val : array_like (m, d), optional
        Y_val : array_like (m,) or (m, c), optional
            Without validation rows each row with a label is judged by the student without it (:meth:`loo`).
        teacher_lams, lams : array_like, optional
            Those of the student by default.
        alphas : array_like (A,), optional
            0, 0.01, .., 1 by default; any real numbers.
        steps : int, default 1
        left_out_of : {"student", "both"}, default "student"
            Of leave-one-out: :meth:`loo`.

        Raises
        ------
        TypeError, ValueError, MemoryError
            Before any work.

        Notes
        -----
        m n k + m k L2 T c (1 + L1) multiplications and QR decompositions of L1 L2 matrices (m c, 2 T).
        """
        which, lams, alphas, steps = self._grid(X_val, teacher_lams, lams, alphas, steps)

        def columns(basis: np.ndarray, truth: np.ndarray, teacher: int) -> list[np.ndarray]:
            """[D_1 .. D_(T-1), E_1 .. E_T, u_1[G] - Y]."""
            G, E = self._targets.mixed(basis, teacher, self.weights)
            return [G[:, 1:], np.cumsum(E, axis=1), (G[:, 0] - truth)[:, None]]

        blocks = self._blocks((X_val, Y_val), which, lams, steps, left_out_of)
        (triangles,), rows = _triangles(blocks, which, columns)
        count = rows * self.outputs
        best = student_weights(triangles)
        return StudentSweep.of(
            student_losses(triangles, alphas) / count,
            best,
            _loss_at(triangles, best) / count,
            axes=(self.teacher_lams[which], lams, alphas),
        )

    @underflow_is_zero
    def fit_weights(
        self,
        X_val: Any = None,
        Y_val: Any = None,
        *,
        kind: str = "sum_to_one",
        teacher_lams: Any = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 1,
        left_out_of: str = "student",
        folds: int = 5,
    ) -> TeacherWeights:
        """Weights of the teachers that make the loss of each student smallest: least squares by QR.

        Parameters
        ----------
        X_val, Y_val
            As in :meth:`sweep`; rows that no teacher has learned from.
        kind : {"sum_to_one", "simplex"}, default "sum_to_one"
            Weights of any sign that sum to 1, or none below 0.
        teacher_lams, lams, alphas, steps, left_out_of
            As in :meth:`sweep`; alphas are 0, 0.1, .., 1 by default.
        folds : int, default 5
            Parts of the rows on which weights chosen on the others are judged; 1 for none.

        Returns
        -------
        TeacherWeights
            Its "mse" is on the rows that chose the weights: too small, the more so the more teachers there
            are; its "nested_mse" on rows that had no part in that. Pass the weights to
            :meth:`with_weights`.

        Raises
        ------
        ValueError
            For a student whose teachers are not apart (`weights="fitted"`).

        Notes
        -----
        QR decompositions of L1 L2 matrices (m c, T (1 + M)), and (1 + folds) L1 L2 A T small problems of M
        numbers.
        """
        choice("kind", kind, KINDS)
        M, apart, folds = len(self.weights), self._targets, integer("folds", folds, 1)
        if M < 2:
            raise ValueError(
                "fit_weights is of several teachers that are kept apart: sdgpu.student([..], .., "
                "weights='fitted')"
            )
        alphas = np.linspace(0, 1, 11) if alphas is None else alphas
        which, lams, alphas, steps = self._grid(
            X_val, teacher_lams, lams, alphas, steps, apart=folds
        )

        def columns(basis: np.ndarray, truth: np.ndarray, teacher: int) -> list[np.ndarray]:
            G, parts = apart.truth(basis), []
            for m in range(M):
                if apart.unlabelled:
                    parts.append(apart.unseen(basis, m, teacher))
                parts.append(np.cumsum(apart.extra(basis, m, teacher), axis=1))
            return [G[:, 1:], *parts, (G[:, 0] - truth)[:, None]]

        blocks = self._blocks((X_val, Y_val), which, lams, steps, left_out_of)
        parts, rows = _triangles(blocks, which, columns, folds)
        triangles, count = merged_folds(parts), rows * self.outputs
        weights = np.empty((len(which), len(lams), len(alphas), steps, M))
        mse, nested = np.empty(weights.shape[:-1]), np.full(weights.shape[:-1], np.nan)
        enough = 1 < folds <= rows // 2
        for i, j, k, t in np.ndindex(*mse.shape):
            how: dict[str, Any] = {"alpha": float(alphas[k]), "step": t + 1}
            how["unlabelled"] = apart.unlabelled > 0
            B = teacher_residuals(triangles[i, j], M, **how)
            weights[i, j, k, t], loss = fitted_teacher_weights(B, kind)
            mse[i, j, k, t] = loss / count
            if enough:
                B = teacher_residuals(parts[:, i, j], M, **how)
                nested[i, j, k, t] = nested_teacher_loss(B, kind) / count
        axes = (self.teacher_lams[which], lams, alphas)
        return TeacherWeights.of(weights, mse, nested, axes=axes)

    def with_weights(self, weights: Any) -> Student:
        """The same with other weights of its teachers, which sum to 1, for nothing.

        Raises
        ------
        ValueError
            For another number of weights, or another sum.
        """
        return replace(self, weights=teacher_shares(weights, len(self.weights)))

    def _steps(self, plain: Any, teacher: int, alphas: np.ndarray) -> Any:
        """y(1..T) of u_1 .. u_T of all columns."""
        mixed = mixed_steps(*self._targets.mixed(plain, teacher, self.weights), alphas)
        return mixed[..., 0] if self._flat else mixed

    def _grid(
        self, X_val: Any, teacher_lams: Any, lams: Any, alphas: Any, steps: Any, *, apart: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Checked, and counted; with columns of each teacher for so many parts of the rows (`apart`)."""
        steps = integer("steps", steps, 1)
        which = (
            np.arange(len(self.teacher_lams))
            if teacher_lams is None
            else np.array([self._teacher(float(x)) for x in lam_grid("teacher_lams", teacher_lams)])
        )
        lams = self.fit.lams if lams is None else lam_grid("lams", lams)
        for lam in lams:
            served_lam(self.fit.lams, float(lam))
        weights = np.linspace(0, 1, 101) if alphas is None else grid("alphas", alphas)
        check_growth(weights, steps)
        rows = self.labelled + self._targets.unlabelled if X_val is None else np.shape(X_val)[0]
        pairs, values = len(which) * len(lams), rows * len(lams) * steps * self.fit.info.c
        at_once = 4 * min(NUMBERS, values) if X_val is not None else 4 * values
        M, blocks = len(self.weights), 2 if self._targets.unlabelled else 1
        columns = steps * (1 + M * blocks if apart else 2)
        found = len(weights) * steps * (2 + M if apart else 1)
        triangles = 2 if apart <= 1 else 2 + 2 * apart
        numbers = pairs * (found + triangles * columns**2) + at_once
        self.fit.parts.model.afford(numbers, f"a grid of {pairs * len(weights) * steps:,} students")
        return which, lams, weights, steps

    def _teacher(self, teacher_lam: float | None) -> int:
        if teacher_lam is None:
            if len(self.teacher_lams) > 1:
                raise ValueError(
                    f"teacher_lam is missing: there are {len(self.teacher_lams)}, name one"
                )
            return 0
        near = np.flatnonzero(np.isclose(self.teacher_lams, teacher_lam, rtol=1e-9, atol=0))
        if not near.size:
            raise ValueError(
                f"teacher_lam={teacher_lam:g} is none of the teacher's: {self.teacher_lams.tolist()}"
            )
        return int(near[0])

    def _blocks(
        self,
        data: tuple[Any, Any],
        which: np.ndarray,
        lams: np.ndarray,
        steps: int,
        left_out_of: str,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """u_1, D_1 .. of all columns (L2, T, b, C) and the truth (b, c): validation rows, or left out."""
        if (data[0] is None) != (data[1] is None):
            raise ValueError(
                "X_val and Y_val belong together: pass both, or none for leave-one-out"
            )
        if data[0] is None:
            u = self._left_out(lams, steps, which, left_out_of)
            yield np.concatenate([u[:, :1], np.diff(u, axis=1)], axis=1), self._labels
            return
        C, width = self.fit.info.c, 2 * len(which) * self.outputs * len(self.weights)
        how = {"outputs": self.outputs, "numbers": NUMBERS * C // max(C, width)}
        yield from validation_blocks(self.fit, data, lams, steps, **how)

    def _left_out(
        self, lams: np.ndarray, steps: int, which: np.ndarray, left_out_of: str
    ) -> np.ndarray:
        """u_1 .. u_T of all columns at rows with labels by fits without them, (L2, T, n, C)."""
        both = choice("left_out_of", left_out_of, ("student", "both")) == "both"
        if not self.labelled:
            raise ValueError("leave-one-out is of rows with labels, and there are none: pass X_val")
        layout = self._targets
        if both:
            every = [teacher for mix in self._teachers for _, teacher in mix]
            check_left_out_teachers(self.fit, every, self._labels)
        values = left_out_values(self.fit, lams, steps, self.labelled)
        if both:
            values = values.copy()
            grids = {"teacher_lams": self.teacher_lams[which], "lams": lams, "steps": steps}
            for m, mix in enumerate(self._teachers):
                for share, teacher in mix:
                    changes = share * teacher_changes(self.fit, layout, teacher, **grids)
                    for k, number in enumerate(which):
                        extra = layout.extra(values, m, int(number))
                        extra += changes[0, k]
                        if layout.unlabelled:
                            unseen = layout.unseen(values, m, int(number))
                            unseen += changes[1, k]
        return values


def _weights_of_steps(alpha: Any, steps: int) -> np.ndarray:
    """alpha of steps 1..T, (T,): a student's step 1 has a weight too.

    Raises
    ------
    TypeError, ValueError
    """
    if np.shape(alpha) not in ((), (steps,)):
        raise ValueError(
            f"alpha has shape {np.shape(alpha)}, but steps={steps} needs one number or {steps} of them, "
            f"one per step 1..{steps}"
        )
    return schedule(alpha, steps + 1, name="alpha")


def _triangles(
    blocks: Iterator[tuple[np.ndarray, np.ndarray]], which: np.ndarray, columns: Any, folds: int = 1
) -> tuple[np.ndarray, int]:
    """R (folds, L1, L2, p, p) of columns (L2, .., b, c) of each teacher lam, and how many rows there were.

    Every folds-th row is of a part.
    """
    found: list[Any] = [None] * folds
    rows = 0
    for basis, truth in blocks:
        by_teacher = np.stack(
            [np.concatenate(columns(basis, truth, int(teacher)), axis=1) for teacher in which]
        )
        for f in range(folds):
            own = by_teacher[..., (f - rows) % folds :: folds, :]
            if own.shape[-2]:
                own = own.reshape(*own.shape[:3], -1).swapaxes(-1, -2)
                found[f] = merge_rows(found[f], own)
        rows += len(truth)
    empty = next(one for one in found if one is not None)
    return np.stack([np.zeros_like(empty) if one is None else one for one in found]), rows


def _loss_at(triangles: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Sums of squared errors of step 1 at a weight of its own for each leading index."""
    T = triangles.shape[-1] // 2
    values = triangles[..., -1] + (1 - alphas)[..., None] * triangles[..., T - 1]
    return np.einsum("...k,...k->...", values, values)


def teacher_shares(weights: Any, count: int) -> np.ndarray:
    """Weights (M,) that sum to 1; equal ones for None.

    Raises
    ------
    ValueError
    """
    return shares("weights", weights, count, "teachers")
