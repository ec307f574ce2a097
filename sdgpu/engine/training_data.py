"""Checked data on their way to a solver, with K as a plan wants to hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import array_api_compat as compat

from sdgpu.backend.arrays import dtype_name, may_share
from sdgpu.backend.backends import Backend
from sdgpu.backend.conversion import rounded_to
from sdgpu.backend.copying import without_caches
from sdgpu.distill.rounding_bounds import backward_error
from sdgpu.engine.planner import EXACT_METHODS, Plan
from sdgpu.kernels import Kernel
from sdgpu.kernels.precomputed import NEGATIVE
from sdgpu.operators import DenseOperator, KeOpsOperator, Operator, TiledOperator
from sdgpu.solvers.units import Units

__all__ = ["OperatorRemade", "TrainingData", "own_memory", "rounding_noise", "value_precision"]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Checked data on their way to a solver."""

    kernel: Kernel
    X: Any
    Y: Any
    dtype: str  # in which X came, or in which the caller's kernel was made
    home: Backend
    make: Callable[[Kernel, Any], Operator] | None = None  # an operator from elsewhere
    _operators: dict[str, DenseOperator] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_operators": {}}

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    def dense(self, backend: Backend) -> DenseOperator:
        """K as an operator in the library of a backend, made and checked once for each."""
        if backend.name not in self._operators:
            X = backend.asarray(self.X)
            self._operators[backend.name] = DenseOperator(
                self.kernel, X, backend.tile, self.dtype, checked=True
            )
        return self._operators[backend.name]

    def hold(self, plan: Plan, backend: Backend, *, keep: bool = False) -> Operator:
        """K as the plan wants to hold it."""
        dense = self.dense(backend)
        if self.make is not None:
            return self.make(dense.kernel, dense.X)
        if plan.operator == "keops":
            return KeOpsOperator(dense.kernel, dense.X, plan.precision)
        if dense.is_precomputed or plan.method in EXACT_METHODS:
            return dense
        # a stored K for products alone is half of its tiles, in the precision that was asked for
        return TiledOperator(
            dense.kernel, dense.X, plan.precision, keep=keep, workers=plan.threads, checked=True
        )


@dataclass(frozen=True, eq=False)
class OperatorRemade:
    """Makes K as an operator when it is needed after the fit; a closure could not be pickled."""

    plan: Plan
    data: TrainingData
    backend: Backend
    units: Units

    def __call__(self) -> Any:
        keep = self.plan.operator == "dense"
        return self.units.scaled(self.data.hold(self.plan, self.backend, keep=keep))


def rounding_noise(dense: DenseOperator) -> float:
    """Relative backward error of K and of what is done with it, in float64."""
    return backward_error(dense.n, dense.rounding())


def value_precision(kernel: Kernel, X: Any, rows: Any, backend: Backend) -> str:
    """The precision in which kernel values are known: that of a kernel that the caller made."""
    if kernel.is_precomputed:
        return rounded_to(X) or dtype_name(rows)
    first_row = backend.asarray(rows[:1, ...])
    return min(kernel.value_dtype(first_row), dtype_name(rows), key=list(reversed(NEGATIVE)).index)


def own_memory(array: Any, source: Any, kernel: Kernel) -> Any:
    """A copy if the array is the caller's own memory: later changes there must not change a fit.

    A precomputed K is only read while it is decomposed, so it is not copied.
    """
    if kernel.is_precomputed or not may_share(array, source):
        return array
    return compat.array_namespace(array).asarray(array, copy=True)
