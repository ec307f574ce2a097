"""Data sets whose rows several ranks share: every part is cut by rank, losses are means over all rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.ranks import Ranks, row_shares
from sdgpu.study.real_data.datasets import Split

__all__ = ["mean_of_ranks", "rows_of_ranks_joined", "share_of"]


def share_of(data: Split, ranks: Ranks) -> Split:
    """The rows of every part that belong to this rank, of data that all have."""
    shares: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        rows = row_shares(len(getattr(data, f"X_{name}")), ranks.size)[ranks.rank]
        shares |= {f"{key}_{name}": getattr(data, f"{key}_{name}")[rows] for key in "XY"}
    return replace(data, **shares)


def mean_of_ranks(values: np.ndarray, ranks: Ranks, *, axes: int = 0) -> np.ndarray:
    """Mean over all but the first `axes` axes, and over the ranks; each has rows of its own, or none."""
    over = tuple(range(axes, values.ndim))
    if ranks.size == 1:
        return np.asarray(values.mean(axis=over))
    count = float(np.prod(values.shape[axes:]))
    total = ranks.sum(np.append(np.sum(values, axis=over).ravel(), count))
    return np.asarray(total[:-1] / total[-1]).reshape(values.shape[:axes])


def rows_of_ranks_joined(values: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Predictions (T, m, c) of the rows of all ranks, in their order, on each."""
    if ranks.size == 1:
        return values
    return ranks.gather_rows(np.ascontiguousarray(values.swapaxes(0, 1))).swapaxes(0, 1)
