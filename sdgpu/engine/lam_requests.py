"""Checks of lam: one for all steps, one for each, and schedules of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import grid, lam_grid, served_lam
from sdgpu.distill.lam_schedules import backward_rows
from sdgpu.solvers.solution import Solution

__all__ = ["lam_of_steps", "lam_rows", "one_lam", "schedules_of_lam"]


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
    if spectrum is None or not spectrum.serves_schedules:
        raise ValueError(
            "lam: one for each step needs all eigenvalues, a basis grew for chains of one lam; fit with "
            "method='eigh' or 'primal'"
        )
    return lams


def schedules_of_lam(solution: Solution, fit_lams: np.ndarray, lams: Any, steps: int) -> np.ndarray:
    """Schedules of lam (S, T), one for each step, which take all eigenvalues.

    Raises
    ------
    TypeError, ValueError
    """
    host = np.asarray(lams if isinstance(lams, (list, tuple)) else to_numpy(lams))
    if not len(host):
        raise ValueError("lams is empty: give at least one schedule")
    if host.shape[1] != steps:
        raise ValueError(
            f"lams has {host.shape[1]} columns for steps={steps}: rows are schedules, one lam for each step"
        )
    rows = lam_grid("lams", host.reshape(-1)).reshape(host.shape)
    lam_of_steps(solution, fit_lams, rows[0], steps)
    return rows


def one_lam(fit_lams: np.ndarray, lam: Any, what: str) -> float:
    """The lam of what has no steps of their own.

    Raises
    ------
    TypeError, ValueError
    """
    if lam is not None and np.ndim(lam):
        raise ValueError(f"{what} has one lam, and lam={np.asarray(lam).tolist()} names several")
    return served_lam(fit_lams, lam)


def lam_rows(lam: float | np.ndarray) -> np.ndarray:
    """Lam of losses: (1,), or with one for each step a row for each, (T, T)."""
    return backward_rows(lam[None]) if isinstance(lam, np.ndarray) else np.array([lam])
