"""Rows with their predictions, as metrics see them, and metrics that are means over rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.selection.class_scores import probabilities, score_terms

__all__ = ["PredictedRows", "RowMean"]


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

    @property
    def count(self) -> float:
        """Rows, or the sum of their weights."""
        return float(self.truth.shape[-1] if self.weights is None else self.weights.sum())

    @property
    def host_weights(self) -> np.ndarray:
        """The weights, 1 without: (b,)."""
        return np.ones(self.truth.shape[-1]) if self.weights is None else self.weights

    @cached_property
    def errors(self) -> Any:
        """f - y, (..., c, b)."""
        return self.values - self.truth

    @cached_property
    def one_hot(self) -> Any:
        """The truth (c, b) of classes, one-hot within rounding where it comes from eigenvectors."""
        return compat.array_namespace(self.truth).round(self.truth)

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Right (0 or 1), -log p of the right class, ||p - e||^2 and confidence, (..., b) each."""
        terms = score_terms(self.values, probabilities(self.values, -2), self.one_hot)
        right, nll, brier, confidence = (to_numpy(x) for x in terms)
        return right, nll, brier, confidence

    @cached_property
    def predicted(self) -> Any:
        """1 for the class with the largest value of a row, the first of equal ones: (..., c, b)."""
        values = self.values
        xp = compat.array_namespace(values)
        largest = values == xp.max(values, axis=-2, keepdims=True)
        if int(xp.count_nonzero(largest)) > compat.size(values) // values.shape[-2]:  # ties
            classes = xp.arange(values.shape[-2], device=compat.device(values))[:, None]
            largest = xp.argmax(values, axis=-2, keepdims=True) == classes
        return xp.astype(largest, values.dtype)


@dataclass(frozen=True)
class RowMean:
    """A metric that is the mean over rows of something that each row has by itself.

    Derive from it with a name, a description and `terms`; such metrics have standard errors.
    """

    size: ClassVar[int] = 1
    larger_is_better: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = True

    def check(self, name: str, Y: Any) -> None:
        """Any numbers."""

    def terms(self, rows: PredictedRows) -> Any:
        """What it is the mean of, (..., b)."""
        raise NotImplementedError

    def update(self, rows: PredictedRows) -> np.ndarray:
        """Their sum."""
        return rows.total(self.terms(rows))[..., None]

    def result(self, sums: np.ndarray, count: float) -> np.ndarray:
        """The mean."""
        return np.asarray(sums[..., 0] / count)
