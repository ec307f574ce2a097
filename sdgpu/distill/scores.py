"""Accuracy and calibration of one-hot predictions, of single sets and of a whole grid of weights.

Least-squares predictions of one-hot targets are read as probabilities: clipped to [1e-6, 1] and
normalised. The class is that of the largest prediction.
"""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

__all__ = ["SCORES", "SUMS", "class_scores", "mean_scores", "probabilities", "score_sums"]

#: Names of the scores: share of right classes, mean -log p of the right class, mean ||p - e||^2, and the
#: expected calibration error over 15 equal bins of the largest probability (Guo et al. 2017).
SCORES = ("accuracy", "nll", "brier", "ece")

BINS = 15
SUMS = 3 + BINS  # sums over the rows that the scores follow from
LOWEST = 1e-6  # probability that counts as zero in a logarithm


def probabilities(F: Any) -> Any:
    """Predictions of one-hot targets (..., c) as probabilities: clipped to [1e-6, 1] and normalised."""
    xp = compat.array_namespace(F)
    clipped = xp.clip(F, LOWEST, 1.0)
    return clipped / xp.sum(clipped, axis=-1, keepdims=True)


def class_scores(P: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy and calibration of probabilities.

    Parameters
    ----------
    P : array (..., m, c)
    labels : array (m,) of int

    Returns
    -------
    dict of arrays (...,)
        The `SCORES` by name.
    """
    return mean_scores(score_sums(P, P, np.eye(P.shape[-1])[labels]), len(labels))


def score_sums(values: Any, P: Any, truth: Any) -> Any:
    """Sums over the rows that the scores follow from.

    Parameters
    ----------
    values : array (..., m, c)
        Predictions: the class is that of the largest.
    P : array (..., m, c)
        Their probabilities.
    truth : array (m, c)
        One-hot.

    Returns
    -------
    array (..., 18)
        Right classes, -log p, ||p - e||^2, and of each bin of confidence right minus confident.
    """
    xp = compat.array_namespace(values)
    right = xp.sum(values * truth, axis=-1) >= xp.max(values, axis=-1)  # (..., m)
    right = xp.astype(right, values.dtype)
    own = xp.sum(P * truth, axis=-1)
    confidence = xp.max(P, axis=-1)
    bins = xp.clip(xp.floor(confidence * BINS), 0, BINS - 1)
    gap = right - confidence
    terms = [right, -xp.log(xp.clip(own, LOWEST, 1.0)), xp.sum(P * P, axis=-1) - 2 * own + 1]
    terms += [xp.where(bins == b, gap, 0 * gap) for b in range(BINS)]
    return xp.stack([xp.sum(term, axis=-1) for term in terms], axis=-1)


def mean_scores(sums: np.ndarray, rows: int) -> dict[str, np.ndarray]:
    """The `SCORES` by name from sums (..., 18) over so many rows, as host numbers."""
    found = {name: sums[..., i] / rows for i, name in enumerate(SCORES[:3])}
    return {**found, "ece": np.abs(sums[..., 3:]).sum(axis=-1) / rows}
