"""Time on a device: a clock that waits for the work that was only queued, and when to save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from sdgpu.backend.signals import raise_unheard

__all__ = ["Event", "Progress", "SavePace", "Stopwatch"]

FEWEST = 3  # reports of a stage from which the time left is told
MOST = 512  # reports that are remembered


class Event(NamedTuple):
    """What a progress hook hears.

    Attributes
    ----------
    stage : str
        For example "gram", "eigh", "sketch", "passes", "sweep".
    done, total : int
        Work done and in all; for "passes" the total is a forecast, or the most that there may be.
    error : float
        Relative error of the predictions so far; NaN where none is known.
    seconds_left : float
        Of this stage, if it goes on as it did; NaN while there is nothing to tell it from.
    """

    stage: str
    done: int
    total: int
    error: float = float("nan")
    seconds_left: float = float("nan")


#: Progress hook: called with an :class:`Event` from the caller's thread.
Progress = Callable[[Event], None]


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
    _reports: dict[str, list[tuple[float, int]]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """For pickle: without the hook, which belongs to the process that set it."""
        return {**self.__dict__, "progress": None, "_reports": {}}

    def stage(self, name: str) -> _Stage:
        """Context manager that adds its duration under `name` and reports it to the hook."""
        return _Stage(self, name)

    def report(
        self,
        name: str,
        done: int,
        total: int,
        error: float = float("nan"),
        *,
        total_known: bool = True,
    ) -> None:
        """Pass progress to the hook, if there is one, with the time left if the total is known.

        Raises
        ------
        KeyboardInterrupt
            If one came and was dropped, :func:`sdgpu.backend.signals.raise_unheard`.
        """
        raise_unheard()
        if self.progress is None:
            return
        now = time.perf_counter()
        # a stage counts from when it was first heard of
        reports = self._reports.setdefault(name, [])
        if reports and done < reports[-1][1]:
            reports.clear()
        if not reports or done > reports[-1][1]:
            reports.append((now, done))
        if len(reports) > MOST:
            del reports[1:-1:2]
        seconds_left = _seconds_left(reports, total) if total_known else math.nan
        self.progress(Event(name, done, total, error, seconds_left))


def _seconds_left(reports: list[tuple[float, int]], total: int) -> float:
    """For what is left of `total`, from the times at which so much was done.

    What comes later often costs more: bases and sketches grow. The cost of a unit is taken to go on
    growing as it did from the first half to the second.
    """
    (start, first), (now, done) = reports[0], reports[-1]
    if done >= total:
        return 0.0
    if len(reports) < FEWEST:
        return math.nan
    middle = reports[len(reports) // 2]
    early_cost = (middle[0] - start) / (middle[1] - first)
    late_cost = (now - middle[0]) / (done - middle[1])
    remaining, spacing = total - done, (done - first) / 2
    growth = max(late_cost - early_cost, 0.0) / spacing
    return remaining * (late_cost + growth * (spacing + remaining) / 2)


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
        duration = time.perf_counter() - self.start
        self.watch.seconds[self.name] = self.watch.seconds.get(self.name, 0.0) + duration
        if exc[0] is None:
            self.watch.report(self.name, 1, 1)


class SavePace:
    """When to save: the one decision of the package that a clock takes.

    Where several processes work together that of rank 0 decides for all. Everything else that takes time
    into account counts work at fixed rates (:mod:`sdgpu.backend.rates`).

    Parameters
    ----------
    interval : float
        Seconds between saves, at least.
    share : float, default infinity
        Of the time that saving may take.
    """

    def __init__(self, interval: float, share: float = math.inf) -> None:
        self.interval, self.share = interval, share
        self._last, self._cost = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() - self._last >= max(self.interval, self._cost / self.share)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save: the next interval begins at its end."""
        start = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - start
