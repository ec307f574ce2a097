"""Whether more steps do surely better: what they would seem to save if they saved nothing.

More weights always fit something. How much depends on the spectrum, and is far from a chi-square: the
best of a grid of lam and of T - 1 weights, none of which is determined where they bring nothing. So the
null is simulated, in the eigenbasis, where it costs next to nothing. Tuned ridge is the best estimator if

    Z_j ~ N(0, noise (1 + delta_j / lam)),    independent,

and t steps serve t - 1 eigenvectors besides, spikes, whose signal is another one (Lecoiu, Mukherjee and
Sur 2026): "t steps are enough" means ridge with the t - 1 eigenvectors apart that it explains least.

Losses are those of generalised cross-validation for combinations of steps (Dang, Patil and Rinaldo 2026):
the residual of step t with alpha = 0 is (1 - a^t) Z / (1 - trace(A^t) / n), and those of every schedule
are their combinations with sum 1. Of Z they need the squares alone. For each lam the columns are
orthogonalised with the expected squares once, and what a draw adds is a well-conditioned T x T matrix: no
digit is lost to its normal equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DRAWS", "GcvColumns", "enough_steps", "fair_lams"]

DRAWS = 600  # of the null
FAIR = 0.25
AHEAD = 2  # more steps that are tried: a step may bring nothing before the next does
# chance of two steps where one is enough, and of too many where two are not, as simulated
LEVELS = 0.02, 0.05
DEVIANT = 7.4  # half the deviance beyond which one of a thousand squares lies
ROUNDS = 3  # of finding spikes and the ridge of the others
WIDEST = 1.0  # error of log lam
DEPENDENT = 1e-9  # a column whose part beyond the others is less is no direction of its own


@dataclass(frozen=True, eq=False)
class GcvColumns:
    """Corrected residuals of the steps with alpha = 0, for targets of 1 along each eigenvector.

    Attributes
    ----------
    lams : array (L,)
        Ascending.
    values : array (L, k + 1, T)
        [D_1 .. D_{T-1}, E] as in :mod:`sdgpu.distill.loss_triangles`; the last row is for what lies
        outside of the eigenvectors.
    """

    lams: np.ndarray
    values: np.ndarray

    @classmethod
    def of(
        cls, eigenvalues: np.ndarray, lams: np.ndarray, steps: int, n: int, unpenalised: int = 0
    ) -> GcvColumns:
        """Columns of every lam.

        Parameters
        ----------
        eigenvalues : array (k,)
            All that are not 0.
        lams : array (L,)
        steps : int
            T.
        n : int
            Rows.
        unpenalised : int, default 0
            Functions that no penalty holds down, an intercept.

        Notes
        -----
        O(L k T). Differences have a formula of their own: nothing cancels.
        """
        total = eigenvalues + lams[:, None]
        a, complement = eigenvalues / total, lams[:, None] / total  # (L, k)
        powers = [np.ones_like(a)]
        for _ in range(steps):
            powers.append(powers[-1] * a)
        traces = np.stack([power.sum(axis=1) for power in powers], axis=1)  # (L, T + 1)
        rest = 1 - (traces + unpenalised) / n
        # of all directions outside of the eigenvectors, as one row
        ends = np.full((len(lams), 1), max(n - len(eigenvalues) - unpenalised, 0) ** 0.5)
        # 1 - a^t = (1 - a) (1 + a + .. + a^(t-1))
        sums = np.cumsum(np.stack(powers[:steps], axis=-1), axis=-1) * complement[..., None]
        columns = []
        for j in range(1, steps):
            change = (powers[j] * complement).sum(axis=1) / n  # rest[j + 1] - rest[j]
            lift = -change / (rest[:, j] * rest[:, j + 1])
            inside = (
                powers[j] * complement / rest[:, j + 1, None] + sums[..., j - 1] * lift[:, None]
            )
            columns.append(np.concatenate([inside, ends * lift[:, None]], axis=1))
        first = np.concatenate([complement, ends], axis=1) / rest[:, 1, None]
        return cls(lams, np.stack([*columns, first], axis=-1))

    def losses(self, variances: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Smallest loss over lam of 1..T steps, among those of :func:`fair_lams`.

        Parameters
        ----------
        variances : array (k + 1,)
            Expected squares, > 0.
        squares : array (S, k + 1)
            Of S draws, in units of them.

        Returns
        -------
        array (S, T)
            Not increasing.

        Notes
        -----
        S k L T^2 multiplications, as one matrix product for each lam.
        """
        T = self.values.shape[-1]
        lefts = np.empty((len(self.values), len(squares), T))
        upper, missing = np.triu_indices(T), max(self.values.shape[-1] - self.values.shape[1], 0)
        for values, left in zip(self.values, lefts, strict=True):
            columns = np.pad(values * np.sqrt(variances)[:, None], ((0, missing), (0, 0)))
            Q, R = np.linalg.qr(columns)
            Q = Q[: values.shape[0]]
            gram = np.empty((len(squares), T, T))
            gram[:, upper[0], upper[1]] = squares @ (Q[:, upper[0]] * Q[:, upper[1]])
            gram[:, upper[1], upper[0]] = gram[:, upper[0], upper[1]]
            size = np.trace(gram, axis1=1, axis2=2)[:, None, None]
            gram += (1e-13 * size + 1e-290) * np.eye(T)  # targets with zeros may leave it singular
            error = np.linalg.cholesky(gram).transpose(0, 2, 1) @ R[:, -1]  # (S, T)
            norms = np.linalg.norm(R[:, :-1], axis=0)
            dependent = np.abs(np.diagonal(R)[:-1]) <= DEPENDENT * norms
            if dependent.any():  # what rounding made of it explains nothing
                first = int(np.argmax(dependent))
                error[:, -1] = np.sqrt(np.sum(error[:, first:] ** 2, axis=1))
                error[:, first:-1] = 0.0
            # the last column, below the first t - 1 rows, is what t steps leave
            left[...] = np.cumsum((error * error)[:, ::-1], axis=1)[:, ::-1]
        unfair = ~fair_lams(self.lams, self.lams[lefts[..., 0].argmin(axis=0)])  # (L, S)
        lefts[..., 1:][unfair] = np.inf
        return np.asarray(lefts.min(axis=0))


def fair_lams(lams: np.ndarray, ordinary: Any) -> np.ndarray:
    """Which lam (L,) are tried with more steps, beside the best of the ordinary fit (S,): (L, S).

    Not those below a quarter of it. Weights above 1 want a larger lam, those below 1 a smaller one: alpha =
    0 keeps half of the part of the targets of which ridge keeps half, if its lam is (2^(1/T) - 1) times as
    large, a fifth for four steps. Still smaller ones nearly interpolate, and weights that tell such fits
    apart fit noise.
    """
    return np.asarray(lams[:, None] >= FAIR * np.atleast_1d(ordinary))


def enough_steps(
    eigenvalues: np.ndarray,
    squares: np.ndarray,
    columns: GcvColumns,
    *,
    lam: float,
    degrees: np.ndarray,
    levels: tuple[float, float] = LEVELS,
    draws: int = DRAWS,
) -> tuple[int, np.ndarray]:
    """The fewest steps that are enough: no larger number saves more than chance does.

    Parameters
    ----------
    eigenvalues : array (k,)
    squares : array (k + 1,)
        Mean over outputs of Z^2, and of what is outside, for each of its n - k directions.
    columns : GcvColumns
        Of T steps.
    lam : float
        A ridge to begin with.
    degrees : array (k + 1,)
        Degrees of freedom of each: the number of outputs as if independent, of the last times n - k.
    levels : pair of floats
        Chance of two steps where one is enough, and of too many where two are not.
    draws : int
        Of the null; with a seed of their own, so that the answer is always the same.

    Returns
    -------
    steps : int
    chances : array (T - 1,)
        For 1, 2, .. steps the chance that more would seem to save as much if these were enough; NaN
        behind the answer.
    """
    T = columns.values.shape[-1]
    chances = np.full(T - 1, np.nan)
    if not squares.any():
        return 1, chances
    delta = np.append(eigenvalues, 0.0)
    count = min(T - 1, int(degrees.sum()) // 10)
    spikes, lam = _spikes(delta, squares, degrees, columns.lams, count=count, lam=lam)
    for t in range(1, T):
        variances, drawn = _null(delta, squares, degrees, lam, spikes[: t - 1], draws=draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = np.log(columns.losses(variances, np.vstack([squares / variances, drawn])))
            saved = np.nan_to_num(losses[:, t - 1, None] - losses[:, t:])  # (S + 1, T - t)
        # of the next numbers of steps the share of draws that save as much, then the smallest of them
        shares = [_exceeding(one) for one in saved[:, :AHEAD].T]
        least = np.min(shares, axis=0)
        chances[t - 1] = np.mean(least <= least[0])
        if not chances[t - 1] <= levels[min(t, 2) - 1]:
            return t, chances
    return T, chances


def _spikes(
    delta: np.ndarray,
    squares: np.ndarray,
    degrees: np.ndarray,
    lams: np.ndarray,
    *,
    count: int,
    lam: float,
) -> tuple[np.ndarray, float]:
    """The eigenvectors that ridge explains least, the worst first, and the likeliest ridge of the rest."""
    present = degrees > 0
    # the median of a chi-square over its degrees, of Wilson and Hilferty
    typical = (1 - 2 / (9 * np.maximum(degrees[present], 1.0))) ** 3
    for _ in range(ROUNDS):
        complement = lam / (delta + lam)
        noise = _median((complement * squares)[present] / typical, degrees[present])
        ratio = complement * squares / max(noise, 1e-300)
        # half the deviance of a variance that is too small; those that are too large cost little
        excess = np.where(ratio > 1, degrees * (ratio - 1 - np.log(np.maximum(ratio, 1.0))), 0.0)
        spikes = np.argsort(-excess, kind="stable")[:count]
        others = degrees.copy()
        others[spikes[excess[spikes] > DEVIANT]] = 0.0
        lam = float(lams[np.argmin([_surprise(delta, squares, others, one) for one in lams])])
    return spikes, lam


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted: a scale of most, whatever a few are."""
    order = np.argsort(values)
    half = np.searchsorted(np.cumsum(weights[order]), 0.5 * np.sum(weights))
    return float(values[order][min(half, len(values) - 1)])


def _surprise(delta: np.ndarray, squares: np.ndarray, degrees: np.ndarray, lam: float) -> float:
    """-2 log of the likelihood of Z_j ~ N(0, noise (1 + delta_j / lam)) with its best noise."""
    complement, total = lam / (delta + lam), max(float(np.sum(degrees)), 1e-300)
    noise = np.sum(degrees * complement * squares) / total
    return float(total * np.log(max(noise, 1e-300)) - np.sum(degrees * np.log(complement)))


def _null(
    delta: np.ndarray,
    squares: np.ndarray,
    degrees: np.ndarray,
    lam: float,
    spikes: np.ndarray,
    *,
    draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Expected squares (k + 1,), and draws (S, k + 1) in units of them.

    The ridge is known with the error that its likelihood leaves, and so each draw has its own.
    """
    rng, present = np.random.default_rng(0), degrees > 0
    others = degrees.copy()
    others[spikes] = 0.0
    total = max(float(np.sum(others)), 1e-300)

    def variances_of(ridge: float) -> np.ndarray:
        complement = ridge / (delta + ridge)
        noise = max(float(np.sum(others * complement * squares)) / total, 1e-300)
        variances = noise / complement
        variances[spikes] = np.maximum(squares[spikes], variances[spikes])
        return variances

    variances, a = variances_of(lam), delta / (delta + lam)
    centred = a - np.sum(others * a) / total
    information = 0.5 * float(np.sum(others * centred * centred))
    spread = min(information**-0.5, WIDEST) if information > 0 else WIDEST
    drawn = np.zeros((draws, len(squares)))
    for row, shift in zip(drawn, spread * rng.standard_normal(draws), strict=True):
        row[present] = rng.chisquare(degrees[present]) / degrees[present]
        row *= variances_of(lam * np.exp(shift)) / variances
        row[spikes] = squares[spikes] / variances[spikes]  # their signal is what it is
    return variances, drawn


def _exceeding(values: np.ndarray) -> np.ndarray:
    """Share of values that are at least as large as each."""
    order = np.sort(values)
    return 1 - np.searchsorted(order, values, side="left") / len(values)
