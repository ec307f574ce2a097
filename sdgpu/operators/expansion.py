"""A function as its parts: what it takes to predict, without what it took to fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels import Kernel
from sdgpu.kernels.feature_maps import FeatureMap

__all__ = ["Expansion", "expansion_of"]


@dataclass(frozen=True, eq=False)
class Expansion:
    """f(x) = kappa(x, X) coefficients + constant, or phi(x)' coefficients + constant.

    Attributes
    ----------
    coefficients : array (n, c) or (k, c)
        On the host in float64, like all here.
    constant : array (c,)
    kernel : Kernel or None
        Of rows X; None of features.
    X : array (n, d), CSR, or None
    map : FeatureMap or None
    """

    coefficients: np.ndarray = field(repr=False)
    constant: np.ndarray
    kernel: Kernel | None = None
    X: Any = field(default=None, repr=False)
    map: FeatureMap | None = None

    @classmethod
    def of_rows(cls, kernel: Kernel, X: Any, V: Any) -> Expansion:
        """Of rows and their coefficients, without rows whose coefficients are 0, if others are not."""
        coefficients, rows = np.array(to_numpy(V)), X if is_csr(X) else to_numpy(X)
        if not kernel.is_precomputed:
            present = np.flatnonzero((coefficients != 0).any(axis=1))
            present = present if len(present) else np.arange(1)
            coefficients, rows = coefficients[present], rows[present]
        constant = np.zeros(coefficients.shape[1])
        dense = not is_csr(rows)
        rows = np.ascontiguousarray(rows, np.float64) if dense else rows.astype(np.float64)
        return cls(coefficients, constant, kernel=kernel, X=rows)


def expansion_of(operator: Any, V: Any) -> Expansion:
    """What an operator makes of coefficients (n, c).

    Raises
    ------
    ValueError
        If it does not say.
    """
    if not hasattr(operator, "expansion"):
        raise ValueError(
            f"{type(operator).__name__} does not say what its functions are made of: fit with "
            "operator='dense' or 'tiled', or pickle the predictor"
        )
    return operator.expansion(V)
