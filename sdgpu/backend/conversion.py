"""What callers hand in, as arrays: lists, tables with named columns, and libraries that are read only.

NumPy, torch, CuPy and other arrays of the array API standard stay what they are. Everything else is read
into NumPy, or refused with the remedy that works. Tables remember the names of their columns, as those of
scikit-learn's estimators do.
"""

from __future__ import annotations

import warnings
from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = [
    "as_array",
    "column_names",
    "is_followed",
    "rounded_to",
    "same_columns",
    "warn_if_followed",
]

SHOWN = 5  # names in an error message


def as_array(value: object, name: str) -> Any:
    """The numbers of `value`, in its own library where they can be computed with there.

    JAX, dask, pandas, polars, pyarrow and xarray are read into NumPy, where the results are too: arrays of
    JAX cannot be written to.

    Raises
    ------
    TypeError, ValueError
        For what holds no numbers, or is no array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array: drop the masked rows, or pass {name}.filled(...)"
        )
    if compat.is_torch_array(value):
        if value.is_sparse or "sparse" in str(value.layout):
            raise TypeError(f"{name} is sparse: pass {name}.to_dense()")
        return value.detach()
    if hasattr(value, "tocsr") or (hasattr(value, "todense") and not compat.is_dask_array(value)):
        remedy = "todense" if compat.is_pydata_sparse_array(value) else "toarray"
        raise TypeError(f"{name} is sparse ({type(value).__name__}): pass {name}.{remedy}()")
    if isinstance(value, np.ndarray) or compat.is_jax_array(value) or compat.is_dask_array(value):
        return _numeric(np.asarray(value), name)
    if compat.is_array_api_obj(value):
        return value
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return _from_dlpack(value, name)
    if value is None or isinstance(value, (str, bytes, dict, set)):
        raise TypeError(f"{name} must be an array of numbers, got {type(value).__name__}")
    if hasattr(value, "collect_schema") and not hasattr(value, "to_numpy"):
        raise TypeError(
            f"{name} is a {type(value).__name__} that is not read yet: pass {name}.collect()"
        )
    if hasattr(value, "to_pandas") and hasattr(value, "combine_chunks"):
        value = value.to_pandas()  # pyarrow
    if hasattr(value, "__next__"):
        raise TypeError(
            f"{name} is a {type(value).__name__}, which can be read once: pass list({name})"
        )
    if hasattr(value, "to_numpy") and not hasattr(value, "dims"):  # xarray has dims
        series = hasattr(value, "dtype") and len(getattr(value, "shape", ())) == 1
        if series or hasattr(value, "dtypes"):
            return _table(value, name)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array of numbers: {error}") from error
    except (TypeError, RuntimeError) as error:
        raise TypeError(f"{name} cannot be read as an array: {error}") from error
    return _numeric(array, name, value)


def is_followed(value: Any) -> bool:
    """Whether torch keeps track of what is made of `value`."""
    if not getattr(value, "requires_grad", False):
        return False
    import torch

    return torch.is_grad_enabled()


def warn_if_followed(**values: Any) -> None:
    """Say that gradients end here, for each tensor that requires one."""
    for name, value in values.items():
        if is_followed(value):
            warnings.warn(
                f"{name} requires a gradient, which does not flow through this: only predict(X_new) is "
                f"differentiated, by X_new; pass {name}.detach()",
                stacklevel=4,
            )


def rounded_to(value: Any) -> str | None:
    """Half precision in which numbers came, "float16" or "bfloat16"; None for any other."""
    kinds = getattr(value, "dtypes", None)
    names = [str(kind).split(".")[-1] for kind in (kinds if kinds is not None else ())]
    names.append(str(getattr(value, "dtype", "")).split(".")[-1])
    return next((kind for kind in ("bfloat16", "float16") if kind in names), None)


def column_names(value: Any) -> tuple[str, ...] | None:
    """Names of the columns of a table if all of them are strings, as scikit-learn takes them; else None.

    Examples
    --------
    >>> import pandas
    >>> column_names(pandas.DataFrame({"a": [1], "b": [2]}))
    ('a', 'b')
    """
    columns = getattr(value, "column_names", None)  # pyarrow
    if columns is None:
        columns = getattr(value, "columns", None)
    if (
        columns is None
        and hasattr(value, "dims")
        and hasattr(value, "coords")
        and len(value.dims) == 2
    ):  # xarray
        columns = value.coords[value.dims[1]].values if value.dims[1] in value.coords else None
    if columns is None or callable(columns):
        return None
    names = tuple(columns)
    return names if names and all(isinstance(name, str) for name in names) else None


def same_columns(
    source_columns: tuple[str, ...] | None, value: Any, name: str, source: str
) -> None:
    """Refuse a table whose columns are not those of `source`, in their order; arrays have no names.

    Raises
    ------
    ValueError
        Names the columns that are missing, unknown or in another place.
    """
    columns = column_names(value)
    if source_columns is None or columns is None or columns == source_columns:
        return
    missing = [column for column in source_columns if column not in columns]
    unknown = [column for column in columns if column not in source_columns]
    if missing or unknown:
        parts = [
            f"{preposition} {_listing(names)}"
            for preposition, names in (("without", missing), ("with", unknown))
            if names
        ]
        raise ValueError(
            f"{name} has other columns than {source}, {' and '.join(parts)}: pass those of {source}, "
            f"{_listing(source_columns)}, or plain arrays"
        )
    raise ValueError(
        f"{name} has the columns of {source} in another order, {_listing(columns)}: pass "
        f"{name}[{list(source_columns) if len(source_columns) <= SHOWN else f'list({source}.columns)'}]"
    )


def _listing(names: Any) -> str:
    text = ", ".join(repr(str(name)) for name in names[:SHOWN])
    return text + (", .." if len(names) > SHOWN else "")


def _numeric(array: np.ndarray, name: str, value: object = None) -> np.ndarray:
    """Refuse what is no number, with the remedy for the usual cases."""
    floats = f"{name}.astype(float)"
    if value is not None and not hasattr(value, "astype"):
        floats = f"numpy.asarray({name}, dtype=float)"
    kind = array.dtype.kind
    if kind == "V" and "float" in array.dtype.name:  # bfloat16 and the like, of ml_dtypes
        array, kind = array.astype(np.float32), "f"
    if kind in "biufc":
        if kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return np.asarray(array)  # drops subclasses such as np.matrix, which multiply differently
    if array.dtype.names:
        raise TypeError(
            f"{name} has dtype {array.dtype}: pass "
            f"numpy.lib.recfunctions.structured_to_unstructured({name})"
        )
    if kind in "Mm":
        number = f"({name} - {name}.min())" if kind == "M" else name
        raise TypeError(
            f"{name} has dtype {array.dtype}: encode dates as numbers first, "
            f"{number} / numpy.timedelta64(1, 's')"
        )
    if array.ndim == 2:
        for j in range(array.shape[1]):
            if not _readable(array[:, j]):
                _refuse_text(array[:, j], f"{name} has dtype {array.dtype}: column {j}")
    elif not _readable(array):
        _refuse_text(array, f"{name} has dtype {array.dtype}: it")
    if kind == "O":
        raise TypeError(f"{name} has dtype object: convert it first, {floats}")
    raise TypeError(f"{name} has dtype {array.dtype}: encode strings as numbers first, {floats}")


def _readable(values: np.ndarray) -> bool:
    """Whether astype(float) would do."""
    try:
        values.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _refuse_text(values: np.ndarray, subject: str) -> None:
    for entry in values.ravel():
        if not _readable(np.array([entry], dtype=object)):
            raise TypeError(
                f"{subject} holds {str(entry)[:40]!r}: encode strings and dates as numbers first, or leave "
                "them out"
            )


def _table(value: Any, name: str) -> np.ndarray:
    """Read a frame or series of pandas or polars whose columns are all numbers, nullable ones too."""
    flat = len(value.shape) == 1
    kinds = [value.dtype] if flat else list(value.dtypes)
    for j, kind in enumerate(kinds):
        if not _is_number(kind):
            label = None if flat else list(value.columns)[j]
            column = value if flat else value[label]
            _refuse_column(column, kind, label, name, kinds=kinds)
    if hasattr(kinds[0], "is_numeric") if kinds else False:  # polars: null is NaN for it
        array = np.asarray(value.to_numpy())
        return array if array.dtype.kind in "biuf" else array.astype(np.float64)
    if all(kind == np.float32 for kind in kinds):
        return np.asarray(value.to_numpy())
    return np.asarray(value.to_numpy(dtype=np.float64, na_value=np.nan))


def _is_number(kind: Any) -> bool:
    if callable(getattr(kind, "is_numeric", None)):  # polars
        return bool(kind.is_numeric()) or str(kind) == "Boolean"
    return getattr(kind, "kind", "O") in "biuf"


def _refuse_column(column: Any, kind: Any, label: Any, name: str, *, kinds: list[Any]) -> None:
    """Say which column holds no numbers, and what would make numbers of it."""
    expression = name if label is None else f"{name}[{label!r}]"
    dtype = kind if all(other == kind for other in kinds) else "object"
    description = "it" if label is None else f"column {label!r} ({kind})"
    subject, text, is_polars = (
        f"{name} has dtype {dtype}: {description}",
        str(kind).lower(),
        hasattr(kind, "is_numeric"),
    )
    if "complex" in text:
        raise TypeError(
            f"{name} is complex: {description} must be real; pass numpy.real({expression})"
        )
    if "period" in text:
        raise TypeError(
            f"{subject} holds periods: encode them as numbers first, {expression}.astype('int64')"
        )
    if any(word in text for word in ("date", "time", "duration")):
        raise TypeError(
            f"{subject} holds dates: encode them as numbers first, "
            f"({expression} - {expression}.min()).dt.total_seconds()"
        )
    if is_polars:
        numbers, dummies = f"{expression}.cast(float)", f"{name}.to_dummies({label!r})"
        if label is None:
            dummies = f"{name}.to_dummies()"
    else:
        numbers, dummies = f"{expression}.astype(float)", f"pandas.get_dummies({name})"
    try:
        np.asarray(column.to_numpy(), dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{subject} holds text: encode it as numbers first, for example with {dummies}"
        ) from None
    raise TypeError(f"{subject} holds numbers that are stored as objects: pass {numbers}")


def _from_dlpack(value: Any, name: str) -> Any:
    """Import a DLPack capsule without a copy: on the CPU as NumPy, on a GPU as torch."""
    kind, _ = value.__dlpack_device__()
    if int(kind) in (1, 3):  # kDLCPU, kDLCUDAHost
        return np.from_dlpack(value)
    import torch

    try:
        return torch.from_dlpack(value)
    except (RuntimeError, BufferError) as error:
        raise TypeError(f"{name} cannot be imported through DLPack: {error}") from error
