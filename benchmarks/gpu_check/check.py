"""One check: a name, a function, and the seconds that it may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Check", "Setting", "Skipped", "timed"]


class Skipped(Exception):  # noqa: N818 - no error
    """Raised by a check that cannot be made here; its text says why."""


@dataclass(frozen=True)
class Setting:
    """Where checks run.

    Attributes
    ----------
    device : str
        "cuda", or "cpu" in a dry run.
    dry : bool
        Small problems on the CPU, which show that the checks themselves are right.
    """

    device: str = "cuda"
    dry: bool = False

    def size(self, full: int, dry: int) -> int:
        """A number of rows, or of whatever makes a check long."""
        return dry if self.dry else full

    def wait(self) -> None:
        """Until the device is done."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


@dataclass(frozen=True)
class Check:
    """A check by its name.

    Attributes
    ----------
    name : str
    place : str
        "module:function" of this package. The function takes a Setting and gives a dictionary of figures;
        it raises AssertionError, or anything else, where something is wrong, and Skipped where it cannot
        be made.
    seconds : int
        After which its process is ended.
    """

    name: str
    place: str
    seconds: int

    def function(self) -> Callable[[Setting], dict[str, Any]]:
        """What is run."""
        module, _, name = self.place.partition(":")
        found: Callable[[Setting], dict[str, Any]] = getattr(
            importlib.import_module(f"benchmarks.gpu_check.{module}"), name
        )
        return found


def timed(setting: Setting, work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of work(), the shortest of some; it has been called once before."""
    import time

    work()
    shortest = float("inf")
    for _ in range(repeats):
        setting.wait()
        start = time.perf_counter()
        work()
        setting.wait()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
