"""One step of a path as an object that only predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdgpu.backend.backends import give_back
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.model import Model

__all__ = ["Predictor"]


@dataclass(frozen=True, eq=False)
class Predictor:
    """One step of a path without its spectrum: X and n c numbers, small enough to keep or pickle."""

    _model: Model = field(repr=False)
    _dual: Any = field(repr=False)

    @property
    @underflow_is_zero
    def dual(self) -> Any:
        """Dual coefficients (n, c), in the caller's library."""
        dual = self._model.row_coefficients(self._dual)
        return give_back(self._model.template, dual, copy=True)

    @underflow_is_zero
    def predict(self, X_new: Any) -> Any:
        """Predictions at new rows (m, d): (m, c)."""
        return self._model.predict(self._dual, X_new)

    @underflow_is_zero
    def gradient(self, X_new: Any) -> Any:
        """Derivatives of the predictions by new rows (m, d): (m, c, d); see :meth:`Path.gradient`."""
        return self._model.gradient(self._dual, X_new)
