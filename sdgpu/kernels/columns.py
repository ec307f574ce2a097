"""Kernels of some of the columns: ``On([0, 1], Gaussian()) * On([2], Periodic())``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.checks import integer
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import Kernel, Product, Sum, Wrapper

__all__ = ["On", "part_columns"]


@dataclass(frozen=True)
class On(Wrapper):
    """A kernel of the columns that are named, whatever the others are.

    Parameters
    ----------
    columns : int or sequence of int
        Counted from 0, each once. A length scale or period for each feature is one for each of them, in
        their order.
    kernel : Kernel
        Any but a precomputed one.

    Raises
    ------
    TypeError, ValueError
        For columns that are no whole numbers >= 0, that repeat, or that the data do not have; for what is
        no kernel of rows.

    Notes
    -----
    Sums of such kernels are additive models, products of them let each group of columns have a kernel of
    its own. Cost: that of the kernel on rows of so many columns.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> kernel = On([0, 1], sdgpu.Gaussian()) * On(2, sdgpu.Periodic(period=24.0))
    >>> X = np.array([[0.0, 0.0, 3.0], [0.0, 0.0, 27.0], [1.0, 0.0, 3.0]])
    >>> kernel(X).round(6)
    array([[1.      , 1.      , 0.367879],
           [1.      , 1.      , 0.367879],
           [0.367879, 0.367879, 1.      ]])
    """

    columns: int | Sequence[int]
    kernel: Kernel

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", _checked(self.columns))
        if not isinstance(self.kernel, Kernel):
            raise TypeError(
                f"kernel={self.kernel!r} must be a Kernel, such as sdgpu.Gaussian(), on columns "
                f"{list(self.indices)}"
            )
        if self.kernel.is_precomputed:
            raise TypeError(
                "kernel=Precomputed() has no columns: its rows are those of a kernel matrix"
            )

    @property
    def indices(self) -> tuple[int, ...]:
        """The columns, counted from 0."""
        assert isinstance(self.columns, tuple)  # whatever they were given as
        return self.columns

    def chosen(self, X: Any) -> Any:
        """The columns of rows X (n, d), or of an array (d,)."""
        d = int(X.shape[-1])
        if max(self.indices) >= d:
            raise ValueError(
                f"columns={list(self.indices)} names column {max(self.indices)}, but the data have {d} "
                f"features, 0 .. {d - 1}"
            )
        if not compat.is_array_api_obj(X):  # sparse rows
            return X[:, list(self.indices)]
        xp = compat.array_namespace(X)
        indices = xp.asarray(np.array(self.indices, dtype=np.int64), device=compat.device(X))
        return xp.take(X, indices, axis=X.ndim - 1)

    def rows(self, X: Any, centre: Any) -> Rows:
        return self.kernel.rows(self.chosen(X), None if centre is None else self.chosen(centre))

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        chosen, middle = self.chosen(X), None if centre is None else self.chosen(centre)
        own = self.kernel.gradient(chosen, middle, rows, W, factor=factor)
        total = own.new_zeros(*own.shape[:-1], int(X.shape[1]))
        total[..., list(self.indices)] = own
        return total

    def in_ball(self, X: Any, centre: Any) -> Any:
        return self.kernel.in_ball(self.chosen(X), None if centre is None else self.chosen(centre))


def part_columns(kernel: Kernel, columns: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Which of the columns each part of a kernel's formula sees, in the order of the formula."""
    if isinstance(kernel, On):
        return part_columns(kernel.kernel, tuple(columns[i] for i in kernel.indices))
    if isinstance(kernel, Wrapper):
        return part_columns(kernel.kernel, columns)
    if isinstance(kernel, (Sum, Product)):
        return [seen for part in kernel.kernels for seen in part_columns(part, columns)]
    return [columns]


def _checked(columns: Any) -> tuple[int, ...]:
    """Whole numbers >= 0, each once."""
    host = np.asarray(columns, dtype=object)
    if host.ndim > 1 or not host.size:
        raise ValueError(
            f"columns={columns!r} must be a column or several, as in On([0, 1], kernel)"
        )
    several = tuple(integer("columns", entry, 0) for entry in host.reshape(-1))
    twice = next((column for column in several if several.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"columns={list(several)} names column {twice} twice: name each once")
    return several
