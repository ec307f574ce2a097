"""What a plan says, and whether it is one for the problem at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.checks import ROUNDED

__all__ = ["Plan", "follow"]

MORE = 1.1  # entries of data over those of a plan


@dataclass(frozen=True)
class Plan:
    """What will be done, why, and what it will cost.

    Attributes
    ----------
    method : {"eigh", "primal", "lanczos", "subspace", "cg", "features"}
        The last where nothing else ends: `fit(.., features=)`, which is another model.
    operator : {"dense", "tiled", "keops", "nystrom"}
    precision : {"float64", "mixed", "float32"}
    block, rank : int
        Columns of a pass; rank of the sketch, 0 for none.
    max_size : int
        Largest basis that the memory allows.
    tol : float
        Relative error of the predictions.
    steps : int
        Distillation steps that the basis has to serve.
    seconds : float
        Predicted time of the fit. The number of passes depends on the spectrum of K, which nothing
        knows beforehand: the guess is that of smooth kernels on real data.
    bytes : int
        Predicted peak.
    n, d, c : int
    lam : float
        The problem it was made for: rows, features, outputs, and the smallest regularisation.
    threads : int
        Of products, at most: those of the machine, where the memory allows.
    reasons : tuple of str
    patience : float
        Passes that would cost as much as an eigendecomposition that would fit too, where the method was
        left to the plan: a fit turns to it when the basis is going to need more.
    entries : float or None
        Of a row in the mean, if rows are sparse.
    """

    method: str
    operator: str
    precision: str
    block: int
    rank: int
    max_size: int
    tol: float
    steps: int
    seconds: float
    bytes: int
    n: int
    d: int
    c: int
    lam: float
    threads: int
    reasons: tuple[str, ...]
    patience: float = np.inf
    entries: float | None = None


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
