"""A plan that a caller brings: whether it was made for these data, and nothing else is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdgpu.backend.checks import ROUNDED
from sdgpu.engine.planner import Plan

__all__ = ["follow"]

MORE = 1.1  # entries of data over those of a plan


def follow(
    plan: Any,
    problem: dict[str, int],
    lams: np.ndarray,
    arguments: dict[str, Any],
    *,
    entries: float | None = None,
) -> Plan:
    """The plan, if it was made for this problem and nothing else is asked for.

    Parameters
    ----------
    plan : Plan
    problem : dict
        n, d and c of the data.
    lams : array (L,)
    arguments : dict
        Arguments that the plan overrules, those that were left at their defaults not among them.
    entries : float, optional
        Of a sparse row, in the mean.

    Raises
    ------
    TypeError, ValueError
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan={plan!r} must come from sdgpu.plan")
    if plan.method == "features":
        raise ValueError(
            f"plan= says features: leave it out and pass features=sdgpu.Nystrom({plan.rank})"
        )
    for name, size in problem.items():
        if getattr(plan, name) != size:
            what = {"n": "rows", "d": "features", "c": "outputs"}[name]
            raise ValueError(
                f"plan= was made for {name} = {getattr(plan, name):,} {what}, but the data have "
                f"{size:,}: make one with sdgpu.plan({name}={size}, ..)"
            )
    _same_entries(plan, entries)
    if lams.min() < plan.lam * (1 - ROUNDED):
        raise ValueError(
            f"plan= was made for lams >= {plan.lam:.9g}, but the smallest of lams= is "
            f"{lams.min():g}: "
            "make one with sdgpu.plan(lams=..) of these"
        )
    for name, value in arguments.items():
        entry = getattr(plan, "precision" if name == "dtype" else name)
        if value != entry:
            raise ValueError(
                f"{name}={value!r} contradicts the plan, which has {name}={entry!r}: leave {name} out, or "
                f"make the plan with it"
            )
    return plan


def _same_entries(plan: Plan, entries: float | None) -> None:
    """Refuse a plan of dense rows for sparse ones, and the other way round."""
    if entries is None and plan.entries is not None:
        raise ValueError(
            "plan= was made for sparse rows, but the data are dense: leave entries= out of it"
        )
    if entries is not None and entries > MORE * (plan.entries or 0.0):
        made = "dense rows" if plan.entries is None else f"{plan.entries:g} entries a row"
        raise ValueError(
            f"plan= was made for {made}, but the data have {entries:.3g} a row: make one with "
            f"sdgpu.plan(entries={np.ceil(entries):g}, ..)"
        )
