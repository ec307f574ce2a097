"""Accuracy and calibration of predictions of classes, against their definitions row by row."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.selection.class_scores import SCORES, bin_gaps, class_scores, probabilities, score_terms


def by_definition(P, labels):
    """The four scores of probabilities (m, c), in a loop."""
    m, bins = len(labels), np.zeros(15)
    right, nll, brier = [], [], []
    for p, label in zip(P.tolist(), labels, strict=True):
        right.append(p.index(max(p)) == label)
        nll.append(-math.log(max(p[label], 1e-6)))
        brier.append(sum((value - (j == label)) ** 2 for j, value in enumerate(p)))
        bins[min(int(15 * max(p)), 14)] += right[-1] - max(p)
    return np.mean(right), np.mean(nll), np.mean(brier), np.abs(bins).sum() / m


def test_scores_are_their_definitions_for_any_leading_axes():
    rng = np.random.default_rng(0)
    F, labels = rng.uniform(-0.3, 1.3, (2, 3, 40, 4)), rng.integers(4, size=40)
    found = class_scores(probabilities(F), labels)
    assert tuple(found) == SCORES
    for i in np.ndindex(2, 3):
        wanted = by_definition(probabilities(F[i]), labels)
        assert 0 < wanted[0] < 1
        assert_allclose([found[name][i] for name in SCORES], wanted, rtol=1e-12)


@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_probabilities_are_clipped_and_add_up_to_one(axis):
    F = np.random.default_rng(1).uniform(-2, 3, (2, 4, 5))
    clipped = np.minimum(np.maximum(F, 1e-6), 1.0)
    found = probabilities(F, axis)
    assert_allclose(found, clipped / clipped.sum(axis=axis, keepdims=True), rtol=1e-14)
    assert_allclose(found.sum(axis=axis), 1, rtol=1e-14)


def test_the_class_is_that_of_the_values_and_the_first_of_equal_ones(backend):
    #               row 0  1    2    3    4
    values = np.array(
        [[2.0, 0.1, 0.5, 0.3, 0.0], [0.3, 3.0, 0.5, 0.3, 0.0], [0.1, 0.2, 0.1, 0.4, 0.0]]
    )
    # of the probabilities row 0 would be class 2
    P = np.array(
        [[0.2, 0.1, 0.4, 0.3, 1 / 3], [0.2, 0.8, 0.4, 0.3, 1 / 3], [0.6, 0.1, 0.2, 0.4, 1 / 3]]
    )
    for labels, wanted in (
        ([0, 1, 0, 2, 0], [1, 1, 1, 1, 1]),
        ([2, 0, 1, 0, 1], [0, 0, 0, 0, 0]),
        ([0, 2, 2, 2, 2], [1, 0, 0, 1, 0]),
    ):
        truth = np.eye(3)[labels].T
        for rows in ([0, 1, 2, 3, 4], [1, 3]):  # with and without equal ones
            own = [backend.asarray(np.ascontiguousarray(a[:, rows])) for a in (values, P, truth)]
            right, nll, brier, confidence = (to_numpy(a) for a in score_terms(*own))
            assert right.tolist() == [wanted[row] for row in rows]
            p = P[labels, np.arange(5)][rows]
            assert_allclose(nll, -np.log(p), rtol=1e-14)
            assert_allclose(brier, ((P - truth) ** 2).sum(axis=0)[rows], rtol=1e-13)
            assert_allclose(confidence, P.max(axis=0)[rows])


def test_a_class_without_probability_costs_the_logarithm_of_a_millionth():
    P = np.array([[0.0, 1.0], [1.0, 0.0]])
    found = class_scores(P, np.array([0, 0]))
    assert_allclose(found["nll"], -math.log(1e-6) / 2, rtol=1e-14)
    assert (found["accuracy"], found["brier"], found["ece"]) == (0.5, 1.0, 0.5)


def test_there_are_fifteen_equal_bins_and_certainty_is_in_the_last():
    confidence = np.array([[0.0, 0.5 / 15, 1.5 / 15, 13.5 / 15, 14.5 / 15, 1.0]] * 2)
    right = np.array([[1.0, 0.0, 1.0, 0.0, 1.0, 1.0], [0.0] * 6])
    found = bin_gaps(right, confidence)
    wanted = np.zeros((2, 15))
    for row in range(2):
        for bin_, k in ((0, 0), (0, 1), (1, 2), (13, 3), (14, 4), (14, 5)):
            wanted[row, bin_] += right[row, k] - confidence[row, k]
    assert_allclose(found, wanted, rtol=1e-14, atol=1e-15)
