"""Leave-one-out of a feature model: one more pass over its rows, triangles merged block by block."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import Validation, loss_columns, merged_folds
from sdgpu.selection.validation_rows import ValidationRows
from sdgpu.solvers.block_leverage import BlockLeverage
from sdgpu.solvers.solution import differences

__all__ = ["ENTRIES", "leave_blocks_out"]

ENTRIES = 2**22  # numbers of a block of features, and of its predictions


def leave_blocks_out(
    solution: Any,
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
    """Triangles of all training rows, each judged by the fit without it.

    Parameters are those of :func:`sdgpu.selection.losses.validate`; `solution` is a
    :class:`~sdgpu.solvers.feature_solution.FeatureSolution` and `data` are its training rows.

    Notes
    -----
    n k (k + L T c) multiplications, and n k L for the leverages.
    """
    limit_grid = limits if limits is not None else (np.zeros(0), np.zeros(0))
    nonzero, c = np.flatnonzero(limit_grid[1]), data.outputs
    ridges = limit_grid[0][nonzero] / limit_grid[1][nonzero]
    sums, zero, done = np.zeros(len(limit_grid[0])), 0.0, 0
    triangles: list[list[Any]] = [[None] * len(lams) for _ in range(folds)]
    for start, phi, targets in data.blocks(ENTRIES):
        leverage = BlockLeverage.of(solution, phi, targets)
        truth = targets / data.unit
        xp, b = compat.array_namespace(truth), int(truth.shape[0])
        for i in range(len(lams)):
            u = leverage.steps(lams[i : i + 1], steps) / data.unit
            if scores is not None:
                scores.add(
                    slice(i, i + 1),
                    differences(u),
                    truth,
                    new_rows=i == 0,
                    unit=data.unit,
                    offset=data.offset,
                )
            for f in range(folds):
                fold = slice((f - start) % folds, None, folds)
                basis = differences(u[:, :, fold, :])
                columns = loss_columns(basis, truth[fold, :], per_output=per_output)
                triangles[f][i] = merge_rows(triangles[f][i], columns)
        for part in slices(len(ridges), max(1, ENTRIES // max(b * c, 1))):
            errors = truth - leverage.steps(ridges[part], 1)[:, 0, ...] / data.unit
            sums[nonzero[part]] += to_numpy(xp.sum(errors * errors, axis=(1, 2)))
        collapsed = truth / (1 - leverage.constant)[:, None]  # from the mean of the other rows
        zero += float(xp.sum(collapsed * collapsed))
        done += b
        if watch is not None:
            watch.report(
                "leave-one-out", done, data.rows or done, total_known=data.rows is not None
            )
    sums[limit_grid[1] == 0] = zero  # the collapse
    parts = np.stack([np.concatenate([to_numpy(R) for R in fold]) for fold in triangles])
    return Validation(
        triangles=merged_folds(parts),
        limits=sums,
        zero=zero,
        rows=done,
        outputs=c,
        folds=parts,
        unit=data.unit,
    )
