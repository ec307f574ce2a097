"""Arrays whose rows are spread over ranks, so that what is written for one device runs on many.

Solvers hold arrays (k, n) and (n, c): one axis counts the n training rows, the others are small. Of a
:class:`ShardedArray` each rank holds what belongs to its own rows, along that one axis, as a torch tensor;
everything small is an ordinary tensor that all ranks have with the same bits. Then

* a product or a sum over the rows is a local one, followed by a sum over the ranks: an ordinary tensor;
* elementwise work, slices, joins and products along the other axes are local;
* anything else raises a TypeError that names the operation: nothing is gathered behind one's back, but
  a vector (n,) that is brought to the host.

All ranks run the same code and meet in the sums. That they run it with the same small numbers is checked
on the way: what meets a sharded array is hashed, and each sum carries the hash. torch's DTensor was looked
at: it needs a process group, so no threads, redistributes silently where it has no rule, and spends more on
the dispatch of an operation than the solvers do on the small ones.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from sdgpu.backend.ranks import Ranks

__all__ = ["RowLayout", "ShardedArray", "first_row", "is_sharded", "own_part"]

HASH_BYTES = 4  # of what ranks must have alike, each a number that even float16 holds


@dataclass(eq=False)
class RowLayout:
    """Which rows are on which rank: runs of them, in the order of the ranks.

    Attributes
    ----------
    ranks : Ranks
    counts : tuple of int
        Rows of each rank; some may have none.
    """

    ranks: Ranks
    counts: tuple[int, ...]
    _hash: int = field(default=0, repr=False)

    @classmethod
    def of(cls, ranks: Ranks, rows: int) -> RowLayout:
        """The layout in which this rank has so many rows; all ranks ask."""
        return cls(ranks, tuple(int(count) for count in ranks.gather(int(rows))))

    @property
    def n(self) -> int:
        """Rows of all ranks."""
        return sum(self.counts)

    @property
    def starts(self) -> tuple[int, ...]:
        """Number of the first row of each rank."""
        return (0, *accumulate(self.counts))[:-1]

    @property
    def own(self) -> slice:
        """The rows of this rank."""
        return self.rows_of(self.ranks.rank)

    def rows_of(self, rank: int) -> slice:
        """The rows of a rank."""
        start = self.starts[rank]
        return slice(start, start + self.counts[rank])

    def met(self, small: Any) -> None:
        """Note a small tensor that all ranks must have alike."""
        if self.ranks.size > 1 and small.device.type == "cpu" and small.ndim:
            values = small.detach().contiguous().numpy()
            self._hash = zlib.crc32(values.reshape(-1).view(np.uint8).data, self._hash)

    def sum(self, local: Any) -> Any:
        """Sum over the ranks.

        Raises
        ------
        RuntimeError
            If the ranks have met sharded arrays with other small numbers.
        """
        if self.ranks.size == 1:
            return local
        import torch

        own = torch.tensor(list(self._hash.to_bytes(HASH_BYTES, "little")), dtype=local.dtype)
        own = own.to(local.device)
        total = self.ranks.sum(torch.cat([local.reshape(-1), own]))
        found = total[-HASH_BYTES:]
        if not torch.equal(found, own * self.ranks.size):
            raise RuntimeError(
                f"rank {self.ranks.rank} has computed other small numbers than the others have: the ranks "
                "must run the same versions on processors of one kind"
            )
        return total[:-HASH_BYTES].reshape(local.shape)

    def max(self, local: Any) -> Any:
        """Largest over the ranks, entry by entry."""
        return local if self.ranks.size == 1 else self.ranks.max(local)


def _forward(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: elementwise(function, self, other)


def _backward(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: elementwise(function, other, self)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: elementwise(function, self)


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: ShardedArray, other: Any) -> ShardedArray:
        function(*aligned([self, other])[0])
        return self

    return method


class ShardedArray:
    """What this rank holds of an array with the training rows along one axis.

    Parameters
    ----------
    local : torch.Tensor
    axis : int
        That of the rows; negative ones count from the end.
    layout : RowLayout
    """

    __array_ufunc__ = None  # numbers of NumPy leave operators to this class

    def __init__(self, local: Any, axis: int, layout: RowLayout) -> None:
        self.local, self.axis, self.layout = local, axis % local.ndim, layout
        own = layout.counts[layout.ranks.rank]
        if local.shape[self.axis] != own:
            raise ValueError(
                f"an array {tuple(local.shape)} has not the {own} rows of rank {layout.ranks.rank} on axis "
                f"{self.axis}"
            )

    def __repr__(self) -> str:
        return f"ShardedArray(shape={self.shape}, axis={self.axis}, ranks={self.layout.ranks.size})"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole."""
        shape = list(map(int, self.local.shape))
        shape[self.axis] = self.layout.n
        return tuple(shape)

    @property
    def ndim(self) -> int:
        return int(self.local.ndim)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        return self.local.dtype

    @property
    def device(self) -> Any:
        return self.local.device

    @property
    def from_end(self) -> int:
        """The axis of the rows counted from the end: 1 is the last."""
        return self.ndim - self.axis

    @property
    def T(self) -> ShardedArray:  # noqa: N802 - the standard's name
        if self.ndim != 2:
            raise TypeError(f"transposing needs two axes, not {self.ndim}")
        return ShardedArray(self.local.T, 1 - self.axis, self.layout)

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        from sdgpu.backend.sharded_namespace import NAMESPACE

        return NAMESPACE

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A vector (n,) on every host; more is not gathered by accident."""
        if self.ndim != 1:
            raise TypeError(
                f"an array {self.shape} of {self.layout.ranks.size} ranks does not come to one host"
            )
        whole = self.layout.ranks.gather_rows(self.local.detach().contiguous())
        return np.asarray(whole.cpu().numpy(), dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise TypeError("an array of several ranks is neither true nor false: use xp.any")

    def like(self, local: Any, axis: int) -> ShardedArray:
        """Another array of the same rows."""
        return ShardedArray(local, axis, self.layout)

    def __getitem__(self, key: Any) -> ShardedArray:
        index, axis = self._index(key)
        return self.like(self.local[index], axis)

    def __setitem__(self, key: Any, value: Any) -> None:
        index, axis = self._index(key)
        target = self.like(self.local[index], axis)
        locals_, from_end = aligned([target, value])
        if from_end > target.ndim:
            raise TypeError("rows cannot be assigned to another axis than theirs")
        target.local[...] = locals_[1]

    def _index(self, key: Any) -> tuple[Any, int]:
        """The same index of the own part, and the axis of the rows in what it gives."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in [k for k in keys if not hasattr(k, "shape")]:
            place = next(i for i, k in enumerate(keys) if k is Ellipsis)
            missing = self.ndim - sum(k is not None for k in keys) + 1
            keys[place : place + 1] = [slice(None)] * missing
        keys += [slice(None)] * (self.ndim - sum(k is not None for k in keys))
        source = axis = 0
        found = -1
        for i, k in enumerate(keys):
            if k is None:
                axis += 1
                continue
            if source == self.axis:
                if not _is_everything(k, self.layout.n):
                    raise TypeError(
                        f"[{k!r}] picks some of the rows, which are on several ranks: use xp.take"
                    )
                keys[i], found = slice(None), axis
            elif not isinstance(k, (slice, int, np.integer)):
                raise TypeError(f"an index {k!r} of an array of several ranks: use xp.take")
            axis += isinstance(k, slice)
            source += 1
        return tuple(keys), found

    __add__, __radd__ = _forward(operator.add), _backward(operator.add)
    __sub__, __rsub__ = _forward(operator.sub), _backward(operator.sub)
    __mul__, __rmul__ = _forward(operator.mul), _backward(operator.mul)
    __truediv__, __rtruediv__ = _forward(operator.truediv), _backward(operator.truediv)
    __pow__, __rpow__ = _forward(operator.pow), _backward(operator.pow)
    __iadd__, __isub__ = _in_place(operator.iadd), _in_place(operator.isub)
    __imul__, __itruediv__ = _in_place(operator.imul), _in_place(operator.itruediv)
    __lt__, __le__ = _forward(operator.lt), _forward(operator.le)
    __gt__, __ge__ = _forward(operator.gt), _forward(operator.ge)
    __eq__, __ne__ = _forward(operator.eq), _forward(operator.ne)
    __neg__, __abs__, __invert__ = (
        _alone(operator.neg),
        _alone(operator.abs),
        _alone(operator.invert),
    )
    __hash__ = None  # type: ignore[assignment]  # arrays are compared by their entries

    def __matmul__(self, other: Any) -> Any:
        return product(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return product(other, self)


def _is_everything(key: Any, n: int) -> bool:
    return isinstance(key, slice) and key.indices(n) == (0, n, 1)


def is_sharded(value: Any) -> bool:
    """Whether an array has its rows on several ranks."""
    return isinstance(value, ShardedArray)


def own_part(value: Any) -> Any:
    """What is here of an array: all of an ordinary one."""
    return value.local if isinstance(value, ShardedArray) else value


def first_row(value: Any) -> int:
    """Number of the first row of an array that is here: 0 of an ordinary one."""
    return value.layout.own.start if isinstance(value, ShardedArray) else 0


def aligned(args: Sequence[Any]) -> tuple[list[Any], int]:
    """Own parts of arguments that are combined elementwise, and the axis of the rows from the end.

    Ordinary arrays with n entries on that axis are cut to the own rows.

    Raises
    ------
    TypeError
        If rows meet another axis, or rows of another layout.
    """
    sharded = [arg for arg in args if isinstance(arg, ShardedArray)]
    layout, from_end = sharded[0].layout, sharded[0].from_end
    for other in sharded[1:]:
        if other.layout is not layout or other.from_end != from_end:
            raise TypeError(f"{sharded[0]!r} and {other!r} do not have their rows on the same axis")
    return [_beside(arg, layout, from_end) for arg in args], from_end


def _beside(arg: Any, layout: RowLayout, from_end: int) -> Any:
    if isinstance(arg, ShardedArray):
        return arg.local
    if not hasattr(arg, "shape") or not arg.ndim:
        return arg
    layout.met(arg)
    if arg.ndim < from_end or int(arg.shape[-from_end]) == 1:
        return arg
    return cut(arg, arg.ndim - from_end, layout)


def cut(array: Any, axis: int, layout: RowLayout) -> Any:
    """The own rows of an ordinary array that has all of them on an axis."""
    if int(array.shape[axis]) != layout.n:
        raise TypeError(
            f"an array {tuple(array.shape)} meets the {layout.n} rows of several ranks on axis {axis}"
        )
    return array[(slice(None),) * axis + (layout.own,)]


def product(a: Any, b: Any) -> Any:
    """a @ b: summed over the ranks where it is a sum over rows."""
    layout = (a if isinstance(a, ShardedArray) else b).layout
    over_rows = [
        isinstance(a, ShardedArray) and a.from_end == 1,
        isinstance(b, ShardedArray) and b.from_end == min(b.ndim, 2),
    ]
    if any(over_rows):
        parts = []
        for array, over, axis in ((a, over_rows[0], -1), (b, over_rows[1], -min(b.ndim, 2))):
            if isinstance(array, ShardedArray) and not over:
                raise TypeError(f"{a!r} @ {b!r} sums over the rows of one of them only")
            if not over:
                layout.met(array)
            parts.append(array.local if over else cut(array, axis % array.ndim, layout))
        return layout.sum(parts[0] @ parts[1])
    if isinstance(a, ShardedArray) and isinstance(b, ShardedArray):
        raise TypeError(f"{a!r} @ {b!r} has a number for each pair of rows")
    layout.met(b if isinstance(a, ShardedArray) else a)
    result = own_part(a) @ own_part(b)
    return ShardedArray(result, a.axis if isinstance(a, ShardedArray) else -1, layout)


def elementwise(function: Any, *args: Any, **options: Any) -> Any:
    """function(*args) of the own rows."""
    locals_, from_end = aligned(args)
    layout = next(arg.layout for arg in args if isinstance(arg, ShardedArray))
    result = function(*locals_, **options)
    return ShardedArray(result, result.ndim - from_end, layout)
