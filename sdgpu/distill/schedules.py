"""Schedules of weights and the three ways to write one: alphas, tail products s, coefficients c.

============  =======================  ==========================================================
name          shape                    meaning
============  =======================  ==========================================================
``alphas``    (..., T - 1)             weight of the ground truth at steps 2..T
``tails``     (..., T - 1)             s_j = prod of (1 - alpha_i) over the last j steps
``c``         (..., T)                 f(.; T) = sum_i c_i u_i with sum c = 1 (Theorem 4.1)
============  =======================  ==========================================================

c_1 = 1 - s_1, c_i = s_{i-1} - s_i, c_T = s_{T-1}. The tails are free of constraints, which is what
the joint optimum needs, and they are products, which is what accuracy needs.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = [
    "all_tails",
    "boosting_schedule",
    "coefficients",
    "from_tails",
    "grid_tails",
    "schedule_from_coefficients",
    "tails",
]


def tails(alphas: Any) -> Any:
    """Tail products of the last step, s_j = prod_{i=T-j+1}^{T} (1 - alpha_i).

    Parameters
    ----------
    alphas : array (..., T - 1)

    Returns
    -------
    array (..., T - 1)
    """
    xp = compat.array_namespace(alphas)
    return xp.cumulative_prod(xp.flip(1 - alphas, axis=-1), axis=-1)


def all_tails(alphas: np.ndarray) -> np.ndarray:
    """Tails of every step of one schedule.

    Parameters
    ----------
    alphas : array (T - 1,) or (T - 1, c)

    Returns
    -------
    array (T, T) or (T, T, c)
        Row t - 1 belongs to step t: 1 (for u_1), s_1 .. s_{t-1} of that step, then zeros.
    """
    T = len(alphas) + 1
    rows = np.zeros((T, T, *alphas.shape[1:]))
    rows[:, 0] = 1
    for t in range(1, T):
        rows[t, 1 : t + 1] = np.moveaxis(tails(np.moveaxis(alphas[:t], 0, -1)), -1, 0)
    return rows


def grid_tails(alphas: np.ndarray, steps: int) -> np.ndarray:
    """Tails of the chains with a fixed weight: s_j = (1 - alpha)^j, the same for every step.

    Parameters
    ----------
    alphas : array (A,)
    steps : int
        T.

    Returns
    -------
    array (A, T)
        Column 0 is 1 (for u_1), column j is s_j.
    """
    return (1 - alphas)[:, None] ** np.arange(steps)


def boosting_schedule(rounds: int) -> np.ndarray:
    """Weights with which m steps are m rounds of L2-boosting (iterated Tikhonov), (m - 1,).

    alpha_t = m / (m - t + 1) for t = 2..m, all above 1: B(m) = 1 - (1 - a)^m.

    Examples
    --------
    >>> boosting_schedule(3)
    array([1.5, 3. ])
    """
    return rounds / np.arange(rounds - 1.0, 0.0, -1.0)


def coefficients(alphas: Any) -> Any:
    """Coefficients c over u_1..u_T of the last step, Theorem 4.1, equations (6) and (7).

    Parameters
    ----------
    alphas : array (..., T - 1)
        Weights of steps 2..T.

    Returns
    -------
    array (..., T)
        With sum 1. c_1 = alpha_T; (c_2..c_T) / (1 - alpha_T) are those of T - 1 steps.

    Examples
    --------
    >>> import numpy as np
    >>> coefficients(np.array([0.5, 0.2]))
    array([0.2, 0.4, 0.4])
    """
    xp = compat.array_namespace(alphas)
    products = tails(alphas)
    options = {"dtype": alphas.dtype, "device": compat.device(alphas)}
    ones = xp.ones((*alphas.shape[:-1], 1), **options)
    # c_i = s_{i-1} alpha_{T-i+1}: as products, since s_{i-1} - s_i would cancel for small alpha
    previous_tails = xp.concat([ones, products], axis=-1)
    return previous_tails * xp.concat([xp.flip(alphas, axis=-1), ones], axis=-1)


def schedule_from_coefficients(c: np.ndarray) -> np.ndarray:
    """Recover the weights of steps 2..T from coefficients c (T,) with sum 1.

    Raises
    ------
    ValueError
        If c does not sum to 1, or no schedule has these coefficients (a step would need an
        infinite weight: some partial sum 1 - c_1 - .. - c_i is 0 while a later c is not).
    """
    total = float(np.sum(c))
    if not np.isclose(total, 1.0, rtol=1e-8, atol=1e-8):
        raise ValueError(f"coefficients must sum to 1, got {total}")
    # s_j = c_{j+1} + .. + c_T, summed from the far end
    weights = from_tails(np.cumsum(c[::-1])[::-1][1:])
    if not np.isfinite(weights).all():
        raise ValueError("no schedule has these coefficients: a step would need an infinite weight")
    return weights


def from_tails(products: np.ndarray) -> np.ndarray:
    """Weights of steps 2..T from tails (..., T - 1): alpha_{T-j+1} = 1 - s_j / s_{j-1}.

    Once a tail is 0 the earlier steps no longer matter; their weight is then set to 1. A tail that
    comes back after a 0 belongs to no schedule and gives an infinite weight.
    """
    previous = np.concatenate([np.ones_like(products[..., :1]), products[..., :-1]], axis=-1)
    zero = previous == 0
    alphas = 1 - products / np.where(zero, 1.0, previous)
    alphas = np.where(zero, np.where(products == 0, 1.0, np.inf), alphas)
    return np.flip(alphas, axis=-1).copy()
