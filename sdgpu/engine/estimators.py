"""scikit-learn estimators: regressor and classifier, with given or chosen lam, alpha and step.

They pass scikit-learn's `check_estimator` and work in Pipeline, GridSearchCV, clone, joblib and
pickle. They take what scikit-learn takes; for torch or CuPy arrays use :func:`sdgpu.fit`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from sdgpu.engine.distillers import FixedParameters, ParameterSearch
from sdgpu.engine.partial_fits import PartialClassification, PartialRegression, checked_weights

__all__ = [
    "SelfDistillationClassifier",
    "SelfDistillationClassifierCV",
    "SelfDistillationRegressor",
    "SelfDistillationRegressorCV",
]


# a kernel matrix in half precision is known to few digits, which its checks must know
_FLOATS = (np.float64, np.float32, np.float16)


class _Regression(MultiOutputMixin, RegressorMixin):
    """fit and predict of a regressor."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (n, d), sparse for kernels with features of their own, and targets (n,) or (n, c).

        `sample_weight` (n,) weighs the squared errors.
        """
        X, y = validate_data(
            self,
            X,
            y,
            dtype=_FLOATS,
            multi_output=True,
            y_numeric=True,
            accept_sparse=self._sparse_format(),
        )
        # targets in their own precision: dates have more digits than float32
        self._learn(X, y, checked_weights(sample_weight, X))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the chosen step at rows (m, d): (m,) or (m, c)."""
        return self._raw(X)


class _Classification(ClassifierMixin):
    """fit and predict of a classifier on one-hot targets."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (n, d), dense or sparse as for regression, and labels (n,): one-hot rows.

        `sample_weight` (n,) weighs the squared errors. Classes without weight are kept.
        """
        X, y = validate_data(self, X, y, dtype=_FLOATS, accept_sparse=self._sparse_format())
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"the labels hold only one class, {self.classes_[0]}: a classifier needs two"
            )
        one_hot = np.eye(len(self.classes_), dtype=X.dtype)[codes]
        weights = checked_weights(sample_weight, X)
        if isinstance(self, ParameterSearch):
            self._learn(X, one_hot, weights, codes)
        else:
            self._learn(X, one_hot, weights)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Fitted one-hot values (m, classes); for two classes their difference (m,)."""
        raw = self._raw(X)
        return raw[:, 1] - raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest fitted value for each row."""
        raw = self._raw(X)
        return self.classes_[raw.argmax(axis=1)]


class SelfDistillationRegressor(_Regression, FixedParameters, PartialRegression):
    """Kernel ridge regression distilled from itself, with given lam, alpha and steps.

    Parameters
    ----------
    kernel : str, Kernel or callable, default "rbf"
        See :func:`sdgpu.kernels.as_kernel`.
    gamma : float, "median" or None, default None
        Parameter of a named kernel; None is 1 / n_features, "median" is 0.5 / median distance^2.
    lam : float, default 1
        Ridge of K + lam I.
    alpha : float or array (steps - 1,), default 0.5
        Weight of the ground truth at steps 2..steps, any real numbers.
    steps : int, default 2
        Distillation steps; 1 is ordinary kernel ridge regression.
    fit_intercept : bool, default False
        Whether a constant is fitted too that no penalty holds down.
    degree, coef0 : int, float
        Parameters of the polynomial kernel.
    method, device : str
        As in :func:`sdgpu.fit`.
    features : Nystrom, RandomFourier or Explicit, optional
        Finitely many features in place of the kernel; then there is a `partial_fit` too.

    Attributes
    ----------
    dual_coef_ : array (n,) or (n, c)
        Dual coefficients of the last step.
    info_ : Info
        How the fit was made and how accurate it is.

    References
    ----------
    Borup and Andersen (2021), Theorem 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from sdgpu import SelfDistillationRegressor
    >>> X = np.linspace(0, 1, 20)[:, None]
    >>> model = SelfDistillationRegressor(gamma=10.0, lam=0.1, alpha=0.3, steps=3)
    >>> model.fit(X, X[:, 0] ** 2).predict(X).shape
    (20,)
    """


class SelfDistillationRegressorCV(_Regression, ParameterSearch):
    """Kernel ridge regression distilled from itself; lam, alpha and step chosen from the data.

    By a validation split, one decomposition of the training part evaluates every (lam, alpha, step), and
    a second one fits the choice to all rows. By leave-one-out or generalised cross-validation a single
    decomposition of all rows (method "eigh") does both.

    Parameters
    ----------
    kernel, gamma, fit_intercept, degree, coef0, method, device
        As in :class:`SelfDistillationRegressor`.
    lams : array (L,), optional
        1e-6 n to n in 25 geometric steps by default.
    alphas : array (A,), optional
        0, 0.01, .., 1 by default.
    steps : int, default 5
        Largest number of steps.
    over : {"fixed", "ridge", "star", "clipped", "joint"}, default "fixed"
        What to choose among, see :meth:`sdgpu.Sweep.best`.
    selection : {"validation", "loo", "gcv"}, default "validation"
        A held-out split, exact leave-one-out, or generalised cross-validation (fixed weights only).
    validation_fraction : float, default 0.2
        Share of the rows to choose on.
    random_state : int, RandomState or None
        Seed of the split.
    features : Nystrom, RandomFourier or Explicit, optional
        Finitely many features in place of the kernel.

    Attributes
    ----------
    lam_, alpha_, step_
        The choice; alpha_ is NaN for step 1.
    best_ : Best
    sweep_ : Sweep
        All losses.
    dual_coef_, info_
        As in :class:`SelfDistillationRegressor`.
    """


class SelfDistillationClassifier(_Classification, FixedParameters, PartialClassification):
    """Self-distilled kernel regression on one-hot labels; predicts the largest value.

    Parameters and attributes as :class:`SelfDistillationRegressor`, with `classes_`.
    """


class SelfDistillationClassifierCV(_Classification, ParameterSearch):
    """Self-distilled kernel regression on one-hot labels; lam, alpha and step chosen by validation.

    Parameters and attributes as :class:`SelfDistillationRegressorCV`, with `classes_`. The split is
    stratified; the choice minimises the squared error.
    """
