"""Fits on several ranks without each fold of their rows, by whatever method the fit itself was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.backends import taken_rows, to_numpy
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.engine.solving import Problem

__all__ = ["RankFolds"]


@dataclass(frozen=True, eq=False)
class RankFolds:
    """The :class:`~sdgpu.engine.cross_intervals.FoldFits` of a fit on ranks; all of them call.

    Attributes
    ----------
    X, Y, weights : arrays (m, d), (m, c) and (m,) or None
        Of the own rows, on the device of the rank.
    layout : RowLayout
    refit : callable
        (X, Y, weights, lam) of each rank to a Fit of all.
    """

    X: Any = field(repr=False)
    Y: Any = field(repr=False)
    weights: Any = field(repr=False)
    layout: RowLayout
    refit: Callable[..., Any] = field(repr=False)

    @classmethod
    def of(cls, problem: Problem, refit: Callable[..., Any]) -> RankFolds:
        """Of the rows of a problem, as they came in."""
        data = problem.data
        Y, weights, weighting = data.Y, None, data.weighting
        if weighting is not None:
            Y = weighting.values(Y) if data.offset is None else weighting.values(Y) + data.offset
            if weighting.weighted:
                weights = (weighting.roots**2).local
        return cls(data.X.local, Y.local, weights, data.X.layout, refit)

    @property
    def rows(self) -> int:
        """n, of all ranks."""
        return self.layout.n

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.Y.shape[1])

    def left_out(
        self, labels: np.ndarray, lam: float, alphas: np.ndarray, new: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~sdgpu.engine.cross_intervals.FoldFits`: K fits of all ranks, one after the other.

        Errors of all rows come to every rank: n T c numbers. Predictions are of the new rows of this one.
        """
        own, steps = labels[self.layout.own], len(alphas) + 1
        new = self.X.new_tensor(to_numpy(new))
        errors = np.full((len(own), steps, self.outputs), np.nan)
        there = np.empty((int(labels.max()) + 1, steps, int(new.shape[0]), self.outputs))
        present = np.ones(len(own), bool) if self.weights is None else to_numpy(self.weights) > 0
        truth = to_numpy(self.Y)
        for k in range(len(there)):
            others, fold = np.flatnonzero(own != k), np.flatnonzero((own == k) & present)
            weights = None if self.weights is None else taken_rows(self.weights, others)
            fit = self.refit(taken_rows(self.X, others), taken_rows(self.Y, others), weights, lam)
            path = fit.path(lam, alphas, steps)
            there[k] = to_numpy(path.predict(new))
            values = to_numpy(path.predict(taken_rows(self.X, fold)))
            errors[fold] = abs(truth[fold] - values).swapaxes(0, 1)
        return self.layout.ranks.gather_rows(errors), there
