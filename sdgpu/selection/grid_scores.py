"""Metrics of a whole grid, which the triangle of the squared loss cannot tell.

They need the predictions of every (lam, alpha, step) themselves. These are made a few weights at a time
from the T columns that serve all weights, counted and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.selection.metrics import Metric, PredictedRows

__all__ = ["GridScores"]

_CHUNK = 2**18  # doubles of one intermediate, 2 MiB: what follows finds it in the cache


class GridScores:
    """Metrics of every (lam, alpha, step), added up over blocks of rows.

    Parameters
    ----------
    tails : array (A, T)
        Of the weights, :func:`sdgpu.distill.schedules.grid_tails`.
    lams : int
        L.
    metrics : sequence of Metric

    Notes
    -----
    m c A T (T + 20) operations for each lam, beside what the losses cost.
    """

    def __init__(self, tails: np.ndarray, lams: int, metrics: Sequence[Metric]) -> None:
        A, T = tails.shape
        # step t is the sum of the first t terms
        self._mix = np.tril(np.ones((T, T)))[None, :, :] * tails[:, None, :]  # (A, T, T)
        self.metrics = tuple(metrics)
        self._sums = [np.zeros((lams, A, T, metric.size)) for metric in self.metrics]
        self.count = 0.0  # of rows, or the sum of their weights

    def add(
        self,
        lams: slice,
        basis: Any,
        truth: Any,
        *,
        new_rows: bool,
        unit: float = 1.0,
        offset: Any = None,
        weights: np.ndarray | None = None,
    ) -> None:
        """Count some rows for some lam.

        Parameters
        ----------
        lams : slice
        basis : array (l, T, b, c)
            u_1, D_1, .., D_{T-1} at the rows.
        truth : array (b, c)
        new_rows : bool
            Whether these rows come for the first time (once for all slices of lam).
        unit : float, default 1
            What both were divided by: metrics see the targets as they are.
        offset : array (c,), optional
            What was taken off both before.
        weights : array (b,), optional
            Of the rows.
        """
        xp = compat.array_namespace(basis)
        T, b, c = basis.shape[1:]
        truth = (truth if unit == 1 else truth * unit).T  # (c, b)
        if offset is not None:
            truth = truth + offset[:, None]
        if new_rows:
            self.count += b if weights is None else float(weights.sum())
        chunk = max(1, _CHUNK // (T * b * c))
        for i, lam_index in enumerate(range(*lams.indices(len(self._sums[0])))):
            flat = xp.reshape(xp.permute_dims(basis[i, ...], (0, 2, 1)), (T, c * b))
            flat = flat if unit == 1 else flat * unit
            for part in slices(len(self._mix), chunk):
                mix = xp.asarray(self._mix[part], dtype=flat.dtype, device=compat.device(flat))
                values = xp.reshape(xp.reshape(mix, (-1, T)) @ flat, (-1, T, c, b))
                if offset is not None:
                    values = values + offset[:, None]
                predicted = PredictedRows(values, truth, weights)
                for sums, metric in zip(self._sums, self.metrics, strict=True):
                    sums[lam_index, part] += metric.update(predicted)

    def merge(self, other: GridScores) -> GridScores:
        """The same of the rows of both.

        Raises
        ------
        ValueError
            If they are of other grids or metrics.
        """
        if self.metrics != other.metrics or not np.array_equal(self._mix, other._mix):
            raise ValueError("scores of other grids or metrics do not add up")
        merged = GridScores.__new__(GridScores)
        merged._mix, merged.metrics = self._mix, self.metrics
        merged._sums = [one + two for one, two in zip(self._sums, other._sums, strict=True)]
        merged.count = self.count + other.count
        return merged

    def scores(self) -> dict[str, np.ndarray]:
        """The scores by name, (L, A, T) each."""
        pairs = zip(self._sums, self.metrics, strict=True)
        return {metric.name: metric.result(sums, self.count) for sums, metric in pairs}
