"""Compiled passes of batch norm against the formula in extended precision, and against torch."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm

from sdgpu.nn import compiled_norm, rank_normalisation
from sdgpu.nn.rank_normalisation import normalised
from sdgpu.nn.shared_norm import share_batch_norm

SHAPES = [(2,), (67,), (2, 1, 3), (3, 5), (5, 7, 7), (3, 17, 33), (2, 2, 3, 5), (2, 4200)]


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(rank_normalisation, "gathered_on_host", lambda own: own[None].copy())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.fixture
def used(monkeypatch):
    """The path that every call took."""
    found = []
    takes = rank_normalisation.takes

    def told(*given):
        found.append(takes(*given))
        return found[-1]

    monkeypatch.setattr(rank_normalisation, "takes", told)
    return found


def beside(X):
    """The same numbers with channels side by side in memory."""
    return X.movedim(1, -1).contiguous().movedim(-1, 1)


def problem(shape, C, dtype, mean=0.0):
    draw = torch.Generator().manual_seed(sum(shape) + C)
    X, V = (
        torch.randn(shape[0], C, *shape[1:], generator=draw, dtype=torch.float64) for _ in range(2)
    )
    offsets = mean * torch.rand(C, generator=draw, dtype=torch.float64) + mean
    X = X + offsets.view(-1, *(1,) * (X.ndim - 2))
    vectors = [torch.rand(C, generator=draw, dtype=torch.float64) + 0.5 for _ in range(4)]
    return [value.to(dtype) for value in (X, V, *vectors)]


def passes(norm, X, V, vectors, **settings):
    """Outputs, gradients by inputs and parameters, running statistics."""
    means, variances, weight, bias = (
        None if one is None else one.detach().clone() for one in vectors
    )
    asked = [one.requires_grad_() for one in (weight, bias) if one is not None]
    X = X.detach().requires_grad_()
    outputs = norm(X, means, variances, weight, bias, **settings)
    outputs.backward(V)
    kept = [one for one in (means, variances) if one is not None]
    return [outputs.detach(), X.grad, *(one.grad for one in asked), *kept]


def torchs(*given, **settings):
    return batch_norm(*given, training=True, **settings)


def formula(X, V, vectors, momentum, eps):
    """What passes(..) are, in extended precision."""
    axes = tuple(axis for axis in range(X.ndim) if axis != 1)
    X, V = (one.double().numpy().astype(np.longdouble) for one in (X, V))
    means, variances, weight, bias = (one.double().numpy().astype(np.longdouble) for one in vectors)
    wide, n = (1, -1, *(1,) * (X.ndim - 2)), X.size // X.shape[1]
    mean = X.mean(axes, keepdims=True)
    variance = ((X - mean) ** 2).mean(axes, keepdims=True)
    Z, slope = (X - mean) / np.sqrt(variance + eps), weight.reshape(wide) / np.sqrt(variance + eps)
    by_weight, by_bias = (V * Z).sum(axes), V.sum(axes)
    dX = slope * (V - (by_bias.reshape(wide) + Z * by_weight.reshape(wide)) / n)
    means = means + momentum * (mean.ravel() - means)
    variances = variances + momentum * (variance.ravel() * n / (n - 1) - variances)
    values = (Z * weight.reshape(wide) + bias.reshape(wide), dX, by_weight, by_bias)
    # numbers of X and means are rounded, in units of a deviation so much; the sums of a gradient add that up
    unit = 1 + np.abs(X).max() / np.sqrt(variance.min() + eps)
    largest = slope.max() * (1 + np.abs(V).max())
    sizes = [unit * size for size in (values[0], largest, np.abs(V).sum(axes), np.abs(V).sum(axes))]
    # a variance in float32 is a sum of up to a thousand squares before it is one in float64
    sizes = [np.abs(size).max() for size in (*sizes, means, 8 * variances)]
    return [*values, means, variances], [max(size, 1) for size in sizes]


def assert_formula(found, X, V, vectors, **settings):
    for ours, wanted, size in zip(found, *formula(X, V, vectors, **settings), strict=True):
        assert ours.dtype == X.dtype
        off = np.abs(ours.numpy().reshape(wanted.shape) - wanted).max()
        assert off <= 2 * torch.finfo(X.dtype).eps * size


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("C", [1, 3, 16, 17, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula_and_bits_of_a_repetition(used, dtype, C, last, mean):
    settings = {"momentum": 0.3, "eps": 1e-3}
    for shape in SHAPES:
        X, V, *vectors = problem(shape, C, dtype, mean)
        if last:
            X, V = beside(X), beside(V)
        found = passes(normalised, X, V, vectors, **settings)
        assert found[0].stride() == found[1].stride() == X.stride()
        assert_formula(found, X, V, vectors, **settings)
        again = passes(normalised, X, V, vectors, **settings)
        assert all(map(torch.equal, found, again))
    assert used == [True] * 2 * len(SHAPES)


@pytest.mark.parametrize("last", [False, True])
def test_layers_without_weight_or_statistics(used, last):
    for missing in ([2], [3], [2, 3], [0, 1], [0, 1, 2, 3]):
        X, V, *vectors = problem((5, 4, 6), 20, torch.float64)
        if last:
            X, V = beside(X), beside(V)
        vectors = [None if k in missing else one for k, one in enumerate(vectors)]
        settings = {"momentum": 0.1, "eps": 1e-5}
        found = passes(normalised, X, V, vectors, **settings)
        for ours, wanted in zip(found, passes(torchs, X, V, vectors, **settings), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)
    assert used == [True] * 5


@pytest.mark.parametrize("last", [False, True])
def test_what_is_not_finite_stays_in_its_channel_as_torch_has_it(last):
    for number in (float("inf"), -float("inf"), float("nan")):
        for place in ((0, 0, 0), (3, 5, 6)):
            X, V, *vectors = problem((4, 6, 7), 18, torch.float32)
            X[place[0], 2, place[1], place[2]] = number
            X[0, 9, 0, 0], X[3, 9, 5, 6] = float("inf"), -float("inf")
            if last:
                X, V = beside(X), beside(V)
            settings = {"momentum": 0.1, "eps": 1e-5}
            found = passes(normalised, X, V, vectors, **settings)
            for ours, wanted in zip(found, passes(torchs, X, V, vectors, **settings), strict=True):
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("last", [False, True])
def test_the_guess_of_the_mean_may_be_far_off(last):
    """The first numbers of every channel, from which it is made, are outliers; one channel is constant."""
    X, V, *vectors = problem((40, 9, 9), 20, torch.float32, 10.0)
    X[0] += 1e6 if not last else 0.0
    X[0, :, 0] = -3e7
    X[:, 4] = 0.1
    truth = torch.var_mean(X.double(), (0, 2, 3), correction=1)
    X = beside(X) if last else X
    passes(normalised, X, V, vectors, momentum=1.0, eps=1e-5)
    means, variances = vectors[0].clone(), vectors[1].clone()
    normalised(X, means, variances, None, None, momentum=1.0, eps=1e-5)
    torch.testing.assert_close(means.double(), truth[1], rtol=2e-6, atol=0)
    torch.testing.assert_close(variances.double(), truth[0], rtol=2e-6, atol=1e-14)
    assert variances[4] == 0.0


def test_gradients_and_inputs_of_other_layouts(used):
    """A sum has a gradient without memory of its own; a network may turn its images."""
    X, V, *vectors = problem((5, 4, 6), 7, torch.float64)
    settings = {"momentum": 0.1, "eps": 1e-5}
    turned = X.transpose(2, 3).contiguous().transpose(2, 3)
    for inputs in (X, beside(X), turned, X[:, :, ::2], X.expand_as(X)):
        for gradient in (V, beside(V), V[:1, :, :1, :1]):
            gradient = gradient[:, :, : inputs.shape[2]].expand_as(inputs)
            found = passes(normalised, inputs, gradient, vectors, **settings)
            truth = passes(torchs, inputs, gradient, vectors, **settings)
            for ours, wanted in zip(found, truth, strict=True):
                torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-11)
    assert used == [True] * 15


def test_half_precision_is_normalised_in_float32(used):
    X, V, *vectors = problem((5, 4, 6), 16, torch.float32)
    half = [X.bfloat16(), V.bfloat16()]
    found = passes(normalised, *half, vectors, momentum=0.1, eps=1e-5)
    truth = passes(torchs, *(one.float() for one in half), vectors, momentum=0.1, eps=1e-5)
    assert used == [True]
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    for ours, wanted in zip(found, truth, strict=True):
        tolerance = 1e-2 if ours.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours.float(), wanted, rtol=tolerance, atol=tolerance)


def test_ranks_of_any_size_merge_in_their_order(monkeypatch):
    """Three of them in turns, by what they would have sent, against one that has all rows."""
    X, V, *vectors = problem((12, 3, 4), 19, torch.float64, 50.0)
    shares, settings = (slice(0, 2), slice(2, 3), slice(3, 12)), {"momentum": 0.3, "eps": 1e-3}
    truth = passes(torchs, X, V, vectors, **settings)
    everyone = []
    for message in range(2):  # each is known once the one before it is
        sent = [[] for _ in shares]
        for rank, share in enumerate(shares):

            def gather(own, sent=sent[rank]):
                sent.append(own.copy())
                known = len(sent) <= len(everyone)
                return everyone[len(sent) - 1] if known else own[None].copy()

            monkeypatch.setattr(rank_normalisation, "gathered_on_host", gather)
            passes(normalised, X[share], V[share], vectors, **settings)
        everyone.append(torch.tensor([list(one[message].ravel()) for one in sent]).numpy())
        everyone[-1] = everyone[-1].reshape(len(shares), *sent[0][message].shape)
    found = []
    for share in shares:
        calls = iter(everyone)
        monkeypatch.setattr(
            rank_normalisation, "gathered_on_host", lambda own, calls=calls: next(calls)
        )
        found.append(passes(normalised, X[share], V[share], vectors, **settings))
    for k, wanted in enumerate(truth):
        parts = [one[k] for one in found]
        ours = torch.cat(parts) if k < 2 else sum(parts) if k < 4 else parts[0]
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-11)
        assert k < 4 or all(torch.equal(parts[0], one) for one in parts[1:])


@pytest.fixture
def _no_machine(monkeypatch):
    compiled_norm.compiled_norm.cache_clear()
    yield
    monkeypatch.undo()
    compiled_norm.compiled_norm.cache_clear()


@pytest.mark.usefixtures("_no_machine")
@pytest.mark.parametrize("why", ["no llvmlite", "no compiled code", "threads", "channels", "dtype"])
def test_else_by_torch(monkeypatch, used, why):
    if why == "no llvmlite":
        monkeypatch.setitem(sys.modules, "sdgpu.nn.channel_loops", None)
    if why == "no compiled code":
        from sdgpu.nn import channel_loops

        def refused(dtype):
            raise OSError("memory cannot be made executable")

        monkeypatch.setattr(channel_loops, "channel_loops", refused)
    if why == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if why == "channels":
        monkeypatch.setattr(compiled_norm, "MOST", 2)
    X, V, *vectors = problem((5, 4, 6), 3, torch.float32)
    if why == "dtype":
        vectors[0], vectors[1] = vectors[0].double(), vectors[1].double()
    settings = {"momentum": 0.1, "eps": 1e-5}
    found = passes(normalised, X, V, vectors, **settings)
    truth = passes(torchs, X.double(), V.double(), [one.double() for one in vectors], **settings)
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)
    assert used == [False]


@pytest.mark.parametrize("vector_bytes", [16, 32])
def test_on_narrower_vectors(monkeypatch, vector_bytes):
    from sdgpu.kernels.compiled import machine_code
    from sdgpu.nn import channel_loops

    monkeypatch.setattr(machine_code, "_vector_bytes", lambda: vector_bytes)
    machine = channel_loops.channel_loops.__wrapped__("float32")
    loops = compiled_norm.CompiledNorm(machine, channel_loops.LINES)
    monkeypatch.setattr(rank_normalisation, "compiled_norm", lambda dtype: loops)
    settings = {"momentum": 0.1, "eps": 1e-5}
    for C in (3, 17, 64):
        X, V, *vectors = problem((5, 7, 9), C, torch.float32)
        for change in (torch.clone, beside):
            found = passes(normalised, change(X), change(V), vectors, **settings)
            assert_formula(found, X, V, vectors, **settings)


def test_a_graph_may_be_gone_through_twice_and_outputs_changed_in_place():
    X, V, *_ = problem((6, 4, 4), 16, torch.float32)
    layer = share_batch_norm(nn.BatchNorm2d(16))
    own = X.clone().requires_grad_()
    outputs = torch.relu_(layer(own))
    gradients = [torch.autograd.grad(outputs, own, V, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*gradients)
    reference = X.clone().requires_grad_()
    torch.relu(nn.BatchNorm2d(16)(reference)).backward(V)
    torch.testing.assert_close(gradients[0], reference.grad, rtol=1e-4, atol=1e-5)
