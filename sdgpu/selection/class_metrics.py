"""Metrics of one-hot targets: the class of a row is that of the largest value, the first of equal ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import integer
from sdgpu.selection.class_scores import BINS, bin_gaps, one_hot_rows
from sdgpu.selection.predicted_rows import PredictedRows, RowMean

__all__ = [
    "Accuracy",
    "AreaUnderCurve",
    "BalancedAccuracy",
    "BrierScore",
    "CalibrationError",
    "F1Score",
    "LogLoss",
    "TopK",
]


@dataclass(frozen=True)
class _ClassMean(RowMean):
    """A mean over rows of one-hot targets."""

    of_classes: ClassVar[bool] = True

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows."""
        one_hot_rows(name, Y)


@dataclass(frozen=True)
class Accuracy(_ClassMean):
    """Share of rows whose largest prediction is that of their class; the first of equal ones counts."""

    name: ClassVar[str] = "accuracy"
    description: ClassVar[str] = "share of validation rows with the right class"
    larger_is_better: ClassVar[bool] = True

    def terms(self, rows: PredictedRows) -> Any:
        """Right ones."""
        return rows.classes[0]


@dataclass(frozen=True)
class LogLoss(_ClassMean):
    """Mean of -log p for the right class, at least log 1e-6 of p.

    p are predictions clipped to [1e-6, 1] and normalised, without a calibration.
    """

    name: ClassVar[str] = "nll"
    description: ClassVar[str] = "mean -log probability of the right class"

    def terms(self, rows: PredictedRows) -> Any:
        """Each -log p."""
        return rows.classes[1]


@dataclass(frozen=True)
class BrierScore(_ClassMean):
    """Mean of ||p - e||^2 over rows, e one-hot (Brier 1950): of two classes twice (p_1 - y)^2."""

    name: ClassVar[str] = "brier"
    description: ClassVar[str] = "mean squared distance of probabilities from the one-hot truth"

    def terms(self, rows: PredictedRows) -> Any:
        """Squared distances."""
        return rows.classes[2]


@dataclass(frozen=True)
class TopK(_ClassMean):
    """Share of rows whose class is among the k largest predictions.

    Of equal ones the first classes count, so that k = 1 is the accuracy. `top_2` by name.

    Parameters
    ----------
    k : int, default 2

    Raises
    ------
    ValueError
        For k < 1, and for targets of no more than k classes.
    """

    k: int = 2
    description: ClassVar[str] = "share of rows with the right class among the largest k"
    larger_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("k", self.k, 1)

    @property
    def name(self) -> str:
        """With its k."""
        return f"top_{self.k}"

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows of more than k classes."""
        one_hot_rows(name, Y)
        if int(Y.shape[1]) <= self.k:
            raise ValueError(
                f"{name} has {Y.shape[1]} classes: all of them are among {self.k}; take k < "
                f"{Y.shape[1]}"
            )

    def terms(self, rows: PredictedRows) -> Any:
        """1 where fewer than k classes are ahead."""
        xp = compat.array_namespace(rows.values)
        own = rows.one_hot > 0  # (c, b)
        right = xp.sum(xp.where(own, rows.values, 0 * rows.values), axis=-2, keepdims=True)
        later = xp.cumulative_sum(xp.astype(own, xp.int64), axis=0) == 0  # the right class is
        ahead = (rows.values > right) | ((rows.values == right) & later)
        count = xp.sum(xp.astype(ahead, xp.int64), axis=-2)
        return xp.astype(count < self.k, rows.values.dtype)


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error over 15 equal bins of the largest probability (Guo et al. 2017)."""

    name: ClassVar[str] = "ece"
    description: ClassVar[str] = "expected calibration error, 15 bins"
    larger_is_better: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True
    of_classes: ClassVar[bool] = True
    size: ClassVar[int] = BINS

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows."""
        one_hot_rows(name, Y)

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Right less confident in each bin."""
        return bin_gaps(rows.classes[0], rows.classes[3], rows.weights)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """Their sizes, over all rows."""
        return np.asarray(np.abs(sums / count).sum(axis=-1))


@dataclass(frozen=True)
class BalancedAccuracy:
    """Mean over classes of the share of their rows that are found; classes without rows do not count."""

    name: ClassVar[str] = "balanced_accuracy"
    description: ClassVar[str] = "mean recall of the classes"
    larger_is_better: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    of_classes: ClassVar[bool] = True
    size: ClassVar[int] = 6

    def size_for(self, outputs: int) -> int:
        """Found, predicted and true rows of each class."""
        return 3 * outputs

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows."""
        one_hot_rows(name, Y)

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Found, predicted and true rows of each class."""
        found, predicted = (
            rows.total(terms) for terms in (rows.predicted * rows.one_hot, rows.predicted)
        )
        true = np.broadcast_to(rows.total(rows.one_hot), found.shape)
        return np.concatenate([found, predicted, true], axis=-1)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean of found over true."""
        found, _, true = np.split(sums, 3, axis=-1)
        return _mean_where(found, true, true > 0)


@dataclass(frozen=True)
class F1Score(BalancedAccuracy):
    """Harmonic mean of precision and recall, 2 found / (predicted + true).

    "f1" is that of the second class where there are two, scikit-learn's f1_score; of more classes it is the
    mean over them, average="macro". "f1_macro" is the mean of two classes too. Classes that are neither
    predicted nor true do not count.
    """

    macro: bool = False
    description: ClassVar[str] = "F1 score"

    @property
    def name(self) -> str:  # type: ignore[override]
        """By what it averages."""
        return "f1_macro" if self.macro else "f1"

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean, or that of the second of two classes: 0 where it is neither predicted nor true."""
        found, predicted, true = np.split(sums, 3, axis=-1)
        seen = predicted + true
        if self.macro or found.shape[-1] > 2:
            return _mean_where(2 * found, seen, seen > 0)
        scores = np.divide(2 * found, seen, out=np.zeros_like(seen), where=seen > 0)
        return np.asarray(scores[..., 1])


@dataclass(frozen=True)
class AreaUnderCurve:
    """Area under the receiver operating characteristic: how often a row of a class is above another.

    Pairs count with both weights, ties for a half. Of two classes the score is f_2 - f_1; of more it is
    the mean over the classes of each against the rest, of those that have rows on both sides. A single
    column of 0 and 1 is taken too. Ranks do not add up over blocks: all rows are kept until the end,
    L T m c numbers, so that it is exact.
    """

    name: ClassVar[str] = "auc"
    description: ClassVar[str] = "area under the ROC curve"
    larger_is_better: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    of_classes: ClassVar[bool] = True
    needs_all_rows: ClassVar[bool] = True
    size: ClassVar[int] = 1

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows, or one column of 0 and 1."""
        if int(Y.shape[1]) > 1:
            one_hot_rows(name, Y)
            return
        xp = compat.array_namespace(Y)
        if float(xp.max(xp.minimum(xp.abs(Y), xp.abs(Y - 1)))) > 1e-6:
            raise ValueError(
                f"{name} holds no classes: 'auc' needs a column of 0 and 1, or one-hot rows; of real "
                "targets take 'mae', 'rmse' or 'r2'"
            )

    def update(self, rows: PredictedRows) -> np.ndarray:
        """The area itself, as these are all rows."""
        values, truth = to_numpy(rows.values), to_numpy(rows.one_hot)
        if len(truth) == 2:
            values, truth = values[..., 1:, :] - values[..., :1, :], truth[1:]
        areas = np.stack(
            [_area(values[..., j, :], truth[j] > 0, rows.host_weights) for j in range(len(truth))]
        )
        known = np.isfinite(areas).reshape(len(areas), -1).all(axis=1)
        if not known.any():
            return np.asarray(areas[0])[..., None]
        return np.asarray(areas[known].mean(axis=0))[..., None]

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """Itself."""
        return np.asarray(sums[..., 0])


def _area(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of pairs in order, (..., m) -> (...): NaN without rows on both sides."""
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    above, below = (np.where(side, weights, 0.0)[order] for side in (positive, ~positive))
    m = scores.shape[-1]
    places = np.arange(m)
    starts = np.ones(scores.shape, dtype=bool)  # of runs of equal scores
    starts[..., 1:] = ordered[..., 1:] > ordered[..., :-1]
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=-1)
    ends = np.ones(scores.shape, dtype=bool)
    ends[..., :-1] = starts[..., 1:]
    last = np.flip(
        np.minimum.accumulate(np.flip(np.where(ends, places, m), axis=-1), axis=-1), axis=-1
    )
    before = np.concatenate([np.zeros((*scores.shape[:-1], 1)), below.cumsum(axis=-1)], axis=-1)
    lower, upper = (np.take_along_axis(before, index, axis=-1) for index in (first, last + 1))
    pairs = (above * (lower + upper) / 2).sum(axis=-1)
    total = float(weights[positive].sum() * weights[~positive].sum())
    return np.asarray(pairs / total) if total > 0 else np.full(pairs.shape, np.nan)


def _mean_where(top: np.ndarray, bottom: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean over the last axis of top / bottom where there is something."""
    shares = np.divide(top, bottom, out=np.zeros_like(bottom), where=present)
    return np.asarray(shares.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))
