"""Estimators that choose lam, alpha and step themselves: by held-out rows, folds, or the training rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv, train_test_split

from sdgpu.backend.checks import choice, integer, number
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.engine.distillers import Distiller
from sdgpu.engine.feature_fitting import features_for_sparse
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fold_sweep import Folds, present_splits, sweep_over_folds
from sdgpu.engine.grid_sweep import GridRequest
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.selection.metrics import METRICS, Metric, named_metric
from sdgpu.selection.sweep import Best, Sweep

__all__ = ["SCORERS", "ParameterSearch"]

_CHAINS = ("star", "clipped", "joint")  # families with weights of their own for every step
BROKEN = 4.0  # times the promised loss on the rows that it was promised on

#: Our metrics by the names of scikit-learn's scorers.
SCORERS = {
    "neg_mean_squared_error": "mse",
    "neg_root_mean_squared_error": "rmse",
    "neg_mean_absolute_error": "mae",
    "neg_max_error": "max_error",
    "neg_log_loss": "nll",
    "neg_brier_score": "brier",
    "roc_auc": "auc",
    "roc_auc_ovr": "auc",
    "top_k_accuracy": "top_2",
}


@dataclass(frozen=True, eq=False)
class _Rows:
    """Training rows: X as it is fitted, targets, weights, labels and groups for splits, the kernel."""

    X: Any
    Y: np.ndarray
    weights: np.ndarray | None
    labels: np.ndarray | None
    groups: Any
    kernel: Kernel
    pairwise: bool

    @property
    def n(self) -> int:
        return int(self.X.shape[0])

    def of(self, rows: np.ndarray, train: np.ndarray) -> Any:
        """X of some rows, as a fit of the rows `train` takes it."""
        return self.X[np.ix_(rows, train)] if self.pairwise else self.X[rows]

    def weights_of(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.weights is None else self.weights[rows]


class ParameterSearch(Distiller):
    """Parameters and search of the estimators that choose lam, alpha and step themselves."""

    per_output = False

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
        fit_intercept: bool | str = False,
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
        self.cv = cv
        self.scoring = scoring
        self.one_standard_error = one_standard_error
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
        *,
        labels: np.ndarray | None = None,
        groups: Any = None,
    ) -> None:
        self._dtype = np.result_type(X.dtype, np.float32)
        n, Y = X.shape[0], self._scaled(Y)
        metric = self._checked_choice()
        if n < 2:
            raise ValueError(f"n_samples={n}: choosing lam, alpha and step needs at least 2 rows")
        pairwise, kernel = self.__sklearn_tags__().input_tags.pairwise, self._kernel(X)
        rows = _Rows(X, Y, weights, labels, groups, kernel, pairwise)
        if pairwise and rows.X.shape[0] != rows.X.shape[1]:
            raise ValueError(f"a precomputed kernel must be square, got {rows.X.shape}")
        request = self._request(n if weights is None else float(weights.sum()), metric)
        over = metric.name if metric is not None else self.over
        if self.cv is not None:
            self._learn_from_folds(rows, request, over)
        elif self.selection == "validation":
            self._learn_from_split(rows, request, over)
        else:
            self._learn_from_all(rows, request, "gcv" if self.selection == "gcv" else over)

    def _checked_choice(self) -> Metric | None:
        """Check how to choose, before any work; the metric, if not the squared error."""
        choice("over", self.over, ("fixed", "ridge", "star", "clipped", "joint"))
        choice("selection", self.selection, ("validation", "loo", "gcv"))
        integer("steps", self.steps, 1)
        share = number("validation_fraction", self.validation_fraction)
        if not 0 < share < 1:
            raise ValueError(f"validation_fraction={share} must be between 0 and 1")
        metric = _metric(self.scoring, classifier=is_classifier(self))
        if metric is not None and self.over != "fixed":
            raise ValueError(f"scoring= chooses among fixed weights, not over={self.over!r}")
        simple = [
            name for name in ("one_standard_error", "per_output") if bool(getattr(self, name))
        ]
        if self.cv is None and self.selection == "gcv":
            if self.over != "fixed":
                raise ValueError(
                    f"selection='gcv' chooses among fixed weights, not over={self.over!r}"
                )
            simple += ["scoring"] if metric is not None else []
            if simple:
                raise ValueError(f"{simple[0]} needs losses of left-out rows, not selection='gcv'")
        if simple and self.over in _CHAINS:
            raise ValueError(f"{simple[0]} is for over='fixed' or 'ridge', not {self.over!r}")
        if len(simple) > 1:
            raise ValueError("one_standard_error is of all outputs together: per_output=False")
        if self.one_standard_error and metric is not None and not hasattr(metric, "terms"):
            raise ValueError(
                f"one_standard_error: {metric.name!r} is no mean over rows and has no standard error; "
                "choose by the squared error, 'mae', 'accuracy' or 'nll'"
            )
        return metric

    def _request(self, total: float, metric: Metric | None) -> GridRequest:
        """The grid, of rows whose weights have this sum."""
        lams = np.geomspace(1e-6, 1e0, 25) * total if self.lams is None else self.lams
        alphas = (
            np.linspace(0, 1, 101) if self.alphas is None else number_grid("alphas", self.alphas)
        )
        return GridRequest(
            lams,
            alphas,
            integer("steps", self.steps, 1),
            () if metric is None else (metric,),
            errors=self.one_standard_error,
            per_output=self.per_output,
        )

    def _fit_of(self, rows: _Rows, train: np.ndarray, lams: Any) -> Fit:
        """The fit of some rows."""
        X, Y, weights = rows.of(train, train), rows.Y[train], rows.weights_of(train)
        return self._decompose(X, Y, lams, rows.kernel, weights=weights)

    def _learn_from_split(self, rows: _Rows, request: GridRequest, over: str) -> None:
        """Choose on held-out rows, then fit the choice to all."""
        train, validation = self._split(rows)
        fitted = self._fit_of(rows, train, request.lams)
        self.sweep_: Sweep = fitted.sweep(
            rows.of(validation, train),
            rows.Y[validation],
            alphas=request.alphas,
            steps=request.steps,
            metrics=request.metrics,
            standard_errors=request.errors,
            per_output=request.per_output,
            sample_weight=rows.weights_of(validation),
        )
        self._choose(over)
        lams = np.unique(self.lam_)
        fitted = self._decompose(rows.X, rows.Y, lams, rows.kernel, weights=rows.weights)
        self._finish(fitted, rows)
        if over in _CHAINS:
            self._keep_promise(rows, validation)

    def _learn_from_folds(self, rows: _Rows, request: GridRequest, over: str) -> None:
        """Choose on the rows that folds leave out; the fit to all rows serves every choice."""
        y = rows.labels if rows.labels is not None else rows.Y
        splitter = check_cv(self.cv, y, classifier=rows.labels is not None)
        n_rows = np.zeros((rows.n, 1))  # splitters look at the number of rows alone
        splits = splitter.split(n_rows, y, rows.groups)
        folds = Folds(
            partial(self._fit_of, rows, lams=request.lams),
            rows.of,
            rows.Y,
            rows.weights,
            present_splits(splits, rows.weights),
        )
        fitted = self._decompose(rows.X, rows.Y, request.lams, rows.kernel, weights=rows.weights)
        self.sweep_ = sweep_over_folds(fitted, folds, request)
        self._choose(over)
        self._finish(fitted, rows)
        if over in _CHAINS:
            self._keep_promise(rows, folds.judged)

    def _learn_from_all(self, rows: _Rows, request: GridRequest, over: str) -> None:
        """Choose on the training rows themselves: one decomposition chooses and predicts."""
        own = is_sparse(rows.X) and features_for_sparse(rows.X, rows.kernel, exact=False)
        method = "auto" if self.features is not None or own else "eigh"
        fitted = self._decompose(
            rows.X, rows.Y, request.lams, rows.kernel, weights=rows.weights, method=method
        )
        self.sweep_ = fitted.sweep(
            alphas=request.alphas,
            steps=request.steps,
            metrics=request.metrics,
            standard_errors=request.errors,
            per_output=request.per_output,
        )
        self._choose(over)
        self._finish(fitted, rows)

    def _choose(self, over: str) -> None:
        best: Best = self.sweep_.best(
            over, one_standard_error=self.one_standard_error, per_output=self.per_output
        )
        self.best_ = best
        self.lam_, self.alpha_ = best.lam, best.alpha
        self.step_ = best.step if self.per_output else int(best.step)

    def _keep_promise(self, rows: _Rows, validation: np.ndarray) -> None:
        """Fall back to fixed weights if the chosen chain does not stand the move to all rows.

        It has seen the rows that it was chosen on by then, and should do better there, not worse. Weights
        far beyond 1 combine predictions that cancel: on another matrix they may not.
        """
        assert self._predictor is not None
        X = rows.of(validation, np.arange(rows.n))
        predictions = self._predictor.predict(X).reshape(len(validation), -1)
        truth = rows.Y[validation].reshape(len(validation), -1)
        some = rows.weights_of(validation)
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
            stacklevel=4,
        )
        self._choose("fixed")
        fitted = self._decompose(rows.X, rows.Y, self.lam_, rows.kernel, weights=rows.weights)
        self._finish(fitted, rows)

    def _finish(self, fitted: Fit, rows: _Rows) -> None:
        self.info_ = fitted.info
        self._keep(fitted.predictor(self.best_))
        if not self.per_output:
            weights = 0.0 if self.step_ == 1 else self.alpha_
            own = rows.X, rows.Y, rows.weights
            self._after_fit(fitted, own, (self.lam_, weights, self.step_), rows.kernel)

    def _split(self, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit and rows to choose on; stratified where every class can be on both sides.

        Rows of weight 0 are in neither.
        """
        present = np.arange(rows.n) if rows.weights is None else np.flatnonzero(rows.weights)
        labels = None if rows.labels is None else rows.labels[present]
        n = len(present)
        if n < 2:
            raise ValueError(f"sample_weight is > 0 for {n} row: choosing needs at least 2")
        m = min(max(1, round(self.validation_fraction * n)), n - 1)
        stratify = None
        if labels is not None:
            counts = np.unique(labels, return_counts=True)[1]
            if counts.min() >= 2 and len(counts) <= min(m, n - m):
                stratify = labels
        train, validation = train_test_split(
            present, test_size=m, random_state=self.random_state, stratify=stratify
        )
        return np.sort(train), np.sort(validation)


def _metric(scoring: Any, *, classifier: bool) -> Metric | None:
    """What `scoring` asks for; None for the squared error.

    Raises
    ------
    TypeError
        For a callable of scikit-learn, which sees no grid.
    ValueError
        For an unknown name, or a metric of classes in a regression.
    """
    if scoring is None:
        return None
    metric: Metric
    if isinstance(scoring, str):
        name = SCORERS.get(scoring, scoring)
        if name == "mse":
            return None
        try:
            metric = named_metric(name)
        except ValueError as error:
            if name != scoring or name in METRICS or "is not known" not in str(error):
                raise
            choice("scoring", scoring, (*METRICS, "mse", "pinball_0.9", "huber_1.35", *SCORERS))
            raise
    elif hasattr(scoring, "update") and hasattr(scoring, "result"):
        metric = scoring
    else:
        raise TypeError(
            f"scoring={scoring!r} must be a name or a metric of sdgpu; for scorers that are functions "
            "put SelfDistillationRegressor or SelfDistillationClassifier into GridSearchCV"
        )
    if getattr(metric, "of_classes", False) and not classifier:
        raise ValueError(f"scoring={metric.name!r} is of classes: a regressor predicts none")
    return metric
