"""The eigenvectors of a fit as rounds of labels see them, with an intercept and rows to predict at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.distill.label_rounds import RiskRows
from sdgpu.distill.loss_triangles import merge_rows
from sdgpu.distill.smoothers import Smoother, smoother_of
from sdgpu.engine.fitted import Fit
from sdgpu.engine.requests import validation_rows
from sdgpu.solvers.spectrum import Spectrum

__all__ = ["LabelDirections", "label_directions"]

ENTRIES = 2**22  # kernel values of a block of new rows


@dataclass(frozen=True, eq=False)
class LabelDirections:
    """Eigenvectors as label rounds see them: an intercept is one more, that no penalty holds down.

    Attributes
    ----------
    eigenvalues : array (k,)
    truth : array (k, c)
        V'F.
    outside : float
    functions : array (m, k) or None
        Values of the eigenvectors' functions at new rows, for coefficients of dual filters.
    wanted : array (m, c), or (k, c)
        The truth there.
    smoother : Smoother
    intercept : bool
    """

    eigenvalues: np.ndarray
    truth: np.ndarray
    outside: float
    functions: np.ndarray | None
    wanted: np.ndarray
    smoother: Smoother
    intercept: bool

    def filters(self, lams: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shrinkage, 1 - shrinkage, and coefficients of functions over those of targets, (L, k)."""
        smoother, delta = self.smoother, self.eigenvalues
        a, rest = smoother.shrinkage(delta, lams), smoother.complement(delta, lams)
        scale = a if self.functions is None else smoother.dual(delta, lams)
        if self.intercept:
            one = np.ones((len(lams), 1))
            a, scale = np.hstack([a, one]), np.hstack([scale, one])
            rest = np.hstack([rest, 0 * one])
        return a, rest, scale

    def rows(self, n: int) -> RiskRows:
        """Where risk is measured."""
        c = self.truth.shape[1]
        if self.functions is None:
            squares, ones = np.sum(self.truth**2, axis=1), np.ones(len(self.truth))
            return RiskRows(ones, n, c, squares=squares, outside=self.outside)
        F, m = self.functions, len(self.functions)
        values = np.concatenate([F * one for one in self.truth.T])
        wanted = self.wanted.T.reshape(-1)
        if len(values) > len(self.truth) + 1:  # its triangle has the same sums of squares
            triangle = merge_rows(None, np.column_stack([values, wanted]))
            values, wanted = triangle[:, :-1], triangle[:, -1]
        return RiskRows(np.sum(F**2, axis=0), m, c, values=values, truth=wanted)


def label_directions(fitted: Fit, X_new: Any, truth_new: Any) -> LabelDirections:
    """Of a fit to the truth, at its training rows or at new ones.

    Raises
    ------
    TypeError, ValueError, MemoryError
    """
    if (X_new is None) != (truth_new is None):
        missing = "X_new" if X_new is None else "truth_new"
        raise ValueError(f"{missing} is missing: risk at new rows takes rows and the truth there")
    model, solution = fitted.parts.model, fitted.parts.solution
    spectrum, n = solution.spectrum, solution.rows
    assert spectrum is not None
    delta, truth = to_numpy(spectrum.eigenvalues), to_numpy(spectrum.Z)
    outside = 0.0 if spectrum.outside is None else float(to_numpy(spectrum.outside).sum())
    intercept = model.offset is not None
    functions, wanted = None, truth
    if X_new is not None:
        functions, wanted = _at_new_rows(fitted, spectrum, X_new, truth_new)
        outside = 0.0
    if intercept:  # the mean has no bias: it has been taken off the truth
        truth = np.concatenate([truth, np.zeros((1, truth.shape[1]))])
        if functions is None:
            wanted = truth
        else:
            functions = np.column_stack([functions, np.full(len(functions), n**-0.5)])
    return LabelDirections(
        eigenvalues=delta,
        truth=truth,
        outside=outside,
        functions=functions,
        wanted=wanted,
        smoother=smoother_of(solution),
        intercept=intercept,
    )


def _at_new_rows(
    fitted: Fit, spectrum: Spectrum, X_new: Any, truth_new: Any
) -> tuple[np.ndarray, np.ndarray]:
    """kappa(X_new, X) V (m, k), or the same of features, and the truth less the intercept (m, c)."""
    model = fitted.parts.model
    held = validation_rows(model, X_new, truth_new, fitted.info.c)
    model.afford(3 * held.rows * int(spectrum.basis.shape[1]) * fitted.info.c, "new rows")
    blocks = [to_numpy(block @ spectrum.basis) for _, block, _, _ in held.blocks(ENTRIES)]
    return np.concatenate(blocks), to_numpy(held.targets)
