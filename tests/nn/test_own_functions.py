"""What a function of the user's own is known by: another one is another run."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from sdgpu.nn.config import Config
from sdgpu.nn.own_functions import identity
from sdgpu.nn.trainer import train
from sdgpu.study.networks.experiments import preset
from tests.nn.problems import data, mlp


def power(exponent, scale=1.0):
    def schedule(position):
        return scale * (1 + position) ** -exponent

    return schedule


def double(position):
    return 2 * position


class Rate:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, position):
        return self.factor


class Named(Rate):
    name = "my rate"


class Opaque:
    __slots__ = ("factor",)

    def __call__(self, position):
        return 1.0


def test_equal_functions_are_known_by_the_same_and_others_by_another():
    functions = [
        power(0.5),
        power(0.6),
        power(0.5, 2.0),
        double,
        lambda position: 3 * position,
        lambda position: 4 * position,
        lambda position, factor=3: factor * position,
        lambda position: sum(3 * one for one in [position]),
        functools.partial(double, 1),
        functools.partial(double, 2),
        Rate(1.0),
        Rate(2.0),
        Rate(np.arange(3)),
        Rate(torch.arange(4.0)),
        Rate({"a": 1, "b": {1, 2}}),
        Rate({"a": 1, "b": {1, 3}}),
        Rate(1.0).__call__,
        torch.optim.SGD,
        torch.optim.RMSprop,
        abs,
        Named(1.0),
    ]
    known = [identity("schedule", function) for function in functions]
    assert len(set(known)) == len(known)
    assert all(text.startswith("own:") for text in known)
    again = [identity("f", power(0.5)), identity("f", Rate(2.0)), identity("f", Named(3.0))]
    assert again == [known[0], known[11], known[-1]]
    assert known[-1] == "own:my rate"
    assert known[17] == "own:torch.optim.sgd.SGD"


def test_what_has_no_text_asks_for_a_name():
    with pytest.raises(TypeError, match=r"schedule holds a object.*attribute name"):
        identity("schedule", Rate(object()))
    loop = Rate(None)
    loop.factor = loop
    with pytest.raises(TypeError, match=r"attribute name"):
        Config(schedule=loop)


def test_a_folder_of_another_function_is_refused(tmp_path):
    config = Config(epochs=2, batch=10, crop_pad=0, flip=False, schedule=power(0.5))
    train(mlp(), data(), None, config, folder=tmp_path)
    train(mlp(), data(), None, dataclasses.replace(config, schedule=power(0.5)), folder=tmp_path)
    for other in (power(0.6), "constant"):
        with pytest.raises(ValueError, match=r"another config .schedule: 'own:"):
            train(mlp(), data(), None, dataclasses.replace(config, schedule=other), folder=tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["schedule"] == identity("schedule", power(0.5))
    with pytest.raises(ValueError, match=r"schedule='own:.*was a function of your own"):
        Config.from_json((tmp_path / "config.json").read_text())


def test_experiments_are_all_text():
    base = preset("digits")
    with pytest.raises(ValueError, match=r"config.loss is a function of your own"):
        dataclasses.replace(base, config=dataclasses.replace(base.config, loss=double))
    # but their epochs are part of them
    longer = dataclasses.replace(base, config=dataclasses.replace(base.config, epochs=31))
    assert longer.binding()["config.epochs"] == 31


def test_options_that_are_off_are_no_part_of_a_run():
    """So that checkpoints of a version without them still belong to it."""
    plain = Config().binding()
    assert not {"clip_norm", "ema", "mixup", "keep", "class_weights"} & plain.keys()
    assert Config(ema=0.5, keep="best").binding().items() >= {"ema": 0.5, "keep": "best"}.items()
    assert "epochs" not in plain
    assert Config(schedule="cosine").binding()["epochs"] == 75
    assert Config.from_json(Config(class_weights=(1.0, 2.0)).to_json()).class_weights == (1.0, 2.0)
    assert Config.from_json(Config(class_weights="balanced").to_json()) == Config(
        class_weights="balanced"
    )
