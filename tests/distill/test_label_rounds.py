"""Rounds of made labels for each eigenvalue: against sums over every label that was ever drawn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdgpu.distill.label_rounds import (
    LabelScheme,
    best_shares,
    label_limit,
    label_rounds,
    least_squares_share,
)

SCHEMES = [LabelScheme(keep, fresh) for keep in (False, True) for fresh in (False, True)]


def sums(a, w, scheme, rounds):
    """1 - p, q and r of each round, from the coefficient of every label (truth, E_1 .., N_2 ..) by itself."""
    labels, found, targets = [], [], np.zeros(1 + 2 * rounds)
    for t in range(rounds):
        own = np.zeros(1 + 2 * rounds)
        if t == 0:
            own[[0, 1]] = 1.0
        else:
            own[0] = w
            own[1 + (t if scheme.fresh else 0)] = w
            own += (1 - w) * a * targets
            own[1 + rounds + t] += 1 - w
        labels.append(own)
        targets = np.mean(labels, axis=0) if scheme.accumulate else own
        noise = targets**2
        found.append([1 - targets[0], noise[1 : 1 + rounds].sum(), noise[1 + rounds :].sum()])
    return np.array(found)


@settings(max_examples=200, deadline=None)
@given(
    a=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
    w=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    scheme=st.sampled_from(SCHEMES),
    rounds=st.integers(1, 12),
)
def test_moments_are_those_of_every_label(a, w, scheme, rounds):
    moments = label_rounds(np.array([a]), np.array([1 - a]), np.array([w]), scheme)
    found = [
        (x.lost[0], x.true_noise[0], x.made_noise[0]) for x in itertools.islice(moments, rounds)
    ]
    np.testing.assert_allclose(found, sums(a, w, scheme, rounds), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("a", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("w", [0.0, 0.2, 0.7, 1.0])
def test_many_rounds_come_to_the_limit(a, w, scheme):
    moments = label_rounds(np.array([a]), np.array([1 - a]), np.array([w]), scheme)
    limit = label_limit(np.array([a]), np.array([1 - a]), np.array([w]), scheme)
    last = next(itertools.islice(moments, 20_000, None))
    # what is gone of kept labels goes like t^-(1 - (1 - w) a), but for least squares without true ones
    rate = 1 - (1 - w) * a
    tolerance = max(1e-3, 2 * 20_000**-rate) if scheme.accumulate and rate > 0 else 1e-3
    for name in ("lost", "true_noise", "made_noise"):
        wanted = getattr(limit, name)[0]
        found = getattr(last, name)[0]
        if math.isinf(wanted):
            assert found > 1e4
        else:
            np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("ratio", [1e-6, 0.3, 1.0, 4.0, 1e6])
def test_the_best_share_of_least_squares(ratio):
    """Of endless rounds: w^2 = ratio (1 - w), as a search finds it."""

    def risk(w):
        limit = label_limit(np.ones(1), np.zeros(1), w[..., None], LabelScheme())
        with np.errstate(invalid="ignore"):
            return (limit.true_noise + ratio * limit.made_noise)[..., 0]

    found = float(best_shares(risk, 1)[0])
    share = least_squares_share(ratio)
    assert abs(found - share) < 1e-6
    np.testing.assert_allclose(share**2, ratio * (1 - share), rtol=1e-9)


def test_the_best_share_is_found_at_the_ends_too():
    def risk(w):
        return np.stack([w[:, 0], -w[:, 1], (w[:, 2] - 0.123) ** 2, 0 * w[:, 3]], axis=1)

    # all true where no share is better than another
    np.testing.assert_allclose(best_shares(risk, 4), [0.0, 1.0, 0.123, 1.0], atol=1e-8)
