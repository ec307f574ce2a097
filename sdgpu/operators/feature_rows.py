"""Features of new rows in blocks: what takes the place of kappa(X_new, X) in a feature model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.operators.expansion import Expansion
from sdgpu.operators.slopes import FeatureSlopes

__all__ = ["FeatureOperator", "FeatureRows"]

_BLOCK = 2**22  # entries of one row block: 32 MiB of doubles


@dataclass(frozen=True, eq=False)
class FeatureOperator:
    """Makes features where other fits make kernel values.

    Attributes
    ----------
    map : FeatureMap
    backend : Backend
    mean : array (k,)
        Of the training features, taken off where the fit has an intercept; else 0.
    precision : str
        "float32" or "float64", in which features are evaluated.
    """

    map: FeatureMap
    backend: Backend
    mean: Any
    precision: str
    is_precomputed: bool = False

    @property
    def n(self) -> int:
        """k, the numbers of a row of :meth:`cross`."""
        return self.map.size

    @property
    def d(self) -> int:
        """Features of a row before the map."""
        return self.map.d

    def cross(self, X_new: Any) -> FeatureRows:
        """phi(X_new) less its mean as something that multiplies (m, k); X_new (m, d)."""
        return FeatureRows(self, X_new)

    def expansion(self, V: Any) -> Expansion:
        """The function with coefficients V (k, c), less the mean of Y."""
        coefficients = np.array(to_numpy(V))
        return Expansion(coefficients, -(to_numpy(self.mean) @ coefficients), map=self.map)

    def slopes(self, X_new: Any) -> FeatureSlopes:
        """Derivatives of phi(X_new), in float64 whatever the precision."""
        return FeatureSlopes(self.map, X_new, self.backend)

    def turned(self, columns: Any) -> FeatureOperator:
        """The same for phi(X)' columns (k, r)."""
        feature_map = self.map.turned(to_numpy(columns))
        return replace(self, map=feature_map, mean=self.mean @ columns)

    @underflow_is_zero
    def features(self, X: Any, dtype: str = "float64") -> Any:
        """phi(X) less its mean, (b, k), evaluated in `precision` and given as `dtype`."""
        phi, xp = self.map.transform(X, self.precision), self.backend.xp
        if dtype == "float32":
            return phi - xp.astype(self.mean, xp.float32)
        return self.backend.asarray(phi.toarray() if is_csr(phi) else phi) - self.mean


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """phi(X_new) less its mean, (m, k), in row blocks of bounded memory."""

    operator: FeatureOperator
    X: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(m, k)."""
        return int(self.X.shape[0]), self.operator.n

    def blocks(self, entries: int = _BLOCK) -> Iterator[tuple[slice, Any]]:
        """Row blocks (b, k) of at most `entries` numbers, with the rows they stand for."""
        m, k = self.shape
        for rows in slices(m, max(1, min(m, entries // max(k, 1)))):
            yield rows, self.operator.features(self.X[rows, :])

    def matmat(self, V: Any) -> Any:
        """phi V: (k, c) -> (m, c)."""
        xp = compat.array_namespace(V)
        parts = [block @ V for _, block in self.blocks()]
        if not parts:
            return xp.zeros((0, V.shape[1]), dtype=V.dtype, device=compat.device(V))
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)

    def diag(self) -> Any:
        """|phi(x)|^2 of the new rows, (m,): what the features have of kappa(x, x)."""
        squares = [(phi * phi).sum(axis=1) for _, phi in self.blocks()]
        xp = compat.array_namespace(self.operator.mean)
        return xp.concat(squares, axis=0) if squares else xp.zeros((0,), dtype=xp.float64)

    def __matmul__(self, V: Any) -> Any:
        return self.matmat(V)
