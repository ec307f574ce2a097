"""A kernel's own features of sparse rows, sparse where the kernel leaves zeros what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy

from sdgpu.kernels.columns import On
from sdgpu.kernels.dot_product import Cosine, Linear
from sdgpu.kernels.kernel import Kernel, Scaled, Sum, lengthscales

__all__ = ["sparse_features"]


def sparse_features(kernel: Kernel, X: Any, dense: Callable[[Kernel, Any], Any]) -> Any:
    """phi(X) (b, k) of CSR rows (b, d), CSR in float64.

    Linear and cosine kernels, their multiples and sums work on the entries alone; for others (polynomials,
    products) the block is unpacked, and `dense` (kernel, X) makes its features.
    """
    if isinstance(kernel, Linear):
        return _scaled(kernel, X)
    if isinstance(kernel, Cosine):
        rows = _scaled(kernel, X)
        largest = _row_values(abs(rows).max(axis=1))  # squares of tiny rows would vanish
        rows = _times(rows, 1 / np.where(largest > 0, largest, 1.0))
        norms = np.sqrt(_row_values((rows * rows).sum(axis=1)))
        return _times(rows, 1 / np.where(norms > 0, norms, 1.0))
    if isinstance(kernel, Scaled):
        return sparse_features(kernel.kernel, X, dense) * math.sqrt(kernel.scale)
    if isinstance(kernel, On):
        return sparse_features(kernel.kernel, kernel.chosen(X), dense)
    if isinstance(kernel, Sum):
        parts = [sparse_features(part, X, dense) for part in kernel.kernels]
        return scipy.sparse.hstack(parts, format="csr")
    return scipy.sparse.csr_array(dense(kernel, X.toarray()))


def _scaled(kernel: Linear | Cosine, X: Any) -> Any:
    """X / lengthscale in float64."""
    lengthscale = lengthscales(kernel.lengthscale)
    rows = X.astype(np.float64)
    if lengthscale is None:
        return rows
    if not isinstance(lengthscale, float) and len(lengthscale) != X.shape[1]:
        raise ValueError(
            f"lengthscale has {len(lengthscale)} entries, but the data have {X.shape[1]} features"
        )
    scale = np.broadcast_to(np.asarray(lengthscale, dtype=np.float64), (X.shape[1],))
    return scipy.sparse.csr_array(
        (rows.data / scale[rows.indices], rows.indices, rows.indptr), X.shape
    )


def _times(rows: Any, factors: np.ndarray) -> Any:
    """Each row times its factor."""
    data = rows.data * np.repeat(factors, np.diff(rows.indptr))
    return scipy.sparse.csr_array((data, rows.indices, rows.indptr), rows.shape)


def _row_values(values: Any) -> np.ndarray:
    """One number for each row, whatever kind of array a reduction gives."""
    dense = values.toarray() if hasattr(values, "toarray") else values
    return np.asarray(dense, dtype=np.float64).reshape(-1)
