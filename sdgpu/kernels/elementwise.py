"""Elementwise functions of the profiles of kernels: in place where the library can.

Nothing here imports a library: the same code runs on NumPy, torch, CuPy, array-api-strict, on the lazy
tensors of KeOps and on the symbols that write machine code (:mod:`sdgpu.kernels.compiled`).
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat as compat

__all__ = [
    "asin",
    "atan2",
    "can_choose",
    "clip_",
    "exp2_",
    "exp_",
    "larger",
    "log1p_",
    "root",
    "smaller",
    "sqrt_",
    "where",
    "whole_power",
    "without_subnormals",
]


def exp_(tile: Any) -> Any:
    """e^tile, in place where the library can; 0 below the smallest normal number."""
    return without_subnormals(_in_place("exp", tile))


def exp2_(tile: Any) -> Any:
    """2^tile, in place where the library can: half the cost of e^tile on AVX2, as accurate.

    0 below the smallest normal number: whatever reads denormal numbers takes twice as long.
    """
    if _standard(tile) and not hasattr(compat.array_namespace(tile), "exp2"):
        return without_subnormals(compat.array_namespace(tile).exp(tile * math.log(2)))
    if not compat.is_array_api_obj(tile) and not hasattr(tile, "exp2"):
        return (tile * math.log(2)).exp()  # a lazy tensor of KeOps
    return without_subnormals(_in_place("exp2", tile))


def sqrt_(tile: Any) -> Any:
    """Square root, in place where the library can."""
    return _in_place("sqrt", tile)


def log1p_(tile: Any) -> Any:
    """log(1 + tile) for tile >= 0, in place where the library can."""
    if compat.is_array_api_obj(tile):
        return _in_place("log1p", tile)
    whole = tile + 1.0  # KeOps has no log1p: what the sum rounds off is added to its logarithm
    return whole.log() + (tile - (whole - 1.0)) / whole


def smaller(x: Any, y: Any) -> Any:
    """min(x, y)."""
    if not compat.is_array_api_obj(x):
        return x.smaller(y) if hasattr(x, "smaller") else (x - y).ifelse(y, x)  # KeOps has none
    return compat.array_namespace(x).minimum(x, y)


def larger(x: Any, y: Any) -> Any:
    """max(x, y)."""
    if not compat.is_array_api_obj(x):
        return x.larger(y) if hasattr(x, "larger") else (x - y).ifelse(x, y)
    return compat.array_namespace(x).maximum(x, y)


def whole_power(values: Any, exponent: int) -> Any:
    """values^exponent for a whole number >= 1, by products: powers of the libraries cost ten times that."""
    if exponent == 1:
        return values
    power = whole_power(values, exponent // 2)
    power = power * power  # not in place: torch's forward derivatives take a factor for the result
    if exponent % 2:
        power *= values
    return power


def without_subnormals(tile: Any) -> Any:
    """Values >= 0 with 0 for those that are below the smallest normal number, in place where it can.

    They count for nothing beside the others, have few digits, and slow a product down.
    """
    if not compat.is_array_api_obj(tile):  # KeOps multiplies them as they come
        return tile.without_subnormals() if hasattr(tile, "without_subnormals") else tile
    if not compat.size(tile):
        return tile
    xp = compat.array_namespace(tile)
    limits = xp.finfo(tile.dtype)
    smallest = float(limits.smallest_normal)
    if compat.is_torch_array(tile) and not tile.requires_grad:
        import torch

        return torch.threshold_(tile, smallest * (1 - float(limits.eps)), 0.0)
    if compat.is_numpy_array(tile):
        if xp.min(tile) < smallest:
            tile[tile < smallest] = 0.0
        return tile
    return xp.where(tile < smallest, xp.zeros_like(tile), tile)


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


def can_choose(tile: Any) -> bool:
    """Whether there is a :func:`where` for it: not for a lazy tensor of KeOps."""
    return compat.is_array_api_obj(tile) or hasattr(tile, "where")


def where(condition: Any, values: Any, others: Any) -> Any:
    """Values where the condition holds, others elsewhere."""
    if compat.is_array_api_obj(condition):
        return compat.array_namespace(condition).where(condition, values, others)
    return values.where(condition, others)


def clip_(tile: Any, low: float | None, high: float | None) -> Any:
    """Clamp to [low, high], in place where the library can."""
    if compat.is_torch_array(tile):
        return tile.clamp(low, high) if tile.requires_grad else tile.clamp_(low, high)
    if not compat.is_array_api_obj(tile):
        if hasattr(tile, "clip"):  # a vector of machine code
            return tile.clip(low, high)
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
    if compat.is_torch_array(tile) and not tile.requires_grad:
        return getattr(tile, f"{name}_")()  # torch follows it, forwards
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
