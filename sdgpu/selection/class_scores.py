"""Accuracy and calibration of one-hot predictions, of single sets.

Least-squares predictions of one-hot targets are read as probabilities: clipped to [1e-6, 1] and
normalised. The class is that of the largest prediction, the first one of equal ones, as argmax has it:
an accuracy is that of a classifier which can be carried out, far from all data too, where every
prediction is 0.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = [
    "BINS",
    "SCORES",
    "bin_gaps",
    "class_scores",
    "one_hot_rows",
    "probabilities",
    "score_terms",
    "several_classes",
]

#: Names of the scores: share of right classes, mean -log p of the right class, mean ||p - e||^2, and the
#: expected calibration error over 15 equal bins of the largest probability (Guo et al. 2017).
SCORES = ("accuracy", "nll", "brier", "ece")

BINS = 15
LOWEST = 1e-6  # probability that counts as zero in a logarithm


def probabilities(F: Any, axis: int = -1) -> Any:
    """Predictions of one-hot targets as probabilities over an axis: clipped to [1e-6, 1] and normalised."""
    xp = compat.array_namespace(F)
    clipped = xp.clip(F, LOWEST, 1.0)
    return clipped / xp.sum(clipped, axis=axis, keepdims=True)


def class_scores(P: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and calibration of probabilities.

    Parameters
    ----------
    P : array (..., m, c)
        Its largest entry decides the class; predictions that were clipped to one value are equal.
    labels : array (m,) of int

    Returns
    -------
    dict of arrays (...,)
        The `SCORES` by name.
    """
    Pt = np.moveaxis(P, -1, -2)
    right, nll, brier, confidence = score_terms(Pt, Pt, np.eye(P.shape[-1])[labels].T)
    ece = np.abs(bin_gaps(right, confidence)).sum(axis=-1) / len(labels)
    return dict(zip(SCORES, (*(x.mean(axis=-1) for x in (right, nll, brier)), ece), strict=True))


def score_terms(values: Any, P: Any, truth: Any) -> tuple[Any, Any, Any, Any]:
    """What the scores are means of: right (0 or 1), -log p, ||p - e||^2, and the confidence, (..., m).

    Parameters
    ----------
    values : array (..., c, m)
        Predictions: the class is that of the largest. Rows are last, so that sums over the classes add
        long vectors.
    P : array (..., c, m)
        Their probabilities.
    truth : array (c, m)
        One-hot.
    """
    xp = compat.array_namespace(values)
    is_largest = values == xp.max(values, axis=-2, keepdims=True)
    right = xp.any(is_largest & (truth > 0), axis=-2)
    # some are equal, which is rare; and argmax is slow
    if int(xp.count_nonzero(is_largest)) > compat.size(right):
        right = xp.argmax(values, axis=-2) == xp.argmax(truth, axis=0)
    p_right = xp.sum(P * truth, axis=-2)
    brier = xp.sum(P * P, axis=-2) - 2 * p_right + 1
    nll = -xp.log(xp.clip(p_right, LOWEST, 1.0))
    return xp.astype(right, values.dtype), nll, brier, xp.max(P, axis=-2)


def bin_gaps(
    right: np.ndarray, confidence: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Right minus confident, summed over the rows of each bin: (..., m) -> (..., 15), on the host.

    With weights (m,) each row counts by its own.
    """
    lead = int(np.prod(right.shape[:-1]))
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    index = bins.reshape(lead, -1) + BINS * np.arange(lead)[:, None]
    differences = right - confidence if weights is None else (right - confidence) * weights
    gaps = np.bincount(index.ravel(), differences.ravel(), minlength=lead * BINS)
    return gaps.reshape(*right.shape[:-1], BINS)


def one_hot_rows(name: str, Y: Any) -> None:
    """Raise ValueError unless Y (m, c), c >= 2, holds one-hot rows, within rounding."""
    xp = compat.array_namespace(Y)
    if int(Y.shape[1]) < 2:
        raise ValueError(
            f"{name} has one column: metrics of classes need one-hot rows of two classes or more"
        )
    rounded = xp.round(Y)
    one_hot = xp.all((rounded == 0) | (rounded == 1)) & xp.all(xp.sum(rounded, axis=1) == 1)
    if not bool(one_hot) or float(xp.max(xp.abs(Y - rounded))) > 1e-6:
        raise ValueError(
            f"{name} is not one-hot: metrics of classes need a single 1 in each row, else 0"
        )


def several_classes(name: str, Y: Any) -> None:
    """Raise ValueError if the one-hot rows of Y (m, c), or its one column of 0 and 1, are of one class."""
    xp = compat.array_namespace(Y)
    if int(Y.shape[1]) == 1:
        Y = xp.concat([Y, 1 - Y], axis=1)
    if int(xp.sum(xp.astype(xp.any(xp.round(Y) == 1, axis=0), xp.int64))) < 2:
        raise ValueError(f"{name} holds one class only: there is nothing to tell apart")
