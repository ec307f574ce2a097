"""Training data whose rows are on several ranks, on their way to a solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sdgpu.backend.backends import Backend
from sdgpu.backend.ranks import Ranks
from sdgpu.engine.planner import Plan
from sdgpu.engine.training_data import TrainingData
from sdgpu.operators import ShardedOperator

__all__ = ["RankData", "travel_of"]

SHARE = 4  # what of the memory all rows of X may take on each rank, one part in so many


@dataclass(frozen=True, eq=False)
class RankData(TrainingData):
    """X and Y as sharded arrays, with K as a plan wants to hold it on each rank.

    Attributes
    ----------
    travel : {"gather", "ring"}
        How rows come to other ranks.
    """

    travel: str = "gather"
    _sharded: dict[str, ShardedOperator] = field(default_factory=dict)

    @property
    def ranks(self) -> Ranks:
        """Those that have the rows."""
        return self.X.layout.ranks

    def dense(self, backend: Backend) -> Any:
        """K in float64, for columns and the diagonal: it is not held."""
        if "exact" not in self._sharded:
            how: dict[str, Any] = {"precision": "float64", "travel": "ring"}
            self._sharded["exact"] = ShardedOperator(self.kernel, self.X, **how)
        return self._sharded["exact"]

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
                keep=keep and self.travel == "gather",
                workers=plan.threads,
                everything=known,
            )
        found = self._sharded[name]
        if keep:  # the tiles are the solver's: the fit itself need not hold them
            del self._sharded[name]
        return found


def travel_of(n: int, d: int, copies: int, allowed: int) -> str:
    """How rows travel: gathered where all of them, ready, take a small share of a rank's memory."""
    return "gather" if SHARE * 8 * n * (d + 2) * (copies + 2) <= allowed else "ring"
