"""The kernel matrix of a kernel of compact support: the entries that are not 0, found by a tree.

Rows are taken in the order of the tree's leaves, so that neighbours of a block of rows are few and the
kernel's own tiles evaluate them: sums and products of kernels work as they do elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree

from sdgpu.backend.arrays import inputs, new_rows, slices
from sdgpu.backend.backends import Backend, backend_of, to_numpy
from sdgpu.backend.conversion import column_names
from sdgpu.backend.copying import without_caches
from sdgpu.backend.memory import budget, require
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.kernel import column_means
from sdgpu.kernels.row_preparation import ready_rows

__all__ = ["SparseCross", "SparseOperator"]

HEIGHT, WIDTH = 256, 4096  # of a tile: rows of a block, neighbours at once
RADIUS = 1 + 1e-5  # the kernel decides about rows whose distance is 1 up to rounding
_BLOCK = 2**22  # entries of one block of rows: 32 MiB of doubles


@dataclass(frozen=True, eq=False)
class SparseOperator:
    """K in CSR (compressed sparse rows): memory and a product's work are the entries that are not 0.

    Parameters
    ----------
    kernel : Kernel
        Of compact support: :class:`~sdgpu.Wendland`, on some columns, a multiple of one, or its product
        with any kernel of rows.
    X : array_like (n, d)
        Of few features: a tree of neighbours finds little in more than ten. Products come back in its
        library, as float64; the work is done by SciPy on the host.
    memory : bytes or "8GiB", optional
        What the entries may take, 90 % of what is free by default.

    Raises
    ------
    TypeError, ValueError
        For a kernel that is nowhere 0, or input that is not a matrix of finite real rows.
    MemoryError
        If there are too many entries, which are counted first.

    Notes
    -----
    Take it as ``sdgpu.fit(X, Y, kernel, lams, operator=SparseOperator, method="cg")``, or with "lanczos" or
    "subspace". Making it costs the kernel values of neighbours, a few times over, and n log n for the tree.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 100, 1001)[:, None]
    >>> K = SparseOperator(sdgpu.Wendland(order=1, lengthscale=0.45), X)
    >>> K.matrix.nnz, bool(np.allclose(K.matmat(np.ones((1001, 1))), K.kernel(X).sum(axis=1)[:, None]))
    (8989, True)
    """

    kernel: Kernel
    X: Any = field(repr=False)
    memory: int | float | str | None = None
    _names: tuple[str, ...] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        X = inputs(self.X, "X")
        object.__setattr__(self, "_names", column_names(self.X))
        object.__setattr__(self, "X", X)
        if self.kernel.in_ball(X, column_means(X)) is None:
            raise TypeError(
                f"{self.kernel!r} is nowhere exactly 0: multiply it by sdgpu.Wendland, or use "
                "operator='tiled'"
            )

    def __getstate__(self) -> dict[str, Any]:
        return without_caches(self)

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    @property
    def d(self) -> int:
        """Features of a row."""
        return int(self.X.shape[1])

    @property
    def is_precomputed(self) -> bool:
        """Whether X is the Gram matrix itself: never."""
        return False

    @cached_property
    def matrix(self) -> scipy.sparse.csr_array:
        """K (n, n) in CSR, symmetric to the last bit, in the dtype of X."""
        whole = self._entries(self._host, self._ball)
        below = scipy.sparse.tril(whole, -1, format="csr")
        diagonal = scipy.sparse.diags_array(self._diagonal)
        return scipy.sparse.csr_array(below + below.T + diagonal, dtype=whole.dtype)

    @underflow_is_zero
    def matmat(self, V: Any) -> Any:
        """K V: (n, c) -> (n, c), float64, in the library of X."""
        return self._backend.asarray(self.matrix @ np.asarray(to_numpy(V), dtype=np.float64))

    def cross(self, X_new: Any) -> SparseCross:
        """kappa(X_new, X) as an operator (m, n); X_new (m, d)."""
        new = new_rows(X_new, "X_new", self.X, columns=self._names, features=self.d, empty=True)
        host = np.asarray(to_numpy(new), dtype=self._host.dtype)
        values = self.kernel.diagonal(ready_rows(self.kernel, host, self._centre))
        ball = np.asarray(self.kernel.in_ball(host, self._centre), dtype=np.float64)
        return SparseCross(self._entries(host, ball), values, self._backend)

    def diag(self) -> Any:
        """Diagonal of K, (n,)."""
        return self._backend.asarray(self._diagonal)

    def columns(self, idx: Any) -> Any:
        """Columns of K, (n, len(idx))."""
        return self._backend.asarray(self.matrix[np.asarray(idx)].toarray().T)

    @property
    def _backend(self) -> Backend:
        return backend_of(self.X)

    @cached_property
    def _host(self) -> np.ndarray:
        return np.asarray(to_numpy(self.X))

    @cached_property
    def _centre(self) -> np.ndarray:
        return column_means(self._host)

    @cached_property
    def _rows(self) -> Rows:
        return ready_rows(self.kernel, self._host, self._centre)

    @cached_property
    def _diagonal(self) -> np.ndarray:
        return np.asarray(self.kernel.diagonal(self._rows))

    @cached_property
    def _ball(self) -> np.ndarray:
        return np.asarray(self.kernel.in_ball(self._host, self._centre), dtype=np.float64)

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self._ball)

    @underflow_is_zero
    def _entries(self, X: np.ndarray, ball: np.ndarray) -> scipy.sparse.csr_array:
        """kappa(X, training rows) where it may not be 0."""
        m, size = len(X), self._rows.sample.dtype.itemsize
        if not m:
            return scipy.sparse.csr_array((0, self.n), dtype=self._rows.sample.dtype)
        tree = self._tree if ball is self._ball else cKDTree(ball)
        count = int(tree.count_neighbors(self._tree, RADIUS))
        remedy = "take a smaller lengthscale, or operator='tiled'"
        # as parts, as triplets, and in CSR
        needed = 3 * count * (size + 16)
        require(needed, budget(self.memory), f"K of {count:,} entries that are not 0", remedy)
        rows = self._rows if X is self._host else ready_rows(self.kernel, X, self._centre)
        parts = [self._block(rows, ball, tree.indices[part]) for part in slices(m, HEIGHT)]
        values, high, low = (np.concatenate(several) for several in zip(*parts, strict=True))
        matrix = scipy.sparse.csr_array((values, (high, low)), shape=(m, self.n))
        matrix.eliminate_zeros()
        return matrix

    def _block(
        self, rows: Rows, ball: np.ndarray, block: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, rows and columns of the entries of a block of rows that are near each other."""
        found = self._tree.query_ball_point(ball[block], RADIUS, return_sorted=False)
        counts = [len(near) for near in found]
        columns = np.concatenate([np.asarray(near, dtype=np.int64) for near in found])
        inside = np.repeat(np.arange(len(block)), counts)
        neighbours, place = np.unique(columns, return_inverse=True)
        values = np.empty(len(columns), self._rows.sample.dtype)
        left = _taken(rows, block)
        for part in slices(len(neighbours), WIDTH):
            tile = self.kernel.tile(left, _taken(self._rows, neighbours[part]))
            here = (place >= part.start) & (place < part.stop)
            values[here] = tile[inside[here], place[here] - part.start]
        return values, block[inside], columns


@dataclass(frozen=True, eq=False)
class SparseCross:
    """kappa(X_new, X) (m, n) in CSR: what :class:`~sdgpu.operators.Cross` answers, from few entries."""

    matrix: scipy.sparse.csr_array
    values: np.ndarray
    backend: Backend

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.matrix.shape

    def blocks(self, entries: int = _BLOCK) -> Iterator[tuple[slice, Any]]:
        """Row blocks (b, n) of at most `entries` numbers, with the rows they stand for."""
        m, n = self.shape
        for rows in slices(m, max(1, min(m, entries // max(n, 1)))):
            yield rows, self.backend.asarray(self.matrix[rows].toarray())

    @underflow_is_zero
    def matmat(self, V: Any) -> Any:
        """kappa(X_new, X) V: (n, c) -> (m, c), float64."""
        return self.backend.asarray(self.matrix @ np.asarray(to_numpy(V), dtype=np.float64))

    def __matmul__(self, V: Any) -> Any:
        return self.matmat(V)

    def diag(self) -> Any:
        """kappa(x, x) of the new rows, (m,)."""
        return self.backend.asarray(self.values)

    def dense(self) -> Any:
        """The matrix (m, n)."""
        return self.backend.asarray(self.matrix.toarray())


def _taken(rows: Rows, indices: np.ndarray) -> Rows:
    """Ready rows by their numbers."""

    def take(array: Any) -> Any:
        return None if array is None else array[indices]

    parts = tuple(_taken(part, indices) for part in rows.parts)
    return Rows(take(rows.left), take(rows.right), take(rows.norms), parts, rows.far)
