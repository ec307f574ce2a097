"""Distilled networks beside the kernels that they should tend to."""

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.study.pictures import plot_tangent
from sdgpu.study.theory.tangent import _Training, compare_tangent, wide_network
from tests.problems import assert_near


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 5))
    Y = np.stack([np.sin(X[:, 0]), X[:, 1] * 0.5], axis=1)
    return X[:30], Y[:30], X[30:], Y[30:]


@pytest.fixture(scope="module")
def found(data):
    options = {"lam": 3.0, "depth": 1, "alphas": [0.0, 0.4], "steps": 3, "seeds": (0, 1)}
    return [compare_tangent(*data, width=width, **options) for width in (64, 4096)]


def test_wider_networks_are_nearer_to_their_kernels(found):
    narrow, wide = (each.difference("empirical").mean() for each in found)
    assert wide < 0.3 * narrow  # like 1 / sqrt(width), 1/8
    assert wide < 0.05
    assert found[1].difference("infinite").mean() < 0.1


def test_the_kernels_are_those_of_the_engine(data, found):
    X, Y, new, _ = data
    network = wide_network(5, 2, width=64, depth=1, seed=0)
    path = sdgpu.fit(X, Y, sdgpu.EmpiricalNTK(network), lams=3.0, method="eigh").path(3.0, 0.4, 3)
    assert_near(found[0].empirical_test[0, 1], path.predict(new), rtol=1e-10)
    path = sdgpu.fit(X, Y, sdgpu.NTK(1), lams=3.0, method="eigh").path(3.0, 0.4, 3)
    assert_near(found[0].infinite_train[1], path.fitted, rtol=1e-10)


def test_step_one_is_shared_and_ends_at_a_minimum(data, found):
    assert_near(found[0].network_test[:, 0, 0], found[0].network_test[:, 1, 0])
    X, Y = data[:2]
    network = wide_network(5, 2, width=64, depth=1, seed=0)
    run = _Training(network, X, Y, lam=3.0, tol=1e-3, max_iterations=1000)
    theta, _ = run.first_fit

    def loss(values):
        errors = run.output(values, run.X) - run.start_outputs - run.Y
        moved = sum(float((values[k] - run.start[k]).square().sum()) for k in values)
        return float(errors.square().sum()) + 3.0 * moved

    best, generator = loss(theta), torch.Generator().manual_seed(1)
    for _ in range(20):
        other = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in theta.items()}
        assert loss(other) > best


def test_the_picture_and_the_errors(found, tmp_path):
    plot_tangent(found[0]).savefig(tmp_path / "tangent.png")
    assert found[0].test_error("network").shape == (2, 2, 3)
    assert found[0].test_mse("infinite").shape == (2, 3)


def test_bad_input(data):
    with pytest.raises(ValueError, match="seeds"):
        compare_tangent(*data, lam=1.0, seeds=())
    with pytest.raises(ValueError, match="lam"):
        compare_tangent(*data, lam=0.0)
    with pytest.raises(ValueError, match="width"):
        compare_tangent(*data, lam=1.0, width=0)
    with pytest.warns(UserWarning, match="max_iterations=11"):
        compare_tangent(*data, lam=0.01, width=32, steps=1, seeds=(0,), max_iterations=11)
