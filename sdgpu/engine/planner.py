"""The one place that chooses: method, operator, precision, block and sketch, with reasons and a price.

What chooses is counted work at fixed rates (:mod:`sdgpu.backend.rates`) and the memory: the same answer on
the same machine, whatever else runs there and however many threads do. Nothing here touches the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, resolve
from sdgpu.backend.checks import ROUNDED, choice, integer, lam_grid, positive
from sdgpu.backend.memory import budget, largest_rows, show
from sdgpu.backend.rates import Rates, nominal
from sdgpu.engine.calibration import calibrate, with_compiled_loop
from sdgpu.engine.costs import Option, Task, features_option
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.kernels.kernel_matrices import may_be_compiled
from sdgpu.kernels.row_preparation import row_copies
from sdgpu.operators import Operator
from sdgpu.operators.tiled import FUSED_ROWS, PRECISIONS
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.solver import Solver

__all__ = [
    "EXACT_METHODS",
    "METHODS",
    "OPERATORS",
    "Plan",
    "Rates",
    "calibrate",
    "decide",
    "follow",
]

METHODS = ("auto", "eigh", "primal", "lanczos", "subspace", "cg")
EXACT_METHODS = ("eigh", "primal")  # that know every eigenvalue but those that are 0
OPERATORS = ("auto", "dense", "tiled", "keops")

DAYS = 3 * 86_400.0  # seconds of a fit that nobody waits for
FEATURES = 2000  # k of the feature model that a plan offers
FEWER, MANY = 4, 500  # rows for each feature, and in all, from which the plan looks at features
EXACT = 0.05  # seconds that all eigenvalues may take before a grown basis is considered


#: Below SMALL rows every machine is fast enough, and with less memory than MEASURED nothing is measured.
SMALL, MEASURED = 2500, 2**29


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


def decide(
    n: int,
    d: int,
    c: int,
    lams: Any,
    steps: int,
    *,
    device: str | Backend,
    memory: int | float | str | None,
    tol: float,
    method: str | Solver = "auto",
    operator: str | Callable[[Kernel, Any], Operator] = "auto",
    precision: str | None = None,
    precomputed: bool = False,
    kernel: Kernel | str | Callable[[Any, Any], Any] = "rbf",
    measured: bool = False,
) -> Plan:
    """The plan of :func:`sdgpu.plan`, with prices at fixed rates unless they are to be `measured`.

    A solver or an operator from elsewhere is taken as it is.
    """
    if not isinstance(method, str):
        if precision is not None:
            raise ValueError(f"dtype={precision!r} is for the package's own methods: leave it out")
        plan = _elsewhere(method, n, d, c, lam_grid("lams", lams), steps=steps, tol=tol)
        if not isinstance(operator, str):
            return replace(plan, operator=getattr(operator, "__name__", type(operator).__name__))
        name = choice("operator", operator, OPERATORS)
        return plan if name == "auto" else replace(plan, operator=name)
    if not isinstance(operator, str):
        if method == "eigh" or precomputed:
            raise ValueError("operator= from elsewhere has no matrix to decompose: leave it 'auto'")
        args: dict[str, Any] = {"device": device, "memory": memory, "tol": tol, "kernel": kernel}
        args |= {"method": "subspace" if method == "auto" else method, "precision": "float64"}
        plan = decide(n, d, c, lams, steps, operator="tiled", **args)
        name = getattr(operator, "__name__", type(operator).__name__)
        return replace(plan, operator=name, reasons=(f"{name} as given", *plan.reasons))
    choice("method", method, METHODS)
    choice("operator", operator, OPERATORS)
    if precision is not None:
        choice("dtype", precision, PRECISIONS)
    if method in EXACT_METHODS and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} has no matrix for method={method!r}: use 'dense'")
    if precomputed and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} cannot hold a precomputed kernel: use 'dense'")
    backend, resolved = resolve(device), as_kernel(kernel)
    task = Task(
        n=(n := integer("n", n, 1)),
        d=integer("d", d, 1),
        c=integer("c", c, 1),
        lams=lam_grid("lams", lams),
        steps=integer("steps", steps, 1),
        tol=positive("tol", tol),
        allowed=budget(memory, backend.name),
        precision=precision,
        precomputed=precomputed,
        copies=row_copies(resolved),
        cores=os.cpu_count() or 1,
        own=own_features(resolved, n, d, method=method),
        compiled=n >= FUSED_ROWS and resolved.opaque is None and not precomputed,
        compiled_gram=may_be_compiled(resolved, n * n / 2, d),
    )
    # a fit has no use for the prices of what was not asked for
    priced_method = "auto" if measured else method
    options = _options(task, nominal(backend), backend, priced_method)
    left = (
        features_option(task, nominal(backend), FEATURES) if measured and not precomputed else None
    )
    best, patience = _best(task, options, method, operator, otherwise=left)
    if best is left:
        rivals = tuple(option.line(task.allowed) for option in options)
        return _plan(task, best, np.inf, (best.reason, *rivals))
    if measured and n > SMALL and task.allowed >= MEASURED:
        index = options.index(best)
        options = _options(task, calibrate(backend), backend, priced_method)
        best = options[index]
    wishes = {"method": method, "operator": operator}
    reasons = [f"{name} as asked" for name, value in wishes.items() if value != "auto"]
    others = options if left is None else [*options, left]
    alternatives = [option.line(task.allowed) for option in others if option is not best]
    return _plan(task, best, patience, (*reasons, best.reason, *alternatives))


def least_norm_method(method: Any, kernel: Kernel, n: int, d: int, plan: Plan | None) -> str:
    """How the fit of least norm is made, lam = 0: from all eigenvalues.

    Raises
    ------
    ValueError
        For another method, or a plan.
    """
    if plan is not None or method not in ("auto", *EXACT_METHODS):
        raise ValueError(
            f"lams=0, the fit of least norm, needs all eigenvalues: method={method!r} knows what is above "
            "lam alone; take method='eigh', and no plan="
        )
    if method != "auto":
        return str(method)
    return "primal" if own_features(kernel, n, d, method=method) else "eigh"


def own_features(kernel: Kernel, n: int, d: int, *, method: str) -> int:
    """k of the kernel's own features, 0 where they are no way to fit n rows: not fewer than n.

    Raises
    ------
    ValueError
        If they are asked for and there are none, or too many.
    """
    k = 0 if kernel.is_precomputed else own_size(kernel, d) or 0
    if method != "primal":
        return k if 0 < FEWER * k <= n and n >= MANY else 0
    if not 0 < k < n:
        raise ValueError(
            f"method='primal' is for kernels with fewer features of their own than the {n:,} rows, and "
            f"{kernel!r} has {k or 'no finite number'} of them: use method='auto'"
        )
    return k


def _elsewhere(
    solver: Solver, n: int, d: int, c: int, lams: np.ndarray, *, steps: int, tol: float
) -> Plan:
    missing = [name for name in ("name", "peak_bytes", "solve") if not hasattr(solver, name)]
    if missing:
        raise TypeError(
            f"method={solver!r} has no {', '.join(missing)}: give a name, or a sdgpu.solvers.Solver"
        )
    return Plan(
        method=solver.name,
        operator="tiled",
        precision="float64",
        block=0,
        rank=0,
        max_size=n,
        tol=positive("tol", tol),
        steps=integer("steps", steps, 1),
        seconds=np.nan,
        bytes=int(solver.peak_bytes(n, d, c)),
        n=n,
        d=d,
        c=c,
        lam=float(lams.min()),
        threads=1,
        reasons=(f"{solver.name} as given",),
    )


def _options(task: Task, rates: Rates, backend: Backend, method: str) -> list[Option]:
    return task.options(with_compiled_loop(rates, backend) if task.compiled else rates, method)


def _best(
    task: Task,
    options: list[Option],
    method: str,
    operator: str,
    *,
    otherwise: Option | None = None,
) -> tuple[Option, float]:
    """The option to take, and after how many passes the eigendecomposition would have been done.

    `otherwise` is taken where nothing fits the memory or the DAYS that anybody waits, and nothing was
    named.
    """
    # KeOps compiles and has yet to win anywhere that was measured: only when asked for
    operators = ("dense", "tiled") if operator == "auto" else (operator,)
    # without a spectrum a fit has no answer to some questions: only when asked for
    methods = ("eigh", "primal", "lanczos", "subspace") if method == "auto" else (method,)
    candidates = [
        option for option in options if option.method in methods and option.operator in operators
    ]
    affordable = [option for option in candidates if option.bytes <= task.allowed]
    if otherwise is not None and method == operator == "auto" and otherwise.bytes <= task.allowed:
        quickest = min((option.seconds for option in affordable), default=np.inf)
        if quickest > DAYS and otherwise.seconds < quickest:
            return otherwise, np.inf
    if not affordable:
        smallest = min(candidates, key=lambda option: option.bytes)
        raise MemoryError(_too_much(task.n, smallest, task.allowed))
    best = min(affordable, key=_worth)
    # the exact method is there to turn to, if it was not excluded
    exact_seconds = [option.seconds for option in affordable if option.method == "eigh"]
    return best, best.passes_within(exact_seconds[0]) if exact_seconds and best.work else np.inf


def _plan(task: Task, best: Option, patience: float, reasons: tuple[str, ...]) -> Plan:
    return Plan(
        method=best.method,
        operator=best.operator,
        precision=best.precision,
        block=best.block,
        rank=best.rank,
        max_size=best.size,
        tol=task.tol,
        steps=task.steps,
        seconds=best.seconds,
        bytes=best.bytes,
        n=task.n,
        d=task.d,
        c=task.c,
        lam=float(task.lams.min()),
        threads=best.threads,
        reasons=reasons,
        patience=patience,
    )


def follow(plan: Any, problem: dict[str, int], lams: np.ndarray, arguments: dict[str, Any]) -> Plan:
    """The plan, if it was made for this problem and nothing else is asked for.

    Parameters
    ----------
    plan : Plan
    problem : dict
        n, d and c of the data.
    lams : array (L,)
    arguments : dict
        Arguments that the plan overrules, those that were left at their defaults not among them.

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


def _worth(option: Option) -> float:
    """Seconds, but an exact answer within EXACT seconds comes before an approximate one in fewer."""
    exact = option.method in EXACT_METHODS and option.seconds <= EXACT
    return option.seconds - EXACT if exact else option.seconds


def _too_much(n: int, smallest: Option, allowed: int) -> str:
    fits = largest_rows(allowed, Eigh.peak_bytes)
    return (
        f"n = {n:,} rows need at least {show(smallest.bytes)} ({smallest.method} with "
        f"{smallest.operator} operator), but {show(allowed)} may be used: at most about {fits:,} rows "
        "fit an eigendecomposition; take a subset, raise memory=, or leave method and operator "
        "'auto'"
    )
