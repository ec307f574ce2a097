"""Intervals of the choices of a cell: how wide they are, and how many test targets lie inside."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sdgpu.engine.fitted import Fit
from sdgpu.selection.sweep import Best
from sdgpu.study.grid_study.key_types import StudyTable

__all__ = ["IntervalTable", "interval_losses"]


class IntervalTable(StudyTable):
    """Intervals of every choice at the test rows (:meth:`sdgpu.engine.path.Path.interval`).

    CV+ by so many `folds`, for any method; without them the jackknife+, from all eigenvectors.
    """

    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    folds: Annotated[int, Field(ge=2)] | None = None


def interval_losses(
    best: Best, fitted: Fit, test: tuple[Any, Any], table: IntervalTable, seed: int
) -> dict[str, float]:
    """Share of the test targets inside of the intervals of the chosen step, and their mean width.

    Parameters
    ----------
    best : Best
        NaN for both where it is a limit, which has no intervals.
    fitted : Fit
    test : tuple of arrays (m, d) and (m, c)
    table : IntervalTable
    seed : int
        Of the draw of the folds.

    Raises
    ------
    ValueError
        As :meth:`sdgpu.engine.path.Path.interval`.
    """
    names = ("test_interval_coverage", "test_interval_width")
    if np.isinf(best.step):
        return dict.fromkeys(names, float("nan"))
    X, truth = test
    path = fitted.path(best.lam, best.alpha if best.step > 1 else 0.0, int(best.step))
    found = path.interval(X, table.coverage, folds=table.folds, seed=seed)
    lower, upper = (np.asarray(end[-1], dtype=np.float64) for end in (found.lower, found.upper))
    inside = (lower <= truth) & (truth <= upper)
    return dict(zip(names, (float(inside.mean()), float((upper - lower).mean())), strict=True))
