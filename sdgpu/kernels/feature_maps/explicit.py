"""A kernel's own features, exact: of linear, polynomial and cosine kernels, their sums and products.

====================  ==============================================================
kernel                features
====================  ==============================================================
Linear                x / lengthscale
Cosine                x / |x|
Polynomial            all monomials up to its degree, with the roots of their coefficients
scale * kappa         sqrt(scale) phi
kappa_1 + kappa_2     [phi_1, phi_2]
kappa_1 * kappa_2     all products of an entry of phi_1 and one of phi_2
On(columns, kappa)    phi of those columns
====================  ==============================================================

A linear kernel of n rows is a problem of d unknowns: n d^2 multiplications where K takes n^2 d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import array_api_compat as compat
import numpy as np

from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels.columns import On
from sdgpu.kernels.dot_product import Cosine, Linear, Polynomial
from sdgpu.kernels.feature_maps.feature_map import TurnedMap
from sdgpu.kernels.feature_maps.sparse_features import sparse_features
from sdgpu.kernels.kernel import Kernel, Product, Scaled, Sum, lengthscales, scaled_rows

__all__ = ["CallableMap", "Explicit", "OwnMap", "own_size"]

MOST = 20_000  # features of a kernel's own: k^2 doubles are 3 GB


def own_size(kernel: Kernel, d: int) -> int | None:
    """k of the kernel's own features for rows (n, d); None if it has no finite number of them."""
    if isinstance(kernel, (Linear, Cosine)):
        return d
    if isinstance(kernel, Polynomial):
        return math.comb(d + kernel.degree, kernel.degree) - (kernel.coef0 == 0) * math.comb(
            d + kernel.degree - 1, kernel.degree - 1
        )
    if isinstance(kernel, Scaled):
        return own_size(kernel.kernel, d)
    if isinstance(kernel, On):
        return own_size(kernel.kernel, len(kernel.indices))
    if isinstance(kernel, (Sum, Product)):
        sizes = [own_size(part, d) for part in kernel.kernels]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        return sum(known) if isinstance(kernel, Sum) else math.prod(known)
    return None


@dataclass(frozen=True, eq=False)
class OwnMap:
    """phi(x) of a kernel with finitely many features: phi(x) . phi(x') = kappa(x, x'), exactly.

    Attributes
    ----------
    kernel : Kernel
    d : int
        Features of a row.
    """

    kernel: Kernel
    d: int
    takes_sparse: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """k."""
        size = own_size(self.kernel, self.d)
        assert size is not None
        return size

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """b k multiplications and less; of sparse rows one for each entry, and sparse."""
        if is_csr(X):
            return sparse_features(self.kernel, X, _own)
        xp = compat.array_namespace(X)
        return _own(self.kernel, xp.astype(X, getattr(xp, dtype), copy=False))

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The kernel says it all."""
        return {"kind": "own", "d": self.d}, {}

    def turned(self, columns: np.ndarray) -> TurnedMap:
        """Combined after they are made."""
        return TurnedMap(self, columns)


def _own(kernel: Kernel, X: Any) -> Any:
    xp = compat.array_namespace(X)
    if isinstance(kernel, Linear):
        return scaled_rows(X, None, lengthscales(kernel.lengthscale))
    if isinstance(kernel, Cosine):
        rows = scaled_rows(X, None, lengthscales(kernel.lengthscale))
        largest = xp.max(xp.abs(rows), axis=1, keepdims=True)  # squares of tiny rows would vanish
        rows = rows / xp.where(largest > 0, largest, xp.ones_like(largest))
        norms = xp.sqrt(xp.sum(rows * rows, axis=1, keepdims=True))
        return rows / xp.where(norms > 0, norms, xp.ones_like(norms))
    if isinstance(kernel, Polynomial):
        return _monomials(kernel, X)
    if isinstance(kernel, Scaled):
        return _own(kernel.kernel, X) * math.sqrt(kernel.scale)
    if isinstance(kernel, On):
        return _own(kernel.kernel, kernel.chosen(X))
    assert isinstance(kernel, (Sum, Product))
    parts = [_own(part, X) for part in kernel.kernels]
    if isinstance(kernel, Sum):
        return xp.concat(parts, axis=1)
    return reduce(_products, parts)


def _products(a: Any, b: Any) -> Any:
    """All products of an entry of each row of a (b, k) and one of b (b, l), (b, k l)."""
    shape = (a.shape[0], a.shape[1] * b.shape[1])
    return compat.array_namespace(a).reshape(a[:, :, None] * b[:, None, :], shape)


def _monomials(kernel: Polynomial, X: Any) -> Any:
    """(gamma x . x' + coef0)^p as a sum over monomials, each with the root of its coefficient.

    With z = (sqrt(gamma) x, sqrt(coef0)) it is (z . z')^p, whose monomial z^m has p! / (m_1! m_2! ..).
    """
    xp, (b, d) = compat.array_namespace(X), X.shape
    z = scaled_rows(X, None, lengthscales(kernel.lengthscale)) * math.sqrt(kernel.gamma)
    columns = [z[:, j] for j in range(d)]
    if kernel.coef0 > 0:
        columns.append(
            xp.full((b,), math.sqrt(kernel.coef0), dtype=X.dtype, device=compat.device(X))
        )
    powers: dict[tuple[int, ...], Any] = {(): xp.ones((b,), dtype=X.dtype, device=compat.device(X))}
    for degree in range(1, kernel.degree + 1):  # each from the one without its last factor
        powers = {
            m: powers[m[:-1]] * columns[m[-1]]
            for m in combinations_with_replacement(range(len(columns)), degree)
        }
    total = math.factorial(kernel.degree)
    features = [
        value * math.sqrt(total / math.prod(math.factorial(m.count(j)) for j in set(m)))
        for m, value in powers.items()
    ]
    return xp.stack(features, axis=1)


@dataclass(frozen=True, eq=False)
class CallableMap:
    """phi of the caller: a function or a torch module, rows (b, d) to features (b, k).

    Attributes
    ----------
    function : callable
    d, size : int
    """

    function: Callable[[Any], Any]
    d: int
    size: int

    def transform(self, X: Any, dtype: str = "float64") -> Any:
        """What the function gives for X, checked."""
        phi = _called(self.function, X)
        xp = compat.array_namespace(X)
        if not compat.is_array_api_obj(phi) or compat.array_namespace(phi) is not xp:
            raise TypeError(
                f"features= gives {type(phi).__name__} for {type(X).__name__}: the same is wanted"
            )
        if phi.ndim != 2 or tuple(phi.shape) != (X.shape[0], self.size):
            raise ValueError(
                f"features= gives shape {tuple(phi.shape)} for {X.shape[0]} rows, but ({X.shape[0]}, "
                f"{self.size}) is wanted"
            )
        if not bool(xp.all(xp.isfinite(phi))):
            raise ValueError("features= gives NaN or infinity")
        return xp.astype(phi, getattr(xp, dtype), copy=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Code does not go into files.

        Raises
        ------
        TypeError
        """
        raise TypeError(
            "features= is a function: it cannot be saved; use sdgpu.Nystrom, sdgpu.RandomFourier or the "
            "kernel's own features"
        )

    def turned(self, columns: np.ndarray) -> TurnedMap:
        """Combined after they are made."""
        return TurnedMap(self, columns)


def _called(function: Callable[[Any], Any], X: Any) -> Any:
    """A torch module takes and gives tensors, without gradients; others what X is."""
    if not hasattr(function, "parameters"):
        return function(X)
    import torch

    parameter = next(iter(function.parameters()), None)
    tensor = X if compat.is_torch_array(X) else torch.from_numpy(np.ascontiguousarray(X))
    if parameter is not None:
        tensor = tensor.to(dtype=parameter.dtype, device=parameter.device)
    recorded = tensor.requires_grad and torch.is_grad_enabled()
    with torch.set_grad_enabled(recorded):
        phi = function(tensor)
    phi = phi if recorded else phi.detach()
    return phi if compat.is_torch_array(X) else phi.cpu().numpy()


@dataclass(frozen=True, eq=False)
class Explicit:
    """The kernel's own features, or those of a function.

    Parameters
    ----------
    function : callable or torch module, optional
        Rows (b, d) to features (b, k), in the library of the rows; by default what the kernel has of its
        own.

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> kernel = sdgpu.Polynomial(2) + 0.5 * sdgpu.Cosine()
    >>> X = np.random.default_rng(0).normal(size=(6, 3))
    >>> phi = Explicit().prepare(kernel, None, 3, 0).transform(X)
    >>> phi.shape, bool(np.allclose(phi @ phi.T, kernel(X)))
    ((6, 13), True)
    """

    function: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.function is not None and not callable(self.function):
            raise TypeError(f"function={self.function!r} must be callable: rows (b, d) to (b, k)")

    @property
    def takes_sparse(self) -> bool:
        """Whether rows may be sparse: of a kernel's own features."""
        return self.function is None

    @property
    def sample_rows(self) -> int:
        """None: a row of ones shows how many features a function gives."""
        return 0

    def prepare(
        self, kernel: Kernel, sample: np.ndarray | None, d: int, seed: int
    ) -> OwnMap | CallableMap:
        """Count the features.

        Raises
        ------
        ValueError
            For a kernel without finitely many, or with more than 20,000.
        """
        if self.function is not None:
            phi = _called(self.function, np.ones((1, d)))
            if getattr(phi, "ndim", 0) != 2 or phi.shape[0] != 1 or phi.shape[1] < 1:
                shape = tuple(getattr(phi, "shape", ()))
                raise ValueError(f"features= gives shape {shape} for one row: (1, k) is wanted")
            return CallableMap(self.function, d, int(phi.shape[1]))
        size = own_size(kernel, d)
        if size is None:
            raise ValueError(
                f"{kernel!r} has no finite number of features of its own: use sdgpu.Nystrom or "
                "sdgpu.RandomFourier"
            )
        if size > MOST:
            raise ValueError(
                f"{kernel!r} has {size:,} features of its own for rows of {d}, more than {MOST:,}: use "
                "sdgpu.Nystrom"
            )
        return OwnMap(kernel, d)
