"""The units in which a grown basis works: K near 1, and every target near 1.

(s K + s lam) (u W / s) = u Y: with s and u powers of two nothing is rounded, squares of residuals neither
overflow nor vanish, and a small output beside a large one is solved as well as that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.scaling import column_units, unit
from sdgpu.operators.operator import ChangedOperator, Operator

__all__ = ["Rescaled", "Units", "refuse_underflow"]

LEAST = 1e-30  # a diagonal of K that leaves float32 room for entries of 1e-8 of it
PLAIN = 1e15  # float32 sketches hold the squares of K within this, and its reciprocal, as it is


@dataclass(frozen=True, eq=False)
class Units:
    """What K and the targets are divided by.

    Attributes
    ----------
    kernel : float
        1 where the diagonal of K lies between 1e-15 and 1e15.
    targets : array (c,)
        For each output.
    """

    kernel: float
    targets: np.ndarray

    @classmethod
    def of(cls, operator: Operator, Y: Any) -> Units:
        """The units of K and Y (n, c).

        Raises
        ------
        ValueError
            If the diagonal of K is not finite.
        """
        diagonal = operator.diag()
        xp = compat.array_namespace(diagonal)
        largest = float(xp.max(diagonal))
        if not np.isfinite(largest):
            raise ValueError(
                "the kernel overflows on these data in the dtype in which it is evaluated: rescale X or "
                "the parameters of the kernel, or use dtype='float64'"
            )
        plain = not largest > 0 or 1 / PLAIN < largest < PLAIN
        return cls(1.0 if plain else unit(largest), column_units(Y))

    def scaled(self, operator: Operator) -> Operator:
        """K in these units."""
        return operator if self.kernel == 1 else Rescaled(operator, self.kernel)


@dataclass(frozen=True, eq=False)
class Rescaled(ChangedOperator):
    """K / unit of another operator."""

    operator: Operator
    unit: float

    def matmat(self, V: Any) -> Any:
        """K V / unit: (n, c) -> (n, c)."""
        return self.operator.matmat(V) / self.unit

    def cross(self, X_new: Any) -> Any:
        """Not in these units: predictions are made outside of a solver."""
        return self.operator.cross(X_new)

    def diag(self) -> Any:
        """Diagonal of K / unit, (n,)."""
        return self.operator.diag() / self.unit

    def columns(self, idx: Any) -> Any:
        """Columns of K / unit, (n, len(idx))."""
        return self.operator.columns(idx) / self.unit


def refuse_underflow(operator: Operator) -> None:
    """Raise ValueError if float32 cannot hold the entries of K, by its diagonal in float64."""
    diagonal = operator.diag()
    largest = float(compat.array_namespace(diagonal).max(diagonal))
    if 0 < largest < LEAST:
        raise ValueError(
            f"the values of the kernel on these data, up to {largest:.1e}, underflow in float32: rescale "
            "X or the parameters of the kernel, or use dtype='float64'"
        )
