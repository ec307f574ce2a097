"""Rounds of labels that a model made: what is left of the truth in them, and what noise they gather.

Round 1 fits the true labels F + sigma E_1. Round t fits

    (1 - k_t) u_(t-1) + k_t [w (F + sigma E_t) + (1 - w) (y_(t-1) + s N_t)],

u_(t-1) the targets and y_(t-1) = H u_(t-1) the predictions of the round before, E_t and N_t independent
noise of mean 0 and variance 1, w the share of true labels in what is new. k_t = 1 forgets the labels of
earlier rounds; k_t = 1 / t fits the mean of those of all rounds. In each eigenvector of K, with a = delta /
(delta + lam) or another smoother, the targets are p F + noise of the variance sigma^2 q + s^2 r, and

    1 - p_t = (1 - k) (1 - p) + k (1 - w) (1 - a p)
    q_t = (1 - k + k (1 - w) a)^2 q + k^2 w^2         fresh true labels; the same ones at every round: p_t^2
    r_t = (1 - k + k (1 - w) a)^2 r + k^2 (1 - w)^2   (p, q, r of the round before; 1, 1, 0 at round 1)

so that predictions have the mean a p F and the variance a^2 (sigma^2 q + s^2 r). All rounds of one
eigenvector are as correlated as they are: the recursion is of the targets, in which every earlier label
has its weight.

References
----------
Gerstgrasser et al. (2024) and Dey and Donoho (2024) for accumulation; He, Xu and Cheng (2025) and Garg,
Bhattacharya and Sur (2025) for the best share of true labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

__all__ = [
    "LabelMoments",
    "LabelRisk",
    "LabelScheme",
    "RiskRows",
    "best_shares",
    "label_limit",
    "label_rounds",
    "least_squares_share",
]

GOLDEN = (5**0.5 - 1) / 2
NARROWINGS = 40  # from 0.02 to 1e-10, where rounding of the risk hides more
COARSE = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class LabelMoments:
    """Of the targets of one round, in each eigenvector.

    Attributes
    ----------
    lost : array (.., k)
        1 - p, the share of the truth that is gone.
    true_noise, made_noise : arrays (.., k)
        q and r, variances of what comes from the noise of true and of made labels, for noise of variance 1.
    """

    lost: np.ndarray
    true_noise: np.ndarray
    made_noise: np.ndarray


@dataclass(frozen=True)
class LabelScheme:
    """How rounds follow each other.

    Attributes
    ----------
    accumulate : bool
        Whether each round fits the mean of the labels of all rounds, not the latest alone.
    fresh : bool
        Whether each round has true labels of its own, with new noise, or the same ones again.
    """

    accumulate: bool = False
    fresh: bool = True


def label_rounds(
    a: np.ndarray, complement: np.ndarray, w: np.ndarray, scheme: LabelScheme
) -> Iterator[LabelMoments]:
    """Moments of rounds 1, 2, .. without an end.

    Parameters
    ----------
    a, complement : arrays (.., k)
        Shrinkage of the fit, and 1 - a from its own formula.
    w : array (.., 1)
        In [0, 1], broadcast with a.
    scheme : LabelScheme

    Yields
    ------
    LabelMoments
        Nothing in `lost` cancels.

    Examples
    --------
    Least squares, w = 0 in every round: the variances are 1, 2, 3, and with all labels kept 1, 5/4, 49/36.

    >>> one, zero = np.ones(1), np.zeros(1)
    >>> def variances(scheme):
    ...     three = itertools.islice(label_rounds(one, zero, zero, scheme), 3)
    ...     return [float(x.true_noise[0] + x.made_noise[0]) for x in three]
    >>> variances(LabelScheme()), [round(36 * v) for v in variances(LabelScheme(accumulate=True))]
    ([1.0, 2.0, 3.0], [36, 45, 49])
    """
    made = 1 - w
    lost = np.zeros(np.broadcast_shapes(a.shape, np.shape(w)))
    true_noise, made_noise = lost + 1.0, lost.copy()
    for t in itertools.count(2):
        yield LabelMoments(lost, true_noise, made_noise)
        k = 1 / t if scheme.accumulate else 1.0
        kept = (1 - k) + k * made * a
        lost = kept * lost + k * made * complement  # a p = 1 - complement - a lost
        made_noise = kept * kept * made_noise + (k * made) ** 2
        fresh = kept * kept * true_noise + (k * w) ** 2
        true_noise = fresh if scheme.fresh else (1 - lost) ** 2


def label_limit(
    a: np.ndarray, complement: np.ndarray, w: np.ndarray, scheme: LabelScheme
) -> LabelMoments:
    """Moments of infinitely many rounds; parameters as :func:`label_rounds`.

    p is that of ridge with lam / w, equation (17), for every scheme. Where all labels are kept, noise of
    fresh and of made labels averages out, but for least squares without true ones: r = pi^2 / 6 - 1.
    Infinite where variances grow without bound, for a = 1 and w = 0.
    """
    made, x = 1 - w, (1 - w) * a
    rest = w + made * complement  # 1 - x, without cancellation
    never, safe = rest == 0, np.where(rest == 0, 1.0, rest)
    lost = np.where(never, 0.0, made * complement / safe)
    series = 1 / (safe * (1 + x))
    if scheme.accumulate:
        true_noise = np.where(never, 1.0, 0.0)
        made_noise = np.where(never, math.pi**2 / 6 - 1, 0.0)
    else:
        true_noise = np.where(never, 1.0, w * w * series)
        made_noise = np.where(never, np.inf, made * made * series)
    return LabelMoments(lost, true_noise if scheme.fresh else (1 - lost) ** 2, made_noise)


@dataclass(frozen=True, eq=False)
class RiskRows:
    """Rows that predictions are compared with the truth at, in the eigenbasis.

    Attributes
    ----------
    norms : array (k,)
        Sum over the rows of the squares of each eigenvector's function; of training rows 1.
    squares : array (k,), optional
        Sum over the outputs of (V'F)^2, for training rows.
    outside : float
        ||F||^2 - ||V'F||^2: what no eigenvector reaches.
    values : array (r, k), optional
        For other rows: what each eigenvector's part of the truth is there, up to a rotation.
    truth : array (r,), optional
        The truth there, likewise.
    rows, outputs : int
    """

    norms: np.ndarray
    rows: int
    outputs: int
    squares: np.ndarray | None = None
    outside: float = 0.0
    values: np.ndarray | None = None
    truth: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class LabelRisk:
    """Squared bias and variance of fits to labels with known moments.

    Attributes
    ----------
    a, complement : arrays (.., k)
    scale : array (.., k)
        Coefficients of functions over those of targets: a for training rows, the dual filter for others.
    rows : RiskRows
    sigma, s : float
        Standard deviations of the noise of true and of made labels.
    """

    a: np.ndarray
    complement: np.ndarray
    scale: np.ndarray
    rows: RiskRows
    sigma: float
    s: float

    def of(self, moments: LabelMoments) -> tuple[np.ndarray, np.ndarray]:
        """Squared bias and variance (..) of moments (.., k), means over rows and outputs.

        Notes
        -----
        O(k) for each point; for rows that are not those of the training r k.
        """
        rows, count = self.rows, self.rows.rows * self.rows.outputs
        if rows.squares is not None:
            error = self.complement + self.a * moments.lost  # 1 - a p
            bias = (error * error) @ rows.squares + rows.outside
        else:
            assert rows.values is not None
            assert rows.truth is not None
            mean = self.scale * (1 - moments.lost)
            left = np.moveaxis(mean, -1, 0).reshape(len(rows.norms), -1)
            left = rows.values @ left - rows.truth[:, None]
            bias = np.einsum("rp,rp->p", left, left).reshape(mean.shape[:-1])
        return bias / count, self._variance(moments) / rows.rows

    def _variance(self, moments: LabelMoments) -> np.ndarray:
        noise = self.sigma**2 * moments.true_noise
        if self.s > 0:  # 0 of what is infinite is nothing
            noise = noise + self.s**2 * moments.made_noise
        seen = (self.rows.norms > 0) & (self.scale > 0)
        weights = np.where(seen, self.rows.norms * self.scale * self.scale, 0.0)
        return np.einsum("...k,...k->...", np.where(seen, noise, 0.0), weights)


def least_squares_share(ratio: float = 1.0) -> float:
    """The best share of fresh true labels in endless rounds of least squares, w^2 = ratio (1 - w).

    `ratio` is s^2 / sigma^2, the variance of made labels over that of true ones.

    Examples
    --------
    As noisy as each other: one over the golden ratio.

    >>> round(least_squares_share(), 6)
    0.618034
    """
    return 2 / (1 + math.sqrt(1 + 4 / ratio)) if ratio > 0 else 0.0


def best_shares(risk: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """The share w in [0, 1] with the smallest risk, for each of some lam, (L,).

    Parameters
    ----------
    risk : callable
        w (A, L) -> risks (A, L).
    count : int
        L.

    Notes
    -----
    101 values find the valley, golden sections its floor: within 1e-8, as near as rounding lets one see.
    """
    values = risk(np.broadcast_to(COARSE[:, None], (len(COARSE), count)))
    lowest = np.argmin(values, axis=0)
    low, high = COARSE[np.maximum(lowest - 1, 0)], COARSE[np.minimum(lowest + 1, len(COARSE) - 1)]
    for _ in range(NARROWINGS):
        inner = np.stack([high - GOLDEN * (high - low), low + GOLDEN * (high - low)])
        left, right = risk(inner)
        low, high = np.where(left < right, low, inner[0]), np.where(left < right, inner[1], high)
    middle = (low + high) / 2
    # an end of [0, 1] is none that sections reach; 1 where no share matters
    candidates = np.stack([np.ones(count), middle, np.zeros(count)])
    return np.asarray(candidates[np.argmin(risk(candidates), axis=0), np.arange(count)])
