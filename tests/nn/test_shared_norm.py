"""Batch norm over two ranks against torch's own on all rows: outputs, gradients, statistics, messages."""

import torch
from torch import nn

from tests.nn.problems import two_ranks

CASES = {
    "images": (lambda: nn.BatchNorm2d(3), (7, 3, 4, 5)),
    "columns": (lambda: nn.BatchNorm1d(4), (9, 4)),
    "volumes": (lambda: nn.BatchNorm3d(2, eps=1e-2, momentum=0.3), (4, 2, 3, 2, 2)),
    "plain": (lambda: nn.BatchNorm2d(3, affine=False), (7, 3, 4, 5)),
    "stateless": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (7, 3, 4, 5)),
    "counting": (lambda: nn.BatchNorm2d(3, momentum=None), (7, 3, 4, 5)),
}

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from torch import distributed
from sdgpu.backend.distributed import join
from tests.nn.test_shared_norm import CASES, one_rank

world = join(torch.device("cpu"))
sent = []
real = distributed.all_reduce
distributed.all_reduce = lambda tensor: (sent.append(tensor.numel()), real(tensor))
found = {name: one_rank(name, world) for name in CASES}
assert sent == [n for _, shape in CASES.values() for n in (4 * shape[1] + 2, 2 * shape[1]) * 2], sent
torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
"""


def norm_of(name, dtype=torch.float64):
    norm = CASES[name][0]().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norm


def rows_of(name, round_, dtype=torch.float64):
    """Inputs far from 0, where a variance by E[x^2] - E[x]^2 would cancel, and what weighs the outputs."""
    generator = torch.Generator().manual_seed(10 + round_)
    shape = CASES[name][1]
    X = 1e4 + torch.randn(shape, generator=generator, dtype=torch.float64)
    V = torch.randn(shape, generator=generator, dtype=torch.float64)
    return X.to(dtype), V.to(dtype)


def passes(norm, name, share, dtype=torch.float64):
    """Two batches: outputs, gradients by inputs and parameters, and the statistics that are left."""
    found = []
    for round_ in range(2):
        X, V = (values[share] for values in rows_of(name, round_, dtype))
        if X.ndim == 4 and round_:
            X = X.contiguous(memory_format=torch.channels_last)
        X.requires_grad_()
        outputs = norm(X)
        norm.zero_grad()
        (outputs * V).sum().backward()
        found.append([outputs.detach(), X.grad, *(p.grad.clone() for p in norm.parameters())])
    return found, [buffer.double() for buffer in norm.buffers()]


def one_rank(name, world):
    from sdgpu.nn.shared_norm import share_batch_norm

    return passes(share_batch_norm(norm_of(name)), name, world.shard(CASES[name][1][0]))


def test_two_ranks_normalise_as_one_and_send_one_message_in_each_direction(tmp_path):
    two_ranks(WORKER, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in CASES:
        truth, buffers = passes(norm_of(name), name, slice(None))
        for round_ in range(2):
            shares = [rank[name][0][round_] for rank in ranks]
            for i, wanted in enumerate(truth[round_]):
                # rows side by side; gradients of parameters are sums over the ranks
                parts = [share[i] for share in shares]
                found = torch.cat(parts) if i < 2 else parts[0] + parts[1]
                torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
        for rank in ranks:
            torch.testing.assert_close(rank[name][1], buffers, rtol=1e-11, atol=1e-12)
