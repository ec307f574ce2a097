"""How fast this machine is at the moment: fixed work of the kinds that fits consist of, beside a figure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl
import torch

__all__ = ["calibrate", "one_thread_rounds"]

_RNG = np.random.default_rng(0)
_MATRIX = _RNG.standard_normal((300, 300))
_VALUES = _RNG.uniform(-4, 0, 60_000)
_BYTES = np.zeros(1_000_000)

ROUNDS, LEAST, ENOUGH = 30, 7, 2.0  # most and fewest; seconds that they may take together
LONGEST = 1.0  # seconds of a round


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


def one_thread_rounds(work: Callable[[], Any], seconds: float) -> dict[str, list[float]]:
    """Rounds of `work` and of calibrations in turns, in one thread: what two runs are compared by.

    Threads that wait for each other take up to a half longer in one process than in the next; one thread
    scatters by 1 %. Nothing is measured where a round takes longer than `LONGEST`.

    Parameters
    ----------
    work : callable
    seconds : float
        That it takes about.
    """
    samples: dict[str, list[float]] = {"sdgpu": [], "calibration": []}
    if seconds > LONGEST:
        return samples
    threads = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            work()
            for _ in range(max(LEAST, min(ROUNDS, int(ENOUGH / seconds)))):
                samples["calibration"].append(calibrate())
                start = time.perf_counter()
                work()
                samples["sdgpu"].append(time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)
    return samples
