"""Networks that may be stacked differ in the values of parameters and buffers, and in nothing else."""

import copy
import functools
import re

import pytest
import torch
from torch import nn

from sdgpu.nn.config import Config
from sdgpu.nn.same_architecture import difference
from sdgpu.nn.stacked import Stack, train_stacked
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, convnet, data, mlp, same_bits, state

CONFIG = Config(epochs=2, batch=10, lr=0.02, decay=0.01, crop_pad=1)


def targets(members):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(members, 24, CLASSES, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=-1)


def changed(change, make=mlp):
    model = make()
    change(model)
    return model


def put(model, index, part):
    model[index] = part


class Scaled(nn.Module):
    """A number, a function, and an object that no parameter tells of."""

    def __init__(self, scale=1.0, function=torch.relu, held=None):
        super().__init__()
        self.inner, self.scale, self.function, self.held = mlp(), scale, function, held

    def forward(self, x):
        return self.function(self.scale * self.inner(x))


class Setting:
    def __init__(self, value):
        self.value = value


def power(p):
    return lambda x: x**p


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (mlp(), changed(lambda m: put(m, 2, nn.Tanh())), "the kind of 2 .Tanh for ReLU"),
        (mlp(), mlp(width=9), "the shape, type or gradient of 1.bias"),
        (mlp(), mlp(dtype=torch.float32), "the shape, type or gradient"),
        (mlp(), mlp()[:3], "its parts"),
        (mlp(), changed(lambda m: m[1].bias.requires_grad_(False)), "gradient of 1.bias"),
        (convnet(), changed(lambda m: m[1].eval(), convnet), "the mode of 1"),
        (convnet(), changed(lambda m: setattr(m[1], "eps", 0.1), convnet), "eps of 1"),
        (convnet(), changed(lambda m: setattr(m[0], "stride", (2, 2)), convnet), "stride of 0"),
        (Scaled(), Scaled(2.0), "scale of the model"),
        (Scaled(), Scaled(function=torch.tanh), "function of the model"),
        (Scaled(function=power(2)), Scaled(function=power(3)), "function of the model"),
        (
            Scaled(function=functools.partial(torch.clamp, max=1.0)),
            Scaled(function=functools.partial(torch.clamp, max=2.0)),
            "function of the model",
        ),
        (Scaled(held=Setting(1)), Scaled(held=Setting(2)), "held of the model"),
        (Scaled(held=[torch.ones(2)]), Scaled(held=[torch.zeros(2)]), "held of the model"),
        (
            mlp(),
            changed(lambda m: m[1].register_forward_hook(lambda *a: a[2] + 1)),
            "_forward_hooks of 1",
        ),
        (
            Scaled(),
            changed(lambda m: setattr(m.inner[3], "bias", m.inner[1].bias), Scaled),
            "shape, type or gradient of inner.3.bias",
        ),
    ],
)
def test_what_differs_in_more_is_refused_by_name(one, other, message):
    assert re.search(message, difference(one, other))
    with pytest.raises(ValueError, match=rf"models\[1\] is of another kind.*differ in .*{message}"):
        Stack([one, other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mlp(), mlp(1)),
        (convnet(), convnet(1)),
        (Scaled(float("nan")), Scaled(float("nan"))),
        (Scaled(function=power(2)), Scaled(function=power(2))),
        (Scaled(held=Setting(torch.ones(2))), Scaled(held=Setting(torch.ones(2)))),
        (Scaled(held={"a": (1, [2])}), copy.deepcopy(Scaled(held={"a": (1, [2])}))),
        (mlp(), mlp().eval()),
    ],
)
def test_what_differs_in_values_alone_is_of_one_kind(one, other):
    assert difference(one, other) is None


class Passing(nn.Module):
    """With a buffer that is no part of state_dict, and tied weights."""

    def __init__(self, seed):
        super().__init__()
        self.inner = mlp(seed, width=16)
        self.inner[1].weight = nn.Parameter(self.inner[1].weight.detach().clone())
        self.middle = nn.Linear(16, 16).double()
        self.middle.weight = self.inner[1].weight
        with torch.no_grad():
            self.middle.bias.fill_(0.1)
        self.register_buffer("scale", torch.full((), 1.0 + seed).double(), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale.mul_(0.9)
        hidden = self.middle(self.inner[:3](x))
        return self.inner[3](hidden) * self.scale


def test_passing_buffers_and_tied_weights_are_stacked():
    models, U = [Passing(0), Passing(1)], targets(2)
    for model, target, found in zip(
        models, U, train_stacked(models, data(), U, CONFIG), strict=True
    ):
        alone = train(model, data(), target, CONFIG).model
        assert found.model.middle.weight is found.model.inner[1].weight
        torch.testing.assert_close(state(found.model), state(alone), rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.model.scale, alone.scale, rtol=1e-12, atol=0)
        assert float(alone.scale) < 0.9 * float(model.scale)


def test_a_frozen_batch_norm_of_a_stack_does_not_drift():
    models, U = [convnet(), convnet(1)], targets(2)
    for model in models:
        model[1].eval().requires_grad_(False)
    for model, target, found in zip(
        models, U, train_stacked(models, data(), U, CONFIG), strict=True
    ):
        assert same_bits(found.model[1], model[1])
        alone = train(model, data(), target, CONFIG).model
        torch.testing.assert_close(state(found.model), state(alone), rtol=1e-8, atol=1e-9)
