"""One pass over a source: features of each block, their sums, and these added up in a fixed order.

Blocks are cut at the same rows whatever the source holds together, worked on side by side with one thread
each, and added in the order of the rows: the number of workers changes no bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend, NumpyBackend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rows import Block, RowSource, checked_blocks
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.threads import block_workers, in_order, only_torch
from sdgpu.engine.pass_checkpoint import PassCheckpoint
from sdgpu.engine.rank_pass import RankPass
from sdgpu.engine.row_reservoir import RowReservoir
from sdgpu.kernels.feature_maps import FeatureMap, Features
from sdgpu.kernels.feature_maps.nystrom import before_whitening
from sdgpu.solvers.moment_sums import MomentSums

__all__ = [
    "block_moments",
    "block_rows",
    "brought",
    "feature_bytes",
    "read_rows",
    "sample_rows",
    "sum_rows",
    "takes_sparse",
]

AUDIT = 64  # every 64th block of a float32 stream is summed in float64 too
NUMBERS = 2**22  # features of a block: 16 MiB in float32
MOST_ROWS, FEWEST_ROWS = 8192, 256
WIDE_ROWS = 2048  # of a block where k x k numbers cost more than its rows
SPARSE_ROWS = 2**16  # k x k numbers of a block cost more than its rows


def block_rows(k: int, *, sparse: bool = False) -> int:
    """Rows of a block: what keeps its features small, and enough that sums of k x k numbers pay."""
    if sparse:
        return SPARSE_ROWS
    return int(np.clip(max(NUMBERS // max(k, 1), min(k // 4, WIDE_ROWS)), FEWEST_ROWS, MOST_ROWS))


def feature_bytes(k: int, c: int, precision: str) -> int:
    """Sums, those of the blocks in flight, the decomposition, and blocks of features."""
    size = 4 if precision == "float32" else 8
    squares = 8 * k * k * (2 + 4 + 3) + (32 * k * k if precision == "float32" else 0)
    return squares + 4 * block_rows(k) * k * size * 3 + 64 * k * c


def takes_sparse(features: Features | FeatureMap, *, wanted: bool = False) -> bool:
    """Whether rows may be sparse.

    Raises
    ------
    TypeError
        If they are and may not.
    """
    takes = bool(getattr(features, "takes_sparse", False))
    if wanted and not takes:
        raise TypeError(
            f"X is sparse, which {type(features).__name__} does not take: use sdgpu.Explicit() with a "
            "kernel that has features of its own, or pass X.toarray()"
        )
    return takes


def read_rows(source: RowSource, rows: int) -> Generator[tuple[int, Block], None, None]:
    """Checked blocks of exactly so many rows; the next is read while the last is worked on."""
    return prefetched(checked_blocks(source, rows))


def sum_rows(
    source: RowSource,
    features: FeatureMap,
    sums: MomentSums,
    backend: Backend,
    *,
    precision: str,
    rows: int,
    watch: Stopwatch,
    kept: PassCheckpoint | RankPass | None = None,
    sample: RowReservoir | None = None,
) -> None:
    """Add all rows of a source to `sums`.

    Parameters
    ----------
    source : RowSource
        With targets.
    features : FeatureMap
    sums : MomentSums
        Grows in place.
    backend : Backend
        Where features are made.
    precision : {"float32", "float64"}
        Of the features and of the products within a block.
    rows : int
        Of a block.
    watch : Stopwatch
        Hears of the progress under "rows".
    kept : PassCheckpoint or RankPass, optional
        Leaves out the rows that the sums hold already, and saves them now and then.
    sample : RowReservoir, optional
        Looks at every row.

    Notes
    -----
    n (2 m k + k^2) multiplications for m landmarks, in `precision`.
    """

    def block_sums(item: tuple[int, Block]) -> MomentSums:
        start, block = item
        # of targets far from 0 (dates, energies) little would be left in float32
        offset = to_numpy(block.Y).mean(axis=0)
        block = replace(block, X=brought(block.X, backend))
        audited = (start // rows) % AUDIT == 0
        return block_moments(block, features, offset, precision=precision, audited=audited)

    # one thread of BLAS for each block: two blocks side by side are faster than two threads in turn
    with closing(read_rows(source, rows)) as reader, only_torch():
        items: Iterator[tuple[int, Block]] = reader if sample is None else sample.trail(reader)
        items = items if kept is None else kept.trail(items)
        for block in in_order(block_sums, items, block_workers(backend)):
            sums.merge(block)
            watch.report("rows", sums.rows, source.n or sums.rows, total_known=source.n is not None)
            if kept is not None:
                kept.offer(sums)


def block_moments(
    block: Block, features: FeatureMap, offset: np.ndarray, *, precision: str, audited: bool
) -> MomentSums:
    """Sums of one block: of its features, or of kernel values whose sums are whitened."""
    split = before_whitening(features, precision=precision, rows=block.rows)
    values: Any = features if split is None else split[0]
    phi, exact = values.transform(block.X, precision), None
    if audited and precision == "float32" and not is_csr(block.X):
        exact = values.transform(block.X, "float64")
    sums = MomentSums.of_block(phi, block.Y, block.weights, offset, exact=exact)
    if split is None:
        return sums
    sums = sums.turned(split[1])
    if exact is not None:  # predictions are made of rows that are whitened one by one
        single, double = (features.transform(block.X, dtype) for dtype in ("float32", "float64"))
        E = compat.array_namespace(double).astype(single, double.dtype) - double
        sums.square_error = MomentSums.of_block(E, block.Y, block.weights, offset).gram
    return sums


def brought(X: Any, backend: Backend) -> Any:
    """Rows where features are made, in the precision in which they came; sparse rows stay on the host."""
    if is_csr(X):
        return X
    if isinstance(backend, NumpyBackend):
        return to_numpy(X)
    precise = str(X.dtype).endswith("float64")
    array = backend.asarray(X)
    return array if precise else backend.xp.astype(array, backend.xp.float32)


def sample_rows(source: RowSource, count: int, seed: int) -> np.ndarray:
    """At most `count` rows of a source, each as likely as any other, in their order; float64 (s, d).

    Each row draws a number by its place, and the smallest are kept: blocks of any size give the same rows.

    Raises
    ------
    ValueError
        For a source that can be read once: it would be spent.
    """
    if not source.rereadable:
        raise ValueError(
            "this source can be read once, and landmarks are picked from its rows first: pass "
            "landmarks=array, sdgpu.RandomFourier, or the kernel's own features"
        )
    reservoir = RowReservoir(count, seed)
    for start, block in read_rows(source, MOST_ROWS):
        reservoir.add(start, block)
    return reservoir.rows[0]
