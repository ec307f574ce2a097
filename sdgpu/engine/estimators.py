"""scikit-learn estimators: regressor and classifier, with given or chosen lam, alpha and step.

They pass scikit-learn's `check_estimator` and work in Pipeline, GridSearchCV, clone, joblib and
pickle. They take what scikit-learn takes; for torch or CuPy arrays use :func:`sdgpu.fit`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import validate_data

from sdgpu.backend.rounding import mean_and_spread
from sdgpu.backend.scaling import safe_unit
from sdgpu.engine.classification import FLOATS, Classification
from sdgpu.engine.distillers import FixedParameters
from sdgpu.engine.parameter_search import ParameterSearch
from sdgpu.engine.partial_fits import PartialClassification, PartialRegression, checked_weights
from sdgpu.kernels.feature_maps import Features

__all__ = [
    "SelfDistillationClassifier",
    "SelfDistillationClassifierCV",
    "SelfDistillationRegressor",
    "SelfDistillationRegressorCV",
]


FAR = (
    10.0  # standard deviations that the mean of targets is from 0, from which a constant is missed
)


class _Regression(MultiOutputMixin, RegressorMixin):
    """Checks and predictions of a regressor."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to X (n, d), sparse for kernels that take it, and targets (n,) or (n, c).

        `sample_weight` (n,) weighs the squared errors.
        """
        self._learn(*self._checked(X, y, sample_weight))
        return self

    def _checked(self, X: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            dtype=FLOATS,
            multi_output=True,
            y_numeric=True,
            accept_sparse=self._sparse_format(),
        )
        if not self.fit_intercept:
            _warn_of_far_targets(y)
        # targets in their own precision: dates have more digits than float32
        return X, y, checked_weights(sample_weight, X)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the chosen step at rows (m, d): (m,) or (m, c)."""
        return self._raw(X)


def _warn_of_far_targets(y: np.ndarray) -> None:
    """Targets that vary little around a number far from 0: a penalty on that number is hardly meant."""
    size = safe_unit(float(np.abs(y).max()))  # squares of 1e200 overflow
    mean, spread = mean_and_spread(y.astype(np.float64).reshape(len(y), -1) / size)
    far = np.flatnonzero((spread > 0) & (np.abs(mean) > FAR * spread))
    if len(far):
        j = int(far[0])
        warnings.warn(
            f"y is {size * mean[j]:.3g} +- {size * spread[j]:.1g}: without a constant the penalty of lam "
            "is on its distance from 0, and predictions fall to 0 between the rows; fit_intercept=True "
            "takes the mean off",
            stacklevel=4,
        )


class SelfDistillationRegressor(_Regression, FixedParameters, PartialRegression):
    """Kernel ridge regression distilled from itself, with given lam, alpha and steps.

    Parameters
    ----------
    kernel : str, Kernel or callable, default "rbf"
        See :func:`sdgpu.kernels.as_kernel`.
    gamma : float, "median", "scale" or None, default None
        Parameter of a named kernel; None is 1 / n_features, "median" is 0.5 / median distance^2, "scale"
        1 / (n_features times the variance of all entries of X).
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
    a second one fits the choice to all rows. By `cv` there is one decomposition for each fold, whose losses
    add up, and one of all rows. By leave-one-out or generalised cross-validation a single decomposition of
    all rows (method "eigh") does both.

    Parameters
    ----------
    kernel, gamma, fit_intercept, degree, coef0, method, device
        As in :class:`SelfDistillationRegressor`.
    lams : array (L,), optional
        1e-6 n to n in 25 geometric steps by default: the same for every fold.
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
    cv : int, splitter of scikit-learn, or iterable of (train, test), optional
        Folds, in the place of `selection`; fit takes `groups` for them. Left-out rows of all folds are
        judged together: means over rows, weighted; r2, auc and f1 are of all of them, no means over folds.
    scoring : str or Metric, optional
        What chooses among fixed weights in place of the squared error: a metric of
        :data:`sdgpu.selection.metrics.METRICS`, "pinball_0.9" and the like, or what scikit-learn calls it,
        such as "neg_mean_absolute_error".
    one_standard_error : bool, default False
        The most regularised choice within one standard error of the best, see :meth:`sdgpu.Sweep.best`. Of
        repeated folds rows count as often as they are judged, and the error is too small.
    per_output : bool, default False
        A lam, alpha and step for each output, for L A T c numbers of memory; over="fixed" or "ridge".
    random_state : int, RandomState or None
        Seed of the split.
    features : Nystrom, RandomFourier or Explicit, optional
        Finitely many features in place of the kernel.

    Attributes
    ----------
    lam_, alpha_, step_
        The choice; alpha_ is NaN for step 1. Arrays (c,) with per_output.
    best_ : Best
    sweep_ : Sweep
        All losses.
    dual_coef_, info_
        As in :class:`SelfDistillationRegressor`.
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        gamma: float | str | None = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 5,
        *,
        over: str = "fixed",
        selection: str = "validation",
        validation_fraction: float = 0.2,
        cv: Any = None,
        scoring: Any = None,
        one_standard_error: bool = False,
        per_output: bool = False,
        fit_intercept: bool = False,
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        random_state: Any = None,
        features: Features | None = None,
    ) -> None:
        super().__init__(
            kernel,
            gamma,
            lams,
            alphas,
            steps,
            over=over,
            selection=selection,
            validation_fraction=validation_fraction,
            cv=cv,
            scoring=scoring,
            one_standard_error=one_standard_error,
            fit_intercept=fit_intercept,
            degree=degree,
            coef0=coef0,
            method=method,
            device=device,
            random_state=random_state,
            features=features,
        )
        self.per_output = per_output

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Any:
        """Fit to X (n, d) and targets (n,) or (n, c); `groups` (n,) are those of the folds of `cv`.

        `sample_weight` (n,) weighs the squared errors, those of left-out rows too.
        """
        self._learn(*self._checked(X, y, sample_weight), groups=groups)
        return self


class SelfDistillationClassifier(Classification, FixedParameters, PartialClassification):
    """Self-distilled kernel regression on one-hot labels; predicts the largest value.

    Parameters
    ----------
    class_weight : "balanced", dict or None, default None
        Weights of the classes, which multiply those of the rows (`compute_sample_weight` of scikit-learn).
    fit_intercept : bool or "auto", default "auto"
        Whether a constant is fitted; "auto": with class_weight, whose shares it holds far from all rows.
    probability : bool, default True
        Whether fit calibrates :meth:`predict_proba` by leave-one-out: n^2 T c multiplications beside the
        n^3 of all eigenvectors; one more pass over the rows with `features`; estimated from random probes,
        for some products with K, by other methods (above some 10,000 rows).
    others
        As :class:`SelfDistillationRegressor`, and its attributes, with `classes_`.
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        gamma: float | str | None = None,
        lam: float = 1.0,
        alpha: Any = 0.5,
        steps: int = 2,
        *,
        class_weight: Any = None,
        probability: bool = True,
        fit_intercept: bool | str = "auto",
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        features: Features | None = None,
    ) -> None:
        super().__init__(
            kernel,
            gamma,
            lam,
            alpha,
            steps,
            fit_intercept=fit_intercept,
            degree=degree,
            coef0=coef0,
            method=method,
            device=device,
            features=features,
        )
        self.class_weight = class_weight
        self.probability = probability


class SelfDistillationClassifierCV(Classification, ParameterSearch):
    """Self-distilled kernel regression on one-hot labels; lam, alpha and step chosen by validation.

    Parameters
    ----------
    class_weight, fit_intercept, probability
        As in :class:`SelfDistillationClassifier`.
    others
        As :class:`SelfDistillationRegressorCV`, but for `per_output`, and its attributes, with `classes_`.
        The split and folds are stratified. The choice minimises the squared error, or by `scoring` another
        metric: "accuracy", "nll", "auc", "f1", ..
    """

    def __init__(
        self,
        kernel: Any = "rbf",
        gamma: float | str | None = None,
        lams: Any = None,
        alphas: Any = None,
        steps: int = 5,
        *,
        over: str = "fixed",
        selection: str = "validation",
        validation_fraction: float = 0.2,
        cv: Any = None,
        scoring: Any = None,
        one_standard_error: bool = False,
        class_weight: Any = None,
        probability: bool = True,
        fit_intercept: bool | str = "auto",
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        random_state: Any = None,
        features: Features | None = None,
    ) -> None:
        super().__init__(
            kernel,
            gamma,
            lams,
            alphas,
            steps,
            over=over,
            selection=selection,
            validation_fraction=validation_fraction,
            cv=cv,
            scoring=scoring,
            one_standard_error=one_standard_error,
            fit_intercept=fit_intercept,
            degree=degree,
            coef0=coef0,
            method=method,
            device=device,
            random_state=random_state,
            features=features,
        )
        self.class_weight = class_weight
        self.probability = probability

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Any:
        """Fit to X (n, d) and labels (n,); `groups` (n,) are those of the folds of `cv`.

        `sample_weight` (n,) weighs the squared errors, those of left-out rows too.
        """
        X, one_hot, weights, codes = self._checked(X, y, sample_weight)
        self._learn(X, one_hot, weights, labels=codes, groups=groups)
        return self
