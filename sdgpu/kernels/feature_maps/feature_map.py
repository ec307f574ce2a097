"""What a feature map is: rows (b, d) to features (b, k) with kappa(x, x') ~ phi(x) . phi(x').

A recipe (:class:`Features`: `Nystrom`, `RandomFourier`, `Explicit`) is what a caller passes to
:func:`sdgpu.fit`; prepared for a kernel and a sample of rows it gives the map itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import array_api_compat as compat
import numpy as np

from sdgpu.backend.copying import without_caches
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels.derivatives import by_autograd
from sdgpu.kernels.kernel import Kernel

__all__ = ["FeatureMap", "Features", "TurnedMap", "as_features", "map_gradient"]


class FeatureMap(Protocol):
    """Rows to features; a value that can be written to a file.

    Attributes
    ----------
    size : int
        k.
    d : int
        Features of a row.
    """

    @property
    def size(self) -> int: ...
    @property
    def d(self) -> int: ...
    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """phi(X) (b, k) in the library of X (b, d), as "float32" or "float64"."""

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What rebuilds the map: plain values and arrays, nothing that is code."""

    def turned(self, columns: np.ndarray) -> FeatureMap:
        """The map of phi(x)' columns (k, r)."""


@dataclass(frozen=True, eq=False)
class TurnedMap:
    """Combinations of the features of another map.

    Attributes
    ----------
    map : FeatureMap
    columns : array (k, r)
    """

    map: FeatureMap
    columns: np.ndarray
    _ready: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_ready": {}}

    @property
    def size(self) -> int:
        """r."""
        return int(self.columns.shape[1])

    @property
    def d(self) -> int:
        """Features of a row."""
        return self.map.d

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """b k r multiplications beside the features."""
        if is_csr(X):
            return self.map.transform(X, dtype) @ self.columns
        xp, device = compat.array_namespace(X), compat.device(X)
        key = f"{xp.__name__} {device} {dtype}"
        if key not in self._ready:
            self._ready[key] = xp.asarray(self.columns, dtype=getattr(xp, dtype), device=device)
        return self.map.transform(X, dtype) @ self._ready[key]

    def gradient(self, X: Any, *, W: Any = None, factor: Any = None) -> Any:
        """That of the other map, for combined coefficients."""
        columns = X.new_tensor(self.columns)
        if W is not None:
            return map_gradient(self.map, X, W=columns @ W)
        return map_gradient(self.map, X, factor=factor @ columns.T)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """It is made when it is needed, and not stored.

        Raises
        ------
        TypeError
        """
        raise TypeError("combined features are not stored: store the map and its columns")

    def turned(self, columns: np.ndarray) -> TurnedMap:
        """Once more."""
        return TurnedMap(self.map, self.columns @ columns)


@runtime_checkable
class Features(Protocol):
    """A recipe: what kind of features, how many, and how they are chosen.

    Attributes
    ----------
    sample_rows : int
        Rows that :meth:`prepare` wants to choose from; 0 for none.
    """

    @property
    def sample_rows(self) -> int: ...
    def prepare(self, kernel: Kernel, sample: np.ndarray | None, d: int, seed: int) -> FeatureMap:
        """The map for a kernel, from a sample (s, d) of the rows."""


def as_features(features: object) -> Features:
    """The recipe itself, if it is one.

    Raises
    ------
    TypeError
        For anything else, a class without parameters among it.
    """
    if isinstance(features, Features) and not isinstance(features, type):
        return features
    raise TypeError(
        f"features={features!r}: sdgpu.Nystrom(..), sdgpu.RandomFourier(..) or sdgpu.Explicit(..) is wanted"
    )


def map_gradient(feature_map: FeatureMap, X: Any, *, W: Any = None, factor: Any = None) -> Any:
    """sum_k W_kr d phi_k(x_i) / d x_i (b, r, d); or with factors (b, k), one for each row, r = 1.

    A map with a method `gradient` of these arguments says it itself; others are followed by torch.

    Parameters
    ----------
    feature_map : FeatureMap
    X : tensor (b, d)
        Of torch, in float64.
    W : tensor (k, r), optional
    factor : tensor (b, k), optional
        One of both.

    Raises
    ------
    ValueError
        If torch cannot follow the features, or there is no derivative.
    """
    own = getattr(feature_map, "gradient", None)
    if own is not None:
        return own(X, W=W, factor=factor)
    columns = X.new_ones(feature_map.size, 1) if W is None else W
    name = f"the feature map {type(feature_map).__name__}"
    return by_autograd(feature_map.transform, name, X, (factor, columns))
