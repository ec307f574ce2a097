"""Threads on the CPU: tiles side by side, and one pool at a time.

Tiles that fit the cache of one core are worked on whole by one thread: torch's own threads would share
every pass over a tile, meet after each, and pull it through each other's caches. On two cores a product
with 16 columns is 1.8 times faster this way.

NumPy, SciPy and torch each have a pool of threads, and the idle threads of one go on spinning while
those of another work: a fit that mixes them takes up to three times as long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

__all__ = ["count", "only_torch", "side_by_side"]

Result = TypeVar("Result")

_LOCK = threading.Lock()
_STATE = {"running": 0, "threads": 1}


def count() -> int:
    """Threads that torch may use: what the user or the environment has set."""
    import torch

    with _LOCK:
        return _STATE["threads"] if _STATE["running"] else torch.get_num_threads()


def side_by_side(work: Callable[[int, np.ndarray], Result], workers: int) -> list[Result]:
    """Results of work(0, flag), .., work(workers - 1, flag), in this order.

    An error or an interrupt in one sets flag[0], for all to end, and is raised when they have ended.
    """
    flag = np.zeros(1, dtype=bool)
    if workers == 1:
        return [work(0, flag)]
    import torch

    def guarded(worker: int) -> Result:
        try:
            return work(worker, flag)
        except BaseException:
            flag[0] = True
            raise

    with (
        _single_threaded(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            return [future.result() for future in [pool.submit(guarded, k) for k in range(workers)]]
        finally:
            flag[0] = True


@contextmanager
def only_torch() -> Iterator[None]:
    """The pools of NumPy and SciPy at rest: small work of theirs stays on the calling thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield


@contextmanager
def _single_threaded() -> Iterator[Any]:
    """One thread for each torch operation; the setting comes back when the last caller has left."""
    import torch

    with _LOCK:
        if not _STATE["running"]:
            _STATE["threads"] = torch.get_num_threads()
            torch.set_num_threads(1)
        _STATE["running"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _STATE["running"] -= 1
            if not _STATE["running"]:
                torch.set_num_threads(_STATE["threads"])
