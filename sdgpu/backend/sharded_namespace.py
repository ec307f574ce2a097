"""The array API of :class:`~sdgpu.backend.sharded_arrays.ShardedArray`: what the solvers use of it.

Functions of torch's own namespace where no argument is sharded. An operation that has no rule here raises
a TypeError with its name: nothing is done with the own rows alone that should be done with all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sdgpu.backend.sharded_arrays import aligned, elementwise, is_sharded, product

__all__ = ["NAMESPACE", "ShardedNamespace"]

ELEMENTWISE = frozenset(
    [
        "abs",
        "add",
        "astype",
        "clip",
        "cos",
        "divide",
        "equal",
        "exp",
        "expm1",
        "greater",
        "greater_equal",
        "isfinite",
        "isinf",
        "isnan",
        "less",
        "less_equal",
        "log",
        "log1p",
        "logical_and",
        "logical_not",
        "logical_or",
        "maximum",
        "minimum",
        "multiply",
        "negative",
        "not_equal",
        "ones_like",
        "pow",
        "round",
        "sign",
        "sin",
        "sqrt",
        "square",
        "subtract",
        "tan",
        "tanh",
        "where",
        "zeros_like",
        "empty_like",
    ]
)


class ShardedNamespace:
    """Operations on arrays whose rows are on several ranks."""

    __name__ = "sdgpu_sharded"

    def __getattr__(self, name: str) -> Any:
        import array_api_compat.torch as xtorch

        found = getattr(xtorch, name)
        if not callable(found) or isinstance(found, type):
            return found
        if name in ELEMENTWISE:
            return partial(_elementwise_or_plain, found)
        return partial(_plain, found, name)

    def asarray(
        self, value: Any, *, dtype: Any = None, device: Any = None, copy: Any = None
    ) -> Any:
        """An ordinary array that all ranks have; a sharded one stays sharded."""
        import array_api_compat.torch as xtorch

        if is_sharded(value):
            local = xtorch.asarray(value.local, dtype=dtype, device=device, copy=copy)
            return value.like(local, value.axis)
        return xtorch.asarray(value, dtype=dtype, device=device, copy=copy)

    def matmul(self, a: Any, b: Any) -> Any:
        """a @ b."""
        return product(a, b) if is_sharded(a) or is_sharded(b) else a @ b

    def sum(self, x: Any, *, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
        """Sum over some axes, over the ranks too where the rows are among them."""
        how: dict[str, Any] = {"axis": axis, "keepdims": keepdims, "dtype": dtype}
        return _reduced("sum", x, how, lambda x, total: x.layout.sum(total))

    def mean(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Mean over some axes."""
        if not is_sharded(x):
            return _reduced("mean", x, {"axis": axis, "keepdims": keepdims}, None)
        count = math.prod(x.shape[i] for i in _axes(x, axis))
        return self.sum(x, axis=axis, keepdims=keepdims) / count

    def max(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Largest along some axes."""
        how = {"axis": axis, "keepdims": keepdims}
        return _reduced("max", x, how, lambda x, found: x.layout.max(found), -math.inf)

    def min(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Smallest along some axes."""
        how = {"axis": axis, "keepdims": keepdims}
        return _reduced("min", x, how, lambda x, found: -x.layout.max(-found), math.inf)

    def argmin(self, x: Any) -> Any:
        """Number of the smallest of all entries, the first of equal ones."""
        import torch

        if not is_sharded(x):
            return x.argmin()
        best = [math.inf, 0]
        if x.local.numel():
            first = int(x.local.argmin())
            place = list(np.unravel_index(first, tuple(x.local.shape)))
            place[x.axis] += x.layout.own.start
            best = [float(x.local.reshape(-1)[first]), int(np.ravel_multi_index(place, x.shape))]
        return torch.tensor(min(map(tuple, x.layout.ranks.gather(best)))[1], device=x.device)

    def any(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Whether one is true."""
        how = {"axis": axis, "keepdims": keepdims}
        return _reduced(
            "any", x, how, lambda x, found: x.layout.max(self.astype(found, self.int32)) > 0
        )

    def all(self, x: Any, *, axis: Any = None, keepdims: bool = False) -> Any:
        """Whether all are."""
        if not is_sharded(x):
            return _reduced("all", x, {"axis": axis, "keepdims": keepdims}, None)
        return ~self.any(~self.astype(x, self.bool), axis=axis, keepdims=keepdims)

    def take(self, x: Any, indices: Any, *, axis: int = 0) -> Any:
        """Some entries of an axis; of the rows an ordinary array that all ranks have."""
        import torch

        if not is_sharded(x):
            return torch.index_select(x, axis, indices)
        axis %= x.ndim
        x.layout.met(indices)
        if axis != x.axis:
            local = torch.index_select(x.local, axis, indices)
            return x.like(local, x.axis)
        here = indices - x.layout.own.start
        own = (here >= 0) & (here < x.local.shape[axis])
        shape = list(x.local.shape)
        shape[axis] = int(indices.shape[0])
        found = torch.zeros(shape, dtype=x.dtype, device=x.device)
        if bool(own.any()):
            places = torch.nonzero(own)[:, 0]
            found.index_copy_(axis, places, torch.index_select(x.local, axis, here[places]))
        return x.layout.sum(found)  # each of them is on one rank: the others add 0

    def concat(self, arrays: Sequence[Any], *, axis: int | None = 0) -> Any:
        """Join along another axis than that of the rows."""
        return _joined("concat", arrays, axis)

    def stack(self, arrays: Sequence[Any], *, axis: int = 0) -> Any:
        """Join along a new axis."""
        return _joined("stack", arrays, axis)

    def permute_dims(self, x: Any, axes: Sequence[int]) -> Any:
        """Axes in another order."""
        if not is_sharded(x):
            return x.permute(*axes)
        order = [axis % x.ndim for axis in axes]
        return x.like(x.local.permute(*order), order.index(x.axis))

    def moveaxis(self, x: Any, source: int, destination: int) -> Any:
        """One axis to another place."""
        order = list(range(x.ndim))
        order.insert(destination % x.ndim, order.pop(source % x.ndim))
        return self.permute_dims(x, order)

    def reshape(self, x: Any, shape: Any, *, copy: bool | None = None) -> Any:
        """Another shape in which the rows still have an axis of their own."""
        shape = [shape] if isinstance(shape, int) else list(map(int, shape))
        if not is_sharded(x):
            return x.reshape(shape)
        if -1 in shape:
            shape[shape.index(-1)] = x.size // max(-math.prod(shape), 1)
        before = math.prod(x.shape[: x.axis])
        axes = [
            i
            for i, size in enumerate(shape)
            if size == x.layout.n and math.prod(shape[:i]) == before
        ]
        if not axes or math.prod(shape) != x.size:
            raise TypeError(
                f"reshape of {x!r} to {tuple(shape)} leaves its rows no axis of their own"
            )
        # of one row every axis might be theirs: first stays first, and last stays last
        wanted = len(shape) - 1 if x.axis and x.from_end == 1 else x.axis
        axis = wanted if wanted in axes else axes[0]
        shape[axis] = x.local.shape[x.axis]
        return x.like(x.local.reshape(shape), axis)

    def broadcast_to(self, x: Any, shape: Sequence[int]) -> Any:
        """The same along more axes."""
        shape = list(map(int, shape))
        if not is_sharded(x):
            return x.expand(shape)
        axis = len(shape) - x.from_end
        shape[axis] = x.local.shape[x.axis]
        return x.like(x.local.expand(shape), axis)


NAMESPACE = ShardedNamespace()


def _plain(function: Callable[..., Any], name: str, *args: Any, **options: Any) -> Any:
    """A function of ordinary arrays alone."""
    values = [*args, *options.values()]
    values += [entry for value in values if isinstance(value, (list, tuple)) for entry in value]
    if any(map(is_sharded, values)):
        raise TypeError(f"{name} is not an operation on arrays whose rows are on several ranks")
    return function(*args, **options)


def _elementwise_or_plain(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if any(map(is_sharded, args)):
        return elementwise(function, *args, **options)
    return function(*args, **options)


def _axes(x: Any, axis: Any) -> list[int]:
    """The axes of a reduction, counted from the start."""
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    return [i % x.ndim for i in axes]


def _reduced(
    name: str, x: Any, how: dict[str, Any], over_ranks: Any, empty: float | None = None
) -> Any:
    """A reduction, over the ranks too where the rows are reduced; `empty` is that of no numbers."""
    import array_api_compat.torch as xtorch

    how = {key: value for key, value in how.items() if value is not None}
    reduce = getattr(xtorch, name)
    if not is_sharded(x):
        return reduce(x, **how)
    axes, local = _axes(x, how.get("axis")), x.local
    if x.axis not in axes:
        before = 0 if how["keepdims"] else sum(axis < x.axis for axis in axes)
        return x.like(reduce(local, **how), x.axis - before)
    if empty is not None and not local.shape[x.axis]:
        shape = list(local.shape)
        shape[x.axis] = 1
        local = xtorch.full(tuple(shape), empty, dtype=local.dtype, device=local.device)
    return over_ranks(x, reduce(local, **how))


def _joined(name: str, arrays: Sequence[Any], axis: int | None) -> Any:
    import array_api_compat.torch as xtorch

    join = getattr(xtorch, name)
    sharded = [array for array in arrays if is_sharded(array)]
    if not sharded:
        return join(arrays, axis=axis)
    first, parts = sharded[0], aligned(arrays)[0]
    ndim = first.ndim + (name == "stack")
    if axis is None or (name == "concat" and axis % ndim == first.axis):
        raise TypeError(f"{name} of {first!r} along its rows, which are on several ranks")
    if any(part.ndim != first.ndim for part in parts):
        raise TypeError(f"{name} of arrays with other numbers of axes than {first!r}")
    joined = join(parts, axis=axis)
    if name == "concat":
        return first.like(joined, first.axis)
    return first.like(joined, first.axis + (axis % ndim <= first.axis))
