"""When distillation should lean on its teacher, away from it, or not at all: the sign of alpha*.

Step 2 with alpha = 0 differs from step 1 by lam df/dlam, so for a fixed lam the optimal weight of step 2 is

    alpha* = 1 + (lam / 2) R'(lam) / ||f_{step 2, alpha 0} - f_{step 1}||^2,

with R the risk of ridge (Dang, Patil and Rinaldo 2026, Theorem 2.2, in our notation). It extrapolates along
the ridge path: alpha* < 1 where lam is too small (the teacher helps, more than all of the weight is its
own where alpha* < 0: what Das and Sanghavi 2023 find under label noise), alpha* > 1 where lam is too large
(away from the teacher), and 1 at the best lam.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from sdgpu.backend.checks import grid, integer, positive
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.distill.asymptotic_risk import linear_risk
from sdgpu.distill.expected_risk import RiskTriangles
from sdgpu.distill.joint_weights import joint_weights
from sdgpu.distill.optimal_weights import greedy_weights
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Kernel, Linear
from sdgpu.study.theory.noise import symmetric, symmetric_moments
from sdgpu.study.theory.risk import expected_risk, standard_error

__all__ = ["label_noise_weights", "linear_features"]


@underflow_is_zero
def label_noise_weights(
    X: Any,
    Y: Any,
    X_new: Any,
    Y_new: Any,
    kernel: Kernel | str,
    *,
    lams: Any,
    rates: Any,
    draws: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """The optimal weight of step 2 under symmetric label corruption, for every rate and lam.

    Parameters
    ----------
    X, Y : array (n, d), (n, c)
        Training inputs and clean one-hot rows, which are corrupted.
    X_new, Y_new : array (m, d), (m, c)
        Rows with clean labels, on which risk is measured: alpha* is that of an oracle.
    kernel : Kernel or str
    lams : array (L,)
    rates : array (N,)
        Shares of corrupted labels, in [0, 1].
    draws : int, default 5
        Independent corruptions, at least 2.
    seed : int, default 0

    Returns
    -------
    xarray.Dataset
        Coordinates rate (N), lam (L). Variables over both:

        ==========================  ======================================================
        alpha, alpha_se             alpha* over the draws, mean and standard error
        ridge, ridge_se             mean squared error of step 1
        distilled, distilled_se     mean squared error of step 2 with alpha*
        expected_alpha              alpha* of the expected risk, from the spectrum
        expected_ridge              expected risk of step 1
        expected_distilled          expected risk of step 2 with expected_alpha
        ==========================  ======================================================

        Their attribute ``long_name`` says the same.

    Raises
    ------
    TypeError, ValueError
        As :func:`sdgpu.fit` and :func:`sdgpu.study.theory.noise.symmetric`, or for fewer than two draws.

    Notes
    -----
    One eigendecomposition, and a sweep of two steps for each rate and draw.
    """
    shares, draws = grid("rates", rates), integer("draws", draws, 2)
    moments = [symmetric_moments(Y, float(rate)) for rate in shares]
    fitted = fit(X, np.asarray(Y, dtype=np.float64), kernel, lams=lams, method="eigh")
    rng = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in _LABELS}
    for rate, (mean, variance) in zip(shares, moments, strict=True):
        triangles = expected_risk(fitted, mean, X_new, Y_new, steps=2)
        star = greedy_weights(triangles.expected(np.sqrt(variance)))
        rows["expected_alpha"].append(star.alphas[:, 0])
        rows["expected_ridge"].append(star.losses[:, 0])
        rows["expected_distilled"].append(star.losses[:, 1])
        per_draw = []
        for _ in range(draws):
            noisy = symmetric(Y, float(rate), rng, iid=True).Y
            data = fitted.with_targets(noisy).sweep(X_new, Y_new, alphas=1.0, steps=2).dataset
            per_draw.append([data["alpha_star"][:, 1], data["ridge_mse"], data["star_mse"][:, 1]])
        samples: np.ndarray = np.array(per_draw)  # (draws, 3, L)
        for name, average, error in zip(
            ("alpha", "ridge", "distilled"),
            samples.mean(axis=0),
            standard_error(samples),
            strict=True,
        ):
            rows[name].append(average)
            rows[f"{name}_se"].append(error)
    variables = {
        name: (("rate", "lam"), np.array(rows[name]), {"long_name": text})
        for name, text in _LABELS.items()
    }
    return xr.Dataset(variables, coords={"rate": shares, "lam": fitted.lams})


_LABELS = {
    "alpha": "optimal weight of the ground truth at step 2",
    "alpha_se": "its standard error",
    "ridge": "mean squared error of step 1",
    "ridge_se": "its standard error",
    "distilled": "mean squared error of step 2 with the optimal weight",
    "distilled_se": "its standard error",
    "expected_alpha": "optimal weight of the expected risk",
    "expected_ridge": "expected risk of step 1",
    "expected_distilled": "expected risk of step 2 with that weight",
}


@underflow_is_zero
def linear_features(
    spectrum: Any,
    signal: Any,
    n: int,
    lams: Any,
    std: float,
    *,
    steps: int = 3,
    draws: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Risk on Gaussian linear features: the asymptotic prediction beside fits to samples.

    x has independent Gaussian entries with variances `spectrum`, y = x'beta + noise, and beta_j =
    sqrt(signal_j). The risk (w - beta)' Sigma (w - beta) of a sample is exact: no test rows are drawn.

    Parameters
    ----------
    spectrum, signal : array (d,)
        s_j >= 0 and beta_j^2 >= 0.
    n : int
        Training rows.
    lams : array (L,)
        Absolute, K + lam I with K = X X'.
    std : float
        Standard deviation of the noise, >= 0.
    steps : int, default 3
        T >= 2, of the joint optimum.
    draws : int, default 20
        Samples of (X, y), at least 2.
    seed : int, default 0

    Returns
    -------
    xarray.Dataset
        Coordinates rule ("ridge", "alpha = 0", "alpha*": step 2; "joint": T steps) and lam (L). Over both
        ``predicted``, ``bias``, ``variance``, ``measured`` (with the weights of the prediction) and
        ``measured_se``; over lam ``predicted_alpha``, and ``alpha``, ``alpha_se`` of the draws' own alpha*.

    Raises
    ------
    TypeError, ValueError
        As :func:`sdgpu.distill.asymptotic_risk.linear_risk`, and for fewer than two draws or steps.

    Notes
    -----
    An eigendecomposition for each draw, O(draws n^3).
    """
    draws, steps = integer("draws", draws, 2), integer("steps", steps, 2)
    noise = positive("std", std, zero=True)
    triangles = linear_risk(spectrum, signal, n, lams, steps)
    rules = _rule_tails(triangles, noise)
    risks = [triangles.combination(tails, noise) for tails in rules.values()]
    rng, lam_values = np.random.default_rng(seed), grid("lams", lams)
    root, beta = (np.sqrt(np.asarray(squares, dtype=np.float64)) for squares in (spectrum, signal))
    losses, stars = [], []
    for _ in range(draws):
        X = rng.standard_normal((n, len(root))) * root
        fitted = fit(
            X, X @ beta + noise * rng.standard_normal(n), Linear(), lam_values, method="eigh"
        )
        # f(sqrt(s_j) e_j) - sqrt(s_j) beta_j: the sum of its squares is the risk
        star = fitted.sweep(np.diag(root), root * beta, alphas=1.0, steps=2).dataset["alpha_star"]
        stars.append(star.values[:, 1])
        # u_1 .. u_T of each lam serve every rule; for linear features they are weights w = X' dual
        u = np.array([fitted.path(lam, 0.0, steps).dual @ X for lam in lam_values])
        differences = np.diff(u, axis=1)  # D_1 .. D_{T-1}, (L, T - 1, d)
        coefficients = [
            u[:, 0] + np.einsum("lj,ljd->ld", rule_tails, differences)
            for rule_tails in rules.values()
        ]
        losses.append([np.sum((root * (w - beta)) ** 2, axis=1) for w in coefficients])
    measured, star_alphas = np.array(losses), np.array(stars)
    dims = ("rule", "lam")
    return xr.Dataset(
        {
            "predicted": (dims, np.array([risk.total for risk in risks])),
            "bias": (dims, np.array([risk.bias for risk in risks])),
            "variance": (dims, np.array([risk.variance for risk in risks])),
            "measured": (dims, measured.mean(axis=0)),
            "measured_se": (dims, standard_error(measured)),
            "predicted_alpha": (("lam",), 1 - rules["alpha*"][:, 0]),
            "alpha": (("lam",), star_alphas.mean(axis=0)),
            "alpha_se": (("lam",), standard_error(star_alphas)),
        },
        coords={"rule": list(rules), "lam": lam_values},
    )


def _rule_tails(triangles: RiskTriangles, std: float) -> dict[str, np.ndarray]:
    """Tails (L, T - 1) of each rule, its own for each lam."""
    R = np.asarray(triangles.expected(std))
    none = np.zeros((len(R), R.shape[-1] - 1))
    pure, star = none.copy(), none.copy()
    pure[:, 0] = 1
    star[:, 0] = 1 - greedy_weights(R).alphas[:, 0]
    # tails exist where weights do not: s_j = c_{j+1} + .. + c_T
    joint = np.cumsum(joint_weights(R).coefficients[:, :0:-1], axis=1)[:, ::-1]
    return {"ridge": none, "alpha = 0": pure, "alpha*": star, "joint": joint}
