"""`fit`: check the data, follow a plan, decompose once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdgpu.backend.arrays import pair
from sdgpu.backend.backends import Backend, resolve, rows_on
from sdgpu.backend.checks import LEAST_NORM, lam_grid
from sdgpu.backend.memory import budget, require
from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.backend.ranks import Ranks
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.rows import RowSource
from sdgpu.backend.sparse_rows import is_csr, is_sparse, mean_entries
from sdgpu.distill.smoothers import RIDGE, Smoother, as_smoother
from sdgpu.engine.cross_intervals import ArrayFolds
from sdgpu.engine.decomposing import basis_checkpoint, decomposed
from sdgpu.engine.device_fitting import fit_on_devices
from sdgpu.engine.feature_fitting import (
    StreamOptions,
    features_for_sparse,
    fit_features,
    refuse_options,
)
from sdgpu.engine.fitted import Fit
from sdgpu.engine.moments import Moments
from sdgpu.engine.planner import EXACT_METHODS, Plan, decide, exact_method
from sdgpu.engine.plans import follow
from sdgpu.engine.rank_features import fit_features_on_ranks
from sdgpu.engine.rank_fitting import (
    as_ranks,
    check_probes,
    device_of_rank,
    fit_on_ranks,
    home_of_rank,
)
from sdgpu.engine.rank_plans import RankRequest
from sdgpu.engine.solving import Problem
from sdgpu.engine.training_data import TrainingData, own_memory, row_weighting, value_precision
from sdgpu.kernels import Kernel, as_kernel
from sdgpu.kernels.feature_maps import Features
from sdgpu.operators import Operator
from sdgpu.solvers.solver import Solver

__all__ = ["fit"]

# arguments of `fit` that a plan decides
_DEFAULTS = {"method": "auto", "operator": "auto", "dtype": None, "tol": 1e-6, "steps": 10}


@underflow_is_zero
def fit(
    X: Any,
    Y: Any = None,
    kernel: Kernel | str | Any = "rbf",
    lams: Any = 1.0,
    *,
    features: Features | None = None,
    sample_weight: Any = None,
    intercept: bool = False,
    smoother: str | Smoother = "ridge",
    method: str | Solver = "auto",
    operator: str | Callable[[Kernel, Any], Operator] = "auto",
    device: str | Backend | Sequence[str | Backend] = "auto",
    tol: float = 1e-6,
    dtype: str | None = None,
    steps: int = 10,
    memory: int | float | str | None = None,
    seed: int = 0,
    probes: int = 16,
    plan: Plan | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    distributed: bool | Ranks = False,
) -> Fit:
    """Decompose K = kappa(X, X) once, for every lam, alpha and step.

    K = V diag(delta) V' and Z = V'Y; every step of self-distillation with every weight is then a
    filter on the eigenvalues, y(tau) = V B(tau) Z (Borup and Andersen 2021, equation (10)).

    Parameters
    ----------
    X : array_like (n, d)
        Training inputs: NumPy, torch (any device), CuPy, any array API or DLPack array; lists, pandas,
        polars, JAX and dask are read into NumPy. Columns of a table that have names are remembered: new
        tables must have them in this order. With kernel="precomputed", K itself (n, n). With `features`
        also a :class:`sdgpu.backend.rows.RowSource`, whatever :func:`sdgpu.rows.as_source` takes, or a
        :class:`sdgpu.Moments`, which needs neither Y nor kernel. Sparse matrices of SciPy and tensors of
        torch for kernels of inner products and lengths (`kernel.takes_sparse`), and for those with features
        of their own, which are taken where they are fewer than the rows and nothing else is asked for.
    Y : array_like (n,) or (n, c)
        Targets, in the same library and on the same device; of a source none.
    kernel : Kernel, str or callable, default "rbf"
        See :func:`sdgpu.kernels.as_kernel`.
    lams : number or array_like (L,), default 1
        The regularisations that will be asked for, absolute numbers in K + lam I. 0 alone is the fit of
        least norm, from all eigenvalues that are more than rounding; its `lam` reads 2.2e-308.
    features : Nystrom, RandomFourier or Explicit, optional
        Finitely many features in place of the kernel: one pass over the rows and k x k numbers, whatever n
        is. `dtype` is then that of the features, by default that of the rows; see
        :mod:`sdgpu.engine.feature_fitting`.
    sample_weight : array_like (n,), optional
        Weights of the squared errors, >= 0, in sum_i w_i (f(x_i) - y_i)^2 + lam ||f||^2: whole numbers
        stand for repeated rows, 0 for a row that is left out. Training and leave-one-out errors are
        weighted alike.
    intercept : bool, default False
        Whether a constant is fitted too that no penalty holds down; see
        :mod:`sdgpu.operators.weighted_rows`.
    smoother : str or Smoother, default "ridge"
        "gradient_flow", "iterated", "landweber" or "cutoff" in place of ridge, from all eigenvalues;
        lams are then 1 / times, .., as :mod:`sdgpu.distill.smoothers` says.
    method : {"auto", "eigh", "primal", "lanczos", "subspace", "cg"}, default "auto"
        "eigh" finds all n eigenvalues; "primal" those that are not 0, of a kernel with few features of
        its own (linear, polynomial, cosine, their sums and products). "lanczos" and "subspace" grow a basis
        from Y that serves every lam >= min(lams), every weight and `steps` steps to `tol`, from products
        with K alone; the second with a preconditioner, for small lam. "cg" makes `steps` solves for each
        lam by preconditioned conjugate gradients, which serve every weight, and a few more for each other
        lam or limit that is asked for; it has no spectrum. See :func:`sdgpu.plan`. A value with the methods
        of :class:`sdgpu.solvers.Solver` is a method too.
    operator : {"auto", "dense", "tiled", "keops"}, default "auto"
        K in memory, recomputed in tiles at every product, or reduced by KeOps; or what makes an operator of
        its own, (kernel, X) -> :class:`sdgpu.operators.Operator`, for all but "eigh".
    device : str or Backend, or a list of them, default "auto"
        "cpu", "cuda", "cuda:0", ..; "auto" prefers CUDA. Of a list ["cuda:0", "cuda:1"] each device grows
        the basis of its part of the rows (:mod:`sdgpu.engine.device_fitting`), by threads; "lanczos" and
        "subspace" alone. The fit is on the first one then.
    tol : float, default 1e-6
        Relative error of the predictions at the training points, for all but "eigh".
    dtype : {"float32", "mixed", "float64"}, optional
        How "tiled" and "keops" evaluate K and multiply; "mixed" evaluates in float32 and multiplies
        in float64. Bases and sums are float64 always.
    steps : int, default 10
        Distillation steps that a grown basis has to serve.
    memory : int or str, optional
        Bytes that the fit may use ("8GiB"), beside what libraries take for themselves; 90 % of what
        is free by default.
    seed : int, default 0
        Of the random columns and pivots of the grown bases.
    probes : int, default 16
        Random vectors, a multiple of 8, that stand for the eigenvalues which a grown basis has not
        seen, when leave-one-out or generalised cross-validation are asked for.
    plan : Plan, optional
        From :func:`sdgpu.plan` for n, d, c of these data and lams as small; says method, operator,
        dtype, tol and steps, which are left out then.
    checkpoint : path, optional
        A ``.safetensors`` file to which "lanczos" and "subspace" save their basis as it grows, a pass
        with `features` its sums, and both on an interrupt; the same call goes on from it. It stays when the
        fit is done. With `distributed` rank 0 writes it for all, and any number of ranks goes on from it.
    progress : callable, optional
        Called with an :class:`sdgpu.backend.progress.Event`: stage, done, total, error, seconds_left.
    distributed : bool or Ranks, default False
        Whether X and Y are the rows of this rank among those that ``torchrun`` started, or among these
        ranks, which fit all rows together (:mod:`sdgpu.engine.rank_fitting`). All ranks call, with the same
        other arguments; afterwards too what multiplies with K: predict, sweep, gcv. Arrays of training rows
        come back as those of this rank.

    Returns
    -------
    Fit

    Warns
    -----
    UserWarning
        If the result is not as accurate as asked; `info.status` says the same and what to try. If X or Y
        is a tensor that requires a gradient: none flows through a fit.

    Raises
    ------
    TypeError
        For complex, object or string input, and sparse rows of other kernels.
    ValueError
        For NaN, wrong shapes, lam <= 0, unknown names, arrays of two libraries or devices, or a
        kernel that is not positive semi-definite.
    MemoryError
        Before the work, if it does not fit: says how much is needed and how many rows would fit.

    Notes
    -----
    "eigh": about 9 n^3 operations and 3 n^2 doubles at the peak, in float64 whatever the dtype of the
    data: eigenvalues of a float32 matrix are noise below 1e-7 of the largest.

    In a child that was forked from a process with torch a fit has one thread: torch's pool does not
    survive a fork (:mod:`sdgpu.backend.threads`).

    Examples
    --------
    >>> import numpy as np, sdgpu
    >>> X = np.linspace(0, 1, 11)[:, None]
    >>> fitted = sdgpu.fit(X, np.sin(2 * np.pi * X[:, 0]), sdgpu.Gaussian(80.0), lams=0.2)
    >>> fitted.path(alphas=0.25, steps=6).predict(X[:3]).shape
    (6, 3)
    """
    if progress is not None and not callable(progress):
        raise TypeError(f"progress={progress!r} must be callable as progress(event)")
    smoother = as_smoother(smoother)
    exact = {"method": method, "operator": operator, "plan": plan}
    options = StreamOptions(dtype, intercept, memory, seed, tol, progress, checkpoint)
    how: dict[str, Any] = {"device": device, "options": options, "exact": exact}
    if distributed is not False or isinstance(device, (list, tuple)):
        request = RankRequest(
            method, operator, tol, dtype, steps, memory, seed, probes, plan, progress, checkpoint
        )
        how |= {"distributed": distributed, "request": request, "smoother": smoother}
        return _fit_with_others((X, Y, sample_weight), kernel, lams, features, **how)
    lams = lam_grid("lams", lams, zero=True)
    kind = "features="
    if features is None and is_sparse(X):
        kind, features, exact = _features_of_sparse_rows(X, kernel, exact)
    if features is not None or isinstance(X, (RowSource, Moments)):
        refuse_options(kind, exact, {"method": "auto", "operator": "auto"})
        how = {"options": options, "device": device}  # no list any more
        found = fit_features((X, Y, sample_weight), kernel, lams, features, **how)
        return found.with_smoother(smoother)
    check_probes(probes)
    given_X, kernel, (X, Y, template) = X, as_kernel(kernel), pair(X, Y)
    (n, d), c = (int(size) for size in X.shape), int(Y.shape[1])
    backend = resolve(device, template.sample)  # type: ignore[arg-type]  # no list any more
    context: dict[str, Any] = {"device": backend, "kernel": kernel}
    context |= {"memory": budget(memory, backend.name), "precomputed": kernel.is_precomputed}
    context["entries"] = mean_entries(X) if is_csr(X) else None
    if lams[0] == LEAST_NORM or smoother.name != RIDGE.name:
        method = "eigh" if is_csr(X) and method == "auto" else method
        method = exact_method(method, kernel, n, d, plan=plan, smoother=smoother)
    wishes = {"method": method, "operator": operator, "dtype": dtype, "tol": tol, "steps": steps}
    plan = _planned({"n": n, "d": d, "c": c}, lams, plan, wishes, context)
    if not isinstance(method, str):
        unknown = {"sample_weight": sample_weight, "intercept": intercept or None}
        refuse_options("a solver from elsewhere", unknown, {})
    weighting = row_weighting(sample_weight, X, backend, intercept=intercept)
    Y, offset = (Y, None) if weighting is None else weighting.targets(backend.asarray(Y))
    data = TrainingData(
        kernel=kernel,
        X=own_memory(rows_on(backend, X), given_X, kernel),
        Y=Y,
        offset=offset,
        weighting=weighting,
        dtype=value_precision(kernel, given_X, X, backend),
        home=backend,
        make=None if isinstance(operator, str) else operator,
    )
    problem = Problem(
        plan=plan,
        data=data,
        lams=lams,
        seed=seed,
        probes=probes,
        watch=Stopwatch(backend.synchronize, progress=progress),
        checkpoint=basis_checkpoint(checkpoint, plan, data, lams, seed),
        solver=None if isinstance(method, str) else method,
    )
    found = decomposed(problem, template, context, progress, folds=_fold_fits)
    return found.with_smoother(smoother)


def _features_of_sparse_rows(
    X: Any, kernel: Any, exact: dict[str, Any]
) -> tuple[str, Features | None, dict[str, Any]]:
    """The kernel's own features, unless another way was asked for; "primal" is that way."""
    method = exact["method"]
    other = (
        exact["plan"] is not None or method not in ("auto", "primal") or exact["operator"] != "auto"
    )
    features = features_for_sparse(X, kernel, exact=other)
    if features is not None and method == "primal":
        exact = {**exact, "method": "auto"}
    return "sparse rows", features, exact


def _planned(
    sizes: dict[str, int],
    lams: np.ndarray,
    plan: Plan | None,
    asked: dict[str, Any],
    context: dict[str, Any],
) -> Plan:
    """The plan that was given, if it goes with the data and with what else is asked; else a new one."""
    if plan is None:
        named = {"precision" if name == "dtype" else name: asked[name] for name in asked}
        decided: dict[str, Any] = {**sizes, "lams": lams, **named, **context}
        plan = decide(**decided)
    else:
        others = {name: value for name, value in asked.items() if value != _DEFAULTS[name]}
        plan = follow(plan, sizes, lams, others, entries=context["entries"])
    memory = context["memory"]
    require(plan.bytes, memory, f"the plan ({plan.method}, {plan.operator})", "raise memory=")
    return plan


def _fit_with_others(
    data: tuple[Any, Any, Any],
    kernel: Any,
    lams: Any,
    features: Features | None,
    *,
    exact: dict[str, Any],
    device: Any,
    options: StreamOptions,
    distributed: bool | Ranks,
    request: RankRequest,
    smoother: Smoother,
) -> Fit:
    """A fit of the rows of several ranks, or on several devices."""
    several = isinstance(device, (list, tuple))
    name = "several devices" if several else "distributed="
    request = replace(request, intercept=options.intercept)
    if is_sparse(data[0]):
        raise ValueError(f"{name} takes no sparse rows: fit them on one device, or X.toarray()")
    grown = several or request.method not in EXACT_METHODS
    if features is None and smoother.name != RIDGE.name and grown:
        raise ValueError(
            f"smoother={smoother.name!r} needs all eigenvalues, and {name} grows a basis: take "
            "method='eigh', by which rank 0 finds them, or features="
        )
    if several:
        others = {"features": features, "distributed": distributed or None}
        refuse_options(name, others, {})
        how: dict[str, Any] = {"devices": device, "request": request, "folds": _fold_fits}
        return fit_on_devices(data, kernel, lams, **how)
    ranks = as_ranks(distributed, device)
    if features is not None:
        refuse_options("features=", exact, {"method": "auto", "operator": "auto"})
        place: dict[str, Any] = {"ranks": ranks, "backend": home_of_rank(device)}
        found = fit_features_on_ranks(data, kernel, lams, features, options=options, **place)
        return found.with_smoother(smoother)
    inner = device_of_rank(device)
    found = fit_on_ranks(data, kernel, lams, ranks=ranks, inner=inner, request=request)
    return found.with_smoother(smoother)


@dataclass(frozen=True, eq=False)
class _FitAgain:
    """The same fit of other rows."""

    kernel: Kernel
    options: dict[str, Any]

    def __call__(self, X: Any, Y: Any, weights: Any, lam: float) -> Fit:
        return fit(X, Y, self.kernel, [lam], sample_weight=weights, **self.options)


def _fold_fits(problem: Problem, memory: int) -> ArrayFolds | None:
    """What fits without folds of the rows are made by; a decomposition says all of that itself."""
    plan, data, solver = problem.plan, problem.data, problem.solver
    if solver is None and plan.method in EXACT_METHODS:
        return None
    weighting, Y = data.weighting, data.home.asarray(data.Y)
    weights, intercept = None, False
    if weighting is not None:
        intercept = weighting.intercept
        Y = weighting.values(Y) if data.offset is None else weighting.values(Y) + data.offset
        weights = weighting.roots**2 if weighting.weighted else None
    options: dict[str, Any] = {
        "intercept": intercept,
        "method": solver or plan.method,
        "operator": data.make or plan.operator,
        "device": data.home,
        "memory": memory,
        "seed": problem.seed,
        "probes": problem.probes,
    }
    if solver is None:
        options |= {"tol": plan.tol, "dtype": plan.precision, "steps": plan.steps}
    again = _FitAgain(data.kernel, options)
    return ArrayFolds(data.kernel, data.X, Y, weights, data.home, refit=again)
