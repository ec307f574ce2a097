"""One growing subspace that serves every lam, weight and step of an implicit K.

The space starts from the targets and grows by one block for each pass over K. Which block decides the
method:

* **Block Lanczos** (no sketch): the residual of the last block. The space is a Krylov space of K, so it
  is the same for every lam.
* **Preconditioned**: a preconditioner breaks that invariance, so the space is grown greedily instead.
  The residuals of all lam and steps are known exactly (see :mod:`sdgpu.solvers.galerkin`); the worst ones
  are preconditioned, each with its own lam, from one shared sketch. It is a reduced basis with its true
  residuals as certificate, and needs several times fewer passes for small lam.

Either way Rayleigh-Ritz turns the space into a :class:`~sdgpu.solvers.spectrum.Spectrum`, and everything
else is algebra.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.rates import Rates
from sdgpu.backend.signals import terminable
from sdgpu.distill.rounding_bounds import decay, rounding_bound
from sdgpu.operators.operator import Operator
from sdgpu.solvers.basis_progress import BasisProgress
from sdgpu.solvers.checkpoint import BasisCheckpoint, State
from sdgpu.solvers.galerkin import GrowingBasis, Residuals, gram_rounding, triangle_bytes, unit_rows
from sdgpu.solvers.preconditioners import Sketch, pivoted_cholesky
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["Subspace", "SubspaceResult"]

WIDE = 4  # blocks of the first pass
FIRM = 0.01  # of the tolerance: a bound below that need not be known better


@dataclass(frozen=True, eq=False)
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
        outputs, for K as the operator evaluates it: of the space and of rounding.
    status : str
        A sentence that says what to try if the tolerance was missed.
    space : GrowingBasis
        The basis with its residuals.
    sketch : Sketch or None
    given_up : bool
        Whether it would have taken longer than the patience.
    """

    spectrum: Spectrum
    passes: int
    error: float
    status: str
    space: GrowingBasis
    sketch: Sketch | None
    given_up: bool


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
        Largest basis; n at most. When it is full it is compressed to what the solutions found so far
        need, and grows again.
    seed : int, default 0
        Of the random columns and of the sketch.
    noise : float, optional
        Relative backward error of products and of K, :func:`sdgpu.distill.rounding_bounds.backward_error`.
    patience : float, default infinity
        Passes after which something else would have been done: give up as soon as it is clear that
        more are needed.

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
    noise: float = 1e-14
    patience: float = np.inf

    @staticmethod
    def peak_bytes(n: int, size: int, rank: int, block: int, grid: int = 0) -> int:
        """Bytes at the peak: Q, R and the final basis, the sketch, and a few blocks of columns.

        And, for a `grid` of lam, steps and outputs, the residuals of all in the basis.
        """
        columns = (WIDE if rank else 1) * block
        basis = 8 * (2 * n * size + 6 * n * columns + 6 * size * size + 4 * grid * size)
        triangle = triangle_bytes(n, size) if grid > 2 * size else 0
        return basis + max(8 * n * size, triangle) + Sketch.peak_bytes(n, rank)

    @staticmethod
    def pass_seconds(n: int, vectors: int, columns: int, rank: int, rates: Rates) -> float:
        """Of orthogonalisation, Rayleigh-Ritz and residuals of an average pass, without the product."""
        half = vectors / 2
        work = 8 * n * half * columns + 25 * half**3 / (1 if rank else 3)
        if not rank:
            return work / rates.products
        sketch = 4 * n * rank * columns / rates.products32
        return (work + n * half**2 / 2) / rates.products + sketch  # R R' is symmetric

    def decompose(
        self,
        operator: Operator,
        Y: Any,
        lams: np.ndarray,
        watch: Stopwatch,
        checkpoint: BasisCheckpoint | None = None,
    ) -> SubspaceResult:
        """Make the spectrum for targets Y (n, c) and the regularisations lams (L,).

        With a checkpoint the basis is saved as it grows, and on an interrupt (Ctrl-C or SIGTERM); a
        second call goes on from it.
        """
        state = checkpoint.load() if checkpoint else None
        sketch = None
        if self.rank:
            with watch.stage("sketch"):
                sketch = pivoted_cholesky(
                    operator,
                    self.rank,
                    self.backend,
                    seed=self.seed,
                    watch=watch,
                    trace_tol=float(lams.min()),
                )
            # K is negligible beside every lam: there is nothing to precondition
            sketch = sketch if sketch.rank else None
        with watch.stage("passes"), terminable() if checkpoint else nullcontext():
            return self._grow(
                operator,
                Y,
                np.sort(lams),
                sketch=sketch,
                watch=watch,
                checkpoint=checkpoint,
                state=state,
            )

    def _grow(
        self,
        operator: Operator,
        Y: Any,
        lams: np.ndarray,
        *,
        sketch: Sketch | None,
        watch: Stopwatch,
        checkpoint: BasisCheckpoint | None,
        state: State | None,
    ) -> SubspaceResult:
        rows, backend = Y.T, self.backend  # (c, n)
        space, run, new = self._initial_basis(operator, rows, lams, sketch, state)
        try:
            # a checkpoint may hold all passes that are allowed: it is looked at all the same
            while True:
                if new.shape[0]:
                    new = new[: min(run.limit - space.k, int(new.shape[0])), :]
                    space.append(new, backend.asarray(operator.matmat(new.T)).T)
                    run.passes += 1
                width = max(self.block, space.width)
                if space.krylov and not run.due(space.k + width):
                    run.report(watch)
                    if checkpoint:
                        checkpoint.offer(space.state(run.passes))
                    new = self._next_krylov(space)
                    if new.shape[0]:
                        continue
                values, vectors = space.ritz()
                residuals = self._certified_residuals(
                    space, values, vectors, rows, lams, sketch=sketch, run=run
                )
                errors = residuals.norms * _scale(residuals)
                run.report(watch)
                if run.should_stop(space.k) or run.passes >= self.max_passes:
                    break
                if checkpoint:
                    checkpoint.offer(space.state(run.passes))
                block = self._next_rows(space, vectors, residuals, errors, lams=lams, sketch=sketch)
                if space.k + width > run.limit < operator.n:
                    space.compress(
                        self._directions_to_keep(space, values, vectors, residuals, rows, lams=lams)
                    )
                    run.restarts += 1
                new = self._next_krylov(space) if space.krylov else space.new_directions(block)
                if not new.shape[0] or space.k >= run.limit:
                    break
        except KeyboardInterrupt:
            if checkpoint and space.k and space.consistent:
                checkpoint.interrupted(space.state(run.passes))
            raise
        if checkpoint:
            checkpoint.save(space.state(run.passes))
        if run.restarts and space.k < len(values):  # compressed, and nothing could be added
            values, vectors = space.ritz()
            self._certified_residuals(space, values, vectors, rows, lams, sketch=sketch, run=run)
        spectrum = _spectrum(space, values, vectors, rows, self)
        exhausted = not new.shape[0] and run.passes < self.max_passes
        status = run.status(space.k, full=exhausted or space.k >= operator.n or run.stalled)
        error = run.error + run.rounding
        return SubspaceResult(
            spectrum=spectrum,
            passes=run.passes,
            error=error,
            status=status,
            space=space,
            sketch=sketch,
            given_up=run.given_up,
        )

    def _initial_basis(
        self,
        operator: Operator,
        rows: Any,
        lams: np.ndarray,
        sketch: Sketch | None,
        state: State | None,
    ) -> tuple[GrowingBasis, BasisProgress, Any]:
        """An empty basis with its first block, or that of a checkpoint, which needs none."""
        backend, n = self.backend, operator.n
        limit = min(n, max(self.max_size or n, int(rows.shape[0])))
        diagonal = float(backend.xp.max(backend.asarray(operator.diag())))
        space = GrowingBasis(
            n,
            min(limit, 20 * self.block),
            backend,
            krylov=sketch is None,
            diagonal=diagonal,
            max_rows=limit,
        )
        run = BasisProgress(
            tol=self.tol, max_passes=self.max_passes, patience=self.patience, limit=limit, n=n
        )
        if state is not None:
            space.restore(state)
            run.passes = state.passes
            return space, run, rows[:0, :]
        # cut before they are mixed: the targets, which come first, must be in the span
        new = self._start(rows, lams, sketch)
        new = new[: min(limit, int(new.shape[0])), :]
        return space, run, space.new_directions(new, required=unit_rows(rows, backend))

    def _certified_residuals(
        self,
        space: GrowingBasis,
        values: np.ndarray,
        vectors: np.ndarray,
        rows: Any,
        lams: np.ndarray,
        *,
        sketch: Sketch | None,
        run: BasisProgress,
    ) -> Residuals:
        """The residuals, with their bounds noted; certified before they are believed."""
        residuals = space.residuals(values, vectors, rows, lams, self.steps)
        bounds, scale = _bounds(residuals), _scale(residuals)
        norm = max(space.norm(values), sketch.largest if sketch else 0.0)
        rounding = rounding_bound(residuals.duals, norm, self.noise) * scale
        run.rounding = float(rounding.max(initial=0.0))
        run.goal = max(self.tol - run.rounding, run.rounding)
        if not residuals.exact and bounds.max(initial=0.0) <= run.goal:
            # what the Gram matrix may have lost; for large lam that is nothing
            gram_errors = gram_rounding(space.squared_residual_norm) * residuals.duals * scale
            gram_errors = np.cumsum(gram_errors, axis=1)
            indices = np.flatnonzero((bounds + gram_errors).max(axis=(1, 2)) > FIRM * self.tol)
            residuals = space.certified(residuals, vectors, indices)
            gram_errors[indices] = 0.0
            bounds = _bounds(residuals) + gram_errors
        run.note(float(self.backend.told(float(bounds.max(initial=0.0)))))
        return residuals

    def _directions_to_keep(
        self,
        space: GrowingBasis,
        values: np.ndarray,
        vectors: np.ndarray,
        residuals: Residuals,
        rows: Any,
        *,
        lams: np.ndarray,
    ) -> np.ndarray:
        """Directions (r, k) in the basis Q that hold the targets and the solutions found so far.

        Galerkin solutions do not change when the basis shrinks around them. They are nearly dependent:
        those that matter to the predictions at the smallest lam are kept, at most half of the basis.
        """
        z = vectors.T @ to_numpy(space.Q @ rows.T)  # (k, c) in the Ritz basis
        solutions = -np.cumsum(
            residuals.combinations, axis=1
        )  # c_i = -(a_1 + .. + a_i), a_1 = -c_1
        sizes = np.maximum(residuals.fitted[:, :1], np.finfo(float).tiny)[..., None]
        scale = values + lams[0]
        flat = (solutions / sizes).reshape(-1, len(values)) * scale
        _, singular, directions = np.linalg.svd(flat, full_matrices=False)
        count = min(
            int(np.count_nonzero(singular > 1e-3 * self.tol * singular[0])),
            max(space.k // 2 - z.shape[1], 1),
        )
        # and the Ritz vectors of the largest eigenvalues, which would have to be found again
        largest = np.eye(len(values))[max(len(values) - space.k // 6, 0) :]
        candidates = np.concatenate([z.T, directions[:count] / scale, largest])
        candidates /= np.maximum(
            np.linalg.norm(candidates, axis=1, keepdims=True), np.finfo(float).tiny
        )
        return _independent(candidates) @ vectors.T

    def _start(self, rows: Any, lams: np.ndarray, sketch: Sketch | None) -> Any:
        """The targets, with preconditioned or random rows to fill the block."""
        c = int(rows.shape[0])
        xp, zero = self.backend.xp, not bool(self.backend.xp.any(rows != 0))
        count = max(self.block - c, 0)
        if sketch is None or zero:
            shape = (max(count, 1), int(rows.shape[1]))
            draw = np.random.default_rng(self.seed).standard_normal(shape)
            noise = self.backend.spread(draw, 1)
            # targets of zeros would be all that the smallest basis has room for
            return noise if zero else xp.concat([rows, noise], axis=0)
        # a wide first pass with guesses for all lam saves a later one
        count = max(min(WIDE * self.block, int(rows.shape[1]) // 4) - c, count)
        grid = np.geomspace(lams[0], lams[-1], max(count // c, 1))
        copies = xp.concat([rows] * len(grid), axis=0)
        return xp.concat([rows, sketch.solve(copies, np.repeat(grid, c))], axis=0)

    def _next_rows(
        self,
        space: GrowingBasis,
        vectors: np.ndarray,
        residuals: Residuals,
        errors: np.ndarray,
        *,
        lams: np.ndarray,
        sketch: Sketch | None,
    ) -> Any:
        """Rows to add: the last residual block, or the worst residuals, preconditioned."""
        if space.krylov:
            return space.R
        worst = np.argsort(-errors.ravel())[: self.block]
        index = np.unravel_index(worst, errors.shape)
        combinations = residuals.combinations[index] @ vectors.T  # (b, k) in the basis Q
        worst_residuals = space.combine(combinations)
        return worst_residuals if sketch is None else sketch.solve(worst_residuals, lams[index[0]])

    @staticmethod
    def _next_krylov(space: GrowingBasis) -> Any:
        """All of the last residual block but rounding: what is left out of it would be known to no one."""
        largest = float(np.abs(np.diag(space.T)).max())
        return space.new_directions(
            space.R, required=space.R, atol=4 * float(np.finfo(float).eps) * largest
        )


def _bounds(residuals: Residuals) -> np.ndarray:
    """Bounds on the relative errors of the predictions u_1..u_T: (L, T, c).

    K e_i = sum_{j<=i} A^(i-j+1) r_j with A = K (K + lam)^-1, so ||K e_i|| <= sum_j ||r_j||. By parts, with
    s_j = r_1 + .. + r_j, it is also A s_i - sum_{m<i} A^m (1 - A) s_(i-m), and a^m (1 - a) is at most
    g_m = m^m / (m + 1)^(m + 1) on [0, 1]. The first is better for large lam, the second for small.
    """
    scale = _scale(residuals)
    first = np.cumsum(residuals.norms * scale, axis=1)
    sums = residuals.sums * scale
    second = sums.copy()
    for m in range(1, sums.shape[1]):
        second[:, m:] += decay(m) * sums[:, :-m]
    return np.minimum(first, second)


def _independent(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis (r, k) of the span of rows (m, k) of length one."""
    _, singular, right = np.linalg.svd(rows, full_matrices=False)
    return right[singular > 1e-10 * singular[0]]


def _scale(residuals: Residuals) -> np.ndarray:
    """1 over what errors are relative to, (L, 1, c); 0 where the targets are 0."""
    return np.divide(
        1.0, residuals.sizes, out=np.zeros_like(residuals.sizes), where=residuals.sizes > 0
    )


def _spectrum(
    space: GrowingBasis, values: np.ndarray, vectors: np.ndarray, rows: Any, solver: Subspace
) -> Spectrum:
    backend = solver.backend
    basis = (backend.asarray(np.ascontiguousarray(vectors.T)) @ space.Q).T  # (n, k)
    eigenvalues = backend.asarray(values)
    below_rounding = int(np.count_nonzero(values < len(values) * np.finfo(float).eps * values[-1]))
    method = "subspace" if solver.rank else "lanczos"
    lowest = float(np.linalg.eigvalsh(space.T)[0])
    return Spectrum(
        eigenvalues=eigenvalues,
        basis=basis,
        Z=basis.T @ rows.T,
        below_rounding=below_rounding,
        most_negative=lowest,
        method=method,
    )
