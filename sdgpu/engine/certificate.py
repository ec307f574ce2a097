"""How far to trust a fit: rounding, the precision of K, and the equations on rows of K computed anew.

A solver bounds what its space leaves out. This is the rest of the certificate, and the check that no
solver can make of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.checks import LEAST_NORM
from sdgpu.backend.memory import show
from sdgpu.backend.scaling import column_units
from sdgpu.backend.sharded_arrays import is_sharded
from sdgpu.distill.rounding_bounds import decay, dual_lengths, rounding_bound
from sdgpu.engine.planner import EXACT_METHODS
from sdgpu.engine.solving import Problem, Solved, one_pool
from sdgpu.engine.training_data import rounding_noise
from sdgpu.kernels.precomputed import NEGATIVE
from sdgpu.operators.operator import MatrixOperator
from sdgpu.solvers.eigh import refuse_indefinite
from sdgpu.solvers.galerkin import relative_to
from sdgpu.solvers.solution import Solution
from sdgpu.solvers.spectrum import Spectrum

__all__ = [
    "Certificate",
    "TrainingResidual",
    "certify",
    "evaluation_error",
    "exact_status",
    "grown_status",
    "probe",
    "spectral_rounding",
]

EXACT = 1e-6  # an eigendecomposition that is no better warns
CONTRADICTION = 2.0  # residuals that exceed the certificate by this factor decide the status
SAMPLED = 1.25  # a root mean square of 32 rows is right to 12 % or so
ALL = 512  # rows up to which all are checked where K is evaluated in float32: a few ms
ALL_NUMBERS = 2**19  # and what they may take: 4 MiB
PROBES = 32  # rows whose training equation is checked after a fit


@dataclass(frozen=True)
class Certificate:
    """How far to trust a fit.

    Attributes
    ----------
    error : float
        Relative error of the predictions over all lam and steps.
    residual : float
        The largest residual of the training equation, :class:`TrainingResidual`.
    status : str
        A sentence.
    """

    error: float
    residual: float
    status: str


def certify(problem: Problem, solved: Solved) -> Certificate:
    """Judge what a solver found, at the smallest lam.

    Raises
    ------
    ValueError
        If K has an eigenvalue that is negative beyond rounding.
    """
    plan, data, lam = problem.plan, problem.data, float(problem.lams.min())
    dense, Y = data.dense(data.home), data.home.asarray(data.Y)
    if problem.solver is not None:
        return _residual_certificate(probe(solved.solution, dense, Y, lam), plan.tol)
    if plan.method in EXACT_METHODS:
        assert solved.spectrum is not None
        if lam == LEAST_NORM:
            return _least_norm_certificate(solved.spectrum, data.n, rounding_noise(dense))
        residual = probe(solved.solution, dense, Y, lam)
        # dual coefficients beyond float64
        certain = np.inf if np.isnan(residual.certain) else residual.certain
        rounding = spectral_rounding(solved.spectrum, lam, plan.steps, rounding_noise(dense))
        error = max(certain, rounding)
        status = exact_status(solved.spectrum, residual.largest, error, lam, plan.bytes)
        return Certificate(error, residual.largest, status)
    error = solved.error
    with one_pool(data.home):
        residual = probe(solved.solution, dense, Y, lam, plan.precision)
        if plan.precision != "float64":
            # the solver's bound holds for K as it was evaluated
            kernel_error = evaluation_error(
                solved.solution, solved.operator, dense, plan.precision, lam, steps=plan.steps
            )
            error += 1.25 * kernel_error
    status, error = grown_status(solved.status, error, residual, plan.tol, plan.precision)
    value_dtype = dense.given_dtype or ("float64" if plan.precision == "float64" else "float32")
    size = max(solved.solution.largest, dense.difference_scale)
    if solved.most_negative < -NEGATIVE[value_dtype] * size:
        refuse_indefinite(dense, solved.most_negative, solved.solution.largest)
    return Certificate(error, residual.largest, status)


def _least_norm_certificate(spectrum: Spectrum, n: int, noise: float) -> Certificate:
    """Of lam = 0: what rounding of K may do along the smallest eigenvalue that is kept."""
    delta = to_numpy(spectrum.eigenvalues)
    if not len(delta):
        return Certificate(0.0, 0.0, "exact: K is 0")
    error, text = noise * float(delta[-1] / delta[0]), f"{len(delta)} of {n} eigenvalues are kept"
    if error <= EXACT:
        return Certificate(
            error, 0.0, f"exact to {error:.1e} at lam = 0: {text}, all above rounding"
        )
    status = (
        f"inaccurate at lam = 0: {text}, and the smallest carries rounding of {error:.1e} of itself, which "
        "predictions at new rows may be off by; take a small lam"
    )
    return Certificate(error, 0.0, status)


def _residual_certificate(residual: TrainingResidual, tol: float) -> Certificate:
    """All that is known of a solver from elsewhere are residuals on a few rows."""
    error = np.inf if np.isnan(residual.expected) else float(residual.expected)
    word = "converged" if error <= tol else "not converged"
    status = (
        f"{word}: relative error about {error:.1e}, by the equations on a few rows; tol = {tol:.0e}"
    )
    return Certificate(error, residual.largest, status)


def spectral_rounding(spectrum: Spectrum, lam: float, steps: int, noise: float) -> float:
    """What rounding may do to the predictions, relative to those of step 1; largest at the smallest lam."""
    delta, Z = to_numpy(spectrum.eigenvalues), to_numpy(spectrum.Z)
    top = float(delta[-1])
    unit = 1.0 if 1e-100 < top < 1e100 else np.ldexp(1.0, int(np.frexp(top)[1]))
    delta, lam, Z = delta / unit, lam / unit, Z / column_units(Z)
    with np.errstate(over="ignore", under="ignore"):  # a hopeless lam, which is the answer
        lengths = dual_lengths(delta, Z, np.array([lam]), steps)
    fitted = np.linalg.norm((delta / (delta + lam))[:, None] * Z, axis=0)[None, None, :]
    sizes = relative_to(fitted, np.linalg.norm(Z, axis=0), float(delta[-1]), np.array([lam]))
    bound = rounding_bound(lengths, float(delta[-1]), noise).max(axis=(0, 1))
    return _over(bound, sizes[0, 0])


@dataclass(frozen=True)
class TrainingResidual:
    """What is left of (K + lam I) dual = Y on a few rows of K that are computed anew in float64.

    Attributes
    ----------
    largest : float
        The largest residual r relative to max |Y|.
    certain, expected, alike : float
        What ||r|| may do to the predictions, relative to them: with r of these rows alone; of all, by the
        mean square of these; and as if all rows were like the worst of them.

    All are the largest over outputs; NaN where the dual coefficients are not finite.
    """

    largest: float
    certain: float
    expected: float
    alike: float


def probe(
    solution: Solution, operator: MatrixOperator, Y: Any, lam: float, precision: str = "float64"
) -> TrainingResidual:
    """Check the training equation on a few rows, evenly spread."""
    columns = slice(0, min(Y.shape[1], 16))
    xp = compat.array_namespace(Y)
    # a hopeless lam overflows here, which is the answer
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        rows = _probe_rows(operator, precision)
        index = xp.asarray(rows, device=compat.device(Y))
        units = column_units(Y[:, columns])
        unit_row = xp.asarray(units, dtype=Y.dtype, device=compat.device(Y))
        dual, fitted, targets = (
            x / unit_row for x in (*solution.ridge(lam, columns), Y[:, columns])
        )
        truth, dual_there = (to_numpy(xp.take(x, index, axis=0)) for x in (targets, dual))
        product = to_numpy(operator.columns(rows).T @ dual)
        residual = product + lam * dual_there - truth
        target_max = to_numpy(xp.max(xp.abs(targets), axis=0))
        target_norms = _column_norms(targets)
        fit_norms = _column_norms(fitted)[None, None, :]
        # what the solver has seen of K may be nothing at all
        largest = max(solution.largest, float(xp.max(operator.diag())))
        sizes = relative_to(fit_norms, target_norms, largest, np.array([lam]))
        worst = _over(np.abs(residual).max(axis=0), target_max)
        finite = bool(xp.all(xp.isfinite(dual)))
        # a residual r moves the predictions by K (K + lam I)^-1 r
        if not finite:
            return TrainingResidual(worst, np.nan, np.nan, np.nan)
        shrinkage = 1 / (1 + lam / largest) if largest else 1.0
        certain = _over(shrinkage * np.linalg.norm(residual, axis=0), sizes[0, 0])
        alike = _over(shrinkage * np.sqrt(operator.n) * np.abs(residual).max(axis=0), sizes[0, 0])
        return TrainingResidual(worst, certain, certain * np.sqrt(operator.n / len(rows)), alike)


def _column_norms(x: Any) -> np.ndarray:
    """Length of each column (n, c), on the host."""
    return np.sqrt(to_numpy(compat.array_namespace(x).sum(x * x, axis=0)))


def _over(errors: np.ndarray, sizes: np.ndarray) -> float:
    """Largest errors / sizes; 0 where there is nothing to be relative to."""
    relative = np.divide(errors, sizes, out=np.zeros_like(errors), where=sizes > 0)
    return float(relative.max(initial=0.0))


def evaluation_error(
    solution: Solution,
    solver_operator: Any,
    operator: MatrixOperator,
    precision: str,
    lam: float,
    *,
    steps: int = 1,
) -> float:
    """Estimate of what the errors of K~, as it is evaluated and multiplied, make of T steps, over ||u_1||.

    With w_j the dual coefficients of the steps with alpha = 0, that of step t is at most
    sum_{j <= t} g_(t-j) ||(K - K~) w_j||, g_m = max a^m (1 - a), as H^t - H~^t is
    sum_i H^i (H - H~) H~^(t-1-i).

    From the worst of a few rows, as if all were like it; infinite where float32 cannot hold K or dual.
    """
    columns = slice(0, min(solution.outputs, 16))
    fitted = _comparable(solution.ridge(lam, columns)[1])
    chain = solution.chain(lam, np.zeros(steps - 1))
    all_duals = _comparable(chain.dual)[:, :, columns]
    xp = compat.array_namespace(all_duals)
    duals = xp.permute_dims(all_duals, (1, 2, 0))  # (n, c', T)
    with np.errstate(under="ignore"):
        units = column_units(duals[:, :, 0])  # float32 may not hold them
        column = xp.asarray(units, dtype=duals.dtype, device=compat.device(duals))
        dual = xp.reshape(duals / column[:, None], (operator.n, -1))
        fitted_norms = _column_norms(fitted / column)
    rows, eps = _probe_rows(operator, precision), float(np.finfo(np.float32).eps)
    exact = to_numpy(_comparable(operator.columns(rows)).T @ dual)
    if len(rows) == operator.n:  # with the very tiles of the solver: others have other last bits
        index = xp.asarray(rows, device=compat.device(dual))
        error = exact - to_numpy(xp.take(_comparable(solver_operator.matmat(dual)), index, axis=0))
    else:
        K_rough = _comparable(solver_operator.columns(rows)).T
        if precision == "float32":
            product = to_numpy(xp.astype(K_rough, xp.float32) @ xp.astype(dual, xp.float32))
        else:
            product = to_numpy(K_rough @ dual)
        error = exact - product.astype(np.float64)
        if error.any():
            sizes = np.sqrt(to_numpy((K_rough * K_rough) @ (dual * dual)))
            error = np.maximum(np.abs(error), eps / 2 * sizes)
    norms = np.sqrt(operator.n) * np.abs(error).max(axis=0)
    if precision == "float32":  # and the products of the solver, which few rows of one may not show
        norms = np.maximum(norms, eps * solution.largest * _column_norms(dual))
    step_norms = norms.reshape(-1, steps)  # (c', T)
    total = np.zeros_like(step_norms)
    for m in range(steps):
        total[:, m:] += decay(m) * step_norms[:, : steps - m]
    relative = _over(total.max(axis=1), fitted_norms)
    return relative if np.isfinite(relative) else np.inf


def _comparable(x: Any) -> Any:
    """On the host, whatever the libraries of solver and caller; on several ranks as it is."""
    return x if is_sharded(x) else to_numpy(x)


def _probe_rows(operator: MatrixOperator, precision: str) -> np.ndarray:
    """A few rows, evenly spread; all of few, where only two that are near each other may be wrong."""
    n, d = operator.X.shape
    all_rows = precision != "float64" and n <= ALL and n * d <= ALL_NUMBERS
    count = n if all_rows else PROBES
    return np.unique(np.linspace(0, n - 1, count).round().astype(int))


def grown_status(
    status: str, error: float, residual: TrainingResidual, tol: float, precision: str
) -> tuple[str, float]:
    """Status and error of a grown fit, by the precision of K and the residuals that :func:`probe` saw."""
    error = np.inf if np.isnan(error) else error
    if precision != "float64" and residual.expected > SAMPLED * error:
        error = residual.expected  # residuals know what the tiles had
    if status.startswith("converged") and not error <= tol:
        status = f"limited by dtype={precision!r}: relative error about {error:.1e}; use 'float64'"
    if np.isnan(residual.certain):
        return "overflow: the dual coefficients are beyond float64; rescale Y", np.inf
    if not residual.certain <= CONTRADICTION * max(error, tol):
        status = (
            f"contradicted: {residual.certain:.1e} of the predictions is left as a residual where the "
            f"solver says {error:.1e}; use method='eigh', and remove a checkpoint that was read ({status})"
        )
        error = max(error, residual.alike)
    return status, error


def exact_status(spectrum: Spectrum, residual: float, error: float, lam: float, peak: int) -> str:
    """A sentence about an eigendecomposition, from its residual and error at the smallest lam."""
    eigenvalues = to_numpy(spectrum.eigenvalues)
    rounding = f"{spectrum.below_rounding} of {len(eigenvalues)} eigenvalues are below rounding"
    noise = len(eigenvalues) * np.finfo(float).eps * float(eigenvalues[-1])
    if not max(residual, error) <= EXACT or lam < noise:
        return (
            f"inaccurate at lam = {lam:g}: relative residual {residual:.1e}, and rounding may move the "
            f"predictions by {error:.1e} of those of step 1; the eigenvalues of K carry rounding of "
            f"{noise:.1e}; lam is too small for float64: raise it; {rounding}"
        )
    return (
        f"exact to {max(error, np.finfo(float).eps):.1e} at lam = {lam:g}; {rounding}; {show(peak)}"
    )
