"""The one door for arrays: what comes in is checked here, and what goes out leaves through here.

Accepted are NumPy, PyTorch (any device), CuPy, every array that follows the array API standard,
every DLPack exporter, and what is read into NumPy: lists, JAX, dask, pandas, polars, xarray
(:mod:`sdgpu.backend.conversion`). A result is given back in the library, on the device and in the
precision of the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.conversion import as_array, column_names, same_columns, warn_if_followed
from sdgpu.backend.sparse_rows import csr_rows, is_csr, is_sparse

__all__ = [
    "Array",
    "Template",
    "as_data",
    "beside",
    "dtype_name",
    "inputs",
    "library",
    "lies_on_device",
    "may_share",
    "new_rows",
    "pair",
    "same_place",
    "slices",
    "targets",
    "where_is",
]

Array = Any  # an array of any library: there is no common static type

BLOCK = 2**17  # entries that are looked at together
BLOCK_DEVICE = 2**25  # on a GPU, which is waited for once

_WIDTH = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


def slices(n: int, size: int) -> Iterator[slice]:
    """Cut range(n) into slices of at most `size`, the last one ending at n.

    Examples
    --------
    >>> list(slices(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def library(array: Array) -> str:
    """Name the library of `array`: "numpy", "torch", "cupy" or another module's name."""
    if compat.is_numpy_array(array):
        return "numpy"
    if compat.is_torch_array(array):
        return "torch"
    if compat.is_cupy_array(array):
        return "cupy"
    # "jax.numpy" is not NumPy
    return compat.array_namespace(array).__name__.removeprefix("array_api_compat.").split(".")[0]


def where_is(array: Array) -> str:
    """Library and device of `array` as one string, for example ``"torch on cuda:0"``."""
    return f"{library(array)} on {compat.device(array)}"


def lies_on_device(array: Array) -> bool:
    """Whether the array is one of torch or CuPy on a GPU: to look at a number of it waits for the GPU."""
    if compat.is_torch_array(array):
        return bool(array.device.type != "cpu")
    return compat.is_cupy_array(array)


def dtype_name(array: Array) -> str:
    """Name of the dtype of `array` without its library, for example ``"float32"``."""
    return str(array.dtype).split(".")[-1]


def as_data(value: object, name: str) -> Array:
    """Turn `value` into a real array of floats, in its own library and on its own device.

    float32 and float64 stay; half precisions become float32; integers and booleans float64
    (float32 on a device without float64). Strided, read-only and Fortran-ordered arrays pass
    unchanged: nothing is copied unless the dtype has to change, and nothing is written to.

    Raises
    ------
    TypeError
        For sparse, complex, string, object or otherwise unreadable input.
    ValueError
        If it holds NaN or infinity.
    """
    array = as_array(value, name)
    xp = compat.array_namespace(array)
    kind = dtype_name(array)
    if kind.startswith("complex"):
        raise TypeError(
            f"{name} is complex ({kind}): sdgpu works on real numbers; pass {name}.real"
        )
    if kind in _WIDTH:
        dtype = _WIDTH[kind]
    elif kind.startswith(("int", "uint", "bool")):
        dtype = "float32" if _without_float64(array) else "float64"
    else:
        raise TypeError(f"{name} has dtype {kind}: it must hold real numbers")
    if dtype != kind:
        array = xp.astype(array, getattr(xp, dtype))
    count = _not_finite(array)
    if count:
        raise ValueError(
            f"{name} has {count} entries that are NaN or infinite: remove or impute them first"
        )
    return array


def inputs(value: object, name: str, *, features: int | None = None, empty: bool = False) -> Array:
    """Check a matrix of rows (n, d).

    Parameters
    ----------
    value : array_like
        The rows; a 1-D input is refused because (n,) could mean n rows or n features.
    name : str
        Name for the error messages.
    features : int, optional
        The d that is required.
    empty : bool, default False
        Whether zero rows are allowed.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_data`, and for a wrong number of axes, of rows or of features.
    """
    array = as_data(value, name)
    shape = tuple(array.shape)
    if array.ndim != 2:
        column = "to_frame()" if hasattr(value, "to_frame") else "reshape(-1, 1)"
        remedy = f"; for one feature use {name}.{column}" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} must be two-dimensional (rows, features), got shape {shape}{remedy}"
        )
    if shape[0] == 0 and not empty:
        raise ValueError(f"{name} has no rows (shape {shape}): at least one is needed")
    if shape[1] == 0:
        raise ValueError(f"{name} has no features (shape {shape}): at least one is needed")
    if features is not None and shape[1] != features:
        raise ValueError(f"{name} has {shape[1]} features, but the fit has {features}")
    return array


def targets(
    value: object, name: str, *, rows: int, outputs: int | None = None
) -> tuple[Array, bool]:
    """Check targets (n,) or (n, c) and return them as (n, c) with whether the axis c was added.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_data`, and for wrong axes, rows or outputs.
    """
    array = as_data(value, name)
    shape = tuple(array.shape)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must be (rows,) or (rows, outputs), got shape {shape}")
    if shape[0] != rows:
        raise ValueError(f"{name} has {shape[0]} rows, but its inputs have {rows}")
    flat = array.ndim == 1
    if flat:
        array = compat.array_namespace(array).reshape(array, (rows, 1))
    if array.shape[1] == 0:
        raise ValueError(f"{name} has no outputs (shape {shape}): at least one is needed")
    if outputs is not None and array.shape[1] != outputs:
        raise ValueError(f"{name} has {array.shape[1]} outputs, but the fit has {outputs}")
    return array, flat


@dataclass(frozen=True, eq=False)
class Template:
    """Where results go: the library, device and dtype of the data that came in.

    Attributes
    ----------
    sample : Array
        An empty array of the caller's library on the caller's device.
    dtype : str
        "float32" or "float64", the wider one of inputs and targets.
    flat : bool
        Whether the targets were 1-D: then the axis c is dropped from every result.
    columns, outputs : tuple of str, optional
        Names of the columns of X and Y where these were tables.
    takes_sparse : bool
        Whether new inputs may be sparse.
    """

    sample: Array
    dtype: str
    flat: bool
    columns: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    takes_sparse: bool = False

    @classmethod
    def of(cls, X: Array, Y: Array, *, flat: bool) -> Template:
        """Make the template of a checked pair; both must be of one library on one device."""
        same_place(X, Y, "X", "Y")
        dtype = "float64" if "float64" in (dtype_name(X), dtype_name(Y)) else "float32"
        # nothing of X: a view would keep all of it alive
        xp = compat.array_namespace(X)
        sample = xp.zeros((0, X.shape[1]), dtype=X.dtype, device=compat.device(X))
        return cls(sample, dtype, flat)

    def rows(self, value: object, name: str, features: int, *, empty: bool = False) -> Array:
        """Check new inputs (m, d): numbers, features, names of columns, library and device.

        Sparse rows come back as CSR of SciPy.

        Raises
        ------
        TypeError, ValueError
            As :func:`inputs`, and for other columns or another order, another library or device.
        """
        if self.takes_sparse and is_sparse(value):
            return csr_rows(value, name, features=features, empty=empty)
        return new_rows(
            value, name, self.sample, columns=self.columns, features=features, empty=empty
        )

    def truth(
        self, value: object, name: str, *, rows: int, outputs: int | None = None
    ) -> tuple[Array, bool]:
        """Check targets for this fit, as :func:`targets`, with columns, library and device."""
        array, flat = targets(value, name, rows=rows, outputs=outputs)
        if array.shape[1] > 1 and outputs is not None:
            same_columns(self.outputs, value, name, "Y")
        return self._beside_sample(value, array, name), flat

    def _beside_sample(self, value: object, array: Array, name: str) -> Array:
        array = beside(value, array, self.sample)
        same_place(self.sample, array, "X", name)
        return array


def pair(X: Any, Y: object) -> tuple[Array, Array, Template]:
    """Check training data: rows (n, d), targets (n, c), and where their results go.

    Sparse rows come back as CSR of SciPy; results go where they came from, as those of dense rows do.

    Raises
    ------
    TypeError, ValueError
        As :func:`inputs` and :func:`targets`, and for two libraries or devices.
    """
    warn_if_followed(X=X, Y=Y)
    if is_sparse(X):
        matrix = csr_rows(X, "X", empty=False)
        truth, flat = targets(Y, "Y", rows=int(matrix.shape[0]))
        like = _without_rows(X, matrix)
        truth = beside(Y, truth, like)
        template = replace(Template.of(like, truth, flat=flat), takes_sparse=True)
        return matrix, truth, replace(template, outputs=column_names(Y))
    rows = inputs(X, "X")
    truth, flat = targets(Y, "Y", rows=int(rows.shape[0]))
    rows, truth = beside(X, rows, truth), beside(Y, truth, rows)
    template = Template.of(rows, truth, flat=flat)
    return rows, truth, replace(template, columns=column_names(X), outputs=column_names(Y))


def _without_rows(value: Any, matrix: Any) -> Array:
    """An array (0, d) of the library, device and precision that sparse rows came in."""
    shape = (0, matrix.shape[1])
    if not compat.is_torch_array(value):
        return np.zeros(shape, dtype=matrix.dtype)
    xp = compat.array_namespace(value)
    return xp.zeros(shape, dtype=getattr(xp, dtype_name(matrix)), device=value.device)


def new_rows(
    value: object,
    name: str,
    X: Array,
    *,
    columns: tuple[str, ...] | None,
    features: int,
    empty: bool,
) -> Array:
    """Check rows (m, d) that go with others, X, whose columns may have had names.

    Beside sparse rows they become CSR, whatever they are.

    Raises
    ------
    TypeError, ValueError
        As :func:`inputs`, and for other columns or another order, another library or device.
    """
    warn_if_followed(**{name: value})
    if is_csr(X):
        host = value if is_sparse(value) else inputs(value, name, empty=empty)
        return csr_rows(host, name, features=features, empty=empty)
    array = inputs(value, name, empty=empty)
    same_columns(columns, value, name, "X")
    if array.shape[1] != features:
        raise ValueError(f"{name} has {array.shape[1]} features, but the fit has {features}")
    array = beside(value, array, X)
    same_place(X, array, "X", name)
    return array


def beside(value: object, array: Array, like: Array) -> Array:
    """The array of a list, which has no library of its own, in that of another array."""
    if not isinstance(value, (list, tuple)) or library(like) == library(array):
        return array
    xp = compat.array_namespace(like)
    dtype = xp.float32 if _without_float64(like) else getattr(xp, dtype_name(array))
    return xp.asarray(array, dtype=dtype, device=compat.device(like))


def may_share(array: Array, source: object) -> bool:
    """Whether the array may lie in the memory of its source, what a caller passed, or be that itself."""
    if isinstance(source, (list, tuple)):
        return False
    here, there = _span(array), _span(source)
    return here is None or there is None or (here[0] < there[1] and there[0] < here[1])


def _span(array: Any) -> tuple[int, int] | None:
    """Addresses of an array on the host; None where nobody says."""
    if compat.is_torch_array(array) and array.device.type == "cpu":
        storage = array.untyped_storage()
        return storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    if isinstance(array, np.ndarray):
        first = int(array.__array_interface__["data"][0])
        ends = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
        low, high = (sum(f(end, 0) for end in ends) for f in (min, max))
        return first + low, first + high + (array.itemsize if array.size else 0)
    return None


def _not_finite(array: Array) -> int:
    """How many entries are NaN or infinite; in blocks, as flags of all are a copy of some libraries."""
    xp, rows = compat.array_namespace(array), array.shape[0] if array.ndim else 0
    if array.ndim < 2:
        return int(xp.sum(xp.astype(~xp.isfinite(array), xp.int64))) if compat.size(array) else 0
    on_device, width = lies_on_device(array), max(compat.size(array) // max(rows, 1), 1)
    height, count = max(1, (BLOCK_DEVICE if on_device else BLOCK) // width), 0
    if on_device and rows:
        parts = [~xp.isfinite(array[part, ...]) for part in slices(rows, height)]
        return int(xp.sum(xp.stack([xp.sum(xp.astype(part, xp.int64)) for part in parts])))
    for part in slices(rows, height):
        finite = xp.isfinite(array[part, ...])
        if not bool(xp.all(finite)):
            count += int(xp.sum(xp.astype(~finite, xp.int64)))
    return count


def same_place(first: Array, second: Array, first_name: str, second_name: str) -> None:
    """Raise ValueError unless both arrays are of one library and on one device."""
    here, there = where_is(first), where_is(second)
    if here != there:
        raise ValueError(
            f"{first_name} is {here}, {second_name} is {there}: "
            "bring both to one library and one device first"
        )


def _without_float64(array: Array) -> bool:
    return str(compat.device(array)).startswith("mps")
