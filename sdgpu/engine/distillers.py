"""What the scikit-learn estimators share: the kernel, the fit, predictions; given lam, alpha and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from sdgpu.backend.checks import choice as name_choice
from sdgpu.backend.checks import positive
from sdgpu.backend.scaling import safe_unit
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.predictor import Predictor
from sdgpu.engine.probabilities import with_rows
from sdgpu.kernels import Kernel, Precomputed, as_kernel, median_distance, scale_gamma
from sdgpu.kernels.feature_maps import Explicit, Features
from sdgpu.kernels.feature_maps.explicit import own_size

__all__ = ["Distiller", "FixedParameters"]

_WIDE = [np.float64, np.float32]


class Distiller(BaseEstimator):
    """What the four estimators share: the kernel, the fit and the prediction of one step."""

    _predictor: Predictor | None

    def _kernel(self, X: np.ndarray) -> Kernel:
        gamma = self.gamma
        if isinstance(gamma, str):
            name_choice("gamma", gamma, ("median", "scale"))
            gamma = 0.5 / median_distance(X) ** 2 if gamma == "median" else scale_gamma(X)
        if gamma is None:
            gamma = 1.0 / X.shape[1]
        return as_kernel(self.kernel, gamma=gamma, degree=self.degree, coef0=self.coef0)

    def _sparse_format(self) -> str | bool:
        """The format of sparse rows for `validate_data`; False where the features need dense ones."""
        return "csr" if self.__sklearn_tags__().input_tags.sparse else False

    def _decompose(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        lams: Any,
        kernel: Kernel,
        *,
        weights: np.ndarray | None,
        method: str | None = None,
    ) -> Fit:
        return fit(
            X,
            Y,
            kernel,
            lams,
            sample_weight=weights,
            intercept=self._has_intercept,
            method=self.method if method is None else method,
            device=self.device,
            features=self.features,
        )

    @property
    def _has_intercept(self) -> bool:
        return bool(self.fit_intercept)

    def _scaled(self, Y: np.ndarray) -> np.ndarray:
        """Y, or Y by a power of two where its squares leave float64: losses are in that unit then."""
        self._unit = safe_unit(float(np.abs(Y).max()))
        return Y if self._unit == 1 else Y / self._unit

    def _keep(self, predictor: Predictor) -> None:
        """Keep what a prediction needs, without the spectrum."""
        self._predictor = predictor
        self.dual_coef_ = predictor.dual * self._unit

    def _after_fit(
        self,
        fitted: Fit,
        rows: tuple[Any, np.ndarray, np.ndarray | None],
        choice: tuple[float, Any, int],
        kernel: Kernel,
    ) -> None:
        """What else is learned of the rows (X, Y, weights) while their spectrum is there.

        `choice` are lam, weights of the steps, and the step.
        """

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
    """Whether rows may be sparse: of a kernel of inner products and lengths, and of no map but its own."""
    if not (features is None or (isinstance(features, Explicit) and features.takes_sparse)):
        return False
    try:
        resolved = as_kernel(kernel, degree=degree)
        return resolved.takes_sparse if features is None else own_size(resolved, 1) is not None
    except (TypeError, ValueError):  # what is wrong with the kernel is said by fit
        return False


class FixedParameters(Distiller):
    """Parameters of the estimators whose lam, alpha and steps are given."""

    def __init__(
        self,
        kernel: Any = "rbf",
        gamma: float | str | None = None,
        lam: float = 1.0,
        alpha: Any = 0.5,
        steps: int = 2,
        *,
        fit_intercept: bool | str = False,
        degree: int = 3,
        coef0: float = 1.0,
        method: str = "auto",
        device: str = "auto",
        features: Features | None = None,
    ) -> None:
        self.kernel = kernel
        self.gamma = gamma
        self.lam = lam
        self.fit_intercept = fit_intercept
        self.alpha = alpha
        self.steps = steps
        self.degree = degree
        self.coef0 = coef0
        self.method = method
        self.device = device
        self.features = features

    def _learn(self, X: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> None:
        choice = (positive("lam", self.lam, zero=self.features is None), self.alpha, self.steps)
        kernel = self._kernel(X)
        if self.features is not None:
            self._restart()
            self._add(X, Y, weights)
            fitted = self._refit()
            rows = X, Y, weights
            self._after_fit(with_rows(fitted, X, Y, weights), rows, choice, kernel)
            return
        self._dtype = np.result_type(X.dtype, np.float32)
        rows = X, self._scaled(Y), weights
        fitted = self._decompose(*rows[:2], choice[0], kernel, weights=weights)
        self.info_ = fitted.info
        self._keep(fitted.path(alphas=self.alpha, steps=self.steps).predictor())
        self._after_fit(fitted, rows, choice, kernel)
