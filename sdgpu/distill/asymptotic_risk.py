"""Risk of every schedule on linear features when n and d grow together: deterministic equivalents.

n rows x = Sigma^(1/2) z with d independent entries in z, targets y = x'beta + noise, K = X X'. As n and d
grow with d / n fixed, the risk of ridge stops depending on the sample. In the eigenbasis of Sigma, with
eigenvalues s_j and coefficients beta_j, everything follows from the effective ridge kappa(lam) > 0,

    lam = kappa (n - sum_j s_j / (s_j + kappa)),

and the bilinear form of the errors of two ridges, E (w_lam - beta)' Sigma (w_mu - beta) -> (n b + std^2 v)
/ (n - v) with b = sum_j s_j beta_j^2 r_j(lam) r_j(mu), v = sum_j q_j(lam) q_j(mu), q_j = s_j / (s_j +
kappa) and r_j = 1 - q_j.

Distillation is a matter of derivatives. Since K (K + lam I)^-1 = I - lam (K + lam I)^-1, the functions
D_j = u_{j+1} - u_j of :mod:`sdgpu.distill.filters` are

    D_j = sum_{i=0}^{j-1} binom(j-1, i) lam^(i+1) f^(i+1)(lam) / (i+1)!,

Taylor coefficients of the ridge path f; for j = 1 this is f_{step 2, alpha 0} - f = lam df/dlam. So a
Taylor series of the bilinear form in both its arguments gives all inner products of [D_1 .. D_{T-1}, u_1
- f*]: a triangle for each lam, as from data, for any number of steps.
"""

from __future__ import annotations

import math

import numpy as np

from sdgpu.backend.checks import grid, integer, lam_grid
from sdgpu.distill.expected_risk import RiskTriangles
from sdgpu.distill.loss_triangles import merge_rows

__all__ = ["effective_ridge", "linear_risk"]

_PATIENCE = 200  # Newton halves kappa at worst: down to 1e-30 of the start takes 100


def effective_ridge(spectrum: np.ndarray, n: int, lams: np.ndarray) -> np.ndarray:
    """Solve the Marchenko-Pastur equation lam = kappa (n - sum_j s_j / (s_j + kappa)).

    Parameters
    ----------
    spectrum : array (d,)
        s >= 0, eigenvalues of the covariance of the features.
    n : int
        Training rows.
    lams : array (L,)
        Absolute, K + lam I with K = X X'; a ridge per sample is lam / n.

    Returns
    -------
    array (L,)
        kappa; lam / n for n much larger than d.

    Notes
    -----
    The difference of both sides is convex in kappa, negative at 0 and positive at (lam + sum s) / n:
    Newton's method from there falls to the root without a step too far. O(L d) for each of about ten
    iterations.

    Examples
    --------
    >>> effective_ridge(np.ones(100), 100, np.array([1.0])).round(4)  # kappa^2 = (1 + kappa) / 100
    array([0.1051])
    """
    kappa = (lams + spectrum.sum()) / n
    for _ in range(_PATIENCE):
        q = spectrum / (spectrum + kappa[:, None])  # (L, d)
        residual = kappa * (n - q.sum(axis=1)) - lams
        step = residual / (n - np.sum(q * q, axis=1))
        kappa = kappa - np.maximum(step, 0.0)
        if (step <= 4 * np.finfo(float).eps * kappa).all():
            break
    return kappa


def linear_risk(
    spectrum: np.ndarray, signal: np.ndarray, n: int, lams: np.ndarray, steps: int
) -> RiskTriangles:
    """Asymptotic excess risk E (w - beta)' Sigma (w - beta) of every schedule, for each lam.

    Parameters
    ----------
    spectrum : array (d,)
        s >= 0, eigenvalues of the covariance of the features.
    signal : array (d,)
        beta_j^2 >= 0 in its eigenbasis.
    n : int
        Training rows.
    lams : array (L,)
        Absolute, K + lam I with K = X X'; a ridge per sample is lam / n.
    steps : int
        T.

    Returns
    -------
    RiskTriangles
        Float64; `expected(std)` gives alpha* and the joint optimum, `grid` and `schedule` the risk.

    Raises
    ------
    ValueError
        If spectrum and signal are no arrays (d,) of numbers >= 0, n < 1, steps < 1 or lam <= 0.

    Notes
    -----
    O(L d T^2). The error is of the order 1 / n. The triangles come from inner products, which keep half
    of the digits of nearly parallel functions. Risks of schedules do not suffer; the condition number of
    a joint optimum grows about sixfold with every step, so some ten steps are resolved.

    References
    ----------
    Dobriban and Wager (2018) for ridge; Dang, Patil and Rinaldo (2026) for two steps, with ridge lam / n.

    Examples
    --------
    Isotropic features: the best ridge is d std^2 / |beta|^2, and there distillation brings nothing.

    >>> from sdgpu.distill.optimal_weights import greedy_weights
    >>> s, beta2 = np.ones(50), np.full(50, 1 / 50)
    >>> triangles = linear_risk(s, beta2, 100, np.array([5.0, 50 * 0.25, 40.0]), 2)
    >>> greedy_weights(triangles.expected(0.5)).alphas[:, 0].round(2)
    array([-0.16,  1.  ,  2.02])
    """
    spectrum, signal = _nonnegative("spectrum", spectrum), _nonnegative("signal", signal)
    if spectrum.shape != signal.shape:
        raise ValueError(
            f"spectrum has {spectrum.shape[0]} entries and signal {signal.shape[0]}: give beta_j^2 for "
            "each eigenvalue"
        )
    n, steps, lams = integer("n", n, 1), integer("steps", steps, 1), lam_grid("lams", lams)
    q, r = _series(spectrum, effective_ridge(spectrum, n, lams), lams, n, steps)
    v = np.einsum("lpd,lqd->lpq", q, q)
    b = np.einsum("lpd,d,lqd->lpq", r, spectrum * signal, r)
    constant = np.zeros((steps, steps))
    constant[0, 0] = n
    change = _differences(steps)
    bias, variance = (
        _factor(change @ _divide(numerator, constant - v) @ change.T) for numerator in (n * b, v)
    )
    return RiskTriangles(bias, variance)


def _nonnegative(name: str, value: np.ndarray) -> np.ndarray:
    values = grid(name, value)
    if (values < 0).any():
        raise ValueError(f"{name} must be >= 0, got {values.min():g}")
    return values


def _series(
    spectrum: np.ndarray, kappa: np.ndarray, lams: np.ndarray, n: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Taylor coefficients of q and r (L, T, d) in t, at lam (1 + t).

    With g = 1 / (s + kappa) the equation of kappa is lam (1 + t) = n kappa - sum_j s_j + sum_j s_j^2 g_j,
    and (s + kappa) g = 1. Order p of both is linear in kappa_p, with the lower orders known.
    """
    L, d = len(lams), len(spectrum)
    k, g = np.zeros((L, steps)), np.empty((L, steps, d))
    k[:, 0], g[:, 0] = kappa, 1 / (spectrum + kappa[:, None])
    slope = n - np.sum((spectrum * g[:, 0]) ** 2, axis=1)  # dlam / dkappa
    for p in range(1, steps):
        lower_orders = np.einsum("li,lid->ld", k[:, 1:p], g[:, p - 1 : 0 : -1])
        rhs = (lams if p == 1 else 0.0) + np.sum(spectrum**2 * g[:, 0] * lower_orders, axis=1)
        k[:, p] = rhs / slope
        g[:, p] = -g[:, 0] * (lower_orders + k[:, p, None] * g[:, 0])
    q = spectrum * g
    r = -q
    r[:, 0] = kappa[:, None] * g[:, 0]  # 1 - q, without cancellation
    return q, r


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient of two power series in two variables, (L, T, T) coefficients each."""
    steps = numerator.shape[-1]
    quotient = np.zeros_like(numerator)
    for p in range(steps):
        for q in range(steps):
            # the entry that is sought is still 0 in this sum
            lower_orders = np.einsum(
                "lij,lij->l", denominator[:, : p + 1, : q + 1], quotient[:, p::-1, q::-1]
            )
            quotient[:, p, q] = (numerator[:, p, q] - lower_orders) / denominator[:, 0, 0]
    return quotient


def _differences(steps: int) -> np.ndarray:
    """Rows D_1 .. D_{T-1}, u_1 in terms of Taylor coefficients 0 .. T-1 of the path, (T, T)."""
    change = np.zeros((steps, steps))
    change[-1, 0] = 1
    for j in range(1, steps):
        for i in range(j):
            change[j - 1, i + 1] = math.comb(j - 1, i)
    return change


def _factor(gram: np.ndarray) -> np.ndarray:
    """Triangles R with R'R = gram (L, T, T), which rounding may have made slightly indefinite."""
    norms = np.sqrt(np.maximum(np.einsum("lii->li", gram), 0.0))
    scale = np.where(norms > 0, norms, 1.0)
    eigenvalues, vectors = np.linalg.eigh(gram / (scale[:, :, None] * scale[:, None, :]))
    root = np.sqrt(np.maximum(eigenvalues, 0.0))[:, :, None] * np.swapaxes(vectors, 1, 2)
    return merge_rows(None, root * scale[:, None, :])
