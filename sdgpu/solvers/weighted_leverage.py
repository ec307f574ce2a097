"""Leverages of rows with weights and an intercept, from those of the matrix A that was decomposed.

The intercept adds q q' to every power of the smoother H of A (:mod:`sdgpu.operators.weighted_rows`): it
reproduces the direction q whatever lam is, one degree of freedom more. Rows of weight 0 are no rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.leverage import Diagonals, Leverages

__all__ = ["RowsWithWeights", "WeightedLeverages"]

LEAST = 1e-14  # of 1 - H_ii: below it a row determines itself


class RowsWithWeights:
    """What a solution says of its rows, with weights or without."""

    weighting: RowWeighting | None

    @property
    def rows(self) -> int:
        """n."""
        raise NotImplementedError

    @property
    def counted(self) -> int:
        """Rows with a weight > 0."""
        return self.rows - (0 if self.weighting is None else len(self.weighting.absent))

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.rows) if self.weighting is None else self.weighting.total


@dataclass(frozen=True, eq=False)
class WeightedLeverages:
    """Diagonals and traces with the intercept, without rows of weight 0.

    Attributes
    ----------
    base : Leverages
        Of A.
    rows : RowWeighting
        In the library of the base.
    """

    base: Leverages
    rows: RowWeighting

    @property
    def exact(self) -> bool:
        """As the base."""
        return self.base.exact

    @property
    def unpenalised(self) -> int:
        """1 with an intercept."""
        return int(self.rows.intercept)

    @property
    def copies(self) -> int:
        """As the base."""
        return self.base.copies

    def numbers(self, n: int, steps: int) -> int:
        """Numbers that the diagonals of one lam need at the peak."""
        return self.base.numbers(n, steps) + n * (steps + 2)

    def trace_numbers(self, n: int) -> int:
        """The same for traces alone."""
        return self.base.trace_numbers(n)

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """With q_i^2 in every power but the identity."""
        mean, replicates = self.base.diagonals(lams, steps)
        return self._with_mean(mean), [self._with_mean(one) for one in replicates]

    def rests(self, lams: np.ndarray) -> Any:
        """1 - H_ii - q_i^2, (L, n, 1)."""
        return self._rest(self.base.rests(lams))

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """With one more for the intercept."""
        return self.base.traces(lams, steps) + self.unpenalised

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Without the intercept and rows of weight 0, which (1 - H) holds and (1 - H) H does not."""
        complements = self.base.complements(lams, steps).copy()
        complements[..., 0] -= self.unpenalised + len(self.rows.absent)
        return complements

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """As the base."""
        return self.base.bias(lams, steps)

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """As the base."""
        return self.base.scatter(lams)

    def _with_mean(self, diagonals: Diagonals) -> Diagonals:
        if not self.rows.intercept:
            return diagonals
        xp = compat.array_namespace(diagonals.powers)
        share = (self.rows.unit * self.rows.unit)[:, None]
        identity, powers = diagonals.powers[:, :1, ...], diagonals.powers[:, 1:, ...]
        return Diagonals(xp.concat([identity, powers + share], axis=1), self._rest(diagonals.rest))

    def _rest(self, rest: Any) -> Any:
        """Refuses rows that determine themselves.

        Raises
        ------
        ValueError
        """
        if not self.rows.intercept:
            return rest
        xp = compat.array_namespace(rest)
        left = rest - (self.rows.unit * self.rows.unit)[:, None]
        if not self.exact:  # estimates may be beyond it
            return xp.where(left > LEAST, left, 0.5 * rest)
        if not float(xp.min(left)) > LEAST:
            row = int(xp.argmin(left)) % int(left.shape[1])
            raise ValueError(
                f"row {row} determines itself (leverage 1): without it nothing is known of it; raise lam "
                "or remove the row"
            )
        return left
