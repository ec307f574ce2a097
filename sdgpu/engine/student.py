"""Students of teachers that are not themselves: another kernel, another lam, predictions from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import targets
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.checks import check_growth, grid, integer, lam_grid, schedule, served_lam
from sdgpu.backend.prediction_files import check_probabilities
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.smoothers import Smoother
from sdgpu.distill.students import mixed_steps, student_losses, student_weights
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.requests import validation_rows
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Student", "StudentSweep", "student"]

ENTRIES = 2**22  # kernel values of a block of validation rows
NUMBERS = 2**22  # values of all columns, lam and steps, of a block


@dataclass(frozen=True, eq=False)
class Student:
    """A decomposition that answers every teacher lam, lam, weight and step.

    Made by :func:`student`.

    Attributes
    ----------
    fit : Fit
        Of the student's rows; its outputs are the truth and what each teacher adds, side by side.
    teacher_lams : array (L1,)
        Of the teachers' grid; NaN for predictions that have none.
    outputs : int
        c.
    labelled : int
        Student's rows that have a label.
    """

    fit: Fit
    teacher_lams: np.ndarray
    outputs: int
    labelled: int
    _flat: bool = field(repr=False)

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
        weights = schedule(alpha, steps + 1, name="alpha")
        new = np.asarray(to_numpy(X_new))
        plain = self.fit.path(lam, 0.0, steps=steps).predict(new)  # u_1 .. u_T of all columns
        mixed = mixed_steps(*self._columns(plain, self._teacher(teacher_lam)), weights)
        return mixed[..., 0] if self._flat else mixed

    @underflow_is_zero
    def sweep(
        self,
        X_val: Any,
        Y_val: Any,
        *,
        teacher_lams: Any = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 1,
    ) -> StudentSweep:
        """Validation loss of every (teacher_lam, lam, alpha) and, with steps > 1, step.

        Parameters
        ----------
        X_val : array_like (m, d)
        Y_val : array_like (m,) or (m, c)
        teacher_lams, lams : array_like, optional
            Those of the student by default.
        alphas : array_like (A,), optional
            0, 0.01, .., 1 by default; any real numbers.
        steps : int, default 1

        Raises
        ------
        TypeError, ValueError, MemoryError
            Before any work.

        Notes
        -----
        m n k + m k L2 T c (1 + L1) multiplications and QR decompositions of L1 L2 matrices (m c, 2 T).
        """
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
        pairs = len(which) * len(lams)
        values = np.shape(X_val)[0] * len(lams) * steps * self.fit.info.c
        numbers = pairs * (len(weights) * steps + 8 * steps**2) + 4 * min(NUMBERS, values)
        self.fit.parts.model.afford(numbers, f"a grid of {pairs * len(weights) * steps:,} students")
        triangles, rows = self._triangles(X_val, Y_val, which, lams, steps)
        count = rows * self.outputs
        best = student_weights(triangles)
        return StudentSweep.of(
            student_losses(triangles, weights) / count,
            best,
            _loss_at(triangles, best) / count,
            axes=(self.teacher_lams[which], lams, weights),
        )

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

    def _columns(self, values: Any, teacher: int) -> tuple[Any, Any]:
        """Values of the truth, what the teacher says of unlabelled rows included, and of what it adds."""
        c, L = self.outputs, len(self.teacher_lams)
        truth = values[..., :c]
        extra = values[..., c * (1 + teacher) : c * (2 + teacher)]
        if self.fit.info.c > c * (1 + L):  # rows without labels
            first = c * (1 + L + teacher)
            truth = truth + values[..., first : first + c]
        return truth, extra

    def _triangles(
        self, X_val: Any, Y_val: Any, which: np.ndarray, lams: np.ndarray, steps: int
    ) -> tuple[np.ndarray, int]:
        parts, C = self.fit.parts, self.fit.info.c
        rows = np.asarray(to_numpy(X_val))
        truth, _ = targets(
            np.asarray(to_numpy(Y_val)), "Y_val", rows=len(rows), outputs=self.outputs
        )
        held = validation_rows(parts.model, rows, np.zeros((len(rows), C)), C)
        offset = 0.0 if parts.model.offset is None else to_numpy(parts.model.offset)
        expansion = parts.solution.expand(lams, steps, (np.zeros(0), np.zeros(0)))
        found: Any = None
        at_once = max(1, NUMBERS // (len(lams) * steps * max(C, 2 * len(which) * self.outputs)))
        for start, block, _, _ in held.blocks(min(ENTRIES, at_once * held.width)):
            basis = to_numpy(expansion.steps(block @ expansion.columns, slice(0, len(lams)))).copy()
            basis[:, 0] += offset  # u_1; differences have none
            wanted = truth[start : start + basis.shape[2]]
            found = merge_rows(found, self._loss_columns(basis, wanted, which))
        return found, len(rows)

    def _loss_columns(self, basis: np.ndarray, truth: np.ndarray, which: np.ndarray) -> np.ndarray:
        """[D_1 .. D_(T-1), E_1 .. E_T, u_1[G] - Y] as (L1, L2, b c, 2 T) from (L2, T, b, C)."""
        by_teacher = []
        for teacher in which:
            G, E = self._columns(basis, teacher)
            E = np.cumsum(E, axis=1)  # u_t from u_1, D_1, ..
            columns = np.concatenate([G[:, 1:], E, (G[:, 0] - truth)[:, None]], axis=1)
            by_teacher.append(columns.reshape(*columns.shape[:2], -1).transpose(0, 2, 1))
        return np.stack(by_teacher)


def _loss_at(triangles: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Sums of squared errors of step 1 at a weight of its own for each leading index."""
    T = triangles.shape[-1] // 2
    values = triangles[..., -1] + (1 - alphas)[..., None] * triangles[..., T - 1]
    return np.einsum("...k,...k->...", values, values)


@dataclass(frozen=True, eq=False)
class StudentSweep:
    """Losses of a grid of students.

    Attributes
    ----------
    dataset : xarray.Dataset
        "mse" (teacher_lam, lam, alpha), with an axis step more where there are several; "alpha_star" and
        "star_mse" (teacher_lam, lam), the best weight of step 1 (equation (16)) and its loss.
    """

    dataset: xr.Dataset

    @classmethod
    def of(
        cls, mse: np.ndarray, star: np.ndarray, star_mse: np.ndarray, *, axes: tuple[Any, ...]
    ) -> StudentSweep:
        """From arrays (L1, L2, A, T), (L1, L2) and (L1, L2)."""
        import xarray as xr

        names = ("teacher_lam", "lam", "alpha", "step")
        coordinates = dict(zip(names, (*axes, np.arange(1, mse.shape[-1] + 1)), strict=True))
        variables = {
            "mse": (names, mse),
            "alpha_star": (names[:2], star),
            "star_mse": (names[:2], star_mse),
        }
        dataset = xr.Dataset(variables, coords=coordinates)
        return cls(dataset.squeeze("step", drop=True) if mse.shape[-1] == 1 else dataset)

    def best(self) -> dict[str, float]:
        """The point with the smallest loss: its coordinates and "mse"."""
        mse = self.dataset["mse"]
        point = mse.isel(mse.argmin(dim=list(mse.dims)))
        found = {str(name): float(point[name]) for name in mse.dims}
        return {**found, "mse": float(point)}


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
    probabilities: bool = False,
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
    teacher : Fit, array_like (n, c), or sequence of them
        A fit with another kernel or lam; or predictions at the student's rows, the unlabelled ones last: a
        network's, another package's; of several the mean with `weights`.
    kernel, lams
        The student's, as in :func:`sdgpu.fit`.
    X : array_like (n, d), optional
    Y : array_like (n,) or (n, c), optional
        Rows with labels; by default those of the (first) teacher, if it is a fit without weights and
        features.
    unlabelled : array_like (u, d), optional
        Rows without: their truth is what the teacher says of them, whatever alpha.
    teacher_lams : array_like (L1,), optional
        Of a teacher that is a fit: its own lams by default.
    weights : array_like, optional
        Of several teachers, that sum to 1; equal by default.
    probabilities : bool, default False
        Whether predictions are probabilities of classes, in rows that sum to 1: checked then.
    method, features, smoother, intercept, device, memory, tol, steps, seed
        Of the student, as in :func:`sdgpu.fit`.

    Returns
    -------
    Student
        Data are read into NumPy, and NumPy's arrays come back; `device` works.

    Raises
    ------
    TypeError, ValueError
        For missing X or Y, predictions of other rows or outputs, and what are no probabilities.

    Notes
    -----
    One fit with c (1 + L1) outputs, (1 + 2 L1) c with unlabelled rows. After it and the teacher's own
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
    if X is None and Y is None and isinstance(teachers[0], Fit):
        X, Y = _own_rows(teachers[0])
    if X is None or Y is None:
        raise ValueError("X and Y are missing: name the labelled rows that the student learns from")
    rows, Y_host = np.asarray(to_numpy(X)), np.asarray(to_numpy(Y), dtype=float)
    flat, Y_host = Y_host.ndim == 1, Y_host.reshape(len(Y_host), -1)
    (n, c), every = Y_host.shape, rows
    if unlabelled is not None:
        every = np.concatenate([rows, np.asarray(to_numpy(unlabelled), dtype=rows.dtype)])
    shares = _shares(weights, len(teachers))
    lams_of_teacher, told = _told(teachers, every, teacher_lams, c)
    predictions = np.tensordot(shares, told, axes=1)  # (L1, n + u, c)
    if probabilities:
        check_probabilities("teacher", predictions, "of logits pass the softmax")
    u = len(every) - n
    truth = np.concatenate([Y_host, np.zeros((u, c))])
    extra = [np.concatenate([P[:n] - Y_host, np.zeros((u, c))]) for P in predictions]
    unseen = [np.concatenate([np.zeros((n, c)), P[n:]]) for P in predictions] if u else []
    stacked = np.concatenate([truth, *extra, *unseen], axis=1)
    how: dict[str, Any] = {"method": method, "features": features, "smoother": smoother}
    how |= {"intercept": intercept, "device": device, "memory": memory, "tol": tol, "seed": seed}
    fitted = fit(every, stacked, kernel, lams, steps=steps, **how)
    return Student(fitted, lams_of_teacher, c, n, flat)


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


def _shares(weights: Any, count: int) -> np.ndarray:
    shares = np.full(count, 1 / count) if weights is None else grid("weights", weights)
    if len(shares) != count:
        raise ValueError(f"weights has {len(shares)} entries for {count} teachers")
    if not np.isclose(shares.sum(), 1):
        raise ValueError(f"weights sum to {shares.sum():g}: they must sum to 1")
    return shares


def _told(
    teachers: Sequence[Any], rows: np.ndarray, teacher_lams: Any, c: int
) -> tuple[np.ndarray, np.ndarray]:
    """The teachers' lams (L1,) and what they predict at the student's rows, (teachers, L1, n, c)."""
    fits = [one for one in teachers if isinstance(one, Fit)]
    if not fits:
        if teacher_lams is not None:
            raise ValueError("teacher_lams are of a teacher that is a fit: predictions have none")
        own = np.array([np.nan])
    else:
        own = fits[0].lams if teacher_lams is None else lam_grid("teacher_lams", teacher_lams)
    told = []
    for number, one in enumerate(teachers):
        if isinstance(one, Fit):
            if one.info.c != c:
                raise ValueError(f"teacher {number + 1} has {one.info.c} outputs, Y has {c}")
            for lam in own:
                served_lam(one.lams, float(lam))
            told.append(_step_one(one, rows, own))
        else:
            found, _ = targets(np.asarray(to_numpy(one)), "teacher", rows=len(rows), outputs=c)
            told.append(np.broadcast_to(found, (len(own), len(rows), c)))
    return own, np.stack(told)


def _step_one(teacher: Fit, rows: np.ndarray, lams: np.ndarray) -> np.ndarray:
    """Predictions of the ordinary fit at every lam from kernel values that are made once, (L1, n, c)."""
    parts, c = teacher.parts, teacher.info.c
    sample = parts.model.template.sample  # in whose library the teacher has its rows
    xp = compat.array_namespace(sample)
    new, none = (
        xp.asarray(x, dtype=sample.dtype, device=compat.device(sample))
        for x in (rows, np.zeros((len(rows), c)))
    )
    held = validation_rows(parts.model, new, none, c)
    offset = 0.0 if parts.model.offset is None else to_numpy(parts.model.offset)
    expansion = parts.solution.expand(lams, 1, (np.zeros(0), np.zeros(0)))
    values = [
        to_numpy(expansion.steps(block @ expansion.columns, slice(0, len(lams))))[:, 0]
        for _, block, _, _ in held.blocks(ENTRIES)
    ]
    return np.concatenate(values, axis=1) + offset
