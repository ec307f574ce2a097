"""A feature model as a solution: k x k eigenvalues in place of n x n, and no rows in it.

With G = Phi'Phi = V diag(delta) V' and B = Phi'Y the kernel matrix K = Phi Phi' has the eigenvalues delta,
eigenvectors Phi V diag(delta)^-1/2 and Z = diag(delta)^-1/2 V'B. A function with dual coefficients U C Z
is phi(x)' beta with

    beta = Phi' U C Z = V diag(delta)^1/2 C Z:

the columns V diag(delta)^1/2 take the place of the eigenvectors, and phi(x) that of kappa(x, X).
||Y||^2 - ||Z||^2 is out of reach of every step, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.backend.scaling import unit
from sdgpu.distill.lam_schedules import rests_of_steps
from sdgpu.distill.smoothers import RIDGE, Smoother
from sdgpu.solvers.leverage import Diagonals, LeftOut
from sdgpu.solvers.moment_sums import MomentSums
from sdgpu.solvers.solution import BasisColumns
from sdgpu.solvers.spectral_solution import SpectralSolution
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["FeatureChain", "FeatureLeverages", "FeatureSolution", "decompose_moments"]


def decompose_moments(moments: MomentSums, backend: Backend, *, intercept: bool) -> Spectrum:
    """Eigenvalues of G, the columns V diag(delta)^1/2 as a basis (k, k), and Z, on the device.

    Eigenvalues below k eps max(delta) carry no digit: nothing is fitted along them.

    Notes
    -----
    About 9 k^3 operations.
    """
    G, B, squares = moments.centred(intercept=intercept)
    xp = backend.xp
    delta, V = backend.eigh(backend.asarray((G + G.T) / 2))
    floor = len(G) * float(np.finfo(float).eps) * max(float(delta[-1]), 0.0)
    reliable = delta > floor
    roots = xp.sqrt(xp.where(reliable, delta, xp.ones_like(delta)))
    zero = xp.zeros_like(delta)
    Z = (V.T @ backend.asarray(B)) / roots[:, None]
    Z = xp.where(reliable[:, None], Z, zero[:, None])
    with np.errstate(over="ignore", invalid="ignore"):
        outside = xp.clip(backend.asarray(squares) - xp.sum(Z * Z, axis=0), 0.0, None)
    # squares that leave float64 are infinite: so are training errors, and sweeps say so
    outside = xp.where(xp.isfinite(outside), outside, xp.full_like(outside, np.inf))
    return Spectrum(
        eigenvalues=xp.where(reliable, delta, zero),
        basis=V * xp.where(reliable, roots, zero)[None, :],
        Z=Z,
        below_rounding=int(np.count_nonzero(~to_numpy(reliable))),
        most_negative=min(float(delta[0]), 0.0),
        method="features",
        outside=outside,
    )


def _refuse(what: str, remedy: str) -> NoReturn:
    raise ValueError(f"{what}: a feature model keeps no training rows; {remedy}")


@dataclass(frozen=True, eq=False)
class FeatureChain:
    """Coefficients of a chain of steps; its predictions at the training rows need the rows."""

    spectrum: Spectrum
    _dual: Any
    smoother: Smoother = RIDGE

    @property
    def dual(self) -> Any:
        """beta of steps 1..T, (T, k, c)."""
        return self._dual

    @property
    def fitted(self) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("path.fitted", "use path.predict(X)")


@dataclass(frozen=True, eq=False)
class FeatureLeverages:
    """Traces of the powers of the smoother, from the eigenvalues; its diagonals need the rows.

    Attributes
    ----------
    delta : array (k,)
        Eigenvalues of G, on the host.
    rows : int
        n.
    intercept : bool
        Whether a mean was fitted too: one eigenvector more, with a shrinkage of 1 at every lam.
    """

    delta: np.ndarray
    rows: int
    intercept: bool
    smoother: Smoother = RIDGE
    exact: ClassVar[bool] = True
    copies: ClassVar[int] = 1

    @property
    def unpenalised(self) -> int:
        """1 with an intercept."""
        return int(self.intercept)

    def numbers(self, n: int, steps: int) -> int:
        """Nothing of size n."""
        return 0

    def trace_numbers(self, n: int) -> int:
        """Nothing of size n."""
        return 0

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out", "fit a source that can be read again")

    def rests(self, lams: np.ndarray) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out", "fit a source that can be read again")

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """tr H, .., tr H^T, (1, L, T)."""
        a = self.smoother.shrinkage(self.delta, lams)
        sums = [(a**q).sum(axis=1) for q in range(1, steps + 1)]
        return np.stack(sums, axis=1)[None] + float(self.intercept)

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """tr (1 - H), tr (1 - H) H, .., (1, L, T)."""
        rests = rests_of_steps(self.smoother, self.delta, lams, steps)
        sums = [rest.sum(axis=1) for rest in rests]
        # what features cannot reach is left as it is
        sums[0] = sums[0] + (self.rows - len(self.delta) - self.intercept)
        return np.stack(sums, axis=1)[None]

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """None."""
        return np.zeros((len(lams), steps))

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """None."""
        return np.zeros(len(lams))


@dataclass(frozen=True, eq=False)
class FeatureSolution:
    """Answers of a feature model: those of a spectrum, but for what only the rows could say.

    Attributes
    ----------
    spectrum : Spectrum
        Of :func:`decompose_moments`.
    rows : int
        n.
    weight : float
        Sum of the weights; n without.
    target_squares : float
        Sum of the squares of the targets, less their means with an intercept.
    intercept : bool
    smoother : Smoother, default ridge
    """

    spectrum: Spectrum
    rows: int
    weight: float
    target_squares: float
    intercept: bool
    smoother: Smoother = RIDGE

    @property
    def largest(self) -> float:
        """Largest eigenvalue of Phi Phi'."""
        return float(self.spectrum.eigenvalues[-1])

    @property
    def largest_bound(self) -> float:
        """The same."""
        return self.largest

    @property
    def counted(self) -> int:
        """n."""
        return self.rows

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.spectrum.Z.shape[1])

    @property
    def target_rms(self) -> float:
        """Root mean square of the targets; of what the features hold where their squares leave float64."""
        numbers = self.rows * self.outputs
        if 0 < self.target_squares < np.inf:
            return float(np.sqrt(self.target_squares / numbers))
        Z = to_numpy(self.spectrum.Z)
        size = unit(float(np.abs(Z).max(initial=0.0)))
        return size * float(np.linalg.norm(Z / size)) / float(np.sqrt(numbers))

    @property
    def targets(self) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out", "fit a source that can be read again")

    def with_targets(self, Y: Any) -> FeatureSolution:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("other targets", "fit again: all targets at once cost one pass")

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Step 1, equation (3): coefficients, and no predictions."""
        return self._spectral.ridge(lam, outputs)[0], None

    def chain(self, lam: float | np.ndarray, alphas: np.ndarray) -> FeatureChain:
        """Steps of one schedule, Theorem 4.1."""
        return FeatureChain(self.spectrum, self._spectral.chain(lam, alphas).dual, self.smoother)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """Ridge with lam / alpha, equation (17)."""
        return self._spectral.limit(lam, alpha)[0], None

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> BasisColumns:
        """Every lam is a filter of the columns."""
        return self._spectral.expand(lams, steps, limits)

    @property
    def leverages(self) -> FeatureLeverages:
        """Traces alone."""
        delta = to_numpy(self.spectrum.eigenvalues)
        return FeatureLeverages(delta, self.rows, self.intercept, self.smoother)

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out", "fit a source that can be read again")

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out", "fit a source that can be read again")

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """From the eigenvalues, and what is out of reach."""
        return self._spectral.training(lams, steps)

    @property
    def _spectral(self) -> SpectralSolution:
        return SpectralSolution(self.spectrum, smoother=self.smoother)
