"""Ctrl-C at a moment when work can be saved: signals wait for the end of a batch."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Brake"]


class Brake:
    """While this context lasts, the first Ctrl-C waits to be asked for; a second one acts at once.

    SIGTERM too, where something handles it (:func:`~sdgpu.backend.signals.terminable`). Only the main
    thread hears signals: elsewhere nothing changes. The former handling comes back at the end, and a signal
    that came and was not asked for is then raised.

    Attributes
    ----------
    pulled : bool
        Whether a signal waits.
    """

    def __init__(self) -> None:
        self._pending_signal: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def pulled(self) -> bool:
        """Whether a signal waits."""
        return self._pending_signal is not None

    def __enter__(self) -> Brake:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(signal.getsignal(number)):
                    self._handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        if error is None:
            self.release()

    def stop(self, *, interrupt: bool) -> None:
        """End if `interrupt`, here or in another process of the training.

        Raises
        ------
        KeyboardInterrupt
        """
        if interrupt:
            self.release()
            raise KeyboardInterrupt

    def release(self) -> None:
        """Let the signal that waits have its way: by default a KeyboardInterrupt."""
        number, self._pending_signal = self._pending_signal, None
        if number is not None:
            handler = self._handlers.get(number, signal.getsignal(number))
            if callable(handler):
                handler(number, None)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._pending_signal is not None:
            self._handlers[number](number, frame)
        self._pending_signal = number
