"""What comes before the statistic of two rows: their centre, and parameters that are one per feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.checks import positive
from sdgpu.backend.sparse_rows import is_csr

__all__ = [
    "column_means",
    "lengthscales",
    "of_features",
    "one_or_each",
    "scaled_rows",
    "set_zero_diagonal",
]


def column_means(X: Any) -> Any:
    """Mean of each feature, (d,); 0 for no rows. None of sparse rows, which are not moved to it."""
    if is_csr(X):
        return None
    xp = compat.array_namespace(X)
    if X.shape[0] == 0:
        return xp.zeros((X.shape[1],), dtype=X.dtype, device=compat.device(X))
    return xp.mean(X, axis=0)


def one_or_each(name: str, value: float | Sequence[float]) -> tuple[float, ...] | float:
    """Check a parameter of features: one number > 0, or one per feature (kept as a tuple)."""
    host = np.asarray(value, dtype=object)
    if host.ndim == 0:
        return positive(name, value)
    if host.ndim != 1 or host.size == 0:
        raise ValueError(f"{name} must be a number or one per feature, got shape {host.shape}")
    return tuple(positive(name, entry) for entry in host)


def lengthscales(value: float | Sequence[float] | None) -> tuple[float, ...] | float | None:
    """Check a length scale: None, one number > 0, or one per feature (kept as a tuple)."""
    return None if value is None else one_or_each("lengthscale", value)


def of_features(name: str, value: Sequence[float] | float, X: Any) -> Any:
    """A parameter beside rows X: the number as it is, or an array (d,) in the dtype of X.

    Raises
    ------
    ValueError
        If it is not one per feature.
    """
    if isinstance(value, float):
        return value
    if len(value) != X.shape[1]:
        raise ValueError(
            f"{name} has {len(value)} entries, but the data have {X.shape[1]} features"
        )
    xp = compat.array_namespace(X)
    return xp.asarray(value, dtype=X.dtype, device=compat.device(X))


def scaled_rows(X: Any, centre: Any, lengthscale: Sequence[float] | float | None) -> Any:
    """(X - centre) / lengthscale, or X / lengthscale without a centre; sparse rows are not centred."""
    if is_csr(X):
        return _scaled_csr(X, lengthscale)
    centred = X if centre is None else X - centre
    if lengthscale is None:
        return centred
    return centred / of_features("lengthscale", lengthscale, X)


def _scaled_csr(X: Any, lengthscale: Sequence[float] | float | None) -> Any:
    if lengthscale is None:
        return X
    if isinstance(lengthscale, float):
        return type(X)((X.data / lengthscale, X.indices, X.indptr), shape=X.shape)  # in its dtype
    if len(lengthscale) != X.shape[1]:
        raise ValueError(
            f"lengthscale has {len(lengthscale)} entries, but the data have {X.shape[1]} features"
        )
    data = X.data / np.asarray(lengthscale, dtype=X.dtype)[X.indices]
    return type(X)((data, X.indices, X.indptr), shape=X.shape)


def set_zero_diagonal(tile: Any) -> Any:
    """The tile with an exactly zero diagonal: a point has distance 0 to itself."""
    if compat.is_torch_array(tile):
        return tile.fill_diagonal_(0.0)
    xp = compat.array_namespace(tile)
    if hasattr(xp, "fill_diagonal"):
        xp.fill_diagonal(tile, 0.0)
        return tile
    tile *= 1 - xp.eye(tile.shape[0], dtype=tile.dtype, device=compat.device(tile))
    return tile
