"""What a fit asks of a solver that it was given."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from sdgpu.backend.progress import Stopwatch
from sdgpu.operators import Operator
from sdgpu.solvers.solution import Solution

__all__ = ["Solver"]


class Solver(Protocol):
    """A value that solves (K + lam I) w = Y for every lam: ``sdgpu.fit(.., method=solver)``.

    Attributes
    ----------
    name : str
        For plans and results.
    """

    @property
    def name(self) -> str: ...

    def peak_bytes(self, n: int, d: int, c: int) -> int:
        """Bytes at the peak, K included if it is held."""

    def solve(self, operator: Operator, Y: Any, lams: np.ndarray, watch: Stopwatch) -> Solution:
        """Serve targets Y (n, c) and all lam >= min(lams); Y and K are in the library of the fit."""
