"""What a fit is asked, answered from a spectrum or from solves.

Everything that a path, a limit or a sweep needs are dual coefficients of the basis u_1, D_1, .., D_{T-1}
of Theorem 4.1 (see :func:`sdgpu.distill.filters.step_dual_filters`), of limits, and how K acts on them.
A :class:`Spectral` fit has them as filters of eigenvalues, for any lam without work; a :class:`Solved`
one as solutions of conjugate gradients, made when a lam is first asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import array_api_compat as compat
import numpy as np

from sdgpu.device.backend import Backend, to_numpy
from sdgpu.device.scaling import unit
from sdgpu.distill.filters import (
    dual_filter,
    limit_dual_filter,
    limit_train_filter,
    shrinkage,
    step_dual_filters,
    train_filter,
)
from sdgpu.distill.loo import powers, ridge_errors
from sdgpu.distill.losses import merge_rows, step_columns
from sdgpu.distill.schedules import all_tails
from sdgpu.leverages import Exact, LeftOut, Leverages, left_out
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.spectrum import Spectrum, flat_product

__all__ = ["Answers", "Chain", "Columns", "Solved", "Spectral", "combine_steps", "differences"]


class Chain(Protocol):
    """Dual coefficients and training predictions of every step, (T, n, c)."""

    @property
    def dual(self) -> Any: ...
    @property
    def fitted(self) -> Any: ...


class Columns(Protocol):
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


class Answers(Protocol):
    """What a fit can be asked."""

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
    def outputs(self) -> int:
        """c."""

    @property
    def targets(self) -> Any:
        """Y (n, c)."""

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Dual coefficients and training predictions (n, c') of the ordinary fit, of some outputs."""

    def chain(self, lam: float, alphas: np.ndarray) -> Chain:
        """Steps of one schedule (T - 1,) or (T - 1, c)."""

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """Dual coefficients and training predictions (n, c) of the limit (17)."""

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> Columns:
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


@dataclass(frozen=True, eq=False)
class Spectral:
    """Answers from eigenvalues: no solve, whatever is asked.

    Attributes
    ----------
    spectrum : Spectrum
    estimates : Leverages, optional
        What stands for the eigenvectors that a grown basis does not have.
    """

    spectrum: Spectrum
    estimates: Leverages | None = None

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
        """V Z: the basis holds them."""
        return self.spectrum.basis @ self.spectrum.Z

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Step 1, equation (3)."""
        delta, basis = self.spectrum.eigenvalues, self.spectrum.basis
        small = self.spectrum.Z[:, outputs] / (delta + lam)[:, None]
        return basis @ small, basis @ (delta[:, None] * small)

    def chain(self, lam: float, alphas: np.ndarray) -> Chain:
        """Steps of one schedule, Theorem 4.1."""
        return ClosedForm(self.spectrum, lam, alphas)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """Ridge with lam / alpha, equation (17)."""
        eigenvalues = self.spectrum.eigenvalues
        filters = (
            make(eigenvalues, lam, alpha)[..., None]
            for make in (limit_dual_filter, limit_train_filter)
        )
        dual, fitted = (self.spectrum.combine(one) for one in filters)
        return dual, fitted

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> Columns:
        """The eigenvectors: every lam is a filter of them."""
        return _Filtered(self.spectrum, lams, steps, limits)

    @property
    def leverages(self) -> Leverages:
        """Exact if all eigenvectors are known."""
        return self.estimates or Exact(self.spectrum)

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """See :mod:`sdgpu.distill.loo`."""
        own = self.spectrum
        fitted = powers(own.basis, own.eigenvalues, own.Z, lams, steps)
        return left_out(fitted, self.leverages, lams)

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """From the residuals and the leverages."""
        own = self.spectrum
        errors = ridge_errors(own.basis, own.eigenvalues, own.Z, lams)
        return errors / self.leverages.rests(lams)

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """From the eigenvalues alone: 1 - B(tau) = (1 - a) (1 + sum_j s_j a^j)."""
        delta, Z = to_numpy(self.spectrum.eigenvalues), to_numpy(self.spectrum.Z)
        size = unit(float(np.abs(Z).max(initial=0.0)))
        length = size * np.sqrt(np.einsum("kc,kc->k", Z / size, Z / size))
        rest = lams[:, None] / (delta + lams[:, None])  # 1 - a, (L, k)
        a = shrinkage(delta, lams)
        # a^j (1 - a) for j = 1..T-1, then 1 - a: the order of the loss columns
        columns = np.empty((len(lams), len(delta), steps))
        columns[..., -1] = rest
        for j in range(steps - 1):
            columns[..., j] = a * (columns[..., j - 1] if j else rest)
        return merge_rows(None, columns * length[:, None])


@dataclass(frozen=True, eq=False)
class Solved:
    """Answers from conjugate gradients: T solves for each lam, whatever the weights.

    Attributes
    ----------
    resolvents : Resolvents
    backend : Backend
        Where the answers are wanted; the solver may work with another library.
    leverages : Leverages
    """

    resolvents: Resolvents
    backend: Backend
    leverages: Leverages

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

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """The first solve, equation (3)."""
        at = np.array([lam])
        return self.duals(at, 1)[0, 0, :, outputs], self.fits(at, 1)[0, 0, :, outputs]

    def chain(self, lam: float, alphas: np.ndarray) -> Chain:
        """Steps of one schedule from the basis of its lam, Theorem 4.1."""
        return _Combined(self, lam, alphas)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """One solve with lam / alpha, equation (17)."""
        with np.errstate(over="ignore"):
            ridge = np.inf if alpha == 0 else np.float64(lam) / alpha
        if np.isinf(ridge):  # the collapse
            xp, shape = self.backend.xp, self.resolvents.Y.shape
            zero = xp.zeros(tuple(shape), dtype=xp.float64, device=self.backend.device)
            return zero, zero
        at = np.array([ridge])
        return self.duals(at, 1)[0, 0, ...], self.fits(at, 1)[0, 0, ...]

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> Columns:
        """All dual coefficients side by side."""
        W = differences(self.duals(lams, steps))  # (L, T, n, c)
        # alpha = 0 is the zero function: no solve
        at = np.flatnonzero(limits[1])
        mu = limits[0][at] / limits[1][at]
        return _Listed.of(W, self.duals(mu, 1)[:, 0, ...] if mu.size else None, at, len(limits[0]))

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """See :mod:`sdgpu.distill.loo`."""
        xp, fits = self.backend.xp, self.fits(lams, steps)
        truth = xp.broadcast_to(self.targets, (len(lams), 1, *fits.shape[2:]))
        return left_out(xp.concat([truth, fits], axis=1), self.leverages, lams)

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """From the residuals lam (K + lam I)^-1 Y and the leverages."""
        ridge = self.backend.asarray(lams)[:, None, None]
        errors = ridge * self.duals(lams, 1)[:, 0, ...]
        return errors / self.leverages.rests(lams)

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """From the predictions at the training points."""
        xp = self.backend.xp
        truth = xp.reshape(self.targets, (-1,))
        parts = []
        for lam in lams:
            basis = differences(self.fits(np.array([lam]), steps))[0, ...]  # (T, n, c)
            flat = xp.permute_dims(xp.reshape(basis, (steps, -1)), (1, 0))
            parts.append(to_numpy(merge_rows(None, step_columns(flat, truth))))
        return np.stack(parts)


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A chain from the spectrum, Theorem 4.1: no solve, whatever the number of steps."""

    spectrum: Spectrum
    lam: float
    alphas: np.ndarray

    @cached_property
    def dual(self) -> Any:
        """V C(tau) Z, equation (13): (T, n, c)."""
        return self.spectrum.combine(self._filters(dual_filter))

    @cached_property
    def fitted(self) -> Any:
        """V B(tau) Z, equation (10): (T, n, c)."""
        return self.spectrum.combine(self._filters(train_filter))

    def _filters(self, make: Any) -> Any:
        eigenvalues = self.spectrum.eigenvalues
        xp = compat.array_namespace(eigenvalues)
        filters = make(eigenvalues, self.lam, np.ascontiguousarray(self.alphas.T))
        if self.alphas.ndim == 1:
            return filters[..., None]  # (T, k, 1)
        return xp.permute_dims(filters, (1, 2, 0))  # (c, T, k) -> (T, k, c)


@dataclass(frozen=True, eq=False)
class _Combined:
    """A chain from u_1, D_1, ..: f(.; tau) = u_1 + sum_j s_j D_j."""

    answers: Solved
    lam: float
    alphas: np.ndarray

    @cached_property
    def dual(self) -> Any:
        return self._combine(self.answers.duals)

    @cached_property
    def fitted(self) -> Any:
        return self._combine(self.answers.fits)

    def _combine(self, make: Any) -> Any:
        return combine_steps(make(np.array([self.lam]), len(self.alphas) + 1)[0, ...], self.alphas)


@dataclass(frozen=True, eq=False)
class _Filtered:
    """Columns of a spectrum: its eigenvectors."""

    spectrum: Spectrum
    lams: np.ndarray
    T: int
    at: tuple[np.ndarray, np.ndarray]

    @property
    def columns(self) -> Any:
        return self.spectrum.basis

    @property
    def numbers(self) -> int:
        return int(self.spectrum.Z.shape[0]) * int(self.spectrum.Z.shape[1])

    def steps(self, projected: Any, lams: slice) -> Any:
        filters = step_dual_filters(self.spectrum.eigenvalues, self.lams[lams], self.T)
        return flat_product(projected, filters[..., None] * self.spectrum.Z)

    def limits(self, projected: Any, part: slice) -> Any:
        lams, alphas = self.at
        filters = limit_dual_filter(self.spectrum.eigenvalues, lams[part], alphas[part])
        return flat_product(projected, filters[..., None] * self.spectrum.Z)


@dataclass(frozen=True, eq=False)
class _Listed:
    """Columns that are the functions themselves: first L T c of steps, then those of limits."""

    columns: Any = field(repr=False)
    shape: tuple[int, int, int]  # L, T, c
    at: np.ndarray  # number of each limit that is not zero
    numbers: int

    @classmethod
    def of(cls, W: Any, limits: Any, at: np.ndarray, count: int) -> _Listed:
        """From dual coefficients W (L, T, n, c) and those of limits (M, n, c), or None."""
        xp = compat.array_namespace(W)
        L, T, n, c = W.shape
        parts = [xp.reshape(xp.permute_dims(W, (2, 0, 1, 3)), (n, L * T * c))]
        where = np.full(count, -1)
        if limits is not None:
            where[at] = np.arange(len(at))
            parts.append(xp.reshape(xp.permute_dims(limits, (1, 0, 2)), (n, len(at) * c)))
        return cls(xp.concat(parts, axis=1), (L, T, c), where, T * c)

    def steps(self, projected: Any, lams: slice) -> Any:
        L, T, c = self.shape
        xp = compat.array_namespace(projected)
        own = xp.reshape(projected[:, : L * T * c], (-1, L, T, c))[:, lams, ...]
        return xp.permute_dims(own, (1, 2, 0, 3))

    def limits(self, projected: Any, part: slice) -> Any:
        L, T, c = self.shape
        xp = compat.array_namespace(projected)
        where = self.at[part]
        own = xp.reshape(projected[:, L * T * c :], (projected.shape[0], -1, c))
        zero = xp.zeros((projected.shape[0], 1, c), dtype=projected.dtype)
        both = xp.concat([own, xp.asarray(zero, device=compat.device(projected))], axis=1)
        index = xp.asarray(
            np.where(where < 0, own.shape[1], where), device=compat.device(projected)
        )
        return xp.permute_dims(xp.take(both, index, axis=1), (1, 0, 2))


def combine_steps(u: Any, alphas: np.ndarray) -> Any:
    """Steps 1..T of a schedule (T - 1,) or (T - 1, c) from u_1 .. u_T (T, n, c), Theorem 4.1."""
    xp, T = compat.array_namespace(u), u.shape[0]
    basis = differences(u[None, ...])[0, ...]
    tails = xp.asarray(all_tails(alphas), dtype=u.dtype, device=compat.device(u))  # (T, T[, c])
    if tails.ndim == 2:
        return xp.reshape(tails @ xp.reshape(basis, (T, -1)), basis.shape)
    return sum(tails[:, j, None, :] * basis[None, j, ...] for j in range(T))


def differences(u: Any) -> Any:
    """u_1, D_1, .., D_{T-1} from u_1 .. u_T on the second axis."""
    xp = compat.array_namespace(u)
    return xp.concat([u[:, :1, ...], u[:, 1:, ...] - u[:, :-1, ...]], axis=1)
