"""What every question to a fit must pass first: numbers, data and memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.checks import check_growth, integer, lam_grid, served_lam
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.copying import without_caches
from sdgpu.backend.memory import require
from sdgpu.backend.progress import Progress
from sdgpu.distill.limit_interpolation import limit_nodes
from sdgpu.engine.path import Model
from sdgpu.engine.results import Info
from sdgpu.kernels import Kernel
from sdgpu.selection.losses import Validation, leave_one_out, validate
from sdgpu.solvers.leverage import left_out_numbers
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["Questions"]

JOINT = 1e11  # operations in units of T^4: a minute or two (T = 200: 1.4 s)


@dataclass(frozen=True, eq=False)
class Questions:
    """The state of a :class:`sdgpu.Fit`, with the checks of what it is asked."""

    kernel: Kernel
    lams: np.ndarray
    info: Info
    _solution: Solution = field(repr=False)
    _model: Model = field(repr=False)
    _progress: Progress | None = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # the hook belongs to the process that set it
        return {**without_caches(self), "_progress": None}

    def _grid(
        self, lams: Any, alphas: Any, steps: int, variables: int = 8
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Check a grid (L,), (A,), T of so many numbers for each point."""
        ridges = self.lams if lams is None else lam_grid("lams", lams)
        for ridge in ridges:
            self._lam(float(ridge))
        weights = np.linspace(0, 1, 101) if alphas is None else number_grid("alphas", alphas)
        steps = integer("steps", steps, 1)
        check_growth(weights, steps)
        points = len(ridges) * len(weights) * steps
        allowed = self._model.memory
        require(
            8 * variables * points, allowed, f"a grid of {points:,} points", "use a coarser grid"
        )
        limits = 0
        if not isinstance(self._solution, SpectralSolution):  # each limit is a solve
            limits = len(limit_nodes(np.array([self._solution.largest]), ridges, weights).lams)
        self._afford_steps(len(ridges), steps, 1, limits)
        return ridges, weights, steps

    def _own_spectrum(self, what: str) -> Spectrum:
        if not isinstance(self._solution, SpectralSolution):
            raise ValueError(
                f"{what} needs eigenvalues, which method={self.info.method!r} does not make: fit with "
                "method='eigh', 'lanczos' or 'subspace'"
            )
        return self._solution.spectrum

    def _afford_steps(self, lams: int, steps: int, outputs: int, limits: int = 0) -> None:
        """Refuse more steps than fit: T filters of k numbers, a triangle T x T for each lam."""
        numbers = lams * outputs * steps * (steps + 4) + 4 * self.info.k * self.info.c * steps
        if not isinstance(self._solution, SpectralSolution):  # the solutions, and their differences
            numbers += 3 * self.info.n * self.info.c * (lams * steps + limits)
        self._model.afford(numbers, f"{steps} steps for {lams} lam and {outputs} sets of weights")

    def _afford_joint(self, lams: int, steps: int, parts: int = 1) -> None:
        """Refuse joint optima that would take minutes: one factorisation for each number of steps."""
        if lams * parts * steps**4 > JOINT:
            most = int((JOINT / (lams * parts)) ** 0.25)
            raise ValueError(
                f"steps={steps}: the joint optima of so many steps take about {lams * parts} x steps^4 "
                f"operations, minutes and more; use at most {most} steps, or optimal_alphas, which "
                "takes steps^3"
            )

    def _lam(self, lam: float | None) -> float:
        return served_lam(self.lams, lam)

    def _afford_left_out(self, steps: int) -> None:
        """What the leverages need, and the predictions of every step."""
        n, c = self.info.n, self.info.c
        numbers = left_out_numbers(self._solution.leverages, n, c, steps)
        self._model.afford(numbers, f"leave-one-out of {n:,} rows")

    def _judged(
        self,
        X_val: Any,
        Y_val: Any,
        lams: np.ndarray,
        steps: int,
        *,
        per_output: bool,
        folds: int = 1,
    ) -> Validation:
        """What validation data, or the training rows left out one by one, say of every schedule."""
        if X_val is None and Y_val is None:
            self._afford_left_out(steps)
            parts = folds if self.info.n >= 2 * folds else 1
            return leave_one_out(self._solution, lams, steps, per_output=per_output, folds=parts)
        cross, truth = self._validation(X_val, Y_val)
        parts = folds if cross.shape[0] >= 2 * folds else 1
        return validate(
            self._solution, cross, truth, lams, steps, per_output=per_output, folds=parts
        )

    def _validation(self, X_val: Any, Y_val: Any) -> tuple[Any, Any]:
        """Check validation data and bring them to the device."""
        template = self._model.template
        rows = template.rows(X_val, "X_val", self._model.operator.d)
        m = int(rows.shape[0])
        truth, _ = template.truth(Y_val, "Y_val", rows=m, outputs=self.info.c)
        backend = self._model.backend
        return self._model.operator.cross(backend.asarray(rows)), backend.asarray(truth)
