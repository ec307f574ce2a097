"""Rows of dask: arrays, data frames and delayed blocks, a partition at a time.

Partitions are computed by the client that is active, on its cluster, or else by threads of this process,
one ahead of the one that is worked on. An engine that would rather send its work to the partitions than
have their rows sent takes :meth:`DaskSource.partitions`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.conversion import column_names
from sdgpu.backend.rows.column_choice import by_name
from sdgpu.backend.rows.dask_partitions import cut_rows, numbers_of_block, numbers_of_parts
from sdgpu.backend.rows.prefetch import prefetched
from sdgpu.backend.rows.source import Block

__all__ = ["DaskSource", "dask_blocks", "dask_frame", "dask_rows"]


@dataclass(frozen=True, eq=False)
class DaskSource:
    """Partitions of rows that follow one another.

    Attributes
    ----------
    parts : tuple of dask.delayed.Delayed
        Each makes (X, Y or None, weights or None): arrays (b, d), (b, c) and (b,).
    d, c : int
    n : int or None
    dtype : str
    columns, outputs : tuple of str, or None
    name : str
        For messages.
    rereadable : bool
        Always.
    """

    parts: tuple[Any, ...]
    d: int
    c: int
    n: int | None
    dtype: str
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    name: str = "dask"
    rereadable: bool = True

    def partitions(self) -> list[Any]:
        """The delayed partitions, in order: ``dask.delayed(work)(partition)`` works where the rows are."""
        return list(self.parts)

    def blocks(self, rows: int) -> Iterator[Block]:
        """A block for each partition, whatever `rows` is.

        Raises
        ------
        ValueError, TypeError
            What a partition raises, with its number; and if there are no rows at all.
        RuntimeError
            For any other error of a partition, a worker that died for one.
        """
        start, client = 0, _client()
        results = self._local() if client is None else self._remote(client)
        try:
            for number, (X, Y, weights) in enumerate(results):
                yield Block(X, Y, weights, f"{self._place(number)}, row {start:,}")
                start += len(X)
        finally:
            results.close()
        if not start:
            raise ValueError(f"{self.name} has no rows: its partitions are empty")

    def _place(self, number: int) -> str:
        return f"{self.name}, partition {number}"

    def _local(self) -> Generator[Any, None, None]:
        parts = (_computed(part.compute, self._place(i)) for i, part in enumerate(self.parts))
        yield from prefetched(parts)

    def _remote(self, client: Any) -> Generator[Any, None, None]:
        ahead = client.compute(self.parts[0])
        try:
            for number in range(len(self.parts)):
                future, ahead = ahead, None
                if number + 1 < len(self.parts):
                    ahead = client.compute(self.parts[number + 1])
                yield _computed(future.result, self._place(number))
                future.release()  # the cluster may forget it
        finally:
            if ahead is not None:
                ahead.cancel()


def dask_frame(
    frame: Any,
    target: str | list[str] | None = None,
    *,
    features: str | list[str] | None = None,
    weights: str | None = None,
    name: str = "dask frame",
) -> DaskSource:
    """A source from a data frame of dask.

    Parameters
    ----------
    frame : dask.dataframe.DataFrame
    target : str or list of str, optional
        Columns of targets; by default the last one, and none for an empty list.
    features : str or list of str, optional
        By default all other columns.
    weights : str, optional
        Column of weights.
    name : str
        For messages.

    Raises
    ------
    TypeError
        For a column that holds no numbers; names it, its type and what to do.
    ValueError
        As :func:`~.column_choice.by_name`.
    """
    names = column_names(frame)
    if names is None:
        raise TypeError(f"the columns of {name} have no names that are text: rename them first")
    choice = by_name(names, target, features, weights, place=name)
    return dask_rows(
        frame[list(choice.features)],
        frame[list(choice.targets)] if choice.targets else None,
        None if choice.weights is None else frame[choice.weights],
        name=name,
    )


def dask_rows(X: Any, Y: Any = None, weights: Any = None, *, name: str = "dask") -> DaskSource:
    """A source from arrays, frames and series of dask whose partitions hold the same rows.

    Parameters
    ----------
    X : dask array or frame (n, d)
        Chunks of columns are joined.
    Y : dask array, frame or series (n, c) or (n,), optional
        Arrays are cut as X is, if its rows are known; then of NumPy too.
    weights : dask array or series (n,), optional
    name : str
        For messages.

    Raises
    ------
    ImportError
        Without dask.
    TypeError
        For what holds no numbers, or is no collection of dask.
    ValueError
        For wrong axes, no rows, and where Y or weights have other rows or other partitions than X.
    """
    _need_dask()
    import dask

    rows = cut_rows(X, "X")
    targets = None if Y is None else cut_rows(Y, "Y", rows)
    row_weights = None if weights is None else cut_rows(weights, "weights", rows)
    if not rows.width:
        raise ValueError("X must be (rows, features), with one feature at least")
    if targets is not None and targets.width == 0:
        raise ValueError("Y must be (rows,) or (rows, outputs), with one output at least")
    if row_weights is not None and row_weights.width is not None:
        raise ValueError("weights must be (rows,), got two axes")
    n = None if rows.lengths is None else sum(rows.lengths)
    if n == 0 or not rows.parts:
        raise ValueError(f"{name} has no rows")
    pieces = (
        [None] * len(rows.parts) if partitions is None else partitions.parts
        for partitions in (rows, targets, row_weights)
    )
    make = dask.delayed(numbers_of_parts, pure=True)
    return DaskSource(
        tuple(make(*parts, rows.dtype) for parts in zip(*pieces, strict=True)),
        d=rows.width,
        c=0 if targets is None else targets.width or 1,
        n=n,
        dtype=rows.dtype,
        columns=rows.names,
        outputs=None if targets is None else targets.names,
        name=name,
    )


def dask_blocks(
    parts: Sequence[Any],
    *,
    d: int | None = None,
    c: int = 0,
    n: int | None = None,
    dtype: str = "float64",
    name: str = "dask",
) -> DaskSource:
    """A source from values of dask.delayed, each (X, Y), (X, Y, weights) or X.

    Parameters
    ----------
    parts : sequence of dask.delayed.Delayed
        Arrays (b, d), (b,) or (b, c), and (b,).
    d : int, optional
        Features. Without it the first block is computed here and now, and says d, c and dtype.
    c : int
        Outputs; 0 without targets.
    n : int, optional
        Rows, if known.
    dtype : {"float64", "float32"}, default "float64"
        In which X is worked on.
    name : str
        For messages.

    Raises
    ------
    ImportError
        Without dask.
    ValueError
        If there are no parts, or the first one is no block.
    """
    _need_dask()
    import dask

    if not len(parts):
        raise ValueError("parts is empty: at least one delayed block is needed")
    make = dask.delayed(numbers_of_block, pure=True)
    delayed = tuple(make(part) for part in parts)
    if d is None:
        X, Y, _ = _computed(delayed[0].compute, f"{name}, partition 0")
        if len(np.shape(X)) != 2 or len(np.shape(Y)) not in (0, 2):
            raise ValueError(
                f"{name}, partition 0: X must be (rows, features), got shape {np.shape(X)}"
            )
        d, c = int(X.shape[1]), 0 if Y is None else int(Y.shape[1])
        narrow = str(X.dtype).rpartition(".")[2] in ("float16", "bfloat16", "float32")
        dtype = "float32" if narrow else "float64"
    return DaskSource(delayed, d=d, c=c, n=n, dtype=dtype, name=name)


def _computed(compute: Callable[[], Any], place: str) -> Any:
    """The value of a partition; its errors name it."""
    try:
        return compute()
    except Exception as error:
        kind = type(error) if type(error) in (ValueError, TypeError) else RuntimeError
        raise kind(f"{place}: {str(error) or type(error).__name__}") from error


def _client() -> Any:
    """The client of dask.distributed that is active in this thread, if any."""
    distributed = sys.modules.get("distributed")  # who has a client has imported it
    if distributed is None:
        return None
    try:
        return distributed.get_client()
    except ValueError:
        return None


def _need_dask() -> None:
    if importlib.util.find_spec("dask") is None:
        raise ImportError("dask is not installed: pip install 'sdgpu[cluster]'")
