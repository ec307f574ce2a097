"""Two processes that talk by gloo against one."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from sdgpu.backend.distributed import World
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict
from sdgpu.nn.network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from sdgpu.nn.stacked import Stack, train_stacked
from sdgpu.nn.targets import Feed
from sdgpu.nn.trainer import train
from tests.nn.problems import convnet, data, mlp, state, two_ranks

CONFIG = Config(epochs=2, batch=10, lr=0.02, decay=0.01, crop_pad=1, save_seconds=0.0)

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from tests.nn.problems import data, mlp, state
from tests.nn.test_ddp import Odd, asked, configs, draws, numbers, run, stacked, taught
from sdgpu.backend.distributed import join
from sdgpu.nn.trainer import train

world = join(torch.device("cpu"))
for name, config in configs().items():
    chain = run(name, sys.argv[1] + "/" + name)
    torch.save([state(model) for model in chain.models], f"{sys.argv[1]}/{name}-{world.rank}.pt")
torch.save(state(taught()), f"{sys.argv[1]}/taught-{world.rank}.pt")
# batches are shared out whole: the bits of one process
alone = asked(type(world)())
for name, P in asked(world).items():
    assert torch.equal(P, alone[name]), name
members = stacked()
torch.save([state(r.model) for r in members], f"{sys.argv[1]}/stack-{world.rank}.pt")
torch.save([numbers(r) for r in members], f"{sys.argv[1]}/numbers-{world.rank}.pt")
masks = run("dropout").models
torch.save([state(model) for model in masks], f"{sys.argv[1]}/dropout-{world.rank}.pt")
seen = draws()
torch.save(seen, f"{sys.argv[1]}/draws-{world.rank}.pt")
try:
    train(Odd(), data(), None, config)
except RuntimeError as error:
    assert "Unlike is a batch norm with a forward pass of its own" in str(error), error
else:
    raise AssertionError("a batch norm of another kind was not refused")
try:
    train(mlp(), data(), None, config.__class__(epochs=1, batch=9))
except ValueError as error:
    assert "2 processes do not divide" in str(error), error
else:
    raise AssertionError("batch=9 was not refused")

# a disk that is full for rank 0 stops both
if world.rank == 0:
    import sdgpu.nn.training_files

    def full(path, *content):
        raise OSError(28, "No space left on device")

    sdgpu.nn.training_files.write_file = full
try:
    train(mlp(), data(), None, config, folder=sys.argv[1] + "/full")
except OSError as error:
    wanted = "No space left" if world.rank == 0 else "rank 0: "
    assert wanted in str(error) and "No space left" in str(error), error
else:
    raise AssertionError("nothing was said of the full disk")
"""


def configs():
    script = {"penalty": "paper-script", "optimiser": "sgd"}
    return {
        "plain": CONFIG,
        "parts": dataclasses.replace(CONFIG, accumulate=5, teacher="online"),
        "script": dataclasses.replace(CONFIG, **script),
        "norm": dataclasses.replace(CONFIG, accumulate=5),
        "views": dataclasses.replace(CONFIG, teacher="views", views=2),
        "subclass": CONFIG,
        "twice": CONFIG,
    }


class ActivatedNorm(nn.BatchNorm2d):
    """Batch norm with an activation in its forward pass, as networks of others have it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.PReLU()

    def forward(self, x):
        self.num_batches_tracked.add_(int(self.training))
        mean, variance = self.running_mean, self.running_var
        args = (self.weight, self.bias, self.training, self.momentum, self.eps)
        return self.act(nn.functional.batch_norm(x, mean, variance, *args))


class Unlike(nn.BatchNorm2d):
    """Batch norm by a formula of its own, whose statistics no one can share."""

    def forward(self, x):
        return (x - x.mean((0, 2, 3), keepdim=True)) * self.weight[:, None, None]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = convnet()
        self.inner[1] = Unlike(4).double()

    def forward(self, x):
        return self.inner(x)


class Twice(nn.Module):
    """One batch norm in two places, under two names."""

    def __init__(self):
        super().__init__()
        self.inner = convnet()
        self.again = self.inner[1]

    def forward(self, x):
        return self.inner[2:](self.again(self.inner[:2](x)))


def network(name):
    if name == "subclass":
        model = convnet()
        model[1] = ActivatedNorm(4).double()
        return model
    return {"norm": convnet, "twice": Twice, "dropout": lambda: mlp(dropout=0.5)}.get(name, mlp)()


class Peeping(nn.Module):
    """Keeps the masks of its dropout."""

    kept: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.inner, self.drop = mlp(), nn.Dropout(0.5)

    def forward(self, x):
        mask = self.drop(torch.ones(len(x), 16, dtype=x.dtype))
        if self.training and torch.is_grad_enabled():
            self.kept.append(mask.clone())
        return self.inner(x * mask.reshape(x.shape))


def draws():
    """Masks of dropout in the batches of one epoch, on this rank."""
    Peeping.kept.clear()
    train(Peeping(), data(), None, dataclasses.replace(CONFIG, epochs=1))
    return list(Peeping.kept)


def numbers(result):
    """What the history says, but for the time."""
    fields = ("rate", "train_loss", "train_accuracy", "penalty", "val_loss", "val_accuracy")
    rows = [[getattr(epoch, name) for name in fields] for epoch in result.history]
    return torch.tensor(rows, dtype=torch.float64)


def stacked():
    generator = torch.Generator().manual_seed(5)
    U = torch.randn(2, 24, 3, generator=generator, dtype=torch.float64).softmax(dim=-1)
    return train_stacked([convnet(), convnet(1)], data(), U, CONFIG)


def asked(world):
    """What networks and teachers say beforehand, of few rows and of many."""
    part, network = data().train, convnet().eval()
    several = TeacherEnsemble(
        [network, mlp(), SavedTeacher(predict(mlp(2), part))], [0.5, 0.7, -0.2]
    )
    said = {}
    for size in (3, 5, 24, 256):
        config = dataclasses.replace(CONFIG, eval_batch=size, views=2)
        said[f"predict {size}"] = predict(network, part, config, world=world)
        for mode in ("cached", "views"):
            mixed = dataclasses.replace(config, teacher=mode)
            feed = Feed(part, Teacher(several, 0.3), mixed, torch.float64, world)
            said[f"{mode} {size}"] = feed._mixed
    said["one row"] = predict(network, part.take(torch.arange(1)), world=world)
    said["a stack"] = predict(
        Stack([mlp(), mlp(1)]), part, dataclasses.replace(CONFIG, eval_batch=5), world=world
    )
    return said


def taught():
    """A student of a network and a table, asked for the rows of each rank in parts of a batch."""
    part = data().train
    several = TeacherEnsemble([convnet(4), SavedTeacher(predict(mlp(2), part))], [0.6, 0.4])
    config = dataclasses.replace(CONFIG, teacher="online", accumulate=5)
    return train(mlp(), data(), Teacher(several, 0.3), config).model


def run(name, folder=None):
    config = configs().get(name, CONFIG)
    return distill_chain(network(name), data(), config, steps=2, alphas="algorithm1", folder=folder)


def test_two_processes_are_one(tmp_path):
    two_ranks(WORKER, tmp_path)
    for name in configs():
        truth = [state(model) for model in run(name).models]
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for a, b in zip(found, truth, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        # one process goes on from what two have left
        assert (tmp_path / name / "step-2" / "checkpoint.pt").exists()
        alone = run(name, tmp_path / name)
        torch.testing.assert_close(state(alone.models[-1]), truth[-1], rtol=1e-8, atol=1e-9)
    # a stack has one batch norm for each member, over the rows of both ranks
    results = stacked()
    for rank in range(2):
        found = torch.load(tmp_path / f"stack-{rank}.pt", weights_only=True)
        members = [state(result.model) for result in results]
        torch.testing.assert_close(found, members, rtol=1e-8, atol=1e-9)
        told = torch.load(tmp_path / f"numbers-{rank}.pt", weights_only=True)
        torch.testing.assert_close(told, [*map(numbers, results)], rtol=1e-8, atol=1e-9)
        found = torch.load(tmp_path / f"taught-{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, state(taught()), rtol=1e-8, atol=1e-9)
    # ranks have weights in common and draws of their own
    models, masks = (
        [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("dropout", "draws")
    )
    assert all(torch.equal(a, b) for a, b in zip(*models, strict=True))
    assert len(masks[0]) == 3
    assert not any(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_shards_are_a_partition():
    for rows in (1, 7, 8):
        parts = [list(range(rows))[World(rank, 3).shard(rows)] for rank in range(3)]
        assert [row for part in parts for row in part] == list(range(rows))


def test_sizes_that_cannot_be_shared_are_refused():
    World(0, 2).check(batch=10, accumulate=1, n=24)
    with pytest.raises(ValueError, match="2 processes do not divide the 5 rows"):
        World(0, 2).check(batch=10, accumulate=2, n=24)
    with pytest.raises(ValueError, match="last part of an epoch has 1 rows"):
        World(0, 2).check(batch=10, accumulate=1, n=21)
