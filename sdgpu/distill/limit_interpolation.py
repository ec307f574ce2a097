"""Losses of the limits of a whole (lam, alpha) grid from a few dozen evaluations.

The limit (17) is ridge with mu = lam / alpha, so its loss is one function g of log mu for the whole
grid. delta / (delta + mu) is a logistic function of log mu with its poles at distance pi from the real
axis; so is g, and Chebyshev interpolation in log mu converges geometrically. The range is cut into
pieces over which g cannot change by many orders of magnitude, so that the error is relative to g itself.

The limits of another smoother are no function of lam / alpha. But alpha a / (alpha a + 1 - a) is logistic
in log alpha at every a, with its poles at distance pi again: so each lam has polynomials of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import Chebyshev, chebpts1, chebvander

from sdgpu.distill.filters import limit_exists
from sdgpu.distill.smoothers import RIDGE, Smoother

__all__ = ["LimitNodes", "WeightNodes", "degree_of", "limit_nodes"]

PIECE = 4.0  # length in log mu: g changes by at most exp(8)

WEIGHTS = 8.0  # of pieces in log alpha: one of 4.6, the usual grid, has fewer nodes than two


def degree_of(length: float) -> int:
    """Degree that a piece of some length takes: errors fall like rho^-degree, relative to exp(2 length).

    rho is of the Bernstein ellipse through the poles at distance pi.
    """
    height = 2 * np.pi / length
    return int(np.ceil((30 + 2 * length) / np.log(height + np.hypot(1, height)))) + 4


DEGREE = degree_of(PIECE)


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


@dataclass(frozen=True, eq=False)
class WeightNodes:
    """The same for a smoother whose limits are interpolated over alpha, for each lam.

    Attributes
    ----------
    lams, alphas : array (M,)
        The limits to evaluate: the nodes of each lam and piece, then points that stand for themselves.
    direct : array (L, A)
        Index of an exact evaluation, -1 elsewhere.
    log_alphas : array (A,)
        NaN where not interpolated.
    edges : array (P + 1,)
        Ends of the pieces in log alpha.
    """

    lams: np.ndarray
    alphas: np.ndarray
    direct: np.ndarray
    log_alphas: np.ndarray
    edges: np.ndarray

    def spread(self, sums: np.ndarray, zero: float) -> np.ndarray:
        """Losses (L, A) from the evaluated ones (M,); NaN where the limit diverges."""
        losses = np.full(self.direct.shape, np.nan)
        exact = self.direct >= 0
        losses[exact] = sums[self.direct[exact]]
        pieces = len(self.edges) - 1
        if not pieces:
            return losses
        count = degree_of(self.edges[1] - self.edges[0]) + 1
        values = sums[: len(losses) * pieces * count].reshape(len(losses), pieces, count)
        for i, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            inside = (self.log_alphas >= low) & ((self.log_alphas < high) | (i == pieces - 1))
            for row, own in zip(losses, values[:, i], strict=True):
                row[inside] = _interpolate(own, (low, high), self.log_alphas[inside])
        return losses


def limit_nodes(
    delta: np.ndarray, lams: np.ndarray, alphas: np.ndarray, smoother: Smoother = RIDGE
) -> LimitNodes | WeightNodes:
    """Choose what to evaluate for the limits of lams (L,) x alphas (A,) on a spectrum delta (k,)."""
    ridge, weight = np.meshgrid(lams, alphas, indexing="ij")
    exists = limit_exists(delta, ridge, weight, smoother)
    if smoother.name != RIDGE.name:
        return _weight_nodes(ridge, weight, exists)
    zero = exists & (weight == 0)
    positive = exists & (weight > 0)
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


def _weight_nodes(ridge: np.ndarray, weight: np.ndarray, exists: np.ndarray) -> WeightNodes:
    lams, alphas = ridge[:, 0], weight[0]
    logs, edges, nodes = np.full(len(alphas), np.nan), np.zeros(1), np.zeros(0)
    classical = (alphas > 0) & (alphas < 2)  # whose limits exist at every lam
    if classical.any():
        found = np.log(alphas[classical])
        low, high = found.min(), max(found.max(), found.min() + 1e-3)
        pieces = int(np.ceil((high - low) / WEIGHTS))
        ends = np.linspace(low, high, pieces + 1)
        count = degree_of(ends[1] - ends[0]) + 1
        if len(found) > pieces * count:
            logs[classical], edges = found, ends
            unit = (chebpts1(count) + 1) / 2
            nodes = np.exp(edges[:-1, None] + unit * np.diff(edges)[:, None]).ravel()
    exact = exists & np.isnan(logs)
    direct = np.full(exists.shape, -1)
    direct[exact] = len(lams) * len(nodes) + np.arange(np.count_nonzero(exact))
    return WeightNodes(
        lams=np.concatenate([np.repeat(lams, len(nodes)), ridge[exact]]),
        alphas=np.concatenate([np.tile(nodes, len(lams)), weight[exact]]),
        direct=direct,
        log_alphas=logs,
        edges=edges,
    )


def _interpolate(values: np.ndarray, domain: tuple[float, float], points: np.ndarray) -> np.ndarray:
    """Chebyshev interpolant of node values; at the rounding of 0 the value of the nearest node."""
    # discrete orthogonality gives the series from the values at the first-kind points
    nodes = chebpts1(len(values))
    series = chebvander(nodes, len(values) - 1).T @ values
    series *= 2.0 / len(values)
    series[0] /= 2.0
    result = Chebyshev(series, domain=domain)(points)
    unit = 2 * (points - domain[0]) / (domain[1] - domain[0]) - 1
    nearest = values[np.abs(nodes[:, None] - unit).argmin(axis=0)] if points.size else points
    return np.where(result > 0, result, nearest)
