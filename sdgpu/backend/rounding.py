"""What rounding does to numbers: when it is nothing, and when a spread is nothing but rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

__all__ = ["mean_and_spread", "underflow_is_zero"]

P = ParamSpec("P")
R = TypeVar("R")


def underflow_is_zero(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what a caller calls, who may have set ``np.seterr(all="raise")``.

    Kernel values of far rows, squares of small numbers and high powers of filters underflow, and 0 is
    what they are beside the others. Overflow and NaN are left to the caller's settings.
    """

    @wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(under="ignore"):
            return function(*args, **kwargs)

    return quiet


def mean_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column; the latter is 0 where they differ by rounding alone.

    The mean of n equal numbers is off by some eps of them, so that their standard deviation is not 0 and
    what is divided by it explodes. Deviations are taken from the first row, which is exact for equal
    numbers, and count from 4 eps of the largest on.

    Parameters
    ----------
    values : array (n, ..), n >= 1
        Floats; their precision is that of the rounding.

    Returns
    -------
    pair of arrays (..)

    Examples
    --------
    >>> values = np.full((1000, 1), 14.62)
    >>> bool(values.std() > 0)
    True
    >>> mean_and_spread(values)
    (array([14.62]), array([0.]))
    """
    first = values[0]
    deviations = values - first
    spread = np.std(deviations, axis=0)
    varies = spread > 4 * np.finfo(values.dtype).eps * np.max(np.abs(values), axis=0)
    return first + np.where(varies, np.mean(deviations, axis=0), 0.0), np.where(varies, spread, 0.0)
