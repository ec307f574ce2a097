"""Targets of a student, side by side: the truth, and what each lam of each teacher adds to it.

Rows with labels come first. With G_0 the labels, 0 on rows without, the columns are

    G_0;    E_ml = P_ml - G_0 on rows with labels, else 0;    V_ml = P_ml on rows without, else 0

for teacher m and its lam l. What is said to a student is G + (1 - alpha) E with the truth G = G_0 + V, and
every answer is linear in the columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.arrays import targets
from sdgpu.backend.backends import to_numpy
from sdgpu.engine.fitted import Fit
from sdgpu.engine.requests import validation_rows

__all__ = ["StudentTargets", "validation_blocks"]

ENTRIES = 2**22  # kernel values of a block of validation rows


@dataclass(frozen=True)
class StudentTargets:
    """Which columns are which.

    Attributes
    ----------
    outputs : int
        c.
    lams : int
        L1, of the teachers.
    teachers : int
        M.
    labelled, unlabelled : int
        Rows.
    """

    outputs: int
    lams: int
    teachers: int
    labelled: int
    unlabelled: int

    @property
    def columns(self) -> int:
        """c (1 + M L1), or c (1 + 2 M L1) with rows without labels."""
        blocks = 2 if self.unlabelled else 1
        return self.outputs * (1 + blocks * self.teachers * self.lams)

    def stacked(self, Y: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Targets (n + u, columns) from labels (n, c) and what is told at all rows, (M, L1, n + u, c)."""
        n, u, c = self.labelled, self.unlabelled, self.outputs
        flat = told.reshape(-1, n + u, c)
        parts = [np.concatenate([Y, np.zeros((u, c))])]
        parts += [np.concatenate([P[:n] - Y, np.zeros((u, c))]) for P in flat]
        if u:
            parts += [np.concatenate([np.zeros((n, c)), P[n:]]) for P in flat]
        return np.concatenate(parts, axis=1)

    def truth(self, values: Any) -> Any:
        """Values of G_0, (.., c) of (.., columns)."""
        return values[..., : self.outputs]

    def extra(self, values: Any, teacher: int, lam: int) -> Any:
        """Values of E_ml."""
        return self._part(values, 1 + teacher * self.lams + lam)

    def unseen(self, values: Any, teacher: int, lam: int) -> Any:
        """Values of V_ml, where there are rows without labels."""
        return self._part(values, 1 + (self.teachers + teacher) * self.lams + lam)

    def mixed(self, values: Any, lam: int, weights: np.ndarray) -> tuple[Any, Any]:
        """Values of the truth G, and of what the teachers add, by their weights (M,)."""
        truth = self.truth(values)
        numbered = list(enumerate(weights.tolist()))
        if self.unlabelled:
            truth = truth + sum(w * self.unseen(values, m, lam) for m, w in numbered)
        return truth, sum(w * self.extra(values, m, lam) for m, w in numbered)

    def _part(self, values: Any, number: int) -> Any:
        first = number * self.outputs
        return values[..., first : first + self.outputs]


def validation_blocks(
    fit: Fit, data: tuple[Any, Any], lams: np.ndarray, steps: int, *, outputs: int, numbers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """u_1, D_1 .. D_(T-1) of all columns at validation rows (L2, T, b, columns), and their truth (b, c).

    Parameters
    ----------
    fit : Fit
        Of the student.
    data : (X_val, Y_val)
    lams : array (L2,)
    steps : int
    outputs : int
        c.
    numbers : int
        Of the values of a block, about.
    """
    parts, C = fit.parts, fit.info.c
    rows = np.asarray(to_numpy(data[0]))
    truth, _ = targets(np.asarray(to_numpy(data[1])), "Y_val", rows=len(rows), outputs=outputs)
    held = validation_rows(parts.model, rows, np.zeros((len(rows), C)), C)
    offset = 0.0 if parts.model.offset is None else to_numpy(parts.model.offset)
    expansion = parts.solution.expand(lams, steps, (np.zeros(0), np.zeros(0)))
    at_once = max(1, numbers // (len(lams) * steps * C))
    for start, block, _, _ in held.blocks(min(ENTRIES, at_once * held.width)):
        basis = to_numpy(expansion.steps(block @ expansion.columns, slice(0, len(lams)))).copy()
        basis[:, 0] += offset  # u_1; differences have none
        yield basis, truth[start : start + basis.shape[2]]
