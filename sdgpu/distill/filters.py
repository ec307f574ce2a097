"""Every statement of the paper as a function of the eigenvalues: filters (6)-(13) and limits (17).

With the eigenvalues delta (k,) of K, a = delta / (delta + lam) and Z = V'Y, a fit at step tau is

    y(tau)    = V B(tau) Z              (train filter, equation (12))
    dual(tau) = V C(tau) Z              (dual filter, equation (13) without its 1 / delta)
    Y - y(tau) = V (1 - B(tau)) Z       (residual filter)

With another smoother g (:mod:`sdgpu.distill.smoothers`) everything stands with g for a.

All functions broadcast: `lam` has any shape S, `alphas` any shape S' + (T - 1,), and the result has
shape broadcast(S, S') + (T, k). They run on any array API library, in the dtype of `eigenvalues`.
Nothing is divided by an eigenvalue, only by delta + lam > 0.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat

from sdgpu.distill.smoothers import RIDGE, Smoother, like

__all__ = [
    "dual_filter",
    "flat_product",
    "limit_dual_filter",
    "limit_exists",
    "limit_rate",
    "limit_train_filter",
    "residual_filter",
    "shrinkage",
    "step_dual_filters",
    "stepwise_filters",
    "train_filter",
]


def shrinkage(eigenvalues: Any, lam: Any) -> Any:
    """Ridge shrinkage a = delta / (delta + lam), equation (9).

    Parameters
    ----------
    eigenvalues : array (k,)
        delta >= 0.
    lam : number or array of shape S
        lam > 0.

    Returns
    -------
    array of shape S + (k,)
    """
    return RIDGE.shrinkage(eigenvalues, lam)


def train_filter(eigenvalues: Any, lam: Any, alphas: Any, smoother: Smoother = RIDGE) -> Any:
    """B(1..T): B(1) = A, B(tau) = A ((1 - alpha_tau) B(tau-1) + alpha_tau I), equation (12).

    Parameters
    ----------
    eigenvalues : array (k,)
        delta >= 0.
    lam : number or array of shape S
        lam > 0.
    alphas : array of shape S' + (T - 1,)
        Weights of steps 2..T; any real numbers.
    smoother : Smoother, default ridge

    Returns
    -------
    array of shape broadcast(S, S') + (T, k)

    Notes
    -----
    O(T k) for each pair of lam and schedule. Positive terms only for alphas in [0, 1]: then every
    entry is right to a few units in the last place, however small.

    Examples
    --------
    >>> import numpy as np
    >>> train_filter(np.array([0.0, 1.0, 3.0]), 1.0, np.array([0.0]))
    array([[0.    , 0.5   , 0.75  ],
           [0.    , 0.25  , 0.5625]])
    """
    a, alphas = smoother.shrinkage(eigenvalues, lam), like(eigenvalues, alphas)
    xp = compat.array_namespace(a)
    filters = [a]
    for i in range(alphas.shape[-1]):
        alpha = alphas[..., i, None]
        filters.append(a * ((1 - alpha) * filters[-1] + alpha))  # (12)
    return xp.stack(_same_shape(xp, filters), axis=-2)


def dual_filter(eigenvalues: Any, lam: Any, alphas: Any, smoother: Smoother = RIDGE) -> Any:
    """C(1..T): C(tau) = (alpha_tau + (1 - alpha_tau) B(tau-1)) / (delta + lam).

    Equation (13) prints D^-1 B(tau), which is this for delta > 0 and 0/0 for delta = 0.
    Shapes, cost and accuracy as :func:`train_filter`.
    """
    alphas = like(eigenvalues, alphas)
    xp = compat.array_namespace(eigenvalues)
    scale = smoother.dual(eigenvalues, lam)
    filters = [scale]
    for i in range(alphas.shape[-1]):
        alpha = alphas[..., i, None]
        # B(tau-1) = delta C(tau-1)
        filters.append(scale * (alpha + (1 - alpha) * eigenvalues * filters[-1]))
    return xp.stack(_same_shape(xp, filters), axis=-2)


def stepwise_filters(
    eigenvalues: Any, lams: Any, alphas: Any, smoother: Smoother = RIDGE
) -> tuple[Any, Any]:
    """B(1..T) and C(1..T) with a lam for each step.

    B(tau) = a_tau (alpha_tau + (1 - alpha_tau) B(tau-1)), and C(tau) = B(tau) / delta, with
    a_tau = delta / (delta + lam_tau): Proposition D.1.

    Parameters
    ----------
    eigenvalues : array (k,)
    lams : array (T,)
        Of steps 1..T; inf for a collapse.
    alphas : array of shape S' + (T - 1,)
        Weights of steps 2..T.
    smoother : Smoother, default ridge

    Returns
    -------
    pair of arrays S' + (T, k)

    Notes
    -----
    O(T k) for each schedule.

    References
    ----------
    Borup and Andersen (2021), Proposition D.1; Moniri and Hassani (2025) for a student that regularises
    more than its teacher.
    """
    alphas, xp = like(eigenvalues, alphas), compat.array_namespace(eigenvalues)
    a, scale = smoother.shrinkage(eigenvalues, lams), smoother.dual(eigenvalues, lams)  # (T, k)
    train, dual = [a[0, :]], [scale[0, :]]
    for i in range(alphas.shape[-1]):
        alpha = alphas[..., i, None]
        target = alpha + (1 - alpha) * train[-1]
        train.append(a[i + 1, :] * target)
        dual.append(scale[i + 1, :] * target)
    train, dual = (_same_shape(xp, filters) for filters in (train, dual))
    return xp.stack(train, axis=-2), xp.stack(dual, axis=-2)


def residual_filter(eigenvalues: Any, lam: Any, alphas: Any, smoother: Smoother = RIDGE) -> Any:
    """1 - B(1..T), from its own recursion so that it does not cancel where lam << delta.

    1 - B(tau) = lam / (delta + lam) + (1 - alpha_tau) a (1 - B(tau-1)), with 1 - B(0) = 0; it is
    (12) subtracted from 1. Shapes, cost and accuracy as :func:`train_filter`.
    """
    a, alphas = smoother.shrinkage(eigenvalues, lam), like(eigenvalues, alphas)
    xp = compat.array_namespace(a)
    residual = smoother.complement(eigenvalues, lam)  # 1 - a
    filters = [residual]
    for i in range(alphas.shape[-1]):
        alpha = alphas[..., i, None]
        filters.append(residual + (1 - alpha) * a * filters[-1])
    return xp.stack(_same_shape(xp, filters), axis=-2)


def limit_train_filter(eigenvalues: Any, lam: Any, alpha: Any, smoother: Smoother = RIDGE) -> Any:
    """B(inf) = alpha a / (alpha a + 1 - a): ridge with lam / alpha, equation (17).

    Parameters
    ----------
    eigenvalues : array (k,)
    lam, alpha : number or array of shape S
        Where the limit exists (:func:`limit_exists`); alpha = 0 gives zero, the collapse, wherever
        a < 1.
    smoother : Smoother, default ridge
        With another one the limit is that of g, and no ridge.

    Returns
    -------
    array of shape S + (k,)
    """
    return _limit(eigenvalues, lam, alpha, smoother, smoother.shrinkage(eigenvalues, lam))


def limit_dual_filter(eigenvalues: Any, lam: Any, alpha: Any, smoother: Smoother = RIDGE) -> Any:
    """C(inf) = alpha / (alpha delta + lam) = 1 / (delta + lam / alpha), equation (17) for any x.

    The paper's two-solve form for new points simplifies to this single one.
    Shapes as :func:`limit_train_filter`.
    """
    return _limit(eigenvalues, lam, alpha, smoother, smoother.dual(eigenvalues, lam))


def _limit(eigenvalues: Any, lam: Any, alpha: Any, smoother: Smoother, first: Any) -> Any:
    """Step 1 times alpha / (alpha a + 1 - a), the sum of a geometric series; step 1 where a is 1."""
    xp = compat.array_namespace(eigenvalues)
    alpha = like(eigenvalues, alpha)[..., None]
    a, complement = (make(eigenvalues, lam) for make in (smoother.shrinkage, smoother.complement))
    divisor = alpha * a + complement
    limit = first * (alpha / xp.where(divisor == 0, xp.ones_like(divisor), divisor))
    if not smoother.projects:
        return limit
    return xp.where(complement + xp.zeros_like(divisor) == 0, first, limit)


def limit_rate(eigenvalues: Any, lam: Any, alpha: Any, smoother: Smoother = RIDGE) -> Any:
    """Linear rate of Theorem 4.5, max |(1 - alpha) a|: the error shrinks by it at every step.

    Shapes: eigenvalues (k,), lam and alpha S, result S. The limit exists where it is < 1.
    """
    xp = compat.array_namespace(eigenvalues)
    alpha = like(eigenvalues, alpha)
    largest = xp.reshape(xp.max(eigenvalues), (1,))  # a grows with delta
    return xp.abs(1 - alpha) * smoother.shrinkage(largest, lam)[..., 0]


def limit_exists(eigenvalues: Any, lam: Any, alpha: Any, smoother: Smoother = RIDGE) -> Any:
    """Whether the steps converge: alpha in [0, 2), or :func:`limit_rate` < 1 (shape S)."""
    # a rounds to 1 for lam << delta, so the classical range is decided without it
    rate = limit_rate(eigenvalues, lam, alpha, smoother)
    alpha = like(rate, alpha)
    return ((alpha >= 0) & (alpha < 2)) | (rate < 1)


def step_dual_filters(eigenvalues: Any, lam: Any, steps: int, smoother: Smoother = RIDGE) -> Any:
    """Dual filters of the basis u_1, D_1, ..., D_{T-1} that carries every schedule.

    Theorem 4.1 read as a basis: with u_i = kappa(., X) (K + lam)^-1 (K (K + lam)^-1)^(i-1) Y, step
    tau of any schedule is a combination of u_1..u_tau whose coefficients sum to one. In the
    differences D_j = u_{j+1} - u_j that constraint is gone,

        f(.; tau) = u_1 + sum_{j=1}^{tau-1} s_j D_j,   s_j = prod_{i=tau-j+1}^{tau} (1 - alpha_i),

    and the D_j, which become tiny for small lam, are computed without cancellation from their own
    filter: -lam a^(j-1) / (delta + lam)^2 = -(1 - a) a^(j-1) C(1).

    Parameters
    ----------
    eigenvalues : array (k,)
    lam : number or array of shape S
    steps : int
        T >= 1.
    smoother : Smoother, default ridge

    Returns
    -------
    array of shape S + (T, k)
    """
    xp = compat.array_namespace(eigenvalues)
    scale, a = smoother.dual(eigenvalues, lam), smoother.shrinkage(eigenvalues, lam)
    filters = [scale]
    power = -smoother.complement(eigenvalues, lam) * scale
    for _ in range(steps - 1):
        filters.append(power)
        power = power * a
    return xp.stack(_same_shape(xp, filters), axis=-2)


def _same_shape(xp: Any, arrays: list[Any]) -> list[Any]:
    """Broadcast to the shape of the last: a step without alpha may have fewer axes than the rest."""
    return list(xp.broadcast_arrays(*arrays))


def flat_product(A: Any, B: Any) -> Any:
    """A (m, k), a matrix or an operator, times each matrix of B (..., k, c) as one product: (..., m, c).

    One wide product instead of a batch of skinny ones: several times the rate on any device.
    """
    xp = compat.array_namespace(B)  # A may be an operator
    *lead, k, c = B.shape
    columns = xp.reshape(xp.moveaxis(B, -2, 0), (k, -1))  # (k, ... c)
    product = A @ columns
    xp = compat.array_namespace(product)  # rows on several ranks have one of their own
    return xp.moveaxis(xp.reshape(product, (A.shape[0], *lead, c)), 0, -2)
