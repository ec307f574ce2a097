"""Follow a plan: all eigenvalues, a basis grown from the targets, or solves from such a basis."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend, NumpyBackend, TorchBackend
from sdgpu.backend.checks import LEAST_NORM
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.threads import only_torch
from sdgpu.engine.planner import Plan
from sdgpu.engine.training_data import OperatorRemade, TrainingData, rounding_noise
from sdgpu.solvers.checkpoint import BasisCheckpoint
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.leverage import Estimated
from sdgpu.solvers.primal import Primal
from sdgpu.solvers.resolvent_solution import ResolventSolution
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.solver import Solver
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum, above_rounding
from sdgpu.solvers.subspace import Subspace, SubspaceResult
from sdgpu.solvers.trace_estimation import TOL, Probes
from sdgpu.solvers.units import Units, refuse_underflow

__all__ = ["Problem", "Solved", "one_pool", "solve_all", "solve_by_basis", "solve_elsewhere"]

START = 4  # passes that grow a basis for the first guesses of conjugate gradients


@dataclass(frozen=True, eq=False)
class Problem:
    """What a solver works on.

    Attributes
    ----------
    plan : Plan
    data : TrainingData
    lams : array (L,)
    seed, probes : int
        Of the random numbers; how many vectors stand for eigenvalues that a basis has not seen.
    watch : Stopwatch
    checkpoint : BasisCheckpoint or None
    solver : Solver or None
        From elsewhere; the plan names another only by its name.
    """

    plan: Plan
    data: TrainingData
    lams: np.ndarray
    seed: int
    probes: int
    watch: Stopwatch
    checkpoint: BasisCheckpoint | None = None
    solver: Solver | None = None


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solver found, and what it says of it.

    Attributes
    ----------
    solution : Solution
        In the units of the targets.
    spectrum : Spectrum or None
        Of the solver.
    most_negative : float
        The most negative eigenvalue, in the units of K.
    operator : Operator
        K as it was multiplied.
    error : float
        The solver's own bound on the relative error of the predictions; 0 for all eigenvalues.
    status : str
    passes, iterations : int
    """

    solution: Solution
    spectrum: Spectrum | None
    most_negative: float
    operator: Any
    error: float
    status: str
    passes: int
    iterations: int


def one_pool(home: Backend) -> AbstractContextManager[Any]:
    """torch for NumPy's arrays, so that one pool of threads does it all."""
    return only_torch() if isinstance(home, NumpyBackend) else nullcontext()


def solve_all(problem: Problem) -> Solved:
    """All eigenvalues."""
    backend = problem.data.home
    dense, Y = problem.data.dense(backend), backend.asarray(problem.data.Y)
    solver = Primal(backend) if problem.plan.method == "primal" else Eigh(backend)
    spectrum = solver.decompose(dense, Y, problem.watch)
    least_norm = problem.lams[0] == LEAST_NORM
    spectrum = above_rounding(spectrum, Y) if least_norm else spectrum
    weighting = problem.data.weighting
    return Solved(
        solution=SpectralSolution(spectrum, Y=Y if least_norm else None, weighting=weighting),
        spectrum=spectrum,
        most_negative=spectrum.most_negative,
        operator=dense,
        error=0.0,
        status="",
        passes=1,
        iterations=0,
    )


def solve_elsewhere(problem: Problem) -> Solved:
    """By a solver that the caller brought."""
    assert problem.solver is not None
    backend = problem.data.home
    keep = problem.plan.operator == "dense"
    K, Y = problem.data.hold(problem.plan, backend, keep=keep), backend.asarray(problem.data.Y)
    with problem.watch.stage(problem.solver.name):
        solution = problem.solver.solve(K, Y, problem.lams, problem.watch)
    return Solved(
        solution=solution,
        spectrum=solution.spectrum,
        most_negative=0.0,
        operator=K,
        error=0.0,
        status="",
        passes=0,
        iterations=0,
    )


def solve_by_basis(problem: Problem) -> Solved | None:
    """A basis, and solves from it for "cg"; None if all eigenvalues would take less time."""
    plan, data, home = problem.plan, problem.data, problem.data.home
    backend = TorchBackend("cpu") if isinstance(home, NumpyBackend) else home
    dense, Y = data.dense(backend), backend.asarray(data.Y)
    K = data.hold(plan, backend, keep=plan.operator == "dense")
    if plan.precision != "float64":
        refuse_underflow(dense)
    units = Units.of(K, Y)
    K_scaled = units.scaled(K)
    solver = _solver(problem, backend, rounding_noise(dense))
    with one_pool(home):
        Y = Y / backend.asarray(units.targets)
        lams = problem.lams / units.kernel
        grown = solver.decompose(K_scaled, Y, lams, problem.watch, problem.checkpoint)
        if grown.given_up:
            return None
        estimates = _estimates(problem, backend, grown, units)
        solution = _spectral(problem, grown.spectrum, units, estimates)
        solved = Solved(
            solution=solution,
            spectrum=grown.spectrum,
            most_negative=grown.spectrum.most_negative * units.kernel,
            operator=K,
            error=grown.error,
            status=grown.status,
            passes=grown.passes,
            iterations=grown.passes,
        )
        if plan.method != "cg":
            return solved
        # the tiles that are kept are needed again, for every lam that is asked for later
        resolvents = Resolvents(
            operator=K_scaled,
            backend=backend,
            Y=Y,
            units=units,
            tol=plan.tol,
            steps=plan.steps,
            space=grown.space,
            sketch=grown.sketch,
            watch=problem.watch,
            noise=solver.noise,
            kept_lams=frozenset(map(float, problem.lams)),
        )
        return _solve_resolvents(problem, solved, resolvents, estimates)


def _solver(problem: Problem, backend: Backend, noise: float) -> Subspace:
    plan = problem.plan
    solver = Subspace(
        backend,
        plan.tol,
        plan.block,
        plan.rank,
        plan.steps,
        max_size=plan.max_size,
        seed=problem.seed,
        patience=plan.patience,
        noise=noise,
    )
    return replace(solver, max_passes=START) if plan.method == "cg" else solver


def _solve_resolvents(
    problem: Problem, solved: Solved, resolvents: Resolvents, estimates: Estimated
) -> Solved:
    """The solves of every lam that was asked for, from the basis that was found."""
    with problem.watch.stage("cg"):
        resolvents.solve(problem.lams, problem.plan.steps)
    resolvents.warns = True
    return replace(
        solved,
        solution=ResolventSolution(
            resolvents, problem.data.home, estimates, problem.data.weighting
        ),
        error=resolvents.error,
        status=resolvents.summary,
        passes=solved.passes + resolvents.passes,
        iterations=resolvents.iterations,
    )


def _spectral(
    problem: Problem, spectrum: Spectrum, units: Units, estimates: Estimated
) -> SpectralSolution:
    """What a grown spectrum answers, out of the units of its solver."""
    home = problem.data.home
    eigenvalues = home.asarray(spectrum.eigenvalues) * units.kernel
    Z = home.asarray(spectrum.Z) * home.asarray(units.targets)
    rescaled = replace(
        spectrum,
        eigenvalues=eigenvalues,
        basis=home.asarray(spectrum.basis),
        Z=Z,
        most_negative=spectrum.most_negative * units.kernel,
        method=problem.plan.method,
    )
    known = int(eigenvalues.shape[0]) == problem.data.n
    return SpectralSolution(
        rescaled, None if known else estimates, weighting=problem.data.weighting
    )


def _estimates(
    problem: Problem, backend: Backend, grown: SubspaceResult, units: Units
) -> Estimated:
    """What will stand for the eigenvectors that the basis has not seen; no work yet."""
    plan, data, lams = problem.plan, problem.data, problem.lams / units.kernel
    # A probe need not be as right as a prediction: float32 leaves an error near 1e-10 n / lam.
    float32_suffices = 1e-10 * data.n / float(lams.min()) <= TOL
    float32_suffices = float32_suffices and units.kernel == 1 and _fits_float32(data.X)
    precision = "float32" if float32_suffices and plan.operator == "tiled" else plan.precision
    probe_plan = replace(plan, precision=precision)
    # rows that matter are those with large errors in the targets' own units
    weights = backend.asarray(units.targets / units.targets.max())
    ritz = replace(grown.spectrum, Z=grown.spectrum.Z * weights)
    probes = Probes(
        operator=OperatorRemade(probe_plan, data, backend, units),
        backend=backend,
        sketch=grown.sketch,
        ritz=ritz,
        lams=lams,
        steps=plan.steps,
        count=problem.probes,
        seed=problem.seed,
        watch=problem.watch,
    )
    return Estimated(probes, data.home, units.kernel)


def _fits_float32(X: Any) -> bool:
    """Whether squares of X, and some powers of these, stay in float32."""
    X = X.data if is_csr(X) else X
    if not compat.size(X):
        return True
    xp = compat.array_namespace(X)  # extremes: the absolute values would be a copy
    return float(xp.max(X)) < 1e6 and float(xp.min(X)) > -1e6
