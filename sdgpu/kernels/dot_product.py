"""Kernels of inner products and angles: linear, polynomial, cosine, Tanimoto and arc-cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.checks import integer, positive
from sdgpu.backend.sparse_rows import is_csr, square_sums
from sdgpu.kernels.augmented_rows import (
    Rows,
    chords,
    distance_rows,
    inner_rows,
    reciprocal_sine,
    squares_of,
)
from sdgpu.kernels.elementwise import (
    atan2,
    can_choose,
    larger,
    root,
    smaller,
    sqrt_,
    where,
    whole_power,
)
from sdgpu.kernels.kernel import Profile, lengthscales, scaled_rows

__all__ = ["ArcCosine", "Cosine", "Linear", "Polynomial", "Tanimoto", "unit_rows"]


@dataclass(frozen=True)
class Linear(Profile):
    """x . x': ridge regression without an intercept.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    lengthscale: float | Sequence[float] | None = None
    distance: ClassVar[bool] = False
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        return scaled_rows(X, None, self.lengthscale), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return inner_rows(self.coordinates(X, centre)[0])

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return tile

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return compat.array_namespace(tile).ones_like(tile), None

    def diagonal(self, rows: Rows) -> Any:
        return rows.norms


@dataclass(frozen=True)
class Polynomial(Profile):
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
    distance: ClassVar[bool] = False
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", integer("degree", self.degree, 1))
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "coef0", positive("coef0", self.coef0, zero=True))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        return scaled_rows(X, None, self.lengthscale), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return inner_rows(self.coordinates(X, centre)[0])

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return (self.gamma * tile + self.coef0) ** self.degree

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        inner = self.gamma * tile + self.coef0
        return self.gamma * self.degree * inner ** (self.degree - 1), None

    def diagonal(self, rows: Rows) -> Any:
        return (self.gamma * rows.norms + self.coef0) ** self.degree


@dataclass(frozen=True)
class Cosine(Profile):
    """x . x' / (|x| |x'|); 0 where a row is 0.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    lengthscale: float | Sequence[float] | None = None
    distance: ClassVar[bool] = False
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        unit, norms, _ = unit_rows(X, self.lengthscale)
        return unit, norms

    def rows(self, X: Any, centre: Any) -> Rows:
        unit, norms = self.coordinates(X, centre)
        return replace(inner_rows(unit), norms=norms)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return tile

    @property
    def smooth_at_zero(self) -> bool:
        return False  # a jump

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return compat.array_namespace(tile).ones_like(tile), None

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.norms)
        return xp.astype(rows.norms > 0, rows.norms.dtype)


@dataclass(frozen=True)
class Tanimoto(Profile):
    """x . x' / (|x|^2 + |x'|^2 - x . x'); 0 where a row is 0.

    Of rows of zeros and ones (fingerprints) it is what both have over what one of them has: the index of
    Jaccard. It is positive semi-definite for rows of any numbers.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.

    Notes
    -----
    Evaluated as c q / (1 + q^2 - c q) with the cosine c of the two rows and the ratio q <= 1 of their
    lengths, which stays within the range of numbers.

    References
    ----------
    Ralaivola, Swamidass, Saigo and Baldi (2005), Section 5.

    Examples
    --------
    >>> import numpy as np
    >>> Tanimoto()(np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 1.0]])).round(6)
    array([[0.333333]])
    """

    lengthscale: float | Sequence[float] | None = None
    distance: ClassVar[bool] = False
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        unit, norms, largest = unit_rows(X, self.lengthscale)
        xp = compat.array_namespace(norms)
        # a row of zeros has the cosine 0 with all, whatever its length; eighth roots of the lengths of
        # float64 stay within the range of float32, to which tiles may round them
        lengths = xp.where(norms > 0, xp.sqrt(norms) * largest, xp.ones_like(norms))
        return replace(inner_rows(unit), norms=lengths**0.125)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        ratio = whole_power(smaller(a_norms, b_norms) / larger(a_norms, b_norms), 8)
        tile *= ratio
        return tile / (1.0 + ratio * ratio - tile)

    def rounding(self, rows: Rows) -> float:
        return super().rounding(rows) + 12.0

    def diagonal(self, rows: Rows) -> Any:
        units = squares_of(rows)  # 1, and 0 of a row of zeros
        return compat.array_namespace(units).astype(units > 0.5, units.dtype)


@dataclass(frozen=True)
class ArcCosine(Profile):
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
    takes_sparse = True

    def __post_init__(self) -> None:
        if integer("degree", self.degree, 0) > 2:
            raise ValueError(f"degree={self.degree} has no closed form here: use 0, 1 or 2")
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        unit, norms, largest = unit_rows(X, self.lengthscale)
        return unit, norms * largest * largest

    def rows(self, X: Any, centre: Any) -> Rows:
        unit, norms = self.coordinates(X, centre)
        return replace(distance_rows(unit), norms=norms)

    @property
    def defined_at_zero(self) -> bool:
        return self.degree > 0

    @property
    def exact_near(self) -> bool:
        return self.degree == 0

    @property
    def exact_opposite(self) -> bool:
        return self.degree == 0

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        # the statistic is the squared chord of the unit rows, |u - u'|^2 in [0, 4]
        if self.degree == 0:
            tile = self._right_angle_at_zero(tile, a_norms, b_norms)
        chord, across = chords(tile, marked=self.exact_opposite)
        across = 4.0 - chord if across is None else across
        value = self._angle(chord, across)
        if self.degree:
            lengths = root(a_norms) * root(b_norms)  # whose product may leave the range
            value = value * (lengths if self.degree == 1 else lengths * lengths)
        return value

    @property
    def smooth_at_zero(self) -> bool:
        return self.degree == 2

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        # by the squared chord, d theta = d chord / (2 sin theta), which J_1' and J_2' have too
        if self.degree == 0:
            tile = self._right_angle_at_zero(tile, a_norms, b_norms)
            return -reciprocal_sine(tile) / (2 * math.pi), None
        chord, _ = chords(tile, marked=False)
        theta = 2.0 * atan2(root(chord), root(4.0 - chord))
        p, lengths = a_norms, root(a_norms) * root(b_norms)
        nonzero = compat.array_namespace(p).where(p > 0, p, 1.0)
        if self.degree == 1:
            slope = -(math.pi - theta) / (2 * math.pi) * lengths
            return slope, self._angle(chord, 4.0 - chord) * lengths / (2 * nonzero)
        # the angle works in place
        slope = -2 * ArcCosine(1)._angle(chord * 1.0, 4.0 - chord) * lengths * lengths
        return slope, self._angle(chord, 4.0 - chord) * b_norms

    def rounding(self, rows: Rows) -> float:
        return super().rounding(rows) + 8.0 * self.degree

    def diagonal(self, rows: Rows) -> Any:
        xp = compat.array_namespace(rows.norms)
        if self.degree == 0:
            ones = xp.ones_like(rows.norms)
            return xp.where(rows.norms == 0, ones / 2, ones)
        return rows.norms**self.degree * (1.0 if self.degree == 1 else 3.0)

    def _angle(self, chord: Any, across: Any) -> Any:
        """J / pi from the squared chords |u - u'|^2 and |u + u'|^2: 2 sin and 2 cos of half the angle."""
        if self.degree == 0:
            return 1.0 - (2.0 / math.pi) * atan2(sqrt_(chord), sqrt_(across))
        cosine, sine = 1.0 - chord / 2, root(chord * across) / 2
        supplement = math.pi - 2.0 * atan2(sqrt_(chord), sqrt_(across))
        if self.degree == 1:
            return (sine + supplement * cosine) / math.pi
        return (3 * sine * cosine + supplement * (1 + 2 * cosine * cosine)) / math.pi

    def _right_angle_at_zero(self, chord: Any, a_norms: Any, b_norms: Any) -> Any:
        if not can_choose(chord):
            return chord  # KeOps refuses rows of zeros for degree 0
        return where((a_norms > 0) & (b_norms > 0), chord, 2.0)


def unit_rows(X: Any, lengthscale: Any = None) -> tuple[Any, Any, Any]:
    """Rows of length 1 (0 stays 0), their squared lengths before over scale^2, and that scale."""
    values = scaled_rows(X, None, lengthscale)
    if is_csr(values):
        return _unit_csr(values)
    xp = compat.array_namespace(values)
    # scaled by the largest entry first: squares of tiny or huge entries leave the range
    largest = xp.max(xp.abs(values), axis=1)
    largest = xp.where(largest > 0, largest, xp.ones_like(largest))
    values = values / largest[:, None]
    norms = xp.sum(values * values, axis=1)
    length = xp.sqrt(xp.where(norms > 0, norms, xp.ones_like(norms)))
    return values / length[:, None], norms, largest


def _unit_csr(values: Any) -> tuple[Any, Any, Any]:
    """The same of CSR rows."""
    largest = abs(values).max(axis=1).toarray().reshape(-1)
    largest = np.where(largest > 0, largest, 1)
    counts = np.diff(values.indptr)

    def by(rows: Any, numbers: Any) -> Any:
        return type(rows)(
            (rows.data / np.repeat(numbers, counts), rows.indices, rows.indptr), rows.shape
        )

    values = by(values, largest)
    norms = square_sums(values)
    return by(values, np.sqrt(np.where(norms > 0, norms, 1))), norms, largest
