"""Metrics of real targets. Those of several outputs are means over the outputs, as in scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import number, positive
from sdgpu.selection.predicted_rows import PredictedRows, RowMean

__all__ = [
    "R2",
    "ExplainedVariance",
    "Huber",
    "MaxError",
    "MeanAbsoluteError",
    "Pinball",
    "RootMeanSquaredError",
    "SquaredError",
    "plain",
]

#: Sums of squares below it, relative to those of the targets themselves, are rounding: no variation.
CONSTANT = 1e-26


def plain(value: float) -> str:
    """A number in the name of a metric: 0.9, 2."""
    return repr(float(value)).removesuffix(".0")


@dataclass(frozen=True)
class SquaredError(RowMean):
    """Mean of (f - y)^2 over rows and outputs; sweeps have it from their triangles."""

    name: ClassVar[str] = "mse"
    description: ClassVar[str] = "mean squared error"

    def terms(self, rows: PredictedRows) -> Any:
        """The mean over outputs."""
        return compat.array_namespace(rows.values).mean(rows.errors**2, axis=-2)


@dataclass(frozen=True)
class MeanAbsoluteError(RowMean):
    """Mean of |f - y| over rows and outputs."""

    name: ClassVar[str] = "mae"
    description: ClassVar[str] = "mean absolute validation error"

    def terms(self, rows: PredictedRows) -> Any:
        """The mean over outputs."""
        xp = compat.array_namespace(rows.values)
        return xp.mean(xp.abs(rows.errors), axis=-2)


@dataclass(frozen=True)
class Pinball(RowMean):
    """Mean over rows and outputs of q (y - f) where y > f, else (1 - q) (f - y).

    Its expectation is smallest where f is the q-quantile of y (Koenker and Bassett 1978).
    `pinball_0.9` by name.

    Parameters
    ----------
    quantile : float, default 0.5
        q in (0, 1).

    Raises
    ------
    ValueError
        For any other q.
    """

    quantile: float = 0.5
    description: ClassVar[str] = "mean pinball loss"

    def __post_init__(self) -> None:
        if not 0 < number("quantile", self.quantile) < 1:
            raise ValueError(f"quantile={self.quantile!r} must be between 0 and 1")

    @property
    def name(self) -> str:
        """With its quantile."""
        return f"pinball_{plain(self.quantile)}"

    def terms(self, rows: PredictedRows) -> Any:
        """The mean over outputs."""
        xp = compat.array_namespace(rows.values)
        above, below = xp.clip(rows.errors, 0.0, None), xp.clip(-rows.errors, 0.0, None)
        return xp.mean(self.quantile * below + (1 - self.quantile) * above, axis=-2)


@dataclass(frozen=True)
class Huber(RowMean):
    """Mean over rows and outputs of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); e = f - y.

    Squares for small errors, sizes for large ones (Huber 1964). `huber_1` by name.

    Parameters
    ----------
    delta : float, default 1.35
        In units of the targets.

    Raises
    ------
    ValueError
        Unless delta > 0.
    """

    delta: float = 1.35
    description: ClassVar[str] = "mean Huber loss"

    def __post_init__(self) -> None:
        positive("delta", self.delta)

    @property
    def name(self) -> str:
        """With its delta."""
        return f"huber_{plain(self.delta)}"

    def terms(self, rows: PredictedRows) -> Any:
        """The mean over outputs."""
        xp = compat.array_namespace(rows.values)
        size = xp.abs(rows.errors)
        inner = xp.clip(size, None, float(self.delta))
        return xp.mean(inner * (size - inner / 2), axis=-2)


@dataclass(frozen=True)
class RootMeanSquaredError:
    """Root of the mean of (f - y)^2 over rows; of several outputs the mean of their roots."""

    name: ClassVar[str] = "rmse"
    description: ClassVar[str] = "root mean squared error"
    larger_is_better: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True
    size: ClassVar[int] = 1

    def size_for(self, outputs: int) -> int:
        """A sum for each output."""
        return outputs

    def check(self, name: str, Y: Any) -> None:
        """Any numbers."""

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Sums of squares."""
        return rows.total(rows.errors**2)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean of the roots."""
        return np.asarray(np.sqrt(sums / count).mean(axis=-1))


@dataclass(frozen=True)
class MaxError:
    """Largest |f - y| over rows and outputs; weights say which rows there are, those > 0."""

    name: ClassVar[str] = "max_error"
    description: ClassVar[str] = "largest absolute error"
    larger_is_better: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True
    size: ClassVar[int] = 1

    def check(self, name: str, Y: Any) -> None:
        """Any numbers."""

    def update(self, rows: PredictedRows) -> np.ndarray:
        """The largest of these rows."""
        xp = compat.array_namespace(rows.values)
        errors = to_numpy(xp.max(xp.abs(rows.errors), axis=-2))
        return np.where(rows.host_weights > 0, errors, 0.0).max(axis=-1)[..., None]

    def merge(self, sums: np.ndarray, more: np.ndarray) -> np.ndarray:
        """The larger one."""
        return np.asarray(np.maximum(sums, more))

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """Itself."""
        return np.asarray(sums[..., 0])


@dataclass(frozen=True)
class R2:
    """Coefficient of determination, 1 - sum w (y - f)^2 / sum w (y - mean y)^2; the mean over outputs.

    The mean of y is that of the rows that are judged. Where they do not vary it is 1 for predictions
    without an error and 0 for others, as in scikit-learn.
    """

    name: ClassVar[str] = "r2"
    description: ClassVar[str] = "coefficient of determination"
    larger_is_better: ClassVar[bool] = True
    takes_weights: ClassVar[bool] = True
    size: ClassVar[int] = 6

    def size_for(self, outputs: int) -> int:
        """Squared errors, and twice the moments of :class:`_Moments`."""
        return 2 * (1 + 2 * outputs)

    def check(self, name: str, Y: Any) -> None:
        """Any numbers."""

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Moments of errors and of targets."""
        errors = _moments(rows, rows.errors)
        truth = np.broadcast_to(_moments(rows, rows.truth), errors.shape)
        return np.concatenate([errors, truth], axis=-1)

    def merge(self, sums: np.ndarray, more: np.ndarray) -> np.ndarray:
        """Moments of the rows of both."""
        halves = zip(np.split(sums, 2, axis=-1), np.split(more, 2, axis=-1), strict=True)
        return np.concatenate([_merged(one, two) for one, two in halves], axis=-1)

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """One less the share that is left."""
        (_, mean, spread), truth = (_parts(half) for half in np.split(sums, 2, axis=-1))
        return _explained(spread + count * mean**2, truth, count)


@dataclass(frozen=True)
class ExplainedVariance(R2):
    """1 - var(y - f) / var(y), weighted; the mean over outputs. A constant error costs nothing."""

    name: ClassVar[str] = "explained_variance"
    description: ClassVar[str] = "explained share of the variance"

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """One less the share of the variance that is left."""
        (_, _, spread), truth = (_parts(half) for half in np.split(sums, 2, axis=-1))
        return _explained(spread, truth, count)


def _moments(rows: PredictedRows, values: Any) -> np.ndarray:
    """Weight, means and sums of squared deviations of values (..., c, b): (..., 1 + 2 c).

    Not sums of squares: targets far from 0 would lose their variation in them.
    """
    weight = rows.count
    mean = rows.total(values) / weight if weight else 0 * rows.total(values)
    xp = compat.array_namespace(values)
    centre = xp.asarray(mean, dtype=values.dtype, device=compat.device(values))
    deviations = values - centre[..., None]
    first = (
        rows.total(deviations) / weight if weight else 0 * mean
    )  # what rounding left of the mean
    spread = rows.total(deviations**2) - weight * first**2
    counts = np.full((*mean.shape[:-1], 1), weight)
    return np.concatenate([counts, mean + first, np.clip(spread, 0.0, None)], axis=-1)


def _parts(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    c = (moments.shape[-1] - 1) // 2
    return moments[..., :1], moments[..., 1 : 1 + c], moments[..., 1 + c :]


def _merged(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Moments of the rows of both (Chan, Golub and LeVeque 1983)."""
    (w1, mean1, spread1), (w2, mean2, spread2) = _parts(one), _parts(two)
    weight, apart = w1 + w2, mean2 - mean1
    share = np.divide(w2, weight, out=np.zeros_like(weight), where=weight > 0)
    spread = spread1 + spread2 + apart**2 * w1 * share
    return np.concatenate([weight, mean1 + share * apart, spread], axis=-1)


def _explained(left: np.ndarray, truth: tuple[Any, Any, Any], count: float) -> np.ndarray:
    _, mean, variation = truth
    squares = variation + count * mean**2
    varies = variation > CONSTANT * squares
    exact = left <= CONSTANT * squares
    share = np.divide(left, variation, out=np.where(exact, 0.0, 1.0), where=varies)
    return np.asarray((1 - share).mean(axis=-1))
