"""Kernel values of sparse rows: of functions of inner products and lengths, which products of CSR give."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from sdgpu.backend.arrays import inputs
from sdgpu.backend.backends import to_numpy
from sdgpu.backend.sparse_rows import csr_rows, is_sparse

__all__ = ["refuse_sparse", "sparse_values"]


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
    from sdgpu.kernels.kernel_matrices import cross, gram

    refuse_sparse(kernel)
    A = _csr(A, "A")
    rows = kernel.rows(A, None)
    if B is None:
        return gram(kernel, rows)
    B = _csr(B, "B")
    if A.shape[1] != B.shape[1]:
        raise ValueError(f"B has {B.shape[1]} features, but A has {A.shape[1]}")
    return cross(kernel, rows, kernel.rows(B.astype(A.dtype), None))


def refuse_sparse(kernel: Any) -> None:
    """Raise the TypeError for a kernel that sparse rows have no values of."""
    if not kernel.takes_sparse:
        raise TypeError(
            f"{kernel!r} has no values of sparse rows: pass X.toarray() (of torch: X.to_dense()), or take "
            "a kernel of inner products and lengths, such as sdgpu.Gaussian or sdgpu.Tanimoto"
        )


def _csr(value: Any, name: str) -> csr_array:
    if not is_sparse(value):
        value = csr_array(to_numpy(inputs(value, name, empty=True)))
    return csr_rows(value, name)
