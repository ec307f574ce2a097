"""Every rule on real data, against what it claims to minimise."""

import numpy as np
import pytest

import sdgpu
from sdgpu.study.real_data.datasets import load, split
from sdgpu.study.theory.selection_rules import select


@pytest.fixture(scope="module")
def found():
    data = split(load("diabetes"))
    kernel = sdgpu.Gaussian(0.5 / sdgpu.median_distance(data.X_train) ** 2)
    return {c.rule: c for c in select(data, kernel, np.geomspace(1e-4, 1, 12) * 264, steps=4)}


def test_the_oracle_is_best_and_the_rules_come_near(found):
    oracle = found["oracle"]
    assert oracle.best.mse == pytest.approx(oracle.test_mse)
    for choice in found.values():
        assert oracle.test_mse <= choice.test_mse + 1e-12
        assert choice.test_mse < 1.1 * oracle.test_mse


def test_each_rule_minimises_its_own_loss(found):
    assert found["leave-one-out"].best.mse <= found["ridge by leave-one-out"].best.mse
    assert found["GCV"].best.value <= found["one-shot"].best.value * 1.01
    assert found["one-shot"].best.step == 2
    assert set(found) == {
        "oracle",
        "validation rows",
        "leave-one-out",
        "ridge by leave-one-out",
        "GCV",
        "one-shot",
    }
