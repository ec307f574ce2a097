"""Training data whose rows are on several ranks, on their way to a solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdgpu.backend.backends import Backend, TorchBackend
from sdgpu.backend.common_checks import together
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.sharded_arrays import RowLayout, ShardedArray
from sdgpu.engine.planner import Plan
from sdgpu.engine.training_data import TrainingData, check_largest_weight, row_weights
from sdgpu.operators import ShardedOperator
from sdgpu.operators.weighted_rows import RowWeighting, WeightedDense, WeightedOperator

__all__ = ["RankData", "weighting_of_ranks"]


@dataclass(frozen=True, eq=False)
class RankData(TrainingData):
    """X and Y as sharded arrays, with K as a plan wants to hold it on each rank.

    Attributes
    ----------
    travel : {"gather", "ring", "copies"}
        How rows come to other ranks.
    copies : int
        Of the rows of a team, for "copies".
    """

    travel: str = "gather"
    copies: int = 1
    _sharded: dict[str, ShardedOperator] = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """Those that have the rows."""
        return self.X.layout.ranks

    def dense(self, backend: Backend) -> Any:
        """K in float64, for columns and the diagonal: it is not held.

        With an intercept one product is made with it, the mean of every column.
        """
        weighting = self.weighting
        if "exact" not in self._sharded:
            travel = "ring" if weighting is None or not weighting.intercept else self.travel
            how: dict[str, Any] = {"precision": "float64", "travel": travel, "copies": self.copies}
            self._sharded["exact"] = ShardedOperator(self.kernel, self.X, **how)
        K: Any = self._sharded["exact"]
        return K if weighting is None else WeightedDense(K, weighting, backend, self._means)

    def hold(self, plan: Plan, backend: Backend, *, keep: bool = False) -> Any:
        """K for products, each rank with its share of the tiles."""
        name = f"{plan.precision}, {keep}"
        if name not in self._sharded:
            known = next(
                (K.gathered_rows for K in self._sharded.values() if K.travel == "gather"), None
            )
            self._sharded[name] = ShardedOperator(
                self.kernel,
                self.X,
                precision=plan.precision,
                travel=self.travel,
                copies=self.copies,
                keep=keep and self.travel == "gather",
                workers=plan.threads,
                everything=known,
            )
        found = self._sharded[name]
        if keep:  # the tiles are the solver's: the fit itself need not hold them
            del self._sharded[name]
        if self.weighting is None:
            return found
        return WeightedOperator(found, self.weighting, backend, self._means, plan.precision)


def weighting_of_ranks(
    sample_weight: Any, layout: RowLayout, inner: TorchBackend, *, intercept: bool
) -> RowWeighting | None:
    """Weights of the own rows beside those of others, and whether an intercept is fitted; None for neither.

    Raises
    ------
    TypeError, ValueError
        On all ranks: as :func:`~sdgpu.engine.training_data.row_weighting`, and where some have none.
    """
    ranks = layout.ranks
    ranks.agree("sample_weight (given or not)", sample_weight is not None)
    if sample_weight is None and not intercept:
        return None
    own = layout.counts[ranks.rank]
    weights = together(ranks, lambda: row_weights(sample_weight, own, inner))
    if sample_weight is not None:
        largest = float(weights.max()) if own else 0.0
        check_largest_weight(max(ranks.gather(largest)))
    return RowWeighting(ShardedArray(weights.sqrt(), 0, layout), intercept)
