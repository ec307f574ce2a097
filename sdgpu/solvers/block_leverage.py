"""Leave-one-out of a feature model, a block of rows at a time.

In the basis of all eigenvectors of the smoother row i of the features is U_i = phi_i V diag(delta)^-1/2, so
(H^q Y)_i = U_i a^q Z and (H^q)_ii = sum_j U_ij^2 a_j^q: what :mod:`sdgpu.distill.leave_one_out` needs of a
row, it has from the row and k numbers. An intercept is one eigenvector more, of equal entries, with a
shrinkage of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.distill.filters import flat_product
from sdgpu.distill.leave_one_out import leave_one_out
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["BlockLeverage", "to_eigenvectors"]

NOISE = 1e-8  # by which the squares of a row of orthonormal vectors may be beyond 1 in float64


@dataclass(frozen=True, eq=False)
class BlockLeverage:
    """What a block of rows says of the fits without each of them.

    Attributes
    ----------
    spectrum : Spectrum
        Of the feature model.
    rows : array (b, k)
        S U, float32 or float64: products are in that precision.
    targets : array (b, c)
        S Y.
    weights : array (b,) or None
        Rows of weight 0 are those of no fit: S is 1 there, and their leverage 0.
    constant : array (b,)
        The part of H_ii that an intercept has, at every power.
    """

    spectrum: Spectrum
    rows: Any
    targets: Any
    constant: Any
    weights: Any = None

    @classmethod
    def of(cls, solution: Any, U: Any, Y: Any, weights: Any = None) -> BlockLeverage:
        """Of a :class:`~sdgpu.solvers.feature_solution.FeatureSolution`, from rows of U and targets.

        Both less their means with an intercept; U is phi times :func:`to_eigenvectors`. With weights (b,)
        rows, targets and what is left of them are those of weighted rows, S times as large.
        """
        share = 1 / solution.weight if solution.intercept else 0.0
        if weights is None:
            return cls(solution.spectrum, U, Y, share + 0 * Y[:, 0])
        roots = _roots(weights)
        rows = U * compat.array_namespace(weights).astype(roots, U.dtype)
        return cls(solution.spectrum, rows, Y * roots, share * weights, weights)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        if self.weights is None:
            return float(self.targets.shape[0])
        return float(compat.array_namespace(self.weights).sum(self.weights))

    def values(self, weighted: Any) -> Any:
        """Values (.., b, c) of the rows from those of weighted rows."""
        return weighted if self.weights is None else weighted / _roots(self.weights)

    def counted(self, weighted: Any) -> Any:
        """The same with 0 in rows of weight 0."""
        if self.weights is None:
            return weighted
        xp = compat.array_namespace(weighted)
        return weighted * xp.astype(self.weights > 0, weighted.dtype)[:, None]

    @cached_property
    def squares(self) -> Any:
        """U_ij^2 of weighted rows."""
        return self.counted(self.rows * self.rows)

    @cached_property
    def outside(self) -> Any:
        """1 - sum_j U_ij^2 less the constant, (b,): what no feature reaches."""
        delta, squares = self.spectrum.eigenvalues, self.squares
        xp = compat.array_namespace(delta)
        outside = 1 - xp.sum(squares, axis=1, dtype=delta.dtype) - self.constant
        # 0 to rounding; of float32 features eigenvectors below their rounding may add up to more than 1
        return xp.where(outside < -NOISE, outside, xp.clip(outside, 0.0, None))

    def steps(self, lams: np.ndarray, steps: int) -> Any:
        """Leave-one-out predictions of u_1 .. u_T at the rows, (L, T, b, c).

        Raises
        ------
        ValueError
            If a row determines itself.

        Notes
        -----
        2 b k L T (c + 1) multiplications.
        """
        delta, Z = self.spectrum.eigenvalues, self.spectrum.Z
        xp, lam = compat.array_namespace(delta), self._column(lams)
        a = delta / (delta + lam)  # (L, k)
        powers = [a]
        for _ in range(steps - 1):
            powers.append(powers[-1] * a)
        filters = xp.stack(powers, axis=1)[..., None]  # (L, T, k, 1)
        fitted = _product(self.rows, filters * Z)
        rest = self.rests(lams)
        first = (1 - rest)[:, None, :, None]  # H_ii
        higher = _product(self.squares, filters[:, 1:, ...]) + self.constant[:, None]
        diagonal = xp.concat([xp.ones_like(first), first, higher], axis=1)
        truth = xp.broadcast_to(self.targets, (len(lams), 1, *self.targets.shape))
        return leave_one_out(xp.concat([truth, fitted], axis=1), diagonal, rest[..., None])

    def ridge_errors(self, lams: np.ndarray) -> Any:
        """y - f of ridge alone at the rows, each without itself, (L, b, c); b k L (c + 1) multiplications.

        Raises
        ------
        ValueError
            If a row determines itself.
        """
        delta = self.spectrum.eigenvalues
        filters = (delta / (delta + self._column(lams)))[..., None]
        fitted = _product(self.rows, filters * self.spectrum.Z)
        return (self.targets - fitted) / self.rests(lams)[..., None]

    def rests(self, lams: np.ndarray) -> Any:
        """1 - H_ii, (L, b), by its own sum.

        Raises
        ------
        ValueError
            If a row determines itself.
        """
        delta, squares = self.spectrum.eigenvalues, self.squares
        xp, lam = compat.array_namespace(delta), self._column(lams)
        rest = _product(squares, (lam / (delta + lam))[..., None])[..., 0] + self.outside
        if not float(xp.min(rest)) > 1e-14:
            row = int(xp.argmin(rest)) % int(squares.shape[0])
            raise ValueError(
                f"row {row} of a block determines itself (leverage 1): without it nothing is known of it; "
                "raise lam or remove the row"
            )
        return rest

    def _column(self, lams: np.ndarray) -> Any:
        delta = self.spectrum.eigenvalues
        xp = compat.array_namespace(delta)
        return xp.asarray(lams, dtype=delta.dtype, device=compat.device(delta))[:, None]


def to_eigenvectors(spectrum: Spectrum) -> Any:
    """V diag(delta)^-1/2 (k, k): features times it are rows of the eigenvectors; 0 where delta is."""
    delta = spectrum.eigenvalues
    xp = compat.array_namespace(delta)
    ones = xp.ones_like(delta)
    return spectrum.basis * xp.where(delta > 0, ones / xp.where(delta > 0, delta, ones), 0 * ones)


def _roots(weights: Any) -> Any:
    xp = compat.array_namespace(weights)
    return xp.sqrt(xp.where(weights > 0, weights, xp.ones_like(weights)))[:, None]


def _product(rows: Any, columns: Any) -> Any:
    """rows (b, k) times columns (.., k, c) in the precision of the rows, (.., b, c) in that of the columns.

    Columns are brought to a size of 1 before: high powers of small shrinkages would leave float32.
    """
    xp = compat.array_namespace(columns)
    if rows.dtype == columns.dtype:
        return flat_product(rows, columns)
    size = xp.max(xp.abs(columns), axis=-2, keepdims=True)
    size = xp.where(size > 0, size, xp.ones_like(size))
    product = flat_product(rows, xp.astype(columns / size, rows.dtype))
    return xp.astype(product, columns.dtype) * size
