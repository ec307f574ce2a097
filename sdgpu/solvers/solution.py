"""What a fit is asked, answered from a spectrum or from solves.

Everything that a path, a limit or a sweep needs are dual coefficients of the basis u_1, D_1, .., D_{T-1}
of Theorem 4.1 (see :func:`sdgpu.distill.filters.step_dual_filters`), of limits, and how K acts on them.
A :class:`~sdgpu.solvers.spectral_solution.SpectralSolution` has them as filters of eigenvalues, for any lam
without work; a :class:`~sdgpu.solvers.resolvent_solution.ResolventSolution` as solutions of conjugate
gradients, made when a lam is first asked for.
"""

from __future__ import annotations

from typing import Any, Protocol

import array_api_compat as compat
import numpy as np

from sdgpu.backend.scaling import unit
from sdgpu.distill.schedules import all_tails
from sdgpu.solvers.leverage import LeftOut, Leverages
from sdgpu.solvers.spectrum import Spectrum

__all__ = [
    "BasisColumns",
    "DistillationChain",
    "Solution",
    "combine_own_steps",
    "combine_steps",
    "differences",
    "root_mean_square",
]


class DistillationChain(Protocol):
    """Dual coefficients and training predictions of every step, (T, n, c)."""

    @property
    def spectrum(self) -> Spectrum | None:
        """Where they come from; None if from solves."""

    @property
    def dual(self) -> Any: ...
    @property
    def fitted(self) -> Any: ...


class BasisColumns(Protocol):
    """Functions as combinations of few columns: project them on new rows once, then combine.

    Attributes
    ----------
    columns : array (n, k)
        Dual coefficients.
    numbers : int
        Numbers of one row of `steps` for one lam, for the size of blocks.
    """

    @property
    def columns(self) -> Any: ...
    @property
    def numbers(self) -> int: ...
    def steps(self, projected: Any, lams: slice) -> Any:
        """Values of u_1, D_1, .., D_{T-1} of some lam: projected (b, k) -> (l, T, b, c)."""

    def limits(self, projected: Any, part: slice) -> Any:
        """Values of some limits: projected (b, k) -> (M, b, c)."""


class Solution(Protocol):
    """What a solver returns, and a fit is asked."""

    @property
    def spectrum(self) -> Spectrum | None:
        """Eigenvalues, basis and targets in it; None where there are only solves."""

    def with_targets(self, Y: Any) -> Solution:
        """The same for other targets (n, c), or a ValueError that says why not."""

    @property
    def largest(self) -> float:
        """Largest eigenvalue of K, or a number below it."""

    @property
    def largest_bound(self) -> float:
        """The same, or a number above it: what decides whether a limit exists."""

    @property
    def rows(self) -> int:
        """n."""

    @property
    def counted(self) -> int:
        """Rows with a weight > 0; n without weights."""

    @property
    def weight(self) -> float:
        """Sum of the weights; n without."""

    @property
    def outputs(self) -> int:
        """c."""

    @property
    def targets(self) -> Any:
        """Y (n, c). Of weighted rows P S Y, like all here (:mod:`sdgpu.operators.weighted_rows`)."""

    @property
    def target_rms(self) -> float:
        """Root mean square of the targets."""

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Dual coefficients and training predictions (n, c') of the ordinary fit, of some outputs."""

    def chain(self, lam: Any, alphas: np.ndarray) -> DistillationChain:
        """Steps of one schedule (T - 1,) or (T - 1, c), at one lam; from eigenvalues also at lam (T,)."""

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """Dual coefficients and training predictions (n, c) of the limit (17)."""

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> BasisColumns:
        """The basis of all steps of some lam, and limits given by lam and alpha (M,) each."""

    @property
    def leverages(self) -> Leverages:
        """Diagonals and traces of the powers of the smoother."""

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """Leave-one-out predictions of u_1 .. u_T."""

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """Leave-one-out errors of ridge (M, n, c)."""

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Triangles (L, T, T) of the training losses."""


def combine_steps(u: Any, alphas: np.ndarray) -> Any:
    """Steps 1..T of a schedule (T - 1,) or (T - 1, c) from u_1 .. u_T (T, n, c), Theorem 4.1."""
    xp, T = compat.array_namespace(u), u.shape[0]
    basis = differences(u[None, ...])[0, ...]
    tails = xp.asarray(all_tails(alphas), dtype=u.dtype, device=compat.device(u))  # (T, T[, c])
    if tails.ndim == 2:  # of each output by itself: the rows keep an axis of their own
        return xp.permute_dims(tails @ xp.permute_dims(basis, (2, 0, 1)), (1, 2, 0))
    return sum(tails[:, j, None, :] * basis[None, j, ...] for j in range(T))


def combine_own_steps(u: Any, alphas: np.ndarray) -> Any:
    """The same from u_1 .. u_T as each step has them with a lam of its own, (T, T, n, c)."""
    last = [combine_steps(u[t, : t + 1, ...], alphas[:t])[t, ...] for t in range(u.shape[0])]
    return compat.array_namespace(u).stack(last)


def root_mean_square(Y: Any) -> float:
    """Of all entries of Y, whatever their size."""
    xp = compat.array_namespace(Y)
    scale = unit(float(xp.max(xp.abs(Y))))
    return scale * float(xp.mean((Y / scale) ** 2)) ** 0.5


def differences(u: Any) -> Any:
    """u_1, D_1, .., D_{T-1} from u_1 .. u_T on the second axis."""
    xp = compat.array_namespace(u)
    return xp.concat([u[:, :1, ...], u[:, 1:, ...] - u[:, :-1, ...]], axis=1)
