"""What is under way between ranks that are processes, in one form that can be looked at.

Who waits rests a moment at a time, and looks in between whether another rank has failed. A collective of
gloo wakes who rests: on a host whose cores all compute, one that looks again and again takes the core away
from the threads that carry the message.
"""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import timedelta
from typing import Any, Protocol

__all__ = ["Nothing", "Pending", "PendingCollective", "PendingOnDevice", "PendingPieces"]

SPIN = 200  # looks without a pause, for operations of microseconds


class Pending(Protocol):
    """An operation that has been started."""

    def is_completed(self) -> bool:
        """Whether it has ended, well or not."""
        ...

    def rest(self, seconds: float) -> None:
        """Wait for it so long at most; raises nothing."""
        ...

    def wait(self) -> None:
        """End it.

        Raises
        ------
        RuntimeError
            If it failed.
        """
        ...


class Nothing:
    """An operation on nothing."""

    def is_completed(self) -> bool:
        return True

    def rest(self, seconds: float) -> None:
        pass

    def wait(self) -> None:
        pass


class PendingCollective:
    """A collective of gloo, which wakes who waits for it; a wait that is too short breaks nothing."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def is_completed(self) -> bool:
        return bool(self._work.is_completed())

    def rest(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # of time, or of the work: `wait` tells
            self._work.wait(timedelta(seconds=seconds))

    def wait(self) -> None:
        self._work.wait()


class PendingOnDevice:
    """Operations of NCCL, each of which would be ended by a wait that is too short: looked at."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works
        self._looks = 0

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def rest(self, seconds: float) -> None:
        self._looks += 1
        if self._looks > SPIN:
            time.sleep(min(seconds, 1e-3, 1e-6 * self._looks))

    def wait(self) -> None:
        for work in self._works:
            work.wait()


class PendingPieces:
    """Sends and receives of gloo, which say only to who waits that they are done: a thread does."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works
        self._error: RuntimeError | None = None
        self._thread = threading.Thread(target=self._wait_for_all, daemon=True)
        self._thread.start()

    def is_completed(self) -> bool:
        return not self._thread.is_alive()

    def rest(self, seconds: float) -> None:
        self._thread.join(seconds)

    def wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _wait_for_all(self) -> None:
        try:
            for work in self._works:
                work.wait()
        except RuntimeError as error:
            self._error = error
