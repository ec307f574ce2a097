"""Sums over the rows of several ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdgpu.backend.ranks import Ranks
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["sums_of_ranks"]


def sums_of_ranks(own: MomentSums, ranks: Ranks) -> MomentSums:
    """The sums of all ranks, added in their order: the same bits on all.

    Notes
    -----
    k^2 numbers are summed over the ranks, three times as many in float32.
    """
    numbers = ranks.gather([own.rows, own.weight, own.audited])
    offsets = ranks.gather(own.offset)
    first = next(rank for rank, (rows, *_) in enumerate(numbers) if rows)
    offset = np.asarray(offsets[first])
    own = own.shifted(offset) if own.rows else MomentSums.zeros(own.size, own.outputs, offset)
    rows, weight, audited = (sum(column) for column in zip(*numbers, strict=True))
    total = MomentSums.zeros(own.size, own.outputs, offset).with_errors(audited)
    arrays, _ = total.state()
    mine, _ = own.with_errors(audited).state()
    names = [name for name in arrays if name != "offset"]
    packed = ranks.sum(np.concatenate([mine[name].ravel() for name in names]))
    pieces = np.split(packed, np.cumsum([arrays[name].size for name in names])[:-1])
    shaped = {name: x.reshape(arrays[name].shape) for name, x in zip(names, pieces, strict=True)}
    return replace(total, **shaped, rows=rows, weight=weight, audited=audited)
