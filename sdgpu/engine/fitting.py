"""`fit`: check the data, follow a plan, decompose once."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import dtype_name, may_share, pair
from sdgpu.backend.backends import (
    Backend,
    NumpyBackend,
    TorchBackend,
    resolve,
)
from sdgpu.backend.checks import integer, lam_grid
from sdgpu.backend.conversion import rounded_to
from sdgpu.backend.copying import without_caches
from sdgpu.backend.memory import budget, require
from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.threads import only_torch
from sdgpu.engine.certificate import (
    evaluation_error,
    exact_status,
    judged,
    noise,
    probe,
    spectral_rounding,
)
from sdgpu.engine.fitted import Fit
from sdgpu.engine.path import Model
from sdgpu.engine.planner import Plan, decide, follow
from sdgpu.engine.results import Info, Seconds
from sdgpu.kernels import Kernel, Precomputed, as_kernel
from sdgpu.kernels.precomputed import NEGATIVE, FunctionKernel
from sdgpu.operators import DenseOperator, KeOpsOperator, TiledOperator
from sdgpu.solvers.checkpoint import Checkpoint, fingerprint
from sdgpu.solvers.eigh import Eigh, refuse_indefinite
from sdgpu.solvers.leverage import Estimated
from sdgpu.solvers.resolvent_solution import ResolventSolution
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.subspace import Subspace, SubspaceResult
from sdgpu.solvers.trace_estimation import GROUPS, TOL, Probes
from sdgpu.solvers.units import Units, refuse_underflow

__all__ = ["fit"]

FORMAT = 1  # of checkpoints
START = 4  # passes that grow a basis for the first guesses of conjugate gradients
# arguments of `fit` that a plan decides
_DEFAULTS = {"method": "auto", "operator": "auto", "dtype": None, "tol": 1e-6, "steps": 10}


@underflow_is_zero
def fit(
    X: Any,
    Y: Any,
    kernel: Kernel | str | Any = "rbf",
    lams: Any = 1.0,
    *,
    method: str = "auto",
    operator: str = "auto",
    device: str | Backend = "auto",
    tol: float = 1e-6,
    dtype: str | None = None,
    steps: int = 10,
    memory: int | float | str | None = None,
    seed: int = 0,
    probes: int = 16,
    plan: Plan | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Decompose K = kappa(X, X) once, for every lam, alpha and step.

    K = V diag(delta) V' and Z = V'Y; every step of self-distillation with every weight is then a
    filter on the eigenvalues, y(tau) = V B(tau) Z (Borup and Andersen 2021, equation (10)).

    Parameters
    ----------
    X : array_like (n, d)
        Training inputs: NumPy, torch (any device), CuPy, any array API or DLPack array; lists, pandas,
        polars, JAX and dask are read into NumPy. Columns of a table that have names are remembered: new
        tables must have them in this order. With kernel="precomputed", K itself (n, n).
    Y : array_like (n,) or (n, c)
        Targets, in the same library and on the same device.
    kernel : Kernel, str or callable, default "rbf"
        See :func:`sdgpu.kernels.as_kernel`.
    lams : number or array_like (L,), default 1
        The regularisations that will be asked for, absolute numbers in K + lam I.
    method : {"auto", "eigh", "lanczos", "subspace", "cg"}, default "auto"
        "eigh" finds all n eigenvalues. "lanczos" and "subspace" grow a basis from Y that serves every
        lam >= min(lams), every weight and `steps` steps to `tol`, from products with K alone; the
        second with a preconditioner, for small lam. "cg" makes `steps` solves for each lam by
        preconditioned conjugate gradients, which serve every weight, and a few more for each other
        lam or limit that is asked for; it has no spectrum. See :func:`sdgpu.plan`.
    operator : {"auto", "dense", "tiled", "keops"}, default "auto"
        K in memory, recomputed in tiles at every product, or reduced by KeOps.
    device : str or Backend, default "auto"
        "cpu", "cuda", "cuda:0", ..; "auto" prefers CUDA.
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
        A ``.safetensors`` file to which "lanczos" and "subspace" save their basis as it grows, and on
        an interrupt; the same call goes on from it. It stays when the fit is done.
    progress : callable, optional
        Called with an :class:`sdgpu.backend.progress.Event`: stage, done, total, error, seconds_left.

    Returns
    -------
    Fit

    Warns
    -----
    UserWarning
        If the result is not as accurate as asked; `info.status` says the same and what to try.

    Raises
    ------
    TypeError
        For sparse, complex, object or string input.
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
    chosen, ridges = as_kernel(kernel), lam_grid("lams", lams)
    if integer("probes", probes, GROUPS) % GROUPS:
        raise ValueError(
            f"probes={probes} must be a multiple of {GROUPS}, to tell how far they spread"
        )
    rows, wanted, template = pair(X, Y)
    (n, d), c = (int(size) for size in rows.shape), int(wanted.shape[1])
    backend = resolve(device, rows)
    allowed = budget(memory, backend.name)
    if plan is None:
        plan = decide(
            n, d, c, ridges, steps, device=backend, memory=allowed, tol=tol, method=method,
            operator=operator, precision=dtype, given=isinstance(chosen, Precomputed), kernel=chosen,
        )  # fmt: skip
    else:
        given = {"method": method, "operator": operator, "dtype": dtype, "tol": tol, "steps": steps}
        asked = {name: value for name, value in given.items() if value != _DEFAULTS[name]}
        plan = follow(plan, {"n": n, "d": d, "c": c}, ridges, asked)
    require(plan.bytes, allowed, f"the plan ({plan.method}, {plan.operator})", "raise memory=")
    own, rounded = _private(backend.asarray(rows), X, chosen), _rounded(chosen, X, rows, backend)
    data = _Data(chosen, own, wanted, rounded, backend)
    watch = Stopwatch(backend.synchronize, progress=progress)
    saved = None
    if checkpoint is not None:
        saved = _checkpoint(checkpoint, plan, rows, wanted, chosen, ridges, seed)
    grown = None
    if plan.method != "eigh":
        grown = _grow(plan, data, ridges, (seed, probes), watch, saved)
        if grown is None:
            watch.report("eigh instead, the basis would take longer", 0, 1)
            plan = decide(n, d, c, ridges, plan.steps, device=backend, memory=allowed, tol=plan.tol,
                          method="eigh", given=isinstance(chosen, Precomputed), kernel=chosen)  # fmt: skip
    solution, info = grown or _exact(plan, data, ridges, watch)
    if not info.status.startswith(("exact", "converged")):
        warnings.warn(info.status, stacklevel=3)  # the caller of the decorated function
    model = Model(_operator(plan, data.dense(backend)), backend, template, allowed)
    return Fit(chosen, ridges, info, solution, model, progress)


@dataclass(frozen=True, eq=False)
class _Data:
    """Checked data on their way to a solver."""

    kernel: Kernel
    X: Any
    Y: Any
    dtype: str  # in which X came, or in which the caller's kernel was made
    home: Backend
    _made: dict[str, DenseOperator] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**without_caches(self), "_made": {}}

    def dense(self, backend: Backend) -> DenseOperator:
        """K as an operator in the library of a backend, made and checked once for each."""
        if backend.name not in self._made:
            X = backend.asarray(self.X)
            self._made[backend.name] = DenseOperator(
                self.kernel, X, backend.tile, self.dtype, checked=True
            )
        return self._made[backend.name]


@dataclass(frozen=True, eq=False)
class _Again:
    """Makes K as an operator when it is needed after the fit; a closure could not be pickled."""

    plan: Plan
    data: _Data
    backend: Backend
    units: Units

    def __call__(self) -> Any:
        keep = self.plan.operator == "dense"
        return self.units.scaled(_operator(self.plan, self.data.dense(self.backend), keep=keep))


def _operator(plan: Plan, dense: DenseOperator, *, keep: bool = False) -> Any:
    """K as the plan wants to hold it."""
    if plan.operator == "keops":
        return KeOpsOperator(dense.kernel, dense.X, plan.precision)
    if dense.given or plan.method == "eigh":
        return dense
    # a stored K for products alone is half of its tiles, in the precision that was asked for
    return TiledOperator(
        dense.kernel, dense.X, plan.precision, keep=keep, workers=plan.threads, checked=True
    )


def _exact(plan: Plan, data: _Data, lams: np.ndarray, watch: Stopwatch) -> tuple[Solution, Info]:
    """All eigenvalues."""
    backend, ridge = data.home, float(lams.min())
    dense, Y = data.dense(backend), backend.asarray(data.Y)
    spectrum = Eigh(backend).decompose(dense, Y, watch)
    solution = SpectralSolution(spectrum)
    seen = probe(solution, dense, Y, ridge)
    certain = np.inf if np.isnan(seen.certain) else seen.certain  # dual coefficients beyond float64
    error = max(certain, spectral_rounding(spectrum, ridge, plan.steps, noise(dense)))
    status = exact_status(spectrum, seen.largest, error, ridge, plan.bytes)
    return solution, _info(plan, data, spectrum, watch, 1, 0, error, seen.largest, status)


def _grow(
    plan: Plan, data: _Data, lams: np.ndarray, random: tuple[int, int], watch: Stopwatch,
    saved: Checkpoint | None,
) -> tuple[Solution, Info] | None:  # fmt: skip
    """A basis, and solves from it for "cg"; None if all eigenvalues would take less time."""
    home, (seed, count) = data.home, random
    # torch for NumPy's arrays, so that one pool of threads does it all
    backend = TorchBackend("cpu") if isinstance(home, NumpyBackend) else home
    dense, Y = data.dense(backend), backend.asarray(data.Y)
    held = _operator(plan, dense, keep=plan.operator == "dense")
    if plan.precision != "float64":
        refuse_underflow(dense)
    units = Units.of(held, Y)
    scaled, ridges = units.scaled(held), lams / units.kernel
    solver = Subspace(
        backend, plan.tol, plan.block, plan.rank, plan.steps, max_size=plan.max_size, seed=seed,
        patience=plan.patience, noise=noise(dense),
    )  # fmt: skip
    if plan.method == "cg":
        solver = replace(solver, max_passes=START)
    with only_torch() if backend is not home else nullcontext():
        Y = Y / backend.asarray(units.targets)
        grown = solver.decompose(scaled, Y, ridges, watch, saved)
        if grown.given_up:
            return None
        spectrum, error, status = grown.spectrum, grown.error, grown.status
        passes = iterations = grown.passes
        estimates = _estimates(plan, data, backend, grown, units, lams, count, seed, watch)
        solution: Solution = _solution(plan, home, spectrum, units, estimates, dense.n)
        if plan.method == "cg":
            # the tiles that are kept are needed again, for every lam that is asked for later
            solved = Resolvents(
                scaled, backend, Y, units, plan.tol, plan.steps, grown.space, grown.sketch, watch,
                solver.noise, own=frozenset(map(float, lams)),
            )  # fmt: skip
            with watch.stage("cg"):
                solved.solve(lams, plan.steps)
            solved.warns = True
            solution = ResolventSolution(solved, home, estimates)
            error, status = solved.error, solved.summary
            passes, iterations = passes + solved.passes, solved.iterations
        dense, ridge = data.dense(home), float(lams.min())
        seen = probe(solution, dense, home.asarray(data.Y), ridge, plan.precision)
        if plan.precision != "float64":
            # the solver's bound holds for K as it was evaluated
            error += 1.25 * evaluation_error(solution, held, dense, plan.precision, ridge)
    status, error = judged(status, error, seen, plan.tol, plan.precision)
    rounded = dense.given_dtype or ("float64" if plan.precision == "float64" else "float32")
    if spectrum.most_negative * units.kernel < -NEGATIVE[rounded] * solution.largest:
        refuse_indefinite(dense, spectrum.most_negative * units.kernel, solution.largest)
    info = _info(plan, data, spectrum, watch, passes, iterations, error, seen.largest, status)
    return solution, info


def _solution(
    plan: Plan, home: Backend, spectrum: Spectrum, units: Units, estimates: Estimated, n: int
) -> SpectralSolution:
    """What a grown spectrum answers, out of the units of its solver."""
    eigenvalues = home.asarray(spectrum.eigenvalues) * units.kernel
    Z = home.asarray(spectrum.Z) * home.asarray(units.targets)
    own = replace(
        spectrum, eigenvalues=eigenvalues, basis=home.asarray(spectrum.basis), Z=Z,
        most_negative=spectrum.most_negative * units.kernel, method=plan.method,
    )  # fmt: skip
    return SpectralSolution(own, estimates if len(eigenvalues) < n else None)


def _estimates(
    plan: Plan, data: _Data, backend: Backend, grown: SubspaceResult, units: Units, lams: np.ndarray,
    count: int, seed: int, watch: Stopwatch,
) -> Estimated:  # fmt: skip
    """What will stand for the eigenvectors that the basis has not seen; no work yet."""
    # A probe need not be as right as a prediction: float32 leaves an error near 1e-10 n / lam.
    right = 1e-10 * data.X.shape[0] / float(lams.min() / units.kernel) <= TOL
    right = right and units.kernel == 1 and _fits_float32(data.X)
    precision = "float32" if right and plan.operator == "tiled" else plan.precision
    rough = replace(plan, precision=precision)
    # rows that matter are those with large errors in the targets' own units
    weights = backend.asarray(units.targets / units.targets.max())
    known = replace(grown.spectrum, Z=grown.spectrum.Z * weights)
    probes = Probes(
        _Again(rough, data, backend, units), backend, grown.sketch, known, lams / units.kernel,
        plan.steps, count, seed, watch,
    )  # fmt: skip
    return Estimated(probes, data.home, units.kernel)


def _fits_float32(X: Any) -> bool:
    """Whether squares of X, and some powers of these, stay in float32."""
    xp = compat.array_namespace(X)  # extremes: the absolute values would be a copy
    return float(xp.max(X)) < 1e6 and float(xp.min(X)) > -1e6


def _info(
    plan: Plan, data: _Data, spectrum: Spectrum, watch: Stopwatch, passes: int, iterations: int,
    error: float, residual: float, status: str,
) -> Info:  # fmt: skip
    (n, d), c, k = data.X.shape, data.Y.shape[1], spectrum.basis.shape[1]
    return Info(
        plan.method, plan.operator, plan.precision, data.home.name, int(n), int(d), int(c), int(k),
        passes, iterations, error, residual, spectrum.below_rounding, Seconds(watch.seconds), plan.bytes,
        status,
    )  # fmt: skip


def _checkpoint(
    path: str | os.PathLike[str],
    plan: Plan,
    X: Any,
    Y: Any,
    kernel: Kernel,
    lams: np.ndarray,
    seed: int,
) -> Checkpoint:
    """The checkpoint of a fit, with the fingerprint of everything that decides its basis."""
    if plan.method in ("eigh", "cg"):
        raise ValueError(
            f"checkpoint= is for method='lanczos' or 'subspace', which grow a basis: {plan.method} has "
            "none to save"
        )
    if " at 0x" in repr(kernel):
        raise ValueError(
            f"checkpoint= cannot recognise the function in {kernel!r}: use a kernel with a formula"
        )
    owner = fingerprint(
        X=X, Y=Y, kernel=repr(kernel), lams=lams, method=plan.method, dtype=plan.precision,
        block=plan.block, rank=plan.rank, seed=seed, version=FORMAT,
    )  # fmt: skip
    return Checkpoint(Path(path), owner)


def _rounded(kernel: Kernel, X: Any, rows: Any, backend: Backend) -> str:
    """The precision in which kernel values are known: that of a kernel that the caller made."""
    if isinstance(kernel, Precomputed):
        return rounded_to(X) or dtype_name(rows)
    if isinstance(kernel, FunctionKernel):
        first = backend.asarray(rows[:1, ...])
        return min(kernel.precision(first), dtype_name(rows), key=list(reversed(NEGATIVE)).index)
    return dtype_name(rows)


def _private(array: Any, given: Any, kernel: Kernel) -> Any:
    """A copy if the array is the caller's own memory: later changes there must not change a fit.

    A precomputed K is only read while it is decomposed, so it is not copied.
    """
    if isinstance(kernel, Precomputed) or not may_share(array, given):
        return array
    return compat.array_namespace(array).asarray(array, copy=True)
