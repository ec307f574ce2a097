"""Sums over the partitions of a cluster: work goes to the rows, k x k numbers come back.

Each partition is summed where it lies, block by block with one thread of BLAS; sums are added on the
workers, eight at a time, in a tree that follows the order of the partitions alone. So the number of workers
changes no bit, nor does a worker that dies: what it held is computed again.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rows import ArraySource, checked_blocks
from sdgpu.backend.threads import only_torch
from sdgpu.engine.streaming import AUDIT, block_moments
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.solvers.moment_sums import MomentSums

__all__ = ["active_client", "partition_sums", "sum_partitions"]

FAN = 8  # sums that one task adds up: a partition of k = 2,000 makes 32 MB of them


def active_client() -> Any:
    """The client of dask.distributed that is active in this thread, or None."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


def sum_partitions(
    source: Any,
    features: FeatureMap,
    sums: MomentSums,
    *,
    client: Any,
    precision: str,
    rows: int,
    watch: Stopwatch,
) -> None:
    """Add all partitions of a source to `sums`.

    Parameters
    ----------
    source : RowSource with partitions()
    features : FeatureMap
    sums : MomentSums
        Grows in place.
    client : distributed.Client
    precision : {"float32", "float64"}
    rows : int
        Of a block.
    watch : Stopwatch
        Hears of the partitions that are done under "partitions".

    Raises
    ------
    ValueError, TypeError
        What a partition raises, with its number.
    """
    partitions = source.partitions()
    shared = client.scatter((features, sums.offset, source.d, source.c), broadcast=True, hash=False)
    level = [
        client.submit(
            partition_sums,
            client.compute(part),
            shared,
            number=number,
            precision=precision,
            rows=rows,
            pure=False,
        )
        for number, part in enumerate(partitions)
    ]
    level = [
        client.submit(_added, level[i : i + FAN], pure=False) for i in range(0, len(level), FAN)
    ]
    first_level = list(level)
    while len(level) > 1:
        level = [
            client.submit(_added, level[i : i + FAN], pure=False) for i in range(0, len(level), FAN)
        ]
    from distributed import as_completed

    done = 0
    try:
        for future in as_completed(first_level):
            if future.status == "error":
                break  # the result below raises it
            first_level.remove(future)  # the cluster may forget it once it is added
            done = min(done + FAN, len(partitions))
            watch.report("partitions", done, len(partitions))
        sums.merge(level[0].result())
    except BaseException:
        client.cancel(level)
        raise


def partition_sums(
    part: tuple[Any, Any, Any], shared: Any, *, number: int, precision: str, rows: int
) -> MomentSums:
    """Sums of one partition, on the worker that has it; `shared` are map, offset, d and c.

    Raises
    ------
    TypeError, ValueError
        For other widths, and for what is no number: names the partition.
    """
    features, offset, d, c = shared
    X, Y, weights = part
    sums = MomentSums.zeros(features.size, c, offset)
    if not len(X):
        return sums
    source = ArraySource(np.asarray(X), Y, weights, name=f"partition {number}")
    if (source.d, source.c) != (d, c):
        raise ValueError(
            f"partition {number} has {source.d} features and {source.c} outputs, but {d} and {c} were "
            "announced"
        )
    with only_torch():
        for start, block in checked_blocks(source, rows):
            audited = (number + start // rows) % AUDIT == 0
            found = block_moments(block, features, offset, precision=precision, audited=audited)
            sums.merge(found)
    return sums


def _added(parts: list[MomentSums]) -> MomentSums:
    total = MomentSums.zeros(parts[0].size, parts[0].outputs, parts[0].offset)
    for part in parts:
        total.merge(part)
    return total
