"""What the scikit-learn estimators share: parameters, the choice of lam, alpha and step, predictions."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data

from sdgpu.backend.checks import choice, integer, number, positive
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.memory import budget, require
from sdgpu.backend.scaling import safe_unit
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.path import Path
from sdgpu.engine.predictor import Predictor
from sdgpu.kernels import Kernel, Precomputed, as_kernel, median_distance
from sdgpu.kernels.feature_maps import Explicit, Features
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.selection.sweep import Best, Sweep

__all__ = ["Distiller", "FixedParameters", "ParameterSearch"]

_CHAINS = ("star", "clipped", "joint")  # families with weights of their own for every step
BROKEN = 4.0  # times the promised loss on the rows that it was promised on
_WIDE = [np.float64, np.float32]


class Distiller(BaseEstimator):
    """What the four estimators share: the kernel, the fit and the prediction of one step."""

    _predictor: Predictor | None
    _dense = False  # sparse rows are made dense

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

    def _rows(self, X: Any, kernel: Kernel) -> Any:
        """Sparse rows as they are; dense where features are more, and the kernel matrix is smaller."""
        self._dense = False
        if not is_sparse(X) or self.features is not None:
            return X
        n, d = X.shape
        if n > 2 * (own_size(kernel, d) or 0):
            return X
        require(
            16 * n * d,
            budget(None),
            f"{n:,} sparse rows of {d:,} features as dense ones",
            "take fewer",
        )
        self._dense = True
        return X.toarray()

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
            intercept=self.fit_intercept,
            method=self.method if method is None else method,
            device=self.device,
            features=self.features,
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
        if self._dense and is_sparse(X):
            X = X.toarray()
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
        fit_intercept: bool = False,
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
        if self.features is not None:
            self._restart()
            self._add(X, Y, weights)
            self._refit()
            return
        self._dtype, lam = np.result_type(X.dtype, np.float32), positive("lam", self.lam, zero=True)
        kernel = self._kernel(X)
        rows = self._rows(X, kernel)
        fitted = self._decompose(rows, self._scaled(Y), lam, kernel, weights=weights)
        self.info_ = fitted.info
        self._keep(fitted.path(alphas=self.alpha, steps=self.steps))


class ParameterSearch(Distiller):
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
        fit_intercept: bool = False,
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
        self.fit_intercept = fit_intercept
        self.degree = degree
        self.coef0 = coef0
        self.method = method
        self.device = device
        self.features = features
        self.random_state = random_state

    def _learn(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        labels: np.ndarray | None = None,
    ) -> None:
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
        total = n if weights is None else float(weights.sum())
        lams = np.geomspace(1e-6, 1e0, 25) * total if self.lams is None else self.lams
        alphas = (
            np.linspace(0, 1, 101) if self.alphas is None else number_grid("alphas", self.alphas)
        )
        pairwise, kernel = self.__sklearn_tags__().input_tags.pairwise, self._kernel(X)
        X = self._rows(X, kernel)
        if pairwise and X.shape[0] != X.shape[1]:
            raise ValueError(f"a precomputed kernel must be square, got {X.shape}")
        steps = integer("steps", self.steps, 1)
        if self.selection != "validation":
            self._learn_from_all(X, Y, weights, lams, alphas, steps=steps, kernel=kernel)
            return
        train, validation = self._split(n, labels, weights)
        index = np.ix_ if pairwise else (lambda rows, _: rows)
        own, theirs = (None, None) if weights is None else (weights[train], weights[validation])
        train_fit = self._decompose(X[index(train, train)], Y[train], lams, kernel, weights=own)
        self.sweep_: Sweep = train_fit.sweep(
            X[index(validation, train)],
            Y[validation],
            alphas=alphas,
            steps=steps,
            sample_weight=theirs,
        )
        self._choose(self.over)
        self._finish(self._decompose(X, Y, self.lam_, kernel, weights=weights))
        if self.over in _CHAINS:
            self._keep_promise(X, Y, weights, validation, kernel)

    def _learn_from_all(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        lams: Any,
        alphas: np.ndarray,
        *,
        steps: int,
        kernel: Kernel,
    ) -> None:
        """Choose on the training rows themselves: one decomposition chooses and predicts."""
        method = "auto" if self.features is not None or is_sparse(X) else "eigh"
        fitted = self._decompose(X, Y, lams, kernel, weights=weights, method=method)
        self.sweep_ = fitted.sweep(alphas=alphas, steps=steps)
        self._choose("gcv" if self.selection == "gcv" else self.over)
        self._finish(fitted)

    def _choose(self, over: str) -> None:
        self.best_: Best = self.sweep_.best(over)
        self.lam_, self.alpha_, self.step_ = self.best_.lam, self.best_.alpha, int(self.best_.step)

    def _keep_promise(
        self,
        X: np.ndarray,
        Y: np.ndarray,
        weights: np.ndarray | None,
        validation: np.ndarray,
        kernel: Kernel,
    ) -> None:
        """Fall back to fixed weights if the chosen chain does not stand the move to all rows.

        It has seen the rows that it was chosen on by then, and should do better there, not worse. Weights
        far beyond 1 combine predictions that cancel: on another matrix they may not.
        """
        pairwise = self.__sklearn_tags__().input_tags.pairwise
        rows = X[validation][:, : len(X)] if pairwise else X[validation]
        assert self._predictor is not None
        predictions = self._predictor.predict(rows).reshape(len(validation), -1)
        truth, some = Y[validation].reshape(len(validation), -1), None
        if weights is not None:
            some = weights[validation]
        losses, squares = ((v**2).mean(axis=1) for v in (predictions - truth, truth))
        loss = float(np.average(losses, weights=some))
        negligible = 1e-10 * float(np.average(squares, weights=some))
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
        self._finish(self._decompose(X, Y, self.lam_, kernel, weights=weights))

    def _finish(self, fitted: Fit) -> None:
        self.info_ = fitted.info
        weights = 0.0 if self.step_ == 1 else self.alpha_
        self._keep(fitted.path(self.lam_, alphas=weights, steps=self.step_))

    def _split(
        self, n: int, labels: np.ndarray | None, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and rows to choose on; stratified where every class can be on both sides.

        Rows of weight 0 are in neither.
        """
        rows = np.arange(n) if weights is None else np.flatnonzero(weights)
        labels = None if labels is None else labels[rows]
        n = len(rows)
        if n < 2:
            raise ValueError(f"sample_weight is > 0 for {n} row: choosing needs at least 2")
        m = min(max(1, round(self.validation_fraction * n)), n - 1)
        stratify = None
        if labels is not None:
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() >= 2 and len(counts) <= min(m, n - m):
                stratify = labels
        train, validation = train_test_split(
            rows, test_size=m, random_state=self.random_state, stratify=stratify
        )
        return np.sort(train), np.sort(validation)
