"""Messages of the partitions of a cluster: eigenpairs are all that leaves a worker."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.rows import as_source
from sdgpu.engine.cluster_sums import active_client, partition_sums
from sdgpu.engine.streaming import block_rows
from sdgpu.solvers.local_spectrum import LocalSpectrum

__all__ = ["spectra"]


def spectra(space: Any, X: Any, Y: Any = None, *, rank: int | None = None) -> list[LocalSpectrum]:
    """Messages of the partitions of a dask collection, each made where its rows lie.

    Parameters
    ----------
    space : FeatureSpace
    X : array (n, d), frame, or list of delayed blocks of dask
    Y : the same, or names of columns
    rank : int, optional
        As of :meth:`FeatureSpace.spectrum`.

    Returns
    -------
    list of LocalSpectrum
        In the order of the partitions; those without rows are left out.

    Raises
    ------
    TypeError, ValueError
        For collections of others than dask, other widths, and what a partition holds: names it.
    """
    source = as_source(X, Y)
    if not hasattr(source, "partitions"):
        raise TypeError(
            f"X is a {type(X).__name__}, which has no partitions: pass a collection of dask, or "
            "space.spectrum(X, Y)"
        )
    empty = space.empty
    if (source.d, source.c) != (empty.d, empty.c):
        raise ValueError(
            f"rows of {source.d} features and {source.c} outputs do not go with d={empty.d}, c={empty.c}"
        )
    shared = (empty.map, np.zeros(empty.c), empty.d, empty.c)
    how: dict[str, Any] = {
        "rank": rank,
        "fingerprint": space.fingerprint,
        "rows": block_rows(empty.map.size),
    }
    client = active_client()
    if client is None:
        found = [
            _partition_spectrum(part.compute(), shared, number=number, **how)
            for number, part in enumerate(source.partitions())
        ]
        return [one for one in found if one is not None]
    there = client.scatter(shared, broadcast=True, hash=False)
    futures = [
        client.submit(
            _partition_spectrum, client.compute(part), there, number=number, **how, pure=False
        )
        for number, part in enumerate(source.partitions())
    ]
    return [one for one in client.gather(futures) if one is not None]


def _partition_spectrum(
    part: Any, shared: Any, *, number: int, rank: int | None, fingerprint: str, rows: int
) -> LocalSpectrum | None:
    """On the worker that has the rows: eigenpairs are all that leaves it."""
    sums = partition_sums(part, shared, number=number, precision="float64", rows=rows)
    return LocalSpectrum.of(sums, fingerprint, rank) if sums.rows else None
