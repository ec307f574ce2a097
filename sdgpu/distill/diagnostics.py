"""What a filter does to a fit: ratios and sparsification (14)-(15), degrees of freedom, spectra."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat

from sdgpu.distill.filters import shrinkage, train_filter

__all__ = [
    "degrees_of_freedom",
    "effective_eigenvalues",
    "ratio_change_sign",
    "ratios",
    "sign_rule",
]


def ratios(B: Any) -> Any:
    """R_k(tau) = B_{k+1}(tau) / B_k(tau) of the ordered diagonal, Theorem 4.3 and Figure 4.

    Parameters
    ----------
    B : array (..., k)
        Train filter with eigenvalues ascending (:func:`sdgpu.distill.filters.train_filter`).

    Returns
    -------
    array (..., k - 1)
        NaN where both are 0, infinite where only B_k is. For alpha = 0 it is
        ((1 + lam/d_k) / (1 + lam/d_{k+1}))^tau, equation (14), and grows with tau.
    """
    xp = compat.array_namespace(B)
    lower, upper = B[..., :-1], B[..., 1:]
    zero = lower == 0
    quotient = upper / xp.where(zero, xp.ones_like(lower), lower)
    where_zero = xp.where(upper == 0, xp.full_like(upper, xp.nan), xp.full_like(upper, xp.inf))
    return xp.where(zero, where_zero, quotient)


def ratio_change_sign(B: Any) -> Any:
    """Sign of R_k(tau) - R_k(tau - 1) for tau = 2..T, (..., T - 1, k - 1), from the ratios.

    Right for every schedule, unlike (15). +1 means that step tau sparsifies further: the smaller
    eigenvalue loses more than the larger one.
    """
    xp = compat.array_namespace(B)
    R = ratios(B)
    return xp.sign(R[..., 1:, :] - R[..., :-1, :])


def sign_rule(eigenvalues: Any, lam: float, alpha: float, steps: int) -> Any:
    """The paper's rule (15) for the sign of R_k(tau) - R_k(tau - 1), tau = 2..T.

    Parameters
    ----------
    eigenvalues : array (k,)
        Ascending, positive and distinct.
    lam : float
    alpha : float
        In (0, 1), the same at every step: the rule is wrong for other schedules, and singular at
        tau = 1. :func:`ratio_change_sign` has neither limit.
    steps : int
        T.

    Returns
    -------
    array (T - 1, k - 1)

    Raises
    ------
    ValueError
        If alpha is outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha}: the rule (15) holds for a fixed alpha in (0, 1) only")
    xp = compat.array_namespace(eigenvalues)
    alphas = xp.full(
        (steps - 1,), alpha, dtype=eigenvalues.dtype, device=compat.device(eigenvalues)
    )
    a = shrinkage(eigenvalues, lam)
    a_j, a_k = a[:-1], a[1:]  # d_k > d_j
    B_previous = train_filter(eigenvalues, lam, alphas)[:-1, :]  # B(1..T-1)
    B_j, B_k = B_previous[:, :-1], B_previous[:, 1:]
    inner = (B_k / B_j - a_k / a_j) * a_j / (B_k * (a_k - a_j)) + 1  # (15)
    return xp.sign(1 / inner - alpha)


def degrees_of_freedom(B: Any) -> Any:
    """Trace of the smoother, sum of B over the eigenvalues: (..., k) -> (...)."""
    return compat.array_namespace(B).sum(B, axis=-1)


def effective_eigenvalues(B: Any, lam: float) -> Any:
    """Spectrum on which one ordinary ridge with `lam` does what the filter does: lam B / (1 - B).

    Parameters
    ----------
    B : array (..., k)
        A filter in [0, 1).
    lam : float
        Ridge of the equivalent ordinary fit.

    Returns
    -------
    array (..., k)
        NaN where B is outside [0, 1): no positive semi-definite kernel does that.
    """
    xp = compat.array_namespace(B)
    legal = (B >= 0) & (B < 1)
    safe = xp.where(legal, B, xp.zeros_like(B))
    return xp.where(legal, lam * safe / (1 - safe), xp.full_like(B, xp.nan))
