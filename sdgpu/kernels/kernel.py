"""What a kernel is: rows made ready, tiles made from them, and arithmetic on kernels."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import beside, dtype_name, inputs, same_place, slices
from sdgpu.backend.checks import positive
from sdgpu.backend.conversion import column_names, same_columns
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.kernels.augmented_rows import BLOCK, Rows, mark_opposite, product, recompute_near
from sdgpu.kernels.coordinate_sums import coordinate_sum
from sdgpu.kernels.row_scaling import column_means, lengthscales, scaled_rows, set_zero_diagonal
from sdgpu.kernels.sparse_values import sparse_values

__all__ = [
    "Kernel",
    "Product",
    "Profile",
    "Scaled",
    "Sum",
    "Wrapper",
    "column_means",
    "gram",
    "lengthscales",
    "ready_rows",
    "row_copies",
    "scaled_rows",
    "set_zero_diagonal",
]

TILE = 256


class Kernel(ABC):
    """A positive semi-definite function of two rows.

    A concrete kernel is a frozen dataclass with three methods: :meth:`rows` makes data ready once,
    :meth:`tile` computes one block of the Gram matrix from ready rows, :meth:`diagonal` the values
    kappa(x, x). Everything else (full matrices, tiles, sums, products) follows from them.

    Kernels can be added, multiplied with each other and scaled by a number >= 0.

    Attributes
    ----------
    is_precomputed : bool
        Whether its "rows" are those of a Gram matrix.
    copies : int
        How many times n d numbers its ready rows take at the most.
    has_compiled_loop : bool
        Whether :mod:`sdgpu.operators.fused_cpu` and :mod:`~sdgpu.operators.fused_cuda` know its formula.
    """

    is_precomputed: ClassVar[bool] = False
    copies: ClassVar[int] = 2
    has_compiled_loop: ClassVar[bool] = False

    @property
    def takes_sparse(self) -> bool:
        """Whether it has values of sparse rows: those of inner products and lengths."""
        return False

    @abstractmethod
    def rows(self, X: Any, centre: Any) -> Rows:
        """Make rows (n, d) ready; `centre` (d,) is subtracted by kernels of distances."""

    @abstractmethod
    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        """Block kappa(a, b) of shape (len(a), len(b)).

        With `same` a is b, so distances are 0 on the diagonal. `out` is a buffer of that shape that the
        tile may use.
        """

    @abstractmethod
    def diagonal(self, rows: Rows) -> Any:
        """kappa(x, x) for each row, (n,)."""

    @property
    def distance_factor(self) -> tuple[str, float] | None:
        """("l2", f) where values are `profile` of f |x - x'|^2, ("l1", f) of f |x - x'|_1; else None."""
        return None

    def in_ball(self, X: Any, centre: Any) -> Any:
        """Rows (n, k) of which kappa is exactly 0 from distance 1 on; None if there are none."""
        return None

    def tile_rows(self, rows: Rows, tile: int) -> int:
        """Rows of a tile: `tile`, which suits the cache, or more where evaluating a row is dear."""
        return tile

    def rounding(self, rows: Rows) -> float:
        """Bound on the errors of entries of K, over eps (of the rows' dtype) (K_ii K_jj)^(1/2)."""
        return 8.0

    def value_dtype(self, X: Any) -> str:
        """Name of the dtype that says how precise values for rows X are: that of X."""
        return dtype_name(X)

    @property
    def opaque(self) -> Kernel | None:
        """The first part without a formula, which only its own tiles can evaluate."""
        return self

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        """The same sums and products of leaf(part, its rows) for each part, a :class:`Profile`."""
        raise TypeError(f"{type(self).__name__} has no formula")

    @underflow_is_zero
    def __call__(self, A: Any, B: Any = None) -> Any:
        """Gram matrix kappa(A, B) in the library, device and dtype of A.

        Parameters
        ----------
        A : array (n, d)
            Of kernels with `takes_sparse` a sparse matrix too: the result is one of NumPy, and rows are
            never made dense.
        B : array (m, d), optional
            A itself by default: then the result is symmetric to the last bit.

        Returns
        -------
        array (n, m)

        Raises
        ------
        TypeError, ValueError
            For input that is not two matrices of finite real rows of one library, device and d.
        """
        if is_sparse(A) or is_sparse(B):
            return sparse_values(self, A, B)
        source, A = A, inputs(A, "A", empty=True)
        if B is None:
            return gram(self, self.rows(A, column_means(A)))
        same_columns(column_names(source), B, "B", "A")
        B = beside(B, inputs(B, "B", features=A.shape[1], empty=True), A)
        same_place(A, B, "A", "B")
        B = compat.array_namespace(A).astype(B, A.dtype, copy=False)
        centre = column_means(B)
        return self.tile(self.rows(A, centre), self.rows(B, centre))

    def __add__(self, other: Kernel) -> Kernel:
        return Sum((self, _operand(other)))

    def __radd__(self, other: Any) -> Kernel:
        return self if other == 0 else Sum((_operand(other), self))  # sum() starts at 0

    __array_ufunc__ = None  # an array times a kernel is an error, not an array of kernels

    def __mul__(self, other: Kernel | float) -> Kernel:
        if isinstance(other, Kernel):
            return Product((self, other))
        return Scaled(positive("scale", other, zero=True), self)

    __rmul__ = __mul__


def gram(kernel: Kernel, rows: Rows, *, tile: int = TILE) -> Any:
    """Full symmetric Gram matrix of ready rows, tile by tile, each computed once and mirrored.

    Cost: n^2 / 2 kernel values; memory n^2 and a few tiles.
    """
    n, tile = len(rows), kernel.tile_rows(rows, tile)
    sample = rows.sample
    xp = compat.array_namespace(sample)
    K = xp.empty((n, n), dtype=sample.dtype, device=compat.device(sample))
    for high in slices(n, tile):
        for low in slices(high.start, tile):
            block = kernel.tile(rows[high], rows[low])
            K[high, low] = block
            K[low, high] = block.T
        block = kernel.tile(rows[high], rows[high], same=True)
        K[high, high] = (block + block.T) / 2
    return K


class _Combination(Kernel):
    """What sums and products share: the operands' rows, and tiles joined elementwise."""

    kernels: tuple[Kernel, ...]
    join: ClassVar[Callable[[Any, Any], Any]]  # of the values of two operands

    def rows(self, X: Any, centre: Any) -> Rows:
        return Rows(None, None, parts=tuple(kernel.rows(X, centre) for kernel in self.kernels))

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        operands = zip(self.kernels, a.parts, b.parts, strict=True)
        return reduce(type(self).join, (kernel.tile(x, y, same=same) for kernel, x, y in operands))

    def tile_rows(self, rows: Rows, tile: int) -> int:
        operands = zip(self.kernels, rows.parts, strict=True)
        return max(kernel.tile_rows(part, tile) for kernel, part in operands)

    def rounding(self, rows: Rows) -> float:
        operands = zip(self.kernels, rows.parts, strict=True)
        return sum(kernel.rounding(part) for kernel, part in operands)

    def diagonal(self, rows: Rows) -> Any:
        operands = zip(self.kernels, rows.parts, strict=True)
        return reduce(type(self).join, (kernel.diagonal(part) for kernel, part in operands))

    @property
    def takes_sparse(self) -> bool:
        return all(kernel.takes_sparse for kernel in self.kernels)

    @property
    def opaque(self) -> Kernel | None:
        return next((kernel.opaque for kernel in self.kernels if kernel.opaque is not None), None)

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        operands = zip(self.kernels, rows.parts, strict=True)
        return reduce(type(self).join, (kernel.symbolic(leaf, part) for kernel, part in operands))


@dataclass(frozen=True)
class Sum(_Combination):
    """kappa_1 + kappa_2 + ..., made by ``+``."""

    kernels: tuple[Kernel, ...]
    join: ClassVar[Callable[[Any, Any], Any]] = staticmethod(operator.add)


@dataclass(frozen=True)
class Product(_Combination):
    """kappa_1 kappa_2 ..., elementwise, made by ``*`` (Schur: positive semi-definite again)."""

    kernels: tuple[Kernel, ...]
    join: ClassVar[Callable[[Any, Any], Any]] = staticmethod(operator.mul)

    def in_ball(self, X: Any, centre: Any) -> Any:
        balls = (kernel.in_ball(X, centre) for kernel in self.kernels)
        return next((ball for ball in balls if ball is not None), None)


class Profile(Kernel):
    """A kernel that is one statistic and an elementwise profile of it: the formula is written once.

    ``statistic`` is "product" (augmented rows), or a sum over coordinates, such as "l1" (see
    :mod:`sdgpu.kernels.coordinate_sums`). The profile works in place on a tile (a, b), or on a lazy tensor
    of KeOps; a_norms (a, 1) and b_norms (1, b) are |x|^2 where the kernel needs them.
    """

    statistic: ClassVar[str] = "product"
    distance: ClassVar[bool] = True  # zero on the diagonal
    sign: ClassVar[float] = 1.0  # of the squared distance in the augmented product

    @abstractmethod
    def profile(self, tile: Any, a_norms: Any, b_norms: Any) -> Any:
        """The kernel values from the statistic."""

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        if self.statistic == "product":
            tile = product(a, b, out)
        else:
            tile = coordinate_sum(self.statistic, a.left, b.left)
        if self.exact_near or a.far or b.far:
            tile = recompute_near(tile, a, b, self.sign)
        if self.exact_opposite:
            tile = mark_opposite(tile, a, b)
        if same and self.distance:
            tile = set_zero_diagonal(tile)
        if a.norms is None:
            return self.profile(tile, None, None)
        return self.profile(tile, a.norms[:, None], b.norms[None, :])

    @property
    def opaque(self) -> Kernel | None:
        return None

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        return leaf(self, rows)

    @property
    def defined_at_zero(self) -> bool:
        """Whether the profile alone gives the values of rows of zeros."""
        return True

    @property
    def exact_near(self) -> bool:
        """Whether the profile has a kink at distance 0."""
        return False

    @property
    def exact_opposite(self) -> bool:
        """Whether the profile, of the chord of unit rows, has a kink at the angle pi."""
        return False

    def rounding(self, rows: Rows) -> float:
        """From the statistic: |x - x'|^2 as a product is off by eps |x|^2, |x - x'|_1 by eps |x|_1.

        Near pairs are recomputed, up to the eps |x| of the centred rows. A square root divides the error
        by the distance, which of the others is at least eps^(1/6) |x|, and the profile falls off before
        |x| is large.
        """
        width = int(rows.left.shape[1])
        if not len(rows) or not width:
            return 4.0
        xp = compat.array_namespace(rows.right)
        if self.statistic == "l1":
            return 4.0 + width**0.5 + 2 * float(xp.max(xp.sum(xp.abs(rows.left), axis=1)))
        if not self.distance or self.statistic != "product":
            return 4.0 + width**0.5
        largest = float(xp.max(rows.right[:, -1]))
        bound = 4.0 + 2 * largest**0.5
        if self.exact_near:
            return bound + 200.0 * min(largest**0.5, 400.0)
        return bound + 2 * min(largest, 1e5)


class Wrapper(Kernel):
    """A kernel that is another one, ``kernel``, but for what it overrides."""

    kernel: Kernel

    def rows(self, X: Any, centre: Any) -> Rows:
        return self.kernel.rows(X, centre)

    def in_ball(self, X: Any, centre: Any) -> Any:
        return self.kernel.in_ball(X, centre)

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        return self.kernel.tile(a, b, same=same, out=out)

    def tile_rows(self, rows: Rows, tile: int) -> int:
        return self.kernel.tile_rows(rows, tile)

    def rounding(self, rows: Rows) -> float:
        return self.kernel.rounding(rows)

    def diagonal(self, rows: Rows) -> Any:
        return self.kernel.diagonal(rows)

    @property
    def takes_sparse(self) -> bool:
        return self.kernel.takes_sparse

    @property
    def opaque(self) -> Kernel | None:
        return self.kernel.opaque

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        return self.kernel.symbolic(leaf, rows)


@dataclass(frozen=True)
class Scaled(Wrapper):
    """scale times kappa with scale >= 0, made by ``number * kernel``."""

    scale: float
    kernel: Kernel

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        tile = self.kernel.tile(a, b, same=same, out=out)
        tile *= self.scale
        return tile

    def diagonal(self, rows: Rows) -> Any:
        return self.scale * self.kernel.diagonal(rows)

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        return self.scale * self.kernel.symbolic(leaf, rows)


def ready_rows(
    kernel: Kernel, X: Any, centre: Any, finish: Callable[[Rows], Rows] = lambda rows: rows
) -> Rows:
    """finish(kernel.rows(X, centre)), in blocks of rows where these are independent.

    Making wide rows ready takes several copies of them, which are then copies of a block.

    Raises
    ------
    ValueError
        If squares or products of X overflow in the dtype of the rows.
    """
    (n, d), xp = X.shape, compat.array_namespace(X)
    height = max(1, BLOCK // d)
    if n <= height or not isinstance(kernel, Profile):
        rows = finish(kernel.rows(X, centre))
        _require_finite(kernel, rows, X)
        return rows

    def allocate(like: Any) -> Any:
        shape = (n, *like.shape[1:])
        return xp.empty(shape, dtype=like.dtype, device=compat.device(like))

    all_rows = None
    for part in slices(n, height):
        block = finish(kernel.rows(X[part, :], centre))
        if all_rows is None:
            left = allocate(block.left)
            right = left if block.right is block.left else allocate(block.right)
            all_rows = Rows(left, right, None if block.norms is None else allocate(block.norms))
        all_rows.left[part, ...] = block.left
        if all_rows.right is not all_rows.left:
            all_rows.right[part, ...] = block.right
        if all_rows.norms is not None:
            all_rows.norms[part] = block.norms
        if block.far:
            all_rows = replace(all_rows, far=True)
    assert all_rows is not None
    _require_finite(kernel, all_rows, X)
    return all_rows


def _require_finite(kernel: Kernel, rows: Rows, X: Any) -> None:
    if _finite(rows):
        return
    largest, dtype = float(compat.array_namespace(X).max(abs(X))), dtype_name(rows.sample)
    remedy = "" if dtype == "float64" else ", or use dtype='float64'"
    raise ValueError(
        f"the kernel {kernel!r} overflows on data with |X| up to {largest:.3g} in {dtype}: rescale X or "
        f"the parameters of the kernel{remedy}"
    )


def _finite(rows: Rows) -> bool:
    """Whether all numbers of ready rows are finite; by extremes, which take no flags of all."""
    for x in (rows.left, rows.right, rows.norms):
        if x is not None and compat.size(x):
            xp = compat.array_namespace(x)
            if not np.isfinite([float(xp.min(x)), float(xp.max(x))]).all():
                return False
    return all(map(_finite, rows.parts))


def row_copies(kernel: Kernel) -> int:
    """How many times n d numbers the ready rows of a kernel take at the most."""
    if isinstance(kernel, Wrapper):
        return row_copies(kernel.kernel)
    return (
        sum(map(row_copies, kernel.kernels)) if isinstance(kernel, _Combination) else kernel.copies
    )


def _operand(other: Any) -> Kernel:
    if not isinstance(other, Kernel):
        raise TypeError(f"a kernel can be added to a kernel only, not to {type(other).__name__}")
    return other
