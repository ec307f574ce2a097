"""Sparse rows at the door: matrices of SciPy and tensors of torch become CSR of SciPy.

Feature models of kernels with features of their own take them: there a row costs the square of its
entries rather than of its features, and they are summed on the host. Kernels of inner products and lengths
have values of them, by products of sparse matrices: for 1,024 x 1,024 rows of 50,000 features and 50 to 200
entries in 1 to 30 ms, where a product with one side dense takes 50 to 200 and one of dense rows 1,100.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np
import scipy

__all__ = [
    "csr_of",
    "csr_rows",
    "dense_product",
    "is_csr",
    "is_sparse",
    "mean_entries",
    "square_sums",
    "with_column",
]


def is_sparse(value: object) -> bool:
    """Whether a caller's value is a sparse matrix of SciPy or a sparse tensor of torch."""
    if compat.is_torch_array(value):
        tensor: Any = value
        return tensor.is_sparse or "sparse" in str(tensor.layout)
    return scipy.sparse.issparse(value)


def is_csr(array: object) -> bool:
    """Whether an array behind the door is sparse."""
    return isinstance(array, scipy.sparse.csr_array)


def csr_of(data: Any, indices: Any, indptr: Any, features: int) -> scipy.sparse.csr_array:
    """CSR rows from their parts, which may come out of a file: checked.

    Raises
    ------
    ValueError
        If they are no rows of so many features.
    """
    if not all(np.ndim(part) == 1 for part in (data, indices, indptr)) or len(indptr) < 2:
        raise ValueError("the parts of sparse rows must be vectors")
    if any(part.dtype != np.int64 for part in (indices, indptr)):
        raise ValueError("places of sparse rows must be whole numbers")
    shape = (len(indptr) - 1, features)
    rows = scipy.sparse.csr_array((data, indices, indptr), shape=shape)
    rows.check_format(full_check=True)
    return rows


def square_sums(rows: scipy.sparse.csr_array) -> np.ndarray:
    """|x|^2 of CSR rows, (n,)."""
    return np.asarray((rows * rows).sum(axis=1)).reshape(-1)


def dense_product(A: scipy.sparse.csr_array, B: scipy.sparse.csr_array) -> np.ndarray:
    """A B' of CSR rows (a, d) and (b, d), (a, b): a multiplication for every entry that two rows share."""
    return (A @ B.T).toarray()


def mean_entries(rows: scipy.sparse.csr_array) -> float:
    """Of a row."""
    return float(rows.nnz / max(rows.shape[0], 1))


def with_column(rows: scipy.sparse.csr_array, number: float) -> scipy.sparse.csr_array:
    """The rows with one column more, which is that number everywhere."""
    column = np.full((rows.shape[0], 1), number, dtype=rows.dtype)
    return scipy.sparse.csr_array(scipy.sparse.hstack([rows, scipy.sparse.csr_array(column)]))


def csr_rows(
    value: Any, name: str, *, features: int | None = None, empty: bool = True
) -> scipy.sparse.csr_array:
    """Sparse rows (n, d) as CSR of floats on the host; float32 and float64 stay, others become float64.

    `empty` says whether there may be no rows.

    Raises
    ------
    TypeError
        For complex numbers or objects.
    ValueError
        For another number of axes or features, and for NaN or infinity among the entries.
    """
    if compat.is_torch_array(value) and is_sparse(value):
        value = _from_torch(value, name)
    elif compat.is_array_api_obj(value):  # dense, and checked
        value = scipy.sparse.csr_array(np.asarray(value.cpu() if hasattr(value, "cpu") else value))
    if value.ndim != 2 or not value.shape[1]:
        raise ValueError(f"{name} must be (rows, features), got shape {tuple(value.shape)}")
    if not (value.shape[0] or empty):
        raise ValueError(f"{name} has no rows (shape {tuple(value.shape)}): at least one is needed")
    if features is not None and value.shape[1] != features:
        raise ValueError(f"{name} has {value.shape[1]} features, but the fit has {features}")
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{name} has dtype {value.dtype}: it must hold real numbers")
    rows = scipy.sparse.csr_array(value)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if not rows.has_canonical_format:
        rows = rows.copy()  # the caller's entries stay as they are
        rows.sum_duplicates()
    wrong = np.flatnonzero(~np.isfinite(rows.data))
    if len(wrong):
        row = int(np.searchsorted(rows.indptr, wrong[0], side="right")) - 1
        raise ValueError(
            f"{name} has {len(wrong)} entries that are NaN or infinite, the first in row {row:,}: remove "
            "or impute them first"
        )
    return rows


def _from_torch(tensor: Any, name: str) -> scipy.sparse.csr_array:
    """Of any layout but those of blocks."""
    tensor = tensor.detach().cpu()
    if tensor.ndim != 2 or tensor.dense_dim():
        raise ValueError(f"{name} must be (rows, features), got shape {tuple(tensor.shape)}")
    layout = str(tensor.layout)
    if "bsr" in layout or "bsc" in layout:
        raise TypeError(f"{name} is sparse in blocks: pass {name}.to_sparse_csr()")
    coo = tensor.to_sparse_coo().coalesce()
    values = coo.values()
    if not values.dtype.is_complex:
        wide = values.dtype.is_floating_point and values.element_size() < 4
        values = values.float() if wide else values
    places = coo.indices().numpy()
    return scipy.sparse.csr_array(
        (values.numpy(), (places[0], places[1])), shape=tuple(tensor.shape)
    )
