"""What a spectrum answers: no solve, whatever is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.scaling import unit
from sdgpu.distill.filters import (
    dual_filter,
    flat_product,
    limit_dual_filter,
    limit_train_filter,
    step_dual_filters,
    stepwise_filters,
    train_filter,
)
from sdgpu.distill.lam_schedules import backward_dual_filters, rests_of_steps
from sdgpu.distill.leave_one_out import chain_filters, leave_one_out_of_chain, powers, ridge_errors
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.smoothers import RIDGE, Smoother
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.leverage import Exact, LeftOut, Leverages, left_out
from sdgpu.solvers.solution import BasisColumns, DistillationChain, root_mean_square
from sdgpu.solvers.spectrum import Spectrum
from sdgpu.solvers.weighted_leverage import RowsWithWeights, WeightedLeverages

__all__ = ["SpectralChain", "SpectralSolution"]


@dataclass(frozen=True, eq=False)
class SpectralSolution(RowsWithWeights):
    """Answers from eigenvalues: no solve, whatever is asked.

    Attributes
    ----------
    spectrum : Spectrum
    estimates : Leverages, optional
        What stands for the eigenvectors that a grown basis does not have.
    Y : array (n, c), optional
        The targets, if the basis does not hold them.
    weighting : RowWeighting, optional
        Of the rows.
    smoother : Smoother, default ridge
    """

    spectrum: Spectrum
    estimates: Leverages | None = None
    Y: Any = None
    weighting: RowWeighting | None = None
    smoother: Smoother = RIDGE

    def with_targets(self, Y: Any) -> SpectralSolution:
        """One product with all eigenvectors, for other targets (n, c).

        Raises
        ------
        ValueError
            If the basis was grown from its targets.
        """
        own = None if self.Y is None else Y
        return replace(self, spectrum=self.spectrum.with_targets(Y), estimates=None, Y=own)

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K."""
        eigenvalues = self.spectrum.eigenvalues
        return float(eigenvalues[-1]) if eigenvalues.shape[0] else 0.0

    @property
    def largest_bound(self) -> float:
        """The same: nothing that is answered lies outside of the basis."""
        return self.largest

    @property
    def rows(self) -> int:
        """n."""
        return int(self.spectrum.basis.shape[0])

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.spectrum.Z.shape[1])

    @property
    def targets(self) -> Any:
        """V Z where the basis holds them."""
        return self.spectrum.basis @ self.spectrum.Z if self.Y is None else self.Y

    @property
    def target_rms(self) -> float:
        """Root mean square of the targets."""
        return root_mean_square(self.targets)

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Step 1, equation (3)."""
        delta, basis = self.spectrum.eigenvalues, self.spectrum.basis
        coefficients = self.smoother.dual(delta, lam)[:, None] * self.spectrum.Z[:, outputs]
        return basis @ coefficients, basis @ (delta[:, None] * coefficients)

    def chain(self, lam: float | np.ndarray, alphas: np.ndarray) -> DistillationChain:
        """Steps of one schedule, Theorem 4.1."""
        return SpectralChain(self.spectrum, lam, alphas, self.smoother)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """Ridge with lam / alpha, equation (17)."""
        eigenvalues = self.spectrum.eigenvalues
        filters = (
            make(eigenvalues, lam, alpha, self.smoother)[..., None]
            for make in (limit_dual_filter, limit_train_filter)
        )
        dual, fitted = (self.spectrum.combine(f) for f in filters)
        return dual, fitted

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> BasisColumns:
        """The eigenvectors: every lam is a filter of them."""
        return _EigenvectorColumns(self.spectrum, lams, steps, limits, self.smoother)

    @property
    def leverages(self) -> Leverages:
        """Exact if all eigenvectors are known."""
        base = self.estimates or Exact(self.spectrum, self.smoother)
        return base if self.weighting is None else WeightedLeverages(base, self.weighting)

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """See :mod:`sdgpu.distill.leave_one_out`; of ridge alone."""
        spectrum = self.spectrum
        if lams.ndim == 2:
            steps_of_rows = [self._left_out_of_chain(row[::-1].copy()) for row in lams]
            xp = compat.array_namespace(spectrum.basis)
            return LeftOut(xp.stack(steps_of_rows), self.targets, [])
        fitted = powers(spectrum.basis, spectrum.eigenvalues, spectrum.Z, lams, steps)
        if self.Y is not None:  # H^0 Y is Y itself
            xp = compat.array_namespace(fitted)
            truth = xp.broadcast_to(self.Y, (len(lams), 1, *fitted.shape[2:]))
            fitted = xp.concat([truth, fitted[:, 1:, ...]], axis=1)
        return left_out(fitted, self.leverages, lams)

    def _left_out_of_chain(self, lams: np.ndarray) -> Any:
        """u_1 .. u_T (T, n, c) of the last of T steps with a lam each: chains of the last j of them."""
        spectrum, T = self.spectrum, len(lams)
        filters = chain_filters(self.smoother.shrinkage(spectrum.eigenvalues, lams))
        xp = compat.array_namespace(spectrum.eigenvalues)
        flat = xp.stack([one for row in filters for one in row])[..., None]  # (T (T + 1) / 2, k, 1)
        diagonal = flat_product(spectrum.basis * spectrum.basis, flat)
        fitted = flat_product(spectrum.basis, flat * spectrum.Z)
        if self.weighting is not None and self.weighting.intercept:
            diagonal = diagonal + (self.weighting.unit * self.weighting.unit)[:, None]
        rests, Y = self.leverages.rests(lams), self.targets
        found = []
        for j in range(1, T + 1):
            steps = range(T - j, T)
            place = [t * (t + 1) // 2 for t in steps]
            chain = [Y, *(fitted[p + q, ...] for q, p in enumerate(place))]
            own = [[diagonal[p + r, ...] for r in range(q + 1)] for q, p in enumerate(place)]
            found.append(leave_one_out_of_chain(chain, own, [rests[t, ...] for t in steps]))
        return compat.array_namespace(Y).stack(found)

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """From the residuals and the leverages."""
        spectrum = self.spectrum
        errors = ridge_errors(spectrum.basis, spectrum.eigenvalues, spectrum.Z, lams)
        if self.Y is not None:
            errors = errors + (self.Y - spectrum.basis @ spectrum.Z)
        return errors / self.leverages.rests(lams)

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """From the eigenvalues alone: 1 - B(tau) = (1 - a) (1 + sum_j s_j a^j)."""
        delta, Z = to_numpy(self.spectrum.eigenvalues), to_numpy(self.spectrum.Z)
        size = unit(float(np.abs(Z).max(initial=0.0)))
        norms = size * np.sqrt(np.einsum("kc,kc->k", Z / size, Z / size))
        # a^j (1 - a) for j = 1..T-1, then 1 - a: the order of the loss columns
        columns = np.empty((len(lams), len(delta), steps))
        for j, rest in enumerate(rests_of_steps(self.smoother, delta, lams, steps)):
            columns[..., j - 1] = rest
        triangles = merge_rows(None, columns * norms[:, None])
        if self.spectrum.outside is None:
            return triangles
        # no step reaches what is outside: a row more, of the last column alone
        row = np.zeros((len(lams), 1, steps))
        row[..., -1] = np.sqrt(np.sum(to_numpy(self.spectrum.outside)))
        return merge_rows(triangles, row)


@dataclass(frozen=True, eq=False)
class SpectralChain:
    """A chain from the spectrum, Theorem 4.1: no solve, whatever the number of steps."""

    spectrum: Spectrum
    lam: float | np.ndarray  # one for all steps, or one for each (T,)
    alphas: np.ndarray
    smoother: Smoother = RIDGE

    @cached_property
    def dual(self) -> Any:
        """V C(tau) Z, equation (13): (T, n, c)."""
        return self.spectrum.combine(self._filters(dual_filter, 1))

    @cached_property
    def fitted(self) -> Any:
        """V B(tau) Z, equation (10): (T, n, c)."""
        return self.spectrum.combine(self._filters(train_filter, 0))

    def _filters(self, make: Any, which: int) -> Any:
        eigenvalues, alphas = self.spectrum.eigenvalues, np.ascontiguousarray(self.alphas.T)
        xp = compat.array_namespace(eigenvalues)
        if np.ndim(self.lam):
            filters = stepwise_filters(eigenvalues, self.lam, alphas, self.smoother)[which]
        else:
            filters = make(eigenvalues, self.lam, alphas, self.smoother)
        if self.alphas.ndim == 1:
            return filters[..., None]  # (T, k, 1)
        return xp.permute_dims(filters, (1, 2, 0))  # (c, T, k) -> (T, k, c)


@dataclass(frozen=True, eq=False)
class _EigenvectorColumns:
    """Columns of a spectrum: its eigenvectors."""

    spectrum: Spectrum
    lams: np.ndarray
    T: int
    limit_parameters: tuple[np.ndarray, np.ndarray]
    smoother: Smoother

    @property
    def columns(self) -> Any:
        return self.spectrum.basis

    @property
    def numbers(self) -> int:
        return int(self.spectrum.Z.shape[0]) * int(self.spectrum.Z.shape[1])

    def steps(self, projected: Any, lams: slice) -> Any:
        delta, own = self.spectrum.eigenvalues, self.lams[lams]
        if own.ndim == 2:  # one for each step
            filters = backward_dual_filters(delta, own, self.smoother)
        else:
            filters = step_dual_filters(delta, own, self.T, self.smoother)
        return flat_product(projected, filters[..., None] * self.spectrum.Z)

    def limits(self, projected: Any, part: slice) -> Any:
        lams, alphas = (own[part] for own in self.limit_parameters)
        delta, ends = self.spectrum.eigenvalues, np.flatnonzero(np.diff(lams)) + 1
        if 2 * len(ends) < len(
            lams
        ):  # many weights of a lam: the smoother is evaluated once for them
            runs = zip([0, *ends], [*ends, len(lams)], strict=True)
            filters = compat.array_namespace(delta).concat(
                [limit_dual_filter(delta, lams[i], alphas[i:j], self.smoother) for i, j in runs]
            )
        else:
            filters = limit_dual_filter(delta, lams, alphas, self.smoother)
        return flat_product(projected, filters[..., None] * self.spectrum.Z)
