"""The one place that chooses: method, operator, precision, block and sketch, with reasons and a price.

What chooses is counted work at fixed rates (:mod:`sdgpu.backend.rates`) and the memory: the same answer on
the same machine, whatever else runs there and however many threads do. Nothing here touches the data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, resolve
from sdgpu.backend.checks import choice, integer, lam_grid, positive
from sdgpu.backend.memory import budget, largest_rows, show
from sdgpu.backend.rates import Rates, nominal
from sdgpu.distill.smoothers import RIDGE, Smoother
from sdgpu.engine.calibration import calibrate, with_compiled_loop
from sdgpu.engine.costs import Option, Task, features_option
from sdgpu.engine.plans import Plan
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.kernels.kernel_matrices import may_be_compiled
from sdgpu.kernels.row_preparation import row_copies
from sdgpu.kernels.sparse_values import refuse_sparse
from sdgpu.operators import Operator
from sdgpu.operators.tile_prices import pays_to_compile
from sdgpu.operators.tiled import PRECISIONS
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.solver import Solver

__all__ = ["EXACT_METHODS", "METHODS", "OPERATORS", "Plan", "Rates", "calibrate", "decide"]

METHODS = ("auto", "eigh", "primal", "lanczos", "subspace", "cg")
EXACT_METHODS = ("eigh", "primal")  # that know every eigenvalue but those that are 0
OPERATORS = ("auto", "dense", "tiled", "keops")

DAYS = 3 * 86_400.0  # seconds of a fit that nobody waits for
FEATURES = 2000  # k of the feature model that a plan offers
FEWER, MANY = 4, 500  # rows for each feature, and in all, from which the plan looks at features
EXACT = 0.05  # seconds that all eigenvalues may take before a grown basis is considered

#: Below SMALL rows every machine is fast enough, and with less memory than MEASURED nothing is measured.
SMALL, MEASURED = 2500, 2**29


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
    entries: float | None = None,
    measured: bool = False,
) -> Plan:
    """The plan of :func:`sdgpu.plan`, with prices at fixed rates unless they are to be `measured`.

    A solver or an operator from elsewhere is taken as it is.
    """
    if entries is not None:
        entries = _checked_entries(entries, as_kernel(kernel), d, operator, given=precomputed)
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
        args["entries"] = entries
        args |= {"method": "subspace" if method == "auto" else method, "precision": "float64"}
        plan = decide(n, d, c, lams, steps, operator="tiled", **args)
        name = getattr(operator, "__name__", type(operator).__name__)
        return replace(plan, operator=name, reasons=(f"{name} as given", *plan.reasons))
    _check_names(method, operator, precision, precomputed=precomputed)
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
        own=_own_of(resolved, n, d, method, sparse=entries is not None),
        compiled=pays_to_compile(resolved, n, d) and not precomputed and entries is None,
        compiled_gram=may_be_compiled(resolved, n * n / 2, d) and entries is None,
        entries=entries,
    )
    # a fit has no use for the prices of what was not asked for
    return _chosen(task, backend, method, operator, measured=measured)


def _chosen(task: Task, backend: Backend, method: str, operator: str, *, measured: bool) -> Plan:
    """The best of the options, and what the others would have cost."""
    priced_method = "auto" if measured else method
    free = not measured and method == "auto" and operator in ("auto", "dense")
    if free and (quick := _quick(task, nominal(backend))) is not None:
        return _plan(task, quick, np.inf, (quick.reason,))
    options = _options(task, nominal(backend), backend, priced_method)
    left = (
        features_option(task, nominal(backend), FEATURES)
        if measured and not task.precomputed and task.entries is None
        else None
    )
    best, patience = _best(task, options, method, operator, otherwise=left)
    if best is left:
        rivals = (option.line(task.allowed) for option in options)
        return _plan(task, best, np.inf, (best.reason, *rivals))
    if measured and task.n > SMALL and task.allowed >= MEASURED:
        index = options.index(best)
        options = _options(task, calibrate(backend), backend, priced_method)
        best = options[index]
    wishes = (("method", method), ("operator", operator))
    reasons = [f"{name} as asked" for name, value in wishes if value != "auto"]
    others = options if left is None else [*options, left]
    alternatives = [option.line(task.allowed) for option in others if option is not best]
    return _plan(task, best, patience, (*reasons, best.reason, *alternatives))


def _check_names(method: str, operator: str, precision: str | None, *, precomputed: bool) -> None:
    """Refuse unknown names, and what excludes each other."""
    choice("method", method, METHODS)
    choice("operator", operator, OPERATORS)
    if precision is not None:
        choice("dtype", precision, PRECISIONS)
    if method in EXACT_METHODS and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} has no matrix for method={method!r}: use 'dense'")
    if precomputed and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} cannot hold a precomputed kernel: use 'dense'")


def _checked_entries(
    entries: float, kernel: Kernel, d: int, operator: Any, *, given: bool
) -> float:
    """How many entries a sparse row has, checked, with what goes with sparse rows."""
    if given:
        raise ValueError("entries= is of sparse rows, and given=True says that K is given")
    refuse_sparse(kernel)
    if operator == "keops":
        raise ValueError("operator='keops' takes no sparse rows: use 'dense' or 'tiled'")
    if positive("entries", entries, zero=True) > d:
        raise ValueError(f"entries={entries:g} of a row are more than its d = {d:,} features")
    return float(entries)


def exact_method(
    method: Any, kernel: Kernel, n: int, d: int, *, plan: Plan | None, smoother: Smoother
) -> str:
    """How a fit that needs all eigenvalues is made; a ValueError for other methods and plans."""
    method = method if plan is None else plan.method
    of_ridge = smoother.name == RIDGE.name
    what = "lams=0, the fit of least norm," if of_ridge else f"smoother={smoother.name!r}"
    least_norm_of_plan = of_ridge and plan is not None  # plans are for lam > 0
    if method not in ("auto", *EXACT_METHODS) or least_norm_of_plan:
        raise ValueError(
            f"{what} needs all eigenvalues: method={method!r} knows what is above lam alone; take "
            "method='eigh', and no plan="
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


def _own_of(kernel: Kernel, n: int, d: int, method: str, *, sparse: bool) -> int:
    """As :func:`own_features`; sparse rows with few of them are summed, not planned."""
    return 0 if sparse and method != "primal" else own_features(kernel, n, d, method=method)


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
        entries=task.entries,
    )


def _worth(option: Option) -> float:
    """Seconds, but an exact answer within EXACT seconds comes before an approximate one in fewer."""
    exact = option.method in EXACT_METHODS and option.seconds <= EXACT
    return option.seconds - EXACT if exact else option.seconds


def _quick(task: Task, rates: Rates) -> Option | None:
    """The exact option that is taken whatever the others cost: a small fit need not price them."""
    quick = (x for x in task.exact(rates) if x.bytes <= task.allowed and _worth(x) <= 0)
    return min(quick, key=_worth, default=None)


def _too_much(n: int, smallest: Option, allowed: int) -> str:
    fits = largest_rows(allowed, Eigh.peak_bytes)
    return (
        f"n = {n:,} rows need at least {show(smallest.bytes)} ({smallest.method} with "
        f"{smallest.operator} operator), but {show(allowed)} may be used: at most about {fits:,} rows "
        "fit an eigendecomposition; take a subset, raise memory=, or leave method and operator "
        "'auto'"
    )
