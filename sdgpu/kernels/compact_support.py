"""Kernels that are exactly 0 beyond a radius: most of the entries of K are, where rows are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.backend.checks import integer
from sdgpu.kernels.augmented_rows import Rows, distance_rows
from sdgpu.kernels.elementwise import clip_, root, sqrt_, whole_power, without_subnormals
from sdgpu.kernels.kernel import Profile, lengthscales, scaled_rows
from sdgpu.kernels.stationary import ones

__all__ = ["Wendland"]

HIGHEST = 3  # order


@dataclass(frozen=True)
class Wendland(Profile):
    """Wendland's polynomial of r = |x - x'| / lengthscale in [0, 1], and exactly 0 beyond.

    With l = floor(dimension / 2) + order + 1 and u = max(1 - r, 0) it is

    ======  ==================================================================================
    order   value
    ======  ==================================================================================
    0       u^l
    1       u^(l+1) (1 + (l+1) r)
    2       u^(l+2) (3 + (3l+6) r + (l^2+4l+3) r^2) / 3
    3       u^(l+3) (15 + (15l+45) r + (6l^2+36l+45) r^2 + (l^3+9l^2+23l+15) r^3) / 15
    ======  ==================================================================================

    Parameters
    ----------
    order : {0, 1, 2, 3}, default 1
        It is 2 order times differentiable at 0.
    lengthscale : float or sequence of d floats, default 1
        The radius of its support.
    dimension : int, default 3
        It is positive definite for rows of up to so many features.

    Raises
    ------
    TypeError, ValueError
        For an order or dimension out of range, and for rows with more features.

    Notes
    -----
    :class:`sdgpu.operators.SparseOperator` holds the entries that are not 0 alone.

    References
    ----------
    Wendland (1995); Rasmussen and Williams (2006), equation (4.21).

    Examples
    --------
    >>> import numpy as np
    >>> Wendland()(np.array([[0.0], [0.5], [1.0]])).round(6)
    array([[1.    , 0.1875, 0.    ],
           [0.1875, 1.    , 0.1875],
           [0.    , 0.1875, 1.    ]])
    """

    order: int = 1
    lengthscale: float | Sequence[float] = 1.0
    dimension: int = 3

    def __post_init__(self) -> None:
        if integer("order", self.order, 0) > HIGHEST:
            raise ValueError(f"order={self.order} has no formula here: use 0, 1, 2 or 3")
        if self.lengthscale is None:
            raise ValueError("lengthscale=None: give a number > 0 or one per feature")
        object.__setattr__(self, "order", int(self.order))
        object.__setattr__(self, "dimension", integer("dimension", self.dimension, 1))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        return self.in_ball(X, centre), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return distance_rows(self.in_ball(X, centre))

    def in_ball(self, X: Any, centre: Any) -> Any:
        if X.shape[1] > self.dimension:
            raise ValueError(
                f"Wendland(dimension={self.dimension}) is positive definite for rows of up to "
                f"{self.dimension} features, the data have {X.shape[1]}: use dimension={X.shape[1]}"
            )
        return scaled_rows(X, centre, self.lengthscale)

    @property
    def exact_near(self) -> bool:
        return self.order == 0

    @property
    def _exponent(self) -> int:
        """That of u: l + order."""
        return self.dimension // 2 + 2 * self.order + 1

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        u = clip_(1.0 - sqrt_(clip_(tile, 0.0, None)), 0.0, None)
        r = 1.0 - u  # at most 1, so that no power leaves the range
        falling = whole_power(u, self._exponent)
        low = self._exponent - self.order  # l
        coefficients = {
            0: (),
            1: (low + 1,),
            2: (low + 2, (low * low + 4 * low + 3) / 3),
            3: (
                low + 3,
                (6 * low**2 + 36 * low + 45) / 15,
                (low**3 + 9 * low**2 + 23 * low + 15) / 15,
            ),
        }[self.order]
        if coefficients:
            falling *= _horner(r, (1.0, *coefficients))
        return without_subnormals(falling)

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        low, k = self._exponent - self.order, self.order
        if k:  # - phi' / r is the function of an order less, for two dimensions more
            lower = Wendland(k - 1, 1.0, self.dimension + 2).profile(tile * 1.0, None, None)
            return lower * (-0.5 * (2 * k + low) * (2 * k + low - 1) / (2 * k - 1)), None
        xp = compat.array_namespace(tile)
        r = root(clip_(tile * 1.0, 0.0, None))
        apart, u = r > 0, clip_(1.0 - r, 0.0, None)
        nonzero = xp.where(apart, r, xp.ones_like(r))
        falling = whole_power(u, low - 1) if low > 1 else xp.astype(u > 0, u.dtype)
        return xp.where(apart, -low * falling / (2 * nonzero), 0 * r), None

    def rounding(self, rows: Rows) -> float:
        # at r = 0 the slope in r^2 is that of a binomial coefficient
        return super().rounding(rows) * (1.0 + self._exponent * (self._exponent + 1) / 2)

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


def _horner(r: Any, coefficients: tuple[float, ...]) -> Any:
    """The polynomial of r with the coefficients of rising powers, two at least, in an array of its own."""
    value = r * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        value += coefficient
        value *= r
    value += coefficients[0]
    return value
