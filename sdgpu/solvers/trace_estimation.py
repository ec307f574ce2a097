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
from typing import Any

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.cached import cached
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.threads import only_torch
from sdgpu.distill.leave_one_out import ridge_errors
from sdgpu.operators.operator import Operator
from sdgpu.solvers.galerkin import triangle_bytes
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.quadratic_forms import (
    WIDE,
    WIDE_RELATIVE,
    Forms,
    LowRank,
    grow_forms,
    power_filters,
)
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["COLUMNS", "GROUPS", "TOL", "Probes"]

GROUPS = 8  # of probes, for the spread of what is not linear in the estimates
TOL = 2e-3  # bound on the error of a trace, over n: below what few probes scatter by
ROOM = 48  # rows of a space for each probe, at most
SHARP = 4  # rows for each probe whose leverages are computed by themselves
SHARP_TOL = 0.1  # bound on the errors of H_ii, .., over 1 - H_ii: five times what they are
COLUMNS = 192  # of a product with the rows of a space
FAINT = 1e-6  # relative size below which float32 leaves no eigenvector of a sketch


@dataclass(frozen=True, eq=False)
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

    def peak_bytes(self, *, diagonals: bool) -> int:
        """Bytes of the signs and of their space, and of that of single rows if diagonals are wanted."""
        n, grid = int(self.ritz.basis.shape[0]), len(self.lams) * self.steps
        size = min(n, ROOM * self.count)

        def space(s: int, wide: int) -> int:
            # rows and images, and a copy as they grow or what certifies them; a block in the making;
            # residuals of the grid
            workspace = max(8 * n * size, triangle_bytes(n, size))
            return 8 * (n * (2 * size + 7 * wide * s) + 2 * grid * s * size) + workspace

        traces = space(self.count, WIDE)
        if not diagonals:
            return traces
        return max(traces, 8 * n * size + space(SHARP * self.count, WIDE_RELATIVE))

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Estimates of tr H, .., tr H^T from each probe, (count, L, T).

        Notes
        -----
        k numbers for each lam, power and probe: nothing of size n.
        """
        space, low_rank = self._probe_space, self._low_rank
        space_powers, low_rank_powers = (
            power_filters(x.values, lams, steps) for x in (space, low_rank)
        )
        exact = low_rank_powers.sum(axis=-1)  # (L, T)
        # what the probes see of H^q less what they see of the part that is known
        remainder = (
            space_powers @ space.coordinates**2 - low_rank_powers @ low_rank.coordinates**2
        )  # (L, T, s)
        return exact + np.moveaxis(remainder, -1, 0)

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Bounds on the error of tr H, .., tr H^T that the space makes for all probes alike, (L, T).

        Between the lam that were served they are interpolated. For powers beyond those served they grow
        as the number of terms does, q, of which none is larger.
        """
        nodes, points = np.log(np.sort(self.lams)), np.log(lams)
        bounds = self._probe_space.bounds.mean(axis=-1)  # (L, T)
        T = bounds.shape[1]
        extension = [bounds.max(axis=1) * q / T for q in range(T + 1, steps + 1)]
        columns = [*bounds.T, *extension][:steps]
        return np.stack([np.interp(points, nodes, column) for column in columns], axis=1)

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """Mean square of the random error of H_ii over the rows, (L,), from traces alone.

        Of one row it is sum_j (H - P)_ij^2 / count over j != i, P the part that is known: on average
        (||H - P||_F^2 - sum_i (H - P)_ii^2) / (n count), where the last sum is at least tr(H - P)^2 / n.
        """
        n = float(self._signs.shape[1])
        unknown = self.traces(lams, 2).mean(axis=0)
        unknown = unknown - power_filters(self._low_rank.values, lams, 2).sum(axis=-1)  # (L, 2)
        return np.maximum(unknown[:, 1] - unknown[:, 0] ** 2 / n, 0.0) / (n * self.count)

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Any, Any]:
        """diag(H), .., diag(H^T): the low-rank part (L, T, n), and the remainder as each group sees it.

        Returns
        -------
        pair of arrays (L, T, n) and (groups, L, T, n)
            Of the rows that matter most, four for each probe, everything is known.

        Notes
        -----
        n (k s + r) L T multiplications for spaces of k vectors and a known part of rank r.
        """
        low_rank, remainders = self._estimates(lams, steps)
        rows, forms = self._sharp_rows
        sharp = power_filters(forms.values, lams, steps) @ forms.coordinates**2  # (L, T, m)
        inside, places = self._places(rows)
        own, own_remainders = self.backend.own(low_rank), self.backend.own(remainders)
        exact, complement = np.zeros(tuple(own.shape)), np.ones(int(own.shape[-1]))
        exact[..., places], complement[places] = sharp[..., inside], 0.0
        rest = self.backend.asarray(complement)
        own[...] = own * rest + self.backend.asarray(exact)
        own_remainders[...] = own_remainders * rest
        return low_rank, remainders

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some rows are on this rank, and where among its own."""
        here = self.backend.rows_here(int(self.ritz.basis.shape[0]))
        inside = np.flatnonzero((rows >= here.start) & (rows < here.stop))
        return inside, rows[inside] - here.start

    def _estimates(self, lams: np.ndarray, steps: int) -> tuple[Any, Any]:
        """The same from the signs alone."""
        xp, space, low_rank = self.backend.xp, self._probe_space, self._low_rank
        n = int(self._signs.shape[1])
        exact, remainders = [], []
        with only_torch():
            squares = self._low_rank_rows * self._low_rank_rows
            signs = xp.reshape(xp.astype(self._signs, xp.float32), (GROUPS, -1, n))
            # some lam at a time: few columns leave the products waiting for memory
            for part in slices(len(lams), max(1, COLUMNS // (steps * self.count))):
                a, b = (power_filters(x.values, lams[part], steps) for x in (space, low_rank))
                exact.append(xp.astype(self._spread(b, squares), xp.float64))
                # what the probes see, less what they see of the part that is known
                images = self._spread(_columns(a, space.coordinates), space.rows)  # (l, T, s, n)
                images -= xp.astype(
                    self._spread(_columns(b, low_rank.coordinates), self._low_rank_rows), xp.float32
                )
                samples = xp.reshape(images, (len(a), steps, GROUPS, -1, n)) * signs
                means = xp.permute_dims(xp.mean(samples, axis=3), (2, 0, 1, 3))
                remainders.append(xp.astype(means, xp.float64))
        return xp.concat(exact, axis=0), xp.concat(remainders, axis=1)

    @cached
    def diagonal(self) -> Any:
        """diag(K), (n,): H_ii is at most K_ii / (K_ii + lam)."""
        return self.backend.asarray(self.operator().diag())

    def _spread(self, combinations: np.ndarray, rows: Any) -> Any:
        """Combinations (..., k) of rows (k, n)."""
        xp, lead = self.backend.xp, combinations.shape[:-1]
        flat = np.ascontiguousarray(combinations.reshape(-1, combinations.shape[-1]))
        coefficients = xp.astype(self.backend.asarray(flat), rows.dtype)
        return xp.reshape(coefficients @ rows, (*lead, int(rows.shape[1])))

    @cached
    def _signs(self) -> Any:
        """G, rows (count, n)."""
        rng = np.random.default_rng([self.seed, 1])
        n = int(self.ritz.basis.shape[0])
        signs = self.backend.empty_rows(self.count, n)
        own, here = self.backend.own(signs), self.backend.rows_here(n)
        for probe in range(self.count):  # row by row: of several ranks each draws those of all
            own[probe, :] = self.backend.asarray(rng.choice([-1.0, 1.0], size=n)[here])
        return signs

    @cached
    def _low_rank(self) -> LowRank:
        """A part of K whose trace and diagonal cost nothing."""
        if self.sketch is None:
            basis = self.ritz.basis
            return LowRank(to_numpy(self.ritz.eigenvalues), to_numpy(basis.T @ self._signs.T))
        xp, F = self.backend.xp, self.sketch.F
        whitening, values = self._whitening
        coordinates = whitening @ xp.astype(F @ xp.astype(self._signs.T, F.dtype), xp.float64)
        return LowRank(values, to_numpy(coordinates))

    @cached
    def _low_rank_rows(self) -> Any:
        """Its orthonormal rows (r, n), which only diagonals need."""
        if self.sketch is None:
            return self.ritz.basis.T
        return self.backend.xp.astype(self._whitening[0], self.sketch.F.dtype) @ self.sketch.F

    @cached
    def _whitening(self) -> tuple[Any, np.ndarray]:
        """What makes orthonormal eigenvectors of the sketch's rows (r', r), and their eigenvalues."""
        assert self.sketch is not None
        values = to_numpy(self.sketch.eigenvalues)
        first = int(np.searchsorted(values, FAINT * values[-1]))
        scale = self.backend.asarray(1 / np.sqrt(values[first:]))
        return (self.sketch.vectors[:, first:] * scale).T, values[first:]

    @cached
    def _probe_space(self) -> Forms:
        """The Galerkin space of all probes."""
        return self._space(self._signs, TOL, relative=False)

    @cached
    def _sharp_rows(self) -> tuple[np.ndarray, LowRank]:
        """The rows whose leverages matter most, (m,), and what they have along their Galerkin space.

        Losses of rows left out divide by 1 - H_ii: a few rows make nearly all of their error, those with
        H_ii near 1, which needs more digits than probes have, and those with a large loss.
        """
        n = int(self._signs.shape[1])
        count = min(n, SHARP * self.count)
        rows = _round_robin(self._leading(self._influence(), count), count)
        units, (inside, places) = self.backend.empty_rows(count, n), self._places(rows)
        own = self.backend.own(units)
        ones = np.zeros(tuple(own.shape))
        ones[inside, places] = 1.0
        own[...] = self.backend.asarray(ones)
        forms = self._space(units, SHARP_TOL, relative=True)
        return rows, LowRank(forms.values, forms.coordinates)  # its vectors are wanted no more

    def _leading(self, influence: np.ndarray, count: int) -> np.ndarray:
        """Numbers of the first `count` rows of each ranking (R, count), from own rows (R, m) of all ranks.

        What is among the first of all is among the first of its rank.
        """
        n = int(self._signs.shape[1])
        order = np.argsort(-influence, axis=1)[:, :count]
        told = np.full((2, len(influence), count), -np.inf)  # values, and the rows they are of
        told[0, :, : order.shape[1]] = np.take_along_axis(influence, order, axis=1)
        told[1, :, : order.shape[1]] = order + self.backend.rows_here(n).start
        values, rows = np.concatenate(self.backend.from_ranks(told), axis=2)
        first = np.argsort(-values, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(rows, first, axis=1).astype(np.int64)

    def _influence(self) -> np.ndarray:
        """What the error of each leverage does to the sum of the losses of rows left out, (2 L, n).

        Of the rows that are here.
        """
        spectrum, influences, own = self.ritz, [], self.backend.own
        for lam in np.sort(self.lams):
            lams = np.array([lam])
            estimates = self._estimates(lams, 1)
            low_rank, remainders = (to_numpy(own(x))[..., 0, 0, :] for x in estimates)
            # by luck of the probes a row may seem to be sharp: in the mean, or without a group
            jackknife = (remainders.sum(axis=0) - remainders) / (GROUPS - 1)
            leverage = low_rank + np.maximum(remainders.mean(axis=0), jackknife.max(axis=0))
            complement = np.maximum(1 - leverage, lam / (lam + to_numpy(own(self.diagonal))))
            left = ridge_errors(spectrum.basis, spectrum.eigenvalues, spectrum.Z, lams)
            errors = to_numpy(own(left))[0]  # (n, c)
            # H_ii of a sign has the variance (H^2)_ii - H_ii^2 <= H_ii (1 - H_ii)
            influences.append(
                (errors**2).sum(axis=1) * np.sqrt(np.maximum(1 - complement, 0)) * complement**-2.5
            )
            if len(influences) == 1:
                sharp = 1 / complement
        # what later steps at the smallest lam divide by has every second turn
        return np.stack([row for influence in influences for row in (sharp, influence)])

    def _space(self, G: Any, tol: float, *, relative: bool) -> Forms:
        with self.watch.stage("probes"), only_torch():
            return grow_forms(
                self.operator(),
                self.backend,
                self.sketch,
                G,
                lams=np.sort(self.lams),
                steps=self.steps,
                watch=self.watch,
                tol=tol,
                relative=relative,
                max_size=ROOM * self.count,
            )


def _columns(filters: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Each filter (l, T, k) times each probe (k, s): (l, T, s, k)."""
    return np.asarray(filters[..., None, :] * coordinates.T)


def _round_robin(rankings: np.ndarray, count: int) -> np.ndarray:
    """The first `count` numbers of some rankings (L, n), each of which has its turn; sorted."""
    flat = rankings.T.ravel()
    _, first = np.unique(flat, return_index=True)
    return np.sort(flat[np.sort(first)[:count]])
