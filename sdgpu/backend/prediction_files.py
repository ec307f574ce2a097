"""Predictions of a teacher in a file: all outputs of a row or its largest k, and whether they are logits.

==============  ============================================================================================
``.npy``        a matrix (n, c)
``.npz``        one array named ``probabilities``, ``logits``, ``predictions`` or ``values``, which does not
                say; ``indices`` (n, k) beside it for a top-k, ``labels`` (n,) of the same rows; a single
                array may have any name
``.parquet``    columns of lists with those names; or one column of numbers for each output, in order, and
                ``labels``
==============  ============================================================================================

Files are of others: no objects, no pickles, and nothing is believed before it is checked.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.checks import choice, integer
from sdgpu.backend.rows.numeric_files import open_npy
from sdgpu.backend.storage import write_file
from sdgpu.backend.untrusted_files import read_file, read_npz

__all__ = [
    "OUTPUTS",
    "PredictionTable",
    "check_probabilities",
    "dense_top_k",
    "read_predictions",
    "write_predictions",
]

#: What the numbers of a file may be: "predictions" are outputs of a regression, or not known.
OUTPUTS = ("probabilities", "logits", "predictions")
RESTS = ("spread", "renormalise")
SUM = 1e-3  # rows of probabilities sum to 1 within this: half precision does
_VALUES = (*OUTPUTS, "values")  # the last does not say what they are
_NAMES = (*_VALUES, "indices", "labels")


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """What a teacher says of n rows.

    Attributes
    ----------
    values : array (n, c), or (n, k) of a top-k
        float32 or float64, finite.
    output : {"probabilities", "logits", "predictions"} or None
        What the file says they are; None where it does not say.
    indices : array (n, k) or None
        Outputs that the values of a top-k belong to, no two alike in a row.
    labels : array (n,) or None
        Of the same rows, if they are in the file: they show whether rows are in the order of others.
    """

    values: np.ndarray
    output: str | None = None
    indices: np.ndarray | None = None
    labels: np.ndarray | None = None

    @classmethod
    def checked(
        cls,
        values: np.ndarray,
        output: str | None = None,
        indices: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> PredictionTable:
        """A table of arrays of any types, in the types that it promises.

        Raises
        ------
        ValueError
            For what is no number or not finite, and shapes that do not agree.
        """
        if values.dtype.kind not in "iuf":
            raise ValueError(f"predictions must be numbers, got {values.dtype}")
        wide = (
            np.float64 if values.dtype.kind != "f" else np.promote_types(values.dtype, np.float32)
        )
        values = values.astype(wide, copy=False)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or not values.size:
            raise ValueError(
                f"predictions must be (n, c), none of them 0, got shape {values.shape}"
            )
        rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(rows):
            raise ValueError(
                f"predictions must be finite, but {len(rows)} of {len(values)} rows are not, the first of "
                f"them row {rows[0]}"
            )
        whole = []
        for what, array, shape in (
            ("indices", indices, values.shape),
            ("labels", labels, values.shape[:1]),
        ):
            if array is not None and (array.dtype.kind not in "iu" or array.shape != shape):
                raise ValueError(
                    f"{what} must be whole numbers {shape} beside predictions {values.shape}, got "
                    f"{array.dtype} {array.shape}"
                )
            whole.append(None if array is None else array.astype(np.int64))
        return cls(values, output, *whole)

    def __len__(self) -> int:
        return len(self.values)

    def dense(self, classes: int, *, rest: str | None = None) -> np.ndarray:
        """All outputs of every row, (n, classes), see :func:`dense_top_k`.

        Raises
        ------
        ValueError
            If the values are of another number of classes.
        """
        if self.indices is not None:
            logits = self.output == "logits"
            return dense_top_k(self.values, self.indices, classes, logits=logits, rest=rest)
        if self.values.shape[1] != classes:
            raise ValueError(
                f"predictions have {self.values.shape[1]} columns for {classes} classes: the teacher must "
                "have been trained on the same ones"
            )
        return self.values


def read_predictions(path: str | os.PathLike[str]) -> PredictionTable:
    """Read the predictions of a teacher.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz`` or ``.parquet``, see the top of this module.

    Returns
    -------
    PredictionTable
        Half precision comes as float32, whole numbers as float64.

    Raises
    ------
    ImportError
        For Parquet without pyarrow.
    OSError
        If there is no such file, or it may not be read.
    TypeError
        If a ``.npy`` file holds no real numbers.
    ValueError
        If it is damaged, of another format, names no predictions or several, or holds what is not finite
        or shapes that do not agree; names the file.
    """
    name, kind = os.fspath(path), Path(path).suffix.lower()
    readers = {".npy": _read_npy, ".npz": _read_npz, ".parquet": _read_parquet}
    if kind not in readers:
        raise ValueError(
            f"{name}: predictions are read from {', '.join(readers)}: name such a file"
        )
    try:
        return readers[kind](path)
    except ValueError as error:
        told = str(error)
        raise ValueError(told if told.startswith(name) else f"{name}: {told}") from error


def write_predictions(
    path: str | os.PathLike[str],
    values: Any,
    *,
    output: str,
    indices: Any = None,
    labels: Any = None,
) -> None:
    """Write predictions that :func:`read_predictions` reads, as ``.npz``.

    Parameters
    ----------
    path : path
        Must end in ``.npz``.
    values : array (n, c), or (n, k) with `indices`
    output : {"probabilities", "logits", "predictions"}
    indices : array (n, k), optional
        Of a top-k.
    labels : array (n,), optional
        Of the same rows: who reads the file can then see that the rows are the same.

    Raises
    ------
    OSError
        If it cannot be written.
    ValueError
        For another ending, and what :func:`read_predictions` would refuse.
    """
    if Path(path).suffix.lower() != ".npz":
        raise ValueError(f"path={os.fspath(path)!r}: predictions are written as .npz")
    table = PredictionTable.checked(
        np.asarray(values),
        choice("output", output, OUTPUTS),
        None if indices is None else np.asarray(indices),
        None if labels is None else np.asarray(labels),
    )
    arrays: dict[str, Any] = {
        output: table.values,
        "indices": table.indices,
        "labels": table.labels,
    }
    content = io.BytesIO()
    np.savez(content, **{key: array for key, array in arrays.items() if array is not None})
    write_file(Path(path), content.getvalue())


def dense_top_k(
    values: np.ndarray,
    indices: np.ndarray,
    classes: int,
    *,
    logits: bool = False,
    rest: str | None = None,
) -> np.ndarray:
    """Probabilities (n, classes) of which k in a row are known.

    Parameters
    ----------
    values : array (n, k)
        The largest probabilities of each row, or logits.
    indices : array (n, k)
        Their classes, 0 .. classes - 1, no two alike in a row.
    classes : int
        c >= k.
    logits : bool, default False
        Whether the values are logits: what is left for the other classes is then not known.
    rest : {"spread", "renormalise"}, optional
        What is left, 1 - sum of the k, goes to the other classes, each the same; or they get nothing, and
        the k are divided by their sum. By default it is spread for probabilities; logits are renormalised,
        softmax over the k alone, and know no other way.

    Returns
    -------
    array (n, classes)
        Of the dtype of `values`; logits come as probabilities. Memory n c numbers.

    Raises
    ------
    ValueError
        If k exceeds `classes`, an index is out of range or twice in a row, probabilities are below 0 or
        sum to more than 1, or "spread" is asked of logits.
    """
    n, k = values.shape
    rest = choice("rest", rest or ("renormalise" if logits else "spread"), RESTS)
    if k > integer("classes", classes, 1):
        raise ValueError(
            f"top-k with k={k} of classes={classes}: there are not so many; give indices (n, k) with "
            "k <= classes"
        )
    if logits and rest == "spread":
        raise ValueError("rest='spread' needs probabilities: of k logits what is left is not known")
    _check_indices(values, indices, classes)
    if logits:
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        values = shifted / shifted.sum(axis=1, keepdims=True)
    sums = values.sum(axis=1, dtype=np.float64)
    if not logits and (values.min(initial=0) < -SUM or sums.max(initial=0) > 1 + SUM):
        raise ValueError(
            f"a top-k of probabilities is >= 0 and sums to 1 at most, but one row sums to {sums.max():g}, "
            f"with entries from {values.min():.3g}: if they are logits, say output='logits'"
        )
    if rest == "renormalise" and not (sums > 0).all():
        raise ValueError("rest='renormalise' divides by the sum of a top-k, which is 0 in a row")
    left = np.zeros(n) if rest == "renormalise" else np.maximum(1 - sums, 0) / max(classes - k, 1)
    dense = np.repeat(left.astype(values.dtype)[:, None], classes, axis=1)
    known = values if rest == "spread" else values / sums.astype(values.dtype)[:, None]
    np.put_along_axis(dense, indices, known, axis=1)
    return dense


def check_probabilities(name: str, values: np.ndarray, remedy: str) -> None:
    """Refuse rows (..., c) that are no probabilities: logits, as a rule.

    Raises
    ------
    ValueError
        If an entry is below 0 or a row does not sum to 1, within 1e-3.
    """
    if not values.size:
        return
    sums = values.sum(axis=-1, dtype=np.float64)
    if not (values.min() >= -SUM and np.abs(sums - 1).max() <= SUM):
        worst = float(sums.flat[np.abs(sums - 1).argmax()])
        raise ValueError(
            f"{name}: rows of probabilities are >= 0 and sum to 1, and one sums to {worst:g}, with entries "
            f"from {values.min():.3g} to {values.max():.3g}: {remedy}"
        )


def _check_indices(values: np.ndarray, indices: np.ndarray, classes: int) -> None:
    if indices.shape != values.shape or indices.dtype.kind not in "iu":
        raise ValueError(
            f"indices must be whole numbers {values.shape}, one for each value of the top-k, got "
            f"{indices.dtype} {indices.shape}"
        )
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= classes:
        raise ValueError(
            f"indices run from {indices.min()} to {indices.max()}, but classes={classes}: they must be in "
            f"0..{classes - 1}"
        )
    ordered = np.sort(indices, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if twice.any():
        raise ValueError(f"indices of row {int(twice.argmax())} name a class twice")


def _named(arrays: dict[str, np.ndarray], names: list[str]) -> PredictionTable:
    """The table in arrays by name."""
    found = [name for name in _VALUES if name in arrays]
    if len(found) != 1:
        raise ValueError(
            f"it must have one of {', '.join(_VALUES)}, but has {', '.join(names) or 'nothing'}"
        )
    output = found[0] if found[0] in OUTPUTS else None
    return PredictionTable.checked(
        arrays[found[0]], output, arrays.get("indices"), arrays.get("labels")
    )


def _read_npy(path: str | os.PathLike[str]) -> PredictionTable:
    file = open_npy(path)
    return PredictionTable.checked(np.concatenate([block.X for block in file.blocks(file.n)]))


def _read_npz(path: str | os.PathLike[str]) -> PredictionTable:
    arrays, names = read_npz(path, _NAMES)
    if len(names) == 1 and not arrays:
        arrays, _ = read_npz(path, names)
        return PredictionTable.checked(arrays[names[0]])
    return _named(arrays, names)


def _read_parquet(path: str | os.PathLike[str]) -> PredictionTable:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{os.fspath(path)} needs pyarrow: pip install pyarrow, or write .npz"
        ) from error
    content = read_file(path)
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            table = file.read()
        table.validate()
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        raise ValueError(f"it is no Parquet file, or a damaged one: {error}") from error
    names = table.column_names
    if len(set(names)) < len(names):
        raise ValueError(f"it has two columns of one name: {', '.join(names)}")
    if {*names} & {*_VALUES}:
        return _named(
            {name: _column(name, table.column(name)) for name in names if name in _NAMES}, names
        )
    columns = [_column(name, table.column(name)) for name in names if name != "labels"]
    if not columns or any(column.ndim != 1 for column in columns):
        raise ValueError(
            f"it must have one of {', '.join(OUTPUTS)}, or a column of numbers for each output, but has "
            f"{', '.join(names) or 'nothing'}"
        )
    labels = _column("labels", table.column("labels")) if "labels" in names else None
    return PredictionTable.checked(np.stack(columns, axis=1), None, None, labels)


def _column(name: str, column: Any) -> np.ndarray:
    """A column of numbers (n,), or of lists of one length (n, k)."""
    import pyarrow as pa
    from pyarrow import compute

    kind = column.type
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    numbers = kind.value_type if is_list else kind
    if not (pa.types.is_floating(numbers) or pa.types.is_integer(numbers)):
        raise ValueError(f"column {name!r} is of {kind}: numbers are wanted, or lists of them")
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} rows without a value")
    if not is_list:
        return np.asarray(column.to_numpy())
    lengths = compute.min_max(compute.list_value_length(column)).as_py()
    flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], type=numbers)
    if lengths["min"] != lengths["max"] or flat.null_count:
        raise ValueError(
            f"column {name!r} has lists of {lengths['min']} to {lengths['max']} entries, "
            f"{flat.null_count} of them without a value: all must be of one length"
        )
    return np.asarray(flat.to_numpy()).reshape(len(column), -1)
