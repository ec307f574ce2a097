"""`partial_fit` of the estimators: rows that come a few at a time, without the old ones."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, validate_data

from sdgpu.backend.checks import positive
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.moments import Moments
from sdgpu.engine.predictor import Predictor

__all__ = ["PartialClassification", "PartialFit", "PartialRegression"]

Self = TypeVar("Self", bound="PartialFit")
_FLOATS = (np.float64, np.float32, np.float16)


def _has_features(estimator: Any) -> bool:
    if estimator.features is None:
        raise AttributeError(
            "partial_fit needs features=: sdgpu.Nystrom, sdgpu.RandomFourier or sdgpu.Explicit"
        )
    return True


def checked_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    """Weights of the rows in float64; None where there are none.

    Raises
    ------
    ValueError
        For weights that are negative or all 0, or not one for each row.
    """
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not weights.any():
        raise ValueError("sample_weight is 0 for all rows: nothing would be fitted")
    return np.asarray(weights)


class PartialFit(BaseEstimator):
    """Moments that grow, and a fit of them when predictions are asked for."""

    moments_: Moments | None
    _predictor: Predictor | None

    def _add(self: Self, X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> Self:
        Y = Y if Y.ndim == 2 else Y[:, None]
        moments = getattr(self, "moments_", None)
        if moments is None:
            self._dtype = np.result_type(X.dtype, np.float32)
            self._unit = 1.0
            self.moments_ = moments = Moments(
                self._kernel(X), self.features, d=X.shape[1], c=Y.shape[1], device=self.device
            )
        moments.add(X.astype(np.float64), Y, weights)
        self._predictor = None  # made when it is needed: k^3 operations for many blocks at once
        self._forget()
        return self

    def _forget(self) -> None:
        """Drop what was learned of the rows before."""

    def _restart(self) -> None:
        self.moments_ = None

    def _refit(self) -> Fit:
        """The fit of all rows so far, whose predictor is kept."""
        assert self.moments_ is not None
        fitted = fit(self.moments_, lams=positive("lam", self.lam), intercept=self._has_intercept)
        self.info_ = fitted.info
        self._keep(fitted.path(alphas=self.alpha, steps=self.steps).predictor())
        return fitted


class PartialRegression(PartialFit):
    """`partial_fit` of a regressor."""

    @available_if(_has_features)
    def partial_fit(self: Self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Add rows X (b, d) with targets (b,) or (b, c), and weights (b,); with `features` alone.

        The first call picks landmarks from its rows where they are to be picked.
        """
        first = getattr(self, "moments_", None) is None
        X, y = validate_data(
            self,
            X,
            y,
            dtype=_FLOATS,
            multi_output=True,
            y_numeric=True,
            reset=first,
            accept_sparse=self._sparse_format(),
        )
        return self._add(X, y, checked_weights(sample_weight, X))


class PartialClassification(PartialFit):
    """`partial_fit` of a classifier."""

    @available_if(_has_features)
    def partial_fit(
        self: Self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Self:
        """Add rows X (b, d) with labels (b,); with `features` alone.

        Parameters
        ----------
        X : array_like (b, d)
        y : array_like (b,)
        classes : array_like, optional
            All labels there will be: wanted at the first call.
        sample_weight : array_like (b,), optional

        Raises
        ------
        ValueError
            For labels that are not among them.
        """
        first = getattr(self, "moments_", None) is None
        X, y = validate_data(
            self, X, y, dtype=_FLOATS, reset=first, accept_sparse=self._sparse_format()
        )
        if first:
            if classes is None:
                raise ValueError("classes is missing: the first partial_fit needs all labels")
            self.classes_ = np.unique(classes)
            if len(self.classes_) < 2:
                raise ValueError("classes holds one label: a classifier needs two")
        codes = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        unknown = np.unique(y[self.classes_[codes] != y])
        if len(unknown):
            raise ValueError(f"y holds {unknown.tolist()}, which classes does not")
        weights = self._class_weighted(checked_weights(sample_weight, X), y, partial=True)
        return self._add(X, np.eye(len(self.classes_))[codes], weights)

    def _class_weighted(
        self, weights: np.ndarray | None, y: np.ndarray, *, partial: bool = False
    ) -> np.ndarray | None:
        """Weights of the rows times those of their classes; see the estimator."""
        raise NotImplementedError
