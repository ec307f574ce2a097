"""Solve what a plan says, certify the result, describe it: the part of a fit after its checks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.arrays import Template
from sdgpu.backend.progress import Progress
from sdgpu.engine.certificate import Certificate, certify
from sdgpu.engine.cross_intervals import ArrayFolds
from sdgpu.engine.fitted import Fit
from sdgpu.engine.model import Model
from sdgpu.engine.planner import EXACT_METHODS, Plan, decide
from sdgpu.engine.rank_eigenvalues import solve_all_on_ranks
from sdgpu.engine.results import Info, Seconds
from sdgpu.engine.solving import Problem, Solved, solve_all, solve_by_basis, solve_elsewhere
from sdgpu.engine.training_data import TrainingData
from sdgpu.solvers.checkpoint import Checkpoint, fingerprint

__all__ = ["basis_checkpoint", "decomposed", "describe"]

FORMAT = 2  # of checkpoints


def decomposed(
    problem: Problem,
    template: Template,
    context: dict[str, Any],
    progress: Progress | None,
    *,
    folds: Callable[[Problem, int], ArrayFolds | None] | None = None,
    depth: int = 4,
) -> Fit:
    """Solve, certify, describe.

    Parameters
    ----------
    problem : Problem
    template : Template
    context : dict
        What a plan is made from: device, memory, kernel, precomputed.
    progress : callable or None
    folds : callable, optional
        Makes what fits without folds of the rows are made by.
    depth : int
        Calls up to who asked for the fit, whom a warning is for.
    """
    solved, plan, lams = _solve(problem), problem.plan, problem.lams
    if solved is None:
        (n, d), c = problem.data.X.shape, int(problem.data.Y.shape[1])
        problem.watch.report("eigh instead, the basis would take longer", 0, 1)
        plan = decide(n, d, c, lams, plan.steps, tol=plan.tol, method="eigh", **context)
        problem = replace(problem, plan=plan)
        solved = solve_all(problem)
    certificate = certify(problem, solved)
    ranks = getattr(problem.data, "ranks", None)
    heard = ranks is None or ranks.rank == 0  # once is enough
    if heard and not certificate.status.startswith(("exact", "converged")):
        warnings.warn(certificate.status, stacklevel=depth)
    backend = problem.data.home
    data = problem.data
    how: dict[str, Any] = {"offset": data.offset, "weighting": data.weighting}
    how["ranks"] = ranks
    model = Model(data.hold(plan, backend), backend, template, context["memory"], **how)
    if folds is not None:
        model = replace(model, folds=folds(problem, context["memory"]))
    return Fit(
        kernel=problem.data.kernel,
        lams=lams,
        info=describe(problem, solved, certificate),
        _solution=solved.solution,
        _model=model,
        _progress=progress,
    )


def _solve(problem: Problem) -> Solved | None:
    """By the solver of the plan; None where it gives way to the eigendecomposition."""
    if problem.solver is not None:
        return solve_elsewhere(problem)
    if problem.plan.method not in EXACT_METHODS:
        return solve_by_basis(problem)
    alone = getattr(problem.data, "ranks", None) is None
    return solve_all(problem) if alone else solve_all_on_ranks(problem)


def describe(problem: Problem, solved: Solved, certificate: Certificate) -> Info:
    """How the fit was made, as a result."""
    plan, data, spectrum = problem.plan, problem.data, solved.spectrum
    return Info(
        method=plan.method,
        operator=plan.operator,
        precision=plan.precision,
        backend=data.home.name,
        n=data.n,
        d=int(data.X.shape[1]),
        c=int(data.Y.shape[1]),
        k=0 if spectrum is None else int(spectrum.basis.shape[1]),
        passes=solved.passes,
        iterations=solved.iterations,
        error_estimate=certificate.error,
        residual=certificate.residual,
        below_rounding=0 if spectrum is None else spectrum.below_rounding,
        seconds=Seconds(problem.watch.seconds),
        bytes=plan.bytes,
        status=certificate.status,
    )


def basis_checkpoint(
    path: str | os.PathLike[str] | None,
    plan: Plan,
    data: TrainingData,
    lams: np.ndarray,
    seed: int,
    *,
    rows: Sequence[Any] | None = None,
) -> Checkpoint | None:
    """The checkpoint of a fit, with the fingerprint of everything that decides its basis.

    `rows` stand for X, Y and roots of weights where no rank has them all.
    """
    if path is None:
        return None
    if plan.method not in ("lanczos", "subspace"):
        raise ValueError(
            f"checkpoint= is for method='lanczos' or 'subspace', which grow a basis: {plan.method} has "
            "none to save"
        )
    if " at 0x" in repr(data.kernel):
        raise ValueError(
            f"checkpoint= cannot recognise the function in {data.kernel!r}: use a kernel with a formula"
        )
    weighted: dict[str, Any] = {}
    if data.weighting is not None:
        roots = data.weighting.roots if rows is None else rows[2]
        weighted = {"roots": roots, "intercept": data.weighting.intercept}
    owner = fingerprint(
        X=data.X if rows is None else rows[0],
        Y=data.Y if rows is None else rows[1],
        kernel=repr(data.kernel),
        lams=lams,
        method=plan.method,
        dtype=plan.precision,
        block=plan.block,
        rank=plan.rank,
        **weighted,
        seed=seed,
        version=FORMAT,
    )
    return Checkpoint(Path(path), owner)
