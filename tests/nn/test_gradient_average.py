"""Gradients of ranks in one piece, against the mean of what each rank has, and DistributedDataParallel."""

import pytest
import torch
from torch import nn

from sdgpu.backend.distributed import World
from sdgpu.nn.config import Config
from sdgpu.nn.gradient_average import average_over
from tests.nn.problems import two_ranks

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from tests.nn.test_gradient_average import checked_cases
from sdgpu.backend.distributed import join

world = join(torch.device("cpu"))
assert world.on_one_host
checked_cases(world, sys.argv[1])
"""


class Branches(nn.Module):
    """Heads that some, all or none of the ranks have a gradient for; parts of several dtypes and layouts."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
        self.wide = nn.Linear(2, 1).double()
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.empty = nn.Parameter(torch.empty(0, 3, device="cpu"))
        self.scale = nn.Parameter(torch.ones((), device="cpu"))
        self.register_buffer("drift", torch.tensor(float(seed), device="cpu"))

    def forward(self, X, heads):
        features = self.conv(X).mean((2, 3)) * self.scale
        rows = self.frozen(features) + sum(self.heads[i](features) for i in heads)
        return self.wide(rows.double()).sum() + self.empty.sum()


def parts(rank):
    """Inputs and heads of two parts of a batch, of a rank: head 1 on rank 1 only, head 2 nowhere."""
    generator = torch.Generator().manual_seed(rank)
    X = torch.randn(2, 5, 3, 6, 6, generator=generator)
    return zip(X, ([0], [0, 1] if rank else [0]), strict=True)


def gradients(model):
    return {
        name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def own_gradients(rank, seed=0):
    """Of one rank alone."""
    model = Branches(seed)
    for X, heads in parts(rank):
        model(X, heads).backward()
    return gradients(model)


def checked_cases(world, folder):
    device = torch.device("cpu")
    model = Branches(seed=7 + world.rank)  # becomes that of rank 0
    average = average_over(world, model, Config(), device)
    assert average.forward is model
    for _ in range(2):  # memory is used again
        model.drift += world.rank
        average.begin()
        assert model.drift.item() == 7.0
        for last, (X, heads) in enumerate(parts(world.rank)):
            with average.part(last=bool(last)):
                average.forward(X, heads).backward()
        average.finish()
        found = gradients(model)
        model.zero_grad(set_to_none=True)
    torch.save(found, f"{folder}/{world.rank}.pt")
    # torch's own, where it can do it
    by_buckets, in_one_piece = (gradients_by(world, one_host) for one_host in (False, True))
    for name, gradient in in_one_piece.items():
        torch.testing.assert_close(gradient, by_buckets[name])
    torch.manual_seed(world.rank)
    large = nn.Linear(300, 300)  # more than a packet, by a broadcast
    average_over(world, large, Config(), device)
    world.agree({"numbers": str(large.weight.tolist())}, device)
    refused(world)
    sparse = average_over(world, nn.Embedding(3, 2, sparse=True), Config(), device)
    sparse.forward(torch.tensor([world.rank])).sum().backward()
    assert sparse.forward.module.weight.grad.to_dense().tolist() == [[0.5, 0.5], [0.5, 0.5], [0, 0]]


def gradients_by(world, one_host):
    """Of a network without branches."""

    class Place(World):
        on_one_host = one_host

    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    average = average_over(Place(world.rank, world.size), model, Config(), torch.device("cpu"))
    for last, (X, _) in enumerate(parts(world.rank)):
        with average.part(last=bool(last)):
            if not one_host:  # parts before the last send nothing
                assert average.forward.require_backward_grad_sync == bool(last)
            average.forward(X).square().sum().backward()
    average.finish()
    assert (average.forward is model) == one_host
    return gradients(model)


def refused(world):
    with pytest.raises(ValueError, match="parameters of the network"):
        average_over(world, nn.Linear(3, 2 + world.rank), Config(), torch.device("cpu"))


def test_two_ranks_have_the_mean(tmp_path):
    two_ranks(WORKER, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    own = [own_gradients(rank, seed=7) for rank in range(2)]
    for name, gradient in ranks[0].items():
        parts_there = [one[name] for one in own if one[name] is not None]
        if not parts_there:
            assert gradient is None, name
            assert ranks[1][name] is None, name
            continue
        assert torch.equal(gradient, ranks[1][name]), name  # the same bits
        torch.testing.assert_close(gradient, sum(parts_there) / 2)
    missing = {name for name, one in ranks[0].items() if one is None}
    none = {f"{layer}.{tensor}" for layer in ("heads.2", "frozen") for tensor in ("weight", "bias")}
    assert missing == none


def test_one_process_keeps_what_it_has():
    model = Branches(0)
    average = average_over(World(), model, Config(), torch.device("cpu"))
    average.begin()
    for X, heads in parts(0):
        with average.part(last=False):
            average.forward(X, heads).backward()
    average.finish()
    for name, gradient in own_gradients(0).items():
        found = model.get_parameter(name).grad
        assert (found is None) if gradient is None else torch.equal(found, gradient)
