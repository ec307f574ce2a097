"""Metrics of predictions: values that add up over rows and merge over blocks of them.

A metric keeps a few sums for each point of a grid. What has the attributes and methods of :class:`Metric`
is one, wherever it is written: ``fit.sweep(X_val, Y_val, metrics=[own])``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice
from sdgpu.selection.class_metrics import (
    Accuracy,
    AreaUnderCurve,
    BalancedAccuracy,
    BrierScore,
    CalibrationError,
    F1Score,
    LogLoss,
    TopK,
)
from sdgpu.selection.predicted_rows import PredictedRows
from sdgpu.selection.regression_metrics import (
    R2,
    ExplainedVariance,
    Huber,
    MaxError,
    MeanAbsoluteError,
    Pinball,
    RootMeanSquaredError,
    SquaredError,
)

__all__ = [
    "CLASSES",
    "METRICS",
    "MeanMetric",
    "Metric",
    "OutputMetric",
    "PredictedRows",
    "StandardError",
    "as_metrics",
    "larger_is_better",
    "named_metric",
    "standard_errors",
    "sums_of",
]


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

    What it may have beside:

    takes_weights : bool
        Whether it minds :attr:`PredictedRows.weights`, and is given their sum as the count of rows; rows
        with weights are refused for others.
    of_classes : bool
        Whether it tells classes apart: targets of one class alone are refused.
    needs_all_rows : bool
        Whether `update` must see all rows at once: they are kept then, L T m c numbers.
    size_for(outputs) : int
        The sums for so many outputs, if they depend on them.
    merge(sums, more) : array
        What takes the place of sums + more, of earlier rows and later ones.
    terms(rows) : array (..., b)
        What it is the mean over rows of: it has a standard error then.
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


class MeanMetric(Metric, Protocol):
    """A metric that is the mean over rows of its terms."""

    def terms(self, rows: PredictedRows) -> Any:
        """What each row has by itself, (..., b)."""


def sums_of(metric: Any, outputs: int) -> int:
    """Sums that a metric keeps for so many outputs."""
    return int(metric.size_for(outputs) if hasattr(metric, "size_for") else metric.size)


@dataclass(frozen=True)
class StandardError:
    """Standard error over rows of a metric that is a mean of terms t_i.

    The root of sum w_i^2 (t_i - mean)^2 / (sum w)^2 n / (n - 1), with n = (sum w)^2 / sum w^2: rows are
    independent of each other, whatever their weights. NaN for one row.
    """

    metric: MeanMetric
    size: ClassVar[int] = 5
    larger_is_better: ClassVar[None] = None
    takes_weights: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """That of the metric and "_se"."""
        return f"{self.metric.name}_se"

    @property
    def description(self) -> str:
        """Of what."""
        return f"standard error of {self.metric.name} over rows"

    def check(self, name: str, Y: Any) -> None:
        """As the metric."""
        self.metric.check(name, Y)

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sums of w, w t, w^2, w^2 t and w^2 t^2."""
        terms, w = to_numpy(self.metric.terms(rows)), rows.host_weights
        sums = [terms @ w, terms @ w**2, terms**2 @ w**2]
        weight, squares = (np.full_like(sums[0], total) for total in (w.sum(), (w**2).sum()))
        return np.stack([weight, sums[0], squares, *sums[1:]], axis=-1)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The standard error."""
        weight, first, squares, linear, quadratic = np.moveaxis(sums, -1, 0)
        mean = first / weight
        variance = np.clip(quadratic - 2 * mean * linear + mean**2 * squares, 0.0, None) / weight**2
        rows = weight**2 / squares
        more = np.divide(rows, rows - 1, out=np.full_like(rows, np.nan), where=rows > 1 + 1e-9)
        return np.asarray(np.sqrt(variance * more))


@dataclass(frozen=True)
class OutputMetric:
    """A metric of each output by itself: (..., c) in the place of one number."""

    metric: Metric
    outputs: int
    takes_weights: ClassVar[bool] = True
    larger_is_better: ClassVar[None] = None
    per_output: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """That of the metric and "_per_output"."""
        return f"{self.metric.name}_per_output"

    @property
    def description(self) -> str:
        """Of what."""
        return f"{self.metric.description} of each output"

    @property
    def size(self) -> int:
        """Those of all outputs."""
        return self.outputs * sums_of(self.metric, 1)

    def check(self, name: str, Y: Any) -> None:
        """Metrics of classes know no single outputs.

        Raises
        ------
        ValueError
        """
        if getattr(self.metric, "of_classes", False) or hasattr(self.metric, "needs_all_rows"):
            raise ValueError(
                f"metrics: {self.metric.name!r} is of all outputs together: leave it out with "
                "per_output=True"
            )

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sums of every output, one after the other."""
        return np.concatenate(
            [
                self.metric.update(
                    PredictedRows(
                        rows.values[..., j : j + 1, :], rows.truth[j : j + 1, :], rows.weights
                    )
                )
                for j in range(self.outputs)
            ],
            axis=-1,
        )

    def merge(self, sums: np.ndarray, more: np.ndarray) -> np.ndarray:
        """As the metric."""
        merge = getattr(self.metric, "merge", np.add)
        pairs = zip(self._each(sums), self._each(more), strict=True)
        return np.concatenate([merge(one, two) for one, two in pairs], axis=-1)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The scores (..., c)."""
        return np.stack([self.metric.result(one, count) for one in self._each(sums)], axis=-1)

    def _each(self, sums: np.ndarray) -> list[np.ndarray]:
        return np.split(sums, self.outputs, axis=-1)


#: What classes=True asks for.
CLASSES: tuple[Metric, ...] = (Accuracy(), LogLoss(), BrierScore(), CalibrationError())
#: Metrics that have a name.
METRICS: dict[str, Metric] = {
    one.name: one
    for one in (
        *CLASSES,
        MeanAbsoluteError(),
        RootMeanSquaredError(),
        R2(),
        ExplainedVariance(),
        MaxError(),
        BalancedAccuracy(),
        F1Score(),
        F1Score(macro=True),
        AreaUnderCurve(),
    )
}
#: Metrics with a number, and what it is.
_NUMBERED: dict[str, Callable[[str], Metric]] = {
    "pinball": lambda text: Pinball(float(text)),
    "huber": lambda text: Huber(float(text)),
    "top": lambda text: TopK(int(text)),
}
_WITH_NUMBER = re.compile(rf"({'|'.join(_NUMBERED)})_(\d+(?:\.\d+)?)")


def named_metric(name: str) -> Metric:
    """A metric by its name: one of :data:`METRICS`, or "pinball_0.9", "huber_1.35", "top_3".

    Raises
    ------
    ValueError
        For an unknown name, with the nearest, and for a number that does not fit.
    """
    match = _WITH_NUMBER.fullmatch(name) if isinstance(name, str) else None
    if match and (match[1] != "top" or match[2].isdigit()):
        return _NUMBERED[match[1]](match[2])
    return METRICS[choice("metrics", name, (*METRICS, "pinball_0.9", "huber_1.35", "top_2"))]


def larger_is_better(name: str) -> bool:
    """Whether the metric of a name is; other losses are not."""
    try:
        return bool(named_metric(name).larger_is_better)
    except ValueError:
        return False


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
        if value == SquaredError.name:
            continue  # every sweep has it
        metric = named_metric(value) if isinstance(value, str) else value
        members = ("name", "description", "larger_is_better", "size", "check", "update", "result")
        missing = [name for name in members if not hasattr(metric, name)]
        if missing:
            raise TypeError(f"metrics: {value!r} has no {', '.join(missing)}, which metrics have")
        if metric.name in metrics and metrics[metric.name] != metric:
            raise ValueError(f"metrics: two are called {metric.name!r}")
        metrics[metric.name] = metric
    return tuple(metrics.values())


def standard_errors(metrics: Iterable[Metric]) -> tuple[Any, ...]:
    """Standard errors of the squared error, and of those metrics that are means over rows."""
    means: list[Any] = [metric for metric in metrics if hasattr(metric, "terms")]
    return tuple(StandardError(metric) for metric in (SquaredError(), *means))
