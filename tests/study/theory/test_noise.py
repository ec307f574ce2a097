"""Noise that is what it says: how many rows, which ones, and where they go."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import sdgpu
from sdgpu.study.theory.noise import (
    adversarial,
    class_groups,
    gaussian,
    hierarchical,
    left_out_scores,
    noise_std,
    symmetric,
    symmetric_moments,
)

GROUPS = ((0, 3), (1, 2, 4))


@pytest.fixture
def labels(rng):
    return rng.integers(0, 5, 400)


def kinds(rate, seed=0, **keywords):
    """The two random kinds as functions of labels alone."""
    return (
        lambda Y: symmetric(Y, rate, seed, **keywords),
        lambda Y: hierarchical(Y, rate, GROUPS, seed, **keywords),
    )


@pytest.mark.parametrize("rate", [0.0, 0.13, 0.5, 1.0])
def test_exactly_the_share_of_rows_gets_a_wrong_label(labels, rate):
    for make in kinds(rate):
        found = make(labels)
        assert found.rows.sum() == round(rate * 400)
        assert_array_equal(labels != found.Y, found.rows)
        assert set(found.Y) <= set(range(5))


def test_one_hot_rows_and_labels_are_the_same_noise(labels):
    Y = np.eye(5, dtype=np.float32)[labels]
    for make in kinds(0.4):
        found, coded = make(Y), make(labels)
        assert found.Y.dtype == np.float32
        assert coded.Y.dtype == labels.dtype
        assert_array_equal(found.Y, np.eye(5)[coded.Y])
        assert_array_equal(found.rows, coded.rows)


def test_nothing_in_place_and_seeds_decide(labels):
    Y = np.eye(5)[labels]
    Y.flags.writeable = False
    for first, second, other in zip(kinds(0.5), kinds(0.5), kinds(0.5, seed=1), strict=True):
        assert_array_equal(first(Y).Y, second(Y).Y)
        assert (first(Y).Y != other(Y).Y).any()
    rng = np.random.default_rng(0)
    draws = [symmetric(labels, 0.5, rng).Y for _ in range(2)]
    assert (draws[0] != draws[1]).any()  # a generator goes on


def test_new_classes_are_uniform_over_the_others():
    """Counts of 40,000 draws within four standard deviations of a multinomial."""
    labels = np.full(40_000, 2)
    for make, others in zip(kinds(1.0, classes=5), ((0, 1, 3, 4), (1, 4)), strict=True):
        counts = np.bincount(make(labels).Y, minlength=5)
        p = 1 / len(others)
        assert set(np.flatnonzero(counts)) == set(others)
        assert_allclose(counts[list(others)], 40_000 * p, atol=4 * np.sqrt(40_000 * p * (1 - p)))


def test_hierarchical_noise_stays_in_its_group(labels):
    found = hierarchical(labels, 1.0, GROUPS).Y
    group = np.array([0, 1, 1, 0, 1])
    assert_array_equal(group[found], group[labels])
    assert (found != labels).all()


def test_independent_rows_have_a_binomial_count(labels):
    counts = [symmetric(labels, 0.3, seed, iid=True).rows.sum() for seed in range(200)]
    assert_allclose(np.mean(counts), 120, atol=4 * np.sqrt(400 * 0.21 / 200))
    assert_allclose(np.var(counts), 400 * 0.21, rtol=0.5)


def test_moments_are_those_of_the_draws(labels):
    Y, rng = np.eye(5)[labels[:40]], np.random.default_rng(0)
    samples = np.array([symmetric(Y, 0.3, rng, iid=True).Y for _ in range(4000)])
    mean, variance = symmetric_moments(Y, 0.3)
    assert_allclose(samples.mean(axis=0), mean, atol=5 * 0.5 / np.sqrt(4000))
    # 160,000 squares bounded by 1
    assert_allclose(np.mean((samples - mean) ** 2), variance, atol=5 * 0.5 / np.sqrt(40 * 4000))
    assert_allclose(mean.sum(axis=1), 1)


def test_adversarial_takes_the_smallest_margins():
    scores = np.array([[3.0, 1, 0], [0, 2, 1.5], [1, 4, 0], [0.2, 0.1, 0.3]])
    labels = np.array([0, 1, 0, 2])  # margins 2, 0.5, -3, 0.1
    for rate, rows in ((0.25, [2]), (0.5, [2, 3]), (0.75, [1, 2, 3])):
        found = adversarial(labels, rate, scores)
        assert_array_equal(np.flatnonzero(found.rows), rows)
        assert_array_equal(found.Y[found.rows], np.array([1, 2, 1, 0])[rows])
        assert_array_equal(found.Y[~found.rows], labels[~found.rows])
    tied = adversarial(np.zeros(4, dtype=int), 0.5, np.zeros((4, 3)), classes=3)
    assert_array_equal(tied.Y, [1, 1, 0, 0])  # the first rows, and the first other class


def test_scores_have_not_seen_their_row(rng):
    X, Y = rng.standard_normal((30, 2)), np.eye(3)[rng.integers(0, 3, 30)]
    kernel, lam = sdgpu.Gaussian(0.5), 0.1
    scores = left_out_scores(X, Y, kernel, lam)
    others = np.arange(30) != 7
    K = kernel(X)
    dual = np.linalg.solve(K[np.ix_(others, others)] + lam * np.eye(29), Y[others])
    assert_allclose(scores[7], K[7, others] @ dual, rtol=1e-9, atol=1e-12)
    assert adversarial(Y, 0.2, scores).rows.sum() == 6


def test_groups_are_near_classes(rng):
    centres = np.array([[0.0, 0], [0, 1], [10, 0], [10, 1], [30, 30]])
    labels = np.repeat(np.arange(5), 20)
    X = centres[labels] + 0.01 * rng.standard_normal((100, 2))
    assert class_groups(X, labels, 2) == ((0, 1, 2, 3, 4),)  # 4 is alone, and joins the others
    assert class_groups(X, labels, 3) == ((0, 1), (2, 3, 4))
    assert class_groups(X, np.eye(5)[labels], 1) == ((0, 1, 2, 3, 4),)
    assert hierarchical(labels, 1.0, class_groups(X, labels, 5)).rows.all()


def test_gaussian_noise_has_its_level(rng):
    Y = 3 * rng.standard_normal((20_000, 2)) + 5
    for level, found in (
        (0.5, gaussian(Y, 1, std=0.5)),
        (noise_std(Y, 9.0), gaussian(Y, 1, snr=9.0)),
    ):
        noise = found.Y - Y
        assert_allclose(noise.std(), level, rtol=4 / np.sqrt(2 * 40_000))
        assert_allclose(noise.mean(), 0, atol=4 * level / np.sqrt(40_000))
        assert found.rows.all()
    assert_allclose(noise_std(Y, 9.0), 1.0, rtol=0.02)
    flat = gaussian(Y[:, 0].astype(np.float32), std=0.0)
    assert_array_equal(flat.Y, Y[:, 0].astype(np.float32))
    assert flat.Y.dtype == np.float32
    assert not flat.rows.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda Y: symmetric(Y, 1.1), ValueError, r"rate=1.1 must be in \[0, 1\]"),
        (lambda Y: symmetric(Y, -0.1), ValueError, r"rate=-0.1 must be in"),
        (lambda Y: symmetric(Y, "a"), TypeError, "rate='a' must be a real number"),
        (lambda Y: symmetric(0 * Y, 0.1), ValueError, "one class only"),
        (lambda Y: symmetric(np.ones((4, 1)), 0.1), ValueError, "one class only"),
        (lambda Y: symmetric(Y - 1, 0.1), ValueError, "label -1 is out of range"),
        (lambda Y: symmetric(Y, 0.1, classes=3), ValueError, "label 4 is out of range"),
        (lambda Y: symmetric(Y / 2, 0.1), TypeError, "labels must be whole numbers"),
        (lambda Y: symmetric(np.eye(5)[Y] / 2, 0.1), ValueError, "row 0 of Y is not one-hot"),
        (lambda Y: symmetric(np.eye(5)[Y], 0.1, classes=4), ValueError, "classes=4, but Y has 5"),
        (lambda Y: symmetric(np.zeros((2, 2, 2)), 0.1), ValueError, "got shape"),
        (
            lambda Y: hierarchical(Y, 0.1, [[0, 1], [2, 3]]),
            ValueError,
            r"groups miss classes \[4\]",
        ),
        (
            lambda Y: hierarchical(Y, 0.1, [[0, 1], [2, 3, 4, 9]]),
            ValueError,
            r"unknown classes \[9\]",
        ),
        (
            lambda Y: hierarchical(Y, 0.1, [[0, 1], [1, 2, 3, 4]]),
            ValueError,
            r"repeat classes \[1\]",
        ),
        (lambda Y: hierarchical(Y, 0.1, [[0], [1, 2, 3, 4]]), ValueError, r"\(0,\) on its own"),
        (lambda Y: adversarial(Y, 0.1, np.zeros((3, 5))), ValueError, "scores have shape"),
        (lambda Y: adversarial(Y, 0.1, np.full((400, 5), np.nan)), ValueError, "scores has"),
        (lambda Y: gaussian(Y), ValueError, "give exactly one"),
        (lambda Y: gaussian(Y, std=1, snr=1), ValueError, "give exactly one"),
        (lambda Y: gaussian(Y, std=-1), ValueError, "std=-1 must be >= 0"),
        (lambda Y: gaussian(Y, snr=0), ValueError, "snr=0 must be > 0"),
        (lambda Y: gaussian(0 * Y, snr=1), ValueError, "no signal"),
        (lambda Y: class_groups(np.zeros((3, 2)), Y, 2), ValueError, "X has 3 rows, but Y has 400"),
        (lambda Y: class_groups(np.zeros((400, 2)), 2 * Y, 2), ValueError, "class 1 has no rows"),
        (
            lambda Y: class_groups(np.zeros((400, 2)), Y, 0),
            ValueError,
            "count=0 must be at least 1",
        ),
    ],
)
def test_bad_input(labels, call, error, message):
    with pytest.raises(error, match=message):
        call(labels)
