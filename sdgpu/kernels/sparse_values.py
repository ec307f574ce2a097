"""Kernel values of sparse rows: of functions of inner products and lengths, which products of CSR give."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from sdgpu.backend.arrays import inputs, slices
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.sparse_rows import csr_rows, is_sparse

__all__ = ["sparse_values"]

TILE = 1024  # rows: a product of sparse rows has a price of its own


def sparse_values(kernel: Any, A: Any, B: Any = None) -> np.ndarray:
    """kappa(A, B) (n, m), A and B sparse or one of them, on the host in the dtype of A; no row is dense.

    Cost: a product of sparse matrices and n m profiles; distances are not centred, which costs digits for
    rows that are long beside their distances, up to what near pairs get back.

    Parameters
    ----------
    kernel : Kernel
        With `takes_sparse`.
    A, B : matrices (n, d) and (m, d)
        Of SciPy or torch. Without B it is A, and the result symmetric to the last bit.

    Raises
    ------
    TypeError, ValueError
        For another kernel, and for what is not finite real rows of one number of features.
    """
    if not kernel.takes_sparse:
        raise TypeError(
            f"{kernel!r} has no values of sparse rows: pass X.toarray(), or take a kernel of inner "
            "products and lengths, such as sdgpu.Gaussian or sdgpu.Tanimoto"
        )
    A = _csr(A, "A")
    rows = others = kernel.rows(A, None)
    if B is not None:
        B = _csr(B, "B")
        if A.shape[1] != B.shape[1]:
            raise ValueError(f"B has {B.shape[1]} features, but A has {A.shape[1]}")
        others = kernel.rows(B.astype(A.dtype), None)
    K = np.empty((len(rows), len(others)), dtype=A.dtype)
    for high in slices(len(rows), TILE):
        for low in slices(len(others) if B is not None else high.stop, TILE):
            same = B is None and low == high
            tile = kernel.tile(rows[high], others[low], same=same)
            K[high, low] = (tile + tile.T) / 2 if same else tile
            if B is None and not same:
                K[low, high] = tile.T
    return K


def _csr(value: Any, name: str) -> csr_array:
    if not is_sparse(value):
        value = csr_array(to_numpy(inputs(value, name, empty=True)))
    return csr_rows(value, name)
