"""A stack against separate training."""

import dataclasses

import pytest
import torch
from torch import nn

from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import checksum
from sdgpu.nn.stacked import Stack, bytes_per_member, train_stacked
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, StopError, convnet, data, mlp, same_bits, state, stop_after

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=1)


def targets(members):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(members, 24, CLASSES, generator=generator, dtype=torch.float64)
    return logits.softmax(dim=-1)


@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimiser": "sgd", "penalty": "paper-script", "accumulate": 2, "schedule": "cosine"},
        {"penalty": "decoupled", "penalty_covers": "weights", "loss": "cross-entropy"},
    ],
)
def test_a_stack_is_separate_training(make, fields):
    config = dataclasses.replace(CONFIG, **fields)
    models, U = [make(seed) for seed in (0, 1, 1)], targets(3)
    before = [checksum(model) for model in models]
    together = train_stacked(models, data(), U, config)
    assert [checksum(model) for model in models] == before
    for model, target, found in zip(models, U, together, strict=True):
        alone = train(model, data(), target, config)
        # a member's share of the time at its own speed is its work
        assert found.seconds * found.images_per_second == pytest.approx(config.epochs * 24)
        assert sum(r.seconds for r in together) == pytest.approx(found.history[-1].seconds)
        torch.testing.assert_close(state(found.model), state(alone.model), rtol=1e-8, atol=1e-9)
        for a, b in zip(found.history, alone.history, strict=True):
            for name in ("rate", "train_loss", "train_accuracy", "penalty", "val_loss"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-8), name
    # batch norm statistics too, and they differ between the members
    assert not same_bits(together[1].model, together[2].model)


def test_a_stack_resumes(tmp_path):
    config, models, U = (
        dataclasses.replace(CONFIG, save_seconds=0.0),
        [convnet(), convnet(1)],
        targets(2),
    )
    whole = train_stacked(models, data(), U, config)

    with pytest.raises(StopError):
        train_stacked(models, data(), U, config, folder=tmp_path, progress=stop_after(5))
    rest = train_stacked(models, data(), U, config, folder=tmp_path)
    assert all(same_bits(a.model, b.model) for a, b in zip(whole, rest, strict=True))
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 2 * config.epochs


def test_memory_of_one_member():
    model, config = mlp(width=8), dataclasses.replace(CONFIG, batch=12)
    sample = torch.zeros(4, 1, 4, 4, dtype=torch.float64)
    parameters = 8 * sum(p.numel() for p in model.parameters())
    # weights, gradient and two moments; autograd keeps the input of each linear layer (the first is
    # the sample, shared by all members) and the output of the ReLU, which is the second's input
    kept = 12 * 8 * 8
    found = bytes_per_member(model, config, sample)
    assert 4 * parameters + kept <= found <= 4 * parameters + kept + 12 * 16 * 8
    assert bytes_per_member(model, dataclasses.replace(config, batch=24), sample) - found >= kept
    assert bytes_per_member(model, dataclasses.replace(config, optimiser="sgd"), sample) < found


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "empty"),
        ([mlp(), mlp(width=9)], r"models\[1\] is of another kind"),
        ([mlp(dropout=0.1)], "dropout"),
        ([nn.Sequential(nn.BatchNorm2d(1, momentum=None))], "momentum"),
    ],
)
def test_what_cannot_be_stacked_is_refused(models, message):
    with pytest.raises(ValueError, match=message):
        Stack(models)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"shape \(2, 24, 3\), but must have shape \(1, 24, 3\)"):
        train_stacked([mlp()], data(), targets(2), CONFIG)
    with pytest.raises(ValueError, match="fp16"):
        train_stacked([mlp()], data(), targets(1), dataclasses.replace(CONFIG, amp="fp16"))
