"""Kernels of distance: Gaussian, Laplacian and Matern, with one length scale or one per feature.

Data are centred before distances are taken, distances are clamped at 0 and are exactly 0 on the
diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.checks import integer, positive
from sdgpu.device.arrays import inputs
from sdgpu.device.backend import to_numpy
from sdgpu.kernels.base import Kernel, lengthscales, scaled_rows, set_zero_diagonal
from sdgpu.kernels.statistics import Rows, l1_distance, squared_distance

__all__ = ["Gaussian", "Laplacian", "Matern", "median_distance"]


@dataclass(frozen=True)
class Gaussian(Kernel):
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _distance_rows(X, centre, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        squared = _squared(a, b, same)
        squared *= -self.gamma
        return compat.array_namespace(squared).exp(squared)

    def diagonal(self, rows: Rows) -> Any:
        return _ones(rows)


@dataclass(frozen=True)
class Laplacian(Kernel):
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive("gamma", self.gamma))
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _distance_rows(X, centre, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        distance = l1_distance(a, b)
        if same:
            distance = set_zero_diagonal(distance)
        return compat.array_namespace(distance).exp(-self.gamma * distance)

    def diagonal(self, rows: Rows) -> Any:
        return _ones(rows)


@dataclass(frozen=True)
class Matern(Kernel):
    """Matern kernel of smoothness nu = 1/2, 3/2 or 5/2 in r = |x - x'| / lengthscale.

    nu = 1/2: exp(-r); nu = 3/2: (1 + s) exp(-s), s = sqrt(3) r;
    nu = 5/2: (1 + s + s^2 / 3) exp(-s), s = sqrt(5) r.

    Parameters
    ----------
    nu : {0.5, 1.5, 2.5}, default 1.5
    lengthscale : float or sequence of d floats, default 1

    References
    ----------
    Rasmussen and Williams (2006), Section 4.2.
    """

    nu: float = 1.5
    lengthscale: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        if self.nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu={self.nu!r} has no closed form here: use 0.5, 1.5 or 2.5")
        if self.lengthscale is None:
            raise ValueError("lengthscale=None: give a number > 0 or one per feature")
        object.__setattr__(self, "lengthscale", lengthscales(self.lengthscale))

    def rows(self, X: Any, centre: Any) -> Rows:
        return _distance_rows(X, centre, self.lengthscale)

    def tile(self, a: Rows, b: Rows, *, same: bool = False) -> Any:
        # nu = 1/2 has a kink at r = 0, so near pairs need their distance to full precision
        squared = _squared(a, b, same, exact_near=self.nu == 0.5)
        xp = compat.array_namespace(squared)
        s = xp.sqrt(squared)
        s *= math.sqrt(2 * self.nu)
        if self.nu == 0.5:
            return xp.exp(-s)
        if self.nu == 1.5:
            return (1 + s) * xp.exp(-s)
        return (1 + s * (1 + s / 3)) * xp.exp(-s)

    def diagonal(self, rows: Rows) -> Any:
        return _ones(rows)


def median_distance(X: Any, *, max_rows: int = 1000, seed: int = 0) -> float:
    """Median Euclidean distance between rows: the usual first guess of a width.

    Use it as ``Gaussian(gamma=0.5 / median_distance(X) ** 2)`` or
    ``Matern(1.5, lengthscale=median_distance(X))``.

    Parameters
    ----------
    X : array_like (n, d)
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
    array = inputs(X, "X")
    integer("max_rows", max_rows, 2)
    host = to_numpy(array).astype(np.float64)
    if host.shape[0] > max_rows:
        chosen = np.random.default_rng(seed).choice(host.shape[0], max_rows, replace=False)
        host = host[np.sort(chosen)]
    rows = _distance_rows(host, host.mean(axis=0), None)
    squared = squared_distance(rows, rows, exact_near=True)
    pairs = squared[np.triu_indices(len(rows), k=1)]
    pairs = pairs[pairs > 0]
    if pairs.size == 0:
        raise ValueError("X has fewer than two different rows: there is no median distance")
    return float(np.median(np.sqrt(pairs)))


def _distance_rows(X: Any, centre: Any, lengthscale: Any) -> Rows:
    values = scaled_rows(X, centre, lengthscale)
    xp = compat.array_namespace(values)
    return Rows(values, squares=xp.sum(values * values, axis=1))


def _squared(a: Rows, b: Rows, same: bool, *, exact_near: bool = False) -> Any:
    squared = squared_distance(a, b, exact_near=exact_near)
    return set_zero_diagonal(squared) if same else squared


def _ones(rows: Rows) -> Any:
    xp = compat.array_namespace(rows.values)
    return xp.ones((len(rows),), dtype=rows.values.dtype, device=compat.device(rows.values))
