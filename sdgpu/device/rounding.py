"""What rounding does to numbers: when it is nothing, and when a spread is nothing but rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import array_api_compat as compat
import numpy as np

__all__ = ["scale_of", "underflow_is_zero"]

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


def scale_of(deviation: Any, largest: Any, *, rows: int = 1) -> Any:
    """What to divide deviations from a mean by: their spread, or 1 where it is rounding alone.

    The mean of n equal numbers v is off by a few eps |v|, so that their standard deviation is not 0.

    Parameters
    ----------
    deviation : array (..)
        Standard deviations, norms or distances, in the precision in which they were computed.
    largest : array (..)
        The largest |value| that they come from.
    rows : int, default 1
        Numbers in each sum.

    Returns
    -------
    array (..)
        `deviation` where it exceeds 4 eps sqrt(rows) `largest`, else 1.

    Examples
    --------
    >>> values = np.full(1000, 14.62)
    >>> bool(values.std() > 0), float(scale_of(values.std(), 14.62, rows=1000))
    (True, 1.0)
    """
    xp = compat.array_namespace(np.asarray(deviation) if np.isscalar(deviation) else deviation)
    deviation = xp.asarray(deviation)
    eps = float(xp.finfo(deviation.dtype).eps)
    known = deviation > 4 * eps * rows**0.5 * largest
    return xp.where(known, deviation, xp.ones_like(deviation))
