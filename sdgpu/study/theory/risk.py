"""Risk against a known truth: what distillation brings at each level of noise, expected and measured.

Expectations come from one spectrum (:mod:`sdgpu.distill.expected_risk`) or, for linear features, from the
covariance alone (:mod:`sdgpu.distill.asymptotic_risk`). Beside them stand means over draws of the noise,
each from the answers of a fit to noisy targets, with their standard errors.

==============  ==================================================================
rule            what it may choose
==============  ==================================================================
ridge           lam
one step        lam and the weight of step 2: one round of self-distillation
fixed alpha     lam, one weight for all steps, and the step
alpha*          lam and the step of the chain of Algorithm 1 (16)
joint           lam, and all weights of T steps at once
==============  ==================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from sdgpu.backend.arrays import inputs, targets
from sdgpu.backend.checks import grid, integer, lam_grid
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.expected_risk import RiskTriangles, risk_at_points
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.loss_triangles import grid_losses
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.distill.schedules import grid_tails
from sdgpu.engine.fitted import Fit
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Kernel
from sdgpu.selection.sweep import Sweep

__all__ = ["RULES", "expected_risk", "risk_curves", "standard_error"]

RULES = ("ridge", "one step", "fixed alpha", "alpha*", "joint")


@dataclass(frozen=True, eq=False)
class _Point:
    """Where a rule goes: the number of its lam, and the weights of steps 2..t."""

    lam: int
    alphas: np.ndarray


@underflow_is_zero
def expected_risk(
    fitted: Fit,
    F: np.ndarray,
    X_new: np.ndarray,
    F_new: np.ndarray,
    *,
    lams: Any = None,
    steps: int = 5,
) -> RiskTriangles:
    """Squared bias and variance of every schedule at new points, from the spectrum of a fit.

    Parameters
    ----------
    fitted : Fit
        With all eigenvalues, method="eigh"; its targets do not matter. NumPy arrays.
    F : array (n, c)
        Expected targets at the training points: the truth, for noise with mean 0.
    X_new : array (m, d)
    F_new : array (m, c)
        The truth that predictions are compared with.
    lams : array (L,), optional
        The fitted ones by default.
    steps : int, default 5
        T.

    Returns
    -------
    RiskTriangles

    Raises
    ------
    ValueError
        If the fit has no eigenvalues, or a basis that grew from its own targets.
    """
    spectrum = fitted.with_targets(F).spectrum
    lam_values = fitted.lams if lams is None else lam_grid("lams", lams)
    # kappa(X_new, X) V: what ridge predicts from eigenvectors as targets, times delta + lam
    basis = np.array(spectrum.basis)
    lam = float(fitted.lams.max())
    shrunk = fitted.with_targets(basis).path(lam, steps=1).predict(X_new)[0]
    projected = shrunk * (spectrum.eigenvalues + lam)
    return risk_at_points(
        spectrum.eigenvalues, spectrum.Z, projected, F_new, lams=lam_values, steps=steps
    )


@underflow_is_zero
def risk_curves(
    X: Any,
    F: Any,
    X_new: Any,
    F_new: Any,
    kernel: Kernel | str,
    *,
    lams: Any,
    stds: Any,
    alphas: Any = None,
    steps: int = 5,
    draws: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Risk of every rule over the level of Gaussian noise: expected, and measured over draws.

    A rule minimises the expected risk; what it chose is then fitted to `draws` noisy copies of F and
    measured against F_new. The draws of all levels are multiples of the same noise.

    Parameters
    ----------
    X, F : array (n, d), (n,) or (n, c)
        Training inputs, and the truth there.
    X_new, F_new : array (m, d), (m,) or (m, c)
        Where risk is measured, and the truth there.
    kernel : Kernel or str
    lams : array (L,)
    stds : array (N,)
        Standard deviations of the noise, >= 0.
    alphas : array (A,), optional
        Weights of the rule "fixed alpha"; -1, -0.95, .., 2 by default.
    steps : int, default 5
        T.
    draws : int, default 20
        At least 2.
    seed : int, default 0

    Returns
    -------
    xarray.Dataset
        Coordinates noise (N), rule (5), step (T). Variables over (noise, rule):

        ================================  ================================================
        expected, bias, variance          risk that the rule minimised, and its two parts
        lam, steps, alpha (.., step)      what it chose; alpha is NaN where there is none
        measured, measured_se             mean squared error over the draws, standard error
        measured_bias, measured_variance  its parts: of the mean prediction, and around it
        gain, gain_se                     mean over the draws of what it saves against ridge on
                                          the same draw, standard error
        oracle, oracle_se                 with lam and weights chosen anew for every draw, in
                                          sight of the truth: no rule can do better
        ================================  ================================================

    Raises
    ------
    TypeError, ValueError
        As :func:`sdgpu.fit`, and for stds < 0 or fewer than two draws.

    Notes
    -----
    One eigendecomposition, and a sweep for each draw and level.
    """
    truth, truth_new = _columns(F, "F", X, "X"), _columns(F_new, "F_new", X_new, "X_new")
    levels, draws = grid("stds", stds), integer("draws", draws, 2)
    if (levels < 0).any():
        raise ValueError(f"stds must be >= 0, got {levels.min():g}")
    weights = np.linspace(-1, 2, 61) if alphas is None else grid("alphas", alphas)
    fitted = fit(X, truth, kernel, lams=lams, method="eigh")
    triangles = expected_risk(fitted, truth, X_new, truth_new, steps=steps)
    noise = np.random.default_rng(seed).standard_normal((draws, *truth.shape))
    shape = (len(levels), len(RULES))
    variables = {name: np.full(shape, np.nan) for name in _MEANING if name != "alpha"}
    variables["alpha"] = np.full((*shape, steps), np.nan)
    for i, std in enumerate(levels.tolist()):
        noisy = truth + std * noise
        oracle = _oracle(fitted, noisy, X_new, truth_new, weights, steps=steps)
        points = _best_points(triangles, weights, std)
        measured = {
            rule: _measure(fitted, noisy, X_new, truth_new, p) for rule, p in points.items()
        }
        ridge, _ = measured["ridge"]
        for j, (rule, point) in enumerate(points.items()):
            risk, (losses, parts) = triangles.schedule(point.alphas, std), measured[rule]
            t = len(point.alphas) + 1
            values = {
                "bias": risk.bias[point.lam, -1],
                "variance": risk.variance[point.lam, -1],
                "expected": risk.total[point.lam, -1],
                "lam": fitted.lams[point.lam],
                "steps": t,
                "measured": losses.mean(),
                "measured_se": standard_error(losses),
                **parts,
                "gain": (ridge - losses).mean(),
                "gain_se": standard_error(ridge - losses),
                "oracle": oracle[rule].mean(),
                "oracle_se": standard_error(oracle[rule]),
            }
            for name, value in values.items():
                variables[name][i, j] = value
            variables["alpha"][i, j, 1:t] = point.alphas
    return _dataset(
        variables, {"noise": levels, "rule": list(RULES), "step": np.arange(1, steps + 1)}
    )


def standard_error(samples: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis."""
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def _columns(F: Any, name: str, X: Any, inputs_name: str) -> np.ndarray:
    rows = len(inputs(X, inputs_name))
    return np.asarray(targets(F, name, rows=rows)[0], dtype=np.float64)


def _best_points(triangles: RiskTriangles, weights: np.ndarray, std: float) -> dict[str, _Point]:
    """What each rule chooses to minimise the expected risk."""
    R = np.asarray(triangles.expected(std))
    T = R.shape[-1]
    fixed = grid_losses(R, grid_tails(weights, T))  # (L, A, T)
    star, joint = greedy_weights(R), joint_weights(R)
    i, a, t = np.unravel_index(fixed.argmin(), fixed.shape)
    i_star, t_star = np.unravel_index(star.losses.argmin(), star.losses.shape)
    # an optimum that no schedule reaches cannot be fitted
    joint_losses = np.where(np.isfinite(joint.alphas).all(axis=1), joint.losses[:, -1], np.inf)
    i_ridge = int(fixed[:, 0, 0].argmin())
    i_one_step = int(star.losses[:, min(1, T - 1)].argmin())
    i_joint = int(joint_losses.argmin())
    return {
        "ridge": _Point(i_ridge, np.zeros(0)),
        "one step": _Point(i_one_step, star.alphas[i_one_step, :1]),
        "fixed alpha": _Point(int(i), np.full(int(t), weights[a])),
        "alpha*": _Point(int(i_star), star.alphas[i_star, : int(t_star)]),
        "joint": _Point(i_joint, joint.alphas[i_joint]),
    }


def _measure(
    fitted: Fit, noisy: np.ndarray, X_new: Any, truth: np.ndarray, point: _Point
) -> tuple[np.ndarray, dict[str, float]]:
    """Losses (S,) of one schedule on noisy targets (S, n, c), and their parts."""
    draws, n, c = noisy.shape
    stacked = noisy.transpose(1, 0, 2).reshape(n, draws * c)
    path = fitted.with_targets(stacked).path(
        float(fitted.lams[point.lam]), point.alphas, len(point.alphas) + 1
    )
    predicted = np.asarray(path.predict(X_new)[-1]).reshape(-1, draws, c)
    mean = predicted.mean(axis=1, keepdims=True)
    losses = np.mean((predicted - truth[:, None]) ** 2, axis=(0, 2))
    variance = float(np.mean((predicted - mean) ** 2)) * draws / (draws - 1)
    # the mean over the draws still has its share of the variance
    bias = float(np.mean((mean[:, 0] - truth) ** 2)) - variance / draws
    return losses, {"measured_bias": bias, "measured_variance": variance}


def _oracle(
    fitted: Fit,
    noisy: np.ndarray,
    X_new: Any,
    truth: np.ndarray,
    weights: np.ndarray,
    *,
    steps: int,
) -> dict[str, np.ndarray]:
    """Smallest loss of each rule on each draw (S,), with the truth as validation targets."""
    best: dict[str, list[float]] = {rule: [] for rule in RULES}
    for Y in noisy:
        sweep = fitted.with_targets(Y).sweep(X_new, truth, alphas=weights, steps=steps)
        for rule, loss in _smallest(sweep).items():
            best[rule].append(loss)
    return {rule: np.array(losses) for rule, losses in best.items()}


def _smallest(sweep: Sweep) -> dict[str, float]:
    data = sweep.dataset
    second = data["star_mse"].isel(step=min(1, data.sizes["step"] - 1))
    families = (data["ridge_mse"], second, data["mse"], data["star_mse"], data["joint_mse"])
    return {rule: float(loss.min()) for rule, loss in zip(RULES, families, strict=True)}


def _dataset(arrays: dict[str, np.ndarray], coordinates: dict[str, Any]) -> xr.Dataset:
    """Variables over the coordinates in their order, alpha over all of them."""
    names = tuple(coordinates)
    variables = {name: (names[: values.ndim], values) for name, values in arrays.items()}
    dataset = xr.Dataset(variables, coords=coordinates)
    for name, text in _MEANING.items():
        dataset[name].attrs["long_name"] = text
    return dataset


_MEANING = {
    "expected": "expected mean squared error to the truth",
    "bias": "squared bias",
    "variance": "variance",
    "lam": "ridge of K + lam I",
    "steps": "distillation step",
    "alpha": "weight of the ground truth",
    "measured": "mean squared error to the truth over draws",
    "measured_se": "its standard error",
    "gain": "what is saved against ridge on the same draw",
    "gain_se": "its standard error",
    "measured_bias": "squared bias over draws",
    "measured_variance": "variance over draws",
    "oracle": "smallest error of each draw",
    "oracle_se": "its standard error",
}
