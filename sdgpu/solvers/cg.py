"""Preconditioned conjugate gradients for one lam and many right-hand sides.

Columns share every pass over K but have step lengths of their own; a column that is done is dropped.
True residuals replace the recursive ones from time to time, stagnation is noticed, and the result says
how good each column is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.device.backend import Backend, to_numpy

__all__ = ["CG", "Solved"]

REPLACE = 20  # iterations between true residuals
PATIENCE = 40  # iterations without a better residual that count as stagnation
BETTER = 0.98


@dataclass(frozen=True)
class Solved:
    """Solutions of (K + lam I) W = B and how good they are.

    Attributes
    ----------
    W : array (c, n)
    residuals : array (c,)
        True relative residuals ||B - (K + lam) W|| / ||B||, 0 for zero columns.
    iterations : int
    passes : int
        Products with K, the checks of the residual included.
    status : str
        A sentence that says what to try if a column missed the tolerance.
    """

    W: Any
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
        Relative residual of every column.
    max_iterations : int, default 1000
    """

    backend: Backend
    tol: float
    max_iterations: int = 1000

    def solve(
        self,
        matmat: Callable[[Any], Any],
        B: Any,
        lam: float,
        *,
        precondition: Callable[[Any], Any] | None = None,
        start: Any = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> Solved:
        """Solve for rows B (c, n).

        Parameters
        ----------
        matmat : callable
            Rows (c, n) -> rows (c, n) of V K.
        B : array (c, n)
        lam : float
        precondition : callable, optional
            Rows R -> P^-1 R for a fixed symmetric positive definite P.
        start : array (c, n), optional
            Warm start, for example the solution at a neighbouring lam.
        progress : callable, optional
            Called with the iteration and the largest relative residual.
        """
        xp, asarray = self.backend.xp, self.backend.asarray
        sizes = np.sqrt(to_numpy(xp.sum(B * B, axis=1)))
        W = xp.zeros_like(B) if start is None else xp.asarray(start, copy=True)
        passes = 0 if start is None else 1
        R = xp.asarray(B, copy=True) if start is None else B - matmat(W) - lam * W
        active = np.flatnonzero(sizes > 0)
        best, waited, iteration = np.full(len(sizes), np.inf), 0, 0
        P = old = None
        while active.size and iteration < self.max_iterations:
            index = xp.asarray(active, device=self.backend.device)
            r = xp.take(R, index, axis=0)
            z = precondition(r) if precondition else r
            rz = to_numpy(xp.sum(r * z, axis=1))
            # Fletcher-Reeves on fresh directions; P is None at the start and after a replacement
            P = z if P is None else z + asarray(rz / old)[:, None] * P
            q = matmat(P) + lam * P
            passes += 1
            curvature = to_numpy(xp.sum(P * q, axis=1))
            if (curvature <= 0).any():
                raise ValueError(
                    f"the operator is not positive definite: x'(K + {lam:g} I)x = "
                    f"{curvature.min():.3g} for some x; use a positive semi-definite kernel, a higher "
                    "precision or a larger lam"
                )
            step = asarray(rz / curvature)[:, None]
            W = _put(xp, W, index, xp.take(W, index, axis=0) + step * P)
            R = _put(xp, R, index, r - step * q)
            old = rz
            iteration += 1
            if iteration % REPLACE == 0:
                R = B - matmat(W) - lam * W
                passes += 1
                P = None
            now = np.sqrt(to_numpy(xp.sum(R * R, axis=1)))[active] / sizes[active]
            if progress is not None:
                progress(iteration, float(now.max()))
            waited = 0 if (now < BETTER * best[active]).any() else waited + 1
            best[active] = np.minimum(best[active], now)
            going = now > self.tol
            if waited >= PATIENCE:
                break
            if not going.all():
                kept = xp.asarray(np.flatnonzero(going), device=self.backend.device)
                P = None if P is None else xp.take(P, kept, axis=0)
                old, active = old[going], active[going]
        return self._checked(matmat, B, W, lam, sizes, iteration, passes, waited >= PATIENCE)

    def _checked(
        self, matmat: Any, B: Any, W: Any, lam: float, sizes: np.ndarray, iteration: int,
        passes: int, stagnated: bool,
    ) -> Solved:  # fmt: skip
        xp = self.backend.xp
        R = B - matmat(W) - lam * W
        left = np.sqrt(to_numpy(xp.sum(R * R, axis=1)))
        residuals = np.divide(left, sizes, out=np.zeros_like(left), where=sizes > 0)
        worst = float(residuals.max(initial=0.0))
        reached = f"true relative residual {worst:.1e} after {iteration} iterations"
        # the recursive residual may be a little smaller than the true one
        if worst <= 2 * self.tol:
            status = f"converged: {reached}"
        elif stagnated:
            status = (
                f"stagnated: {reached}; the precision of the products allows no more: use "
                "precision='float64', a larger lam or a larger tol"
            )
        else:
            status = f"not converged: {reached}; use a sketch of higher rank or more iterations"
        return Solved(W, residuals, iteration, passes + 1, status)


def _put(xp: Any, array: Any, index: Any, rows: Any) -> Any:
    """`array` with some rows replaced."""
    if int(index.shape[0]) == int(array.shape[0]):
        return rows
    for i, row in enumerate(to_numpy(index)):
        array[int(row), :] = rows[i, :]
    return array
