"""Batch norm over two ranks against torch's own on all rows: outputs, gradients, statistics, messages."""

import pytest
import torch
from torch import nn

from sdgpu.nn import channel_passes, rank_normalisation
from sdgpu.nn.rank_normalisation import _whole
from sdgpu.nn.shared_norm import own_batch_norm, share_batch_norm
from sdgpu.nn.stacked import Stack
from tests.cuda_stand_in import pretend_cuda
from tests.nn.problems import convnet, two_ranks

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
from sdgpu.backend import distributed as backend
from sdgpu.backend.distributed import join
from sdgpu.nn import channel_passes, rank_normalisation
from tests.nn.test_shared_norm import CASES, one_rank

world = join(torch.device("cpu"))
sent = []


def counted(gather):
    return lambda own: (sent.append(torch.as_tensor(own).numel()), gather(own))[1]


rank_normalisation.gathered_on_host = counted(backend.gathered_on_host)
found = {f"{name} compiled": one_rank(name, world) for name in CASES}  # where there is llvmlite
rank_normalisation.takes = lambda *given: False
found |= {name: one_rank(name, world) for name in CASES}
# ranks of several hosts, and channels in parts however few they are; and by torch, as on other devices
assert backend._shared_packets() is not None or sys.platform != "linux"
backend._shared_packets, channel_passes.ENOUGH = lambda: None, 1
found |= {f"{name} in parts": one_rank(name, world) for name in CASES}
rank_normalisation.gathered = counted(backend.gathered)
rank_normalisation._transformed = lambda: True
found |= {f"{name} anywhere": one_rank(name, world) for name in CASES}
messages = [n for _, shape in CASES.values() for n in (2 * shape[1] + 1, 2 * shape[1]) * 2]
assert sent == messages * 4, sent
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


def passes(norm, name, share, dtype=torch.float64, device="cpu"):
    """Two batches: outputs, gradients by inputs and parameters, and the statistics that are left."""
    found = []
    for round_ in range(2):
        X, V = (values[share].to(device) for values in rows_of(name, round_, dtype))
        if X.ndim == 4 and round_:
            X = X.contiguous(memory_format=torch.channels_last)
        X.requires_grad_()
        outputs = norm(X)
        norm.zero_grad()
        (outputs * V).sum().backward()
        parts = [outputs.detach(), X.grad, *(p.grad.clone() for p in norm.parameters())]
        found.append([part.cpu() for part in parts])
    return found, [buffer.double().cpu() for buffer in norm.buffers()]


def one_rank(name, world, device="cpu"):
    norm = share_batch_norm(norm_of(name).to(device))
    return passes(norm, name, world.shard(CASES[name][1][0]), device=device)


class Kernels:
    """What torch's SyncBatchNorm asks of a device, as formulas: a CPU has none of it."""

    @staticmethod
    def batch_norm_stats(X, eps):
        axes = [axis for axis in range(X.ndim) if axis != 1]
        return X.mean(axes), torch.rsqrt(X.var(axes, correction=0) + eps)

    @staticmethod
    def batch_norm_gather_stats_with_counts(
        X, means, inverses, running_mean, running_var, momentum, eps, counts
    ):
        n, shares = counts.sum(), (counts / counts.sum())[:, None]
        mean = (shares * means).sum(dim=0)
        variance = (shares * (inverses**-2 - eps + (means - mean) ** 2)).sum(dim=0)
        if running_mean is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * n / (n - 1), momentum)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def batch_norm_elemt(X, weight, bias, mean, inverse, eps):
        return nn.functional.batch_norm(X, mean, inverse**-2, weight, bias, eps=0.0)

    @staticmethod
    def batch_norm_backward_reduce(dY, X, mean, inverse, weight, *asked):
        axes = [axis for axis in range(X.ndim) if axis != 1]
        shift = mean.reshape(-1, *(1,) * (X.ndim - 2))
        sums, slopes = dY.sum(axes), (dY * (X - shift)).sum(axes)
        return sums, slopes, slopes * inverse, sums

    @staticmethod
    def batch_norm_backward_elemt(dY, X, mean, inverse, weight, sums, slopes, counts):
        n, shape = counts.sum(), (-1, *(1,) * (X.ndim - 2))
        mean, inverse, a, b = (
            one.reshape(shape) for one in (mean, inverse, sums / n, slopes / n * inverse**2)
        )
        factor = inverse if weight is None else inverse * weight.reshape(shape)
        return factor * (dY - a - (X - mean) * b)


def torchs_own():
    """Let torch's SyncBatchNorm run on the CPU, and be taken for what is there."""
    import sdgpu.nn.shared_norm as module

    module._on_cuda = lambda norm: True
    torch._C._get_privateuse1_backend_name = lambda: "cpu"
    for name in vars(Kernels):
        if name.startswith("batch"):
            setattr(torch, name, getattr(Kernels, name))


SYNC_WORKER = """
import sys
import torch
torch.set_num_threads(1)
from torch import distributed
from sdgpu.backend.distributed import join
from tests.nn.test_shared_norm import CASES, one_rank, torchs_own

world = join(torch.device("cpu"))
torchs_own()
sent = []
real = distributed.all_gather
distributed.all_gather = lambda *given, **more: (sent.append(1), real(*given, **more))
found = {name: one_rank(name, world) for name in CASES}
assert len(sent) == 2 * len(CASES), sent  # all layers are torch's
torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
"""

CUDA_WORKER = """
import sys
import torch
from torch import distributed
distributed.init_process_group("gloo")  # two ranks on one device, which NCCL refuses
from sdgpu.backend.distributed import World
from tests.nn.test_shared_norm import CASES, one_rank

world = World(distributed.get_rank(), 2)
found = {name: one_rank(name, world, "cuda") for name in CASES}
torch.save(found, f"{sys.argv[1]}/{world.rank}.pt")
"""


@pytest.mark.parametrize(
    "worker",
    [WORKER, SYNC_WORKER, pytest.param(CUDA_WORKER, marks=pytest.mark.gpu)],
    ids=["own", "torch's", "CUDA"],
)
def test_two_ranks_normalise_as_one_and_send_one_message_in_each_direction(worker, tmp_path):
    two_ranks(worker, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key in ranks[0]:
        name = key.split(" ")[0]
        truth, buffers = passes(norm_of(name), name, slice(None))
        for round_ in range(2):
            shares = [rank[key][0][round_] for rank in ranks]
            for i, wanted in enumerate(truth[round_]):
                # rows side by side; gradients of parameters are sums over the ranks
                parts = [share[i] for share in shares]
                found = torch.cat(parts) if i < 2 else parts[0] + parts[1]
                torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
        for rank in ranks:
            torch.testing.assert_close(rank[key][1], buffers, rtol=1e-11, atol=1e-12)
        assert all(map(torch.equal, *(rank[key][1] for rank in ranks)))  # the same bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(8, 3, 4, 4), (5, 16, 3, 4), (7, 5, 3, 3), (12, 40), (4, 2, 2, 2, 6)]
)
def test_moments_and_gradient_sums_are_those_of_the_formula(monkeypatch, shape, dtype):
    """In one part or in several: means that are large against what is around them."""
    draw = torch.Generator().manual_seed(sum(shape))
    X, dY = (torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(2))
    X = (
        X
        + 600 * (torch.rand(shape[1], generator=draw).double() - 0.5).view(-1, *(1,) * (X.ndim - 2))
    ).to(dtype)
    axes = [axis for axis in range(X.ndim) if axis != 1]
    variance, mean = torch.var_mean(X.double(), axes, correction=0, keepdim=True)
    scaled = (X.double() - mean) / (variance + 1e-3).sqrt()
    truth = [mean, variance, (dY.to(dtype) * scaled).sum(axes), dY.to(dtype).double().sum(axes)]
    eps, places = torch.finfo(dtype).eps, X.numel() // shape[1]
    for least in (1, 2**20):
        monkeypatch.setattr(channel_passes, "ENOUGH", least)
        for last in (False, True):
            inputs = [value.to(dtype) for value in (X, dY)]
            if last:  # channels side by side
                inputs = [value.movedim(1, -1).contiguous().movedim(-1, 1) for value in inputs]
            parts = channel_passes._parts(inputs[0])
            assert (parts > 1) == (least == 1 and places % 2 == 0 and (last or X.ndim == 2))
            moments = _whole(*channel_passes.moments(inputs[0]))
            statistics = (values.flatten().to(dtype) for values in (mean, variance))
            sums = channel_passes.gradient_sums(inputs[1], inputs[0], *statistics, 1e-3)
            assert len(sums[0]) == parts
            sums = [values.sum(dim=0) for values in sums]
            # means of up to 300 are rounded to 300 eps, a term of the sums likewise
            for found, wanted, size in zip(
                (*moments, *sums), truth, (1, 1, places, places), strict=True
            ):
                limit = 1200 * eps * size
                torch.testing.assert_close(found.double(), wanted.flatten(), rtol=0, atol=limit)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("least", [1, 2**20, None])
def test_one_rank_is_torchs_and_may_be_changed_in_place(monkeypatch, last, least):
    """As by the activations of most networks; second derivatives, which ranks do not share, are refused."""
    monkeypatch.setattr(rank_normalisation, "gathered_on_host", lambda own: own[None])
    if least is not None:  # by torch's functions
        monkeypatch.setattr(rank_normalisation, "takes", lambda *given: False)
        monkeypatch.setattr(channel_passes, "ENOUGH", least)
    draw = torch.Generator().manual_seed(1)
    X, V = (torch.randn(6, 16, 4, 4, generator=draw) for _ in range(2))
    if last:
        X = X.contiguous(memory_format=torch.channels_last)
    found = []
    for norm in (share_batch_norm(nn.BatchNorm2d(16)), nn.BatchNorm2d(16)):
        own = X.clone().requires_grad_()
        outputs = torch.relu_(norm(own))
        assert outputs.stride() == X.stride()
        (outputs * V).sum().backward()
        found.append(
            [outputs.detach(), own.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    own = X.clone().requires_grad_()
    outputs = share_batch_norm(nn.BatchNorm2d(16))(own)
    (slope,) = torch.autograd.grad(outputs.square().sum(), own, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_torchs_own_is_for_plain_layers_on_cuda():
    class Shy(nn.BatchNorm2d):
        def forward(self, X):
            return super().forward(X)

    with pretend_cuda():
        layers = [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4)]
        for layer, is_torchs in [(layer, True) for layer in layers] + [(Shy(4), False)]:
            layer.to("cuda")
            shared = share_batch_norm(layer)
            (sync,) = shared._sync
            assert (sync is not None) == is_torchs
            if sync is not None:  # of the very tensors
                assert sync.weight is layer.weight
                assert sync.running_var is layer.running_var
                assert (sync.eps, sync.momentum) == (layer.eps, layer.momentum)
            assert own_batch_norm(shared) is layer
    assert share_batch_norm(nn.BatchNorm2d(4))._sync == [None]
    # a stack runs under vmap, which torch's does not know
    stack = share_batch_norm(Stack([convnet(), convnet(1)]))
    assert stack.skeleton[0][1]._sync == [None]
