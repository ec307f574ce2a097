"""Copies of objects that have been used: what calls left in them is no part of them."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["copy_module", "without_caches"]

M = TypeVar("M", bound="torch.nn.Module")


def copy_module(module: M) -> M:
    """A deep copy of a module.

    The hooks of ``weight_norm`` and ``spectral_norm`` leave a tensor of the graph behind, which torch
    refuses to copy, and make it anew in the next pass: the copy has its numbers.

    Raises
    ------
    TypeError, RuntimeError
        If something else in it cannot be copied.
    """
    import torch

    attributes = (value for part in module.modules() for value in vars(part).values())
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for value in attributes
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    return copy.deepcopy(module, memo)


def without_caches(value: Any) -> dict[str, Any]:
    """State of a dataclass for pickle: its fields alone. What is cached beside them is made anew."""
    return {f.name: getattr(value, f.name) for f in fields(value)}
