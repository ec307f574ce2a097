"""Whether two networks compute the same function but for the values of their parameters and buffers."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.nn.training_setup import resting

__all__ = ["difference"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def difference(one: nn.Module, other: nn.Module) -> str | None:
    """The first thing besides the values of parameters and buffers that two networks differ in, or None.

    Types and attributes of every part, hooks, shapes, types and names of tensors and which of them are
    one (tied), what is frozen and what stays in evaluation mode. What cannot be compared (an object
    without an equality or attributes) counts as different.
    """
    if one is other:
        return None
    pairs = list(zip(one.named_modules(), other.named_modules(), strict=False))
    if [name for name, _ in one.named_modules()] != [name for name, _ in other.named_modules()]:
        return "its parts"
    for (name, a), (_, b) in pairs:
        if type(a) is not type(b):
            return f"the kind of {name or 'the model'} ({type(b).__name__} for {type(a).__name__})"
    if list(_tensors(one)) != list(_tensors(other)):
        mismatch = {*_tensors(one)} ^ {*_tensors(other)}
        return f"the shape, type or gradient of {min(entry[0] for entry in mismatch)}"
    if resting(one) != resting(other):
        return f"the mode of {min(resting(one) ^ resting(other))}"
    id_pairs: set[tuple[int, int]] = {(id(a), id(b)) for (_, a), (_, b) in pairs}
    base_attributes = nn.Module().__dict__.keys() - {*_HOOKS}
    for (name, a), (_, b) in pairs:
        for attribute in sorted({*vars(a), *vars(b)} - base_attributes):
            a_value, b_value = (getattr(part, attribute, None) for part in (a, b))
            if attribute in _HOOKS:
                a_value, b_value = list((a_value or {}).values()), list((b_value or {}).values())
            if not _equal(a_value, b_value, id_pairs):
                return f"{attribute} of {name or 'the model'}"
    return None


def _tensors(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Names without those of tied tensors: two models with the same list are tied alike."""
    state_names = model.state_dict().keys()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad, name in state_names


def _equal(a: Any, b: Any, id_pairs: set[tuple[int, int]]) -> bool:
    if a is b or (id(a), id(b)) in id_pairs:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], id_pairs) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y, id_pairs) for x, y in zip(a, b, strict=True))
    if isinstance(a, functools.partial):
        return _equal((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), id_pairs)
    if inspect.ismethod(a):
        return _equal((a.__func__, a.__self__), (b.__func__, b.__self__), id_pairs)
    if inspect.isfunction(a):
        return a.__code__ == b.__code__ and _equal(_surroundings(a), _surroundings(b), id_pairs)
    if type(a).__eq__ is not object.__eq__:
        return bool(a == b)
    id_pairs.add((id(a), id(b)))
    return bool(getattr(a, "__dict__", None)) and _equal(vars(a), vars(b), id_pairs)


def _surroundings(function: Any) -> tuple[Any, ...]:
    """What a function takes from where it was made."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__defaults__, function.__kwdefaults__, cells
