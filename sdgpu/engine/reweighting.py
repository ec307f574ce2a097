"""Noise that differs by row and is not known: estimated from leave-one-out residuals, then weighed.

With y_i = f(x_i) + noise of variance v(x_i) the best weights are 1 / v(x_i), and nobody knows v. Its
logarithm is estimated by kernel ridge regression of those of the squared leave-one-out residuals, as

    log r_i^2 = log v(x_i) + log chi^2,    E log chi^2_1 = psi(1/2) + log 2,

the same kernel smooths it, and leave-one-out chooses how much. Then the fit is made again with weights
1 / v: feasible generalised least squares. A row has no say in its own weight: v(x_i) is what the other
rows predict there.

References
----------
Harvey (1976), Estimating regression models with multiplicative heteroscedasticity; Davidian and Carroll
(1987), Variance function estimation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special

from sdgpu.backend.backends import Backend, give_back, to_numpy
from sdgpu.backend.checks import integer
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.rows import RowSource
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.engine.moments import Moments
from sdgpu.engine.path import Predictor
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.selection.sweep import Best

__all__ = ["ReweightedFit", "reweighted_fit"]

SMOOTHING = np.geomspace(
    1e-5, 1e3, 33
)  # lam of the logarithms over the largest eigenvalue; 1e3: a constant
LEAST = 1e-8  # of a squared residual over their mean: a residual of 0 says little


@dataclass(frozen=True, eq=False)
class ReweightedFit:
    """A fit with weights that were estimated, and the noise that they are of.

    Attributes
    ----------
    fit : Fit
        With the weights: sweeps, paths and the rest are as ever.
    best : Best
        The choice of (lam, alpha, step) by leave-one-out of the weighted fit.
    weights : array (n,)
        1 / v(x_i), times `sample_weight`, with the mean of that (1 without).
    before : Best
        The choice of the fit without them.
    """

    fit: Fit
    best: Best
    weights: Any
    before: Best
    _noise: Predictor = field(repr=False)
    _shift: float = field(repr=False)

    def variance(self, X_new: Any) -> Any:
        """v(x), the estimated variance of the noise of a target at new rows (m, d): (m,).

        Of several outputs the mean over them.
        """
        found = self._noise.predict(X_new)
        template, backend = self.fit.parts.model.template, self.fit.parts.model.backend
        values = np.exp(to_numpy(found).reshape(len(found)) + self._shift)
        return give_back(template, backend.asarray(values), axis=False)

    def predict(self, X_new: Any) -> Any:
        """What the choice predicts at new rows (m, d): (m, c)."""
        return self.fit.predictor(self.best).predict(X_new)


@underflow_is_zero
def reweighted_fit(
    X: Any,
    Y: Any,
    kernel: Kernel | str = "rbf",
    lams: Any = 1.0,
    *,
    rounds: int = 1,
    alphas: Any = (0.0,),
    steps: int = 1,
    features: Features | None = None,
    sample_weight: Any = None,
    intercept: bool = False,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
) -> ReweightedFit:
    """Fit, estimate the noise of each row from leave-one-out residuals, and weigh by its inverse.

    Parameters
    ----------
    X, Y, kernel, lams, features, intercept, device, memory
        As in :func:`sdgpu.fit`; all eigenvectors are found, so that leave-one-out is exact. A kernel matrix
        that was given, and sources of rows, are not for it.
    rounds : int, default 1
        How often weights are estimated; each from the residuals of the fit before.
    alphas : array_like (A,), default (0,)
    steps : int, default 1
        Among which leave-one-out chooses, beside `lams`: 1 is ordinary ridge.
    sample_weight : array_like (n,), optional
        What is known of the noise: its variance is v(x_i) / sample_weight_i. Rows of weight 0 are left out.

    Returns
    -------
    ReweightedFit

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :func:`sdgpu.fit`.

    Notes
    -----
    1 + 2 `rounds` decompositions. Where the noise is the same everywhere the weights are nearly 1, and cost
    little: the logarithms have nothing to say then but their mean. Outputs share the weights: their
    residuals are divided by their root mean squares first.
    """
    if isinstance(X, (RowSource, Moments)) or Y is None:
        raise ValueError("reweighted_fit reads its rows several times: give X and Y as arrays")
    if isinstance(kernel, str) and kernel == "precomputed":
        raise ValueError(
            "reweighted_fit predicts the noise at new rows: not for kernel='precomputed'"
        )
    rounds = integer("rounds", rounds, 1)
    how: dict[str, Any] = {"features": features, "device": device, "memory": memory}
    if features is None:
        how["method"] = "eigh"
    first = fitted = fit(
        X, Y, kernel, lams, sample_weight=sample_weight, intercept=intercept, **how
    )
    grid: dict[str, Any] = {"alphas": alphas, "steps": steps}
    before = best = first.sweep(**grid).best()
    template, n = first.parts.model.template, first.info.n
    truth = to_numpy(template.truth(Y, "Y", rows=n)[0]).astype(np.float64)
    known = np.ones(n)
    if sample_weight is not None:
        known = to_numpy(template.truth(sample_weight, "sample_weight", rows=n)[0])[:, 0]
    smoothing = SMOOTHING * first.parts.solution.largest / known[known > 0].mean()
    present = _given_back(first, 1.0 * (known > 0))
    for _ in range(rounds):
        logs, shift = _log_squares(truth - _left_out(fitted, best), known)
        own = _given_back(first, logs)
        noise = fit(X, own, kernel, smoothing, sample_weight=present, intercept=True, **how)
        noise_best = noise.sweep(alphas=[0.0], steps=1).best("ridge")
        inverse = np.exp(-_left_out(noise, noise_best)[:, 0])
        weights = known * inverse * (known.sum() / (known @ inverse))
        own = _given_back(first, weights)
        fitted = fit(X, Y, kernel, lams, sample_weight=own, intercept=intercept, **how)
        best = fitted.sweep(**grid).best()
    return ReweightedFit(
        fit=fitted,
        best=best,
        weights=_given_back(first, weights),
        before=before,
        _noise=noise.predictor(noise_best),
        _shift=shift,
    )


def _left_out(fitted: Fit, best: Best) -> np.ndarray:
    """Predictions (n, c) of every row by the fit without it."""
    weights = 0.0 if best.step == 1 else best.alpha
    predictions = to_numpy(fitted.loo(best.lam, weights, int(best.step)))[-1]
    return predictions.reshape(len(predictions), -1).astype(np.float64)


def _log_squares(residuals: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """Logarithms (n,) of mean squared residuals of unit weight, and what makes them those of variances."""
    present = known > 0
    squares = known[:, None] * residuals**2
    scales = squares[present].mean(axis=0)  # of each output
    c = len(scales)
    scales = np.where(scales > 0, scales, 1.0)
    logs = np.log(np.maximum((squares / scales).mean(axis=1), LEAST))
    logs[~present] = 0.0  # no part of the fit
    expected = scipy.special.digamma(c / 2) + np.log(2 / c)  # E log of chi^2_c / c
    return logs, float(np.log(scales.mean()) - expected)


def _given_back(fitted: Fit, values: np.ndarray) -> Any:
    model = fitted.parts.model
    return give_back(model.template, model.backend.asarray(values), axis=False)
