"""Kernels of histograms, rows of numbers >= 0: chi-squared and intersection.

Their statistic is a sum over coordinates of a term of two numbers
(:mod:`sdgpu.kernels.coordinate_sums`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat as compat

from sdgpu.backend.checks import positive
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.elementwise import exp2_
from sdgpu.kernels.kernel import Profile, lengthscales, scaled_rows
from sdgpu.kernels.stationary import ones

__all__ = ["AdditiveChiSquared", "ChiSquared", "HistogramIntersection"]


@dataclass(frozen=True)
class _SumOfBins(Profile):
    """What the two that are sums over coordinates share: the statistic is the value."""

    lengthscale: float | Sequence[float] | None = None
    distance: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        _require_nonnegative(self, X)
        values = scaled_rows(X, None, self.lengthscale)
        return Rows(values, values)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return tile

    def diagonal(self, rows: Rows) -> Any:
        return compat.array_namespace(rows.left).sum(rows.left, axis=1)


@dataclass(frozen=True)
class HistogramIntersection(_SumOfBins):
    """sum_j min(x_j, x'_j) of nonnegative rows: what two histograms share.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first: weights of bins are its inverses.

    Raises
    ------
    ValueError
        For rows with negative entries, of which it is not positive semi-definite.

    Notes
    -----
    n^2 d / 2 minima: dearer than kernels of one product.

    References
    ----------
    Swain and Ballard (1991); Barla, Odone and Verri (2003).

    Examples
    --------
    >>> import numpy as np
    >>> HistogramIntersection()(np.array([[2.0, 1.0]]), np.array([[1.0, 3.0]]))
    array([[2.]])
    """

    statistic: ClassVar[str] = "min"


@dataclass(frozen=True)
class AdditiveChiSquared(_SumOfBins):
    """sum_j 2 x_j x'_j / (x_j + x'_j) of nonnegative rows, 0 where both are 0.

    It is (|x|_1 + |x'|_1 - chi2) / 2 with chi2 = sum_j (x_j - x'_j)^2 / (x_j + x'_j); scikit-learn's
    additive_chi2_kernel is -chi2, which is positive semi-definite on sums to 0 only.

    Parameters
    ----------
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first: weights of bins are its inverses.

    Raises
    ------
    ValueError
        For rows with negative entries.

    References
    ----------
    Vedaldi and Zisserman (2012), Table 1.

    Examples
    --------
    >>> import numpy as np
    >>> AdditiveChiSquared()(np.array([[2.0, 0.0]]), np.array([[2.0, 3.0]]))
    array([[2.]])
    """

    statistic: ClassVar[str] = "harmonic"


@dataclass(frozen=True)
class ChiSquared(Profile):
    """exp(-gamma sum_j (x_j - x'_j)^2 / (x_j + x'_j)) of nonnegative rows, 0 / 0 being 0.

    Parameters
    ----------
    gamma : float, default 1
        > 0.
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first: weights of bins are its inverses.

    Raises
    ------
    ValueError
        For rows with negative entries.

    Notes
    -----
    n^2 d / 2 quotients: dearer than kernels of one product.

    References
    ----------
    Zhang, Marszalek, Lazebnik and Schmid (2007); scikit-learn's chi2_kernel.

    Examples
    --------
    >>> import numpy as np
    >>> ChiSquared(gamma=0.5)(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).round(6)
    array([[0.367879]])
    """

    gamma: float = 1.0
    lengthscale: float | Sequence[float] | None = None
    statistic: ClassVar[str] = "chi2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        _require_nonnegative(self, X)
        # not times gamma: differences of the numbers as they are have no rounding
        values = scaled_rows(X, None, self.lengthscale)
        return Rows(values, values)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        tile *= -self.gamma * math.log2(math.e)
        return exp2_(tile)

    def rounding(self, rows: Rows) -> float:
        bound = super().rounding(rows)
        if self.lengthscale is None or not len(rows):
            return bound
        xp = compat.array_namespace(rows.left)
        return bound + 2 * self.gamma * float(xp.max(xp.sum(rows.left, axis=1)))

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


def _require_nonnegative(kernel: Profile, X: Any) -> None:
    xp = compat.array_namespace(X)
    lowest = float(xp.min(X)) if compat.size(X) else 0.0
    if lowest < 0:
        raise ValueError(
            f"{type(kernel).__name__} is a kernel of nonnegative rows, such as histograms, but X reaches "
            f"down to {lowest:g}: shift or square X, or use another kernel, such as sdgpu.Laplacian"
        )
