"""The next block is read while the last is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")

_END = object()


def prefetched(items: Iterable[Item], ahead: int = 1) -> Generator[Item, None, None]:
    """The same items, made in a thread of their own, at most `ahead` of them waiting.

    An error of the reader is raised where its item would have come. Closing the iterator ends the thread
    after the item that it is reading.
    """
    waiting: queue.Queue[Any] = queue.Queue(ahead)
    stopped = threading.Event()

    def read() -> None:
        try:
            for item in items:
                if not _offer(waiting, (item, None), stopped):
                    return
            _offer(waiting, (_END, None), stopped)
        except BaseException as error:  # goes to the one who waits for the item
            _offer(waiting, (_END, error), stopped)
        finally:
            close = getattr(items, "close", None)  # files that a generator holds open
            if close is not None:
                close()

    reader = threading.Thread(target=read, name="sdgpu-reader", daemon=True)
    reader.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        reader.join()


def _offer(waiting: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    """Put an item in the queue as soon as there is room; False if nobody wants it any more."""
    while not stopped.is_set():
        try:
            waiting.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
