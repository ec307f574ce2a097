"""What teachers say at a student's rows: fits, arrays, files, networks; values, probabilities, top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np
import scipy

from sdgpu.backend.arrays import slices, targets
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice, lam_grid, positive, served_lam
from sdgpu.backend.conversion import as_array
from sdgpu.backend.prediction_files import (
    OUTPUTS,
    RESTS,
    SUM,
    check_probabilities,
    dense_top_k,
    read_predictions,
)
from sdgpu.backend.rows.file_patterns import is_path
from sdgpu.engine.fitted import Fit
from sdgpu.engine.requests import validation_rows
from sdgpu.selection.validation_rows import HeldRows

__all__ = ["TeacherPredictions", "rows_beside", "teachers_at"]

ENTRIES = 2**22  # kernel values of a block of rows
BATCH = 1024  # rows that a network sees at once
LOGITS = "of logits pass the softmax, or say so, output='logits' (of sdgpu.student teacher_output=)"


@dataclass(frozen=True, eq=False)
class TeacherPredictions:
    """Predictions of a teacher at the student's rows, and what their numbers are.

    Parameters
    ----------
    values : array_like (n, c) or (n, k), path, torch.nn.Module, or callable
        NumPy, torch or any library, the rows in the order of the student's, the unlabelled ones last. A
        file ``.npy``, ``.npz`` or ``.parquet`` (:mod:`sdgpu.backend.prediction_files`), which may say what
        its numbers are and have indices and labels. A module sees the student's rows in its own precision,
        in eval mode and without gradients; a function (of scikit-learn `model.predict_proba`) as an array
        of NumPy.
    output : {"predictions", "probabilities", "logits"}, optional
        Predictions are taken as they are; logits become probabilities by the softmax. By default what the
        file says, else predictions.
    temperature : float, default 1
        Of logits: softmax(logits / temperature).
    indices : array_like of int (n, k) or (k,), optional
        Top-k: the classes, from 0, that `values` has; (k,) are the same in every row, as of a teacher that
        never saw the others.
    rest : {"spread", "renormalise"}, optional
        Of top-k, what is left of 1: to the other classes in equal parts, or to the k in proportion. By
        default it is spread; logits of k classes know nothing of the others and are renormalised.
    labels : array_like of int (n,), optional
        Classes of the same rows as the teacher has them: rows in another order than the student's are
        refused. Files may have them.

    Raises
    ------
    ValueError
        For another output or rest, and a temperature <= 0.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> top = TeacherPredictions([[0.7, 0.2]], "probabilities", indices=[[2, 0]])
    >>> top.at(np.zeros((1, 5)), np.zeros((1, 4)))
    array([[0.2 , 0.05, 0.7 , 0.05]])
    """

    values: Any
    output: str | None = None
    temperature: float = 1.0
    indices: Any = None
    rest: str | None = None
    labels: Any = None

    def __post_init__(self) -> None:
        if self.output is not None:
            choice("teacher_output", self.output, OUTPUTS)
        if self.rest is not None:
            choice("rest", self.rest, RESTS)
        positive("temperature", self.temperature)

    @property
    def of_classes(self) -> bool:
        """Whether these are probabilities or logits."""
        return self.output in ("probabilities", "logits")

    def read(self, rows: np.ndarray) -> TeacherPredictions:
        """The same with an array of NumPy, whatever made it, and what a file says of it.

        Parameters
        ----------
        rows : array (n, d)
            What modules and functions see.

        Raises
        ------
        TypeError, ValueError, OSError
            For files that are none of predictions, or say something else than `output`; names them.
        """
        values = self.values
        if is_path(values):
            return self._of_file(values)
        if hasattr(values, "parameters") and hasattr(values, "eval"):
            values = _of_module(values, rows)
        elif callable(values):
            values = values(rows)
        elif hasattr(values, "predict"):  # an estimator, a path, a predictor
            raise TypeError(
                f"teacher is a {type(values).__name__}: pass its method that says what the student learns, "
                "teacher.predict or teacher.predict_proba, or the fit that it comes from"
            )
        found, _ = targets(values, "teacher", rows=len(rows))
        return replace(self, values=np.asarray(to_numpy(found), dtype=float))

    def at(self, rows: np.ndarray, Y: np.ndarray) -> np.ndarray:
        """What the teacher says at rows (n + u, d), of which the first have labels Y (n, c): (n + u, c).

        Raises
        ------
        TypeError, ValueError
            For other rows, outputs or labels; what are no probabilities, logits that are probabilities;
            top-k with k above c, or classes that are not there or come twice. Names the remedy.
        """
        own, c = self.read(rows), Y.shape[1]
        if not own.of_classes:
            if own.temperature != 1 or own.indices is not None:
                what = "indices are" if own.indices is not None else "a temperature is"
                raise ValueError(
                    f"{what} of classes, and the teacher has predictions of no known kind: name the "
                    "output, 'probabilities' or 'logits'"
                )
            return targets(own.values, "teacher", rows=len(rows), outputs=c)[0]
        values, _ = targets(own.values, "teacher", rows=len(rows))
        if c == 1:
            raise ValueError(
                "teacher: probabilities of one class are 1: pass one-hot rows (n, classes) as Y"
            )
        if own.indices is None and values.shape[1] != c:
            raise ValueError(
                f"teacher has {values.shape[1]} classes, Y has {c}: name those of its columns, "
                "TeacherPredictions(.., indices=[..]); what is missing gets what is left"
            )
        own._check_labels(Y)
        return own._probabilities(values, c)

    def _probabilities(self, values: np.ndarray, c: int) -> np.ndarray:
        logits, k = self.output == "logits", values.shape[1]
        if not logits and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature:g} is of logits, and the teacher has probabilities: leave "
                "it out"
            )
        if logits and _are_probabilities(values):
            raise ValueError(
                "teacher: these logits are >= 0 and every row sums to 1, as probabilities do: say "
                "output='probabilities'"
            )
        if not logits and (self.indices is None or k == c):
            check_probabilities("teacher", values, LOGITS)
        if logits:
            with np.errstate(over="ignore"):  # what is infinitely far below the largest is 0
                values = values / self.temperature
                values = values - values.max(axis=1, keepdims=True)
        if self.indices is None:
            return scipy.special.softmax(values, axis=1) if logits else values
        indices = _whole_numbers(self.indices)
        if indices.ndim == 1 and len(indices) == k:
            indices = np.broadcast_to(indices, values.shape)
        return dense_top_k(values, indices, c, logits=logits, rest=self.rest)

    def _check_labels(self, Y: np.ndarray) -> None:
        """Whether the rows are in the order of the student's."""
        if self.labels is None or not len(Y):
            return
        labels = _whole_numbers(self.labels)
        if labels.ndim != 1 or len(labels) < len(Y):
            raise ValueError(f"labels must be (rows,) of {len(Y)} rows or more, got {labels.shape}")
        other = np.flatnonzero(labels[: len(Y)] != Y.argmax(axis=1))
        if other.size:
            row = int(other[0])
            raise ValueError(
                f"teacher has other labels than Y in {other.size} of {len(Y)} rows, the first of them row "
                f"{row} ({labels[row]}, not {Y[row].argmax()}): it is of other rows, or of the same in "
                "another order"
            )

    def _of_file(self, path: Any) -> TeacherPredictions:
        table = read_predictions(path)
        if None not in (self.output, table.output) and self.output != table.output:
            raise ValueError(
                f"{path} says that it has {table.output}, and output={self.output!r}: leave that out"
            )
        if table.indices is not None and self.indices is not None:
            raise ValueError(f"{path} has indices of its own: leave indices out")
        return replace(
            self,
            values=np.asarray(table.values, dtype=float),
            output=self.output or table.output,
            indices=self.indices if table.indices is None else table.indices,
            labels=self.labels if table.labels is None else table.labels,
        )


def _are_probabilities(values: np.ndarray) -> bool:
    if values.shape[1] < 2 or values.min() < 0:
        return False
    return bool(np.abs(values.sum(axis=1) - 1).max() <= SUM)


def _whole_numbers(indices: Any) -> np.ndarray:
    found = np.asarray(to_numpy(as_array(indices, "indices")))
    if found.dtype.kind == "f" and (found == np.floor(found)).all():
        return found.astype(np.int64)
    return found


def _of_module(module: Any, rows: np.ndarray) -> np.ndarray:
    """Predictions of a torch module in eval mode, without gradients, in batches; it is left as it was."""
    import torch

    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    kind = torch.float32 if first is None else first.dtype
    device = torch.device("cpu") if first is None else first.device
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            parts = [
                module(torch.as_tensor(rows[part], dtype=kind, device=device)).cpu()
                for part in slices(len(rows), BATCH)
            ]
    finally:
        for part, training in modes.items():
            part.training = training
    return np.asarray(to_numpy(torch.cat(parts).to(torch.float64)))


def teachers_at(
    teachers: Sequence[Any], rows: np.ndarray, Y: np.ndarray, teacher_lams: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The teachers' lams (L1,) and what they say at the student's rows, (teachers, L1, n, c).

    Parameters
    ----------
    teachers : sequence of Fit or TeacherPredictions
    rows : array (n + u, d)
    Y : array (n, c)
        Labels of the first.
    teacher_lams : array_like (L1,) or None
        Of the fits: by default those of the first. NaN where there is none.

    Raises
    ------
    TypeError, ValueError
    """
    fits, c = [one for one in teachers if isinstance(one, Fit)], Y.shape[1]
    if not fits:
        if teacher_lams is not None:
            raise ValueError("teacher_lams are of a teacher that is a fit: predictions have none")
        own = np.array([np.nan])
    else:
        own = fits[0].lams if teacher_lams is None else lam_grid("teacher_lams", teacher_lams)
    for number, one in enumerate(teachers):  # before any work
        if isinstance(one, Fit):
            if one.info.c != c:
                raise ValueError(f"teacher {number + 1} has {one.info.c} outputs, Y has {c}")
            if one.info.d != rows.shape[1]:
                raise ValueError(
                    f"teacher {number + 1} was fitted on {one.info.d} features, and the student's rows "
                    f"have {rows.shape[1]}: pass what it says of them, predictions (n, c)"
                )
            for lam in own:
                served_lam(one.lams, float(lam))

    def said(one: Any) -> np.ndarray:
        if isinstance(one, Fit):
            return _step_one(one, rows, own)
        return np.broadcast_to(one.at(rows, Y), (len(own), len(rows), c))

    return own, np.stack([said(one) for one in teachers])


def rows_beside(fit: Fit, rows: np.ndarray) -> HeldRows:
    """kappa(rows, X) of rows of NumPy, in whose library the fit has its own."""
    sample, c = fit.parts.model.template.sample, fit.info.c
    xp = compat.array_namespace(sample)
    new, none = (
        xp.asarray(x, dtype=sample.dtype, device=compat.device(sample))
        for x in (rows, np.zeros((len(rows), c)))
    )
    return validation_rows(fit.parts.model, new, none, c)


def _step_one(teacher: Fit, rows: np.ndarray, lams: np.ndarray) -> np.ndarray:
    """Predictions of the ordinary fit at every lam from kernel values that are made once, (L1, n, c)."""
    parts = teacher.parts
    held = rows_beside(teacher, rows)
    offset = 0.0 if parts.model.offset is None else to_numpy(parts.model.offset)
    expansion = parts.solution.expand(lams, 1, (np.zeros(0), np.zeros(0)))
    values = [
        to_numpy(expansion.steps(block @ expansion.columns, slice(0, len(lams))))[:, 0]
        for _, block, _, _ in held.blocks(ENTRIES)
    ]
    return np.concatenate(values, axis=1) + offset
