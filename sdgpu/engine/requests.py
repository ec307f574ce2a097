"""Checks of what a fit is asked, before any work: numbers, data and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template
from sdgpu.backend.backends import give_back
from sdgpu.backend.checks import check_growth, integer, lam_grid, served_lam
from sdgpu.backend.checks import grid as number_grid
from sdgpu.backend.memory import require
from sdgpu.distill.limit_interpolation import limit_nodes
from sdgpu.engine.path import Model
from sdgpu.operators import Cross
from sdgpu.selection.losses import Validation, leave_one_out, validate
from sdgpu.solvers.leverage import left_out_numbers
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectrum import Spectrum

__all__ = [
    "afford_joint",
    "afford_left_out",
    "afford_steps",
    "checked_grid",
    "schedule_losses",
    "spectrum_for",
    "spectrum_given_back",
    "validation_rows",
]

JOINT = 1e11  # operations in units of T^4: a minute or two (T = 200: 1.4 s)


def spectrum_for(what: str, solution: Solution, method: str) -> Spectrum:
    """The spectrum of a solution that has one.

    Raises
    ------
    ValueError
        For a solution that is none, with the methods that make one.
    """
    if solution.spectrum is None:
        raise ValueError(
            f"{what} needs eigenvalues, which method={method!r} does not make: fit with "
            "method='eigh', 'lanczos' or 'subspace'"
        )
    return solution.spectrum


def spectrum_given_back(spectrum: Spectrum, template: Template) -> Spectrum:
    """A spectrum in the caller's library, in float64."""
    eigenvalues, Z = (
        give_back(template, array, axis=False, exact=True, copy=True)
        for array in (spectrum.eigenvalues, spectrum.Z)
    )
    basis = give_back(template, spectrum.basis, axis=False, exact=True)
    if isinstance(basis, np.ndarray):
        basis = basis.view()
        basis.flags.writeable = False  # n^2 numbers that the fit goes on to use: no copy
    return replace(spectrum, eigenvalues=eigenvalues, basis=basis, Z=Z)


def checked_grid(
    solution: Solution,
    model: Model,
    fit_lams: np.ndarray,
    lams: Any,
    alphas: Any,
    *,
    steps: int,
    variables: int = 8,
) -> tuple[np.ndarray, np.ndarray, int]:
    """A grid (L,), (A,), T of so many numbers for each point, of lam that are served.

    Raises
    ------
    TypeError, ValueError
        For lam below the fit, steps < 1, or weights that are no numbers or overflow.
    MemoryError
        If it does not fit.
    """
    grid_lams = fit_lams if lams is None else lam_grid("lams", lams)
    for lam in grid_lams:
        served_lam(fit_lams, float(lam))
    weights = np.linspace(0, 1, 101) if alphas is None else number_grid("alphas", alphas)
    steps = integer("steps", steps, 1)
    check_growth(weights, steps)
    points = len(grid_lams) * len(weights) * steps
    grid_bytes = 8 * variables * points
    require(grid_bytes, model.memory, f"a grid of {points:,} points", "use a coarser grid")
    limits = 0
    if solution.spectrum is None:  # each limit is a solve
        limits = len(limit_nodes(np.array([solution.largest]), grid_lams, weights).lams)
    afford_steps(solution, model, len(grid_lams), steps, limits=limits)
    return grid_lams, weights, steps


def afford_steps(
    solution: Solution, model: Model, lams: int, steps: int, *, outputs: int = 1, limits: int = 0
) -> None:
    """Refuse more steps than fit: T filters of k numbers, a triangle T x T for each lam.

    Raises
    ------
    MemoryError
    """
    numbers, c = lams * outputs * steps * (steps + 4), solution.outputs
    if solution.spectrum is None:  # the solutions, and their differences
        numbers += 3 * solution.rows * c * (lams * steps + limits)
    else:
        numbers += 4 * int(solution.spectrum.basis.shape[1]) * c * steps
    model.afford(numbers, f"{steps} steps for {lams} lam and {outputs} sets of weights")


def afford_joint(lams: int, steps: int, parts: int = 1) -> None:
    """Refuse joint optima that would take minutes: one factorisation for each number of steps.

    Raises
    ------
    ValueError
    """
    if lams * parts * steps**4 > JOINT:
        most_steps = int((JOINT / (lams * parts)) ** 0.25)
        raise ValueError(
            f"steps={steps}: the joint optima of so many steps take about {lams * parts} x steps^4 "
            f"operations, minutes and more; use at most {most_steps} steps, or optimal_alphas, which "
            "takes steps^3"
        )


def afford_left_out(solution: Solution, model: Model, steps: int) -> None:
    """Refuse leave-one-out that does not fit: the leverages, and the predictions of every step.

    Raises
    ------
    MemoryError
    """
    n = solution.rows
    numbers = left_out_numbers(solution.leverages, n, solution.outputs, steps)
    model.afford(numbers, f"leave-one-out of {n:,} rows")


def schedule_losses(
    solution: Solution,
    model: Model,
    X_val: Any,
    Y_val: Any,
    lams: np.ndarray,
    *,
    steps: int,
    per_output: bool,
    folds: int = 1,
) -> Validation:
    """What validation data, or the training rows left out one by one, say of every schedule."""
    options: dict[str, Any] = {"per_output": per_output}
    if X_val is None and Y_val is None:
        afford_left_out(solution, model, steps)
        options["folds"] = folds if solution.rows >= 2 * folds else 1
        return leave_one_out(solution, lams, steps, **options)
    cross, truth = validation_rows(model, X_val, Y_val, solution.outputs)
    options["folds"] = folds if cross.shape[0] >= 2 * folds else 1
    return validate(solution, cross, truth, lams, steps, **options)


def validation_rows(model: Model, X_val: Any, Y_val: Any, outputs: int) -> tuple[Cross, Any]:
    """Check validation data and bring them to the device: kappa(X_val, X), and Y_val (m, c)."""
    rows = model.template.rows(X_val, "X_val", model.operator.d)
    truth, _ = model.template.truth(Y_val, "Y_val", rows=int(rows.shape[0]), outputs=outputs)
    return model.operator.cross(model.backend.asarray(rows)), model.backend.asarray(truth)
