"""Derivatives of predictions by new rows, in blocks of bounded memory, by torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, TorchBackend, backend_of, torch_beside
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.feature_maps import FeatureMap
from sdgpu.kernels.feature_maps.feature_map import map_gradient
from sdgpu.kernels.kernel import column_means
from sdgpu.kernels.row_preparation import ready_rows

__all__ = ["FeatureSlopes", "KernelSlopes", "Slopes", "slopes_of"]

ENTRIES = 2**21  # kernel values of a block of new rows: 16 MiB, and as much for their slopes
HEIGHT = 512  # new rows of a block, at most


class Slopes(Protocol):
    """Derivatives of kappa(x, X) (m, n) by the new rows x, or of features in its place."""

    def columns(self, V: Any) -> Any:
        """Of kappa(x, X) V: (n, r) -> (m, r, d), a tensor in float64."""

    def pull_back(self, V: Any, G: Any) -> Any:
        """Of the sum of G * (kappa(x, X) V): (n, r), (m, r) -> (m, d), a tensor in float64."""


def slopes_of(operator: Any, X_new: Any) -> Slopes:
    """What an operator says of derivatives by new rows (m, d).

    Raises
    ------
    ValueError
        If it says nothing, or the new rows are sparse.
    """
    if is_csr(X_new):
        raise ValueError("X_new is sparse, and its derivatives are not: pass X_new.toarray()")
    if not hasattr(operator, "slopes"):
        raise ValueError(
            f"{type(operator).__name__} has no derivatives by new rows: fit with operator='dense' or "
            "'tiled'"
        )
    return operator.slopes(X_new)


@dataclass(frozen=True, eq=False)
class KernelSlopes:
    """Of kernel values.

    Attributes
    ----------
    kernel : Kernel
    new : array (m, d)
    X : array (n, d)
        Of any library; the work is done by torch on its device. Of sparse rows a block at a time is made
        dense: sums over rows are sums over blocks.
    """

    kernel: Kernel
    new: Any = field(repr=False)
    X: Any = field(repr=False)

    def columns(self, V: Any) -> Any:
        """Of kappa(x, X) V: (n, r) -> (m, r, d).

        m n (d + 2) r multiplications.
        """
        V = self._torch.asarray(V)
        if is_csr(self.X):
            return sum(one.columns(V[part]) for part, one in self._dense_parts())

        def of_block(X: Any, _: slice) -> Any:
            return self.kernel.gradient(X, self._centre, self._rows, V)

        return self._in_blocks(of_block, (int(V.shape[1]),))

    def pull_back(self, V: Any, G: Any) -> Any:
        """Of the sum of G * (kappa(x, X) V): (n, r), (m, r) -> (m, d).

        m n (d + 2 + r) multiplications.
        """
        V, G = self._torch.asarray(V), self._torch.asarray(G)
        if is_csr(self.X):
            return sum(one.pull_back(V[part], G) for part, one in self._dense_parts())
        ones = V.new_ones(len(V), 1)

        def of_block(X: Any, part: slice) -> Any:
            factor = G[part] @ V.T
            return self.kernel.gradient(X, self._centre, self._rows, ones, factor=factor)[:, 0]

        return self._in_blocks(of_block, ())

    def _dense_parts(self) -> Iterator[tuple[slice, KernelSlopes]]:
        """The same of some of the rows, made dense."""
        n, d = self.X.shape
        for part in slices(n, max(1, ENTRIES // d)):
            yield part, KernelSlopes(self.kernel, self.new, self.X[part].toarray())

    def _in_blocks(self, of_block: Callable[[Any, slice], Any], shape: tuple[int, ...]) -> Any:
        new = self._torch.asarray(self.new)
        height = max(1, min(HEIGHT, ENTRIES // max(int(self.X.shape[0]), 1)))
        return _stacked(new, of_block, shape, height)

    @cached_property
    def _torch(self) -> TorchBackend:
        return torch_beside(backend_of(self.X))

    @cached_property
    def _centre(self) -> Any:
        return column_means(self._torch.asarray(self.X))

    @cached_property
    def _rows(self) -> Rows:
        return ready_rows(self.kernel, self._torch.asarray(self.X), self._centre)


@dataclass(frozen=True, eq=False)
class FeatureSlopes:
    """Of features."""

    map: FeatureMap
    new: Any = field(repr=False)
    backend: Backend

    def columns(self, V: Any) -> Any:
        """Of phi(x)' V: (k, r) -> (m, r, d)."""
        V = self._torch.asarray(V)

        def of_block(X: Any, _: slice) -> Any:
            return map_gradient(self.map, X, W=V)

        return self._in_blocks(of_block, (int(V.shape[1]),))

    def pull_back(self, V: Any, G: Any) -> Any:
        """Of the sum of G * (phi(x)' V): (k, r), (m, r) -> (m, d)."""
        V, G = self._torch.asarray(V), self._torch.asarray(G)

        def of_block(X: Any, part: slice) -> Any:
            return map_gradient(self.map, X, factor=G[part] @ V.T)[:, 0]

        return self._in_blocks(of_block, ())

    def _in_blocks(self, of_block: Callable[[Any, slice], Any], shape: tuple[int, ...]) -> Any:
        new = self._torch.asarray(self.new)
        return _stacked(new, of_block, shape, max(1, min(HEIGHT, ENTRIES // self.map.size)))

    @cached_property
    def _torch(self) -> TorchBackend:
        return torch_beside(self.backend)


def _stacked(
    new: Any, of_block: Callable[[Any, slice], Any], shape: tuple[int, ...], height: int
) -> Any:
    result = new.new_empty(len(new), *shape, int(new.shape[1]))
    for part in slices(len(new), height):
        result[part] = of_block(new[part], part)
    return result
