"""Trainings of several processes end together: by the error of one, its death, or when time is up.

Collectives of torch.distributed know nothing of the others: a rank that failed leaves them waiting until
their time-out, and what they raise then names nobody. Here every rank has a line to rank 0
(:mod:`sdgpu.backend.rank_watch`). What one rank raises all the others hear of, and a thread takes the
connections away on which they wait. An error that all ranks raise, as for the same bad argument, stays what
it is: then they may go on.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from sdgpu.backend.pending_work import Pending
from sdgpu.backend.rank_watch import RankWatch
from sdgpu.backend.ranks import RankFailure, rank_timeout
from sdgpu.backend.rendezvous import JOIN

__all__ = ["arrive", "ending_together", "finish", "wait_at_most"]

TOGETHER = (
    10.0  # seconds for all ranks to raise what one has raised; then it is an error of that one
)
LOOK = 0.2  # seconds between looks at whether another rank has failed
_WORDS = ("gloo", "nccl", "connection", "timed out", "timeout", "process group")


class _EndLine:
    """The watch of this process, of one group."""

    def __init__(self) -> None:
        self.watch: RankWatch | None = None
        self.group: Any = None
        self.active = False
        self.broken = False
        self.seconds: float | None = None  # time-out of the group, where this package made it


_LINE = _EndLine()  # a process is one rank, for as long as it lives


def wait_at_most(seconds: float | None) -> None:
    """Note the time-out that the group was made with, for messages."""
    _LINE.seconds = seconds


def arrive(place: str) -> None:
    """Note where this rank is, as all do: who is missing there is then known by name."""
    if _LINE.active and _LINE.watch is not None:
        _LINE.watch.enter(place)


def finish(pending: Pending) -> None:
    """End an operation that knows nothing of the other ranks' errors, deaths and time-outs.

    Raises
    ------
    RankFailure
        If another rank has failed or died.
    RuntimeError
        If they did not come in time, or the operation failed.
    """
    if not pending.is_completed():
        pending.rest(LOOK)  # mostly to its end
    if not pending.is_completed():
        _finish_late(pending)
    pending.wait()


def _finish_late(pending: Pending) -> None:
    seconds, start = rank_timeout(_LINE.seconds), time.monotonic() - LOOK
    while not pending.is_completed():
        if _LINE.watch is not None:
            _LINE.watch.check()
        if time.monotonic() - start > seconds:
            raise RuntimeError(f"timed out after {seconds:g} s")
        pending.rest(LOOK)


@contextmanager
def ending_together(rank: int, size: int, first: Callable[[Any], Any]) -> Iterator[None]:
    """Lines that all ranks run, with collectives of torch's group in them; alone nothing at all.

    Parameters
    ----------
    rank, size : int
    first : callable
        Tells all ranks a small value of rank 0, as :class:`~sdgpu.backend.rank_watch.RankWatch` wants it.

    Raises
    ------
    RankFailure
        If another rank failed, died or did not come in time; names it. After that the group is of no use,
        and every further use of this raises it again.
    """
    if size == 1 or _LINE.active:
        yield
        return
    watch = _watch(rank, size, first)
    watch.check()
    seconds = rank_timeout(_LINE.seconds)
    done = threading.Event()
    thread = threading.Thread(target=_listen, args=(watch, done), name="sdgpu-end", daemon=True)
    _LINE.active = True
    thread.start()
    try:
        yield
    except RankFailure:
        raise
    except BaseException as error:
        failure = _failure(watch, error, seconds)
        if failure is not None:
            raise failure from error
        raise
    finally:
        _LINE.active = False
        done.set()
        thread.join()


def _failure(watch: RankWatch, error: BaseException, seconds: float) -> RankFailure | None:
    """What to raise for an error here that comes of another rank; None for one that is this rank's own."""
    told = str(error).lower()
    of_group = isinstance(error, RuntimeError) and any(word in told for word in _WORDS)
    if watch.failure is None and of_group:
        late = "timed out" in told or "timeout" in told
        return watch.late(seconds) if late else watch.explain(f"lost another rank ({error})")
    if watch.failure is not None and (
        of_group or isinstance(error, (KeyboardInterrupt, SystemExit))
    ):
        return RankFailure(*watch.failure)
    with contextlib.suppress(RankFailure):
        if not watch.all_come("the end of what failed", TOGETHER):
            watch.fail(f"{type(error).__name__}: {error}")
            error.add_note(f"on rank {watch.rank} of {watch.size}")
    return None


def _watch(rank: int, size: int, first: Callable[[Any], Any]) -> RankWatch:
    """The line of this group, made when it is first wanted: by all ranks at once."""
    if _LINE.watch is None or _LINE.group is not distributed.group.WORLD:
        _LINE.watch = RankWatch(rank, size, first, seconds=min(rank_timeout(_LINE.seconds), JOIN))
        _LINE.group, _LINE.broken = distributed.group.WORLD, False
        atexit.register(_LINE.watch.close)
    return _LINE.watch


def _listen(watch: RankWatch, done: threading.Event) -> None:
    """Until the end, or until another rank has failed: then nobody waits for it any longer."""
    while not done.wait(LOOK):
        if watch.failure is not None:
            if not _LINE.broken:
                _LINE.broken = True
                _break_off()
            return


def _break_off() -> None:
    """Take away the connections on which this process may wait.

    A receive of gloo whose time is up closes all of its group; NCCL has a call for it.
    """
    group: Any = distributed.group.WORLD
    if group is None:
        return
    with contextlib.suppress(RuntimeError, ValueError):
        if distributed.get_backend() == "gloo":
            nothing = torch.empty(1, dtype=torch.uint8)
            peer = (distributed.get_rank() + 1) % distributed.get_world_size()
            work: Any = distributed.irecv(nothing, peer, tag=2**20)
            work.wait(timedelta(milliseconds=1))
        else:
            group.abort()
