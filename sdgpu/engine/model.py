"""What predictions need of a fit: the kernel between rows, where to compute, and how to give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import Template
from sdgpu.backend.backends import Backend, NumpyBackend, TorchBackend, give_back, rows_on, to_numpy
from sdgpu.backend.common_checks import together
from sdgpu.backend.conversion import is_followed
from sdgpu.backend.memory import require
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.rows import RowSource
from sdgpu.backend.scaling import unit
from sdgpu.backend.sharded_arrays import RowLayout
from sdgpu.distill.filters import flat_product
from sdgpu.kernels.derivatives import require_finite
from sdgpu.operators.slopes import slopes_of
from sdgpu.operators.weighted_rows import RowWeighting

__all__ = ["Model"]


@dataclass(frozen=True, eq=False)
class Model:
    """What predictions need: the kernel between rows, where to compute, and how to give back.

    Attributes
    ----------
    operator : Operator or FeatureOperator
        Of weighted rows a :class:`~sdgpu.operators.weighted_rows.WeightedOperator`, and `weighting` theirs.
    backend : Backend
    template : Template
    memory : int
        Bytes.
    offset : array (c,) or None
        Added to all predictions: the intercept.
    source : RowSource or None
        The training rows, where they can be read again.
    weighting : RowWeighting or None
        What lies between the rows and the problem that was solved.
    folds : FoldFits or None
        What makes the fit again without some of its rows (:mod:`sdgpu.engine.cross_intervals`).
    ranks : Ranks or None
        Those whose rows were fitted together.
    """

    operator: Any
    backend: Backend
    template: Template
    memory: int
    offset: Any = None
    source: RowSource | None = None
    weighting: RowWeighting | None = None
    folds: Any = field(default=None, repr=False)
    ranks: Ranks | None = None

    @property
    def layout(self) -> RowLayout | None:
        """Which training rows are on which rank; None where all are here."""
        return getattr(self.operator, "layout", None)

    def checked_together(self, check: Callable[[], Any]) -> Any:
        """What a check gives; where there are ranks it fails on all or on none."""
        return check() if self.layout is None else together(self.layout.ranks, check)

    def refuse_ranks(self, what: str, remedy: str = "fit on one rank") -> None:
        """Raise ValueError if the rows are on several ranks."""
        if self.ranks is not None:
            raise ValueError(
                f"{what} of a fit with distributed= or several devices: not there; {remedy}"
            )

    def alone(self, dual: Any) -> tuple[Model, Any]:
        """The model and dual coefficients (n, c) of one function, with all rows here: a copy.

        All ranks call where there are several; afterwards each can predict by itself.
        """
        model = self.without_targets()
        if self.layout is None:
            return model, self.backend.xp.asarray(dual, copy=True)
        ranks, operator = self.layout.ranks, self.operator
        if (
            self.weighting is not None
        ):  # as a function of the rows themselves, which need no weights
            offset = -operator.mean_part(dual)
            offset = offset if self.offset is None else self.offset + offset
            model = replace(model, offset=offset, weighting=None)
            operator, dual = operator.operator, self.weighting.coefficients(dual)
        operator = operator.gathered()
        whole = ranks.gather_rows(dual.local.contiguous()) if ranks.size > 1 else dual.local
        if str(whole.device) == "cpu":  # as a fit on the CPU has them
            host, backend = to_numpy(operator.X), NumpyBackend()
            operator, whole = replace(operator, X=host), np.array(to_numpy(whole))
            offset = None if model.offset is None else to_numpy(model.offset)
            return replace(model, operator=operator, backend=backend, offset=offset), whole
        return replace(model, operator=operator, backend=TorchBackend(whole.device)), whole

    def without_targets(self) -> Model:
        """The same without what would fit again: all that predictions need."""
        return replace(self, source=None, folds=None, ranks=None)

    def row_coefficients(self, dual: Any) -> Any:
        """Coefficients of the rows themselves (.., n, c), which predict with kappa(x, X) less its mean."""
        return dual if self.weighting is None else self.weighting.coefficients(dual)

    def row_values(self, values: Any, dual: Any) -> Any:
        """Values at the rows themselves (.., n, c); what rows of weight 0 have, `dual` predicts."""
        if self.weighting is not None:
            values = self.weighting.values(values)
            if len(self.weighting.absent):
                absent = self.weighting.absent
                there = self.operator.at_rows(absent, dual())
                values = self.backend.xp.asarray(values, copy=True)
                here, own = self.backend.rows_here(self.operator.n), self.backend.own(values)
                for number, row in enumerate(map(int, absent)):
                    if here.start <= row < here.stop:
                        own[..., row - here.start, :] = there[..., number, :]
        return values if self.offset is None else values + self.offset

    def share_of(self, numbers: int) -> int:
        """Of numbers that grow with the training rows those of the rank with most rows."""
        layout = self.layout
        return numbers if layout is None else -(-numbers * max(layout.counts) // layout.n)

    def afford(self, numbers: int, what: str) -> None:
        """Raise MemoryError if a result of so many float64 numbers, and a copy, are too much."""
        require(16 * numbers, self.memory, what, "ask for fewer steps, rows or outputs at once")

    def on_device(self, rows: Any) -> Any:
        """Checked rows where features or kernel values are made of them."""
        return rows_on(self.backend, rows)

    @underflow_is_zero
    def predict(self, dual: Any, X_new: Any) -> Any:
        """kappa(X_new, X) dual: dual (..., n, c) -> (..., m, c), in the caller's library.

        Of a tensor that requires a gradient a tensor with a graph, of first order.
        """
        rows = self.checked_together(
            lambda: self.template.rows(_detached(X_new), "X_new", self.operator.d, empty=True)
        )
        columns = int(np.prod(dual.shape)) // self.operator.n
        self.afford(int(rows.shape[0]) * columns, f"a prediction of {rows.shape[0]:,} rows")
        values = _product(self.operator.cross(self.on_device(rows)), dual, self.backend)
        values = values if self.offset is None else values + self.offset
        result = give_back(self.template, values)
        return self._with_graph(result, dual, X_new) if is_followed(X_new) else result

    def gradient(self, dual: Any, X_new: Any) -> Any:
        """Derivatives of the same by the rows: dual (..., n, c) -> (..., m, c, d)."""
        rows = self.template.rows(_detached(X_new), "X_new", self.operator.d, empty=True)
        if self.layout is not None:
            self.refuse_ranks("derivatives of predictions", "take path.predictor()")
        *lead, _, c = dual.shape
        columns, (m, d) = c * int(np.prod(lead, dtype=int)), (int(size) for size in rows.shape)
        self.afford(m * columns * d, f"derivatives at {m:,} rows by {d:,} features")
        slopes = slopes_of(self.operator, self.on_device(rows))
        columns, size = _as_columns(dual)
        values = require_finite(size * slopes.columns(columns), "the prediction")  # (m, .. c, d)
        values = values.reshape(m, *lead, c, d).movedim(0, -3)
        values = values[..., 0, :] if self.template.flat else values
        return give_back(self.template, values, axis=False)

    def _with_graph(self, result: Any, dual: Any, X_new: Any) -> Any:
        """The result, which torch may differentiate by X_new."""
        from sdgpu.engine.differentiable import attached

        slopes = slopes_of(self.operator, self.backend.asarray(X_new.detach()))
        return attached(X_new, result, slopes, _as_columns(dual), flat=self.template.flat)


def _detached(X_new: Any) -> Any:
    return X_new.detach() if getattr(X_new, "requires_grad", False) else X_new


def _as_columns(dual: Any) -> tuple[Any, float]:
    """(..., n, c) as columns (n, .. c) over a power of two, which keeps sums of huge ones in range."""
    xp = compat.array_namespace(dual)
    size = unit(float(xp.max(xp.abs(dual))) if compat.size(dual) else 1.0)
    return xp.reshape(xp.moveaxis(dual / size, -2, 0), (dual.shape[-2], -1)), size


def _product(cross: Any, dual: Any, backend: Backend) -> Any:
    """kappa(X_new, X) dual, by smaller numbers where partial sums overflow though the sum does not."""
    xp = compat.array_namespace(dual)
    with np.errstate(over="ignore", invalid="ignore"):
        product = flat_product(cross, dual)
    finite = xp.isfinite(product)
    if backend.everywhere(xp.all(finite)) or not bool(xp.all(xp.isfinite(dual))):
        return product
    return xp.where(finite, product, flat_product(cross, dual * 2.0**-200) * 2.0**200)
