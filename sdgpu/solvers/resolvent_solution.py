"""What conjugate gradients answer: T solves for each lam, whatever the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.cached import cached
from sdgpu.distill.loss_triangles import merge_rows, step_columns
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.leverage import LeftOut, Leverages, left_out
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.solution import (
    BasisColumns,
    DistillationChain,
    Solution,
    combine_steps,
    differences,
    root_mean_square,
)
from sdgpu.solvers.weighted_leverage import RowsWithWeights, WeightedLeverages

__all__ = ["ResolventSolution"]


@dataclass(frozen=True, eq=False)
class ResolventSolution(RowsWithWeights):
    """Answers from conjugate gradients: T solves for each lam, whatever the weights.

    Attributes
    ----------
    resolvents : Resolvents
    backend : Backend
        Where the answers are wanted; the solver may work with another library.
    estimates : Leverages
        Of K as it was multiplied.
    weighting : RowWeighting, optional
        Of the rows.
    """

    resolvents: Resolvents
    backend: Backend
    estimates: Leverages
    weighting: RowWeighting | None = None

    @property
    def leverages(self) -> Leverages:
        """Estimates."""
        if self.weighting is None:
            return self.estimates
        return WeightedLeverages(self.estimates, self.weighting)

    @property
    def spectrum(self) -> None:
        """There is none."""
        return

    def with_targets(self, Y: Any) -> Solution:
        """Not without new solves.

        Raises
        ------
        ValueError
        """
        raise ValueError("solves serve their own targets alone: fit again with the new Y")

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K, from below."""
        return self.resolvents.largest

    @property
    def largest_bound(self) -> float:
        """From above."""
        return self.resolvents.largest_bound

    @property
    def rows(self) -> int:
        """n."""
        return int(self.resolvents.Y.shape[0])

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.resolvents.Y.shape[1])

    def duals(self, lams: np.ndarray, steps: int) -> Any:
        """Dual coefficients of u_1 .. u_T for each lam, (L, T, n, c)."""
        return self.backend.asarray(self.resolvents.duals(lams, steps))

    def fits(self, lams: np.ndarray, steps: int) -> Any:
        """Training predictions of u_1 .. u_T for each lam, (L, T, n, c)."""
        return self.backend.asarray(self.resolvents.fitted(lams, steps))

    @property
    def targets(self) -> Any:
        """As they were given."""
        return self.backend.asarray(self.resolvents.targets)

    @property
    def target_rms(self) -> float:
        """Root mean square of the targets."""
        return root_mean_square(self.targets)

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """The first solve, equation (3)."""
        lams = np.array([lam])
        return self.duals(lams, 1)[0, 0, :, outputs], self.fits(lams, 1)[0, 0, :, outputs]

    def chain(self, lam: float, alphas: np.ndarray) -> DistillationChain:
        """Steps of one schedule from the basis of its lam, Theorem 4.1."""
        return _CombinedChain(self, lam, alphas)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """One solve with lam / alpha, equation (17)."""
        with np.errstate(over="ignore"):
            ridge = np.inf if alpha == 0 else np.float64(lam) / alpha
        if np.isinf(ridge):  # the collapse
            zero = self.backend.xp.zeros_like(self.targets)
            return zero, zero
        lams = np.array([ridge])
        return self.duals(lams, 1)[0, 0, ...], self.fits(lams, 1)[0, 0, ...]

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> BasisColumns:
        """All dual coefficients side by side."""
        W = differences(self.duals(lams, steps))  # (L, T, n, c)
        # alpha = 0 is the zero function: no solve
        nonzero = np.flatnonzero(limits[1])
        mu = limits[0][nonzero] / limits[1][nonzero]
        return _FunctionColumns.of(
            W, self.duals(mu, 1)[:, 0, ...] if mu.size else None, nonzero, len(limits[0])
        )

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """See :mod:`sdgpu.distill.leave_one_out`."""
        xp, fits = self.backend.xp, self.fits(lams, steps)
        truth = xp.broadcast_to(self.targets, (len(lams), 1, *fits.shape[2:]))
        return left_out(xp.concat([truth, fits], axis=1), self.leverages, lams)

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """From the residuals lam (K + lam I)^-1 Y and the leverages."""
        lam = self.backend.asarray(lams)[:, None, None]
        errors = lam * self.duals(lams, 1)[:, 0, ...]
        return errors / self.leverages.rests(lams)

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """From the predictions at the training points."""
        backend, triangles = self.backend, []
        targets = backend.own(self.targets)
        xp = compat.array_namespace(targets)
        truth = xp.reshape(targets, (-1,))
        for lam in lams:
            basis = backend.own(differences(self.fits(np.array([lam]), steps))[0, ...])  # (T, n, c)
            flat = xp.permute_dims(xp.reshape(basis, (steps, -1)), (1, 0))
            own = merge_rows(None, step_columns(flat, truth))
            triangles.append(to_numpy(reduce(merge_rows, backend.from_ranks(own))))
        return np.stack(triangles)


@dataclass(frozen=True, eq=False)
class _CombinedChain:
    """A chain from u_1, D_1, ..: f(.; tau) = u_1 + sum_j s_j D_j."""

    solution: ResolventSolution
    lam: float
    alphas: np.ndarray

    @property
    def spectrum(self) -> None:
        return

    @cached
    def dual(self) -> Any:
        return self._combine(self.solution.duals)

    @cached
    def fitted(self) -> Any:
        return self._combine(self.solution.fits)

    def _combine(self, make: Any) -> Any:
        return combine_steps(make(np.array([self.lam]), len(self.alphas) + 1)[0, ...], self.alphas)


@dataclass(frozen=True, eq=False)
class _FunctionColumns:
    """Columns that are the functions themselves: first L T c of steps, then those of limits."""

    columns: Any = field(repr=False)
    shape: tuple[int, int, int]  # L, T, c
    limit_positions: np.ndarray  # number of each limit that is not zero
    numbers: int

    @classmethod
    def of(cls, W: Any, limits: Any, nonzero: np.ndarray, count: int) -> _FunctionColumns:
        """From dual coefficients W (L, T, n, c) and those of limits (M, n, c), or None."""
        xp = compat.array_namespace(W)
        L, T, n, c = W.shape
        parts = [xp.reshape(xp.permute_dims(W, (2, 0, 1, 3)), (n, L * T * c))]
        positions = np.full(count, -1)
        if limits is not None:
            positions[nonzero] = np.arange(len(nonzero))
            parts.append(xp.reshape(xp.permute_dims(limits, (1, 0, 2)), (n, len(nonzero) * c)))
        return cls(xp.concat(parts, axis=1), (L, T, c), positions, T * c)

    def steps(self, projected: Any, lams: slice) -> Any:
        L, T, c = self.shape
        xp = compat.array_namespace(projected)
        values = xp.reshape(projected[:, : L * T * c], (-1, L, T, c))[:, lams, ...]
        return xp.permute_dims(values, (1, 2, 0, 3))

    def limits(self, projected: Any, part: slice) -> Any:
        L, T, c = self.shape
        xp = compat.array_namespace(projected)
        positions = self.limit_positions[part]
        values = xp.reshape(projected[:, L * T * c :], (projected.shape[0], -1, c))
        zero = xp.zeros((projected.shape[0], 1, c), dtype=projected.dtype)
        padded = xp.concat([values, xp.asarray(zero, device=compat.device(projected))], axis=1)
        index = xp.asarray(
            np.where(positions < 0, values.shape[1], positions), device=compat.device(projected)
        )
        return xp.permute_dims(xp.take(padded, index, axis=1), (1, 0, 2))
