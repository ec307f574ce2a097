"""Validation losses of a whole grid, streamed over blocks of validation rows.

For every block: one product kappa(X_block, X) V with the columns V of the answers (eigenvectors, or
solutions), the values of all lam and steps from it, and a QR update of one small triangle for each lam.
Memory stays bounded whatever m and c are.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.scaling import safe_unit
from sdgpu.backend.sharded_arrays import first_row, own_part
from sdgpu.distill.loss_triangles import merge_rows, step_columns
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.validation_rows import ValidationRows
from sdgpu.solvers.solution import Solution, differences

__all__ = ["Validation", "leave_one_out", "loss_columns", "merged_folds", "validate"]


@dataclass(frozen=True, eq=False)
class Validation:
    """What the validation rows say about every schedule.

    Attributes
    ----------
    triangles : array (L, T, T), or (L, c, T, T) per output
        R of :mod:`sdgpu.distill.loss_triangles`, as host numbers.
    limits : array (M,)
        Sums of squared errors of the limits that were asked for.
    zero : float
        Sum of squares of the targets: the loss of the zero function.
    rows, outputs : int
        m and c.
    replicates : array (g, L, T, T) or (g, L, c, T, T), optional
        Triangles without each group of probes, where leverages are estimates.
    folds : array (F, ..) like triangles
        Those of the parts of the rows.
    unit : float
        What targets and predictions were divided by: losses are in units of its square.
    weight : float, optional
        Sum of the weights of the rows; m without.
    """

    triangles: np.ndarray
    limits: np.ndarray
    zero: float
    rows: int
    outputs: int
    replicates: np.ndarray | None = None
    folds: np.ndarray | None = None
    unit: float = 1.0
    weight: float | None = None

    def merge(self, other: Validation) -> Validation:
        """The same of the rows of both: of two blocks, two workers.

        Raises
        ------
        ValueError
            If they are of other grids, or leverages were estimated.
        """
        if self.triangles.shape != other.triangles.shape or len(self.limits) != len(other.limits):
            raise ValueError("losses of other grids do not add up")
        if self.replicates is not None or other.replicates is not None:
            raise ValueError(
                "losses with estimated leverages do not add up: their rows belong together"
            )
        unit = max(self.unit, other.unit)
        factor, other_factor = (np.float64(validation.unit) / unit for validation in (self, other))
        folds = None
        if self.folds is not None and other.folds is not None:
            folds = np.asarray(merge_rows(self.folds * factor, other.folds * other_factor))
        return Validation(
            triangles=np.asarray(
                merge_rows(self.triangles * factor, other.triangles * other_factor)
            ),
            limits=self.limits * factor**2 + other.limits * other_factor**2,
            zero=self.zero * factor**2 + other.zero * other_factor**2,
            rows=self.rows + other.rows,
            outputs=self.outputs,
            folds=folds,
            unit=unit,
            weight=self.total + other.total,
        )

    def of_all_outputs(self) -> Validation:
        """Triangles (.., c, T, T) per output as those of all outputs together (.., T, T)."""
        return replace(
            self,
            triangles=_stacked(self.triangles),
            replicates=None if self.replicates is None else _stacked(self.replicates),
            folds=None if self.folds is None else _stacked(self.folds),
        )

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.rows) if self.weight is None else self.weight

    @property
    def scale(self) -> float:
        """What makes a sum of squares here the mean squared error of the targets as they are."""
        with np.errstate(over="ignore", under="ignore"):
            scale = np.float64(self.unit) * self.unit / (self.total * self.outputs)
        if not 0 < scale < np.inf:
            warnings.warn(
                f"squared errors of targets of size {self.unit:.0e} leave float64: divide Y by a number "
                "that brings it near 1",
                stacklevel=4,
            )
        return float(scale)


def validate(
    solution: Solution,
    data: ValidationRows,
    lams: np.ndarray,
    steps: int,
    *,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
    per_output: bool = False,
    folds: int = 1,
    scores: GridScores | None = None,
    watch: Stopwatch | None = None,
) -> Validation:
    """Make the triangles of all lam, and the losses of some limits.

    Parameters
    ----------
    solution : Solution
    data : ValidationRows
        kappa(X_val, X), or features, in blocks, and targets.
    lams : array (L,)
    steps : int
        T.
    limits : pair of arrays (M,), optional
        lam and alpha of limits to evaluate.
    per_output : bool, default False
        One triangle for each output instead of one for all.
    folds : int, default 1
        Parts of the rows that get triangles of their own too, every folds-th row each.
    scores : GridScores, optional
        Counts metrics on the way.
    watch : Stopwatch, optional
        Hears of the progress.

    Notes
    -----
    m n k + m k L T c multiplications; about n^2 / 2 doubles beside the basis.
    """
    n, c, unit = data.width, data.outputs, data.unit
    limit_grid = limits if limits is not None else (np.zeros(0), np.zeros(0))
    expansion = solution.expand(lams, steps, limit_grid)
    k = int(expansion.columns.shape[1])
    # the peak of the fit is 3 n^2 doubles: this stays well inside, n^2 for the basis included
    chunk = max(2**18, min(2**22, n * n // 8)) // max(expansion.numbers, 1)
    lam_rows = max(1, chunk // steps)
    lam_slices = list(slices(len(lams), lam_rows))
    parts: list[list[Any]] = [[None] * len(lam_slices) for _ in range(folds)]
    sums, zero, done, total = np.zeros(len(limit_grid[0])), 0.0, 0, 0.0
    width = n + k + min(lam_rows, len(lams)) * steps * c
    entries = max(2**20, min(2**24, n * n // 2)) * n // max(width, 1)
    for start, block, targets, weights in data.blocks(entries):
        projected = block @ expansion.columns  # (b, k)
        truth, rows = _divided(targets, unit), _WeightedBlock.of(weights, targets)  # (b, c)
        squared = rows.scaled(truth)
        zero += float(compat.array_namespace(truth).sum(squared * squared))
        for i, part in enumerate(lam_slices):
            basis = _divided(expansion.steps(projected, part), unit)  # (l, T, b, c)
            if scores is not None and truth.shape[0]:
                how = {"unit": unit, "offset": data.offset, "weights": rows.weights}
                scores.add(part, basis, truth, new_rows=i == 0, **how)
            basis = rows.scaled(basis)
            for f in range(folds):
                fold = slice((f - start) % folds, None, folds)
                columns = loss_columns(
                    basis[:, :, fold, :], squared[fold, :], per_output=per_output
                )
                parts[f][i] = merge_rows(parts[f][i], columns)
        for part in slices(len(sums), max(1, chunk)):
            limit_values = rows.scaled(_divided(expansion.limits(projected, part), unit))
            sums[part] += _squared_errors(limit_values, squared)
        done, total = done + int(truth.shape[0]), total + rows.total
        if watch is not None:
            watch.report("validation", done, data.rows or done, total_known=data.rows is not None)
    if not (done or data.rows):  # of several ranks, some may have none
        raise ValueError("X_val has no rows: at least one is needed")
    triangles = np.stack([np.concatenate([to_numpy(part) for part in fold]) for fold in parts])
    everything = data.rows is None or done == data.rows  # of several ranks, one may have no weight
    if done and everything and not total > 0:
        raise ValueError("the weights of the validation rows are all 0: no loss can be taken")
    return Validation(
        triangles=merged_folds(triangles),
        limits=sums,
        zero=zero,
        rows=done,
        outputs=c,
        folds=triangles,
        unit=unit,
        weight=total,
    )


def leave_one_out(
    solution: Solution,
    lams: np.ndarray,
    steps: int,
    *,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
    per_output: bool = False,
    folds: int = 1,
    scores: GridScores | None = None,
    watch: Stopwatch | None = None,
    offset: Any = None,
    weighting: RowWeighting | None = None,
) -> Validation:
    """The same with every training row judged by the fit without it, and without a refit.

    By Theorem 4.1 for the data without a row, the steps of every schedule are combinations of the
    steps with alpha = 0 there too: their leave-one-out predictions serve as the basis. With
    the `weighting` of the fit squares are weighted; metrics see `offset` added, an intercept. Of rows on
    several ranks what the own ones say (:func:`sdgpu.selection.rank_losses.on_all_ranks`).

    Notes
    -----
    O(n^2 T c) for each lam. With estimated leverages their spread is kept as replicates.
    """
    limit_grid = limits if limits is not None else (np.zeros(0), np.zeros(0))
    parts, sums, zero = [], np.zeros(len(limit_grid[0])), 0.0
    replicate_triangles: list[np.ndarray] = []
    n, c, leverages = solution.rows, solution.outputs, solution.leverages
    unit = _unit(solution.targets)
    # several lam share the products; intermediates stay below 64 MiB or one lam
    row_numbers = c * leverages.copies + 2 * (leverages.copies - 1)
    for part in slices(len(lams), max(1, 2**23 // (n * row_numbers * (steps + 1)))):
        left_out = solution.left_out(lams[part], steps)
        truth = _divided(left_out.targets, unit)
        collapsed = truth if weighting is None else weighting.left_out_collapse(truth)
        collapsed = own_part(collapsed)
        zero = float(compat.array_namespace(collapsed).sum(collapsed * collapsed))
        u = _divided(left_out.steps, unit)
        if scores is not None:
            _score_left_out(scores, part, (u, truth, weighting), unit=unit, offset=offset)
        first, u, truth = first_row(u), own_part(u), own_part(truth)
        rows = [slice((f - first) % folds, None, folds) for f in range(folds)]
        parts.append(
            np.stack(
                [
                    _triangles(u[:, :, fold, :], truth[fold, :], per_output=per_output)
                    for fold in rows
                ]
            )
        )
        if left_out.replicates:
            replicate_steps = (_divided(own_part(u), unit) for u in left_out.replicates)
            replicate_triangles.append(
                np.stack([_triangles(u, truth, per_output=per_output) for u in replicate_steps])
            )
    nonzero = np.flatnonzero(limit_grid[1])
    for part in slices(len(nonzero), max(1, 2**23 // (n * row_numbers))):
        error = solution.left_out_ridge(limit_grid[0][nonzero[part]] / limit_grid[1][nonzero[part]])
        error = _divided(own_part(error), unit)
        square = compat.array_namespace(error).sum(error * error, axis=(1, 2))
        sums[nonzero[part]] = to_numpy(square)
    sums[limit_grid[1] == 0] = zero  # the collapse
    replicates = np.concatenate(replicate_triangles, axis=1) if replicate_triangles else None
    triangles = np.concatenate(parts, axis=1)
    here = int(own_part(solution.targets).shape[0])
    roots = np.ones(here) if weighting is None else to_numpy(own_part(weighting.roots))
    return Validation(
        triangles=merged_folds(triangles),
        limits=sums,
        zero=zero,
        rows=here,
        outputs=c,
        replicates=replicates,
        folds=triangles,
        unit=unit,
        weight=float(roots @ roots),
    )


def _score_left_out(
    scores: GridScores, part: slice, rows: tuple[Any, Any, Any], *, unit: float, offset: Any
) -> None:
    """Count the rows that are here: u_1 .. u_T (L, T, n, c), targets and weighting."""
    u, truth, weighting = rows
    basis, how = differences(u), {"unit": unit, "offset": offset}
    if weighting is not None:
        basis, truth = weighting.values(basis), weighting.values(truth)
        how["weights"] = to_numpy(own_part(weighting.roots)) ** 2
    basis, truth = own_part(basis), own_part(truth)
    if truth.shape[0]:
        scores.add(part, basis, truth, new_rows=part.start == 0, **how)


def merged_folds(folds: np.ndarray) -> np.ndarray:
    """Triangles of all rows from those of their parts (F, .., T, T)."""
    if len(folds) == 1:
        return folds[0]
    stacked = np.concatenate(list(folds), axis=-2)
    return np.asarray(merge_rows(None, stacked))


def _stacked(triangles: np.ndarray) -> np.ndarray:
    """One triangle of the rows of several, on the third axis from the end."""
    *lead, c, T, _ = triangles.shape
    return np.asarray(merge_rows(None, triangles.reshape(*lead, c * T, T)))


def _triangles(u: Any, truth: Any, *, per_output: bool) -> np.ndarray:
    """Triangles of predictions u_1 .. u_T (L, T, n, c)."""
    return to_numpy(merge_rows(None, loss_columns(differences(u), truth, per_output=per_output)))


def loss_columns(basis: Any, truth: Any, *, per_output: bool) -> Any:
    """Columns of the loss from predictions (l, T, b, c): (l, b c, T), or (l, c, b, T)."""
    xp = compat.array_namespace(basis)
    rows, c = truth.shape
    if per_output:
        return step_columns(xp.permute_dims(basis, (0, 3, 2, 1)), truth.T)
    flat = xp.reshape(basis, (*basis.shape[:2], rows * c))
    return step_columns(xp.permute_dims(flat, (0, 2, 1)), xp.reshape(truth, (rows * c,)))


@dataclass(frozen=True, eq=False)
class _WeightedBlock:
    """Weights of a block of rows: on the host, and their roots beside the predictions."""

    weights: np.ndarray | None
    roots: Any
    total: float

    @classmethod
    def of(cls, weights: Any, targets: Any) -> _WeightedBlock:
        if weights is None:
            return cls(None, None, float(targets.shape[0]))
        host = to_numpy(weights)
        return cls(host, compat.array_namespace(weights).sqrt(weights)[:, None], float(host.sum()))

    def scaled(self, values: Any) -> Any:
        """Values (.., b, c), whose squares are weighted then."""
        return values if self.roots is None else values * self.roots


def _unit(targets: Any) -> float:
    """A power of two if squares of the targets leave float64, else 1."""
    xp = compat.array_namespace(targets)
    return safe_unit(float(xp.max(xp.abs(targets))))


def _divided(values: Any, unit: float) -> Any:
    return values if unit == 1 else values / unit


def _squared_errors(predictions: Any, truth: Any) -> np.ndarray:
    """Sum over rows and outputs of (f - Y)^2: (M, b, c) -> (M,)."""
    error = predictions - truth
    return to_numpy(compat.array_namespace(error).sum(error * error, axis=(1, 2)))
