"""Whether distillation is worth it on a data set, how many steps, and by how much.

From the fit alone. Leave-one-out judges every schedule on a fine grid of lam, and the best of 2, 3, ..
steps, each with its own best lam, is held against the ordinary fit with *its* best lam: chosen on parts
of the rows and judged on the others (:mod:`sdgpu.selection.step_choice`), which gives the gain and its
standard error. How many steps are enough is tested in the eigenbasis, against what chance makes of so
many steps there (:mod:`sdgpu.distill.step_tests`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import integer, lam_grid
from sdgpu.backend.scaling import safe_unit
from sdgpu.distill.joint_weights import ROUNDING
from sdgpu.distill.step_tests import DRAWS, GcvColumns, enough_steps
from sdgpu.engine.grid_sweep import SweptFit
from sdgpu.engine.requests import afford_joint, checked_grid, judge, spectrum_for
from sdgpu.selection.best_point import Best
from sdgpu.selection.step_choice import StepChoice, choose_steps
from sdgpu.solvers.spectrum import Spectrum

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Advice", "advise"]

LEAST_ROWS = 20
FOLDS = 40  # parts of the rows: the standard error of the gain is that of so many differences
PER_DECADE = 8  # lam of the grid
MOST_LAMS = 80
LEAST_RIDGE = 1e-12  # of the largest eigenvalue: below it there is rounding


@dataclass(frozen=True, eq=False)
class Advice:
    """What distillation is worth on a data set. `print` says it in words.

    Attributes
    ----------
    worthwhile : bool
        Whether more steps than one surely save something.
    steps : int
        How many to take, 1 for the ordinary fit alone: `steps - 1` of distillation.
    gain : float
        Mean squared error on left-out rows of the ordinary fit with its best lam, less that of the best
        chain of `steps` steps, or of two where none is worthwhile.
    standard_error : float
        Of the gain, from its spread over parts of the rows, which are paired.
    lam : float
        The best for so many steps.
    alphas : array (steps - 1,)
        The weights of steps 2.., for :meth:`Fit.path`.
    table : xarray.Dataset
        Over step 1..T: lam, alpha (.., weight), mse (leave-one-out, on the rows that chose), nested_mse
        (on rows that had no part in choosing), chance (of what more steps save, if so many were enough;
        NaN behind the answer); gain and standard_error (step, than): what
        step saves against `than`.
    at_edge : bool
        Whether the ordinary fit wants a lam at an end of the grid: then it is not tuned, and the gain may
        be that of another lam.
    """

    worthwhile: bool
    steps: int
    gain: float
    standard_error: float
    lam: float
    alphas: np.ndarray
    table: xr.Dataset = field(repr=False)
    at_edge: bool = False

    @property
    def relative_gain(self) -> float:
        """The gain as a share of the error of the ordinary fit, noise included."""
        base = float(self.table["nested_mse"][0])
        return self.gain / base if base > 0 else 0.0

    @property
    def best(self) -> Best:
        """What is advised as a choice, for :meth:`Fit.predictor`; its value is the gain."""
        return Best(
            lam=self.lam,
            alpha=self.alphas if self.steps > 1 else np.nan,
            step=self.steps,
            mse=float(self.table["nested_mse"][self.steps - 1]),
            criterion="gain",
            value=self.gain,
        )

    def __str__(self) -> str:
        base, most = float(self.table["nested_mse"][0]), self.table.sizes["step"]
        percent, error = 100 * self.relative_gain, 100 * self.standard_error / (base or 1.0)
        size = f"{percent:.2g} % +- {error:.1g} % of the mean squared error on left-out rows, {base:.4g}"
        chance = float(self.table["chance"][0])
        known = (
            "" if np.isnan(chance) else f" (chance alone would seem to with {100 * chance:.2g} %)"
        )
        if self.worthwhile:
            weights = ", ".join(f"{alpha:.3g}" for alpha in self.alphas)
            more = "" if self.steps == most else f"; up to {most} steps were tried"
            text = (
                f"Distillation is worth it here: {self.steps} steps save {size}{known}, at lam = "
                f"{self.lam:.4g} with alpha = {weights}{more}."
            )
        else:
            text = (
                f"Distillation is not worth it here: 2 steps save {size}, and up to {most} no more than "
                f"chance may{known}; take the ordinary fit at lam = {self.lam:.4g}."
            )
        if self.at_edge:
            text += (
                " Its best lam is at an end of the grid: fit for a wider range of lam before you "
                "believe this."
            )
        return text


def advise(fitted: SweptFit, lams: Any = None, steps: int = 5) -> Advice:
    """Whether distillation is worth it: see :meth:`sdgpu.engine.fitted.Fit.advise`.

    Raises
    ------
    TypeError, ValueError, MemoryError
        Before any work.
    """
    solution, model, info = fitted.solution, fitted.model, fitted.info
    spectrum = spectrum_for("advice on distillation", solution, info.method, needs_all=True)
    _refuse_estimates(fitted, spectrum)
    steps, n = integer("steps", steps, 2), solution.counted
    if n < LEAST_ROWS:
        raise ValueError(
            f"n = {n} rows say too little about what distillation saves: at least {LEAST_ROWS} are "
            "needed; compare on validation rows with fit.sweep(X_val, Y_val)"
        )
    grid = _lams(fitted) if lams is None else np.unique(lam_grid("lams", lams))
    grid, _, steps = checked_grid(solution, model, fitted.lams, grid, np.zeros(1), steps=steps)
    model.afford((DRAWS + len(grid) * steps) * info.k, "advice on distillation")
    folds = int(np.clip(n // 10, LEAST_ROWS // 2, FOLDS))
    afford_joint(len(grid), steps, folds + 1)
    rows = judge(solution, model, None, None, steps)
    validation = rows.losses(grid, steps, folds=folds)
    choice = choose_steps(validation, grid, float(np.clip(info.error_estimate, ROUNDING, 1.0)))
    enough, chances = _tested(spectrum, choice, grid, n, solution.leverages.unpenalised)
    if not choice.gain[enough - 1, 0] > choice.standard_error[enough - 1, 0]:
        enough = 1  # left-out rows do not agree
    return _advice(choice, grid, enough, chances)


def _refuse_estimates(fitted: SweptFit, spectrum: Spectrum) -> None:
    """Refuse leverages from probes, whose errors large weights amplify, and a null that cannot be drawn.

    Raises
    ------
    ValueError
    """
    if fitted.info.method == "average":
        raise ValueError(
            "advice on distillation leaves training rows out, and a mean of the workers' fits has none of "
            "its own: sweep validation rows"
        )
    if not fitted.solution.leverages.exact:
        raise ValueError(
            f"advice on distillation needs all eigenvalues, and method={fitted.info.method!r} estimates "
            "leverages, whose errors the weights of several steps amplify until they look like gains: fit "
            "with method='eigh', or with features="
        )
    if spectrum.outside is not None and not np.isfinite(to_numpy(spectrum.outside)).all():
        raise ValueError("squares of the targets leave float64: divide Y by a number near its size")


def _lams(fitted: SweptFit) -> np.ndarray:
    """From the smallest lam that is served to ten times the largest eigenvalue."""
    largest = fitted.solution.largest
    # least norm, lam = 0, is no ridge to begin with
    low = max(float(fitted.lams.min()), LEAST_RIDGE * largest, np.finfo(float).tiny)
    high = max(10 * largest, float(fitted.lams.max()), 10 * low)
    count = int(np.clip(np.ceil(PER_DECADE * np.log10(high / low)), 2, MOST_LAMS)) + 1
    grid = np.geomspace(low, high, count)
    grid[0] = low  # to the last bit: a smaller one is not served
    return grid


def _tested(
    spectrum: Spectrum, choice: StepChoice, grid: np.ndarray, n: int, unpenalised: int
) -> tuple[int, np.ndarray]:
    """How many steps are enough, and the chances of :func:`sdgpu.distill.step_tests.enough_steps`."""
    eigenvalues, Z = to_numpy(spectrum.eigenvalues), to_numpy(spectrum.Z)
    # rows of weight 0 and an intercept leave directions in which nothing can be seen
    blind, unit = (
        max(len(eigenvalues) + unpenalised - n, 0),
        safe_unit(float(np.abs(Z).max(initial=0.0))),
    )
    eigenvalues, Z = eigenvalues[blind:], Z[blind:] / unit
    outside = n - len(eigenvalues) - unpenalised
    squares = np.append(np.mean(Z * Z, axis=1), 0.0)
    if spectrum.outside is not None and outside > 0:
        squares[-1] = np.mean(to_numpy(spectrum.outside) / unit / unit) / outside
    lam = float(grid[choice.lam_index[0]])
    errors = (lam / (eigenvalues + lam))[:, None] * Z
    gram = errors.T @ errors if Z.shape[1] <= len(Z) else errors @ errors.T
    # outputs with the same errors are one
    outputs = np.trace(gram) ** 2 / max(float(np.sum(gram * gram)), 1e-300)
    degrees = np.append(np.ones(len(eigenvalues)), float(outside)) * max(float(outputs), 1.0)
    columns = GcvColumns.of(eigenvalues, grid[::2], len(choice.nested), n, unpenalised)
    return enough_steps(eigenvalues, squares, columns, lam=lam, degrees=degrees)


def _advice(choice: StepChoice, grid: np.ndarray, steps: int, chances: np.ndarray) -> Advice:
    shown = max(steps, 2)
    return Advice(
        worthwhile=steps > 1,
        steps=steps,
        gain=float(choice.gain[shown - 1, 0]),
        standard_error=float(choice.standard_error[shown - 1, 0]),
        lam=float(grid[choice.lam_index[steps - 1]]),
        alphas=choice.schedules[steps - 1, : steps - 1].copy(),
        table=_table(choice, grid, chances),
        at_edge=int(choice.lam_index[0]) in (0, len(grid) - 1),
    )


def _table(choice: StepChoice, grid: np.ndarray, chances: np.ndarray) -> xr.Dataset:
    import xarray as xr

    T = len(choice.nested)

    dataset = xr.Dataset(
        {
            "lam": ("step", grid[choice.lam_index]),
            "alpha": (("step", "weight"), choice.schedules),
            "mse": ("step", choice.losses),
            "nested_mse": ("step", choice.nested),
            "chance": ("step", np.append(chances, np.nan)),
            "gain": (("step", "than"), choice.gain),
            "standard_error": (("step", "than"), choice.standard_error),
        },
        coords={
            "step": np.arange(1, T + 1),
            "than": np.arange(1, T + 1),
            "weight": np.arange(2, T + 1),
        },
    )
    for name, text in _MEANING.items():
        dataset[name].attrs["long_name"] = text
    return dataset


_MEANING = {
    "lam": "best ridge of K + lam I",
    "alpha": "best weights of the ground truth at steps 2..",
    "mse": "leave-one-out error on the rows that chose",
    "nested_mse": "leave-one-out error on rows that had no part in choosing",
    "chance": "of what more steps save, if these were enough",
    "gain": "what is saved against so many steps",
    "standard_error": "its standard error, from folds",
}
