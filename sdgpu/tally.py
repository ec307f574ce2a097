"""Scores of one-hot predictions of a whole grid: what the triangle of the squared loss cannot tell.

Accuracy and calibration need the predictions of every (lam, alpha, step) themselves. They are made a few
weights at a time from the T columns that serve all weights, counted and dropped.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from sdgpu.backend.arrays import slices
from sdgpu.backend.backends import to_numpy
from sdgpu.distill.scores import BINS, SCORES, bin_gaps, probabilities, score_terms

__all__ = ["ClassTally", "one_hot_rows"]

_CHUNK = 2**18  # doubles of one intermediate, 2 MiB: what follows finds it in the cache


def one_hot_rows(name: str, Y: Any) -> None:
    """Raise ValueError unless Y (m, c), c >= 2, holds one-hot rows, within rounding, of several classes."""
    xp = compat.array_namespace(Y)
    if int(Y.shape[1]) < 2:
        raise ValueError(
            f"{name} has one column: classes=True needs one-hot rows of two classes or more"
        )
    near = xp.round(Y)
    one = xp.all((near == 0) | (near == 1)) & xp.all(xp.sum(near, axis=1) == 1)
    if not bool(one) or float(xp.max(xp.abs(Y - near))) > 1e-6:
        raise ValueError(
            f"{name} is not one-hot: classes=True needs a single 1 in each row, else 0"
        )
    if int(xp.sum(xp.astype(xp.any(near == 1, axis=0), xp.int64))) < 2:
        raise ValueError(f"{name} holds one class only: there is nothing to tell apart")


class ClassTally:
    """Scores of every (lam, alpha, step), added up over blocks of rows.

    Parameters
    ----------
    tails : array (A, T)
        Of the weights, :func:`sdgpu.distill.schedules.grid_tails`.
    lams : int
        L.

    Notes
    -----
    m c A T (T + 20) operations for each lam, beside what the losses cost.
    """

    def __init__(self, tails: np.ndarray, lams: int) -> None:
        A, T = tails.shape
        # step t is the sum of the first t terms
        self._mix = np.tril(np.ones((T, T)))[None, :, :] * tails[:, None, :]  # (A, T, T)
        self._sums = np.zeros((lams, A, T, 3 + BINS))
        self._rows = 0

    def add(self, lams: slice, basis: Any, truth: Any, *, new_rows: bool) -> None:
        """Count some rows for some lam.

        Parameters
        ----------
        lams : slice
        basis : array (l, T, b, c)
            u_1, D_1, .., D_{T-1} at the rows.
        truth : array (b, c)
            One-hot.
        new_rows : bool
            Whether these rows come for the first time (once for all slices of lam).
        """
        xp = compat.array_namespace(basis)
        T, b, c = basis.shape[1:]
        truth = xp.round(truth).T  # (c, b); within rounding, where it comes from eigenvectors
        self._rows += b if new_rows else 0
        some = max(1, _CHUNK // (T * b * c))
        for at, own in enumerate(range(*lams.indices(len(self._sums)))):
            flat = xp.reshape(xp.permute_dims(basis[at, ...], (0, 2, 1)), (T, c * b))
            for part in slices(len(self._mix), some):
                mix = xp.asarray(self._mix[part], dtype=flat.dtype, device=compat.device(flat))
                values = xp.reshape(xp.reshape(mix, (-1, T)) @ flat, (-1, T, c, b))
                terms = score_terms(values, probabilities(values, -2), truth)
                right, nll, brier, confidence = (to_numpy(x) for x in terms)
                sums = [x.sum(axis=-1) for x in (right, nll, brier)]
                self._sums[own, part, :, :3] += np.stack(sums, axis=-1)
                self._sums[own, part, :, 3:] += bin_gaps(right, confidence)

    def scores(self) -> dict[str, np.ndarray]:
        """The scores by name, (L, A, T) each."""
        means = self._sums / self._rows
        ece = np.abs(means[..., 3:]).sum(axis=-1)
        return dict(zip(SCORES, (*np.moveaxis(means[..., :3], -1, 0), ece), strict=True))
