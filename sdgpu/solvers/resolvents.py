"""Chains of distillation steps by conjugate gradients: what a fit holds that has no spectrum.

With S = (K + lam I)^-1 the steps of every schedule at one lam are combinations of u_1 .. u_T,

    w_1 = S Y,    w_i = S y_{i-1},    y_i = K w_i = y_{i-1} - lam w_i,    y_0 = Y,

so T solves serve every weight. All lam are solved at once, as rows that share each pass over K, with
one sketch as preconditioner. Every solve starts from the Galerkin solution in a small basis that was
grown before, whose residual is known without a pass (see :mod:`sdgpu.solvers.galerkin`); for lam that the
basis serves to the tolerance there is nothing left to do.

If r_i is the residual of the i-th solve, the predictions of step i are off by at most
||r_1|| + .. + ||r_i||: each solve gets an equal share of the tolerance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.cached import cached
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.threads import only_torch
from sdgpu.distill.rounding_bounds import rounding_bound
from sdgpu.operators.operator import Operator
from sdgpu.solvers.cg import CG, CGResult
from sdgpu.solvers.galerkin import GrowingBasis, relative_to
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.units import Units

__all__ = ["Resolvents"]

FLOOR = 8.0  # a residual that is this far below the bound on rounding is all rounding
ROWS = 32  # rows of a solve: more share a pass, but each needs its vectors
VECTORS = (
    12  # n numbers each, for a row: five of the start, six of the iteration, one of the sketch
)


@dataclass(eq=False)
class Resolvents:
    """Solutions w_1 .. w_T for any lam, made when they are asked for.

    Those of the fit's own lam are kept; of others the chains and the single solves (limits) that were
    made last.

    Attributes
    ----------
    operator : Operator
    backend : Backend
    Y : array (n, c)
        In the units below, like `operator`, `space` and `sketch`.
    units : Units
    tol : float
        Relative error of the predictions to reach.
    steps : int
        Steps that share the tolerance.
    space : GrowingBasis
        Where solves start.
    sketch : Sketch or None
        The preconditioner.
    noise : float
        As that of :class:`sdgpu.solvers.subspace.Subspace`.
    error : float
        Bound on the relative error of all predictions so far, for K as the operator evaluates it.
    passes, iterations : int
        So far.
    status : str
        Of the worst solve.
    warns : bool
        Whether a solve that misses its goal warns.
    kept_lams : frozenset of float
        The lam whose solutions are kept.
    """

    operator: Operator
    backend: Backend
    Y: Any
    units: Units
    tol: float
    steps: int
    space: GrowingBasis
    sketch: Sketch | None
    watch: Stopwatch
    noise: float = 1e-14
    error: float = 0.0
    passes: int = 0
    iterations: int = 0
    status: str = "converged"
    warns: bool = False
    kept_lams: frozenset[float] = frozenset()
    _values: np.ndarray = field(init=False, repr=False)
    _vectors: np.ndarray = field(init=False, repr=False)
    _solutions: dict[float, list[Any]] = field(init=False, repr=False, default_factory=dict)
    _sums: dict[float, np.ndarray] = field(init=False, repr=False, default_factory=dict)
    _lengths: dict[float, list[np.ndarray]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._values, self._vectors = self.space.ritz()

    @staticmethod
    def peak_bytes(n: int, c: int, lams: int, steps: int) -> int:
        """Bytes of the solutions and of the vectors of a solve, without basis and sketch."""
        return 8 * n * (lams * steps * c + VECTORS * max(ROWS, c))

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K as the basis sees it: from below."""
        return self._largest_ritz * self.units.kernel

    @cached
    def largest_bound(self) -> float:
        """Largest eigenvalue of K from above: what the basis sees, or all that it leaves of the trace.

        With K = [T, R'; R, C] in the basis and beyond it, ||K|| <= max(||T||, ||C||) + ||R||, and ||C|| is
        at most its trace.
        """
        xp = self.backend.xp
        outside = float(xp.sum(self.backend.asarray(self.operator.diag()))) - self._values.sum()
        return (
            float(max(self._largest_ritz, outside) + np.sqrt(self.space.squared_residual_norm))
            * self.units.kernel
        )

    @property
    def targets(self) -> Any:
        """Y as it was given, (n, c)."""
        return self.Y * self.backend.asarray(self.units.targets)

    @property
    def _largest_ritz(self) -> float:
        return float(self._values[-1])

    @property
    def summary(self) -> str:
        """The status with the bound on the error."""
        accuracy = f"relative error of the predictions at most {self.error:.1e}"
        state, _, detail = self.status.partition(": ")
        if state == "converged" and not self.error <= self.tol:
            state = "limited by rounding"
        worst = f"; worst solve: {detail}" if detail else ""
        return f"{state}: {accuracy} after {self.passes} passes of conjugate gradients{worst}"

    def duals(self, lams: np.ndarray, steps: int) -> Any:
        """w_1 .. w_T of every lam, (L, T, n, c)."""
        scaled_lams = [float(lam) / self.units.kernel for lam in np.atleast_1d(lams)]
        self.solve(lams, steps)
        return self._stack(
            [[self._dual(lam, i) for i in range(steps)] for lam in scaled_lams],
            self.units.targets / self.units.kernel,
        )

    def solve(self, lams: Any, steps: int) -> None:
        """Make the solutions that are missing."""
        lams = np.atleast_1d(lams) / self.units.kernel
        unique, c = list(dict.fromkeys(map(float, lams))), int(self.Y.shape[1])
        if any(len(self._solutions.get(lam, ())) < steps for lam in unique):
            self._forget(set(unique), steps)
        with only_torch():
            for step in range(steps):
                missing = [lam for lam in unique if len(self._solutions.get(lam, ())) <= step]
                # a limit of a negative alpha has a negative ridge, beyond all eigenvalues
                for group in (
                    [lam for lam in missing if lam > 0],
                    [lam for lam in missing if lam < 0],
                ):
                    for part in slices(len(group), max(1, ROWS // c)):
                        self._solve(np.array(group[part]), step)

    def _forget(self, lams: set[float], steps: int) -> None:
        """Make room: single solves take the place of single ones, chains that of chains."""
        fit_lams = {lam / self.units.kernel for lam in self.kept_lams}
        for lam in set(self._solutions) - lams:
            if lam not in fit_lams and (len(self._solutions[lam]) > 1) == (steps > 1):
                for store in (self._solutions, self._sums, self._lengths):
                    del store[lam]

    def fitted(self, lams: np.ndarray, steps: int) -> Any:
        """y_1 .. y_T of every lam, (L, T, n, c)."""
        self.solve(lams, steps)
        scaled_lams = [float(lam) / self.units.kernel for lam in np.atleast_1d(lams)]
        indices = range(1, steps + 1)
        return self._stack(
            [[self._fit(lam, i) for i in indices] for lam in scaled_lams], self.units.targets
        )

    def _stack(self, rows: list[list[Any]], units: np.ndarray) -> Any:
        """Rows (c, n) of every lam and step as (L, T, n, c), out of the units of the solver."""
        xp, column = self.backend.xp, self.backend.asarray(units)[:, None]
        (n, c), L, T = map(int, self.Y.shape), len(rows), len(rows[0])
        stack = self.backend.empty_rows(L * T * c, n)
        for i, row in enumerate(row for steps in rows for row in steps):
            stack[i * c : (i + 1) * c, :] = row * column
        return xp.permute_dims(xp.reshape(stack, (L, T, c, n)), (0, 1, 3, 2))

    def _keeps_fits(self, lam: float) -> bool:
        """Whether y_i is kept, not w_i: where lam is large y_i = y_{i-1} - lam w_i would cancel."""
        return lam > self._largest_ritz

    def _dual(self, lam: float, step: int) -> Any:
        """w of solve number `step` (from 0), rows (c, n)."""
        if self._keeps_fits(lam):
            return (self._fit(lam, step) - self._fit(lam, step + 1)) / lam
        return self._solutions[lam][step]

    def _fit(self, lam: float, step: int) -> Any:
        """y_step, rows (c, n); y_0 = Y."""
        if step and self._keeps_fits(lam):
            return self._solutions[lam][step - 1]
        rows = self.Y.T
        for w in self._solutions.get(lam, [])[:step]:
            rows = rows - lam * w
        return rows

    def _solve(self, lams: np.ndarray, step: int) -> None:
        """Solve number `step` (from 0) of some lam, whose earlier ones are known."""
        xp, c = self.backend.xp, int(self.Y.shape[1])
        row_lams = np.repeat(lams, c)
        B = xp.concat([self._fit(float(lam), step) for lam in lams], axis=0)
        coefficients = self._galerkin(lams, step)  # (L c, k)
        start = self._spread(coefficients, self.space.Q)
        # K start = Q'T c + R'c, c the coefficients: what a pass would give, from what is known
        image_coefficients = coefficients * self._values
        image = self._spread(image_coefficients, self.space.Q) + self.space.combine(
            coefficients @ self._vectors.T
        )
        lam_column = self.backend.asarray(row_lams)[:, None]
        residual = B - image - lam_column * start
        sizes, sign = self._sizes(lams).ravel(), float(np.sign(lams[0]))
        sketch = self.sketch
        # no solution is better than the rounding of K w
        least = np.finfo(float).eps ** 2 * np.sqrt(to_numpy(xp.sum(B * B, axis=1)))  # where K is 0
        floor = rounding_bound(
            np.linalg.norm(coefficients, axis=1)[:, None, None],
            self.space.norm(self._values),
            self.noise,
        )

        def precondition(R: Any, active_lams: Any) -> Any:
            return R if sketch is None else sign * sketch.solve(R, sign * active_lams)

        # What is left to correct, so that neither w nor K w is known as a difference of large numbers.
        # -(K + lam) is positive definite for a negative lam, and what conjugate gradients solve then.
        correction = CG(self.backend, self.tol).solve(
            lambda V: sign * self.backend.asarray(self.operator.matmat(V.T)).T,
            sign * residual,
            sign * row_lams,
            precondition=precondition if sketch else None,
            goals=np.maximum(self.tol * sizes / self.steps, floor[:, 0, 0] / FLOOR + least),
            progress=self._progress_hook(step),
        )
        R = sign * correction.R
        images = image + residual - R - lam_column * correction.W
        for i, lam in enumerate(lams):
            rows = slice(i * c, (i + 1) * c)
            solution = start[rows, :] + correction.W[rows, :]
            vectors = images[rows, :] if self._keeps_fits(float(lam)) else solution
            self._solutions.setdefault(float(lam), []).append(vectors)
            residual_norms, solution_norms = (
                np.sqrt(to_numpy(xp.sum(x * x, axis=1))) for x in (R[rows, :], solution)
            )
            self._sums[float(lam)] = self._sums.get(float(lam), np.zeros(c)) + residual_norms
            self._lengths.setdefault(float(lam), []).append(solution_norms)
        self._note(correction, lams)

    def _note(self, result: CGResult, lams: np.ndarray) -> None:
        self.passes += result.passes
        self.iterations += result.iterations
        sums = np.stack([self._sums[float(lam)] for lam in lams])
        lengths = np.stack([np.stack(self._lengths[float(lam)]) for lam in lams])  # (L, t, c)
        rounding = rounding_bound(lengths, self.space.norm(self._values), self.noise)[:, -1]
        if lams[0] < 0:  # beyond all eigenvalues, but not far
            rounding = rounding * np.abs(lams / (lams + self._largest_ritz))[:, None]
        sums, sizes = sums + rounding, self._sizes(lams)
        relative = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
        self.error = max(self.error, float(relative.max(initial=0.0)))
        if not result.status.startswith("converged"):
            self.status = result.status
            if self.warns:
                warnings.warn(f"lam = {lams.min():g}: {result.status}", stacklevel=2)

    def _galerkin(self, lams: np.ndarray, step: int) -> np.ndarray:
        """Galerkin solutions in the Ritz basis, (L c, k); see the text of the basis."""
        z = self._vectors.T @ to_numpy(self.space.Q @ self.Y)  # (k, c)
        scale = 1.0 / (self._values + lams[:, None])  # (L, k)
        coefficients = (self._values * scale) ** step * scale
        return (coefficients[:, None, :] * z.T).reshape(-1, len(self._values))

    def _sizes(self, lams: np.ndarray) -> np.ndarray:
        """||y_1|| of the Galerkin solutions (L, c), if not zero: what the residuals are relative to."""
        coefficients = self._galerkin(lams, 0) * self._values
        fitted = np.linalg.norm(coefficients, axis=1).reshape(len(lams), 1, -1)
        return relative_to(fitted, self._norms, self.space.norm(self._values), np.abs(lams))[:, 0]

    @cached
    def _norms(self) -> np.ndarray:
        """||Y||, (c,)."""
        return np.sqrt(to_numpy(self.backend.xp.sum(self.Y * self.Y, axis=0)))

    def _spread(self, combinations: np.ndarray, rows: Any) -> Any:
        """Combinations (b, k) in the Ritz basis as rows (b, n)."""
        return self.backend.asarray(np.ascontiguousarray(combinations @ self._vectors.T)) @ rows

    def _progress_hook(self, step: int) -> Any:
        def progress(iteration: int, residual: float) -> None:
            self.watch.report(
                f"cg, step {step + 1}", iteration, iteration + 1, residual, total_known=False
            )

        return progress
