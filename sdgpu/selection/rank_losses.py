"""Validation losses of rows on several ranks: each rank's own, merged in the order of the ranks."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from typing import Any

import numpy as np

from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import Validation, validate
from sdgpu.selection.validation_rows import RankRows
from sdgpu.solvers.solution import Solution

__all__ = ["validate_on_ranks"]


def validate_on_ranks(
    solution: Solution,
    data: RankRows,
    lams: np.ndarray,
    steps: int,
    *,
    scores: GridScores | None = None,
    **options: Any,
) -> Validation:
    """:func:`~sdgpu.selection.losses.validate` of the rows of all ranks, the same on every rank.

    Notes
    -----
    L T^2 numbers of each rank are told to all, beside what the products tell.
    """
    own = validate(solution, data, lams, steps, scores=scores, **options)
    parts = data.ranks.gather({f.name: getattr(own, f.name) for f in fields(own)})
    if scores is not None:
        scores.of_all_ranks(data.ranks)
    return reduce(Validation.merge, [Validation(**part) for part in parts])
