"""Expected risk of every schedule when the truth and the noise are known.

With targets Y = F + E, where E has independent entries with mean 0 and variance std^2, step tau predicts
P C(tau) V'Y for P = kappa(X_new, X) V and C the dual filter (13). Its expected mean squared error to the
truth F_new at those points is

    ||P C V'F - F_new||^2 / (m c)  +  std^2 ||P C||^2 / m,

squared bias and variance. Both are sums of squares that are linear in the tail products of the weights
(:mod:`sdgpu.distill.schedules`), as the validation loss is, and so each is a triangle for each lam
(:mod:`sdgpu.distill.loss_triangles`). Stacked they are the triangle of the expected risk: the grid,
alpha* (16) and the joint optimum *in expectation* come from the functions that serve validation data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.distill.filters import step_dual_filters
from sdgpu.distill.loss_triangles import grid_losses, merge_rows, step_columns, step_losses
from sdgpu.distill.schedules import grid_tails, tails

__all__ = ["Risk", "RiskTriangles", "risk_at_points", "risk_at_training"]


@dataclass(frozen=True, eq=False)
class Risk:
    """Expected mean squared error to the truth, and what it is made of.

    Attributes
    ----------
    bias : array
        Squared bias, the risk without noise.
    variance : array of the same shape
    """

    bias: np.ndarray
    variance: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Squared bias plus variance."""
        return self.bias + self.variance


@dataclass(frozen=True, eq=False)
class RiskTriangles:
    """Squared bias and variance of every schedule, for each lam.

    Attributes
    ----------
    bias : array (L, T, T)
        ||R (s, 1)||^2 is the squared bias of the schedule with tails s.
    variance : array (L, T, T)
        The same of the variance, for noise of variance 1.
    """

    bias: Any
    variance: Any

    def expected(self, std: float) -> Any:
        """Triangles (L, T, T) of the expected risk, for `greedy_weights` and `joint_weights`.

        Parameters
        ----------
        std : float
            Standard deviation of the noise; root mean square over the outputs where they differ.

        Notes
        -----
        Losses from these triangles are means: nothing is left to divide by. O(L T^3).
        """
        return merge_rows(self.bias, std * self.variance)

    def grid(self, alphas: np.ndarray, std: float) -> Risk:
        """Risk of fixed weights (A,) at every step, as arrays (L, A, T), for NumPy triangles."""
        products = grid_tails(alphas, self.bias.shape[-1])
        return Risk(grid_losses(self.bias, products), std**2 * grid_losses(self.variance, products))

    def schedule(self, alphas: np.ndarray, std: float) -> Risk:
        """Risk of steps 1..t of one schedule (t - 1,), t <= T, as arrays (L, t)."""
        risks = [self.combination(tails(alphas[:t]), std) for t in range(len(alphas) + 1)]
        bias, variance = ([getattr(risk, part) for risk in risks] for part in ("bias", "variance"))
        return Risk(np.stack(bias, axis=-1), np.stack(variance, axis=-1))

    def combination(self, products: np.ndarray, std: float) -> Risk:
        """Risk of u_1 + sum_j s_j D_j for tails (t - 1,), or (L, t - 1): its own for each lam; (L,)."""
        s = np.broadcast_to(products, (len(self.bias), products.shape[-1]))
        return Risk(step_losses(self.bias, s), std**2 * step_losses(self.variance, s))


def risk_at_training(
    eigenvalues: Any, Z: Any, lams: np.ndarray, steps: int, *, truth: Any = None
) -> RiskTriangles:
    """Risk at the training points (fixed design), from the eigenvalues alone.

    bias^2 = ||(I - B) V'F||^2 / (n c), variance = std^2 sum B^2 / n with the train filter B (12).

    Parameters
    ----------
    eigenvalues : array (n,)
        All of them.
    Z : array (n, c)
        V'F: the expected targets in the eigenbasis.
    lams : array (L,)
    steps : int
        T.
    truth : array (n, c), optional
        What predictions are compared with, in the eigenbasis, where noise shifts the mean of the
        targets (corrupted labels do); Z by default.

    Returns
    -------
    RiskTriangles
        In the library of `eigenvalues`.

    Notes
    -----
    O(L n c T^2), in memory n c T numbers for one lam.
    """
    xp = compat.array_namespace(eigenvalues)
    n, c = Z.shape
    shift = None if truth is None else Z - truth

    def columns(lam: float) -> tuple[Any, Any]:
        filters = eigenvalues * step_dual_filters(eigenvalues, lam, steps)  # (T, n)
        basis = xp.reshape(filters[..., None] * Z, (steps, n * c)).T
        # a Z - Z would cancel where lam << delta: 1 - a is lam / (delta + lam)
        residual = lam / (eigenvalues + lam)
        error = -residual[:, None] * Z if shift is None else shift - residual[:, None] * Z
        return xp.concat([basis[:, 1:], xp.reshape(error, (-1, 1))], axis=1), filters.T

    return _triangles(columns, lams, n, c)


def risk_at_points(
    eigenvalues: Any, Z: Any, projected: Any, truth: Any, *, lams: np.ndarray, steps: int
) -> RiskTriangles:
    """Risk at new points, from their kernel values with the eigenvectors.

    Parameters
    ----------
    eigenvalues : array (k,)
    Z : array (k, c)
        V'F: the expected targets in the eigenbasis.
    projected : array (m, k)
        kappa(X_new, X) V.
    truth : array (m, c)
        F_new, what predictions are compared with.
    lams : array (L,)
    steps : int
        T.

    Returns
    -------
    RiskTriangles
        In the library of `eigenvalues`.

    Notes
    -----
    m k L T c multiplications, in memory m c T numbers for one lam.

    References
    ----------
    For linear features, one lam and two steps: Das and Sanghavi (2023). Pareek, Du and Oh (2024) for the
    joint optimum of the same quadratic form.

    Examples
    --------
    One eigenvalue 1, lam = 1 and f = 2 there: step 1 predicts 1, step 2 with alpha = 0 predicts 1/2.

    >>> import numpy as np
    >>> one = np.ones(1)
    >>> triangles = risk_at_points(
    ...     one, 2 * one[:, None], one[:, None], 2 * one[:, None], lams=one, steps=2
    ... )
    >>> triangles.grid(np.zeros(1), std=1.0).bias.round(12), triangles.grid(np.zeros(1), 1.0).variance
    (array([[[1.  , 2.25]]]), array([[[0.25  , 0.0625]]]))
    """
    xp = compat.array_namespace(eigenvalues)
    (m, k), c = projected.shape, Z.shape[1]
    norms = xp.sqrt(
        xp.sum(projected * projected, axis=0)
    )  # (k,): sum_x P_k(x)^2 C_k^2 is all it takes

    def columns(lam: float) -> tuple[Any, Any]:
        filters = step_dual_filters(eigenvalues, lam, steps)  # (T, k)
        dual = xp.permute_dims(filters[..., None] * Z, (1, 2, 0))  # (k, c, T)
        basis = xp.reshape(projected @ xp.reshape(dual, (k, c * steps)), (m * c, steps))
        return step_columns(basis, xp.reshape(truth, (m * c,))), norms[:, None] * filters.T

    return _triangles(columns, lams, m, c)


def _triangles(
    columns: Callable[[float], tuple[Any, Any]], lams: np.ndarray, rows: int, outputs: int
) -> RiskTriangles:
    """From the columns of the bias (rows outputs, T) and, as u_1, D_1, .., the noise (k, T) of a lam."""
    bias, variance = [], []
    for lam in lams:
        bias_columns, noise = columns(float(lam))
        xp = compat.array_namespace(bias_columns)
        zeros = xp.zeros((noise.shape[0],), dtype=noise.dtype, device=compat.device(noise))
        bias.append(merge_rows(None, bias_columns) / math.sqrt(rows * outputs))
        variance.append(merge_rows(None, step_columns(noise, zeros)) / math.sqrt(rows))
    return RiskTriangles(xp.stack(bias), xp.stack(variance))
