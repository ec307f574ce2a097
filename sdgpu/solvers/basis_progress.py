"""When a growing basis stops: success, no progress, no room, or something else that is done sooner."""

from __future__ import annotations

import numpy as np

from sdgpu.backend.progress import Stopwatch
from sdgpu.solvers.forecast import Decay

__all__ = ["BasisProgress"]

PATIENCE = 15  # passes after which an error that has not fallen below STALLED of its best will not
EARLY = 0.05  # larger errors may wander before they fall
STALLED = 0.7
LOOK = 8  # passes of block Lanczos without a look at the error, at most


class BasisProgress:
    """How far a basis has come, and whether it is time to stop.

    Parameters
    ----------
    tol : float
        Relative error of the predictions to reach.
    max_passes : int
    patience : float
        Passes after which something else would have been done.
    limit, n : int
        The largest basis that the memory allows, and the largest there is.
    """

    def __init__(self, *, tol: float, max_passes: int, patience: float, limit: int, n: int) -> None:
        self.tol, self.max_passes, self.patience = tol, max_passes, patience
        self.limit, self.n = limit, n
        self.passes = self.restarts = self.next_look = 0
        self.history: list[float] = []
        self.decay = Decay(tol)
        self.given_up = False
        self.rounding, self.goal = 0.0, tol  # no basis is better than rounding lets it be

    @property
    def error(self) -> float:
        """The last bound on the relative error of the predictions, rounding left out."""
        return self.history[-1] if self.history else np.inf

    @property
    def stalled(self) -> bool:
        """Whether the error has stopped to fall."""
        history = self.history
        if len(history) <= PATIENCE or history[-1] >= EARLY:
            return False
        return min(history[-PATIENCE:]) > STALLED * min(history[:-PATIENCE])

    @property
    def forecast(self) -> int:
        """Passes in all if the error goes on to fall as it did."""
        if not 0 < self.error < 1 or self.passes < 3:
            return self.max_passes
        passes = self.passes * np.log(self.tol) / np.log(self.error)
        return int(min(max(passes, self.passes), self.max_passes))

    def report(self, watch: Stopwatch) -> None:
        """Report the progress, with a forecast where there is one."""
        expected = self.decay.expected
        total = self.max_passes if expected is None else max(expected, self.passes)
        watch.report("passes", self.passes, total, self.error, total_known=expected is not None)

    def due(self, next_size: int) -> bool:
        """Whether to look at the error of a Krylov space, which can grow without to its next size."""
        full = next_size > self.limit
        return self.passes >= self.next_look or full or self.passes >= self.max_passes

    def note(self, error: float) -> None:
        """Take the error into the history, and choose when to look next."""
        self.history.append(error)
        self.decay.goal = self.goal
        self.decay.note(self.passes, error)
        interval = (self.forecast - self.passes) // 2 if self.passes >= 3 else 2
        self.next_look = self.passes + min(max(interval, 1), LOOK)

    def should_stop(self, size: int) -> bool:
        """Whether to stop, with or without success."""
        # passes, not seconds: what else runs on the machine must not decide
        slow = self.passes >= max(8, 0.2 * self.patience)
        if slow and self.error > self.goal:
            self.given_up = self.forecast > self.patience
        return self.error <= self.goal or self.stalled or self.given_up or size >= self.n

    def status(self, size: int, *, full: bool) -> str:
        """A sentence for the result."""
        tol, total = self.tol, self.error + self.rounding
        restarts = f" and {self.restarts} restarts" if self.restarts else ""
        bound = f"relative error of the predictions at most {total:.1e}"
        accuracy = f"{bound} after {self.passes} passes{restarts}"
        if total <= tol:
            return f"converged: {accuracy}, {size} basis vectors"
        if self.error <= self.goal:
            return (
                f"limited by rounding: {accuracy}, of which {self.rounding:.1e} is what float64 may leave "
                f"at the smallest lam; tol = {tol:.1e}: raise the smallest lam or tol"
            )
        if self.given_up:
            return f"given up: {accuracy}; an eigendecomposition takes less time"
        failure = f"not converged: {accuracy}, tol = {tol:.1e}"
        if full and self.restarts:
            return (
                f"{failure}: a basis of {self.limit} vectors, which the memory allows, is too small; raise "
                "memory=, take method='cg', a larger smallest lam or a larger tol"
            )
        if full:
            return (
                f"{failure}: the precision allows no more; use dtype='float64', a larger smallest lam or "
                "a larger tol"
            )
        return (
            f"{failure}; allow more passes or memory, take method='subspace' with a higher rank, or a "
            "larger smallest lam"
        )
