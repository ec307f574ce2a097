"""Powers of two that bring numbers near 1: multiplying by them rounds nothing.

Squares of numbers beyond 1e154 overflow and those of numbers below 1e-162 vanish, so everything that is
squared, a residual or a loss, is scaled before. Outputs are scaled one by one: a small one beside a
large one keeps its digits.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = ["below_the_limit", "column_units", "safe_unit", "unit"]

SAFE = 1e100  # sums of many squares up to SAFE^2, and down to SAFE^-2, neither overflow nor vanish


def unit(largest: float) -> float:
    """The power of two at or below `largest`, 2^1022 at most; 1 for 0.

    Examples
    --------
    >>> unit(5.0), unit(0.75), unit(0.0)
    (4.0, 0.5, 1.0)
    """
    if not largest > 0:
        return 1.0
    exponent = int(np.frexp(largest)[1]) - 1
    # the reciprocal of a smaller number overflows
    return float(np.ldexp(1.0, int(np.clip(exponent, -1021, 1022))))


def column_units(Y: Any) -> np.ndarray:
    """A power of two near the largest entry of each column of Y (n, c), (c,); 1 for columns of zeros."""
    xp = compat.array_namespace(Y)
    largest = np.asarray([float(x) for x in xp.max(xp.abs(Y), axis=0)]) if Y.shape[0] else None
    return np.asarray([1.0] * int(Y.shape[1]) if largest is None else [unit(x) for x in largest])


def safe_unit(largest: float) -> float:
    """1 where squares of numbers up to `largest` are safe as they are, else their power of two."""
    return 1.0 if not largest > 0 or 1 / SAFE < largest < SAFE else unit(largest)


def below_the_limit(dual: Any) -> tuple[Any, Any]:
    """Coefficients (.., n, c) times factors (.., 1, c) so that partial sums of products do not overflow.

    Factors are 2^-200 for columns that reach 1e250, and 1, a number, if there is none.
    """
    xp = compat.array_namespace(dual)
    if (
        not compat.size(dual)
        or "64" not in str(dual.dtype)
        or not float(xp.max(xp.abs(dual))) > 1e250
    ):
        return dual, 1.0
    high = xp.max(xp.abs(dual), axis=-2, keepdims=True) > 1e250
    ones = xp.ones_like(dual[..., :1, :])
    factors = xp.where(high, 2.0**-200 * ones, ones)
    return dual * factors, factors
