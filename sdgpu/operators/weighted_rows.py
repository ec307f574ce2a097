"""Rows with weights, and an intercept: the kernel matrix S K S between projections.

Minimising sum_i w_i (f(x_i) + b - y_i)^2 + lam ||f||^2 is kernel ridge regression of

    A = P S K S P,    S = diag(w)^1/2,    P = I - q q',    q = S 1 / ||S 1||

with the targets P S Y; P = I without an intercept b, which no penalty holds down. Solvers, filters and
certificates are those of A. Its coefficients c are S P c of the rows, the predictions

    f(x) + b = (kappa(x, X) S P - m') c + mean(Y),    m = P S K S q / ||S 1||,

as b takes off the weighted mean of f at the training rows and puts that of Y in its place. Every step has
that mean, so distilled targets P S u are A c of the step before, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.cached import cached
from sdgpu.backend.sharded_arrays import is_sharded
from sdgpu.operators.expansion import Expansion, expansion_of
from sdgpu.operators.operator import ChangedOperator, CrossOperator, MatrixOperator, Operator
from sdgpu.operators.slopes import Slopes, slopes_of
from sdgpu.operators.tiled import TiledOperator

__all__ = ["RowWeighting", "WeightedCross", "WeightedDense", "WeightedOperator", "WeightedSlopes"]

BLOCK = 2**16  # numbers of K that are changed at a time
FEW = 4000  # rows whose kernel values are soon made by one thread


@dataclass(frozen=True, eq=False)
class RowWeighting:
    """S and P.

    Attributes
    ----------
    roots : array (n,)
        Square roots of the weights: the diagonal of S. Of rows on several ranks sharded like these.
    intercept : bool
    """

    roots: Any
    intercept: bool

    def on(self, backend: Backend) -> RowWeighting:
        """The same on a device."""
        return RowWeighting(backend.asarray(self.roots), self.intercept)

    @cached
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.roots @ self.roots)

    @cached
    def absent(self) -> np.ndarray:
        """Rows of weight 0: they are left out of the fit."""
        return np.flatnonzero(to_numpy(self.roots == 0))

    @cached
    def weighted(self) -> bool:
        """Whether weights differ from 1."""
        return bool(compat.array_namespace(self.roots).any(self.roots != 1))

    @cached
    def unit(self) -> Any:
        """q (n,)."""
        return self.roots / self.total**0.5

    def projected(self, V: Any) -> Any:
        """P V of (..., n, c)."""
        if not self.intercept:
            return V
        xp, q = compat.array_namespace(V), self.unit[:, None]
        for _ in range(2):  # once more: what rounding leaves
            V = V - q * xp.sum(q * V, axis=-2, keepdims=True)
        return V

    def coefficients(self, V: Any) -> Any:
        """S P V: coefficients of the rows from those of A, (..., n, c)."""
        return self.roots[:, None] * self.projected(V)

    def values(self, V: Any) -> Any:
        """S^-1 V of (..., n, c), 0 for rows of weight 0: values at the rows from those of A."""
        xp, roots = compat.array_namespace(V), self.roots[:, None]
        present = roots > 0
        return xp.where(present, V / xp.where(present, roots, xp.ones_like(roots)), 0 * V)

    def left_out_collapse(self, targets: Any) -> Any:
        """What is left of targets P S Y where each row is predicted by the mean of the others, or by 0."""
        if not self.intercept:
            return targets
        return targets / (1 - self.unit * self.unit)[:, None]

    def targets(self, Y: Any) -> tuple[Any, Any]:
        """P S Y, and the weighted mean of Y (c,) where there is an intercept."""
        if not self.intercept:
            return self.roots[:, None] * Y, None
        mean = (self.unit * self.unit) @ Y
        return self.projected(self.roots[:, None] * (Y - mean)), mean


@dataclass(frozen=True, eq=False)
class WeightedOperator(ChangedOperator):
    """A, from K as any operator.

    Attributes
    ----------
    operator : Operator
        K.
    rows : RowWeighting
    backend : Backend
        Whose arrays are multiplied.
    means : dict of str to array (n,)
        :attr:`mean_product` of the same rows by the precision of K, on the host: it costs a pass over K,
        once for all operators that share it.
    precision : str
    """

    operator: Operator
    rows: RowWeighting
    backend: Backend
    means: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    precision: str = "float64"

    def matmat(self, V: Any) -> Any:
        """A V: (n, c) -> (n, c)."""
        inner = self.rows.coefficients(self.backend.asarray(V))
        product = self.backend.asarray(self.operator.matmat(inner))
        return self.rows.projected(self.rows.roots[:, None] * product)

    def cross(self, X_new: Any) -> WeightedCross:
        """kappa(X_new, X) S P - 1 m' as something that multiplies (m, n)."""
        return WeightedCross(self.operator.cross(X_new), self)

    def expansion(self, V: Any) -> Expansion:
        """The function with coefficients V (n, c) of A, less the mean of Y."""
        inner = expansion_of(self.operator, self.rows.coefficients(V))
        return replace(inner, constant=inner.constant - to_numpy(self.mean_part(V)))

    def mean_part(self, V: Any) -> Any:
        """m' V (c,): what its predictions from coefficients V (n, c) of A are less; 0 without intercept."""
        if not self.rows.intercept:
            return self.backend.xp.zeros(
                V.shape[-1], dtype=self.backend.xp.float64, device=self.backend.device
            )
        return self.mean_row @ V

    def slopes(self, X_new: Any) -> WeightedSlopes:
        """Derivatives of the rows of :meth:`cross`; m is the same for all of them."""
        return WeightedSlopes(slopes_of(self.operator, X_new), self.rows)

    def diag(self) -> Any:
        """Diagonal of A, (n,)."""
        rows, xp = self.rows, self.backend.xp
        diagonal = rows.roots * rows.roots * self.backend.asarray(self.operator.diag())
        if not rows.intercept:
            return diagonal
        q, along = rows.unit, self.mean_product
        left = diagonal - 2 * q * along + q * q * xp.sum(q * along)
        return xp.clip(left, 0.0, None)

    def columns(self, idx: Any) -> Any:
        """Columns of A, (n, len(idx))."""
        rows, xp = self.rows, self.backend.xp
        index = np.asarray(to_numpy(idx), dtype=np.int64)
        chosen = xp.asarray(index, device=self.backend.device)
        right = xp.take(rows.roots, chosen, axis=0)
        block = self.backend.asarray(self.operator.columns(index)) * right[None, :]
        block = rows.roots[:, None] * block
        if not rows.intercept:
            return block
        along = self.mean_product[:, None] * xp.take(rows.unit, chosen, axis=0)[None, :]
        return rows.projected(block - along)

    @cached
    def mean_product(self) -> Any:
        """S K S q (n,), from one product with K."""
        if self.precision not in self.means:
            inner = (self.rows.roots * self.rows.unit)[:, None]
            product = self.rows.roots * self.backend.asarray(self._once(inner))[:, 0]
            self.means[self.precision] = to_numpy(product)
        return self.backend.spread(self.means[self.precision], 0)

    def _once(self, V: Any) -> Any:
        return self.operator.matmat(V)

    @cached
    def mean_row(self) -> Any:
        """m (n,): what every row of kappa(X_new, X) S P is less."""
        return self.rows.projected(self.mean_product[:, None])[:, 0] / self.rows.total**0.5

    @cached
    def mean_variance(self) -> float:
        """Of the weighted mean of f, q' S K S q / ||S 1||^2."""
        xp = self.backend.xp
        return float(xp.sum(self.rows.unit * self.mean_product)) / self.rows.total

    def at_rows(self, idx: np.ndarray, V: Any) -> Any:
        """Predictions (..., len(idx), c) at some training rows, less the mean, of coefficients V of A."""
        xp = self.backend.xp
        inner = self.rows.coefficients(V)
        left = self.backend.asarray(self.operator.columns(idx)).T @ inner
        if not self.rows.intercept:
            return left
        return left - xp.sum(self.mean_row[:, None] * V, axis=-2, keepdims=True)


@dataclass(frozen=True, eq=False)
class WeightedDense(WeightedOperator):
    """A from a stored K: what an eigendecomposition asks beside."""

    operator: MatrixOperator

    @property
    def kernel(self) -> Any:
        """Of K."""
        return self.operator.kernel

    @property
    def X(self) -> Any:  # noqa: N802
        """Rows (n, d)."""
        return self.operator.X

    @property
    def given_dtype(self) -> str | None:
        """Of K, if it was given."""
        return self.operator.given_dtype

    def matmat_once(self, V: Any) -> Any:
        """A V without keeping K."""
        product = self.operator.matmat_once(self.rows.coefficients(V))
        return self.rows.projected(self.rows.roots[:, None] * product)

    def gram(self) -> Any:
        """A new A (n, n) that the caller may overwrite; :attr:`mean_product` comes with it."""
        K, roots, q = self.operator.gram(), self.rows.roots, self.rows.unit
        n, xp = self.n, self.backend.xp
        parts = list(slices(n, max(1, BLOCK // n)))
        for part in parts:
            K[part, :] = K[part, :] * (roots[part, None] * roots[None, :])
        if not self.rows.intercept:
            return K
        along = K @ q
        self.means[self.precision] = to_numpy(along)
        v = along - 0.5 * xp.sum(q * along) * q  # A = K - q v' - v q'
        for part in parts:
            K[part, :] = K[part, :] - (q[part, None] * v[None, :] + v[part, None] * q[None, :])
        return K

    def _once(self, V: Any) -> Any:
        """By all threads where that pays; nothing of n^2 numbers is kept, which nobody has planned."""
        if self.n <= FEW or self.is_precomputed or is_sharded(self.X):
            return self.operator.matmat_once(V)
        return TiledOperator(self.kernel, self.X, "float64", checked=True).matmat(V)

    def own_features(self) -> Any:
        """P S Phi (n, k) of the kernel's own features."""
        return self.rows.projected(self.rows.roots[:, None] * self.operator.own_features())

    @cached
    def difference_scale(self) -> float:
        """A bound on the part of S K S that goes with its mean."""
        if not self.rows.intercept:
            return 0.0
        return 2 * float(self.backend.xp.sum(self.rows.unit * self.mean_product))

    def rounding(self) -> float:
        """Bound on the relative error of an entry of A, over eps."""
        left, lost = float(self.backend.xp.max(self.diag())), self.difference_scale
        least = max(left, float(np.finfo(float).eps) * lost, 1e-300)
        return self.operator.rounding() * max(1.0, lost / least)


@dataclass(frozen=True, eq=False)
class WeightedCross:
    """kappa(X_new, X) S P - 1 m' (m, n): predictions less the mean of Y, from coefficients of A."""

    cross: CrossOperator
    fitted: WeightedOperator = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.cross.shape

    def blocks(self, entries: int = 2**22) -> Iterator[tuple[slice, Any]]:
        """Row blocks (b, n) of at most `entries` numbers, with the rows they stand for."""
        for part, block in self.cross.blocks(entries):
            if hasattr(block, "matmat"):  # of training rows on several ranks, which only multiply
                yield part, replace(self, cross=block)
            else:
                yield part, self._changed(block)

    def matmat(self, V: Any) -> Any:
        """The product with V: (n, c) -> (m, c)."""
        product = self.cross.matmat(self.fitted.rows.coefficients(V))
        return product - self.fitted.mean_row @ V if self.fitted.rows.intercept else product

    def __matmul__(self, V: Any) -> Any:
        return self.matmat(V)

    def diag(self) -> Any:
        """Variance of f(x) + b before any target is known, (m,): kappa(x, x) without an intercept."""
        diagonal, rows = self.fitted.backend.asarray(self.cross.diag()), self.fitted.rows
        if not rows.intercept:
            return diagonal
        weights = (rows.roots * rows.unit)[:, None] / rows.total**0.5
        along = self.fitted.backend.asarray(self.cross.matmat(weights))[:, 0]
        return diagonal - 2 * along + self.fitted.mean_variance

    def dense(self) -> Any:
        """The matrix (m, n)."""
        return self._changed(self.cross.dense())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(to_numpy(self.dense()), dtype=dtype)

    def _changed(self, block: Any) -> Any:
        rows = self.fitted.rows
        block = block * rows.roots[None, :]
        if not rows.intercept:
            return block
        return block - (block @ rows.unit)[:, None] * rows.unit[None, :] - self.fitted.mean_row


@dataclass(frozen=True, eq=False)
class WeightedSlopes:
    """Derivatives of kappa(x, X) S P by new rows x."""

    slopes: Slopes
    rows: RowWeighting

    def columns(self, V: Any) -> Any:
        """Of kappa(x, X) S P V: (n, r) -> (m, r, d)."""
        return self.slopes.columns(self.rows.coefficients(V))

    def pull_back(self, V: Any, G: Any) -> Any:
        """Of the sum of G * (kappa(x, X) S P V): (n, r), (m, r) -> (m, d)."""
        return self.slopes.pull_back(self.rows.coefficients(V), G)
