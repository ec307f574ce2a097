"""Time on a device: a clock that waits for the work that was only queued."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Progress", "Stopwatch"]

#: Progress hook: called with the stage, the work done and the work in all, from the caller's thread.
Progress = Callable[[str, int, int], None]


@dataclass
class Stopwatch:
    """Seconds of named stages on one device, for `fit.info`.

    Attributes
    ----------
    synchronize : callable
        Waits until everything queued on the device is done (`Backend.synchronize`).
    seconds : dict
        Seconds by stage.
    progress : Progress, optional
        Hook that hears of every stage.

    Examples
    --------
    >>> watch = Stopwatch(synchronize=lambda: None)
    >>> with watch.stage("eigh"):
    ...     pass
    >>> list(watch.seconds)
    ['eigh']
    """

    synchronize: Callable[[], None]
    seconds: dict[str, float] = field(default_factory=dict)
    progress: Progress | None = None

    def stage(self, name: str) -> _Stage:
        """Context manager that adds its duration under `name` and reports it to the hook."""
        return _Stage(self, name)

    def report(self, name: str, done: int, total: int) -> None:
        """Pass progress to the hook, if there is one."""
        if self.progress is not None:
            self.progress(name, done, total)


@dataclass
class _Stage:
    watch: Stopwatch
    name: str
    start: float = 0.0

    def __enter__(self) -> _Stage:
        self.watch.report(self.name, 0, 1)
        self.watch.synchronize()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.watch.synchronize()
        spent = time.perf_counter() - self.start
        self.watch.seconds[self.name] = self.watch.seconds.get(self.name, 0.0) + spent
        if exc[0] is None:
            self.watch.report(self.name, 1, 1)
