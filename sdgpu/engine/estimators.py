"""scikit-learn estimators: regressor and classifier, with given or chosen lam, alpha and step.

They pass scikit-learn's `check_estimator` and work in Pipeline, GridSearchCV, clone, joblib and
pickle. They take what scikit-learn takes; for torch or CuPy arrays use :func:`sdgpu.fit`.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from sdgpu.backend.checks import choice, integer, number, positive
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.scaling import safe_unit
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.partial_fits import PartialClassification, PartialRegression
from sdgpu.engine.path import Path, Predictor
from sdgpu.kernels import Kernel, Precomputed, as_kernel, median_distance
from sdgpu.kernels.feature_maps import Explicit, Features
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.selection.sweep import Best, Sweep

__all__ = [
    "SelfDistillationClassifier",
    "SelfDistillationClassifierCV",
    "SelfDistillationRegressor",
    "SelfDistillationRegressorCV",
]


# a kernel matrix in half precision is known to few digits, which its checks must know
_CHAINS = ("star", "clipped", "joint")  # families with weights of their own for every step
BROKEN = 4.0  # times the promised loss on the rows that it was promised on
_FLOATS = (np.float64, np.float32, np.float16)
_WIDE = [np.float64, np.float32]


class _Distiller(BaseEstimator):
    """What the four estimators share: the kernel, the fit and the prediction of one step."""

    _predictor: Predictor | None

    def _kernel(self, X: np.ndarray) -> Kernel:
        gamma = self.gamma
        if isinstance(gamma, str):
            choice("gamma", gamma, ("median",))
            if is_sparse(X):
                raise ValueError("gamma='median' is of distances, X is sparse: give a number")
            gamma = 0.5 / median_distance(X) ** 2
        if gamma is None:
            gamma = 1.0 / X.shape[1]
        return as_kernel(self.kernel, gamma=gamma, degree=self.degree, coef0=self.coef0)

    def _sparse_format(self) -> str | bool:
        """The format of sparse rows for `validate_data`; False where the features need dense ones."""
        return "csr" if self.__sklearn_tags__().input_tags.sparse else False

    def _decompose(self, X: np.ndarray, Y: np.ndarray, lams: Any, kernel: Kernel) -> Fit:
        return fit(
            X, Y, kernel, lams=lams, method=self.method, device=self.device, features=self.features
        )

    def _scaled(self, Y: np.ndarray) -> np.ndarray:
        """Y, or Y by a power of two where its squares leave float64: losses are in that unit then."""
        self._unit = safe_unit(float(np.abs(Y).max()))
        return Y if self._unit == 1 else Y / self._unit

    def _keep(self, path: Path) -> None:
        """Keep the last step of a path: what a prediction needs, without the spectrum."""
        predictor = self._predictor = path.predictor()
        self.dual_coef_ = predictor.dual * self._unit

    def _raw(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        if self._predictor is None:
            self._refit()
        X = validate_data(self, X, dtype=_WIDE, accept_sparse=self._sparse_format(), reset=False)
        assert self._predictor is not None
        predictions = self._predictor.predict(X.astype(self._dtype, copy=False))
        return predictions if self._unit == 1 else predictions * self._unit

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed" or isinstance(
            self.kernel, Precomputed
        )
        tags.input_tags.sparse = not tags.input_tags.pairwise and _takes_sparse(
            self.kernel, self.features, self.degree
        )
        return tags


def _takes_sparse(kernel: Any, features: Features | None, degree: int) -> bool:
    """Whether rows may be sparse: those of a kernel with features of its own, and of no other map."""
    if not (features is None or (isinstance(features, Explicit) and features.takes_sparse)):
        return False
    try:
        return own_size(as_kernel(kernel, degree=degree), 1) is not None
    except (TypeError, ValueError):  # what is wrong with the kernel is said by fit
        return False


class _FixedParameters(_Distiller):
    """Parameters of the estimators whose lam, alpha and steps are given."""

    def __init__(
        self,
        kernel: Any = "rbf",
        gamma: float | str | None = None,
        lam: float = 1.0,
        alpha: Any = 0.5,
        steps: int = 2,
        *,
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        features: Features | None = None,
    ) -> None:
        self.kernel = kernel
        self.gamma = gamma
        self.lam = lam
        self.alpha = alpha
        self.steps = steps
        self.degree = degree
        self.coef0 = coef0
        self.method = method
        self.device = device
        self.features = features

    def _learn(self, X: np.ndarray, Y: np.ndarray) -> None:
        if self.features is not None:
            self._restart()
            self._add(X, Y)
            self._refit()
            return
        self._dtype = np.result_type(X.dtype, np.float32)
        fitted = self._decompose(X, self._scaled(Y), positive("lam", self.lam), self._kernel(X))
        self.info_ = fitted.info
        self._keep(fitted.path(alphas=self.alpha, steps=self.steps))


class _ParameterSearch(_Distiller):
    """Parameters and search of the estimators that choose lam, alpha and step themselves."""

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
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        random_state: Any = None,
        features: Features | None = None,
    ) -> None:
        self.kernel = kernel
        self.gamma = gamma
        self.lams = lams
        self.alphas = alphas
        self.steps = steps
        self.over = over
        self.selection = selection
        self.validation_fraction = validation_fraction
        self.degree = degree
        self.coef0 = coef0
        self.method = method
        self.device = device
        self.features = features
        self.random_state = random_state

    def _learn(self, X: np.ndarray, Y: np.ndarray, labels: np.ndarray | None = None) -> None:
        self._dtype = np.result_type(X.dtype, np.float32)
        n, Y = X.shape[0], self._scaled(Y)
        choice("over", self.over, ("fixed", "ridge", "star", "clipped", "joint"))
        choice("selection", self.selection, ("validation", "loo", "gcv"))
        if self.selection == "gcv" and self.over != "fixed":
            raise ValueError(f"selection='gcv' chooses among fixed weights, not over={self.over!r}")
        share = number("validation_fraction", self.validation_fraction)
        if not 0 < share < 1:
            raise ValueError(f"validation_fraction={share} must be between 0 and 1")
        if n < 2:
            raise ValueError(f"n_samples={n}: choosing lam, alpha and step needs at least 2 rows")
        lams = np.geomspace(1e-6, 1e0, 25) * n if self.lams is None else self.lams
        alphas = (
            np.linspace(0, 1, 101) if self.alphas is None else number_grid("alphas", self.alphas)
        )
        pairwise, kernel = self.__sklearn_tags__().input_tags.pairwise, self._kernel(X)
        if pairwise and X.shape[0] != X.shape[1]:
            raise ValueError(f"a precomputed kernel must be square, got {X.shape}")
        steps = integer("steps", self.steps, 1)
        if self.selection != "validation":
            self._learn_from_all(X, Y, lams, alphas, steps, kernel=kernel)
            return
        train, validation = self._split(n, labels)
        index = np.ix_ if pairwise else (lambda rows, _: rows)
        train_fit = self._decompose(X[index(train, train)], Y[train], lams, kernel)
        self.sweep_: Sweep = train_fit.sweep(
            X[index(validation, train)], Y[validation], alphas=alphas, steps=steps
        )
        self._choose(self.over)
        self._finish(self._decompose(X, Y, self.lam_, kernel))
        if self.over in _CHAINS:
            self._keep_promise(X, Y, validation, kernel)

    def _learn_from_all(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        lams: Any,
        alphas: np.ndarray,
        steps: int,
        *,
        kernel: Kernel,
    ) -> None:
        """Choose on the training rows themselves: one decomposition chooses and predicts."""
        method = "auto" if self.features is not None or is_sparse(X) else "eigh"
        fitted = fit(
            X, Y, kernel, lams=lams, method=method, device=self.device, features=self.features
        )
        self.sweep_ = fitted.sweep(alphas=alphas, steps=steps)
        self._choose("gcv" if self.selection == "gcv" else self.over)
        self._finish(fitted)

    def _choose(self, over: str) -> None:
        self.best_: Best = self.sweep_.best(over)
        self.lam_, self.alpha_, self.step_ = self.best_.lam, self.best_.alpha, int(self.best_.step)

    def _keep_promise(
        self, X: np.ndarray, Y: np.ndarray, validation: np.ndarray, kernel: Kernel
    ) -> None:
        """Fall back to fixed weights if the chosen chain does not stand the move to all rows.

        It has seen the rows that it was chosen on by then, and should do better there, not worse. Weights
        far beyond 1 combine predictions that cancel: on another matrix they may not.
        """
        pairwise = self.__sklearn_tags__().input_tags.pairwise
        rows = X[validation][:, : len(X)] if pairwise else X[validation]
        assert self._predictor is not None
        predictions = self._predictor.predict(rows).reshape(len(validation), -1)
        loss = float(np.mean((predictions - Y[validation].reshape(len(validation), -1)) ** 2))
        negligible = 1e-10 * float(np.mean(Y[validation] ** 2))
        if loss <= BROKEN * self.best_.value + negligible:
            return
        fixed = self.sweep_.best("fixed")
        if self.step_ == 1 or not np.isfinite(fixed.mse):
            return
        warnings.warn(
            f"over={self.over!r}: the weights promise a loss of {self.best_.value:.3g} and leave "
            f"{loss:.3g} on the same rows when they are fitted to all: fixed weights are taken instead",
            stacklevel=3,
        )
        self._choose("fixed")
        self._finish(self._decompose(X, Y, self.lam_, kernel))

    def _finish(self, fitted: Fit) -> None:
        self.info_ = fitted.info
        weights = 0.0 if self.step_ == 1 else self.alpha_
        self._keep(fitted.path(self.lam_, alphas=weights, steps=self.step_))

    def _split(self, n: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and rows to choose on; stratified where every class can be on both sides."""
        m = min(max(1, round(self.validation_fraction * n)), n - 1)
        stratify = None
        if labels is not None:
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() >= 2 and len(counts) <= min(m, n - m):
                stratify = labels
        train, validation = train_test_split(
            np.arange(n), test_size=m, random_state=self.random_state, stratify=stratify
        )
        return np.sort(train), np.sort(validation)


class _Regression(MultiOutputMixin, RegressorMixin):
    """fit and predict of a regressor."""

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to X (n, d), sparse for kernels with features of their own, and targets (n,) or (n, c)."""
        X, y = validate_data(
            self,
            X,
            y,
            dtype=_FLOATS,
            multi_output=True,
            y_numeric=True,
            accept_sparse=self._sparse_format(),
        )
        self._learn(X, y)  # in its own precision: dates have more digits than float32
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predict the chosen step at rows (m, d): (m,) or (m, c)."""
        return self._raw(X)


class _Classification(ClassifierMixin):
    """fit and predict of a classifier on one-hot targets."""

    def fit(self, X: Any, y: Any) -> Any:
        """Fit to X (n, d), dense or sparse as for regression, and labels (n,): one-hot rows."""
        X, y = validate_data(self, X, y, dtype=_FLOATS, accept_sparse=self._sparse_format())
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"the labels hold only one class, {self.classes_[0]}: a classifier needs two"
            )
        one_hot = np.eye(len(self.classes_), dtype=X.dtype)[codes]
        if isinstance(self, _ParameterSearch):
            self._learn(X, one_hot, codes)
        else:
            self._learn(X, one_hot)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Fitted one-hot values (m, classes); for two classes their difference (m,)."""
        raw = self._raw(X)
        return raw[:, 1] - raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest fitted value for each row."""
        raw = self._raw(X)
        return self.classes_[raw.argmax(axis=1)]


class SelfDistillationRegressor(_Regression, _FixedParameters, PartialRegression):
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


class SelfDistillationRegressorCV(_Regression, _ParameterSearch):
    """Kernel ridge regression distilled from itself; lam, alpha and step chosen from the data.

    By a validation split, one decomposition of the training part evaluates every (lam, alpha, step), and
    a second one fits the choice to all rows. By leave-one-out or generalised cross-validation a single
    decomposition of all rows (method "eigh") does both.

    Parameters
    ----------
    kernel, gamma, degree, coef0, method, device
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


class SelfDistillationClassifier(_Classification, _FixedParameters, PartialClassification):
    """Self-distilled kernel regression on one-hot labels; predicts the largest value.

    Parameters and attributes as :class:`SelfDistillationRegressor`, with `classes_`.
    """


class SelfDistillationClassifierCV(_Classification, _ParameterSearch):
    """Self-distilled kernel regression on one-hot labels; lam, alpha and step chosen by validation.

    Parameters and attributes as :class:`SelfDistillationRegressorCV`, with `classes_`. The split is
    stratified; the choice minimises the squared error.
    """
