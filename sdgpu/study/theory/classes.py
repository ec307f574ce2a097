"""Classification beyond the squared loss: pseudo-labels and logistic distillation.

Closed forms hold for soft targets and the squared loss. What goes beyond them is done step by step here:
the teacher's answer is sharpened or made hard between steps, or the student minimises the logistic loss.
The kernel matrix is decomposed once all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import choice, integer, positive, schedule
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.engine.fitted import Fit
from sdgpu.selection.class_scores import probabilities

__all__ = ["ClassPath", "logistic_path", "pseudo_label_path"]


@dataclass(frozen=True, eq=False)
class ClassPath:
    """Steps 1..T of a chain that has no closed form.

    Attributes
    ----------
    dual : array (T, n, c)
        Dual coefficients: f(x; tau) = kappa(x, X) dual[tau - 1].
    fitted : array (T, n, c)
        Predictions at the training points: values for pseudo-labels, logits for the logistic loss.
    """

    dual: np.ndarray
    fitted: np.ndarray
    _source: Fit

    def predict(self, X_new: Any) -> np.ndarray:
        """f at new rows (m, d): (T, m, c)."""
        model = self._source._model
        return np.asarray(to_numpy(model.predict(model.backend.asarray(self.dual), X_new)))


@underflow_is_zero
def pseudo_label_path(
    fitted: Fit,
    Y: Any,
    lam: float,
    alphas: Any = 0.0,
    steps: int = 2,
    *,
    teacher: str = "hard",
    temperature: float = 1.0,
) -> ClassPath:
    """Self-distillation whose teacher is hard or sharpened between steps.

    y(tau) = K (K + lam)^-1 (alpha Y + (1 - alpha) q(y(tau - 1))) with q the one-hot class of the largest
    prediction, or p^(1/t) / sum p^(1/t) of its probabilities p.

    Parameters
    ----------
    fitted : Fit
        With all eigenvalues (method="eigh").
    Y : array_like (n, c)
        Its one-hot targets, c >= 2.
    lam, alphas, steps
        As in :meth:`sdgpu.Fit.path`.
    teacher : {"hard", "soft"}
    temperature : float, default 1
        t > 0 for "soft"; below 1 sharpens.

    Notes
    -----
    2 n^2 c multiplications a step, from the one decomposition.
    """
    choice("teacher", teacher, ("hard", "soft"))
    t, targets = positive("temperature", temperature), _one_hot(Y)
    weights = schedule(alphas, integer("steps", steps, 1))
    duals: list[np.ndarray] = []
    fits: list[np.ndarray] = []
    mixed = targets
    for step in range(steps):
        if step:
            q = _hard(fits[-1]) if teacher == "hard" else _tempered(fits[-1], t)
            mixed = weights[step - 1] * targets + (1 - weights[step - 1]) * q
        path = fitted.with_targets(mixed).path(lam, 0.0, 1)
        duals.append(np.asarray(path.dual)[0])
        fits.append(np.asarray(path.fitted)[0])
    return ClassPath(np.stack(duals), np.stack(fits), fitted)


@underflow_is_zero
def logistic_path(
    fitted: Fit, Y: Any, lam: float, alphas: Any = 0.0, steps: int = 2, *, tol: float = 1e-8
) -> ClassPath:
    """Self-distillation with the logistic loss, by refits.

    Step tau minimises -sum_i u_i'log softmax(f_i) + lam/2 ||f||^2 in the space of the kernel, with targets
    u = alpha Y + (1 - alpha) softmax(f(tau - 1)): probabilities of the teacher, alpha in [0, 1].

    Parameters
    ----------
    fitted : Fit
        With all eigenvalues: f = V sqrt(delta) theta makes the penalty ||theta||^2 and the problem smooth
        and strictly convex, solved by L-BFGS from the step before.
    Y : array_like (n, c)
        One-hot targets, c >= 2.
    lam, alphas, steps
        As in :meth:`sdgpu.Fit.path`.
    tol : float, default 1e-8
        Largest gradient, relative to the number of rows.

    Raises
    ------
    ValueError
        For one class only, alpha outside [0, 1], or a step that did not converge.
    """
    targets, ridge = _one_hot(Y), positive("lam", lam)
    weights = schedule(alphas, integer("steps", steps, 1))
    if weights.size and (weights.min() < 0 or weights.max() > 1):
        raise ValueError(
            f"alphas={alphas!r} must lie in [0, 1]: the logistic loss needs probabilities"
        )
    spectrum = fitted.spectrum
    delta, V = (to_numpy(x) for x in (spectrum.eigenvalues, spectrum.basis))
    if V.shape[1] < V.shape[0]:
        raise ValueError("logistic distillation needs all eigenvalues: fit with method='eigh'")
    features = V * np.sqrt(delta)  # (n, n)
    n, c = targets.shape
    theta = np.zeros((n, c))
    duals: list[np.ndarray] = []
    fits: list[np.ndarray] = []
    for step in range(steps):
        u = targets
        if step:
            u = weights[step - 1] * targets + (1 - weights[step - 1]) * softmax(fits[-1], axis=1)
        theta = _logistic(features, u, ridge, theta, tol)
        f = features @ theta
        fits.append(f)
        duals.append((u - softmax(f, axis=1)) / ridge)  # where the gradient vanishes
    return ClassPath(np.stack(duals), np.stack(fits), fitted)


def _logistic(
    features: np.ndarray, u: np.ndarray, lam: float, start: np.ndarray, tol: float
) -> np.ndarray:
    shape = start.shape

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = flat.reshape(shape)
        logits = features @ theta
        value = -float(np.sum(u * log_softmax(logits, axis=1))) + lam / 2 * float(np.sum(theta**2))
        gradient = features.T @ (softmax(logits, axis=1) - u) + lam * theta
        return value, gradient.ravel()

    options: Any = {
        "maxiter": 20_000,
        "maxfun": 40_000,
        "gtol": tol * len(u),
        "ftol": 0.0,
        "maxcor": 30,
    }
    optimum = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    gradient_norm = float(np.abs(loss(optimum.x)[1]).max())
    if gradient_norm > 100 * tol * len(u):
        raise ValueError(
            f"the logistic step did not converge, gradient {gradient_norm:.1e}: raise lam={lam:g} or tol"
        )
    return np.asarray(optimum.x.reshape(shape))


def _one_hot(Y: Any) -> np.ndarray:
    targets = np.asarray(to_numpy(Y), dtype=float)
    if targets.ndim != 2 or targets.shape[1] < 2:
        raise ValueError(
            f"Y has shape {targets.shape}: one-hot rows (n, c) of at least two classes are wanted"
        )
    if np.count_nonzero(targets.sum(axis=0)) < 2:
        raise ValueError("Y holds one class only: there is nothing to tell apart")
    return targets


def _hard(F: np.ndarray) -> np.ndarray:
    return np.eye(F.shape[1])[F.argmax(axis=1)]


def _tempered(F: np.ndarray, t: float) -> np.ndarray:
    return np.asarray(softmax(np.log(probabilities(F)) / t, axis=1))
