"""Kernels that are Green's functions of a roughness penalty on [0, 1]: splines of one feature.

Ridge with such a kernel is a penalised fit: ||f||^2 is an integral over a derivative of f, so that (20)
and (21) of the paper, and Mobahi, Farajtabar and Bartlett (2020), apply as they are written. Each
kernel is a function of the smaller and the larger one of two numbers, so that it is symmetric to the
last bit; each is written with positive terms alone, so that it is right to a few units in the last
place wherever x lies, at the ends and on the diagonal too.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.backend.checks import positive
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import Kernel

__all__ = ["BrownianBridge", "CubicGreen", "CubicSpline"]


class _OnUnitInterval(Kernel):
    """What they share: one feature in [0, 1], and values from min(x, x') and max(x, x')."""

    @abstractmethod
    def between(self, low: Any, high: Any) -> Any:
        """kappa for 0 <= low <= high <= 1, elementwise."""

    def rows(self, X: Any, centre: Any) -> Rows:
        name = type(self).__name__
        if X.shape[1] != 1:
            raise ValueError(
                f"{name} is a kernel of one feature, the data have {X.shape[1]}: choose a column, or "
                "another kernel"
            )
        if X.shape[0]:
            xp = compat.array_namespace(X)
            low, high = float(xp.min(X)), float(xp.max(X))
            if low < 0 or high > 1:
                raise ValueError(
                    f"{name} is a kernel on [0, 1], the data reach from {low:g} to {high:g}: rescale "
                    "them"
                )
        return Rows(X, X)

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        xp = compat.array_namespace(a.left)
        x, y = a.left, b.right.T  # (a, 1), (1, b)
        return self.between(xp.minimum(x, y), xp.maximum(x, y))

    def symbolic(self, leaf: Callable[[Any, Rows], Any], rows: Rows) -> Any:
        return leaf(
            self, rows
        )  # for plain torch; KeOps, which has no minimum of two, asks `opaque` first

    def diagonal(self, rows: Rows) -> Any:
        x = rows.left[:, 0]
        return self.between(x, x)


@dataclass(frozen=True)
class CubicGreen(_OnUnitInterval):
    """Green's function of the fourth derivative: penalty int f''^2, f = f'' = 0 at both ends.

    g(x, t) = max(x - t, 0)^3 / 6 - x (1 - t) (x^2 - 2 t + t^2) / 6, the kernel of the illustrative
    example of Mobahi et al. (2020), evaluated as l (1 - h) ((h - l)(h + l) + 2 h (1 - h)) / 6 with
    l = min(x, t) and h = max(x, t). At x = 0 and 1 it is 0: so is every fit.

    Raises
    ------
    ValueError
        For data with more than one feature or outside [0, 1].

    References
    ----------
    Mobahi, Farajtabar and Bartlett (2020), Section 3.

    Examples
    --------
    >>> import numpy as np
    >>> CubicGreen()(np.array([[0.25], [0.5]])).round(6)
    array([[0.011719, 0.014323],
           [0.014323, 0.020833]])
    """

    def between(self, low: Any, high: Any) -> Any:
        complement = 1 - high
        return low * complement * ((high - low) * (high + low) + 2 * high * complement) / 6


@dataclass(frozen=True)
class CubicSpline(_OnUnitInterval):
    """Natural cubic smoothing splines: penalty int f''^2 + (f(0)^2 + f'(0)^2) / line.

    kappa(x, t) = line (1 + x t) + int_0^1 (x - u)_+ (t - u)_+ du, the integral being
    l^2 (3 h - l) / 6 with l = min(x, t) and h = max(x, t).

    Parameters
    ----------
    line : float, default 1
        Weight of straight lines, > 0. As it grows they become free, and ridge with K + lam I tends to
        the smoothing spline that minimises sum (y - f(x))^2 + lam int f''^2.

    Raises
    ------
    TypeError, ValueError
        For line <= 0, or data with more than one feature or outside [0, 1].

    References
    ----------
    Wahba (1990), Spline Models for Observational Data, Section 1.3.

    Examples
    --------
    >>> import numpy as np
    >>> CubicSpline()(np.array([[0.0], [0.5]]))
    array([[1.        , 1.        ],
           [1.        , 1.29166667]])
    """

    line: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "line", positive("line", self.line))

    def between(self, low: Any, high: Any) -> Any:
        return self.line * (1 + low * high) + low * low * (2 * high + (high - low)) / 6


@dataclass(frozen=True)
class BrownianBridge(_OnUnitInterval):
    """Green's function of -d^2/dx^2: penalty int f'^2 with f = 0 at both ends, piecewise linear fits.

    kappa(x, t) = min(x, t) - x t, evaluated as l (1 - h) with l = min(x, t) and h = max(x, t).

    Raises
    ------
    ValueError
        For data with more than one feature or outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> BrownianBridge()(np.array([[0.25], [0.5]]))
    array([[0.1875, 0.125 ],
           [0.125 , 0.25  ]])
    """

    def between(self, low: Any, high: Any) -> Any:
        return low * (1 - high)
