"""Kernels of distance, with a length scale or one per feature: Gaussian, Laplacian, Matern and their like.

Data are centred before distances are taken, distances are clamped at 0 and are exactly 0 on the
diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import dtype_name, inputs
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import integer, number, positive
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sparse_rows import csr_rows, is_csr, is_sparse
from sdgpu.kernels.augmented_rows import Rows, distance_rows, product, recompute_near
from sdgpu.kernels.elementwise import clip_, exp2_, exp_, log1p_, sqrt_, without_subnormals
from sdgpu.kernels.kernel import Profile, column_means, lengthscales, scaled_rows

__all__ = [
    "Gaussian",
    "Laplacian",
    "Matern",
    "RationalQuadratic",
    "median_distance",
    "ones",
    "scale_gamma",
]

HALF_INTEGERS = tuple(
    p + 0.5 for p in range(101)
)  # beyond, float32 has no room between s^p and exp(-s)


@dataclass(frozen=True)
class Gaussian(Profile):
    """exp(-gamma |x - x'|^2), the kernel of the paper's example with gamma = 80.

    Parameters
    ----------
    gamma : float, default 1
        > 0. gamma = 1 / (2 sigma^2) for a width sigma.
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first; with one entry per feature (ARD) use gamma = 0.5.

    References
    ----------
    Borup and Andersen (2021), Section 4.5, which prints gamma = 1/80 for gamma = 80.

    Examples
    --------
    >>> import numpy as np
    >>> Gaussian(gamma=0.5)(np.array([[0.0], [2.0]]))
    array([[1.        , 0.13533528],
           [0.13533528, 1.        ]])
    """

    gamma: float = 1.0
    lengthscale: float | Sequence[float] | None = None
    sign: ClassVar[float] = -1.0
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        # the statistic is -gamma log2(e) |x - x'|^2: the profile is a single 2^t
        values = scaled_rows(X, centre, self.lengthscale)
        return values * math.sqrt(self.gamma * math.log2(math.e)), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return distance_rows(self.coordinates(X, centre)[0], self.sign)

    @property
    def distance_factor(self) -> tuple[str, float] | None:
        width = _one_width(self.lengthscale)
        return None if width is None else ("l2", -self.gamma * math.log2(math.e) / width**2)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return exp2_(clip_(tile, None, 0.0))

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return math.log(2) * self.profile(tile, None, None), None

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@dataclass(frozen=True)
class Laplacian(Profile):
    """exp(-gamma |x - x'|_1).

    Parameters
    ----------
    gamma : float, default 1
        > 0.
    lengthscale : float or sequence of d floats, optional
        The data are divided by it first.
    """

    gamma: float = 1.0
    lengthscale: float | Sequence[float] | None = None
    statistic: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        values = scaled_rows(X, centre, self.lengthscale)
        return values * (self.gamma * math.log2(math.e)), None

    def rows(self, X: Any, centre: Any) -> Rows:
        values, _ = self.coordinates(X, centre)
        return Rows(values, values)

    @property
    def distance_factor(self) -> tuple[str, float] | None:
        width = _one_width(self.lengthscale)
        return None if width is None else ("l1", self.gamma * math.log2(math.e) / width)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        return exp2_(-tile)

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        return -math.log(2) * self.profile(tile, None, None), None

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@dataclass(frozen=True)
class Matern(Profile):
    """Matern kernel of smoothness nu = p + 1/2 in r = |x - x'| / lengthscale: a polynomial times exp(-s).

    With s = sqrt(2 nu) r it is exp(-s) p! / (2p)! sum_k (2p - k)! / ((p - k)! k!) (2 s)^k, k = 0 .. p.
    nu = 1/2: exp(-r); nu = 3/2: (1 + s) exp(-s); nu = 5/2: (1 + s + s^2 / 3) exp(-s).

    Parameters
    ----------
    nu : float, default 1.5
        0.5, 1.5, 2.5 .. 100.5.
    lengthscale : float or sequence of d floats, default 1

    Raises
    ------
    TypeError, ValueError
        For another nu, or a lengthscale that is not > 0.

    Notes
    -----
    nu - 1/2 multiplications and additions a value. As nu grows it tends to ``Gaussian(0.5, lengthscale)``,
    from which it differs by about 1 / nu.

    References
    ----------
    Rasmussen and Williams (2006), Section 4.2, equation (4.16).

    Examples
    --------
    >>> import numpy as np
    >>> Matern(3.5)(np.array([[0.0], [1.0]])).round(6)
    array([[1.      , 0.544942],
           [0.544942, 1.      ]])
    """

    nu: float = 1.5
    lengthscale: float | Sequence[float] = 1.0
    takes_sparse = True

    def __post_init__(self) -> None:
        if number("nu", self.nu) not in HALF_INTEGERS:
            raise ValueError(
                f"nu={self.nu!r} has no closed form here: use a half-integer, 0.5, 1.5, 2.5 .. 100.5, or "
                "its limit sdgpu.Gaussian(0.5, lengthscale)"
            )
        if self.lengthscale is None:
            raise ValueError("lengthscale=None: give a number > 0 or one per feature")
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        # the statistic is s^2 = 2 nu r^2
        return scaled_rows(X, centre, self.lengthscale) * math.sqrt(2 * self.nu), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return distance_rows(self.coordinates(X, centre)[0])

    @property
    def distance_factor(self) -> tuple[str, float] | None:
        width = _one_width(self.lengthscale)
        return None if width is None else ("l2", 2 * self.nu / width**2)

    @property
    def exact_near(self) -> bool:
        return self.nu == 0.5

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        s = sqrt_(clip_(tile, 0.0, None))
        if self.nu > 2.5:  # beyond, exp(-s) is 0 in every precision, but s^p would not be finite
            s = clip_(s, None, 104.5 if "float32" in str(s.dtype) else 750.0)
        p = round(self.nu - 0.5)
        if p == 0:
            s *= -1.0
            return exp_(s)
        # Horner's rule in place, on the ratios of neighbouring coefficients; the first ratio is 1
        polynomial = s + 1.0 if p == 1 else s / (p * (p + 1) / 2)
        for k in range(p - 1, 0, -1):
            polynomial += 1.0
            polynomial *= s
            if k > 1:
                polynomial /= k * (2 * p - k + 1) / (2 * (p - k + 1))
        if p > 1:
            polynomial += 1.0
        s *= -1.0
        polynomial *= exp_(s)
        return without_subnormals(polynomial)

    def rounding(self, rows: Rows) -> float:
        return super().rounding(rows) + 3.0 * (self.nu - 0.5)

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        if self.nu > 0.5:  # K_nu' is K of a smoothness less
            return Matern(self.nu - 1).profile(tile * 1.0, None, None) / (4 - 4 * self.nu), None
        s = sqrt_(clip_(tile, 0.0, None))
        apart, xp = s > 0, compat.array_namespace(s)
        nonzero = xp.where(apart, s, xp.ones_like(s))
        return xp.where(apart, exp_(-s) / (-2 * nonzero), 0 * s), None

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@dataclass(frozen=True)
class RationalQuadratic(Profile):
    """(1 + r^2 / (2 power))^(-power) with r = |x - x'| / lengthscale.

    A mixture of Gaussian kernels of all widths, 1 / width^2 being Gamma distributed. As power grows it
    tends to ``Gaussian(0.5, lengthscale)``.

    Parameters
    ----------
    power : float, default 1
        > 0; alpha of Rasmussen and Williams. The smaller, the heavier the tail.
    lengthscale : float or sequence of d floats, default 1

    Raises
    ------
    TypeError, ValueError
        For a power or lengthscale that is not > 0.

    References
    ----------
    Rasmussen and Williams (2006), Section 4.2, equation (4.19).

    Examples
    --------
    >>> import numpy as np
    >>> RationalQuadratic(power=0.5)(np.array([[0.0], [1.0]])).round(6)
    array([[1.      , 0.707107],
           [0.707107, 1.      ]])
    """

    power: float = 1.0
    lengthscale: float | Sequence[float] = 1.0
    takes_sparse = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "power", positive("power", self.power))
        if self.lengthscale is None:
            raise ValueError("lengthscale=None: give a number > 0 or one per feature")
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        # the statistic is r^2 / 2, the exponent of the Gaussian that it looks like near 0
        return scaled_rows(X, centre, self.lengthscale) * math.sqrt(0.5), None

    def rows(self, X: Any, centre: Any) -> Rows:
        return distance_rows(self.coordinates(X, centre)[0])

    @property
    def distance_factor(self) -> tuple[str, float] | None:
        width = _one_width(self.lengthscale)
        return None if width is None else ("l2", 0.5 / width**2)

    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        # of a large power 1 + r^2 / (2 power) has lost the digits that log1p keeps
        logarithm = log1p_(clip_(tile, 0.0, None) / self.power)
        return exp_(logarithm * -self.power)

    def diagonal(self, rows: Rows) -> Any:
        return ones(rows)


@underflow_is_zero
def median_distance(X: Any, *, max_rows: int = 1000, seed: int = 0) -> float:
    """Median Euclidean distance between rows: the usual first guess of a width.

    Use it as ``Gaussian(gamma=0.5 / median_distance(X) ** 2)`` or
    ``Matern(1.5, lengthscale=median_distance(X))``.

    Parameters
    ----------
    X : array_like (n, d)
        Sparse rows too.
    max_rows : int, default 1000
        A random subset of this many rows is used for larger n.
    seed : int, default 0
        Seed of that subset.

    Returns
    -------
    float
        Median over the pairs of different rows, > 0.

    Raises
    ------
    ValueError
        If there are fewer than two different rows.

    Examples
    --------
    >>> import numpy as np
    >>> median_distance(np.array([[0.0], [1.0], [3.0]]))
    2.0
    """
    host, eps = _on_host(X)
    integer("max_rows", max_rows, 2)
    if host.shape[0] > max_rows:
        indices = np.random.default_rng(seed).choice(host.shape[0], max_rows, replace=False)
        host = host[np.sort(indices)]
    scale = float(abs(host).max()) or 1.0  # squares of tiny or huge numbers leave the range
    host = host / scale
    centre = column_means(host)
    rows = distance_rows(host if centre is None else host - centre)
    squared_distances = recompute_near(product(rows, rows), rows, rows)
    pairs = squared_distances[np.triu_indices(len(rows), k=1)]
    rounding = 4 * eps  # rows that differ by no more are equal
    pairs = pairs[pairs > rounding**2 * np.max((host * host).sum(axis=1))]
    if pairs.size == 0:
        raise ValueError("X has fewer than two different rows: there is no median distance")
    return scale * float(np.median(np.sqrt(pairs)))


def scale_gamma(X: Any) -> float:
    """1 / (d var X), over all entries of X: scikit-learn's gamma="scale".

    Parameters
    ----------
    X : array_like (n, d)
        Sparse rows too.

    Returns
    -------
    float
        1 / d where all entries are equal.
    """
    host, eps = _on_host(X)
    scale = float(abs(host).max()) or 1.0
    rounding = 4 * eps  # of entries that are equal
    if is_csr(host):
        entries = host / scale
        mean = float(entries.mean())
        missing = 1.0 - entries.nnz / (host.shape[0] * host.shape[1])  # the share of zeros
        squares = float(((entries.data - mean) ** 2).sum()) / (host.shape[0] * host.shape[1])
        spread = math.sqrt(squares + missing * mean * mean)
    else:
        spread = float((host / scale).std())
    if spread <= rounding:
        return 1.0 / host.shape[1]
    return 1.0 / (host.shape[1] * (scale * spread) ** 2)


def _on_host(X: Any) -> tuple[Any, float]:
    """Rows in float64, or in CSR if they are sparse, and the rounding of what they were given in."""
    array = csr_rows(X, "X", empty=False) if is_sparse(X) else inputs(X, "X")
    eps = float(np.finfo(dtype_name(array)).eps)
    return (array if is_csr(array) else to_numpy(array)).astype(np.float64), eps


def _one_width(lengthscale: Any) -> float | None:
    """The one length scale of all features; None where each has its own."""
    if lengthscale is None:
        return 1.0
    return lengthscale if isinstance(lengthscale, float) else None


def ones(rows: Rows) -> Any:
    """kappa(x, x) = 1 for each row, (n,)."""
    sample = rows.sample
    xp = compat.array_namespace(sample)
    return xp.ones((len(rows),), dtype=sample.dtype, device=compat.device(sample))
