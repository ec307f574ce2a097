"""Rows of Parquet, Feather and Arrow files, read batch after batch and never whole.

Of a Parquet file a page of every column that is asked for is in memory at a time, and a block; of an Arrow
file one of its record batches. The files hold numbers alone as far as this reader is concerned: it touches
no column of another type. Arrow files can announce types that are made by a pickle; pyarrow makes them
no longer (15 is the oldest that is allowed).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdgpu.backend.rows.column_choice import NamedColumns, by_name
from sdgpu.backend.rows.file_state import FileState
from sdgpu.backend.rows.source import Block

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ColumnarFile", "open_columnar"]

_BUFFER = 1 << 20  # bytes of each column that are read at once: else a whole column of a row group


@dataclass(frozen=True, eq=False)
class ColumnarFile:
    """A file of typed columns.

    Attributes
    ----------
    name : str
        Path of the file, for messages.
    n : int
        Rows, as the file says.
    dtype : str
        "float32" if every feature has that or half precision, else "float64".
    choice : NamedColumns
    state : FileState
    """

    name: str
    n: int
    dtype: str
    choice: NamedColumns
    state: FileState

    @property
    def d(self) -> int:
        """Features of a row."""
        return len(self.choice.features)

    @property
    def c(self) -> int:
        """Outputs; 0 without targets."""
        return len(self.choice.targets)

    @property
    def rereadable(self) -> bool:
        """Always."""
        return True

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features."""
        return self.choice.features

    @property
    def outputs(self) -> tuple[str, ...] | None:
        """Names of the targets."""
        return self.choice.targets or None

    def blocks(self, rows: int) -> Iterator[Block]:
        """Record batches of at most `rows`.

        Raises
        ------
        ValueError
            If the file changed or is damaged, or a value is missing: names file, column and row.
        """
        self.state.check()
        read = _parquet_batches if _is_parquet(self.name) else _arrow_batches
        start = 0
        batches = read(self.name, self.choice.all, rows)
        try:
            while True:
                with _named(self.name, self.state):
                    batch = next(batches, None)
                    if batch is not None:
                        batch.validate()  # sizes of buffers: a batch of another may announce more
                self.state.check()
                if batch is None:
                    break
                if batch.num_rows:
                    yield self._block(batch, start)
                start += batch.num_rows
        finally:
            batches.close()
        if start != self.n:
            raise ValueError(
                f"{self.name} announces {self.n:,} rows and holds {start:,}: it is damaged"
            )

    def _block(self, batch: Any, start: int) -> Block:
        choice = self.choice
        X = self._matrix(batch, choice.features, self.dtype, start)
        Y = self._matrix(batch, choice.targets, "float64", start) if choice.targets else None
        weights = None
        if choice.weights is not None:
            weights = self._matrix(batch, (choice.weights,), "float64", start)[:, 0]
        return Block(X, Y, weights, f"{self.name}, row {start:,}")

    def _matrix(self, batch: Any, names: tuple[str, ...], dtype: str, start: int) -> np.ndarray:
        matrix = np.empty((batch.num_rows, len(names)), dtype)
        for j, name in enumerate(names):
            column = batch.column(name)
            if column.null_count:
                row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise ValueError(
                    f"{self.name}: column {name!r} has no value in row {row:,}: remove or impute such rows "
                    "first"
                )
            matrix[:, j] = column.to_numpy(zero_copy_only=False)
        return matrix


def open_columnar(
    path: str | os.PathLike[str],
    target: str | list[str] | None = None,
    *,
    features: str | list[str] | None = None,
    weights: str | None = None,
) -> ColumnarFile:
    """Look at the schema of a Parquet file (``.parquet``), or else an Arrow or Feather file.

    Parameters
    ----------
    path : path
    target : str or list of str, optional
        Columns of targets; by default the last one, and none for an empty list.
    features : str or list of str, optional
        By default all other columns but the index of pandas.
    weights : str, optional
        Column of weights.

    Raises
    ------
    ImportError
        Without pyarrow.
    OSError
        If there is no such file.
    TypeError
        For a column that holds no numbers; names it, its type and what to do.
    ValueError
        If the file is damaged or has no rows, and as :func:`~.column_choice.by_name`.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError("pyarrow is not installed: pip install 'sdgpu[cluster]'")
    state = FileState.of(path)
    with _named(state.path, state):
        schema = (_parquet_schema if _is_parquet(state.path) else _arrow_schema)(state.path)
    index = [name for name in schema.names if name.startswith("__index_level_")]
    choice = by_name(schema.names, target, features, weights, place=state.path, index=index)
    for column in choice.all:
        _check_type(schema.field(column).type, column, state.path)
    with _named(state.path, state):
        n = (_parquet_rows if _is_parquet(state.path) else _arrow_rows)(state.path)
    if n <= 0:
        raise ValueError(f"{state.path} has no rows")
    narrow = all(
        str(schema.field(column).type) in ("halffloat", "float") for column in choice.features
    )
    return ColumnarFile(state.path, n, "float32" if narrow else "float64", choice, state)


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")


def _parquet_schema(path: str) -> pa.Schema:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=False) as file:
        return file.schema_arrow


def _parquet_rows(path: str) -> int:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=False) as file:
        return int(file.metadata.num_rows)


def _arrow_schema(path: str) -> pa.Schema:
    import pyarrow as pa

    with pa.OSFile(path) as handle:
        if bytes(handle.read(4)) == b"FEA1":
            raise ValueError("it has version 1 of Feather: write it anew with version=2")
        return pa.ipc.open_file(handle).schema


def _arrow_rows(path: str) -> int:
    """From the heads of the batches: their values are not read."""
    import pyarrow.dataset
    import pyarrow.fs

    local = pyarrow.fs.LocalFileSystem()
    fragment = pyarrow.dataset.IpcFileFormat().make_fragment(path, filesystem=local)
    return int(fragment.count_rows())


def _parquet_batches(path: str, names: list[str], rows: int) -> Generator[Any, None, None]:
    import pyarrow.parquet as pq

    options = {"memory_map": False, "buffer_size": _BUFFER, "pre_buffer": False}
    with pq.ParquetFile(path, page_checksum_verification=True, **options) as file:
        yield from file.iter_batches(batch_size=rows, columns=names)


def _arrow_batches(path: str, names: list[str], rows: int) -> Generator[Any, None, None]:
    """Of an Arrow file, cut to size; no memory map: a file that is cut off would kill the process."""
    import pyarrow as pa

    with pa.OSFile(path) as handle:
        schema = pa.ipc.open_file(handle).schema
        fields = sorted(schema.get_field_index(name) for name in names)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        file = pa.ipc.open_file(handle, options=options)
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)


@contextmanager
def _named(path: str, state: FileState) -> Iterator[None]:
    """What pyarrow says of a file it cannot read, with the name of the file; first whether it changed."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        state.check()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged, cut off or of another format: {reason}") from error


def _check_type(kind: Any, column: str, path: str) -> None:
    import pyarrow as pa

    types = pa.types
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind):
        return
    remedy = "encode it as numbers first"
    if types.is_dictionary(kind):
        remedy = "encode categories as numbers first, for example with pandas.get_dummies"
    elif types.is_decimal(kind):
        remedy = "cast it to float64 first"
    elif types.is_temporal(kind):
        remedy = "encode dates and times as numbers first, for example seconds since the first"
    elif types.is_nested(kind):
        remedy = "spread it over columns of numbers first"
    raise TypeError(
        f"{path}: column {column!r} has type {kind}: {remedy}, or leave it out with features=[..]"
    )
