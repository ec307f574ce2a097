"""What a fit on several ranks is asked, and what rank 0 plans for all."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sdgpu.backend.common_checks import together
from sdgpu.backend.memory import budget, require, show
from sdgpu.backend.progress import Progress
from sdgpu.backend.ranks import Ranks
from sdgpu.engine.planner import EXACT_METHODS, Plan, decide
from sdgpu.engine.plans import follow

__all__ = ["KNOWN", "METHODS", "RankRequest", "memory_of_rank", "plan_of_ranks"]

METHODS = ("lanczos", "subspace")  # that a plan chooses from
KNOWN = (*METHODS, "cg", *EXACT_METHODS)


@dataclass(frozen=True, eq=False)
class RankRequest:
    """Arguments of :func:`sdgpu.fit` that a fit on ranks takes too."""

    method: Any = "auto"
    operator: Any = "auto"
    tol: float = 1e-6
    dtype: str | None = None
    steps: int = 10
    memory: int | float | str | None = None
    seed: int = 0
    probes: int = 16
    plan: Plan | None = None
    progress: Progress | None = None
    checkpoint: str | os.PathLike[str] | None = None
    intercept: bool = False
    beside: int = 1  # ranks that share the cores and the memory of one process


def memory_of_rank(memory: Any, device: str) -> int:
    """Bytes of this rank: what is said, or its part of what is free on its host."""
    allowed = budget(memory, device)
    if memory is not None or "cuda" in device:
        return allowed
    beside_it = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return allowed // max(int(beside_it) if beside_it.isdigit() else 1, 1)


def plan_of_ranks(
    ranks: Ranks,
    sizes: tuple[int, int, int],
    lams: np.ndarray,
    place: dict[str, Any],
    request: RankRequest,
) -> Plan:
    """What rank 0 plans for the memory of all, told to the others.

    Parameters
    ----------
    ranks : Ranks
    sizes : tuple
        n, d and c.
    lams : array (L,)
    place : dict
        Device and kernel, and `memory`, bytes of each rank; rank 0 finds all eigenvalues in its own.
    request : RankRequest

    Raises
    ------
    TypeError, ValueError, MemoryError
        On all ranks.
    """
    n, d, c = sizes
    allowed = place["memory"]

    def made() -> dict[str, Any] | None:
        if ranks.rank:
            return None
        if request.plan is not None:
            arguments = {name: getattr(request, name) for name in ("method", "operator", "dtype")}
            defaults = {"method": "auto", "operator": "auto", "dtype": None}
            named = {name: x for name, x in arguments.items() if x != defaults[name]}
            plan = follow(request.plan, {"n": n, "d": d, "c": c}, lams, named)
            if plan.method not in KNOWN or plan.operator not in ("dense", "tiled"):
                raise ValueError(
                    f"plan= says {plan.method} with {plan.operator}, not for rows of several ranks: make "
                    "one with sdgpu.plan(.., method='subspace', operator='tiled')"
                )
            return asdict(plan)
        methods = METHODS if request.method == "auto" else (request.method,)
        shared = 1 if request.method in EXACT_METHODS else ranks.size
        how = {**place, "tol": request.tol, "operator": request.operator}
        how["memory"] = allowed * shared
        how["precision"] = request.dtype
        plans = [decide(n, d, c, lams, request.steps, method=name, **how) for name in methods]
        return asdict(min(plans, key=lambda plan: plan.seconds))

    told = ranks.first(together(ranks, made))
    told["threads"] = max(1, told["threads"] // request.beside)
    told["patience"] = np.inf  # nothing else to turn to
    name = f"the plan ({told['method']}, {told['operator']}) of {ranks.size} ranks"
    if told["method"] in EXACT_METHODS:
        sent = show(8 * n * n)
        told["reasons"] = (*told["reasons"], f"by rank 0 alone, from all rows; {sent} are sent")
        remedy = "raise memory=: rank 0 decomposes by itself; or take method='subspace'"
        require(told["bytes"], allowed, name, remedy)
        return Plan(**told)
    told["reasons"] = (*told["reasons"], f"shared by {ranks.size} ranks")
    told["seconds"] /= ranks.size
    remedy = "raise memory=, which is that of each rank, or take more ranks"
    require(told["bytes"] // ranks.size, allowed, name, remedy)
    return Plan(**told)
