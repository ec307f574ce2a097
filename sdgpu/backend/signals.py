"""Ctrl-C and SIGTERM: the same exception for both, and not in the middle of lines that belong together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["shielded", "terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: KeyboardInterrupt, so that files are closed and work is kept.

    Only in the main thread, and only where nobody else handles the signal; the former handling comes back
    at the end. May be nested.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated (SIGTERM)")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def shielded() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a few lines that must not be cut in two."""
    if not _in_main_thread():
        yield
        return
    waiting: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            # the default of SIGTERM, no function, ends the process at once
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, _: waiting.append(number))
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
        for late in waiting[:1]:
            signal.raise_signal(late)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
