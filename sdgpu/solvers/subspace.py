"""One growing subspace that serves every lam, weight and step of an implicit K.

The space starts from the targets and grows by one block for each pass over K. Which block decides the
method:

* **Block Lanczos** (no sketch): the residual of the last block. The space is a Krylov space of K, so it
  is the same for every lam.
* **Preconditioned**: a preconditioner breaks that invariance, so the space is grown greedily instead.
  The residuals of all lam and steps are known exactly (see :mod:`sdgpu.solvers.basis`); the worst ones
  are preconditioned, each with its own lam, from one shared sketch. It is a reduced basis with its true
  residuals as certificate, and needs several times fewer passes for small lam.

Either way Rayleigh-Ritz turns the space into a :class:`~sdgpu.spectrum.Spectrum`, and everything else is
algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.device.backend import Backend
from sdgpu.device.timing import Stopwatch
from sdgpu.operators.dense import Operator
from sdgpu.solvers.basis import GrowingBasis, Residuals
from sdgpu.solvers.checkpoint import Checkpoint, State
from sdgpu.solvers.preconditioners import Sketch, pivoted_cholesky
from sdgpu.spectrum import Spectrum

__all__ = ["Subspace", "SubspaceResult"]

PATIENCE = 15  # passes after which an error that has not fallen below STALLED of its best will not
STALLED = 0.7
EARLY = 0.05  # larger errors may wander before they fall


@dataclass(frozen=True)
class SubspaceResult:
    """A spectrum and how good it is.

    Attributes
    ----------
    spectrum : Spectrum
        Ritz values; valid for the targets it grew from.
    passes : int
        Products with K, each of a whole block.
    error : float
        Bound on the relative error of the training predictions, the largest over lam, steps and
        outputs, for K as the operator evaluates it.
    status : str
        A sentence that says what to try if the tolerance was missed.
    space : GrowingBasis
        The basis with its residuals.
    sketch : Sketch or None
    """

    spectrum: Spectrum
    passes: int
    error: float
    status: str
    space: GrowingBasis
    sketch: Sketch | None


@dataclass(frozen=True)
class Subspace:
    """Grow until the predictions of every lam and step are right to `tol`.

    Parameters
    ----------
    backend : Backend
        Where the basis lives; the operator may compute elsewhere.
    tol : float
        Relative error of the predictions to reach.
    block : int, default 16
        Columns of a pass. Where kernel values dominate, 16 cost little more than one.
    rank : int, default 0
        Rank of the sketch; 0 is block Lanczos.
    steps : int, default 10
        Distillation steps to be served.
    max_passes : int, default 200
    max_size : int, optional
        Largest basis; n at most.
    seed : int, default 0
        Of the random columns and of the sketch.

    Notes
    -----
    Each pass costs one product of K with a block and about 8 n k b multiplications, all in float64.
    Memory: 2 n k doubles and the sketch's n r.
    """

    backend: Backend
    tol: float
    block: int = 16
    rank: int = 0
    steps: int = 10
    max_passes: int = 200
    max_size: int | None = None
    seed: int = 0

    @staticmethod
    def peak_bytes(n: int, size: int, rank: int, block: int) -> int:
        """Bytes at the peak: Q, R and the final basis, the sketch, and a few blocks."""
        return 8 * (3 * n * size + 2 * n * rank + 6 * n * block + 6 * size * size)

    def decompose(
        self,
        operator: Operator,
        Y: Any,
        lams: np.ndarray,
        watch: Stopwatch,
        checkpoint: Checkpoint | None = None,
    ) -> SubspaceResult:
        """Make the spectrum for targets Y (n, c) and the regularisations lams (L,).

        With a checkpoint the basis is saved as it grows, and on an interrupt; a second call goes on
        from it.
        """
        before = checkpoint.load() if checkpoint else None
        sketch = None
        if self.rank:
            with watch.stage("sketch"):
                sketch = pivoted_cholesky(
                    operator, self.rank, self.backend, seed=self.seed, watch=watch
                )
        with watch.stage("passes"):
            return self._grow(operator, Y, np.sort(lams), sketch, watch, checkpoint, before)

    def _grow(
        self,
        operator: Operator,
        Y: Any,
        lams: np.ndarray,
        sketch: Sketch | None,
        watch: Stopwatch,
        checkpoint: Checkpoint | None,
        before: State | None,
    ) -> SubspaceResult:
        rows, backend = Y.T, self.backend  # (c, n)
        limit = min(operator.n, self.max_size or operator.n)
        room = min(limit, 20 * self.block)
        space = GrowingBasis(operator.n, room, backend, krylov=sketch is None)
        passes, history, stalled = 0, list[float](), False
        if before is None:
            new = space.new_directions(self._start(rows, lams, sketch))
        else:
            space.restore(before)
            passes, new = before.passes, rows[:0, :]
        values, vectors, error = np.zeros(0), np.zeros((0, 0)), np.inf
        try:
            while passes < self.max_passes:
                if new.shape[0]:
                    new = new[: min(limit - space.k, int(new.shape[0])), :]
                    space.append(new, backend.asarray(operator.matmat(new.T)).T)
                    passes += 1
                values, vectors = space.ritz()
                seen = space.residuals(values, vectors, rows, lams, self.steps)
                errors = _prediction_errors(seen)
                error = float(np.max(np.cumsum(errors, axis=1)))
                watch.report("passes", passes, self._forecast(passes, error))
                history.append(error)
                stalled = _stalled(history)
                if error <= self.tol or stalled or space.k >= limit:
                    break
                if checkpoint:
                    checkpoint.offer(space.state(passes))
                new = space.new_directions(self._next(space, vectors, seen, errors, lams, sketch))
                if not new.shape[0]:
                    break
        except KeyboardInterrupt:
            if checkpoint and space.k and space.whole:
                checkpoint.save(space.state(passes))
            raise
        if checkpoint:
            checkpoint.save(space.state(passes))
        full = not new.shape[0] or space.k >= operator.n or stalled
        status = self._status(error, passes, space.k, full)
        spectrum = _spectrum(space, values, vectors, rows, self)
        return SubspaceResult(spectrum, passes, error, status, space, sketch)

    def _start(self, rows: Any, lams: np.ndarray, sketch: Sketch | None) -> Any:
        """The targets, with preconditioned or random rows to fill the block."""
        xp, count = self.backend.xp, max(self.block - int(rows.shape[0]), 0)
        zero = not bool(xp.any(rows != 0))
        if sketch is None or zero:
            shape = (max(count, 1), int(rows.shape[1]))
            noise = np.random.default_rng(self.seed).standard_normal(shape)
            return xp.concat([rows, self.backend.asarray(noise)], axis=0)
        spread = np.geomspace(lams[0], lams[-1], max(count // int(rows.shape[0]), 1))
        solved = [sketch.solve(rows, float(lam)) for lam in spread]
        return xp.concat([rows, *solved], axis=0)

    def _next(
        self,
        space: GrowingBasis,
        vectors: np.ndarray,
        seen: Residuals,
        errors: np.ndarray,
        lams: np.ndarray,
        sketch: Sketch | None,
    ) -> Any:
        """Rows to add: the last residual block, or the worst residuals, preconditioned."""
        if sketch is None:
            return space.R
        worst = np.argsort(-errors.ravel())[: self.block]
        which = np.unravel_index(worst, errors.shape)
        small = seen.combinations[which] @ vectors.T  # (b, k) in the basis Q
        return sketch.solve(space.combine(small), lams[which[0]])

    def _forecast(self, passes: int, error: float) -> int:
        """Passes in all if the error goes on to fall as it did, for the progress hook."""
        if not 0 < error < 1 or passes < 3:
            return self.max_passes
        needed = passes * np.log(self.tol) / np.log(error)
        return int(min(max(needed, passes), self.max_passes))

    def _status(self, error: float, passes: int, size: int, full: bool) -> str:
        reached = f"relative error of the predictions at most {error:.1e} after {passes} passes"
        if error <= self.tol:
            return f"converged: {reached}, {size} basis vectors"
        if full:
            return (
                f"not converged: {reached}, tol = {self.tol:.1e}: the precision allows no more; use "
                "dtype='float64', a larger smallest lam or a larger tol"
            )
        return (
            f"not converged: {reached}, tol = {self.tol:.1e}; allow more passes or memory, take "
            "method='subspace' with a higher rank, or a larger smallest lam"
        )


def _stalled(history: list[float]) -> bool:
    """Whether the error has stopped to fall."""
    if len(history) <= PATIENCE or history[-1] >= EARLY:
        return False
    return min(history[-PATIENCE:]) > STALLED * min(history[:-PATIENCE])


def _prediction_errors(seen: Residuals) -> np.ndarray:
    """What each residual adds to the relative errors of the predictions u_1..u_T: (L, T, c).

    The error of w_i solves (K + lam) e_i = K e_{i-1} + r_i, and K (K + lam)^-1 shrinks everything, so
    ||K e_i|| <= sum_{j<=i} ||r_j||: a bound, not a guess.
    """
    # relative to the ordinary fit: later steps may be smaller by any factor
    size = np.maximum(seen.fitted[:, :1], np.finfo(float).tiny)
    zero = seen.fitted[:, :1] == 0
    return np.where(zero, 0.0, seen.norms / size)


def _spectrum(
    space: GrowingBasis, values: np.ndarray, vectors: np.ndarray, rows: Any, solver: Subspace
) -> Spectrum:
    backend = solver.backend
    basis = (backend.asarray(np.ascontiguousarray(vectors.T)) @ space.Q).T  # (n, k)
    eigenvalues = backend.asarray(values)
    top = float(values[-1]) if values.size else 0.0
    below = int(np.count_nonzero(values < len(values) * np.finfo(float).eps * top))
    method = "subspace" if solver.rank else "lanczos"
    lowest = float(np.linalg.eigvalsh(space.T)[0]) if space.k else 0.0
    return Spectrum(eigenvalues, basis, basis.T @ rows.T, below, lowest, method)
