"""Leave-one-out of a feature model: one more pass over its rows, triangles merged block by block.

Rows come as U = phi V diag(delta)^-1/2, whose product with the whitening is taken once: a block costs the
same kernel values and one product of (b, k) by (k, k), as in the pass that fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.threads import block_workers, in_order, only_torch
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import Validation, loss_columns, merged_folds
from sdgpu.selection.validation_rows import StreamedRows
from sdgpu.solvers.block_leverage import BlockLeverage, to_eigenvectors
from sdgpu.solvers.solution import differences

__all__ = ["ENTRIES", "LeftOutRows", "leave_blocks_out"]

ENTRIES = 2**22  # numbers of a block of features, and of its predictions
MANY = 20  # rows for each feature, from which leverages are small: 1 - H_ii keeps its digits in float32


@dataclass(frozen=True, eq=False)
class LeftOutRows:
    """Training rows of a feature model as rows of its eigenvectors.

    Attributes
    ----------
    solution : FeatureSolution
    data : StreamedRows
        With features turned to U.
    """

    solution: Any
    data: StreamedRows

    @classmethod
    def of(cls, solution: Any, data: StreamedRows) -> LeftOutRows:
        """Of training rows with the features of the fit."""
        return cls(solution, data.turned(to_eigenvectors(solution.spectrum)))

    def leverages(self, X: Any, targets: Any, weights: Any) -> BlockLeverage:
        """Of a block of rows (b, d), targets (b, c) and weights (b,) or None."""
        operator, n = self.data.operator, self.solution.rows
        single = operator.precision == "float32" and n >= MANY * operator.n
        U = operator.features(X, "float32" if single else "float64")
        return BlockLeverage.of(self.solution, U, targets, weights)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What :func:`leave_blocks_out` is asked of every block."""

    lams: np.ndarray
    steps: int
    ridges: np.ndarray  # lam / alpha of the limits
    per_output: bool
    folds: int
    scored: bool


@dataclass(frozen=True, eq=False)
class _Found:
    """What a block says."""

    rows: int
    weight: float
    triangles: list[Any]  # of each fold, (L, T, T) or (L, c, T, T)
    squares: np.ndarray  # of the limits
    zero: float
    basis: list[tuple[slice, Any]]  # for the metrics: u_1, D_1, .. of some lam
    truth: Any
    weights: np.ndarray | None


def leave_blocks_out(
    solution: Any,
    data: StreamedRows,
    lams: np.ndarray,
    steps: int,
    *,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
    per_output: bool = False,
    folds: int = 1,
    scores: GridScores | None = None,
    watch: Stopwatch | None = None,
) -> Validation:
    """Triangles of all training rows, each judged by the fit without it.

    Parameters are those of :func:`sdgpu.selection.losses.validate`; `solution` is a
    :class:`~sdgpu.solvers.feature_solution.FeatureSolution` and `data` are its training rows.

    Notes
    -----
    n k (k + L T (c + 1)) multiplications beside the features.

    Raises
    ------
    ValueError
        For a lam for each step.
    """
    if lams.ndim == 2:
        raise ValueError(
            "leave-one-out of a feature model has one lam for all steps: judge a lam for each step on "
            "validation rows"
        )
    limit_grid = limits if limits is not None else (np.zeros(0), np.zeros(0))
    nonzero, c = np.flatnonzero(limit_grid[1]), data.outputs
    ridges = limit_grid[0][nonzero] / limit_grid[1][nonzero]
    asked = _Asked(lams, steps, ridges, per_output, folds, scores is not None)
    sums, zero, done, total = np.zeros(len(limit_grid[0])), 0.0, 0, 0.0
    triangles: list[Any] = [None] * folds
    rows = LeftOutRows.of(solution, data)

    def block(item: tuple[int, Any, Any, Any]) -> _Found:
        start, X, targets, weights = item
        return _block_losses(rows.leverages(X, targets, weights), start, data.unit, asked)

    with only_torch():
        workers = block_workers(data.operator.backend)
        for found in in_order(block, data.inputs(ENTRIES), workers):
            triangles = [
                one if before is None else merge_rows(before, one)
                for before, one in zip(triangles, found.triangles, strict=True)
            ]
            sums[nonzero] += found.squares
            zero += found.zero
            done, total = done + found.rows, total + found.weight
            for part, basis in found.basis:
                assert scores is not None
                scores.add(
                    part,
                    basis,
                    found.truth,
                    new_rows=part.start == 0,
                    unit=data.unit,
                    offset=data.offset,
                    weights=found.weights,
                )
            if watch is not None:
                watch.report(
                    "leave-one-out", done, data.rows or done, total_known=data.rows is not None
                )
    if triangles[0] is None:  # of several ranks one may have no rows
        none = np.zeros((len(lams), *((c,) if per_output else ()), 0, steps))
        triangles = [merge_rows(None, none)] * folds
    sums[limit_grid[1] == 0] = zero  # the collapse
    parts = np.stack([to_numpy(fold) for fold in triangles])
    return Validation(
        triangles=merged_folds(parts),
        limits=sums,
        zero=zero,
        rows=done,
        outputs=c,
        folds=parts,
        unit=data.unit,
        weight=total,
    )


def _block_losses(leverage: BlockLeverage, start: int, unit: float, asked: _Asked) -> _Found:
    """Triangles, limits and predictions of one block; `start` is the number of its first row."""
    truth = leverage.targets / unit
    xp, (b, c), counted = compat.array_namespace(truth), truth.shape, leverage.counted(truth)
    height = max(1, ENTRIES // (4 * (asked.steps + 1) * b * c))  # lam that share a product
    folds: list[list[Any]] = [[] for _ in range(asked.folds)]
    kept = []
    for part in slices(len(asked.lams), height):
        basis = differences(leverage.steps(asked.lams[part], asked.steps) / unit)
        squared = leverage.counted(basis)
        for f in range(asked.folds):
            fold = slice((f - start) % asked.folds, None, asked.folds)
            columns = loss_columns(
                squared[:, :, fold, :], counted[fold, :], per_output=asked.per_output
            )
            folds[f].append(merge_rows(None, columns))
        if asked.scored:
            kept.append((part, leverage.values(basis)))
    squares = np.zeros(len(asked.ridges))
    for part in slices(len(asked.ridges), max(1, ENTRIES // (4 * b * c))):
        errors = leverage.counted(leverage.ridge_errors(asked.ridges[part])) / unit
        squares[part] = to_numpy(xp.sum(errors * errors, axis=(1, 2)))
    collapsed = counted / (1 - leverage.constant)[:, None]  # from the mean of the other rows
    return _Found(
        rows=int(b),
        weight=leverage.weight,
        triangles=[xp.concat(fold) for fold in folds],
        squares=squares,
        zero=float(xp.sum(collapsed * collapsed)),
        basis=kept,
        truth=leverage.values(truth),
        weights=None if leverage.weights is None else to_numpy(leverage.weights),
    )
