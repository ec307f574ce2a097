"""Noise for targets: corrupted labels of three kinds, and Gaussian noise.

Every function takes labels (n,), whole numbers 0 .. c-1, or their one-hot rows (n, c), and returns a
:class:`Noisy` copy of the same shape and dtype. A corrupted label is always a wrong one.

============  =================================  ==============================================
function      which rows                         their new class
============  =================================  ==============================================
symmetric     random                             any other, uniformly
hierarchical  random                             another of the same group, uniformly
adversarial   those with the smallest margins    the one that the scores confuse it with most
============  =================================  ==============================================

Exactly round(rate n) rows are corrupted, so that a rate means the same in every draw; with iid=True each
row is, with that probability, on its own, which is what expectations (:func:`symmetric_moments`) are
taken over.

These are the kinds of Das and Sanghavi (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdgpu.backend.arrays import as_data, inputs
from sdgpu.backend.checks import integer, number, positive
from sdgpu.backend.rounding import mean_and_spread, underflow_is_zero
from sdgpu.engine.fitting import fit
from sdgpu.kernels import Kernel

__all__ = [
    "Noisy",
    "adversarial",
    "class_groups",
    "gaussian",
    "hierarchical",
    "left_out_scores",
    "noise_std",
    "symmetric",
    "symmetric_moments",
]

Seed = int | np.random.Generator


@dataclass(frozen=True, eq=False)
class Noisy:
    """Targets with noise.

    Attributes
    ----------
    Y : array
        Of the shape and dtype of the targets that came in.
    rows : array (n,) of bool
        Which rows differ from them.
    """

    Y: np.ndarray
    rows: np.ndarray


def symmetric(
    Y: np.ndarray, rate: float, seed: Seed = 0, *, iid: bool = False, classes: int | None = None
) -> Noisy:
    """Replace a share of the labels by any other class, uniformly.

    Parameters
    ----------
    Y : array (n,) or (n, c)
        Labels 0 .. c-1, or one-hot rows.
    rate : float
        Share of the rows, in [0, 1].
    seed : int or numpy.random.Generator, default 0
    iid : bool, default False
        Corrupt each row with probability `rate` instead of exactly round(rate n) of them.
    classes : int, optional
        c, for labels; the largest label plus one by default.

    Returns
    -------
    Noisy

    Raises
    ------
    TypeError, ValueError
        For labels that are no whole numbers in 0 .. c-1, rows that are not one-hot, fewer than two
        classes, or a rate outside [0, 1].

    Examples
    --------
    >>> noisy = symmetric(np.array([0, 1, 2, 0, 1, 2]), rate=0.5, seed=1)
    >>> noisy.Y, np.flatnonzero(noisy.rows)
    (array([2, 1, 0, 0, 2, 2]), array([0, 2, 4]))
    """
    codes, c = _codes(Y, classes)
    return _within(Y, codes, [tuple(range(c))], c, rate=rate, seed=seed, iid=iid)


def hierarchical(
    Y: np.ndarray,
    rate: float,
    groups: Sequence[Sequence[int]],
    seed: Seed = 0,
    *,
    iid: bool = False,
    classes: int | None = None,
) -> Noisy:
    """Replace a share of the labels by another class of the same group, uniformly.

    Parameters
    ----------
    Y, rate, seed, iid, classes
        As in :func:`symmetric`.
    groups : sequence of sequences of int
        Every class 0 .. c-1 in exactly one group, two classes or more in each; see
        :func:`class_groups`.

    Returns
    -------
    Noisy

    Raises
    ------
    TypeError, ValueError
        As :func:`symmetric`, and for a class that is in no group, in two, alone in one, or unknown.
    """
    codes, c = _codes(Y, classes)
    partition = [
        tuple(integer("a class of groups", label, 0) for label in group) for group in groups
    ]
    labels = [label for group in partition for label in group]
    missing, unknown = sorted(set(range(c)) - set(labels)), sorted(set(labels) - set(range(c)))
    twice = sorted({label for label in labels if labels.count(label) > 1})
    for problem, offending in (("miss", missing), ("name unknown", unknown), ("repeat", twice)):
        if offending:
            raise ValueError(
                f"groups {problem} classes {offending}: name each of 0 .. {c - 1} exactly once"
            )
    singletons = [group for group in partition if len(group) < 2]
    if singletons:
        raise ValueError(
            f"groups have {singletons[0]} on its own: a group needs two classes, one to go wrong to"
        )
    return _within(Y, codes, partition, c, rate=rate, seed=seed, iid=iid)


@underflow_is_zero
def adversarial(
    Y: np.ndarray, rate: float, scores: np.ndarray, *, classes: int | None = None
) -> Noisy:
    """Replace the labels that are easiest to confuse by the class that they are confused with.

    The margin of a row is the score of its own class less the largest score of another one. The
    round(rate n) rows with the smallest margins get that other class. Nothing is random: of equal
    margins the first row, and of equal scores the first class, is taken.

    Parameters
    ----------
    Y, rate, classes
        As in :func:`symmetric`.
    scores : array (n, c)
        What a classifier says of each row, larger for likelier; :func:`left_out_scores` makes them.

    Returns
    -------
    Noisy

    Raises
    ------
    TypeError, ValueError
        As :func:`symmetric`, and for scores of another shape or not finite.
    """
    codes, c = _codes(Y, classes)
    n, score_matrix = len(codes), inputs(scores, "scores")
    if score_matrix.shape != (n, c):
        raise ValueError(
            f"scores have shape {score_matrix.shape}: {n} rows of {c} classes need ({n}, {c})"
        )
    other_scores = np.array(score_matrix, dtype=np.float64)
    own_scores = other_scores[np.arange(n), codes]
    other_scores[np.arange(n), codes] = -np.inf
    margins = own_scores - other_scores.max(axis=1)
    rows = np.zeros(n, dtype=bool)
    rows[np.argsort(margins, kind="stable")[: round(_share(rate) * n)]] = True
    return _replaced(Y, np.where(rows, other_scores.argmax(axis=1), codes), rows, c)


def gaussian(
    Y: np.ndarray, seed: Seed = 0, *, std: float | None = None, snr: float | None = None
) -> Noisy:
    """Add independent Gaussian noise to targets.

    Parameters
    ----------
    Y : array (n,) or (n, c)
    seed : int or numpy.random.Generator, default 0
    std : float, optional
        Standard deviation of the noise, >= 0.
    snr : float, optional
        Signal-to-noise ratio instead, see :func:`noise_std`.

    Returns
    -------
    Noisy
        In float64, or in float32 for float32 targets.

    Raises
    ------
    TypeError, ValueError
        Unless exactly one of std and snr is given, for values out of their range, or an snr of constant
        targets.
    """
    if (std is None) == (snr is None):
        raise ValueError(f"std={std} and snr={snr}: give exactly one of them")
    targets = as_data(Y, "Y")
    level = positive("std", std, zero=True) if snr is None else noise_std(targets, snr)
    noise = level * np.random.default_rng(seed).standard_normal(targets.shape)
    return Noisy((targets + noise).astype(targets.dtype), np.full(len(targets), level > 0))


def noise_std(Y: np.ndarray, snr: float) -> float:
    """Standard deviation of noise with a signal-to-noise ratio, sqrt(mean variance of Y / snr).

    Raises
    ------
    ValueError
        For snr <= 0, or targets that are constant: they have no signal.
    """
    power = float(np.mean(mean_and_spread(np.asarray(Y, dtype=np.float64))[1] ** 2))
    ratio = positive("snr", snr)
    if power == 0:
        raise ValueError(f"snr={snr} of constant targets: they have no signal, give std")
    return float(np.sqrt(power / ratio))


def symmetric_moments(Y: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
    """Mean and variance of one-hot rows under symmetric corruption with iid=True.

    E Y~ = (1 - rate) Y + rate (1 - Y) / (c - 1), and every row has the same total variance
    1 - (1 - rate)^2 - rate^2 / (c - 1), whatever its class. Both are all that an expected risk takes.

    Parameters
    ----------
    Y : array (n, c)
        One-hot rows.
    rate : float

    Returns
    -------
    array (n, c)
        Expected targets.
    float
        Variance of an entry, mean over the c outputs.

    Raises
    ------
    TypeError, ValueError
        As :func:`symmetric`.
    """
    codes, c = _codes(Y, None)
    clean, share = np.eye(c)[codes], _share(rate)
    mean = (1 - share) * clean + share * (1 - clean) / (c - 1)
    return mean, (1 - (1 - share) ** 2 - share**2 / (c - 1)) / c


def class_groups(X: np.ndarray, Y: np.ndarray, count: int) -> tuple[tuple[int, ...], ...]:
    """Group similar classes: Ward clustering of the class means of X.

    A class that is left on its own joins the group of the nearest class mean, so there may be fewer groups
    than asked for.

    Parameters
    ----------
    X : array (n, d)
    Y : array (n,) or (n, c)
        Labels or one-hot rows; every class must occur.
    count : int
        Groups, at least 1.

    Returns
    -------
    tuple of tuples of int
        Groups of two classes or more, for :func:`hierarchical`.

    Raises
    ------
    TypeError, ValueError
        For labels as in :func:`symmetric`, X with other rows, a class without rows, or a count < 1.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import cdist

    codes, c = _codes(Y, None)
    rows, count = inputs(X, "X"), integer("count", count, 1)
    if len(rows) != len(codes):
        raise ValueError(f"X has {len(rows)} rows, but Y has {len(codes)}")
    empty = np.flatnonzero(np.bincount(codes, minlength=c) == 0)
    if empty.size:
        raise ValueError(f"class {empty[0]} has no rows, and so no mean: leave it out")
    means = np.stack([rows[codes == label].mean(axis=0) for label in range(c)])
    group = fcluster(linkage(means, "ward"), count, criterion="maxclust")
    distances = cdist(means, means)
    np.fill_diagonal(distances, np.inf)
    for label in range(c):
        if np.count_nonzero(group == group[label]) == 1:
            group[label] = group[distances[label].argmin()]
    groups = (tuple(np.flatnonzero(group == g).tolist()) for g in np.unique(group))
    return tuple(sorted(groups))


@underflow_is_zero
def left_out_scores(X: Any, Y: np.ndarray, kernel: Kernel | str, lam: float) -> np.ndarray:
    """Scores of a kernel ridge classifier that has not seen the row, for :func:`adversarial`.

    Parameters
    ----------
    X : array (n, d)
    Y : array (n, c)
        One-hot rows.
    kernel : Kernel or str
    lam : float
        Ridge of K + lam I.

    Returns
    -------
    array (n, c)

    Notes
    -----
    One eigendecomposition; exact leave-one-out, see :meth:`sdgpu.Fit.loo`.
    """
    codes, c = _codes(Y, None)
    fitted = fit(X, np.eye(c)[codes], kernel, lams=lam, method="eigh")
    return np.asarray(fitted.loo(steps=1)[0])


def _share(rate: float) -> float:
    share = number("rate", rate)
    if not 0 <= share <= 1:
        raise ValueError(f"rate={rate!r} must be in [0, 1]: it is a share of the rows")
    return share


def _codes(Y: np.ndarray, classes: int | None) -> tuple[np.ndarray, int]:
    """Class numbers (n,) of labels or one-hot rows, and how many classes there are."""
    array = np.asarray(Y)
    if array.ndim == 2:
        if array.dtype.kind not in "biuf":
            raise TypeError(f"one-hot rows must be numbers, got dtype {array.dtype}")
        wrong = np.flatnonzero(((array != 0) & (array != 1)).any(axis=1) | (array.sum(axis=1) != 1))
        if wrong.size:
            raise ValueError(
                f"row {wrong[0]} of Y is not one-hot: a single 1 among zeros; clean labels are wanted"
            )
        if classes is not None and classes != array.shape[1]:
            raise ValueError(f"classes={classes}, but Y has {array.shape[1]} columns")
        codes, c = array.argmax(axis=1), array.shape[1]
    elif array.ndim == 1:
        if array.dtype.kind not in "iu":
            raise TypeError(f"labels must be whole numbers 0 .. c-1, got dtype {array.dtype}")
        codes = array.astype(np.int64)
        largest = int(codes.max(initial=-1))
        c = largest + 1 if classes is None else integer("classes", classes, 1)
        if codes.min(initial=0) < 0 or largest >= c:
            bad = int(codes.min()) if codes.min() < 0 else largest
            raise ValueError(f"label {bad} is out of range: labels are 0 .. {c - 1}")
    else:
        raise ValueError(f"Y must be labels (n,) or one-hot rows (n, c), got shape {array.shape}")
    if c < 2:
        raise ValueError("Y has one class only: a corrupted label has no other to go to")
    return codes, c


def _within(
    Y: np.ndarray,
    codes: np.ndarray,
    groups: Sequence[tuple[int, ...]],
    c: int,
    *,
    rate: float,
    seed: Seed,
    iid: bool,
) -> Noisy:
    """Corrupt random rows to another class of their group."""
    rng, share, n = np.random.default_rng(seed), _share(rate), len(codes)
    if iid:
        rows = rng.random(n) < share
    else:
        rows = np.zeros(n, dtype=bool)
        rows[rng.permutation(n)[: round(share * n)]] = True
    group, place = np.empty(c, dtype=int), np.empty(c, dtype=int)
    table = np.zeros((len(groups), max(map(len, groups))), dtype=int)
    for g, members in enumerate(groups):
        group[list(members)], place[list(members)] = g, np.arange(len(members))
        table[g, : len(members)] = members
    sizes = np.array([len(members) for members in groups])[group[codes]]
    # a shift by 1 .. size - 1 places around the group never comes back to the class itself
    shifted = (place[codes] + rng.integers(1, sizes)) % sizes
    return _replaced(Y, np.where(rows, table[group[codes], shifted], codes), rows, c)


def _replaced(Y: np.ndarray, codes: np.ndarray, rows: np.ndarray, c: int) -> Noisy:
    """A copy of Y with new classes, in its own form."""
    dtype = np.asarray(Y).dtype
    if np.ndim(Y) == 2:
        return Noisy(np.eye(c, dtype=dtype)[codes], rows)
    return Noisy(codes.astype(dtype), rows)
