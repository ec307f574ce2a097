"""Traces and diagonals of H^q = (K (K + lam)^-1)^q where only a small basis of K is known.

Random signs g give E[g'H^q g] = tr H^q and E[g * H^q g] = diag(H^q) (Hutchinson). Two things make few of
them enough. A low-rank approximation of K whose own trace and diagonal are known takes its part out of
the lottery (the idea of Hutch++): the sketch that preconditioned the fit, or its Ritz vectors. And one
Galerkin space grown from all g serves every lam and power; its error in g'H^q g is of second order.

The estimates come one for each probe or group of probes, so that their spread gives standard errors of
whatever is computed from them.

References
----------
Hutchinson (1990); Meyer, Musco, Musco and Woodruff (2021), Hutch++; Bekas, Kokiopoulou and Saad (2007) for
diagonals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sdgpu.device.backend import Backend, to_numpy
from sdgpu.device.threads import only_torch
from sdgpu.device.timing import Stopwatch
from sdgpu.distill.filters import shrinkage
from sdgpu.operators.dense import Operator
from sdgpu.solvers.basis import GrowingBasis
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.spectrum import Spectrum

__all__ = ["GROUPS", "TOL", "Probes"]

GROUPS = 8  # of probes, for the spread of what is not linear in the estimates
TOL = 1e-3  # bound on the error of a trace, over n: below what few probes scatter by
MAX_PASSES = 60
WIDE = 2  # times the probes are the columns of a pass: few passes of many columns
SPREAD = 4  # lam for which the first pass already has guesses
FAINT = 1e-6  # relative size below which float32 leaves no eigenvector of a sketch


@dataclass(frozen=True)
class Probes:
    """Random signs with a space that holds what H^q makes of them; grown when first needed.

    Attributes
    ----------
    operator : callable
        Makes K as an operator.
    backend : Backend
    sketch : Sketch or None
        The preconditioner of the fit, if it had one.
    ritz : Spectrum
        What the fit knows of K, in the same library.
    lams : array (L,)
        The regularisations to serve.
    steps : int
        Powers to serve.
    count : int
        Random vectors, a multiple of `GROUPS`.
    seed : int
    watch : Stopwatch
    """

    operator: Callable[[], Operator]
    backend: Backend
    sketch: Sketch | None
    ritz: Spectrum
    lams: np.ndarray
    steps: int
    count: int
    seed: int
    watch: Stopwatch

    @staticmethod
    def peak_bytes(n: int, count: int) -> int:
        """Bytes of the signs and of a space of usual size, with its products."""
        return 8 * n * count * (2 * (2 + SPREAD) + 8)

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Estimates of tr H, .., tr H^T from each probe, (count, L, T).

        Notes
        -----
        k numbers for each lam, power and probe: nothing of size n.
        """
        own, known = self._grown, self._known
        own_powers, known_powers = (_powers(x.values, lams, steps) for x in (own, known))
        exact = known_powers.sum(axis=-1)  # (L, T)
        # what the probes see of H^q less what they see of the part that is known
        seen = own_powers @ own.along**2 - known_powers @ known.along**2  # (L, T, s)
        return exact + np.moveaxis(seen, -1, 0)

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Bounds on the error of tr H, .., tr H^T that the space makes for all probes alike, (L, T).

        Between the lam that were served they are interpolated.
        """
        known, where = np.log(np.sort(self.lams)), np.log(lams)
        return np.stack(
            [np.interp(where, known, self._space[2][:, q]) for q in range(steps)], axis=1
        )

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Any, Any]:
        """diag(H), .., diag(H^T): the part that is known (L, T, n), and the rest as each group sees it.

        Returns
        -------
        pair of arrays (L, T, n) and (groups, L, T, n)

        Notes
        -----
        n (k s + r) L T multiplications for spaces of k vectors and a known part of rank r.
        """
        xp, own, known = self.backend.xp, self._grown, self._known
        n = int(self._signs.shape[1])
        exact, rest = [], []
        with only_torch():
            squares = self._known_rows**2
            for lam in lams:
                ridge = np.array([lam])
                a, b = (_powers(x.values, ridge, steps)[0] for x in (own, known))  # (T, k), (T, r)
                exact.append(self._spread(b, squares))  # (T, n)
                images = self._spread(_columns(a, own.along), self._grown_rows)
                images = images - self._spread(_columns(b, known.along), self._known_rows)
                each = xp.reshape(images, (steps, GROUPS, -1, n))
                signs = xp.reshape(self._signs, (GROUPS, -1, n))
                rest.append(xp.permute_dims(xp.mean(each * signs, axis=2), (1, 0, 2)))
        return xp.stack(exact), xp.stack(rest, axis=1)

    @cached_property
    def diagonal(self) -> Any:
        """diag(K), (n,): H_ii is at most K_ii / (K_ii + lam)."""
        return self.backend.asarray(self.operator().diag())

    def _spread(self, small: np.ndarray, rows: Any) -> Any:
        xp = self.backend.xp
        left = xp.astype(self.backend.asarray(np.ascontiguousarray(small)), rows.dtype)
        return xp.astype(left @ rows, xp.float64)

    @cached_property
    def _signs(self) -> Any:
        """G, rows (count, n)."""
        rng = np.random.default_rng([self.seed, 1])
        n = int(self.ritz.basis.shape[0])
        return self.backend.asarray(rng.choice([-1.0, 1.0], size=(self.count, n)))

    @cached_property
    def _known(self) -> _LowRank:
        """A part of K whose trace and diagonal cost nothing."""
        if self.sketch is None:
            basis = self.ritz.basis
            return _LowRank(to_numpy(self.ritz.eigenvalues), to_numpy(basis.T @ self._signs.T))
        xp, F = self.backend.xp, self.sketch.F
        turn, values = self._turn
        along = turn @ xp.astype(F @ xp.astype(self._signs.T, F.dtype), xp.float64)
        return _LowRank(values, to_numpy(along))

    @cached_property
    def _known_rows(self) -> Any:
        """Its orthonormal rows (r, n), which only diagonals need."""
        if self.sketch is None:
            return self.ritz.basis.T
        return self.backend.xp.astype(self._turn[0], self.sketch.F.dtype) @ self.sketch.F

    @cached_property
    def _turn(self) -> tuple[Any, np.ndarray]:
        """What makes orthonormal eigenvectors of the sketch's rows (r', r), and their eigenvalues."""
        assert self.sketch is not None
        values = to_numpy(self.sketch.eigenvalues)
        kept = int(np.searchsorted(values, FAINT * values[-1]))
        scale = self.backend.asarray(1 / np.sqrt(values[kept:]))
        return (self.sketch.vectors[:, kept:] * scale).T, values[kept:]

    @cached_property
    def _grown(self) -> _LowRank:
        """The Galerkin space of all probes, in its Ritz basis."""
        values = self._space[0]
        return _LowRank(values, to_numpy(self._grown_rows @ self._signs.T))

    @property
    def _grown_rows(self) -> Any:
        return self._space[1]

    @cached_property
    def _space(self) -> tuple[np.ndarray, Any, np.ndarray]:
        """Ritz values (k,), their rows (k, n), and bounds on the errors of traces (L, T)."""
        with self.watch.stage("probes"), only_torch():
            space = self._grow()
            values, vectors = space.ritz()
            seen = space.residuals(values, vectors, self._signs, np.sort(self.lams), self.steps)
            left = _second_order(seen.norms)
            return values, self.backend.asarray(np.ascontiguousarray(vectors.T)) @ space.Q, left

    def _grow(self) -> GrowingBasis:
        operator, n = self.operator(), int(self.ritz.basis.shape[0])
        G, lams = self._signs, np.sort(self.lams)
        room = min(n, (2 + SPREAD) * self.count)
        space = GrowingBasis(n, room, self.backend, krylov=self.sketch is None)
        block = self._start(lams)
        for passes in range(1, MAX_PASSES + 1):
            new = space.new_directions(block)[: n - space.k, :]
            if not new.shape[0]:
                break
            space.append(new, self.backend.asarray(operator.matmat(new.T)).T)
            values, vectors = space.ritz()
            seen = space.residuals(values, vectors, G, lams, self.steps)
            error = float(_second_order(seen.norms).max()) / n
            self.watch.report("probes", passes, passes + 1, error)
            if error <= TOL or space.k >= n:
                break
            if self.sketch is None:
                block = space.R
                continue
            worst = np.argsort(-seen.norms.ravel())[: WIDE * self.count]
            which = np.unravel_index(worst, seen.norms.shape)
            residuals = space.combine(seen.combinations[which] @ vectors.T)
            block = self.sketch.solve(residuals, lams[which[0]])
        return space

    def _start(self, lams: np.ndarray) -> Any:
        if self.sketch is None:
            return self._signs
        xp = self.backend.xp
        spread = np.geomspace(lams[0], lams[-1], SPREAD + 1)[:SPREAD]
        copies = xp.concat([self._signs] * len(spread), axis=0)
        guesses = self.sketch.solve(copies, np.repeat(spread, self.count))
        return xp.concat([self._signs, guesses], axis=0)


@dataclass(frozen=True)
class _LowRank:
    """Eigenvalues (k,) of a part of K, and what the probes have along its eigenvectors, (k, s)."""

    values: np.ndarray
    along: np.ndarray


def _second_order(norms: np.ndarray) -> np.ndarray:
    """Bounds on |g'(H^q - its Galerkin value) g| from residual norms (L, T, s): (L, T), mean over probes.

    H - H_k is lam times a difference of resolvents, so each term of H^q - H_k^q = sum_i H^i (H - H_k)
    H_k^(q-1-i) is a product of two residuals over lam, times lam: sum_i ||r_i|| ||r_(q+1-i)||.
    """
    T = norms.shape[1]
    found = [(norms[:, :q] * norms[:, q - 1 :: -1][:, :q]).sum(axis=1) for q in range(1, T + 1)]
    return np.mean(np.stack(found, axis=1), axis=-1)


def _powers(eigenvalues: np.ndarray, lams: np.ndarray, steps: int) -> np.ndarray:
    """a, a^2, .., a^T with a = delta / (delta + lam): (L, T, k)."""
    a = shrinkage(eigenvalues, lams)
    return a[:, None, :] ** np.arange(1, steps + 1)[:, None]


def _columns(filters: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Each filter (T, k) times each probe (k, s): (T s, k)."""
    return (filters[:, None, :] * along.T).reshape(-1, len(along))
