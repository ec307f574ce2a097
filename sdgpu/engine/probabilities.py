"""Probabilities of classes from fitted one-hot values, calibrated on rows that were left out.

p = softmax(beta f), with the one number beta > 0 that makes the classes of left-out rows most likely
(temperature scaling): the largest probability is that of the largest value, so that nothing is predicted
otherwise. Scores by leave-one-out take no rows away from the fit, as a calibration set would.

References
----------
Guo, Pleiss, Sun and Weinberger (2017); Platt (1999) for the row of unknown class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from sdgpu.backend.rounding import underflow_is_zero
from sdgpu.backend.rows import ArraySource, RowSource, SparseSource
from sdgpu.backend.sparse_rows import is_sparse
from sdgpu.engine.fitted import Fit

__all__ = ["Temperature", "calibrated", "left_out_scores", "temperature_of", "with_rows"]

STEEPEST = 1e6  # beta times the range of the scores, at most; and over it at least
UNKNOWN = 1.0  # rows of unknown class: scores that tell all rows apart would have beta = inf


@dataclass(frozen=True)
class Temperature:
    """What turns values into probabilities.

    Attributes
    ----------
    beta : float
        Inverse temperature; NaN where there is none.
    reason : str
        Why there is none.
    """

    beta: float
    reason: str = ""

    @underflow_is_zero
    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """softmax(beta f) of values (m, c): rows that add up to 1.

        Raises
        ------
        ValueError
            Without a calibration.
        """
        if self.reason:
            raise ValueError(f"predict_proba could not be calibrated: {self.reason}")
        return np.asarray(scipy.special.softmax(self.beta * values.astype(np.float64), axis=1))


@underflow_is_zero
def temperature_of(
    scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None
) -> Temperature:
    """The beta of the largest likelihood of classes, with one row more whose class nobody knows.

    Parameters
    ----------
    scores : array (n, c)
        Values of rows that had no part in them.
    truth : array (n, c)
        One-hot, or shares of classes.
    weights : array (n,), optional

    Notes
    -----
    The likelihood is concave in beta, so its derivative has one root; n c operations for each of some
    dozen evaluations.
    """
    scores = scores.astype(np.float64)
    w = np.ones(len(scores)) if weights is None else weights
    total, c = w.sum(), scores.shape[1]
    targets = (truth * total + UNKNOWN / c) / (total + UNKNOWN)
    centred = scores - scores.mean(axis=1, keepdims=True)
    spread = float(np.abs(centred[w > 0]).max(initial=0.0))
    if spread == 0:
        return Temperature(1.0)

    def slope(beta: float) -> float:
        excess = scipy.special.softmax(beta * centred, axis=1) - targets
        return float(w @ (excess * centred).sum(axis=1)) / (spread * total)

    low, high = 1 / (STEEPEST * spread), STEEPEST / spread
    if slope(low) >= 0:  # scores that tell nothing: the order of the classes stays
        return Temperature(low)
    if slope(high) <= 0:
        return Temperature(high)
    # the logarithm: beta is near 1 / spread or thousands of times that
    root = scipy.optimize.brentq(
        lambda log_beta: slope(np.exp(log_beta)), np.log(low), np.log(high), xtol=1e-13, rtol=1e-14
    )
    return Temperature(float(np.exp(root)))


def calibrated(left_out: Callable[[], tuple[np.ndarray, np.ndarray, Any]]) -> Temperature:
    """The temperature of left-out scores, truth and weights; or why they cannot be had.

    A classifier that predicts is fitted all the same: where a row determines itself there is no fit
    without it.
    """
    try:
        return temperature_of(*left_out())
    except (ValueError, MemoryError) as error:
        return Temperature(np.nan, str(error))


def left_out_scores(
    fitted: Fit,
    rows: tuple[Any, np.ndarray, np.ndarray | None],
    choice: tuple[float, Any, int],
    refit: Callable[..., Fit],
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores of every row by the fit without it, the truth beside them, and weights.

    Copies of a row are left out together: the fit without one of them knows the other. Then whole weights
    and repeated rows have the same probabilities, as they have the same predictions.

    Parameters
    ----------
    fitted : Fit
    rows : X, Y (n, c), weights (n,) or None
    choice : lam, weights of the steps, step
    refit : callable
        (first, Y, weights) -> the fit of the rows that come first of their copies, to mean targets with
        the sums of the weights.
    """
    X, Y, weights = rows
    lam, alphas, steps = choice
    first, copy_of = _copies(X, weights)
    if len(first) < len(copy_of):
        own = np.ones(len(Y)) if weights is None else weights
        some, Y = own[own > 0], Y[own > 0]
        weights = np.bincount(copy_of, some)
        sums = [np.bincount(copy_of, some * column) for column in Y.T]
        Y = np.stack(sums, axis=1) / weights[:, None]
        fitted = refit(first, Y, weights)
    scores = np.asarray(fitted.loo(lam, alphas, steps))[-1]
    if weights is None:
        return scores, Y, None
    present = weights > 0
    return scores[present], Y[present], weights[present]


def with_rows(fitted: Fit, X: Any, Y: np.ndarray, weights: np.ndarray | None) -> Fit:
    """The fit of moments with the rows that they are of, which leave-one-out reads once more."""
    Y = Y.reshape(len(Y), -1)
    if is_sparse(X):
        source: RowSource = SparseSource.of(X, Y, weights)
    else:
        source = ArraySource(X.astype(np.float64), Y, weights)
    return replace(fitted, _model=replace(fitted.parts.model, source=source))


def _copies(X: Any, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of weight > 0 that come first of their copies, and for each such row which of them it is."""
    rows = np.arange(X.shape[0]) if weights is None else np.flatnonzero(weights)
    if is_sparse(X):
        X = X.tocsr()[rows]
        X.sum_duplicates()
        X.eliminate_zeros()
        keys = [
            X.indices[start:stop].tobytes() + X.data[start:stop].tobytes()
            for start, stop in zip(X.indptr[:-1], X.indptr[1:], strict=True)
        ]
    else:
        keys = [row.tobytes() for row in np.ascontiguousarray(X[rows] + 0.0)]  # -0 is 0
    seen: dict[bytes, int] = {}
    first: list[int] = []
    copy_of = np.empty(len(rows), dtype=np.int64)
    for number, key in enumerate(keys):
        if key not in seen:
            seen[key] = len(first)
            first.append(int(rows[number]))
        copy_of[number] = seen[key]
    return np.array(first), copy_of
