"""Kernels of inner products and angles: linear, polynomial, cosine and arc-cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.checks import integer, positive
from sdgpu.kernels.base import Kernel, lengthscales, scaled_rows, set_zero_diagonal
from sdgpu.kernels.statistics import Rows, inner, squared_distance

__all__ = ["ArcCosine", "Cosine", "Linear", "Polynomial"]


@dataclass(frozen=True)
class Linear(Kernel):
    """x . x': ridge regression without an intercept.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    lengthscale: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _plain_rows(X, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        return inner(a, b)

    def diagonal(self, rows: Rows) -> Any:
        return rows.norms


@dataclass(frozen=True)
class Polynomial(Kernel):
    """(gamma x . x' + coef0)^degree.

    Parameters
    ----------
    degree : int, default 3
        >= 1.
    gamma : float, default 1
        > 0.
    coef0 : float, default 1
        >= 0, which keeps it positive semi-definite.
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    degree: int = 3
    gamma: float = 1.0
    coef0: float = 1.0
    lengthscale: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", integer("degree", self.degree, 1))
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "coef0", positive("coef0", self.coef0, zero=True))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _plain_rows(X, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        tile = inner(a, b)
        tile *= self.gamma
        tile += self.coef0
        return tile**self.degree

    def diagonal(self, rows: Rows) -> Any:
        return (self.gamma * rows.norms + self.coef0) ** self.degree


@dataclass(frozen=True)
class Cosine(Kernel):
    """x . x' / (|x| |x'|); 0 where a row is 0.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    lengthscale: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _unit_rows(X, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        return inner(a, b)

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.values)
        return xp.astype(rows.norms > 0, rows.values.dtype)


@dataclass(frozen=True)
class ArcCosine(Kernel):
    """Arc-cosine kernel of degree 0, 1 or 2: |x|^q |x'|^q J_q(theta) / pi.

    J_0 = pi - theta, J_1 = sin theta + (pi - theta) cos theta,
    J_2 = 3 sin theta cos theta + (pi - theta) (1 + 2 cos^2 theta), theta the angle of x and x'.

    Parameters
    ----------
    degree : {0, 1, 2}, default 1
        1 is the kernel of one wide layer of ReLU units.
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.

    Notes
    -----
    The angle comes from the chord of the two unit rows, theta = 2 atan2(|u - u'|, |u + u'|), which
    keeps the digits that arccos loses for nearly parallel rows. A row of zeros is taken at a right
    angle to everything, itself included.

    References
    ----------
    Cho and Saul (2009), equations (3)-(6).
    """

    degree: int = 1
    lengthscale: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        if integer("degree", self.degree, 0) > 2:
            raise ValueError(f"degree={self.degree} has no closed form here: use 0, 1 or 2")
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _unit_rows(X, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        # degree 0 has a kink at theta = 0, so near pairs need their chord to full precision
        chord = squared_distance(a, b, exact_near=self.degree == 0)
        xp = compat.array_namespace(chord)
        if same:
            chord = set_zero_diagonal(chord)
        zero = (a.norms == 0)[:, None] | (b.norms == 0)[None, :]
        chord = xp.where(zero, xp.asarray(2.0, dtype=chord.dtype), xp.clip(chord, 0, 4))
        theta = 2 * xp.atan2(xp.sqrt(chord), xp.sqrt(4 - chord))
        value = self._profile(xp, theta)
        if self.degree:
            lengths = xp.sqrt(a.norms)[:, None] * xp.sqrt(b.norms)[None, :]
            value *= lengths**self.degree
        return value

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.values)
        if self.degree == 0:
            one = xp.ones((len(rows),), dtype=rows.values.dtype, device=compat.device(rows.values))
            return xp.where(rows.norms == 0, one / 2, one)
        return rows.norms**self.degree * (1.0 if self.degree == 1 else 3.0)

    def _profile(self, xp: Any, theta: Any) -> Any:
        away = math.pi - theta
        if self.degree == 0:
            return away / math.pi
        cosine = xp.cos(theta)
        if self.degree == 1:
            return (xp.sin(theta) + away * cosine) / math.pi
        return (3 * xp.sin(theta) * cosine + away * (1 + 2 * cosine * cosine)) / math.pi


def _plain_rows(X: Any, lengthscale: Any) -> Rows:
    values = scaled_rows(X, None, lengthscale)
    return Rows(values, norms=compat.array_namespace(values).sum(values * values, axis=1))


def _unit_rows(X: Any, lengthscale: Any) -> Rows:
    values = scaled_rows(X, None, lengthscale)
    xp = compat.array_namespace(values)
    norms = xp.sum(values * values, axis=1)
    length = xp.sqrt(xp.where(norms > 0, norms, xp.ones_like(norms)))
    unit = values / length[:, None]
    return Rows(unit, squares=xp.sum(unit * unit, axis=1), norms=norms)
