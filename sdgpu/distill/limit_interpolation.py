"""Losses of the limits of a whole (lam, alpha) grid from a few dozen evaluations.

The limit (17) is ridge with mu = lam / alpha, so its loss is one function g of log mu for the whole
grid. delta / (delta + mu) is a logistic function of log mu with its poles at distance pi from the real
axis; so is g, and Chebyshev interpolation in log mu converges geometrically. The range is cut into
pieces over which g cannot change by many orders of magnitude, so that the error is relative to g itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import Chebyshev, chebpts1, chebvander

from sdgpu.distill.filters import limit_exists
from sdgpu.distill.smoothers import RIDGE, Smoother

__all__ = ["LimitNodes", "limit_nodes"]

PIECE = 4.0  # length in log mu: g changes by at most exp(8)

# Bernstein ellipse through the poles at distance pi: errors fall like rho^-degree
_HEIGHT = 2 * np.pi / PIECE
DEGREE = int(np.ceil(38 / np.log(_HEIGHT + np.hypot(1, _HEIGHT)))) + 4


@dataclass(frozen=True, eq=False)
class LimitNodes:
    """Limits to evaluate exactly, and how the grid follows from them.

    Attributes
    ----------
    lams, alphas : array (M,)
        The limits to evaluate: the nodes of the pieces, then points that stand for themselves.
    mu : array (L, A)
        lam / alpha where interpolated, NaN elsewhere.
    direct : array (L, A)
        Index of an exact evaluation, -1 elsewhere.
    zero : array (L, A)
        The collapse at alpha = 0.
    edges : array (P + 1,)
        Ends of the pieces in log mu.
    """

    lams: np.ndarray
    alphas: np.ndarray
    mu: np.ndarray
    direct: np.ndarray
    zero: np.ndarray
    edges: np.ndarray

    def spread(self, sums: np.ndarray, zero: float) -> np.ndarray:
        """Losses (L, A) from the evaluated ones (M,); NaN where the limit diverges."""
        losses = np.full(self.mu.shape, np.nan)
        losses[self.zero] = zero
        exact = self.direct >= 0
        losses[exact] = sums[self.direct[exact]]
        log_mu = np.log(self.mu)
        for i, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            values = sums[i * (DEGREE + 1) : (i + 1) * (DEGREE + 1)]
            inside = (log_mu >= low) & ((log_mu < high) | (i == len(self.edges) - 2))
            losses[inside] = _interpolate(values, (low, high), log_mu[inside])
        return losses


def limit_nodes(
    delta: np.ndarray, lams: np.ndarray, alphas: np.ndarray, smoother: Smoother = RIDGE
) -> LimitNodes:
    """Choose what to evaluate for the limits of lams (L,) x alphas (A,) on a spectrum delta (k,).

    The limits of another smoother than ridge are no function of lam / alpha: each is evaluated.
    """
    ridge, weight = np.meshgrid(lams, alphas, indexing="ij")
    exists = limit_exists(delta, ridge, weight, smoother)
    of_ridge = smoother.name == RIDGE.name
    zero = exists & (weight == 0) & of_ridge
    positive = exists & (weight > 0) & of_ridge
    mu = np.full(ridge.shape, np.nan)
    with np.errstate(over="ignore"):
        mu[positive] = ridge[positive] / weight[positive]
    mu[np.isinf(mu)] = np.nan
    edges, node_lams = np.zeros(1), np.zeros(0)
    log_mu = np.log(mu[~np.isnan(mu)])
    if log_mu.size:
        low, high = log_mu.min(), max(log_mu.max(), log_mu.min() + 1e-3)
        pieces = int(np.ceil((high - low) / PIECE))
        if log_mu.size > pieces * (DEGREE + 1):
            edges = np.linspace(low, high, pieces + 1)
            unit = (chebpts1(DEGREE + 1) + 1) / 2
            node_lams = np.exp(edges[:-1, None] + unit * np.diff(edges)[:, None]).ravel()
        else:
            mu[:] = np.nan
    exact = exists & ~zero & np.isnan(mu)
    direct = np.full(mu.shape, -1)
    direct[exact] = len(node_lams) + np.arange(np.count_nonzero(exact))
    return LimitNodes(
        lams=np.concatenate([node_lams, ridge[exact]]),
        alphas=np.concatenate([np.ones(len(node_lams)), weight[exact]]),
        mu=mu,
        direct=direct,
        zero=zero,
        edges=edges,
    )


def _interpolate(values: np.ndarray, domain: tuple[float, float], points: np.ndarray) -> np.ndarray:
    """Chebyshev interpolant of node values; at the rounding of 0 the value of the nearest node."""
    # discrete orthogonality gives the series from the values at the first-kind points
    nodes = chebpts1(len(values))
    series = chebvander(nodes, DEGREE).T @ values
    series *= 2.0 / len(values)
    series[0] /= 2.0
    result = Chebyshev(series, domain=domain)(points)
    unit = 2 * (points - domain[0]) / (domain[1] - domain[0]) - 1
    nearest = values[np.abs(nodes[:, None] - unit).argmin(axis=0)] if points.size else points
    return np.where(result > 0, result, nearest)
