"""What only fits that know all their eigenvalues answer: other smoothers, and a lam for each step."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.scaling import column_units
from sdgpu.distill.filters import stepwise_filters, train_filter
from sdgpu.distill.smoothers import RIDGE, Smoother, smoother_of
from sdgpu.engine.results import Info
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["smoothed", "step_filters"]


EXACT = 1e-6  # a fit that may be off by more warns, as an eigendecomposition does


def smoothed(solution: Any, info: Info, smoother: Smoother, lams: np.ndarray) -> tuple[Any, Info]:
    """A solution and how it was made, with another smoother.

    Its dual coefficients are at most `slope` times those of ridge: so is what rounding may do. A smoother
    with a step also moves by that step where an eigenvalue and a lam (L,) are alike to rounding.

    Warns
    -----
    UserWarning
        If predictions at one of the lams may be off by more than 1e-6 of those of step 1.

    Raises
    ------
    ValueError
        For a solution that grew for ridge.
    """
    base = info.of_ridge or info
    if smoother.name == RIDGE.name:
        changed = smoother_of(solution).name != RIDGE.name
        return (replace(solution, smoother=RIDGE) if changed else solution), base
    if info.method == "average":
        raise ValueError(
            f"smoother={smoother.name!r} of a mean of the workers' fits, which are of ridge: merge their "
            "messages, space.fit(messages, lams), and take the smoother of that"
        )
    if not hasattr(solution, "smoother") or solution.spectrum is None:
        raise ValueError(
            f"smoother= needs eigenvalues, and method={info.method!r} has none: use 'eigh'"
        )
    if not solution.spectrum.holds_kernel:
        raise ValueError(
            f"smoother={smoother.name!r} needs all eigenvalues: method={info.method!r} grew a basis for "
            "ridge alone; fit with method='eigh' or 'primal', lams > 0, or with features="
        )
    moved = _moved_by_rounding(solution.spectrum, smoother, lams)
    error = max(base.error_estimate * max(smoother.slope, 1.0), moved)
    how: dict[str, Any] = {"smoother": smoother.name, "error_estimate": error, "of_ridge": base}
    if moved > EXACT:
        how["status"] = (
            f"inaccurate with smoother={smoother.name!r}: rounding of the eigenvalues may move "
            f"predictions at a lam by {moved:.1e} of those of step 1; take lams apart from eigenvalues and "
            "from rounding"
        )
        warnings.warn(how["status"], stacklevel=4)
    info = replace(base, **how)
    return replace(solution, smoother=smoother), info


def _moved_by_rounding(spectrum: Spectrum, smoother: Smoother, lams: np.ndarray) -> float:
    """||(g(delta + r) - g(delta - r)) Z|| over ||g Z||, r the rounding of an eigenvalue; largest of lam."""
    delta, Z = to_numpy(spectrum.eigenvalues), to_numpy(spectrum.Z)
    if not len(delta):
        return 0.0
    Z = Z / column_units(Z)
    rounding = len(delta) * float(np.finfo(float).eps) * float(delta[-1])
    sides = (np.maximum(delta - rounding, 0.0), delta, delta + rounding)
    low, own, high = (smoother.shrinkage(side, lams)[..., None] for side in sides)
    moved, sizes = (np.linalg.norm(g * Z, axis=1) for g in (high - low, own))  # (L, c)
    relative = np.divide(moved, sizes, out=np.zeros_like(moved), where=sizes > 0)
    return float(relative.max(initial=0.0))


def step_filters(solution: Solution, lam: float | np.ndarray, alphas: np.ndarray) -> Any:
    """B(1..T) (T, k), with one lam or one for each step."""
    assert solution.spectrum is not None
    delta, smoother = solution.spectrum.eigenvalues, smoother_of(solution)
    if isinstance(lam, np.ndarray):
        return stepwise_filters(delta, lam, alphas, smoother)[0]
    return train_filter(delta, lam, alphas, smoother)
