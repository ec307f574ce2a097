"""Metrics of predictions: values that add up over rows and merge over blocks of them.

A metric keeps a few sums for each point of a grid. What has the attributes and methods of :class:`Metric`
is one, wherever it is written: ``fit.sweep(X_val, Y_val, metrics=[own])``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice
from sdgpu.selection.class_scores import BINS, bin_gaps, one_hot_rows, probabilities, score_terms

__all__ = [
    "CLASSES",
    "METRICS",
    "Accuracy",
    "BrierScore",
    "CalibrationError",
    "LogLoss",
    "MeanAbsoluteError",
    "Metric",
    "PredictedRows",
    "as_metrics",
]


@dataclass(frozen=True, eq=False)
class PredictedRows:
    """Predictions and the truth of some rows, with what several metrics need of them, made once.

    Attributes
    ----------
    values : array (..., c, b)
        Rows are last, so that sums over outputs add long vectors.
    truth : array (c, b)
    weights : array (b,) or None
        Of the rows, on the host.
    """

    values: Any
    truth: Any
    weights: np.ndarray | None = None

    def total(self, terms: Any) -> np.ndarray:
        """Sum over rows of terms (..., b), each with its weight: (...) on the host."""
        if self.weights is not None:
            return np.asarray(to_numpy(terms) @ self.weights)
        return to_numpy(compat.array_namespace(terms).sum(terms, axis=-1))

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Right (0 or 1), -log p of the right class, ||p - e||^2 and confidence, (..., b) each."""
        # one-hot within rounding, where it comes from eigenvectors
        truth = compat.array_namespace(self.truth).round(self.truth)
        terms = score_terms(self.values, probabilities(self.values, -2), truth)
        right, nll, brier, confidence = (to_numpy(x) for x in terms)
        return right, nll, brier, confidence


class Metric(Protocol):
    """One score of predictions.

    Attributes
    ----------
    name : str
        Of the variable in the dataset of a sweep, and for :meth:`Sweep.best`.
    description : str
        Its long name there.
    larger_is_better : bool
    size : int
        Sums that are kept for each point of a grid.

    One with an attribute `takes_weights` that is true minds :attr:`PredictedRows.weights`, and is given
    their sum as the count of rows; rows with weights are refused for others.
    """

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def larger_is_better(self) -> bool: ...
    @property
    def size(self) -> int: ...

    def check(self, name: str, Y: Any) -> None:
        """Raise ValueError, with the name of the argument, for targets (m, c) that it is not made for."""

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sums over some rows, (..., size) on the host; those of blocks are added."""

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The score (...) from the sums (..., size) over so many rows."""


@dataclass(frozen=True)
class _ClassMetric:
    """What the metrics of one-hot targets share."""

    size: ClassVar[int] = 1
    larger_is_better: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True

    def check(self, name: str, Y: Any) -> None:
        """One-hot rows."""
        one_hot_rows(name, Y)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean."""
        return np.asarray(sums[..., 0] / count)


@dataclass(frozen=True)
class Accuracy(_ClassMetric):
    """Share of rows whose largest prediction is that of their class; the first of equal ones counts."""

    name: ClassVar[str] = "accuracy"
    description: ClassVar[str] = "share of validation rows with the right class"
    larger_is_better: ClassVar[bool] = True

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Right ones."""
        return rows.total(rows.classes[0])[..., None]


@dataclass(frozen=True)
class LogLoss(_ClassMetric):
    """Mean of -log p for the right class, at least log 1e-6 of p."""

    name: ClassVar[str] = "nll"
    description: ClassVar[str] = "mean -log probability of the right class"

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sum of -log p."""
        return rows.total(rows.classes[1])[..., None]


@dataclass(frozen=True)
class BrierScore(_ClassMetric):
    """Mean of ||p - e||^2 over rows, e one-hot (Brier 1950)."""

    name: ClassVar[str] = "brier"
    description: ClassVar[str] = "mean squared distance of probabilities from the one-hot truth"

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sum of squared distances."""
        return rows.total(rows.classes[2])[..., None]


@dataclass(frozen=True)
class CalibrationError(_ClassMetric):
    """Expected calibration error over 15 equal bins of the largest probability (Guo et al. 2017)."""

    name: ClassVar[str] = "ece"
    description: ClassVar[str] = "expected calibration error, 15 bins"
    size: ClassVar[int] = BINS

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Right less confident in each bin."""
        return bin_gaps(rows.classes[0], rows.classes[3], rows.weights)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """Their sizes, over all rows."""
        return np.asarray(np.abs(sums / count).sum(axis=-1))


@dataclass(frozen=True)
class MeanAbsoluteError:
    """Mean of |f - y| over rows and outputs."""

    name: ClassVar[str] = "mae"
    description: ClassVar[str] = "mean absolute validation error"
    larger_is_better: ClassVar[bool] = False
    size: ClassVar[int] = 1
    takes_weights: ClassVar[bool] = True

    def check(self, name: str, Y: Any) -> None:
        """Any numbers."""

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sum over rows of the mean over outputs."""
        xp = compat.array_namespace(rows.values)
        error = xp.mean(xp.abs(rows.values - rows.truth), axis=-2)
        return rows.total(error)[..., None]

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean."""
        return np.asarray(sums[..., 0] / count)


#: What classes=True asks for.
CLASSES: tuple[Metric, ...] = (Accuracy(), LogLoss(), BrierScore(), CalibrationError())
#: Metrics that have a name.
METRICS: dict[str, Metric] = {one.name: one for one in (*CLASSES, MeanAbsoluteError())}


def as_metrics(values: Iterable[str | Metric]) -> tuple[Metric, ...]:
    """Metrics from their names or from objects, each name once.

    Raises
    ------
    TypeError
        For one name in place of several, or what has not the methods of a metric.
    ValueError
        For an unknown name, or two metrics of one name.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"metrics={values!r} must be several: write metrics=[{values!r}]")
    metrics: dict[str, Metric] = {}
    for value in values:
        metric = METRICS[choice("metric", value, METRICS)] if isinstance(value, str) else value
        members = ("name", "description", "larger_is_better", "size", "check", "update", "result")
        missing = [name for name in members if not hasattr(metric, name)]
        if missing:
            raise TypeError(f"metrics: {value!r} has no {', '.join(missing)}, which metrics have")
        if metric.name in metrics and metrics[metric.name] != metric:
            raise ValueError(f"metrics: two are called {metric.name!r}")
        metrics[metric.name] = metric
    return tuple(metrics.values())
