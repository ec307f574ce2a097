"""The loss (18) against its two terms, and the penalties against autograd."""

import math

import pytest
import torch
from torch import nn

from sdgpu.nn.loss import (
    add_script_gradient,
    data_loss,
    distillation_loss,
    mixed_target,
    penalised,
    penalty,
    predictions,
)
from tests.nn.problems import convnet, mlp

N, C = 7, 4


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(N, C, generator=generator, dtype=torch.float64, requires_grad=True)
    Y = nn.functional.one_hot(torch.randint(C, (N,), generator=generator), C).double()
    teacher = torch.randn(N, C, generator=generator, dtype=torch.float64).softmax(dim=1)
    return logits, Y, teacher


@pytest.mark.parametrize("alpha", [-0.7, 0.0, 0.3, 1.0, 2.5])
def test_one_mixed_target_is_the_two_term_loss(problem, alpha):
    logits, Y, teacher = problem
    one = data_loss(logits, mixed_target(Y, teacher, alpha))
    two = distillation_loss(logits, Y, teacher, alpha)
    constant = alpha * (1 - alpha) / 2 * (Y - teacher).square().sum(dim=1).mean()
    torch.testing.assert_close(two - one, constant, rtol=1e-13, atol=1e-14)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (one, two)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-15)


def test_the_mean_of_half_the_frobenius_norm(problem):
    logits, Y, _ = problem
    p = torch.softmax(logits / 3, dim=1)
    torch.testing.assert_close(
        data_loss(logits, Y, temperature=3.0), 0.5 * ((p - Y) ** 2).sum() / N, rtol=1e-14, atol=0
    )
    torch.testing.assert_close(
        data_loss(logits, Y, activation="identity"),
        0.5 * ((logits - Y) ** 2).sum() / N,
        rtol=1e-14,
        atol=0,
    )


@pytest.mark.parametrize("alpha", [0.4, 1.7])
def test_cross_entropy_is_linear_in_the_target_even_outside_the_simplex(problem, alpha):
    logits, Y, teacher = problem
    name = "cross-entropy"
    one = data_loss(logits, mixed_target(Y, teacher, alpha), loss=name)
    two = alpha * data_loss(logits, Y, loss=name) + (1 - alpha) * data_loss(
        logits, teacher, loss=name
    )
    torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(
        data_loss(logits, Y, loss=name),
        nn.functional.cross_entropy(logits, Y.argmax(dim=1)),
        rtol=1e-14,
        atol=0,
    )


def test_a_stack_has_one_loss_for_each_member(problem):
    logits, Y, teacher = problem
    both = data_loss(torch.stack([logits, 2 * logits]), torch.stack([Y, teacher]))
    torch.testing.assert_close(both[0], data_loss(logits, Y), rtol=1e-14, atol=0)
    torch.testing.assert_close(both[1], data_loss(2 * logits, teacher), rtol=1e-14, atol=0)


def test_hard_targets_are_the_largest_entries(problem):
    _, Y, teacher = problem
    hard = mixed_target(Y, teacher, 0.0, hard=True)
    assert torch.equal(hard.argmax(dim=1), teacher.argmax(dim=1))
    assert torch.equal(hard.sum(dim=1), torch.ones(N, dtype=torch.float64))


def test_half_precision_is_widened():
    assert predictions(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_penalty_covers_what_it_says():
    model = convnet()
    assert set(penalised(model)) == {name for name, _ in model.named_parameters()}
    assert penalised(model, "weights") == ["0.weight", "5.weight"]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    value = penalty(model, 0.3).detach()
    torch.testing.assert_close(value, 0.15 * flat @ flat, rtol=1e-13, atol=0)
    assert float(penalty(model, 0.3, form="decoupled")) == 0


def test_the_penalty_of_the_script_is_a_norm_that_is_not_squared():
    model = mlp()
    value = penalty(model, 0.3, form="paper-script")
    expected = 0.3 * sum(float(p.detach().norm()) for p in model.parameters())
    assert math.isclose(float(value.detach()), expected, rel_tol=1e-13)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    add_script_gradient(model, 0.3)
    for p, wanted in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, Y, t: mixed_target(Y, t, float("nan")), "alpha"),
        (lambda z, Y, t: mixed_target(Y, t[:2], 0.5), r"shape \(2, 4\)"),
        (lambda z, Y, t: data_loss(z, Y[:, :3]), r"shape \(7, 3\)"),
        (lambda z, Y, t: data_loss(z, Y, loss="mse"), "loss='mse'"),
        (lambda z, Y, t: data_loss(z, Y, loss="cross-entropy", activation="identity"), "softmax"),
        (lambda z, Y, t: predictions(z, temperature=0.0), "temperature"),
        (lambda z, Y, t: predictions(z, activation="relu"), "activation"),
    ],
)
def test_bad_input_is_named(problem, call, message):
    with pytest.raises(ValueError, match=message):
        call(*problem)
