"""The loss (18) against its two terms, and the penalties against autograd."""

import math

import pytest
import torch
from torch import nn

from sdgpu.nn.config_checks import PENALTIES
from sdgpu.nn.loss import (
    add_script_gradient,
    data_loss,
    distillation_loss,
    mixed_target,
    penalised,
    penalty,
    predictions,
)
from sdgpu.nn.stacked import Stack
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


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_any_leading_axes_have_a_loss_each(loss):
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(2, 2, 3, N, C, generator=generator, dtype=torch.float64)
    found = data_loss(logits, target, loss=loss, temperature=1.5)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = data_loss(logits[i, j], target[i, j], loss=loss, temperature=1.5)
            torch.testing.assert_close(found[i, j], alone, rtol=1e-14, atol=0)


def test_predictions_are_at_the_temperature_1_unless_another_is_given(problem):
    logits = problem[0].detach()
    assert torch.equal(predictions(logits), logits.softmax(dim=1))
    assert torch.equal(predictions(logits, activation="identity"), logits)
    assert torch.equal(predictions(logits, temperature=2.0), (logits / 2).softmax(dim=1))


def test_a_row_of_a_hard_teacher_that_is_not_finite_stays_so(problem):
    _, Y, teacher = problem
    views = torch.stack([teacher, teacher.flip(0)])
    wanted = mixed_target(Y, views, 0.3, hard=True)
    assert wanted.isfinite().all()
    views[0, 2, 1], views[1, 5, 0], views[1, 6] = math.nan, math.inf, math.nan
    found = mixed_target(Y, views, 0.3, hard=True)
    lost = torch.zeros(2, N, dtype=torch.bool)
    lost[0, 2] = lost[1, 5] = lost[1, 6] = True
    assert found[lost].isnan().all()
    assert torch.equal(found[~lost], wanted[~lost])


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


@pytest.mark.parametrize("form", ["l2", "paper-script", "decoupled"])
@pytest.mark.parametrize("covers", ["all", "weights"])
def test_a_stack_has_the_penalties_and_gradients_of_its_members(form, covers):
    models = [mlp(seed) for seed in range(3)]
    stack = Stack(models)
    names = penalised(models[0], covers)
    assert [name.replace("/", ".") for name in penalised(stack, covers)] == names
    assert names == [
        name for name, p in models[0].named_parameters() if covers == "all" or p.ndim > 1
    ]
    found = penalty(stack, 0.3, form=form, covers=covers).detach()
    for model, value in zip(models, found, strict=True):
        chosen = [p.detach() for name, p in model.named_parameters() if name in names]
        wanted = {
            "l2": sum(0.15 * float(p.square().sum()) for p in chosen),
            "paper-script": sum(0.3 * float(p.norm()) for p in chosen),
            "decoupled": 0.0,
        }[form]
        assert math.isclose(float(value), wanted, rel_tol=1e-13)
    for parameter in stack.parameters():
        parameter.grad = torch.ones_like(parameter)
    add_script_gradient(stack, 0.3, covers=covers)
    for own, parameter in stack.named_parameters():
        name = own.replace("/", ".")
        for model, gradient in zip(models, parameter.grad, strict=True):
            p = model.get_parameter(name).detach()
            wanted = 1 + 0.3 * p / p.norm() * (name in names)
            torch.testing.assert_close(gradient, wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("form", PENALTIES)
def test_a_penalty_that_covers_nothing_is_zero(form):
    model = nn.Sequential(
        nn.Flatten(), nn.LayerNorm(16, dtype=torch.float64), nn.Unflatten(1, (4, 4))
    )
    assert penalised(model, "weights") == []
    assert penalty(model, 0.3, form=form, covers="weights").tolist() == 0.0
    assert penalty(Stack([model] * 2), 0.3, form=form, covers="weights").tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="decay"):
        penalty(model, -0.3, form=form, covers="weights")


def test_the_script_has_no_gradient_at_zero_and_none_of_what_is_frozen():
    model = mlp()
    model[1].weight.data.zero_()
    model[1].bias.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[3].bias.grad = None
    add_script_gradient(model, 0.3)
    assert (model[1].weight.grad == 1).all()
    assert (model[1].bias.grad == 1).all()
    assert model[3].bias.grad is None
    p = model[3].weight.detach()
    torch.testing.assert_close(model[3].weight.grad, 1 + 0.3 * p / p.norm(), rtol=1e-13, atol=0)


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
