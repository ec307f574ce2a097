"""Diagonals and traces of H^q = (K (K + lam)^-1)^q: what a fit knows of rows that it left out.

Exact from all eigenvectors, or estimated from random probes; leave-one-out and generalised
cross-validation need not know which, but say how accurate they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.distill.lam_schedules import rests_of_steps
from sdgpu.distill.leave_one_out import diagonals, leave_one_out, rest
from sdgpu.distill.smoothers import RIDGE, Smoother
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.trace_estimation import COLUMNS, GROUPS, Probes

__all__ = [
    "Diagonals",
    "Estimated",
    "Exact",
    "LeftOut",
    "Leverages",
    "left_out",
    "left_out_numbers",
]


@dataclass(frozen=True, eq=False)
class Diagonals:
    """diag(H^q) for q = 0..T as (L, T + 1, n, 1), and 1 - H_ii (L, n, 1)."""

    powers: Any
    rest: Any


class Leverages(Protocol):
    """Diagonals and traces, exact or estimated."""

    @property
    def exact(self) -> bool: ...
    @property
    def unpenalised(self) -> int:
        """Functions that no penalty holds down, an intercept: degrees of freedom beside the eigenvalues."""

    @property
    def copies(self) -> int:
        """Sets of diagonals: one, and one without each group of probes."""

    def numbers(self, n: int, steps: int) -> int:
        """Numbers that the diagonals of one lam need at the peak."""

    def trace_numbers(self, n: int) -> int:
        """The same for traces alone."""

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """The diagonals of some lam, and those without each group of probes: none if exact."""

    def rests(self, lams: np.ndarray) -> Any:
        """1 - H_ii alone, (L, n, 1)."""

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """tr H, .., tr H^T: (1, L, T) if exact, else (p, L, T) from p independent probes."""

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """tr (1 - H), tr (1 - H) H, .., tr (1 - H) H^(T - 1), in the shape of the traces."""

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Bounds on what is wrong in the traces of all probes alike, (L, T)."""

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """Mean square of the random error of a row's leverage, (L,)."""


@dataclass(frozen=True, eq=False)
class Exact:
    """From all eigenvectors."""

    spectrum: Spectrum
    smoother: Smoother = RIDGE
    exact: ClassVar[bool] = True
    unpenalised: ClassVar[int] = 0
    copies: ClassVar[int] = 1

    def numbers(self, n: int, steps: int) -> int:
        """The squares of the eigenvectors."""
        return n * n // 2

    def trace_numbers(self, n: int) -> int:
        """Nothing of size n."""
        return 0

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """O(n^2 L T)."""
        spectrum = self.spectrum
        powers = diagonals(spectrum.basis, spectrum.eigenvalues, lams, steps)
        return Diagonals(powers, self.rests(lams)), []

    def rests(self, lams: np.ndarray) -> Any:
        """O(n^2 L)."""
        return rest(self.spectrum.basis, self.spectrum.eigenvalues, lams)

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Sums over the eigenvalues."""
        a = self.smoother.shrinkage(to_numpy(self.spectrum.eigenvalues), lams)
        traces, power = np.empty((1, len(lams), steps)), np.ones_like(a)
        for q in range(steps):
            power = power * a
            traces[0, :, q] = power.sum(axis=1)
        return traces

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """By their own sums: n - tr H would cancel for small lam."""
        delta = to_numpy(self.spectrum.eigenvalues)
        nullity = int(self.spectrum.basis.shape[0]) - len(delta)
        complements = np.empty((1, len(lams), steps))
        for j, left in enumerate(rests_of_steps(self.smoother, delta, lams, steps)):
            complements[0, :, j] = left.sum(axis=1) + (nullity if j == 0 else 0)
        return complements

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """None."""
        return np.zeros((len(lams), steps))

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """None."""
        return np.zeros(len(lams))


@dataclass(frozen=True, eq=False)
class Estimated:
    """From random probes, with the spread over groups of them.

    Attributes
    ----------
    probes : Probes
    backend : Backend
        Where the diagonals are wanted.
    unit : float
        Of K and lam in the probes.
    """

    probes: Probes
    backend: Backend
    unit: float = 1.0
    exact: ClassVar[bool] = False
    unpenalised: ClassVar[int] = 0
    copies: ClassVar[int] = GROUPS + 1

    def numbers(self, n: int, steps: int) -> int:
        """The signs with their space, images of all powers, and the diagonals of each group twice."""
        space = self.probes.peak_bytes(diagonals=True) // 8
        return space + 2 * n * max(steps * self.probes.count, COLUMNS) + 2 * n * steps * GROUPS

    def trace_numbers(self, n: int) -> int:
        """The signs with their space."""
        return self.probes.peak_bytes(diagonals=False) // 8

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """The mean over all groups, and over all but one."""
        exact, remainders = (
            self.backend.asarray(x) for x in self.probes.diagonals(lams / self.unit, steps)
        )
        groups, total = (
            int(remainders.shape[0]),
            compat.array_namespace(remainders).sum(remainders, axis=0),
        )
        jackknife = [
            self._clamped_diagonals(exact + (total - remainders[g, ...]) / (groups - 1), lams)
            for g in range(groups)
        ]
        return self._clamped_diagonals(exact + total / groups, lams), jackknife

    def rests(self, lams: np.ndarray) -> Any:
        """The mean over all groups."""
        return self.diagonals(lams, 1)[0].rest

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """One estimate for each probe."""
        return self.probes.traces(lams / self.unit, steps)

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Differences of the traces, one estimate for each probe."""
        traces = self.traces(lams, steps)
        n = float(self.probes.ritz.basis.shape[0])
        return -np.diff(traces, axis=-1, prepend=n)

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Of the space in which they were evaluated."""
        return self.probes.bias(lams / self.unit, steps)

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """Of the probes."""
        return self.probes.scatter(lams / self.unit)

    def _clamped_diagonals(self, powers: Any, lams: np.ndarray) -> Diagonals:
        """With H_ii kept where it must be, between 0 and K_ii / (K_ii + lam)."""
        xp = self.backend.xp
        diagonal = self.backend.asarray(self.probes.diagonal)
        lam = self.backend.asarray(lams / self.unit)[:, None]
        leverage = xp.minimum(
            xp.maximum(powers[:, 0, :], 0 * diagonal), diagonal / (diagonal + lam)
        )
        diags = [xp.ones_like(leverage), leverage]
        diags += [powers[:, q, :] for q in range(1, int(powers.shape[1]))]
        return Diagonals(xp.stack(diags, axis=1)[..., None], (1 - leverage)[..., None])


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Leave-one-out predictions of u_1 .. u_T.

    Attributes
    ----------
    steps : array (L, T, n, c)
    targets : array (n, c)
    replicates : list of arrays (L, T, n, c)
        The same without each group of probes; empty if exact.
    """

    steps: Any
    targets: Any
    replicates: list[Any]


def left_out_numbers(leverages: Leverages, n: int, c: int, steps: int) -> int:
    """Numbers that the leave-one-out predictions of T steps at one lam need at the peak."""
    return leverages.numbers(n, steps) + 3 * n * c * steps * leverages.copies


def left_out(fitted: Any, leverages: Leverages, lams: np.ndarray) -> LeftOut:
    """From H^q Y, q = 0..T, as (L, T + 1, n, c)."""
    steps = int(fitted.shape[1]) - 1
    mean, jackknife = leverages.diagonals(lams, steps)
    predictions, *replicates = (
        leave_one_out(fitted, diag.powers, diag.rest) for diag in (mean, *jackknife)
    )
    return LeftOut(predictions, fitted[0, 0, ...], replicates)
