"""The mean of the fits of several workers as one solution: their spectra side by side.

Worker w, with eigenvalues delta_w, columns V_w diag(delta_w)^1/2, Z_w and a share W_w / W of the weight, is
fitted with lam_w = lam W_w / W: each is as smooth as the fit of all rows. With delta' = delta_w W / W_w its
shrinkage is delta' / (delta' + lam), and the mean with shares p_w of the steps of all workers,

    sum_w p_w V_w diag(delta_w)^1/2 C(tau; lam_w) Z_w = sum_w V_w diag(delta')^1/2 C'(tau; lam) Z',
    Z' = p_w (W / W_w)^1/2 Z_w,

is the chain of the concatenated delta', columns V_w diag(delta')^1/2 and Z'. So paths, limits, sweeps on
validation rows, alpha* and the joint optimum of the mean need no code of their own. There is no training
row and no smoother in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

from sdgpu.backend.backends import Backend, to_numpy
from sdgpu.solvers.feature_solution import FeatureChain, FeatureSolution
from sdgpu.solvers.leverage import Diagonals, LeftOut
from sdgpu.solvers.solution import BasisColumns
from sdgpu.solvers.spectrum import AVERAGED, Spectrum

__all__ = ["AveragedSolution", "NoLeverages", "averaged"]


def averaged(
    parts: Sequence[FeatureSolution], shares: np.ndarray, backend: Backend
) -> AveragedSolution:
    """The mean of fits without intercept, with shares (M,) that sum to 1; on the device of `backend`."""
    weight = sum(part.weight for part in parts)
    eigenvalues, columns, Z = [], [], []
    for share, part in zip(shares, parts, strict=True):
        own, scale = part.spectrum, weight / part.weight
        delta, V = to_numpy(own.eigenvalues), to_numpy(own.basis)
        there = delta > 0
        eigenvalues.append(scale * delta[there])
        columns.append(scale**0.5 * V[:, there])
        Z.append(share * scale**0.5 * to_numpy(own.Z)[there])
    order = np.argsort(np.concatenate(eigenvalues), kind="stable")
    spectrum = Spectrum(
        eigenvalues=backend.asarray(np.concatenate(eigenvalues)[order]),
        basis=backend.asarray(np.concatenate(columns, axis=1)[:, order]),
        Z=backend.asarray(np.concatenate(Z)[order]),
        below_rounding=sum(part.spectrum.below_rounding for part in parts),
        most_negative=min(part.spectrum.most_negative for part in parts),
        method=AVERAGED,
    )
    base = FeatureSolution(
        spectrum,
        sum(part.rows for part in parts),
        weight,
        sum(part.target_squares for part in parts),
        False,
    )
    return AveragedSolution(base)


def _refuse(what: str) -> NoReturn:
    raise ValueError(
        f"{what}: a mean of the fits of several workers has no rows and no smoother of its own; judge on "
        "validation rows"
    )


@dataclass(frozen=True, eq=False)
class NoLeverages:
    """Nothing is known of traces and diagonals."""

    exact: ClassVar[bool] = False
    copies: ClassVar[int] = 1
    unpenalised: ClassVar[int] = 0

    def numbers(self, n: int, steps: int) -> int:
        """Nothing."""
        return 0

    def trace_numbers(self, n: int) -> int:
        """Nothing."""
        return 0

    def diagonals(self, lams: np.ndarray, steps: int) -> tuple[Diagonals, list[Diagonals]]:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")

    def rests(self, lams: np.ndarray) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")

    def traces(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("generalised cross-validation")

    def complements(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("generalised cross-validation")

    def bias(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("generalised cross-validation")

    def scatter(self, lams: np.ndarray) -> np.ndarray:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")


@dataclass(frozen=True, eq=False)
class AveragedSolution:
    """Answers of the mean of fits: those of a feature model but for what training rows would say.

    Attributes
    ----------
    base : FeatureSolution
        Of the concatenated spectra.
    """

    base: FeatureSolution

    @property
    def spectrum(self) -> Spectrum:
        """Eigenvalues of all workers, in units of all rows; the columns are not orthogonal."""
        return self.base.spectrum

    @property
    def smoother(self) -> Any:
        """Ridge."""
        return self.base.smoother

    @property
    def largest(self) -> float:
        """Largest eigenvalue of a worker, in units of all rows."""
        return self.base.largest

    @property
    def largest_bound(self) -> float:
        """The same."""
        return self.base.largest

    @property
    def rows(self) -> int:
        """n of all workers."""
        return self.base.rows

    @property
    def counted(self) -> int:
        """n of all workers."""
        return self.base.rows

    @property
    def weight(self) -> float:
        """Sum of the weights of all rows."""
        return self.base.weight

    @property
    def outputs(self) -> int:
        """c."""
        return self.base.outputs

    @property
    def target_rms(self) -> float:
        """Root mean square of the targets of all workers."""
        return self.base.target_rms

    @property
    def targets(self) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")

    def with_targets(self, Y: Any) -> AveragedSolution:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("other targets")

    def ridge(self, lam: float, outputs: slice) -> tuple[Any, Any]:
        """Step 1: coefficients, and no predictions."""
        return self.base.ridge(lam, outputs)

    def chain(self, lam: float | np.ndarray, alphas: np.ndarray) -> FeatureChain:
        """The mean of the steps of one schedule."""
        return self.base.chain(lam, alphas)

    def limit(self, lam: float, alpha: float) -> tuple[Any, Any]:
        """The mean of the limits, equation (17)."""
        return self.base.limit(lam, alpha)

    def expand(
        self, lams: np.ndarray, steps: int, limits: tuple[np.ndarray, np.ndarray]
    ) -> BasisColumns:
        """Every lam is a filter of the columns."""
        return self.base.expand(lams, steps, limits)

    @property
    def leverages(self) -> NoLeverages:
        """None."""
        return NoLeverages()

    def left_out(self, lams: np.ndarray, steps: int) -> LeftOut:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")

    def left_out_ridge(self, lams: np.ndarray) -> Any:
        """Refused.

        Raises
        ------
        ValueError
        """
        _refuse("leave-one-out")

    def training(self, lams: np.ndarray, steps: int) -> np.ndarray:
        """Unknown: NaN, (L, T, T)."""
        return np.full((len(lams), steps, steps), np.nan)
