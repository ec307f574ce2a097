"""A sweep over the folds of a cross-validation: a decomposition for each, losses that add up.

What a fold says of its left-out rows is a triangle for each lam and sums of metrics, as of a block of
validation rows: those of all folds merge, so that every schedule, Algorithm 1 and the joint optimum too,
is judged on all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.engine.fitted import Fit
from sdgpu.engine.grid_sweep import GridRequest, sweep_of_grid
from sdgpu.engine.requests import Judge, judge
from sdgpu.selection.losses import Validation
from sdgpu.selection.sweep import Sweep

__all__ = ["Folds", "present_splits", "sweep_over_folds"]


@dataclass(frozen=True, eq=False)
class Folds:
    """Rows that are left out in turn.

    Attributes
    ----------
    decompose : callable
        (rows) -> Fit of those rows.
    rows : callable
        (validation, train) -> X of the validation rows as that fit takes it.
    Y : array (n,) or (n, c)
    weights : array (n,) or None
    splits : list of pairs of arrays
        Rows to fit and rows to judge on.
    """

    decompose: Callable[[np.ndarray], Fit]
    rows: Callable[[np.ndarray, np.ndarray], Any]
    Y: np.ndarray
    weights: np.ndarray | None
    splits: list[tuple[np.ndarray, np.ndarray]]

    @property
    def judged(self) -> np.ndarray:
        """All rows that are left out once or more often."""
        return np.unique(np.concatenate([validation for _, validation in self.splits]))

    def losses(self, lams: np.ndarray, steps: int, **options: Any) -> Validation:
        """Of all folds; one fit of a fold is held at a time, beside that of all rows."""
        merged: Validation | None = None
        for train, validation in self.splits:
            parts = self.decompose(train).parts
            weights = None if self.weights is None else self.weights[validation]
            X_val, Y_val = self.rows(validation, train), self.Y[validation]
            how = {"sample_weight": weights}
            one = judge(parts.solution, parts.model, X_val, Y_val, steps, **how)
            losses = one.losses(lams, steps, **options)
            merged = losses if merged is None else merged.merge(losses)
        assert merged is not None
        return merged


def sweep_over_folds(fitted: Fit, folds: Folds, request: GridRequest) -> Sweep:
    """The sweep on left-out rows; `fitted` is the fit of all rows, whose training errors it has.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As :meth:`sdgpu.Fit.sweep`.
    """
    Y = folds.Y.reshape(len(folds.Y), -1)
    rows = Judge(
        folds.losses,
        left_out=False,
        rows=sum(len(validation) for _, validation in folds.splits),
        truth=fitted.parts.model.backend.asarray(Y[folds.judged].astype(np.float64)),
        weighted=folds.weights is not None,
    )
    return sweep_of_grid(fitted.parts, lambda steps: rows, request)


def present_splits(
    splits: Iterable[tuple[Any, Any]], weights: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits without rows of weight 0, and without folds that have no others.

    Raises
    ------
    ValueError
        If a fold has no rows to fit, or none has rows to judge on.
    """
    found = []
    for number, pair in enumerate(splits):
        train, validation = (np.asarray(rows) for rows in pair)
        if weights is not None:
            train, validation = train[weights[train] > 0], validation[weights[validation] > 0]
        if not len(validation):
            continue
        if not len(train):
            raise ValueError(f"cv: fold {number} leaves no rows of weight > 0 to fit")
        found.append((train, validation))
    if not found:
        raise ValueError("cv leaves no rows of weight > 0 to choose on")
    return found
