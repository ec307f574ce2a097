"""What a feature map is: rows (b, d) to features (b, k) with kappa(x, x') ~ phi(x) . phi(x').

A recipe (:class:`Features`: `Nystrom`, `RandomFourier`, `Explicit`) is what a caller passes to
:func:`sdgpu.fit`; prepared for a kernel and a sample of rows it gives the map itself.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from sdgpu.kernels.kernel import Kernel

__all__ = ["FeatureMap", "Features", "as_features"]


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
