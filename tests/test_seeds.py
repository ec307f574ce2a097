"""No test without a seed: random numbers do not depend on what ran before."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

DRAWN = torch.rand(()).item()  # as the module is imported


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


@pytest.fixture(scope="module")
def shared():
    return draw()


@pytest.fixture
def own():
    return draw()


@pytest.fixture(scope="module")
def seen():
    return set()


@pytest.mark.parametrize("turn", range(3))
def test_draws_do_not_depend_on_the_order(turn, shared, own, seen):
    first = draw()
    seen.add(first)
    assert seen == {first}
    assert shared == own == first
    assert first[2] == DRAWN


def test_hypothesis_repeats_itself():
    assert settings().derandomize
