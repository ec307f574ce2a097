"""A predictor in plain torch: the profiles of the kernels on tensors, numbers in buffers, nothing checked.

Profiles are written with operators that lazy tensors of KeOps have too. Here a thin shell of a tensor takes
their place, so that no formula is written twice, and torch sees nothing but its own operations: it can
export, compile and differentiate them, twice if that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sdgpu.backend.memory import budget, require
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.kernels import Kernel
from sdgpu.kernels.augmented_rows import Rows
from sdgpu.kernels.columns import part_columns
from sdgpu.kernels.coordinate_sums import TERMS
from sdgpu.kernels.kernel import Profile
from sdgpu.operators.expansion import Expansion

__all__ = ["PredictorModule", "module_of"]


class PredictorModule(torch.nn.Module):
    """f(x) = values(x) coefficients + constant, made by :meth:`sdgpu.Predictor.module`.

    Attributes
    ----------
    coefficients, constant : buffer
    values : torch.nn.Module
        Kernel values (m, n) or features (m, k) of rows (m, d).
    flat : bool
        Whether the axis of outputs is dropped.
    """

    coefficients: torch.Tensor
    constant: torch.Tensor

    def __init__(self, values: torch.nn.Module, coefficients: Any, constant: Any, *, flat: bool):
        super().__init__()
        self.values, self.flat = values, flat
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("constant", constant)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Predictions (m, c), or (m,)."""
        values = self.values(X) @ self.coefficients + self.constant
        return values[:, 0] if self.flat else values

    def gradient(self, X: torch.Tensor) -> torch.Tensor:
        """Derivatives (m, c, d), or (m, d)."""
        with torch.enable_grad():
            rows = X.detach().clone().requires_grad_()
            columns = self(rows).reshape(len(X), -1)
            parts = [
                torch.autograd.grad(column.sum(), rows, retain_graph=True)[0]
                for column in columns.T
            ]
        return parts[0] if self.flat else torch.stack(parts, dim=1)


def module_of(expansion: Expansion, dtype: str, *, flat: bool) -> PredictorModule:
    """The module of a function; parameters and errors as :meth:`sdgpu.Predictor.module`."""
    kind = getattr(torch, dtype)

    def tensor(array: Any) -> torch.Tensor:
        found = torch.tensor(np.asarray(array), dtype=torch.float64).to(kind)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"numbers leave {dtype}: rescale the data, or take dtype='float64'")
        return found

    coefficients, features = expansion.coefficients, expansion.map
    values: torch.nn.Module
    if features is None:
        assert expansion.kernel is not None
        values = _KernelValues(expansion.kernel, _dense(expansion.X), tensor)
    elif hasattr(features, "landmarks"):  # values of the landmarks, whose whitening joins the rest
        values = _KernelValues(features.kernel, features.landmarks, tensor)  # type: ignore[attr-defined]
        coefficients = features.whitening @ coefficients  # type: ignore[attr-defined]
    elif hasattr(features, "frequencies"):
        values = _FourierFeatures(tensor(features.frequencies), features.scale)  # type: ignore[attr-defined]
    else:
        values = _MapFeatures(features)
    return PredictorModule(values, tensor(coefficients), tensor(expansion.constant), flat=flat)


def _dense(X: Any) -> Any:
    """Rows for buffers: sparse ones become dense, if they fit."""
    if not is_csr(X):
        return X
    n, d = X.shape
    what, remedy = (
        f"a module with {n:,} dense rows of {d:,} features",
        "save or pickle the predictor",
    )
    require(24 * n * d, budget(None, "cpu"), what, remedy)
    return X.toarray()


class _KernelValues(torch.nn.Module):
    """kappa(x, X) of rows in buffers."""

    centre: torch.Tensor

    def __init__(self, kernel: Kernel, X: Any, tensor: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        rows = torch.tensor(X, dtype=torch.float64)
        centre = rows.mean(dim=0)
        self.kernel = kernel
        self.register_buffer("centre", tensor(centre))
        self._tree = _bare(kernel.rows(rows, centre))
        self._columns = part_columns(kernel, tuple(range(int(rows.shape[1]))))
        count = 0

        def keep(part: Any, _: Rows) -> _Shell:
            nonlocal count
            spline, seen = hasattr(part, "between"), list(self._columns[count])
            values, norms = rows[:, seen], None
            if not spline:
                values, norms = part.coordinates(values, centre[seen])
            if not spline and part.exact_opposite and values.shape[1] == 1:
                raise ValueError(
                    f"rows of one feature are parallel or opposite, where {part!r} loses half of its "
                    "digits in plain torch: use predict"
                )
            self.register_buffer(f"rows_{count}", tensor(values))
            self.register_buffer(f"squares_{count}", None if norms is None else tensor(norms))
            count += 1
            return _Shell(torch.ones(()))

        try:
            kernel.symbolic(keep, self._tree)
        except TypeError as error:
            raise TypeError(
                f"{error} in plain torch: use predict, which torch follows as far as it can"
            ) from error

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        numbers = iter(range(len(self._buffers)))

        def leaf(part: Any, _: Rows) -> _Shell:
            number = next(numbers)
            rows, squares = (getattr(self, f"{name}_{number}") for name in ("rows", "squares"))
            seen = list(self._columns[number])
            own = X[:, seen]
            if hasattr(part, "between"):
                return _Shell(part.between(torch.minimum(own, rows.T), torch.maximum(own, rows.T)))
            values, norms = part.coordinates(own, self.centre[seen])
            statistic = _statistic(part, values, rows)
            if norms is None:
                return part.profile(_Shell(statistic), None, None)
            p, q = norms[:, None], squares[None, :]
            if not part.defined_at_zero:  # a row of zeros has a right angle to all
                right = torch.full_like(statistic, 2.0)
                statistic = torch.where((p == 0) | (q == 0), right, statistic)
            return part.profile(_Shell(statistic), _Shell(p), _Shell(q))

        found: Any = self.kernel.symbolic(leaf, self._tree)
        return found.tensor


class _FourierFeatures(torch.nn.Module):
    """scale sqrt(2 / k) [cos(W x), sin(W x)]."""

    frequencies: torch.Tensor

    def __init__(self, frequencies: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", frequencies)
        self.scale = float(scale * np.sqrt(1.0 / len(frequencies)))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        angles = X @ self.frequencies.T
        return self.scale * torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class _MapFeatures(torch.nn.Module):
    """Features of a map that works on tensors: a kernel's own, or a function of the caller's."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features
        function = getattr(features, "function", None)
        self.function = function if isinstance(function, torch.nn.Module) else None

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        if self.function is not None:
            return self.function(X)
        return self.features.transform(X, str(X.dtype).split(".")[-1])


def _bare(rows: Rows) -> Rows:
    """The shape of a tree of rows: what belongs to which kernel."""
    return Rows(None, None, parts=tuple(map(_bare, rows.parts)))


def _statistic(kernel: Profile, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The statistic of all pairs, from differences where a kernel has a kink."""
    if kernel.statistic in TERMS:
        return TERMS[kernel.statistic](a[:, None, :], b[None, :, :]).sum(dim=-1)
    if not kernel.distance:
        return a @ b.T
    if kernel.exact_near:
        return kernel.sign * (a[:, None, :] - b[None, :, :]).square().sum(dim=-1)
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :] - 2 * a @ b.T
    return kernel.sign * squares


class _Shell:
    """A tensor with the methods that profiles ask of lazy tensors, smooth where they would give NaN."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __add__(self, other: Any) -> _Shell:
        return _Shell(self.tensor + _inner(other))

    def __sub__(self, other: Any) -> _Shell:
        return _Shell(self.tensor - _inner(other))

    def __rsub__(self, other: Any) -> _Shell:
        return _Shell(_inner(other) - self.tensor)

    def __mul__(self, other: Any) -> _Shell:
        return _Shell(self.tensor * _inner(other))

    def __truediv__(self, other: Any) -> _Shell:
        return _Shell(self.tensor / _inner(other))

    def __rtruediv__(self, other: Any) -> _Shell:
        return _Shell(_inner(other) / self.tensor)

    def __pow__(self, exponent: float) -> _Shell:
        return _Shell(self.tensor**exponent)

    def __neg__(self) -> _Shell:
        return _Shell(-self.tensor)

    __radd__, __rmul__ = __add__, __mul__

    def sqrt(self) -> _Shell:
        """0 at 0, and so is its derivative."""
        positive = self.tensor > 0
        root = torch.where(positive, self.tensor, torch.ones_like(self.tensor)).sqrt()
        return _Shell(torch.where(positive, root, torch.zeros_like(root)))

    def clamp(self, low: float, high: float) -> _Shell:
        """To [low, high]."""
        return _Shell(self.tensor.clamp(low, high))

    def ifelse(self, value: Any, other: Any) -> _Shell:
        """`value` where it is >= 0, else `other`."""
        return _Shell(torch.where(self.tensor >= 0, _inner(value), _inner(other)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    def asin(self) -> _Shell:
        """Of numbers up to 1."""
        return _Shell(torch.asin(self.tensor))

    def atan2(self, other: _Shell) -> _Shell:
        """Angle of (other, self)."""
        return _Shell(torch.atan2(self.tensor, other.tensor))

    def __getattr__(self, name: str) -> Callable[[], _Shell]:
        if name not in ("exp", "log", "sin", "cos", "relu", "abs"):
            raise AttributeError(name)
        return lambda: _Shell(getattr(self.tensor, name)())


def _inner(value: Any) -> Any:
    return value.tensor if isinstance(value, _Shell) else value
