"""Ctrl-C and SIGTERM: the same exception for both, and not in the middle of lines that belong together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["leave_interrupts_to_the_parent", "raise_unheard", "shielded", "terminable"]


_unheard: list[int] = []  # signals whose exception has not come out of `terminable` yet


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: KeyboardInterrupt, so that files are closed and work is kept.

    Only in the main thread, and only where nobody else handles the signals; the former handling comes back
    at the end. May be nested. Python drops an exception that is raised while it calls a destructor or the
    callback of a weak reference: such a one is raised again by :func:`raise_unheard`, or at the end.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        _unheard.append(number)
        raise KeyboardInterrupt(*(["terminated (SIGTERM)"] if number == signal.SIGTERM else []))

    handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handlers[signal.SIGINT] = signal.default_int_handler
    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
        raise_unheard()
    finally:
        _unheard.clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def raise_unheard() -> None:
    """Raise KeyboardInterrupt if Ctrl-C or SIGTERM came and its exception was dropped.

    Raises
    ------
    KeyboardInterrupt
    """
    if _unheard and _in_main_thread():
        _unheard.clear()
        raise KeyboardInterrupt("interrupted")


@contextmanager
def shielded() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of a few lines that must not be cut in two."""
    if not _in_main_thread():
        yield
        return
    pending_signals: list[int] = []
    handlers = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            # the default of SIGTERM, no function, ends the process at once
            if callable(signal.getsignal(number)):
                handlers[number] = signal.signal(
                    number, lambda number, _: pending_signals.append(number)
                )
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for pending in pending_signals[:1]:
            signal.raise_signal(pending)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def leave_interrupts_to_the_parent() -> None:
    """In a worker process: Ctrl-C, which reaches all processes of a terminal, is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
