"""Elementwise functions of the profiles of kernels: in place where the library can.

Nothing here imports a library: the same code runs on NumPy, torch, CuPy, array-api-strict and on the lazy
tensors of KeOps.
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat as compat

__all__ = ["asin", "atan2", "clip_", "exp2_", "exp_", "root", "sqrt_"]


def exp_(tile: Any) -> Any:
    """e^tile, in place where the library can."""
    return _in_place("exp", tile)


def exp2_(tile: Any) -> Any:
    """2^tile, in place where the library can: half the cost of e^tile on AVX2, as accurate."""
    if _standard(tile) and not hasattr(compat.array_namespace(tile), "exp2"):
        return compat.array_namespace(tile).exp(tile * math.log(2))
    if not compat.is_array_api_obj(tile):
        return (tile * math.log(2)).exp()  # a lazy tensor of KeOps
    return _in_place("exp2", tile)


def sqrt_(tile: Any) -> Any:
    """Square root, in place where the library can."""
    return _in_place("sqrt", tile)


def root(values: Any) -> Any:
    """Square root in an array of its own."""
    if not compat.is_array_api_obj(values):
        return values.sqrt()  # a lazy tensor of KeOps
    return compat.array_namespace(values).sqrt(values)


def asin(values: Any) -> Any:
    """Inverse sine, in an array of its own."""
    if not compat.is_array_api_obj(values):
        return values.asin()
    return compat.array_namespace(values).asin(values)


def atan2(y: Any, x: Any) -> Any:
    """Angle of (x, y), in an array of its own."""
    return compat.array_namespace(y).atan2(y, x) if compat.is_array_api_obj(y) else y.atan2(x)


def clip_(tile: Any, low: float | None, high: float | None) -> Any:
    """Clamp to [low, high], in place where the library can."""
    if compat.is_torch_array(tile):
        return tile.clamp(low, high) if tile.requires_grad else tile.clamp_(low, high)
    if not compat.is_array_api_obj(tile):
        if low is not None and high is not None:
            return tile.clamp(low, high)  # 4 - (4 - x) would lose the digits of a small x
        tile = tile if low is None else (tile - low).relu() + low
        return tile if high is None else high - (high - tile).relu()
    xp = compat.array_namespace(tile)
    if _standard(tile):
        return xp.clip(tile, low, high)
    return xp.clip(tile, low, high, out=tile)


def _in_place(name: str, tile: Any) -> Any:
    if not compat.is_array_api_obj(tile):
        return getattr(tile, name)()  # a lazy tensor of KeOps
    function = getattr(compat.array_namespace(tile), name)
    return function(tile) if _standard(tile) or _recorded(tile) else function(tile, out=tile)


def _recorded(tile: Any) -> bool:
    """Whether torch keeps the tile for a derivative: what was overwritten would be lost."""
    return bool(getattr(tile, "requires_grad", False))


def _standard(tile: Any) -> bool:
    """Whether the library has no `out` argument: neither NumPy, CuPy nor torch."""
    if not compat.is_array_api_obj(tile):
        return False
    has_out = (
        compat.is_numpy_array(tile) or compat.is_torch_array(tile) or compat.is_cupy_array(tile)
    )
    return not has_out
