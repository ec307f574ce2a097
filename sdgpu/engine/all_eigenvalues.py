"""What only fits that know all their eigenvalues answer: other smoothers, and a lam for each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.checks import grid, served_lam
from sdgpu.distill.smoothers import RIDGE, Smoother, smoother_of
from sdgpu.engine.results import Info
from sdgpu.solvers.solution import Solution

__all__ = ["lam_of_steps", "smoothed"]


def smoothed(solution: Any, info: Info, smoother: Smoother) -> tuple[Any, Info]:
    """A solution and how it was made, with another smoother.

    Its dual coefficients are at most `slope` times those of ridge: so is what rounding may do.

    Raises
    ------
    ValueError
        For a solution that grew for ridge.
    """
    before = smoother_of(solution)
    if smoother.name == before.name == RIDGE.name:
        return solution, info
    if not hasattr(solution, "smoother") or solution.spectrum is None:
        raise ValueError(
            f"smoother= needs eigenvalues, and method={info.method!r} has none: use 'eigh'"
        )
    if not solution.spectrum.holds_kernel:
        raise ValueError(
            f"smoother={smoother.name!r} needs all eigenvalues: method={info.method!r} grew a basis for "
            "ridge alone; fit with method='eigh' or 'primal', lams > 0, or with features="
        )
    error = info.error_estimate * max(smoother.slope, 1.0) / max(before.slope, 1.0)
    info = replace(info, smoother=smoother.name, error_estimate=error)
    return replace(solution, smoother=smoother), info


def lam_of_steps(
    solution: Solution, fit_lams: np.ndarray, lam: Any, steps: int
) -> float | np.ndarray:
    """One lam for all steps, or one for each (T,), which takes all eigenvalues.

    Raises
    ------
    TypeError, ValueError
    """
    if lam is None or np.ndim(lam) == 0:
        return served_lam(fit_lams, lam)
    lams = np.array([served_lam(fit_lams, float(x)) for x in grid("lam", lam)])
    if len(lams) != steps:
        raise ValueError(f"lam has {len(lams)} entries for steps={steps}: give one for each step")
    spectrum = solution.spectrum
    if spectrum is None or not spectrum.holds_kernel:
        raise ValueError(
            "lam: one for each step needs all eigenvalues, a basis grew for chains of one lam; fit with "
            "method='eigh' or 'primal'"
        )
    return lams
