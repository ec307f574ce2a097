"""Refits: (K + lam I)^-1 by a Cholesky factor, one for each lam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat

from sdgpu.backend.backends import Backend
from sdgpu.operators.dense import DenseOperator

__all__ = ["Cholesky", "Factor"]


@dataclass(frozen=True, eq=False)
class Factor:
    """The lower Cholesky factor of K + lam I.

    Attributes
    ----------
    lower : array (n, n)
    lam : float
    backend : Backend
    """

    lower: Any
    lam: float
    backend: Backend

    def solve(self, B: Any) -> Any:
        """(K + lam I)^-1 B: (n, c) -> (n, c), 2 n^2 c multiplications."""
        return self.backend.cho_solve(self.lower, B)


@dataclass(frozen=True)
class Cholesky:
    """Factor K + lam I: n^3 / 3 operations for each lam, n^2 doubles beside K.

    Parameters
    ----------
    backend : Backend
        Where it runs.
    """

    backend: Backend

    @staticmethod
    def peak_bytes(n: int) -> int:
        """Bytes at the peak for n rows: K and the factor."""
        return 8 * (2 * n * n + 64 * n)

    def factor(self, operator: DenseOperator, lam: float) -> Factor:
        """Factor K + lam I.

        Raises
        ------
        ValueError
            If it is not positive definite in float64.
        """
        K = operator.matrix
        xp = compat.array_namespace(K)
        shifted = xp.asarray(K, copy=True)
        n = operator.n
        # the diagonal as every (n + 1)-th entry: no (n, n) identity is made
        flat = xp.reshape(shifted, (n * n,))
        flat[:: n + 1] += lam
        return Factor(self.backend.cholesky(xp.reshape(flat, (n, n))), lam, self.backend)
