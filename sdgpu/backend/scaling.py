"""Powers of two that bring numbers near 1: multiplying by them rounds nothing.

Squares of numbers beyond 1e154 overflow and those of numbers below 1e-162 vanish, so everything that is
squared, a residual or a loss, is scaled before. Outputs are scaled one by one: a small one beside a
large one keeps its digits.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy

__all__ = ["column_units", "safe_unit", "unit"]

SAFE = 1e100  # sums of many squares up to SAFE^2, and down to SAFE^-2, neither overflow nor vanish


def unit(largest: float) -> float:
    """The power of two at or below `largest`, 2^1022 at most; 1 for 0.

    Examples
    --------
    >>> unit(5.0), unit(0.75), unit(0.0)
    (4.0, 0.5, 1.0)
    """
    return float(_units(np.asarray(largest, dtype=float)))


def column_units(Y: Any) -> np.ndarray:
    """A power of two near the largest entry of each column of Y (n, c), (c,); 1 for columns of zeros."""
    xp = compat.array_namespace(Y)
    if not Y.shape[0]:
        return np.ones(int(Y.shape[1]))
    return _units(to_numpy(xp.max(xp.abs(Y), axis=0)).astype(float))


def _units(largest: np.ndarray) -> np.ndarray:
    """The units of many numbers at once."""
    positive = largest > 0
    exponents = np.frexp(np.where(positive, largest, 1.0))[1] - 1
    # the reciprocal of a smaller number overflows
    powers = np.ldexp(1.0, np.clip(exponents, -1021, 1022))
    return np.asarray(np.where(positive, powers, 1.0))


def safe_unit(largest: float) -> float:
    """1 where squares of numbers up to `largest` are safe as they are, else their power of two."""
    return 1.0 if not largest > 0 or 1 / SAFE < largest < SAFE else unit(largest)
