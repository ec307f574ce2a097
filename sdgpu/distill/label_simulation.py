"""Rounds of made labels, drawn: every repetition distils labels of its own, in the eigenbasis.

The rotation of independent Gaussian noise is independent Gaussian noise, so that V'E is drawn in place of
E, and a round costs k numbers in place of a solve. Nothing is used of the closed forms of
:mod:`sdgpu.distill.label_rounds`: labels are made, mixed, averaged and fitted one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sdgpu.distill.label_rounds import LabelScheme

__all__ = ["GROUPS", "DrawnRisk", "LabelDraws", "drawn_risk"]

GROUPS = 50


@dataclass(frozen=True, eq=False)
class DrawnRisk:
    """Means over repetitions and their standard errors, (A, R) each."""

    risk: np.ndarray
    risk_se: np.ndarray
    bias: np.ndarray
    bias_se: np.ndarray
    variance: np.ndarray
    variance_se: np.ndarray


@dataclass(frozen=True, eq=False)
class LabelDraws:
    """What is drawn at one lam.

    Attributes
    ----------
    a : array (k,)
        Shrinkage of the fit.
    truth : array (k, c)
        V'F.
    weights : array (A,)
        Shares of true labels.
    scheme : LabelScheme
    noise, made_noise : arrays (c,)
        Standard deviations of the noise of true and of made labels.
    """

    a: np.ndarray
    truth: np.ndarray
    weights: np.ndarray
    scheme: LabelScheme
    noise: np.ndarray
    made_noise: np.ndarray

    def rounds(self, repetitions: int, rounds: int, seed: list[int]) -> Iterator[np.ndarray]:
        """V'u of the targets of rounds 1..R, (A, b, k, c) each."""
        draw, shape = np.random.default_rng(seed), (repetitions, *self.truth.shape)
        a, w = self.a[:, None], self.weights[:, None, None, None]
        true = self.truth + self.noise * draw.standard_normal(shape)
        total = np.broadcast_to(true, (len(self.weights), *shape))
        targets = total
        for t in range(1, rounds + 1):
            yield targets
            if self.scheme.fresh:
                true = self.truth + self.noise * draw.standard_normal(shape)
            made = a * targets + self.made_noise * draw.standard_normal(shape)
            labels = w * true + (1 - w) * made
            total = total + labels if self.scheme.accumulate else labels
            targets = total / (t + 1) if self.scheme.accumulate else total


def drawn_risk(
    draws: LabelDraws,
    scale: np.ndarray,
    functions: np.ndarray | None,
    wanted: np.ndarray,
    *,
    outside: float,
    repetitions: int,
    rounds: int,
    seed: int,
) -> DrawnRisk:
    """Risk, squared bias and variance of every round, measured.

    Parameters
    ----------
    draws : LabelDraws
    scale : array (k,)
        Coefficients of predictions over those of targets: a for training rows, else the dual filter.
    functions : array (m, k) or None
        Values of the eigenvectors' functions at the rows to predict at; None for the training rows.
    wanted : array (m, c), or (k, c) for the training rows
        The truth there.
    outside : float
        Squares of the truth that no eigenvector reaches.
    repetitions : int
        >= 4.
    rounds : int
    seed : int

    Notes
    -----
    A R k c numbers for each repetition, m k more for new rows. Repetitions go in up to 50 groups; bias and
    variance are estimated without bias in each, and their errors are those of the mean over the groups.
    """
    groups = min(GROUPS, repetitions // 2)
    sizes = [len(part) for part in np.array_split(np.arange(repetitions), groups)]
    # by group: sums of losses and of their squares, bias, variance
    found = np.empty((4, groups, len(draws.weights), rounds))
    for g, b in enumerate(sizes):
        for t, targets in enumerate(draws.rounds(b, rounds, [seed, g])):
            values = scale[:, None] * targets  # (A, b, k, c)
            if functions is not None:
                values = functions @ values
            errors = values - wanted
            losses = np.einsum("abkc,abkc->ab", errors, errors) + outside
            mean = errors.mean(axis=1)
            square = np.einsum("akc,akc->a", mean, mean) + outside
            variance = (losses.mean(axis=1) - square) * b / (b - 1)
            found[:, g, :, t] = (
                losses.sum(axis=1),
                np.square(losses).sum(axis=1),
                square - variance / b,
                variance,
            )
    sums, squares = found[0].sum(axis=0), found[1].sum(axis=0)
    risk = sums / repetitions
    spread = np.maximum(squares / repetitions - risk * risk, 0.0)
    risk_se = np.sqrt(spread / (repetitions - 1))
    (bias, bias_se), (variance, variance_se) = (_over_groups(x) for x in found[2:])
    return DrawnRisk(risk, risk_se, bias, bias_se, variance, variance_se)


def _over_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
