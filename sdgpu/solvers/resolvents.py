"""Chains of distillation steps by conjugate gradients: what a fit holds that has no spectrum.

With S = (K + lam I)^-1 the steps of every schedule at one lam are combinations of u_1 .. u_T,

    w_1 = S Y,    w_i = S y_{i-1},    y_i = K w_i = y_{i-1} - lam w_i,    y_0 = Y,

so T solves serve every weight. All lam are solved at once, as rows that share each pass over K, with
one sketch as preconditioner. Every solve starts from the Galerkin solution in a small basis that was
grown before, whose residual is known without a pass (see :mod:`sdgpu.solvers.basis`); for lam that the
basis serves to the tolerance there is nothing left to do.

If r_i is the residual of the i-th solve, the predictions of step i are off by at most
||r_1|| + .. + ||r_i||: each solve gets an equal share of the tolerance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdgpu.device.arrays import slices
from sdgpu.device.backend import Backend, to_numpy
from sdgpu.device.threads import only_torch
from sdgpu.device.timing import Stopwatch
from sdgpu.operators.dense import Operator
from sdgpu.solvers.basis import GrowingBasis
from sdgpu.solvers.cg import CG, Solved
from sdgpu.solvers.preconditioners import Sketch

__all__ = ["Resolvents"]

ROWS = 32  # rows of a solve: more share a pass, but each needs five vectors of n numbers


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
    tol : float
        Relative error of the predictions to reach.
    steps : int
        Steps that share the tolerance.
    space : GrowingBasis
        Where solves start.
    sketch : Sketch or None
        The preconditioner.
    error : float
        Bound on the relative error of all predictions so far, for K as the operator evaluates it.
    passes, iterations : int
        So far.
    status : str
        Of the worst solve.
    warns : bool
        Whether a solve that misses its goal warns.
    own : frozenset of float
        The lam whose solutions are kept.
    """

    operator: Operator
    backend: Backend
    Y: Any
    tol: float
    steps: int
    space: GrowingBasis
    sketch: Sketch | None
    watch: Stopwatch
    error: float = 0.0
    passes: int = 0
    iterations: int = 0
    status: str = "converged"
    warns: bool = False
    own: frozenset[float] = frozenset()
    _values: np.ndarray = field(init=False, repr=False)
    _vectors: np.ndarray = field(init=False, repr=False)
    _kept: dict[float, list[Any]] = field(init=False, repr=False, default_factory=dict)
    _sums: dict[float, np.ndarray] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._values, self._vectors = self.space.ritz()

    @staticmethod
    def peak_bytes(n: int, c: int, lams: int, steps: int) -> int:
        """Bytes of the solutions and of the vectors of a solve, without basis and sketch."""
        return 8 * n * (lams * steps * c + 8 * max(ROWS, c))

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K, as the basis sees it."""
        return float(self._values[-1]) if len(self._values) else 0.0

    @property
    def summary(self) -> str:
        """The status with the bound on the error."""
        reached = f"relative error of the predictions at most {self.error:.1e}"
        state, _, rest = self.status.partition(": ")
        more = f"; worst solve: {rest}" if state != "converged" else ""
        return f"{state}: {reached} after {self.passes} passes of conjugate gradients{more}"

    def duals(self, lams: np.ndarray, steps: int) -> Any:
        """w_1 .. w_T of every lam, (L, T, n, c)."""
        wanted = [float(lam) for lam in np.atleast_1d(lams)]
        self.solve(wanted, steps)
        xp, shape = self.backend.xp, (len(wanted), steps, *map(int, self.Y.shape))
        found = xp.empty(shape, dtype=xp.float64, device=self.backend.device)
        for i, lam in enumerate(wanted):
            for step in range(steps):
                found[i, step, ...] = self._kept[lam][step].T
        return found

    def solve(self, lams: Iterable[float], steps: int) -> None:
        """Make the solutions that are missing."""
        wanted, c = list(dict.fromkeys(map(float, lams))), int(self.Y.shape[1])
        if any(len(self._kept.get(m, ())) < steps for m in wanted):
            self._forget(set(wanted), steps)
        with only_torch():
            for step in range(steps):
                missing = [m for m in wanted if len(self._kept.get(m, ())) <= step]
                # a limit of a negative alpha has a negative ridge, beyond all eigenvalues
                for some in ([m for m in missing if m > 0], [m for m in missing if m < 0]):
                    for part in slices(len(some), max(1, ROWS // c)):
                        self._solve(np.array(some[part]), step)

    def _forget(self, wanted: set[float], steps: int) -> None:
        """Make room: single solves take the place of single ones, chains that of chains."""
        for lam in set(self._kept) - wanted:
            if lam not in self.own and (len(self._kept[lam]) > 1) == (steps > 1):
                for store in (self._kept, self._sums):
                    del store[lam]

    def fitted(self, lams: np.ndarray, steps: int) -> Any:
        """y_1 .. y_T of every lam, (L, T, n, c)."""
        xp = self.backend.xp
        found, before = [], self.Y
        W = self.duals(lams, steps)
        ridge = self.backend.asarray(np.atleast_1d(lams))[:, None, None]
        for step in range(steps):
            before = before - ridge * W[:, step, ...]
            found.append(before)
        return xp.stack(found, axis=1)

    def _solve(self, lams: np.ndarray, step: int) -> None:
        """Solve number `step` (from 0) of some lam, whose earlier ones are known."""
        xp, c = self.backend.xp, int(self.Y.shape[1])
        ridges = np.repeat(lams, c)
        B = xp.concat([self._target(float(lam), step) for lam in lams], axis=0)
        small = self._galerkin(lams, step)  # (L c, k)
        start = self._spread(small, self.space.Q)
        # K start = Q'T small + R' small: what a pass would give, from what is known
        ritz = small * self._values
        residual = (
            B - self._spread(ritz, self.space.Q) - self.space.combine(small @ self._vectors.T)
        )
        residual = residual - self.backend.asarray(ridges)[:, None] * start
        sizes, sign = self._sizes(lams).ravel(), float(np.sign(lams[0]))
        sketch = self.sketch

        def precondition(R: Any, own: np.ndarray) -> Any:
            return R if sketch is None else sign * sketch.solve(R, sign * own)

        # -(K + lam) is positive definite for such a ridge, and what conjugate gradients solve then
        solved = CG(self.backend, self.tol).solve(
            lambda V: sign * self.backend.asarray(self.operator.matmat(V.T)).T, sign * B, sign * ridges,
            precondition=precondition if sketch else None, start=start, residual=sign * residual,
            goals=self.tol * sizes / self.steps, progress=self._heard(step),
        )  # fmt: skip
        for i, lam in enumerate(lams):
            mine = slice(i * c, (i + 1) * c)
            self._kept.setdefault(float(lam), []).append(solved.W[mine, :])
            left = np.sqrt(to_numpy(xp.sum(solved.R[mine, :] ** 2, axis=1)))
            self._sums[float(lam)] = self._sums.get(float(lam), np.zeros(c)) + left
        self._note(solved, lams)

    def _note(self, solved: Solved, lams: np.ndarray) -> None:
        self.passes += solved.passes
        self.iterations += solved.iterations
        sums = np.stack([self._sums[float(lam)] for lam in lams])
        sizes = self._sizes(lams)
        relative = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
        self.error = max(self.error, float(relative.max(initial=0.0)))
        if not solved.status.startswith("converged"):
            self.status = solved.status
            if self.warns:
                warnings.warn(f"lam = {lams.min():g}: {solved.status}", stacklevel=2)

    def _target(self, lam: float, step: int) -> Any:
        """y_{step}, rows (c, n): Y less what the earlier solves have taken."""
        rows = self.Y.T
        for w in self._kept.get(lam, [])[:step]:
            rows = rows - lam * w
        return rows

    def _galerkin(self, lams: np.ndarray, step: int) -> np.ndarray:
        """Galerkin solutions in the Ritz basis, (L c, k); see the text of the basis."""
        z = self._vectors.T @ to_numpy(self.space.Q @ self.Y)  # (k, c)
        scale = 1.0 / (self._values + lams[:, None])  # (L, k)
        small = (self._values * scale) ** step * scale
        return (small[:, None, :] * z.T).reshape(-1, len(self._values))

    def _sizes(self, lams: np.ndarray) -> np.ndarray:
        """||y_1|| of the Galerkin solutions (L, c): what the residuals are relative to."""
        small = self._galerkin(lams, 0) * self._values
        return np.linalg.norm(small, axis=1).reshape(len(lams), -1)

    def _spread(self, small: np.ndarray, rows: Any) -> Any:
        """Combinations (b, k) in the Ritz basis as rows (b, n)."""
        return self.backend.asarray(np.ascontiguousarray(small @ self._vectors.T)) @ rows

    def _heard(self, step: int) -> Any:
        def progress(iteration: int, residual: float) -> None:
            self.watch.report(f"cg, step {step + 1}", iteration, iteration + 1, residual)

        return progress
