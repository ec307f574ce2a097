"""What a kernel is: rows made ready, tiles made from them, and arithmetic on kernels."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import array_api_compat as compat

from sdgpu.backend.arrays import beside, dtype_name, inputs, same_place
from sdgpu.backend.checks import positive
from sdgpu.backend.conversion import column_names, same_columns
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.kernels.augmented_rows import Rows, longest, mark_opposite, product, recompute_near
from sdgpu.kernels.coordinate_sums import coordinate_sum
from sdgpu.kernels.derivatives import (
    by_autograd,
    coordinates_of,
    profile_slopes,
    pulled_back,
    require_finite,
    statistic_slopes,
)
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
    "lengthscales",
    "scaled_rows",
    "set_zero_diagonal",
]


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
    """

    is_precomputed: ClassVar[bool] = False
    copies: ClassVar[int] = 2

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

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        """sum_j factor_ij W_jr d kappa(x_i, x_j) / d x_i, (b, r, d); see :mod:`sdgpu.kernels.derivatives`.

        Parameters
        ----------
        X : tensor (b, d)
            Of torch, in float64, as the kernel's own rows `rows` (n) are; `centre` as in :meth:`rows`.
        W : tensor (n, r)
        factor : tensor (b, n), optional
            Of pairs.

        Raises
        ------
        ValueError
            Where there is no derivative.
        """
        name = type(self).__name__
        return by_autograd(lambda x: self.tile(self.rows(x, centre), rows), name, X, (factor, W))

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
        from sdgpu.kernels.kernel_matrices import cross, gram

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
        return cross(self, self.rows(A, centre), self.rows(B, centre))

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

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        operands = zip(self.kernels, rows.parts, strict=True)
        return sum(kernel.gradient(X, centre, part, W, factor=factor) for kernel, part in operands)


@dataclass(frozen=True)
class Product(_Combination):
    """kappa_1 kappa_2 ..., elementwise, made by ``*`` (Schur: positive semi-definite again)."""

    kernels: tuple[Kernel, ...]
    join: ClassVar[Callable[[Any, Any], Any]] = staticmethod(operator.mul)

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        operands = list(zip(self.kernels, rows.parts, strict=True))
        values = [kernel.tile(kernel.rows(X, centre), part) for kernel, part in operands]
        total = 0.0
        for number, (kernel, part) in enumerate(operands):
            others = (
                *values[:number],
                *values[number + 1 :],
                *(() if factor is None else (factor,)),
            )
            own = reduce(operator.mul, others) if others else None
            total = total + kernel.gradient(X, centre, part, W, factor=own)
        return total

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

    def coordinates(self, X: Any, centre: Any) -> tuple[Any, Any]:
        """What the statistic is taken of (n, e), and |x|^2 (n,) or None: :meth:`rows` without augmentation.

        By operations that torch can trace, where a kernel says it itself.
        """
        rows = self.rows(X, centre)
        return coordinates_of(self, rows), rows.norms

    def statistics(self, a: Rows, b: Rows, out: Any = None) -> Any:
        """The statistic of all pairs, (len(a), len(b)): what the profile takes."""
        if self.statistic == "product":
            tile = product(a, b, out)
        else:
            tile = coordinate_sum(self.statistic, a.left, b.left)
        if self.exact_near or a.far or b.far:
            tile = recompute_near(tile, a, b, self.sign)
        return mark_opposite(tile, a, b) if self.exact_opposite else tile

    def slopes(self, tile: Any, a_norms: Any, b_norms: Any) -> tuple[Any, Any]:
        """Derivatives of :meth:`profile` by the statistic, and by a_norms where there are norms; (a, b).

        By torch, unless a kernel knows better; 0 at a kink.
        """
        slopes = profile_slopes(self.profile, tile, a_norms, b_norms)
        for part in slopes:
            if part is not None:
                require_finite(part, type(self).__name__)
        return slopes

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        a = self.rows(X, centre)
        if a.norms is not None and not self.smooth_at_zero and bool((a.norms == 0).any()):
            row = int((a.norms == 0).nonzero()[0, 0])
            raise ValueError(
                f"{type(self).__name__} has no derivative at row {row} of the new rows, which is zero "
                "or whose square is"
            )
        total, lengths = statistic_slopes(self, a, rows, factor, W)

        def ready(x: Any) -> list[Any]:
            values, norms = self.coordinates(x, centre)
            return [values, *(() if lengths is None else (norms,))]

        def cotangents(r: int, _: Any) -> list[Any]:
            return [total[:, r], *(() if lengths is None else (lengths[:, r],))]

        return pulled_back(ready, X, cotangents, int(W.shape[1]))

    def tile(self, a: Rows, b: Rows, *, same: bool = False, out: Any = None) -> Any:
        tile = self.statistics(a, b, out)
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
    def smooth_at_zero(self) -> bool:
        """Whether there is a derivative at rows of zeros."""
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
        if self.statistic == "l1":
            xp = compat.array_namespace(rows.left)
            return 4.0 + width**0.5 + 2 * float(xp.max(xp.sum(xp.abs(rows.left), axis=1)))
        if not self.distance or self.statistic != "product":
            return 4.0 + width**0.5
        largest = longest(rows)
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

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        return self.kernel.gradient(X, centre, rows, W, factor=factor)

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

    def gradient(self, X: Any, centre: Any, rows: Rows, W: Any, *, factor: Any = None) -> Any:
        return self.kernel.gradient(X, centre, rows, self.scale * W, factor=factor)

    def diagonal(self, rows: Rows) -> Any:
        return self.scale * self.kernel.diagonal(rows)

    def symbolic(self, leaf: Callable[[Profile, Rows], Any], rows: Rows) -> Any:
        return self.scale * self.kernel.symbolic(leaf, rows)


def _operand(other: Any) -> Kernel:
    if not isinstance(other, Kernel):
        raise TypeError(f"a kernel can be added to a kernel only, not to {type(other).__name__}")
    return other
