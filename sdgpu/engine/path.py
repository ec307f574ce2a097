"""One chain of distillation steps, and its limit: what `fit.path` and `fit.limit` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.arrays import targets
from sdgpu.backend.backends import give_back
from sdgpu.backend.cached import cached
from sdgpu.backend.checks import integer, positive
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.filters import dual_filter, limit_exists, limit_rate
from sdgpu.distill.smoothers import RIDGE, only_ridge, smoother_of
from sdgpu.distill.variance import Variance, variances
from sdgpu.engine.cross_intervals import cross_interval
from sdgpu.engine.intervals import Interval, jackknife_interval
from sdgpu.engine.model import Model
from sdgpu.engine.predictor import Predictor
from sdgpu.solvers.solution import DistillationChain, Solution

__all__ = ["Limit", "Path", "limit_of"]


class Functions:
    """The functions of steps 1..T, from their dual coefficients."""

    alphas: np.ndarray
    _chain: DistillationChain
    _model: Model

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas) + 1

    @cached
    @underflow_is_zero
    def fitted(self) -> Any:
        """Predictions y(1..T) at the training points, (T, n, c); equation (6)."""
        chain = self._chain
        values = self._model.row_values(chain.fitted, lambda: chain.dual)
        return give_back(self._model.template, values, copy=True)

    @cached
    @underflow_is_zero
    def dual(self) -> Any:
        """Dual coefficients of steps 1..T, (T, n, c); f(x; tau) = kappa(x, X) dual[tau - 1].

        With an intercept this is less its weighted mean over the training rows, plus that of Y.
        """
        dual = self._model.row_coefficients(self._chain.dual)
        return give_back(self._model.template, dual, copy=True)

    @underflow_is_zero
    def predict(self, X_new: Any) -> Any:
        """Predictions f(x; 1..T) at new rows, equations (4) and (7).

        Parameters
        ----------
        X_new : array_like (m, d)
            In the library and on the device of the training data; m = 0 is allowed. A table with other
            columns than that of the fit, or in another order, is refused. With a precomputed kernel its
            values (m, n) between new and training rows.

        Returns
        -------
        array (T, m, c)
        """
        return self._model.predict(self._chain.dual, X_new)

    @underflow_is_zero
    def gradient(self, X_new: Any) -> Any:
        """Derivatives d f(x; 1..T) / d x at new rows, exact, in float64 inside.

        Parameters
        ----------
        X_new : array_like (m, d)
            As in :meth:`predict`.

        Returns
        -------
        array (T, m, c, d)
            For 1-D targets (T, m, d).

        Raises
        ------
        ValueError
            For a precomputed kernel, features or a kernel that torch cannot follow, and at a row where
            there is no derivative: a row of zeros of a kernel of angles.
        MemoryError

        Notes
        -----
        m n (d + 2) T c multiplications, in blocks: no array (m, n, d) is made. Where a kernel has a kink,
        at a training row, the mean of its slopes to all sides is taken, 0
        (:mod:`sdgpu.kernels.derivatives`). Where X_new is a tensor of torch that requires a gradient,
        :meth:`predict` has a graph, which costs m n (d + T c) on the way back.
        """
        return self._model.gradient(self._chain.dual, X_new)


@dataclass(frozen=True, eq=False)
class Path(Functions):
    """Steps 1..T of self-distillation at one lam.

    Attributes
    ----------
    lam : float or array (T,)
        Ridge of K + lam I, one for all steps or one for each.
    alphas : array (T - 1,) or (T - 1, c)
        Weights of steps 2..T.

    Notes
    -----
    Arrays come in the library, device and dtype of the training data; for 1-D targets the axis c is
    missing.
    """

    lam: float | np.ndarray
    alphas: np.ndarray
    _chain: DistillationChain = field(repr=False)
    _model: Model = field(repr=False)

    @underflow_is_zero
    def variance(self, X_new: Any, *, noise: float | None = None, prior: Any = None) -> Variance:
        """Predictive variances of steps 1..T at new rows; formulas in :mod:`sdgpu.distill.variance`.

        Parameters
        ----------
        X_new : array_like (m, d)
            As in :meth:`predict`.
        noise : float, optional
            Variance of the noise of the targets; lam by default, the reading of a Gaussian process.
        prior : array_like (m,), optional
            kappa(x, x) of the new rows, needed for a precomputed kernel alone.

        Returns
        -------
        Variance
            .posterior and .sampling, (T, m) each, or (T, m, c) with weights per output.

        Raises
        ------
        ValueError
            Unless all eigenvalues are known (method="eigh"), or without the prior of a precomputed kernel.

        Notes
        -----
        m n k multiplications.
        """
        return _variance(self, self._model, self._chain, X_new, noise, prior=prior)

    @underflow_is_zero
    def interval(
        self, X_new: Any, coverage: float = 0.9, *, folds: Any = None, seed: int = 0
    ) -> Interval:
        """Intervals of new targets at new rows, for every step: jackknife+ and CV+ (Barber et al. 2021).

        The fits without each training row are exact, for later steps too: formulas in
        :mod:`sdgpu.distill.jackknife_plus`. Nothing is assumed of the noise. With `folds`, for any n and
        method, fits without each fold: from the same decomposition by method="eigh" and "primal", from sums
        over the rows of each fold with `features`, else by a fit for each.

        Parameters
        ----------
        X_new : array_like (m, d)
            As in :meth:`predict`.
        coverage : float, default 0.9
            Share of new targets that lie inside, in (0, 1).
        folds : int or array_like (n,), optional
            CV+ with so many folds of rows drawn at random, or with these labels: rows of one label, of one
            patient say, are left out together. n folds are the jackknife+.
        seed : int, default 0
            Of the draw.

        Returns
        -------
        Interval
            .lower and .upper, (T, m, c).

        Raises
        ------
        ValueError
            For too few training rows (9 for 0.9), a row that determines itself, without `folds` unless all
            eigenvectors are known (method="eigh"), and with them where the rows are gone.
        MemoryError

        Notes
        -----
        n^2 (n + m) T c multiplications, 7 n^2 numbers at the peak; with K folds n^2 (n + K T c), or K fits,
        or one pass for the sums of the folds and one for their errors. Rows of weight 0 have no say.
        """
        spectrum = self._chain.spectrum
        only_ridge(self._chain, "an interval", "fits without a row have no closed form with it")
        lam = _one_lam(self.lam, "an interval")
        if folds is not None:
            path = (lam, self.alphas)
            how: dict[str, Any] = {"coverage": coverage, "folds": folds, "seed": seed}
            return cross_interval(self._model, spectrum, path, X_new, **how)
        return jackknife_interval(self._model, spectrum, lam, self.alphas, X_new, coverage=coverage)

    @underflow_is_zero
    def predictor(self, step: int | None = None) -> Predictor:
        """One step (the last by default) as a small object that only predicts.

        With ranks all call, and each has all rows of X afterwards: it predicts without the others.
        """
        tau = self.steps if step is None else integer("step", step, 1)
        if tau > self.steps:
            raise ValueError(f"step={step} is beyond the {self.steps} steps of this path")
        return Predictor(*self._model.alone(self._chain.dual[tau - 1, ...]))


@dataclass(frozen=True, eq=False)
class Limit:
    """Infinitely many steps with a fixed weight, Theorem 4.5: ridge with lam / alpha.

    Attributes
    ----------
    lam, alpha : float
    effective_lam : float
        lam / alpha; infinite for alpha = 0, where everything collapses to zero; NaN for other smoothers
        than ridge, whose limits are no step 1.
    rate : float
        Linear rate: the distance to the limit shrinks by this factor at every step.
    """

    lam: float
    alpha: float
    effective_lam: float
    rate: float
    _solution: Solution = field(repr=False)
    _model: Model = field(repr=False)

    @cached
    @underflow_is_zero
    def fitted(self) -> Any:
        """y(inf) at the training points, (n, c); equation (17)."""
        dual, fitted = self._dual_and_fitted
        if fitted is None:
            raise ValueError(
                "limit.fitted: a feature model keeps no training rows; use limit.predict(X)"
            )
        values = self._model.row_values(fitted, lambda: dual)
        return give_back(self._model.template, values, copy=True)

    @cached
    @underflow_is_zero
    def dual(self) -> Any:
        """Dual coefficients (K + lam / alpha I)^-1 Y, (n, c)."""
        dual = self._model.row_coefficients(self._dual_and_fitted[0])
        return give_back(self._model.template, dual, copy=True)

    @underflow_is_zero
    def predict(self, X_new: Any) -> Any:
        """f(x; inf) at new rows (m, d): (m, c)."""
        return self._model.predict(self._dual_and_fitted[0], X_new)

    @underflow_is_zero
    def gradient(self, X_new: Any) -> Any:
        """d f(x; inf) / d x at new rows (m, d): (m, c, d); see :meth:`Path.gradient`."""
        return self._model.gradient(self._dual_and_fitted[0], X_new)

    @underflow_is_zero
    def predictor(self) -> Predictor:
        """The limit as a small object that only predicts."""
        return Predictor(*self._model.alone(self._dual_and_fitted[0]))

    @cached
    def _dual_and_fitted(self) -> tuple[Any, Any]:
        return self._solution.limit(self.lam, self.alpha)


def _variance(
    path: Path,
    model: Model,
    chain: DistillationChain,
    X_new: Any,
    noise: float | None,
    *,
    prior: Any,
) -> Variance:
    spectrum = chain.spectrum
    only_ridge(chain, "a predictive variance", "no Gaussian process has this smoother as its mean")
    lam = _one_lam(path.lam, "a predictive variance")
    if spectrum is None or not spectrum.holds_kernel:
        raise ValueError(
            "predictive variances need all eigenvalues, kappa(X, x) is not in a grown basis: fit with "
            "method='eigh', lam > 0"
        )
    nu = lam if noise is None else positive("noise", noise)
    d = model.operator.d
    rows = model.checked_together(lambda: model.template.rows(X_new, "X_new", d, empty=True))
    cross = model.operator.cross(model.on_device(rows))
    if prior is None and model.operator.is_precomputed:
        raise ValueError(
            "prior is missing: a precomputed kernel does not say kappa(x, x) of new rows"
        )
    if prior is None:
        diagonal = cross.diag()
    else:
        diagonal = targets(prior, "prior", rows=int(rows.shape[0]), outputs=1)[0][:, 0]
    # (T, k), or (c, T, k)
    filters = dual_filter(spectrum.eigenvalues, lam, np.ascontiguousarray(path.alphas.T))
    diagonal = model.backend.asarray(diagonal)
    arrays = variances(cross @ spectrum.basis, diagonal, spectrum.eigenvalues, filters, nu)
    xp = model.backend.xp
    posterior, sampling = (
        give_back(model.template, xp.moveaxis(x, 0, -1) if x.ndim == 3 else x, axis=False)
        for x in arrays
    )
    return Variance(posterior, sampling, nu)


def _one_lam(lam: float | np.ndarray, what: str) -> float:
    if np.ndim(lam):
        raise ValueError(f"{what} is of chains with one lam, and this path has one for each step")
    return float(lam)


def limit_of(solution: Solution, model: Model, lam: float, alpha: float, *, method: str) -> Limit:
    """Infinitely many steps, if there is a limit, whatever is not known of the largest eigenvalue.

    Raises
    ------
    ValueError
        If the steps diverge, or may.
    """
    bounds = [np.array([x]) for x in (solution.largest, solution.largest_bound)]
    smoother = smoother_of(solution)
    slowest, rate = (float(limit_rate(largest, lam, alpha, smoother)) for largest in bounds)
    exists, certain = (bool(limit_exists(largest, lam, alpha, smoother)) for largest in bounds)
    if not exists:
        raise ValueError(
            f"alpha={alpha:g} has no limit at lam={lam:g}: the steps grow by {slowest:.4g} each; "
            "alphas in [0, 2) always converge"
        )
    if not certain:
        raise ValueError(
            f"alpha={alpha:g} may have no limit at lam={lam:g}: the steps grow by {slowest:.4g} to "
            f"{rate:.4g} each, and method={method!r} knows the largest eigenvalue no better; "
            "fit with method='eigh', or take alpha in [0, 2)"
        )
    effective = lam / alpha if alpha else np.inf
    return Limit(
        lam=lam,
        alpha=alpha,
        effective_lam=effective if smoother.name == RIDGE.name else np.nan,
        rate=rate,
        _solution=solution,
        _model=model,
    )
