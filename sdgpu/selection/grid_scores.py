"""Metrics of a whole grid, which the triangle of the squared loss cannot tell.

They need the predictions of every (lam, alpha, step) themselves. These are made a few weights at a time
from the T columns that serve all weights, counted and dropped. For metrics that must see all rows at once
the columns are kept, L T m c numbers, and their predictions made at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.memory import require
from sdgpu.backend.ranks import Ranks
from sdgpu.selection.metrics import Metric, PredictedRows, sums_of

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
    outputs : int, default 1
        c.
    memory : int, optional
        Bytes that rows may take which are kept.

    Notes
    -----
    m c A T (T + 20) operations for each lam, beside what the losses cost.
    """

    def __init__(
        self,
        tails: np.ndarray,
        lams: int,
        metrics: Sequence[Metric],
        *,
        outputs: int = 1,
        memory: int | None = None,
    ) -> None:
        A, T = tails.shape
        # step t is the sum of the first t terms
        self._mix = np.tril(np.ones((T, T)))[None, :, :] * tails[:, None, :]  # (A, T, T)
        self.metrics = tuple(metrics)
        self._added = [one for one in self.metrics if not getattr(one, "needs_all_rows", False)]
        self._sums = [np.zeros((lams, A, T, sums_of(one, outputs))) for one in self._added]
        self._keeps, self._memory = len(self._added) < len(self.metrics), memory
        self._outputs = outputs
        self._kept: list[list[np.ndarray]] = [[] for _ in range(lams)]  # (T, b, c) each
        self._truth: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
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

        Raises
        ------
        MemoryError
            If rows are kept and do not fit.
        """
        truth = (truth if unit == 1 else truth * unit).T  # (c, b)
        if offset is not None:
            truth = truth + offset[:, None]
        if new_rows:
            self.count += truth.shape[1] if weights is None else float(weights.sum())
            if self._keeps:
                self._truth.append(to_numpy(truth))
                self._weights.append(np.ones(truth.shape[1]) if weights is None else weights)
        for i, lam_index in enumerate(range(*lams.indices(len(self._kept)))):
            columns = basis[i, ...] if unit == 1 else basis[i, ...] * unit  # (T, b, c)
            if self._keeps:
                self._keep(lam_index, columns, offset)
            if self._added:
                self._count(lam_index, columns, truth, offset=offset, weights=weights)

    def _count(
        self, lam_index: int, columns: Any, truth: Any, *, offset: Any, weights: np.ndarray | None
    ) -> None:
        for part, values in self._predictions(columns):
            if offset is not None:
                values = values + offset[:, None]
            predicted = PredictedRows(values, truth, weights)
            for sums, metric in zip(self._sums, self._added, strict=True):
                more, before = metric.update(predicted), sums[lam_index, part]
                merge = getattr(metric, "merge", None)
                sums[lam_index, part] = before + more if merge is None else merge(before, more)

    def _predictions(self, columns: Any) -> Iterator[tuple[slice, Any]]:
        """Predictions of a few weights at a time, (a, T, c, b), from the columns (T, b, c)."""
        xp = compat.array_namespace(columns)
        T, b, c = columns.shape
        flat = xp.reshape(xp.permute_dims(columns, (0, 2, 1)), (T, c * b))
        for part in slices(len(self._mix), max(1, _CHUNK // (T * b * c))):
            mix = xp.asarray(self._mix[part], dtype=flat.dtype, device=compat.device(flat))
            yield part, xp.reshape(xp.reshape(mix, (-1, T)) @ flat, (-1, T, c, b))

    def _keep(self, lam_index: int, columns: Any, offset: Any) -> None:
        kept = np.array(to_numpy(columns))
        if offset is not None:
            kept[0] += to_numpy(offset)  # the tails of u_1 are 1
        self._kept[lam_index].append(kept)
        self._afford(sum(block.shape[1] for block in self._kept[lam_index]))

    def _afford(self, rows: int) -> None:
        if self._memory is None:
            return
        names = ", ".join(one.name for one in self.metrics if one not in self._added)
        require(
            16 * len(self._kept) * self._mix.shape[-1] * self._outputs * rows,
            self._memory,
            f"{names} of {rows:,} rows, which must all be kept,",
            "judge on fewer rows, lam or steps, or leave it out",
        )

    def merge(self, other: GridScores) -> GridScores:
        """The same of the rows of both.

        Raises
        ------
        ValueError
            If they are of other grids or metrics.
        """
        if self.metrics != other.metrics or not np.array_equal(self._mix, other._mix):
            raise ValueError("scores of other grids or metrics do not add up")
        how: dict[str, Any] = {"outputs": self._outputs, "memory": self._memory}
        merged = GridScores(self._mix[:, -1, :], len(self._kept), self.metrics, **how)
        merged._sums = [
            getattr(metric, "merge", np.add)(one, two)
            for metric, one, two in zip(self._added, self._sums, other._sums, strict=True)
        ]
        merged._kept = [one + two for one, two in zip(self._kept, other._kept, strict=True)]
        merged._truth = self._truth + other._truth
        merged._weights = self._weights + other._weights
        merged.count = self.count + other.count
        return merged

    def of_all_ranks(self, ranks: Ranks) -> None:
        """Take what all ranks have counted: the sums, and rows that are kept, in the order of the ranks.

        Raises
        ------
        MemoryError
            On all ranks, if the rows of all do not fit on each.
        """
        if self._keeps:
            self._keep_all(ranks)
        parts = ranks.gather({"count": float(self.count), "sums": self._sums})
        self.count = sum(part["count"] for part in parts)
        merges = [getattr(metric, "merge", np.add) for metric in self._added]
        for i, merge in enumerate(merges):
            self._sums[i] = reduce(merge, [np.asarray(part["sums"][i]) for part in parts])

    def _keep_all(self, ranks: Ranks) -> None:
        """The rows of every rank, on every rank."""
        T, c = self._mix.shape[-1], self._outputs
        self._afford(sum(ranks.gather(sum(map(len, self._weights)))))
        none = np.zeros((T, 0, c))
        for lam_index, blocks in enumerate(self._kept):
            own = np.concatenate([none, *blocks], axis=1).swapaxes(0, 1)  # rows first
            self._kept[lam_index] = [ranks.gather_rows(own).swapaxes(0, 1)]
        truth = np.concatenate([np.zeros((c, 0)), *self._truth], axis=1)
        self._truth = [ranks.gather_rows(truth.T).T]
        self._weights = [ranks.gather_rows(np.concatenate([np.zeros(0), *self._weights]))]

    def scores(self) -> dict[str, np.ndarray]:
        """The scores by name, (L, A, T) each."""
        pairs = zip(self._sums, self._added, strict=True)
        scores = {metric.name: metric.result(sums, self.count) for sums, metric in pairs}
        if self._keeps:
            scores |= self._whole_scores()
        return scores

    def _whole_scores(self) -> dict[str, np.ndarray]:
        """Of the metrics that see all rows at once."""
        whole = [one for one in self.metrics if one not in self._added]
        shape = (len(self._kept), *self._mix.shape[:2])
        scores = {metric.name: np.empty(shape) for metric in whole}
        truth, weights = np.concatenate(self._truth, axis=1), np.concatenate(self._weights)
        for lam_index, blocks in enumerate(self._kept):
            for part, values in self._predictions(np.concatenate(blocks, axis=1)):
                rows = PredictedRows(values, truth, weights)
                for metric in whole:
                    scores[metric.name][lam_index, part] = metric.result(
                        metric.update(rows), self.count
                    )
        return scores
