"""Intervals of predictions by CV+: fits without each fold, by whatever method the fit itself was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import Backend, give_back, rows_on, taken_rows, to_numpy
from sdgpu.backend.checks import integer, number
from sdgpu.distill.jackknife_plus import (
    fewest_rows,
    folded_functions,
    interval_ranks,
    merged_ends,
    resolvent,
)
from sdgpu.engine.intervals import Interval
from sdgpu.engine.model import Model
from sdgpu.kernels import Kernel
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["ArrayFolds", "FoldFits", "cross_interval", "fold_labels"]

BLOCK = 2**22  # numbers of predictions that are made at a time


class FoldFits(Protocol):
    """What makes the fits without each fold.

    Attributes
    ----------
    rows, outputs : int
        n and c.
    """

    @property
    def rows(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    def left_out(
        self, labels: np.ndarray, lam: float, alphas: np.ndarray, new: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Absolute errors (n, T, c) of steps without the fold of each row, and predictions (K, T, m, c).

        Parameters
        ----------
        labels : array (n,) of int
            The fold of each row, 0 .. K - 1.
        lam, alphas
            Of the path.
        new : array (m, d)
            Checked rows in the caller's library; of several ranks the own ones.

        Returns
        -------
        pair of arrays
            Errors are NaN for rows of weight 0.
        """


def fold_labels(folds: Any, n: int, seed: int) -> np.ndarray:
    """The fold of each of n rows: at random in equal sizes, or as the caller says, 0 .. K - 1.

    Raises
    ------
    TypeError, ValueError
        For fewer than two folds, more than rows, or labels that are not (n,).
    """
    if np.ndim(folds) == 0:
        count = integer("folds", folds, 2)
        if count > n:
            raise ValueError(f"folds={count} for {n} rows: there are at most as many as rows")
        return np.random.default_rng(integer("seed", seed, 0)).permutation(n) % count
    labels = np.asarray(folds if isinstance(folds, (list, tuple)) else to_numpy(folds))
    if labels.shape != (n,):
        raise ValueError(
            f"folds has shape {labels.shape}: a number, or a label for each of {n} rows"
        )
    names, numbers = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("folds has the same label for all rows: at least two are needed")
    return numbers.reshape(n)


def cross_interval(
    model: Model,
    spectrum: Spectrum | None,
    path: tuple[float, np.ndarray],
    X_new: Any,
    *,
    coverage: float,
    folds: Any,
    seed: int,
) -> Interval:
    """See :meth:`sdgpu.engine.path.Path.interval`; `path` is lam and alphas."""
    share = number("coverage", coverage)
    if not 0 < share < 1:
        raise ValueError(f"coverage={coverage!r} must be between 0 and 1")
    fits = _fits_of(model, spectrum)
    lam, alphas = path
    labels = _labels(model, fits, folds, seed)
    if model.ranks is not None:
        model.ranks.agree("lam, alphas and coverage", [lam, alphas, share])
    d = model.operator.d
    rows = model.checked_together(lambda: model.template.rows(X_new, "X_new", d, empty=True))
    steps, m, c = len(alphas) + 1, int(rows.shape[0]), fits.outputs
    count = int(labels.max()) + 1
    model.afford(steps * c * (fits.rows + count * m), f"intervals from fits without {count} folds")
    _enough(fits.rows, share, coverage)
    errors, there = fits.left_out(labels, lam, alphas, rows)
    present = ~np.isnan(errors[:, 0, 0])
    _enough(int(present.sum()), share, coverage)
    members = [np.flatnonzero(present & (labels == k)) for k in range(count)]
    ranks = interval_ranks(int(present.sum()), share)
    ends = np.empty((2, *there.shape[1:]))
    for step, output in np.ndindex(steps, there.shape[-1]):
        own = [errors[part, step, output] for part in members]
        ends[:, step, :, output] = merged_ends(there[:, step, :, output], own, ranks)
    lower, upper = (give_back(model.template, model.backend.asarray(end)) for end in ends)
    return Interval(lower, upper, share)


def _labels(model: Model, fits: FoldFits, folds: Any, seed: int) -> np.ndarray:
    """The fold of each row of all ranks; labels that are given are those of the own rows."""
    ranks = model.ranks
    if ranks is None:
        return fold_labels(folds, fits.rows, seed)
    ranks.agree("folds (a number or labels)", int(folds) if np.ndim(folds) == 0 else "labels")
    ranks.agree("seed", seed)
    if np.ndim(folds):
        own = np.asarray(folds if isinstance(folds, (list, tuple)) else to_numpy(folds)).tolist()
        folds = [label for part in ranks.gather(own) for label in part]
    return fold_labels(folds, fits.rows, seed)


def _enough(rows: int, share: float, coverage: float) -> None:
    if rows < fewest_rows(share):
        raise ValueError(
            f"coverage={coverage:g} needs {fewest_rows(share)} training rows, and there are {rows}: ask "
            "for less, or for more rows"
        )


def _fits_of(model: Model, spectrum: Spectrum | None) -> FoldFits:
    whole = spectrum is not None and spectrum.holds_kernel and spectrum.method != "features"
    if whole and spectrum is not None and model.layout is None:
        return _SpectralFolds(model, spectrum)
    if model.folds is None:
        raise ValueError(
            "fits without folds need the rows: those of moments, of a stream that is read once, of "
            "lams=0 and of sdgpu.refit_path are not kept; fit the rows, or a source that can be read again"
        )
    return model.folds


@dataclass(frozen=True, eq=False)
class _SpectralFolds:
    """From one decomposition: formulas of :mod:`sdgpu.distill.jackknife_plus`."""

    model: Model
    spectrum: Spectrum

    @property
    def rows(self) -> int:
        return int(self.spectrum.basis.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.spectrum.Z.shape[1])

    def left_out(
        self, labels: np.ndarray, lam: float, alphas: np.ndarray, new: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        model, spectrum, n = self.model, self.spectrum, self.rows
        weighting = model.weighting
        roots = np.ones(n) if weighting is None else to_numpy(weighting.roots)
        scale = np.where(roots > 0, roots, 1.0)
        model.afford(3 * n * n, f"a resolvent of {n:,} rows")
        q = weighting.unit if weighting is not None and weighting.intercept else None
        Q = resolvent(spectrum.eigenvalues, spectrum.basis, lam, q)
        folds = [np.flatnonzero((labels == k) & (roots > 0)) for k in range(int(labels.max()) + 1)]
        cross, steps, c = (
            model.operator.cross(model.on_device(new)),
            len(alphas) + 1,
            spectrum.Z.shape[1],
        )
        errors = np.full((n, steps, c), np.nan)
        there = np.empty((len(folds), steps, int(new.shape[0]), c))
        offset = np.zeros(c) if model.offset is None else to_numpy(model.offset)
        for output in range(c):
            truth = spectrum.basis @ spectrum.Z[:, output]
            own = alphas if alphas.ndim == 1 else alphas[:, output]
            found = folded_functions(Q, truth, own, lam, folds)
            for step, (coefficients, targets) in enumerate(found):
                means = np.zeros(len(folds))
                if q is not None:
                    means = to_numpy(q @ targets) / float(np.linalg.norm(roots))
                predicted = to_numpy(targets) / scale[:, None]
                for k, rows in enumerate(folds):
                    errors[rows, step, output] = abs(
                        to_numpy(truth)[rows] / scale[rows] - predicted[rows, k]
                    )
                values = to_numpy(cross @ coefficients) + means + offset[output]
                there[:, step, :, output] = values.T
        return errors, there


@dataclass(frozen=True, eq=False)
class ArrayFolds:
    """By a fit of the other rows for each fold.

    Attributes
    ----------
    kernel : Kernel
    X : array (n, d)
        On the device of the fit; K itself if precomputed.
    Y : array (n, c)
    weights : array (n,) or None
    backend : Backend
    refit : callable
        (X, Y, weights, lam) to a Fit.
    """

    kernel: Kernel
    X: Any = field(repr=False)
    Y: Any = field(repr=False)
    weights: Any
    backend: Backend
    refit: Callable[..., Any] = field(repr=False)

    @property
    def rows(self) -> int:
        """n."""
        return int(self.X.shape[0])

    @property
    def outputs(self) -> int:
        """c."""
        return int(self.Y.shape[1])

    def left_out(
        self, labels: np.ndarray, lam: float, alphas: np.ndarray, new: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`FoldFits`: K fits, one after the other."""
        new, steps, (n, c) = rows_on(self.backend, new), len(alphas) + 1, self.Y.shape
        errors = np.full((n, steps, c), np.nan)
        there = np.empty((int(labels.max()) + 1, steps, int(new.shape[0]), c))
        weights = np.ones(n) if self.weights is None else to_numpy(self.weights)
        truth = to_numpy(self.Y)
        for k in range(len(there)):
            others, fold = (
                np.flatnonzero(labels != k),
                np.flatnonzero((labels == k) & (weights > 0)),
            )
            own = None if self.weights is None else self._take(self.weights, others)
            rows = self._columns(self._take(self.X, others), others)
            fit = self.refit(rows, self._take(self.Y, others), own, lam)
            path = fit.path(lam, alphas, steps)
            there[k] = to_numpy(path.predict(self._columns(new, others)))
            for part in slices(len(fold), max(1, BLOCK // (steps * c))):
                held = self._columns(self._take(self.X, fold[part]), others)
                values = to_numpy(path.predict(held))
                errors[fold[part]] = abs(truth[fold[part]] - values).swapaxes(0, 1)
        return errors, there

    def _take(self, array: Any, rows: np.ndarray) -> Any:
        return taken_rows(array, rows)

    def _columns(self, array: Any, others: np.ndarray) -> Any:
        """Of kernel values those with the other rows."""
        if not self.kernel.is_precomputed:
            return array
        xp = self.backend.xp
        return xp.take(array, xp.asarray(others, device=self.backend.device), axis=1)
