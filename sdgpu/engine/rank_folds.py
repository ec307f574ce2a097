"""Fits on several ranks without each fold of their rows, by whatever method the fit itself was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import TorchBackend, taken_rows, to_numpy
from sdgpu.backend.common_checks import together
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.engine.intervals import Interval, given_back, jackknife_ends
from sdgpu.engine.solving import Problem
from sdgpu.operators.weighted_rows import RowWeighting, WeightedOperator
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["RankFolds"]

NUMBERS = 2**22  # of the basis that travel at once: 32 MiB


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

    def jackknife(
        self,
        model: Any,
        spectrum: Spectrum,
        path: tuple[float, np.ndarray],
        X_new: Any,
        share: float,
    ) -> Interval:
        """Intervals of the jackknife+, by rank 0: fits without each row take all eigenvectors at once.

        The basis comes to it, n^2 numbers, with the new rows of all; ends go back. All ranks call.

        Raises
        ------
        ValueError, MemoryError
            On all ranks.
        """
        (lam, alphas), ranks, d = path, self.layout.ranks, model.operator.d
        ranks.agree("lam, alphas and coverage", [lam, alphas, share])
        rows = together(ranks, lambda: model.template.rows(X_new, "X_new", d, empty=True))
        counts = ranks.gather(int(rows.shape[0]))
        n, m, c = self.layout.n, sum(counts), self.outputs
        numbers = 4 * n * n + 2 * (len(alphas) + 1) * m * c
        model.afford(numbers, f"intervals from {n:,} fits without a row each, by rank 0,")
        everyone = ranks.gather_rows(self.X.new_tensor(to_numpy(rows)))
        operator, weighting = self._whole_operator(model)
        basis = self._whole_basis(spectrum)

        def ends() -> np.ndarray | None:
            if ranks.rank:
                return None
            whole = replace(spectrum, basis=basis)
            return jackknife_ends(whole, operator.cross(everyone), path, weighting, share)

        found = together(ranks, ends)
        told = ranks.sum(np.zeros((2, len(alphas) + 1, m, c)) if found is None else found)
        first = sum(counts[: ranks.rank])
        return given_back(model, told[:, :, first : first + counts[ranks.rank]], share)

    def _whole_operator(self, model: Any) -> tuple[Any, RowWeighting | None]:
        """K of the rows of all, as it predicts, and their weights; every rank has them for a while."""
        weighting = model.weighting
        if weighting is None:
            return model.operator.gathered(), None
        roots = self.layout.ranks.gather_rows(weighting.roots.local)
        rows = RowWeighting(roots, weighting.intercept)
        operator = model.operator.operator.gathered()
        return WeightedOperator(operator, rows, TorchBackend(self.X.device)), rows

    def _whole_basis(self, spectrum: Spectrum) -> Any:
        """V (n, k) on rank 0, some columns at a time; None on the others."""
        import torch

        local, ranks = spectrum.basis.local, self.layout.ranks
        k, columns = int(local.shape[1]), []
        for part in slices(k, max(1, NUMBERS // max(self.layout.n, 1))):
            block = ranks.gather_rows(local[:, part].contiguous())
            if ranks.rank == 0:
                columns.append(block)
        return torch.cat(columns, dim=1) if columns else None
