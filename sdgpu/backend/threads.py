"""Threads on the CPU: tiles side by side, and one pool at a time.

Tiles that fit the cache of one core are worked on whole by one thread: torch's own threads would share
every pass over a tile, meet after each, and pull it through each other's caches. On two cores a product
with 16 columns is 1.8 times faster this way.

NumPy, SciPy and torch each have a pool of threads, and the idle threads of one go on spinning while
those of another work: a fit that mixes them takes up to three times as long.

A forked child has none of its parent's threads. NumPy's pool starts anew there, but torch's (OpenMP)
waits for threads that do not exist, for ever: a child of a process that has torch works with one thread
of it. Start children by "spawn" or "forkserver" for more.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

__all__ = ["block_workers", "cores", "count", "in_order", "only_torch", "side_by_side"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOCK = threading.Lock()
_STATE = {"running": 0, "threads": 1, "resting": 0}
_POOLS: dict[str, Any] = {}
_RESTING: list[Any] = []  # the limits on NumPy's and SciPy's pools while they are at rest


def count() -> int:
    """Threads that torch may use: what the user or the environment has set."""
    import torch

    with _LOCK:
        return _STATE["threads"] if _STATE["running"] else torch.get_num_threads()


def cores() -> int:
    """Threads for work of our own: as many as torch may use, without torch those of OMP_NUM_THREADS."""
    if "torch" in sys.modules:
        return count()
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    there = _available()
    return min(int(allowed), there) if allowed.isdigit() and int(allowed) else there


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


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """work(item) of each item, some at a time, in the order of the items.

    At most two results for each worker wait; an error ends it where its result would have come.
    """
    if workers == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def block_workers(backend: Any) -> int:
    """Blocks side by side: one for each core, one on a device that is parallel itself."""
    return _available() if backend.name.startswith("numpy") else 1


def _available() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def only_torch() -> Iterator[None]:
    """The pools of NumPy and SciPy at rest: small work of theirs stays on the calling thread.

    Their setting belongs to the process: it comes back when the last of all callers has left.
    """
    with _LOCK:
        if not _RESTING:
            _RESTING.append(_pools().limit(limits=1, user_api="blas"))
        _STATE["resting"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _STATE["resting"] = max(_STATE["resting"] - 1, 0)  # 0 in a child that was forked here
            if not _STATE["resting"]:
                _wake()


def _pools() -> Any:
    """The thread pools of this process. Finding them reads its memory map, 3 ms: done after imports."""
    from threadpoolctl import ThreadpoolController

    if _POOLS.get("modules") != len(sys.modules):
        _POOLS.update(pools=ThreadpoolController(), modules=len(sys.modules))
    return _POOLS["pools"]


def _wake() -> None:
    """The pools of NumPy and SciPy as they were, whichever thread asks."""
    import threadpoolctl

    # from 3.8 on a limit that one thread has set cannot be taken off by another, silently
    openblas = getattr(threadpoolctl, "OpenBLASController", None)
    release = getattr(openblas, "clear_controlling_thread", None)
    while _RESTING:
        if release is not None:
            release(force=True)
        _RESTING.pop().restore_original_limits()
        if release is not None:
            release(force=True)


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
            _STATE["running"] = max(_STATE["running"] - 1, 0)
            if not _STATE["running"]:
                torch.set_num_threads(_STATE["threads"])


def _after_fork() -> None:
    """In a child: no thread is left that could hold the lock, count, or answer torch's pool."""
    global _LOCK
    _LOCK = threading.Lock()
    _STATE.update(running=0, threads=1, resting=0)
    if _RESTING:
        _wake()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
