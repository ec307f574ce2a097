"""Kernels of waves: periodic ones, and mixtures of spectral densities.

Angles are reduced to one turn in float64 before cosines and sines are taken, so rows may be many periods
apart; what is left is a product of augmented rows, as for other kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import array_api_compat as compat
import numpy as np

from sdgpu.backend.checks import positive
from sdgpu.backend.copying import without_caches
from sdgpu.kernels.augmented_rows import Rows, distance_rows
from sdgpu.kernels.columns import On
from sdgpu.kernels.elementwise import clip_, exp2_
from sdgpu.kernels.kernel import Kernel, Product, Profile, Sum, Wrapper
from sdgpu.kernels.row_scaling import of_features, one_or_each
from sdgpu.kernels.stationary import Gaussian, ones

__all__ = ["Periodic", "SpectralMixture"]

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Periodic(Profile):
    """exp(-2 sum_j sin^2(pi (x_j - x'_j) / period_j) / lengthscale_j^2).

    Parameters
    ----------
    period : float or sequence of d floats, default 1
        > 0.
    lengthscale : float or sequence of d floats, default 1
        > 0, on the circle: a multiple of period / (2 pi) in the data.

    Raises
    ------
    TypeError, ValueError
        For a period or lengthscale that is not > 0, or not one per feature.

    Notes
    -----
    The points (cos, sin)(2 pi x_j / period_j) / lengthscale_j have squared distances
    4 sum_j sin^2(..) / lengthscale_j^2, so the kernel is a Gaussian of 2 d features: one product.

    References
    ----------
    MacKay (1998), Introduction to Gaussian processes; Rasmussen and Williams (2006), equation (4.31).

    Examples
    --------
    >>> import numpy as np
    >>> Periodic(period=2.0)(np.array([[0.0], [1.0], [2.0]])).round(6)
    array([[1.      , 0.135335, 1.      ],
           [0.135335, 1.      , 0.135335],
           [1.      , 0.135335, 1.      ]])
    """

    period: float | Sequence[float] = 1.0
    lengthscale: float | Sequence[float] = 1.0
    sign: ClassVar[float] = -1.0
    copies: ClassVar[int] = 4  # a cosine and a sine for each feature
    divides_rows: ClassVar[bool] = False  # its length scale divides the points on circles

    def __post_init__(self) -> None:
        object.__setattr__(self, "period", one_or_each("period", self.period))
        object.__setattr__(self, "lengthscale", one_or_each("lengthscale", self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        xp = compat.array_namespace(X)
        wide = xp.astype(X, xp.float64, copy=False)
        period, width = (
            of_features(name, getattr(self, name), wide) for name in ("period", "lengthscale")
        )
        angles = xp.remainder(wide, period * xp.ones_like(wide)) * (2 * math.pi / period)
        # the statistic is -log2(e) / 2 times the squared distance: the profile is a single 2^t
        scale = math.sqrt(math.log2(math.e) / 2) / width
        points = xp.concat([xp.cos(angles) * scale, xp.sin(angles) * scale], axis=1)
        return xp.astype(points, X.dtype, copy=False), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return distance_rows(self.coordinates(X, centre)[0], self.sign)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return exp2_(clip_(tile, None, 0.0))

    def rounding(self, rows: Rows) -> float:
        if not len(rows):
            return 4.0
        # an angle is off by a few eps of a turn, and the point by so much of its radius
        xp = compat.array_namespace(rows.right)
        return super().rounding(rows) + 20.0 * float(xp.max(rows.right[:, -1])) ** 0.5

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@dataclass(frozen=True)
class Wave(Profile):
    """cos(2 pi frequency (x - x')) of one feature: the product of two points on a circle."""

    frequency: float
    distance: ClassVar[bool] = False
    copies: ClassVar[int] = 4

    def rows(self, X: Any, centre: Any) -> Rows:
        xp = compat.array_namespace(X)
        wide = xp.astype(X, xp.float64, copy=False)
        turns = (wide if centre is None else wide - centre) * self.frequency
        angles = xp.remainder(turns, xp.ones_like(turns)) * (2 * math.pi)
        points = xp.astype(xp.concat([xp.cos(angles), xp.sin(angles)], axis=1), X.dtype, copy=False)
        # in place of the lengths, which are 1, how far an angle is from the centre
        return Rows(points, points, norms=xp.astype(xp.abs(turns)[:, 0], X.dtype, copy=False))

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return tile

    def rounding(self, rows: Rows) -> float:
        turns = float(compat.array_namespace(rows.norms).max(rows.norms)) if len(rows) else 0.0
        return 16.0 + 16.0 * turns

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@dataclass(frozen=True)
class SpectralMixture(Wrapper):
    """sum_q weights_q prod_j exp(-2 pi^2 t_j^2 variances_qj) cos(2 pi t_j means_qj) with t = x - x'.

    Its spectral density is a mixture of Gaussians around +-means_q: any stationary kernel is near to one.

    Parameters
    ----------
    weights : sequence of Q floats
        >= 0, not all 0: the diagonal is their sum.
    means : sequence (Q, d), or of Q floats where d = 1
        Frequencies in turns per unit of a feature, >= 0.
    variances : sequence (Q, d), or of Q floats where d = 1
        Of the frequencies, > 0: component q has the length scales 1 / (2 pi sqrt(variances_q)).

    Raises
    ------
    TypeError, ValueError
        For what is no finite number or out of range; for another number of components or features in one
        of them than in the others; for data with another number of features.

    Notes
    -----
    A sum of products of a Gaussian with one product of rank two for each feature: a value costs Q (d + 1)
    products of few numbers. Fits of many components are for few features.

    References
    ----------
    Wilson and Adams (2013), equation (12).

    Examples
    --------
    >>> import numpy as np
    >>> kernel = SpectralMixture([1.0, 0.5], means=[0.0, 0.25], variances=[0.01, 0.001])
    >>> kernel(np.array([[0.0], [4.0]])).round(6)
    array([[1.5     , 0.407092],
           [0.407092, 1.5     ]])
    """

    weights: Sequence[float]
    means: Sequence[float] | Sequence[Sequence[float]]
    variances: Sequence[float] | Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=object)
        if weights.ndim != 1 or not weights.size:
            raise ValueError(f"weights must be one number a component, got shape {weights.shape}")
        checked = tuple(positive("weights", weight, zero=True) for weight in weights)
        if not any(checked):
            raise ValueError("weights are all 0: at least one must be > 0")
        object.__setattr__(self, "weights", checked)
        for name in ("means", "variances"):
            table = _table(name, getattr(self, name), len(checked))
            object.__setattr__(self, name, table)
        means, variances = (len(table[0]) for table in self.tables)
        if means != variances:
            raise ValueError(
                f"variances have {variances} features, means have {means}: give "
                "one number for each component and feature in both"
            )

    def __getstate__(self) -> dict[str, Any]:
        return without_caches(self)

    @property
    def tables(self) -> tuple[Table, Table]:
        """Means and variances (Q, d), whatever they were given as."""
        return cast("tuple[Table, Table]", (self.means, self.variances))

    @cached_property
    def kernel(self) -> Kernel:  # type: ignore[override]
        """The same as sums and products."""
        parts = zip(self.weights, *self.tables, strict=True)
        return Sum(tuple(weight * _component(mean, width) for weight, mean, width in parts))

    def rows(self, X: Any, centre: Any) -> Rows:
        self.require_features(int(X.shape[1]))
        return self.kernel.rows(X, centre)

    def require_features(self, d: int) -> None:
        """Raise ValueError unless its frequencies are of d features."""
        features = len(self.tables[0][0])
        if d != features:
            raise ValueError(
                f"means and variances have {features} features, but the data have {d}: give one "
                "number for each, or choose columns by sdgpu.On"
            )


def _component(means: tuple[float, ...], variances: tuple[float, ...]) -> Kernel:
    """exp(-2 pi^2 t_j^2 variances_j) cos(2 pi t_j means_j), multiplied over features j."""
    widths = tuple(variance**-0.5 for variance in variances)
    parts: list[Kernel] = [Gaussian(2 * math.pi**2, widths)]
    parts += [On(j, Wave(mean)) for j, mean in enumerate(means) if mean > 0]
    return parts[0] if len(parts) == 1 else Product(tuple(parts))


def _table(name: str, values: Any, count: int) -> Table:
    """Numbers (Q, d), of (Q,) for one feature: means >= 0, variances > 0."""
    try:
        host = np.asarray(values, dtype=object)
    except ValueError:  # NumPy's word for rows of different lengths
        host = np.empty(0)
    if host.ndim not in (1, 2) or not host.size:
        raise ValueError(f"{name} must be numbers (components, features), got {values!r}")
    if len(host) != count:
        raise ValueError(f"{name} has {len(host)} components, but weights has {count}")
    rows = host.reshape(count, -1)
    return tuple(tuple(positive(name, x, zero=name == "means") for x in row) for row in rows)
