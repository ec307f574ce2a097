"""The stored kernel matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import dtype_name, new_rows, slices
from sdgpu.backend.backends import Backend, backend_of, taken_rows
from sdgpu.backend.conversion import column_names
from sdgpu.backend.copying import without_caches
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import BLOCK, Rows
from sdgpu.kernels.feature_maps import Explicit
from sdgpu.kernels.kernel import Profile, column_means
from sdgpu.kernels.kernel_matrices import TILE, gram
from sdgpu.kernels.precomputed import check_symmetric
from sdgpu.kernels.row_preparation import checked_rows, ready_rows, with_tiles_like
from sdgpu.operators.cross import Cross
from sdgpu.operators.expansion import Expansion
from sdgpu.operators.slopes import KernelSlopes

__all__ = ["DenseOperator"]


@dataclass(frozen=True, eq=False)
class DenseOperator:
    """K in memory: n^2 numbers, made at the first product.

    Parameters
    ----------
    kernel : Kernel
        With :class:`~sdgpu.kernels.Precomputed`, X is K itself.
    X : array_like (n, d)
        Any library and device; everything is computed there, in the dtype of X. Sparse matrices too, for
        kernels that take them.
    tile : int, default 256
        Rows of a tile while K is built.
    given_dtype : str, optional
        Precision in which a precomputed K was made, for the tolerance of its checks; that of X by
        default.
    checked : bool, default False
        Whether X has been checked already, and is an array of floats, or CSR.
    home : Backend, optional
        Whose arrays K of sparse rows is made of; NumPy's by default.

    Raises
    ------
    TypeError, ValueError
        For input that is not a matrix of finite real rows, or a given K that is not symmetric.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.array([[0.0], [1.0]])
    >>> sdgpu.operators.DenseOperator(sdgpu.Linear(), X).matmat(np.ones((2, 1)))
    array([[0.],
           [1.]])
    """

    kernel: Kernel
    X: Any = field(repr=False)
    tile: int = TILE
    given_dtype: str | None = None
    checked: bool = field(default=False, repr=False)
    home: Backend | None = field(default=None, repr=False)

    _names: tuple[str, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not self.checked:
            X = checked_rows(self.kernel, self.X)
            object.__setattr__(self, "_names", column_names(self.X))
            object.__setattr__(self, "X", X)
        if self.is_precomputed:
            if self.X.shape[0] != self.X.shape[1]:
                raise ValueError(f"a precomputed kernel must be square, got {tuple(self.X.shape)}")
            dtype = self.given_dtype or dtype_name(self.X)
            object.__setattr__(self, "given_dtype", dtype)
            check_symmetric(self.X, "the precomputed kernel", dtype)

    def __getstate__(self) -> dict[str, Any]:
        return without_caches(self)

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    @property
    def d(self) -> int:
        """Features of a row; n for a given K."""
        return int(self.X.shape[1])

    @property
    def is_precomputed(self) -> bool:
        """Whether X is the Gram matrix itself."""
        return self.kernel.is_precomputed

    @cached_property
    def rows(self) -> Rows:
        """The rows of X made ready once."""
        return self._ready(self.X)

    def _ready(self, X: Any) -> Rows:
        rows = ready_rows(self.kernel, X, self.centre)
        if not is_csr(X):
            return rows
        return with_tiles_like(rows, self.backend.asarray(np.zeros(0)))

    @property
    def backend(self) -> Backend:
        """Where K is made."""
        return self.home or backend_of(self.X)

    @cached_property
    def centre(self) -> Any:
        """Mean of the training rows: distances are taken from it, for new rows too; None if sparse."""
        return column_means(self.X)

    @cached_property
    def matrix(self) -> Any:
        """K (n, n), kept."""
        return self.X if self.is_precomputed else self.gram()

    @underflow_is_zero
    def gram(self) -> Any:
        """A new K (n, n) that the caller may overwrite."""
        if self.is_precomputed:
            return compat.array_namespace(self.X).asarray(self.X, copy=True)
        return gram(self.kernel, self.rows, tile=self.tile)

    @underflow_is_zero
    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c)."""
        return self.matrix @ V

    @underflow_is_zero
    def matmat_once(self, V: Any) -> Any:
        """K V without keeping K, which is made in blocks of rows."""
        if self.is_precomputed:
            return self.X @ V
        return Cross(self.kernel, self.rows, self.rows, self.tile).matmat(V)

    def cross(self, X_new: Any) -> Cross:
        """kappa(X_new, X) as an operator (m, n); X_new (m, d), or (m, n) values if precomputed."""
        d = int(self.X.shape[1])
        new = new_rows(X_new, "X_new", self.X, columns=self._names, features=d, empty=True)
        if is_csr(new):
            new = new.astype(self.X.dtype, copy=False)
        else:
            new = compat.array_namespace(self.X).astype(new, self.X.dtype, copy=False)
        return Cross(self.kernel, self._ready(new), self.rows, self.tile)

    def slopes(self, X_new: Any) -> KernelSlopes:
        """Derivatives of kappa(X_new, X) by the new rows.

        Raises
        ------
        ValueError
            For a precomputed kernel.
        """
        if self.is_precomputed:
            raise ValueError(
                "a precomputed kernel has no rows to take derivatives by: fit rows with a kernel"
            )
        return KernelSlopes(self.kernel, X_new, self.X)

    def expansion(self, V: Any) -> Expansion:
        """The function with coefficients V (n, c), as its parts."""
        return Expansion.of_rows(self.kernel, self.X, V)

    @underflow_is_zero
    def diag(self) -> Any:
        """Diagonal of K, (n,)."""
        parts = [self.kernel.diagonal(rows) for rows in self._row_blocks()]
        return compat.array_namespace(parts[0]).concat(parts, axis=0)

    def own_features(self) -> Any:
        """Features Phi (n, k) of the kernel's own, K = Phi Phi'.

        Raises
        ------
        ValueError
            For a kernel without finitely many.
        """
        feature_map = Explicit().prepare(self.kernel, None, int(self.X.shape[1]), 0)
        return feature_map.transform(self.X)

    @property
    def difference_scale(self) -> float:
        """Size of the numbers that entries of K are differences of: 0, they are none."""
        return 0.0

    def rounding(self) -> float:
        """Bound on the relative error of an entry of K, over eps; 1 for a given K."""
        return 1.0 if self.is_precomputed else max(map(self.kernel.rounding, self._row_blocks()))

    def _row_blocks(self) -> Iterator[Rows]:
        """The rows of X made ready, a block at a time: all of them are two copies of X, but cheap to make.

        All at once where they are known already, or are not cheap.
        """
        if "rows" in self.__dict__ or not isinstance(self.kernel, Profile) or is_csr(self.X):
            yield self.rows
            return
        for part in slices(self.n, max(1, BLOCK // int(self.X.shape[1]))):
            yield self.kernel.rows(self.X[part, :], self.centre)

    @underflow_is_zero
    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx)), without making K."""
        if self.is_precomputed:
            xp = compat.array_namespace(self.X)
            indices = xp.asarray(np.asarray(idx, dtype=np.int64), device=compat.device(self.X))
            return xp.take(self.X, indices, axis=1)
        subset = self._ready(taken_rows(self.X, idx))
        # the transpose of (len(idx), n) tiles, so that the row blocks of Cross serve here too
        parts = [
            Cross(self.kernel, subset, rows, self.tile).dense().T for rows in self._row_blocks()
        ]
        return compat.array_namespace(parts[0]).concat(parts, axis=0)
