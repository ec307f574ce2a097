"""Intervals of predictions by the jackknife+: fits without each row, all from one decomposition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sdgpu.backend.backends import give_back, to_numpy
from sdgpu.backend.checks import number
from sdgpu.distill.jackknife_plus import fewest_rows, interval_ranks, left_out_functions, resolvent
from sdgpu.operators.weighted_rows import RowWeighting
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["Interval", "given_back", "jackknife_ends", "jackknife_interval"]

BLOCK = 2**22  # numbers of predictions of new rows by the fits without each row


@dataclass(frozen=True, eq=False)
class Interval:
    """Lower and upper ends for steps 1..T at new rows.

    Attributes
    ----------
    lower, upper : array (T, m, c)
        In the caller's library; for 1-D targets without the axis c.
    coverage : float
        Asked for: of new rows drawn like the training rows at least 2 coverage - 1 lie inside, whatever
        the noise, less (2 / n)^1/2 at most with folds; `coverage` of them in practice (Barber et al. 2021).
    """

    lower: Any
    upper: Any
    coverage: float


def jackknife_interval(
    model: Any,
    spectrum: Spectrum | None,
    lam: float,
    alphas: np.ndarray,
    X_new: Any,
    *,
    coverage: float,
) -> Interval:
    """See :meth:`sdgpu.engine.path.Path.interval`; `model` is a :class:`sdgpu.engine.model.Model`."""
    share = number("coverage", coverage)
    if not 0 < share < 1:
        raise ValueError(f"coverage={coverage!r} must be between 0 and 1")
    if spectrum is None or not spectrum.holds_kernel or spectrum.method == "features":
        raise ValueError(
            "intervals need all eigenvectors, as fits without each row do: fit with method='eigh', "
            "lam > 0, or pass folds=10"
        )
    if model.layout is not None:
        return model.folds.jackknife(model, spectrum, (lam, alphas), X_new, share)
    rows = model.template.rows(X_new, "X_new", model.operator.d, empty=True)
    n, m, c = int(spectrum.basis.shape[0]), int(rows.shape[0]), int(spectrum.Z.shape[1])
    model.afford(
        4 * n * n + (len(alphas) + 1) * m * c, f"intervals from {n:,} fits without a row each"
    )
    cross = model.operator.cross(model.on_device(rows))
    ends = jackknife_ends(spectrum, cross, (lam, alphas), model.weighting, share)
    return given_back(model, ends, share)


def given_back(model: Any, ends: np.ndarray, share: float) -> Interval:
    """Ends (2, T, m, c) in the caller's library, with what the fit took off."""
    offset = 0.0 if model.offset is None else to_numpy(model.offset)
    lower, upper = (give_back(model.template, model.backend.asarray(end + offset)) for end in ends)
    return Interval(lower, upper, share)


def jackknife_ends(
    spectrum: Spectrum,
    cross: Any,
    path: tuple[float, np.ndarray],
    weighting: RowWeighting | None,
    share: float,
) -> np.ndarray:
    """Lower and upper ends (2, T, m, c), less the offset of the fit; `path` is lam and alphas.

    Raises
    ------
    ValueError
        For too few rows.
    """
    (lam, alphas), (n, c) = path, (int(spectrum.basis.shape[0]), int(spectrum.Z.shape[1]))
    roots = np.ones(n) if weighting is None else to_numpy(weighting.roots)
    present = np.flatnonzero(roots)
    if len(present) < fewest_rows(share):
        raise ValueError(
            f"coverage={share:g} needs {fewest_rows(share)} training rows, and there are "
            f"{len(present)}: ask for less, or for more rows"
        )
    ends = np.empty((2, len(alphas) + 1, cross.shape[0], c))
    q = weighting.unit if weighting is not None and weighting.intercept else None
    fits = _LeftOutFits(spectrum, lam, q, roots, present, interval_ranks(len(present), share))
    for output in range(c):
        own = alphas if alphas.ndim == 1 else alphas[:, output]
        fits.fill(ends[..., output], cross, own, output)
    return ends


@dataclass(frozen=True, eq=False)
class _LeftOutFits:
    """All fits without a row: what they predict, and what they were wrong by at their row."""

    spectrum: Spectrum
    lam: float
    unpenalised: Any
    roots: np.ndarray
    present: np.ndarray
    ranks: tuple[int, int]

    @cached_property
    def Q(self) -> Any:  # noqa: N802 - the symbol of the equations
        """(A + lam I)^-1, once for all outputs."""
        spectrum = self.spectrum
        return resolvent(spectrum.eigenvalues, spectrum.basis, self.lam, self.unpenalised)

    def fill(self, ends: np.ndarray, cross: Any, alphas: np.ndarray, output: int) -> None:
        """Lower and upper ends (2, T, m) of one output."""
        truth = self.spectrum.basis @ self.spectrum.Z[:, output]
        values = to_numpy(truth) / np.where(self.roots > 0, self.roots, 1.0)
        steps = left_out_functions(self.Q, truth, alphas, self.lam)
        for step, (coefficients, targets) in enumerate(steps):
            own = to_numpy(targets).diagonal() / np.where(self.roots > 0, self.roots, 1.0)
            errors = np.abs(values - own)[self.present]
            means = np.zeros(len(errors))
            if self.unpenalised is not None:
                length = float(np.linalg.norm(self.roots))
                means = to_numpy(self.unpenalised @ targets)[self.present] / length
            for part, block in cross.blocks(BLOCK):
                left_out = to_numpy(block @ coefficients)[:, self.present] + means
                for end, sign, rank in zip(range(2), (-1, 1), self.ranks, strict=True):
                    ordered = np.partition(left_out + sign * errors, rank, axis=1)
                    ends[end, step, part] = ordered[:, rank]
