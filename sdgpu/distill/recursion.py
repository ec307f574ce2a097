"""The recursion (3)-(5): the definition of self-distillation, one linear solve for each step.

It is the oracle of the closed forms, the refit side of the benchmarks, and the route for solvers
that have no basis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

__all__ = ["Steps", "recursion"]


@dataclass(frozen=True, eq=False)
class Steps:
    """All steps of one chain.

    Attributes
    ----------
    dual : array (T, n, c)
        f(x; tau) = kappa(x, X) dual[tau - 1].
    fitted : array (T, n, c)
        y(tau), the predictions at the training points.
    spectrum : None
        There is none.
    """

    dual: Any
    fitted: Any
    spectrum: None = None


def recursion(solve: Callable[[Any], Any], Y: Any, lam: float, alphas: Any) -> Steps:
    """Distil step by step.

    y(0) = Y; u = alpha_tau Y + (1 - alpha_tau) y(tau-1), step 1: u = Y;
    dual(tau) = (K + lam I)^-1 u (3); y(tau) = K dual(tau) = u - lam dual(tau) (4), (5).
    The loss (1) with two targets has the minimiser of the loss with the one mixed target u.

    Parameters
    ----------
    solve : callable
        u (n, c) -> (K + lam I)^-1 u (n, c).
    Y : array (n, c)
    lam : float
    alphas : array (T - 1,) or (T - 1, c)
        Weights of steps 2..T.

    Returns
    -------
    Steps

    Notes
    -----
    T solves and no product with K.
    """
    xp = compat.array_namespace(Y)
    duals: list[Any] = []
    fits: list[Any] = []
    u = Y
    for tau in range(alphas.shape[0] + 1):
        if tau > 0:
            alpha = alphas[tau - 1, ...]
            u = alpha * Y + (1 - alpha) * fits[-1]
        dual = solve(u)  # (3)
        duals.append(dual)
        fits.append(u - lam * dual)  # (4), (5)
    return Steps(xp.stack(duals), xp.stack(fits))
