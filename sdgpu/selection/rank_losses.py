"""Losses of rows on several ranks: each rank's own, merged in the order of the ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import reduce
from typing import Any

import numpy as np

from sdgpu.backend.ranks import Ranks
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import Validation

__all__ = ["on_all_ranks"]


def on_all_ranks(
    judge: Callable[..., Validation],
    ranks: Ranks,
    lams: np.ndarray,
    steps: int,
    *,
    scores: GridScores | None = None,
    **options: Any,
) -> Validation:
    """What `judge` says of the rows of all ranks, the same on every rank, from what it says of the own.

    Parameters
    ----------
    judge : callable
        (lams, steps, scores=, ..) -> Validation of the own rows, of which there may be none.
    ranks : Ranks
    lams, steps, scores, options
        Its own.

    Notes
    -----
    L T^2 numbers of each rank are told to all, nine times as many where leverages are estimates, beside
    what the products tell.
    """
    own = judge(lams, steps, scores=scores, **options)
    parts = ranks.gather({f.name: getattr(own, f.name) for f in fields(own)})
    if scores is not None:
        scores.of_all_ranks(ranks)
    return reduce(_merged, [Validation(**part) for part in parts])


def _merged(one: Validation, two: Validation) -> Validation:
    """Of both; estimated leverages of ranks are of the same probes, so that groups go together."""
    if one.replicates is None or two.replicates is None:
        return one.merge(two)
    unit = max(one.unit, two.unit)
    replicates = merge_rows(one.replicates * (one.unit / unit), two.replicates * (two.unit / unit))
    merged = replace(one, replicates=None).merge(replace(two, replicates=None))
    return replace(merged, replicates=np.asarray(replicates))
