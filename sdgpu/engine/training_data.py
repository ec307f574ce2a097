"""Checked data on their way to a solver, with K as a plan wants to hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import array_api_compat as compat

from sdgpu.backend.arrays import dtype_name, may_share, targets
from sdgpu.backend.backends import Backend, rows_on
from sdgpu.backend.conversion import rounded_to, warn_if_followed
from sdgpu.backend.copying import without_caches
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.distill.rounding_bounds import backward_error
from sdgpu.engine.planner import EXACT_METHODS, Plan
from sdgpu.kernels import Kernel
from sdgpu.kernels.precomputed import NEGATIVE
from sdgpu.operators import DenseOperator, KeOpsOperator, Operator, TiledOperator
from sdgpu.operators.operator import MatrixOperator
from sdgpu.operators.weighted_rows import RowWeighting, WeightedDense, WeightedOperator
from sdgpu.solvers.units import Units

__all__ = [
    "OperatorRemade",
    "TrainingData",
    "check_largest_weight",
    "own_memory",
    "rounding_noise",
    "row_weighting",
    "row_weights",
    "value_precision",
]


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Checked data on their way to a solver."""

    kernel: Kernel
    X: Any
    Y: Any
    dtype: str  # in which X came, or in which the caller's kernel was made
    home: Backend
    make: Callable[[Kernel, Any], Operator] | None = None  # an operator from elsewhere
    weighting: RowWeighting | None = None  # Y is that of the weighted rows then, less the offset
    offset: Any = None  # (c,)
    _means: dict[str, Any] = field(default_factory=dict)  # of weighted rows, by precision
    _operators: dict[str, MatrixOperator] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_operators": {}}

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.X.shape[0])

    def dense(self, backend: Backend) -> MatrixOperator:
        """K as an operator in the library of a backend, made and checked once for each.

        With weights or an intercept that of :mod:`sdgpu.operators.weighted_rows`.
        """
        if backend.name not in self._operators:
            X = rows_on(backend, self.X)
            K: MatrixOperator = DenseOperator(
                self.kernel, X, backend.tile, self.dtype, checked=True, home=backend
            )
            if self.weighting is not None:
                K = WeightedDense(K, self.weighting.on(backend), backend, self._means)
            self._operators[backend.name] = K
        return self._operators[backend.name]

    def hold(self, plan: Plan, backend: Backend, *, keep: bool = False) -> Operator:
        """The same as the plan wants to hold it."""
        dense = self.dense(backend)
        as_planned = dense.is_precomputed or plan.method in EXACT_METHODS
        if self.make is None and plan.operator != "keops" and as_planned:
            return dense
        K: Operator
        if self.make is not None:
            K = self.make(dense.kernel, dense.X)
        elif plan.operator == "keops":
            K = KeOpsOperator(dense.kernel, dense.X, plan.precision)
        else:  # a stored K for products alone is half of its tiles, in the precision that was asked for
            how: dict[str, Any] = {"keep": keep, "workers": plan.threads, "checked": True}
            how["home"] = backend
            K = TiledOperator(dense.kernel, dense.X, plan.precision, **how)
        if self.weighting is None:
            return K
        rows = self.weighting.on(backend)
        return WeightedOperator(K, rows, backend, self._means, plan.precision)


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


def rounding_noise(dense: MatrixOperator) -> float:
    """Relative backward error of K and of what is done with it, in float64."""
    return backward_error(dense.n, dense.rounding())


def row_weighting(
    sample_weight: Any, X: Any, backend: Backend, *, intercept: bool
) -> RowWeighting | None:
    """Weights of the rows, checked, and whether an intercept is fitted; None for neither.

    Raises
    ------
    TypeError, ValueError
        For weights that are no numbers (n,), negative, not finite, or all 0.
    """
    if sample_weight is None and not intercept:
        return None
    weights = row_weights(sample_weight, int(X.shape[0]), backend)
    if sample_weight is not None:
        check_largest_weight(float(backend.xp.max(weights)))
    return RowWeighting(backend.xp.sqrt(weights), intercept)


def row_weights(sample_weight: Any, n: int, backend: Backend) -> Any:
    """Weights (n,) >= 0 on the device, 1 if none are given; of the rows of one rank, too: n may be 0.

    Raises
    ------
    TypeError, ValueError
        For weights that are no finite numbers (n,), or negative.
    """
    xp = backend.xp
    if sample_weight is None:
        return xp.ones(n, dtype=xp.float64, device=backend.device)
    warn_if_followed(sample_weight=sample_weight)
    weights = backend.asarray(targets(sample_weight, "sample_weight", rows=n, outputs=1)[0])[:, 0]
    smallest = float(xp.min(weights)) if n else 0.0
    if smallest < 0:
        raise ValueError(
            f"sample_weight has {smallest:g} at row {int(xp.argmin(weights))}: weights must be >= 0"
        )
    return weights


def check_largest_weight(largest: float) -> None:
    """Refuse weights of which the largest is 0, or leaves float64 when it is squared.

    Raises
    ------
    ValueError
    """
    if not largest > 0:
        raise ValueError("sample_weight is 0 for all rows: nothing would be fitted")
    if not 1e-150 < largest < 1e150:
        raise ValueError(
            f"sample_weight up to {largest:.0e}: divide the weights, and lam, by a number that brings them "
            "near 1"
        )


def value_precision(kernel: Kernel, X: Any, rows: Any, backend: Backend) -> str:
    """The precision in which kernel values are known: that of a kernel that the caller made."""
    if kernel.is_precomputed:
        return rounded_to(X) or dtype_name(rows)
    first_row = backend.asarray(rows[:1].toarray() if is_csr(rows) else rows[:1, ...])
    return min(kernel.value_dtype(first_row), dtype_name(rows), key=list(reversed(NEGATIVE)).index)


def own_memory(array: Any, source: Any, kernel: Kernel) -> Any:
    """A copy if the array is the caller's own memory: later changes there must not change a fit.

    A precomputed K is only read while it is decomposed, so it is not copied.
    """
    if is_csr(array):
        return array.copy()
    if kernel.is_precomputed or not may_share(array, source):
        return array
    return compat.array_namespace(array).asarray(array, copy=True)
