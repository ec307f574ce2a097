"""How fast this machine is at the moment: fixed work of the kinds that fits consist of."""

from __future__ import annotations

import time

import numpy as np

__all__ = ["calibrate"]

_RNG = np.random.default_rng(0)
_MATRIX = _RNG.standard_normal((300, 300))
_VALUES = _RNG.uniform(-4, 0, 60_000)
_BYTES = np.zeros(1_000_000)


def calibrate() -> float:
    """Seconds of a few products, exponentials and copies: some milliseconds, the best of three."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        product = _MATRIX
        for _ in range(4):
            product = product @ _MATRIX / 17.0
        np.exp(_VALUES)
        np.copyto(_BYTES, 1.0)
        _BYTES.copy()
        spent.append(time.perf_counter() - start)
    return min(spent)
