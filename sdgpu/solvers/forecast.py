"""How many passes an error that falls needs to its goal, from what it did so far."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["Decay"]

WINDOW = 5  # passes over which a slope is taken, at least; a third of all later on
FAR = 8.0  # times the passes so far: a forecast beyond says nothing


class Decay:
    """The errors against the passes, on a logarithmic scale.

    Krylov spaces of smooth kernels converge ever faster, so the slope is taken to go on steepening as it
    did between the last two windows; a slope that got flatter is taken as it is.

    Parameters
    ----------
    goal : float
        Where the passes end.
    """

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self._passes: list[int] = []
        self._logs: list[float] = []
        self.expected: int | None = None

    def note(self, passes: int, error: float) -> None:
        """Take one error into account: `expected` is then the number of passes in all, if known."""
        if 0 < error < math.inf:
            self._passes.append(passes)
            self._logs.append(math.log(error))
            self.expected = self._forecast()

    def _forecast(self) -> int | None:
        passes, first = self._passes[-1], self._passes[0]
        if self._logs[-1] <= math.log(self.goal):
            return passes
        width = max(WINDOW, passes // 3)
        if passes - first < width:
            return None
        slope, level = self._line(passes - width, passes)
        curvature = 0.0
        if passes - first >= 2 * width:
            curvature = max(slope - self._line(passes - 2 * width, passes - width)[0], 0.0) / width
        slope += curvature * width / 2  # at this pass, not in the middle of the window
        drop = max(level - math.log(self.goal), slope)  # not there yet
        if slope * FAR * passes < 0.01 * drop:
            return None
        # slope m + curvature m^2 / 2 = drop
        remaining = 2 * drop / (slope + math.sqrt(slope**2 + 2 * curvature * drop))
        return passes + math.ceil(remaining) if remaining <= FAR * passes else None

    def _line(self, low: int, high: int) -> tuple[float, float]:
        """By how much the logarithm falls in a pass, and where it ends: a line through a window."""
        passes = np.arange(low, high + 1)
        slope, level = np.polyfit(passes - high, np.interp(passes, self._passes, self._logs), 1)
        return -float(slope), float(level)
