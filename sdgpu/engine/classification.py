"""Classifiers on one-hot targets: checks, weights of classes, predictions and calibrated probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from sdgpu.backend.checks import choice as name_choice
from sdgpu.engine.fitted import Fit
from sdgpu.engine.partial_fits import checked_weights
from sdgpu.engine.probabilities import Temperature, calibrated, left_out_scores, with_rows
from sdgpu.kernels import Kernel

__all__ = ["FLOATS", "Classification"]

# a kernel matrix in half precision is known to few digits, which its checks must know
FLOATS = (np.float64, np.float32, np.float16)


def _calibrates(estimator: Any) -> bool:
    if not estimator.probability:
        raise AttributeError("predict_proba needs probability=True")
    return True


class Classification(ClassifierMixin):
    """Checks, predictions and probabilities of a classifier on one-hot targets."""

    _temperature: Temperature

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (n, d), dense or sparse as for regression, and labels (n,): one-hot rows.

        `sample_weight` (n,) weighs the squared errors. Classes without weight are kept.
        """
        X, one_hot, weights, _ = self._checked(X, y, sample_weight)
        self._learn(X, one_hot, weights)
        return self

    @property
    def _has_intercept(self) -> bool:
        """With weights of classes: they are a word about shares, which a constant holds."""
        if isinstance(self.fit_intercept, str):
            name_choice("fit_intercept", self.fit_intercept, ("auto",))
            return self.class_weight is not None
        return bool(self.fit_intercept)

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=FLOATS, accept_sparse=self._sparse_format())
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"the labels hold only one class, {self.classes_[0]}: a classifier needs two"
            )
        one_hot = np.eye(len(self.classes_), dtype=X.dtype)[codes]
        weights = self._class_weighted(checked_weights(sample_weight, X), y)
        return X, one_hot, weights, codes

    def _class_weighted(
        self, weights: np.ndarray | None, y: np.ndarray, *, partial: bool = False
    ) -> np.ndarray | None:
        """Weights of the rows times those of their classes; "balanced" by the sums of the former.

        Raises
        ------
        ValueError
            For "balanced" of some rows at a time, whose shares nobody knows, or weights < 0.
        """
        if self.class_weight is None:
            return weights
        if partial and isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight={self.class_weight!r} needs all rows: give partial_fit a dict, from "
                "sklearn.utils.class_weight.compute_class_weight"
            )
        own_weight, present = self.class_weight, np.ones(len(y), dtype=bool)
        if weights is not None:
            present = weights > 0
            if own_weight == "balanced":  # whole weights are repeated rows here too
                labels, codes = np.unique(y[present], return_inverse=True)
                sums = np.bincount(codes, weights[present])
                own_weight = dict(zip(labels, sums.sum() / (len(sums) * sums), strict=True))
        own = np.zeros(len(y))
        own[present] = compute_sample_weight(own_weight, y[present])
        if not (own >= 0).all() or not own.any():
            raise ValueError(
                f"class_weight={self.class_weight!r} must be >= 0, and > 0 for a class that has rows"
            )
        return own if weights is None else own * weights

    def _after_fit(
        self,
        fitted: Fit,
        rows: tuple[Any, np.ndarray, np.ndarray | None],
        choice: tuple[float, Any, int],
        kernel: Kernel,
    ) -> None:
        """Calibrate probabilities on the scores of rows that were left out."""
        if not self.probability:
            return
        pairwise, X = self.__sklearn_tags__().input_tags.pairwise, rows[0]

        def refit(first: np.ndarray, Y: np.ndarray, weights: np.ndarray) -> Fit:
            if hasattr(fitted.parts.model.operator, "features"):  # the same sums
                return with_rows(fitted, X[first], Y, weights)
            own, method = X[np.ix_(first, first)] if pairwise else X[first], fitted.info.method
            method = "eigh" if method == "eigh" else self.method
            return self._decompose(own, Y, choice[0], kernel, weights=weights, method=method)

        self._temperature = calibrated(lambda: left_out_scores(fitted, rows, choice, refit))

    def _forget(self) -> None:
        self._temperature = Temperature(
            np.nan,
            "partial_fit keeps no rows that could be left out; calibrate on held-out rows with "
            "sklearn.calibration.CalibratedClassifierCV(sklearn.frozen.FrozenEstimator(model))",
        )

    def decision_function(self, X: Any) -> np.ndarray:
        """Fitted one-hot values (m, classes); for two classes their difference (m,)."""
        raw = self._raw(X)
        return raw[:, 1] - raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest fitted value for each row."""
        raw = self._raw(X)
        return self.classes_[raw.argmax(axis=1)]

    @available_if(_calibrates)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes at rows (m, d): (m, classes), rows that add up to 1.

        softmax(beta f) of the fitted values f, with one beta for all: that which makes the classes of the
        training rows most likely, each scored by the fit without it (:mod:`sdgpu.engine.probabilities`).
        The largest is that of :meth:`predict`.

        Raises
        ------
        ValueError
            Where no row can be left out: after partial_fit, or if a row determines itself.
        """
        raw = self._raw(X)
        return self._temperature.probabilities(raw)

    @available_if(_calibrates)
    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of :meth:`predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))
