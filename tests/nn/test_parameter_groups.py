"""Rates and decays of some parameters, against explicit loops with groups as torch has them."""

import dataclasses
import functools

import pytest
import torch

from sdgpu.nn import Lion
from sdgpu.nn.augment import normalise, order
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.loss import data_loss
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.trainer import train
from sdgpu.study.networks.experiments import Experiment
from tests.nn.problems import StopError, convnet, data, mlp, same_bits, state, stop_after

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def close(found, truth):
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)


def triangle(position):
    return 1.0 - abs(position - 1.5) / 3


def by_hand(config, groups, make, factor=lambda position: 1.0):
    """A loop as one writes it: groups with "lr" and a schedule of torch that multiplies each."""
    model, images = mlp(), data().train
    optimiser = make(groups(model))
    first = [group["lr"] for group in optimiser.param_groups]
    X, Y = (
        normalise(images.pixels, images.mean, images.std, torch.float64),
        images.one_hot().double(),
    )
    for epoch in range(config.epochs):
        batches = order(len(images), config.order_seed, epoch).split(config.batch)
        for number, rows in enumerate(batches):
            for group, rate in zip(optimiser.param_groups, first, strict=True):
                group["lr"] = rate * factor(epoch + number / len(batches))
            optimiser.zero_grad()
            data_loss(model(X[rows]), Y[rows]).backward()
            optimiser.step()
    return model


def head_and_rest(model):
    """The last layer with ten times the rate, and no decay of its own; the first as the others."""
    return [
        {"params": model[1].parameters(), "lr": 0.02, "weight_decay": 0.01},
        {"params": model[3].parameters(), "lr": 0.2, "weight_decay": 0.3},
    ]


OPTIMISERS = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (functools.partial(torch.optim.SGD, momentum=0.9), {}),
    "lion": (functools.partial(Lion, betas=(0.9, 0.999)), {}),
    "rmsprop": (torch.optim.RMSprop, {"optimiser": torch.optim.RMSprop}),
    "sgd, decoupled": (None, {"optimiser": "sgd", "penalty": "decoupled"}),
}


class DecoupledSGD(torch.optim.SGD):
    """Weights decay by the rate of their group before the step."""

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["decay"])
        super().step()


def decoupled(groups):
    renamed = [{**group, "decay": group["weight_decay"], "weight_decay": 0.0} for group in groups]
    return DecoupledSGD(renamed, momentum=0.9)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_groups_are_those_of_torch(name):
    make, fields = OPTIMISERS[name]
    config = change(schedule=triangle, **{"optimiser": name} | fields)
    truth = by_hand(config, head_and_rest, make or decoupled, triangle)
    patterns = {"3.*": {"lr_scale": 10.0, "weight_decay": 0.3}}
    found = train(mlp(), data(), None, dataclasses.replace(config, parameter_groups=patterns))
    close(found.model, truth)
    groups = dataclasses.replace(config, parameter_groups=head_and_rest)
    close(train(mlp(), data(), None, groups).model, truth)
    # so that the test can fail
    plain = train(mlp(), data(), None, config).model
    assert not torch.allclose(state(plain), state(truth), rtol=1e-2)
    # the penalty is that of the groups, and 0 where it is no part of a loss
    first, last = (
        sum(float(p.detach().square().sum()) for p in truth[i].parameters()) for i in (1, 3)
    )
    l2 = config.penalty_form == "l2"
    assert found.history[-1].penalty == pytest.approx(l2 * (0.01 * first + 0.3 * last) / 2)
    assert found.history[-1].rate == pytest.approx(0.02 * triangle(2 + 2 / 3))


def test_a_group_without_a_decay_has_that_of_the_configuration():
    """Norms and biases stay without, as `penalty_covers` says."""
    config = change(
        penalty_covers="weights", decay=0.1, parameter_groups={"3.*": {"lr_scale": 0.5}}
    )

    def groups(model):
        first, last = model[1], model[3]
        return [
            {"params": [first.weight], "lr": 0.02, "weight_decay": 0.1},
            {"params": [first.bias], "lr": 0.02, "weight_decay": 0.0},
            {"params": [last.weight], "lr": 0.01, "weight_decay": 0.1},
            {"params": [last.bias], "lr": 0.01, "weight_decay": 0.0},
        ]

    close(train(mlp(), data(), None, config).model, by_hand(config, groups, torch.optim.Adam))


def test_the_first_pattern_that_fits_decides_and_options_are_of_their_group():
    patterns = {"*.bias": {"weight_decay": 0.0}, "3.*": {"lr": 0.004}, "*": {"lr_scale": 2.0}}
    config = change(parameter_groups=patterns, optimiser="sgd")

    def groups(model):
        return [
            {"params": [model[1].bias, model[3].bias], "lr": 0.02, "weight_decay": 0.0},
            {"params": [model[3].weight], "lr": 0.004, "weight_decay": 0.01},
            {"params": [model[1].weight], "lr": 0.04, "weight_decay": 0.01},
        ]

    make = functools.partial(torch.optim.SGD, momentum=0.9)
    close(train(mlp(), data(), None, config).model, by_hand(config, groups, make))

    def slow(model):
        """With pairs of names and parameters, one tensor, names for readers: as torch takes them."""
        first, last = model[1], model[3]
        own = {"momentum": 0.2, "nesterov": True}
        rest = {"lr": 0.02, "weight_decay": 0.0}
        return [
            {"params": list(first.named_parameters()), **rest, **own},
            {"params": last.weight, **rest, "param_names": ["3.weight"]},
            {"params": [last.bias], **rest},
        ]

    def plain(model):
        groups = slow(model)
        return [{**groups[0], "params": list(model[1].parameters())}, *groups[1:]]

    def sgd(groups):
        for group in groups:
            group.pop("param_names", None)
        return make(groups)

    found = train(mlp(), data(), None, change(parameter_groups=slow, optimiser="sgd"))
    close(found.model, by_hand(config, plain, sgd))


def layer_decay(model, decay=0.5):
    """Rates that fall from the output to the input, as timm's param_groups_layer_decay."""
    layers = [part for part in model if next(iter(part.parameters()), None) is not None]
    return [
        {"params": [p], "lr_scale": decay ** (len(layers) - 1 - depth), "weight_decay": 0.0}
        for depth, layer in enumerate(layers)
        for p in layer.parameters()
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"parameter_groups": layer_decay, "optimiser": "adamw", "ema": 0.9},
        {"parameter_groups": {"0.*": {"lr_scale": 0.1}}, "optimiser": "lion", "clip_norm": 0.1},
        {"parameter_groups": layer_decay, "optimiser": torch.optim.RMSprop},
    ],
    ids=["layers", "pattern", "own"],
)
def test_they_resume_to_the_same_bits(tmp_path, fields):
    config = change(save_seconds=0.0, schedule="cosine", **fields)
    whole = train(convnet(), data(), None, config)
    with pytest.raises(StopError):
        train(convnet(), data(), None, config, folder=tmp_path, progress=stop_after(4))
    rest = train(convnet(), data(), None, config, folder=tmp_path)
    assert same_bits(whole.model, rest.model)
    assert not same_bits(whole.model, train(convnet(), data(), None, change()).model)


STRENGTH = {"decay": 0.5}


def of_a_global(model):
    return layer_decay(model, STRENGTH["decay"])


def test_other_groups_are_another_run(tmp_path, monkeypatch):
    for number, (one, two, message) in enumerate(
        (
            (None, layer_decay, r"another config \(parameter_groups: None there"),
            (
                {"3.*": {"lr_scale": 2.0}},
                {"3.*": {"lr_scale": 3.0}},
                r"another config \(parameter_groups: \{'3.\*': \{'lr_scale': 2.0\}\} there",
            ),
            ({"3.*": {"lr_scale": 2.0}}, None, "another config"),
        )
    ):
        folder = tmp_path / str(number)
        train(mlp(), data(), None, change(parameter_groups=one), folder=folder)
        with pytest.raises(ValueError, match=message):
            train(mlp(), data(), None, change(parameter_groups=two), folder=folder)
    # what a function makes is told too: its code is the same
    folder, config = tmp_path / "global", change(parameter_groups=of_a_global)
    train(mlp(), data(), None, config, folder=folder)
    train(mlp(), data(), None, config, folder=folder)
    monkeypatch.setitem(STRENGTH, "decay", 0.25)
    with pytest.raises(
        ValueError,
        match=r"another parameter groups \(1.bias: 'lr_scale 0.5, weight_decay 0.0' there",
    ):
        train(mlp(), data(), None, config, folder=folder)


@pytest.mark.parametrize(
    "groups", [{"3.*": {"lr_scale": 10.0, "weight_decay": 0.3}}, head_and_rest]
)
@pytest.mark.parametrize("fields", [{}, {"penalty": "decoupled"}, {"optimiser": "adamw"}])
def test_members_of_a_stack_have_them_too(groups, fields):
    config = change(parameter_groups=groups, **fields)
    problem, models = data(), [mlp(), mlp(1)]
    Y = problem.train.one_hot(torch.float64)
    U = torch.stack([Y, 0.5 * Y])
    for model, target, result in zip(
        models, U, train_stacked(models, problem, U, config), strict=True
    ):
        alone = train(model, problem, target, config)
        close(result.model, alone.model)
        assert result.history[-1].penalty == pytest.approx(alone.history[-1].penalty)
    one, side = (
        grid_chains(mlp(), problem, config, steps=2, alphas=[0.2, 0.5], stacked=stacked)
        for stacked in (False, True)
    )
    for a, b in zip(one, side, strict=True):
        close(a.models[-1], b.models[-1])


def test_chains_and_files_have_them(tmp_path):
    config = change(parameter_groups={"3.*": {"lr_scale": 10}})
    assert Config.from_json(config.to_json()) == config
    chain = distill_chain(mlp(), data(), config, steps=2, alphas=1.0, folder=tmp_path)
    assert same_bits(chain.models[0], train(mlp(), data(), None, config).model)
    binding = Experiment("one", "digits", "smallcnn", config=config).binding()
    assert binding["config.parameter_groups"] == {"3.*": {"lr_scale": 10.0}}
    with pytest.raises(ValueError, match=r"config.parameter_groups is a function of your own"):
        Experiment("one", "digits", "smallcnn", config=change(parameter_groups=layer_decay))
    with pytest.raises(ValueError, match="was a function of your own, which a file does not hold"):
        Config.from_json(change(parameter_groups=layer_decay).to_json())


OTHER = mlp(3)


def regrouped(groups):
    return torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (
            {"fc.*": {"lr_scale": 2.0}},
            ValueError,
            "pattern 'fc.*', which fits no parameter: .*1.weight",
        ),
        ({"3.*": {"lr_factor": 2.0}}, ValueError, "lr_factor.*lr_scale"),
        ({"3.*": {"lr_scale": -1.0}}, ValueError, r"parameter_groups\['3.\*'\]\['lr_scale'\]=-1"),
        (
            {"3.*": {"lr": 1.0, "lr_scale": 1.0}},
            ValueError,
            "lr=1 and lr_scale=1: give one of them",
        ),
        ({"3.*": 2.0}, TypeError, "must be settings by pattern"),
        ([{"params": []}], TypeError, "parameter_groups=.*must be settings by pattern of names"),
        (lambda model: model.parameters(), TypeError, "must give a list of dicts.*not generator"),
        (lambda model: [{"lr": 1.0}], TypeError, r"parameter_groups\(model\)\[0\] has no 'params'"),
        (
            lambda model: [{"params": model[1].parameters()}],
            ValueError,
            "leaves out 3.weight, 3.bias: put all",
        ),
        (
            lambda model: [{"params": OTHER.parameters()}],
            ValueError,
            "has a parameter of another network: take those of the model",
        ),
        (
            lambda model: [{"params": model.parameters()}, {"params": model[3].bias}],
            ValueError,
            r"\[1\] has 3.bias, which is in parameter_groups\(model\)\[0\] too",
        ),
        (
            lambda model: [{"params": model.parameters(), "lr_mult": 2.0}],
            ValueError,
            r"\[0\] has lr_mult=2.0, which Adam does not know: it has lr_scale, lr, betas",
        ),
        (
            lambda model: [{"params": model.parameters(), "weight_decay": "much"}],
            TypeError,
            r"parameter_groups\(model\)\[0\]\['weight_decay'\]",
        ),
    ],
)
def test_groups_that_are_none_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        train(mlp(), data(), None, change(parameter_groups=groups))


def test_what_does_not_go_together_is_refused():
    groups = {"3.*": {"lr_scale": 2.0, "weight_decay": 0.0}}
    with pytest.raises(ValueError, match="penalty='paper-script' has one weight for all"):
        train(mlp(), data(), None, change(parameter_groups=groups, penalty="paper-script"))
    with pytest.raises(ValueError, match="optimiser has groups without the lr_scale"):
        train(mlp(), data(), None, change(parameter_groups=groups, optimiser=regrouped))


def test_frozen_parameters_may_be_in_a_group():
    frozen = mlp()
    frozen[1].weight.requires_grad_(False)
    found = train(frozen, data(), None, change(parameter_groups=layer_decay)).model
    assert torch.equal(found[1].weight, frozen[1].weight)
    assert not torch.equal(found[1].bias, frozen[1].bias)
