"""Preconditioned conjugate gradients for many right-hand sides, each with its own lam.

Rows share every pass over K but have step lengths of their own; a row that is done is dropped. Every
answer is judged by its true residual: where the recursive one had drifted away, the iteration goes on
from the true one. Stagnation is noticed, and the result says how good each row is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.rates import Rates

__all__ = ["CG", "CGResult"]

REPLACE = 20  # iterations between true residuals
PATIENCE = 40  # iterations without a better residual that count as stagnation
BETTER = 0.98
HALVED = 0.5  # a true residual above this share of the one before it has stagnated


@dataclass(frozen=True, eq=False)
class CGResult:
    """Solutions of (K + lam I) W = B and how good they are.

    Attributes
    ----------
    W : array (b, n)
    R : array (b, n)
        True residuals B - (K + lam) W, up to the rounding of the products.
    residuals : array (b,)
        ||R|| / ||B||, 0 for zero rows.
    iterations : int
    passes : int
        Products with K, the checks of the residual included.
    status : str
        A sentence that says what to try if a row missed its goal.
    """

    W: Any
    R: Any
    residuals: np.ndarray
    iterations: int
    passes: int
    status: str


@dataclass(frozen=True)
class CG:
    """Solve (K + lam I) W = B by preconditioned conjugate gradients.

    Parameters
    ----------
    backend : Backend
    tol : float
        Relative residual of every row.
    max_iterations : int, default 1000
    """

    backend: Backend
    tol: float
    max_iterations: int = 1000

    @staticmethod
    def pass_seconds(n: int, columns: int, rank: int, rates: Rates) -> float:
        """Of an iteration of so many rows with a sketch of that rank, without the product."""
        return (4 * n * rank * columns + 60 * n * columns) / rates.products

    def solve(
        self,
        matmat: Callable[[Any], Any],
        B: Any,
        lam: float | np.ndarray,
        *,
        precondition: Callable[[Any, Any], Any] | None = None,
        start: Any = None,
        residual: Any = None,
        goals: np.ndarray | None = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> CGResult:
        """Solve for rows B (b, n).

        Parameters
        ----------
        matmat : callable
            Rows (b, n) -> rows (b, n) of V K.
        B : array (b, n)
        lam : float or array (b,)
            One for all rows, or one for each.
        precondition : callable, optional
            Rows R (b, n) and their lam (b,), on the device -> rows P^-1 R, for a symmetric positive
            definite P that depends on lam alone.
        start : array (b, n), optional
            Warm start, for example the solution at a neighbouring lam or the step before.
        residual : array (b, n), optional
            B - (K + lam) start, where it is known: saves a pass.
        goals : array (b,), optional
            ||R|| to reach for each row; tol ||B|| by default.
        progress : callable, optional
            Called with the iteration and the largest ||R|| / ||B||.

        Raises
        ------
        ValueError
            If K + lam I turns out not to be positive definite.
        """
        xp = self.backend.xp
        sizes = _norms(xp, B)
        lams = np.broadcast_to(np.asarray(lam, dtype=np.float64), sizes.shape)
        run = _Block(
            solver=self,
            matmat=matmat,
            precondition=precondition,
            B=B,
            lams=lams,
            sizes=sizes,
            progress=progress,
        )
        run.goals = self.tol * sizes if goals is None else np.asarray(goals)
        run.W = xp.zeros_like(B) if start is None else xp.asarray(start, copy=True)
        if residual is not None:
            run.R = xp.asarray(residual, copy=True)
        elif start is None:
            run.R = xp.asarray(B, copy=True)
        else:
            run.replace()
        previous = np.full(len(sizes), np.inf)
        while True:
            run.iterate()
            if run.residual_is_true:  # the residuals are true ones
                norms = _norms(xp, run.R)
            else:
                run.replace()
                norms = _norms(xp, run.R)
            unconverged = norms > run.goals
            if not unconverged.any() or run.stagnated or run.iteration >= self.max_iterations:
                break
            if (norms[unconverged] > HALVED * previous[unconverged]).all():
                run.stagnated = True
                break
            previous = norms
        return run.result(norms, unconverged)


class _Block:
    """One call of :meth:`CG.solve`."""

    def __init__(
        self,
        solver: CG,
        matmat: Any,
        precondition: Any,
        *,
        B: Any,
        lams: np.ndarray,
        sizes: np.ndarray,
        progress: Any,
    ) -> None:
        self.solver, self.matmat, self.precondition = solver, matmat, precondition
        self.B, self.lams, self.sizes, self.progress = B, lams, sizes, progress
        self.lam_column = solver.backend.asarray(np.ascontiguousarray(lams))[:, None]
        self.goals = sizes
        self.W: Any = None
        self.R: Any = None
        self.iteration = self.passes = self.idle_iterations = 0
        self.residual_is_true, self.stagnated = True, False
        self.best_norms = np.full(len(sizes), np.inf)

    def replace(self) -> None:
        """The true residuals instead of the recursive ones."""
        self.R = self.B - self.matmat(self.W) - self.lam_column * self.W
        self.passes += 1
        self.residual_is_true = True

    def iterate(self) -> None:
        """Until the recursive residual of every row is at its goal, or nothing moves any more."""
        backend = self.solver.backend
        xp = backend.xp
        active = np.flatnonzero(_norms(xp, self.R) > self.goals)
        index, P, rz_old = xp.asarray(active, device=backend.device), None, None
        while active.size and self.iteration < self.solver.max_iterations:
            r, lam = (xp.take(x, index, axis=0) for x in (self.R, self.lam_column))
            z = self.precondition(r, lam[:, 0]) if self.precondition else r
            rz = xp.sum(r * z, axis=1)
            # Fletcher-Reeves on fresh directions; P is None at the start and after a replacement
            P = z if P is None else z + (rz / rz_old)[:, None] * P
            q = self.matmat(P) + lam * P
            self.passes += 1
            curvature = xp.sum(P * q, axis=1)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                step = (rz / curvature)[:, None]
                self.W = _put(self.W, active, index, xp.take(self.W, index, axis=0) + step * P)
                self.R = _put(self.R, active, index, r - step * q)
            rz_old, self.residual_is_true = rz, False
            self.iteration += 1
            if self.iteration % REPLACE == 0:
                self.replace()
                P = None
            squares = xp.take(xp.sum(self.R * self.R, axis=1), index)
            # the only look at the device in an iteration: it waits until the pass is done
            looked_at = to_numpy(xp.stack([curvature, squares]))
            self._require_positive(looked_at[0])
            norms = np.sqrt(looked_at[1])
            if self._has_stagnated(norms, active):
                return
            unconverged = norms > self.goals[active]
            if not unconverged.all():
                positions = xp.asarray(np.flatnonzero(unconverged), device=backend.device)
                index, rz_old = (xp.take(x, positions) for x in (index, rz_old))
                P = None if P is None else xp.take(P, positions, axis=0)
                active = active[unconverged]

    def _require_positive(self, curvature: np.ndarray) -> None:
        if not (curvature > 0).all():
            raise ValueError(
                f"the operator is not positive definite: x'(K + {self.lams.min():g} I)x = "
                f"{curvature.min():.3g} for some x; use a positive semi-definite kernel, a higher "
                "precision or a larger lam"
            )

    def _has_stagnated(self, norms: np.ndarray, active: np.ndarray) -> bool:
        """Report the progress; whether no row has become better for a long time."""
        if self.progress is not None:
            self.progress(self.iteration, float((norms / self.sizes[active]).max()))
        self.idle_iterations = (
            0 if (norms < BETTER * self.best_norms[active]).any() else self.idle_iterations + 1
        )
        self.best_norms[active] = np.minimum(self.best_norms[active], norms)
        self.stagnated = self.idle_iterations >= PATIENCE
        return self.stagnated

    def result(self, norms: np.ndarray, unconverged: np.ndarray) -> CGResult:
        residuals = np.divide(norms, self.sizes, out=np.zeros_like(norms), where=self.sizes > 0)
        worst = residuals.max(initial=0.0)
        accuracy = f"true relative residual {worst:.1e} after {self.iteration} iterations"
        if not unconverged.any():
            status = f"converged: {accuracy}"
        elif self.stagnated:
            status = (
                f"stagnated: {accuracy}; the precision of the products allows no more: use "
                "dtype='float64', a larger lam or a larger tol"
            )
        else:
            status = f"not converged: {accuracy}; use a sketch of higher rank or more iterations"
        return CGResult(
            W=self.W,
            R=self.R,
            residuals=residuals,
            iterations=self.iteration,
            passes=self.passes,
            status=status,
        )


def _norms(xp: Any, rows: Any) -> np.ndarray:
    return np.sqrt(to_numpy(xp.sum(rows * rows, axis=1)))


def _put(array: Any, active: np.ndarray, index: Any, rows: Any) -> Any:
    """`array` with some rows, `active` on the host and `index` on the device, replaced."""
    if len(active) == int(array.shape[0]):
        return rows
    if compat.is_torch_array(array) or compat.is_cupy_array(array):
        array[index] = rows
        return array
    for i, row in enumerate(active):
        array[int(row), :] = rows[i, :]
    return array
