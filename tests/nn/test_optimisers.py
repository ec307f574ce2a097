"""Optimisers, clipping, schedules and averages against explicit loops; and they resume to the same bits."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from sdgpu.nn import Lion
from sdgpu.nn.augment import normalise, order
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict, score
from sdgpu.nn.loss import data_loss
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import StopError, convnet, data, mlp, same_bits, state, stop_after

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def steps(model, config, make, *, after=None, before=None, rates=None, target=None):
    """A loop as one writes it: the model after all steps."""
    images = data().train
    optimiser = make(model.parameters())
    X = normalise(images.pixels, images.mean, images.std, torch.float64)
    Y = images.one_hot(torch.float64) if target is None else target
    count = 0
    for epoch in range(config.epochs):
        for rows in order(len(images), config.order_seed, epoch).split(config.batch):
            if rates is not None:
                optimiser.param_groups[0]["lr"] = rates(epoch, count)
            optimiser.zero_grad()
            data_loss(model(X[rows]), Y[rows]).backward()
            if before is not None:
                before(model)
            optimiser.step()
            count += 1
            if after is not None:
                after(model)
    return model


def close(found, truth):
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)


class PublishedLion:
    """Algorithm 2 of Chen et al. 2023, entry by entry in NumPy."""

    def __init__(self, parameters, lr, betas, decay):
        self.parameters, self.lr, self.betas, self.decay = list(parameters), lr, betas, decay
        self.m = [np.zeros(p.shape) for p in self.parameters]

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

    def step(self):
        b1, b2 = self.betas
        for p, m in zip(self.parameters, self.m, strict=True):
            g, theta = p.grad.numpy(), p.detach().numpy().copy()
            c = b1 * m + (1 - b1) * g
            new = theta - self.lr * (np.sign(c) + self.decay * theta)
            m[...] = b2 * m + (1 - b2) * g
            p.data = torch.from_numpy(new)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lion_is_the_published_one(decay):
    betas = (0.8, 0.95)
    truth = steps(mlp(), PLAIN, lambda p: PublishedLion(p, 0.01, betas, decay))
    alone = steps(mlp(), PLAIN, lambda p: Lion(p, lr=0.01, betas=betas, weight_decay=decay))
    close(alone, truth)
    config = change(optimiser="lion", lr=0.01, betas=betas, decay=decay)
    found = train(mlp(), data(), None, config)
    close(found.model, truth)
    # decoupled decay is no part of a loss
    assert found.history[-1].penalty == 0
    assert Lion(mlp().parameters()).defaults["betas"] == (0.9, 0.99)


def test_lion_leaves_parameters_without_a_gradient_and_calls_a_closure():
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    lion = Lion([one, two], lr=0.5)

    def closure():
        one.grad = torch.tensor([2.0, -3.0])
        return 7

    assert lion.step(closure) == 7
    assert one.tolist() == [0.5, 1.5]
    assert two.tolist() == [1, 1]


@pytest.mark.parametrize("covers", ["all", "weights"])
def test_adamw_by_name_is_that_of_torch(covers):
    config = change(optimiser="adamw", decay=0.1, betas=(0.8, 0.9), penalty_covers=covers)

    def make(parameters):
        parameters = list(parameters)
        vectors = 0.0 if covers == "weights" else 0.1
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": vectors},
        ]
        return torch.optim.AdamW(groups, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1)

    found = train(mlp(), data(), None, config)
    close(found.model, steps(mlp(), config, make))
    # decoupled decay is no part of a loss
    assert found.history[-1].penalty == 0
    assert same_bits(
        found.model,
        train(mlp(), data(), None, change(**{**vars(config), "penalty": "decoupled"})).model,
    )


def rmsprop(groups):
    return torch.optim.RMSprop(groups, alpha=0.9, centered=True)


def test_an_optimiser_of_ones_own():
    config = change(optimiser=rmsprop)
    found = train(mlp(), data(), None, config).model
    make = functools.partial(
        torch.optim.RMSprop, lr=0.02, alpha=0.9, centered=True, weight_decay=0.01
    )
    close(found, steps(mlp(), config, make))


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (lambda groups: None, TypeError, "must give a torch.optim.Optimizer.*not NoneType"),
        (
            lambda groups: torch.optim.SGD(groups[0]["params"][:1], lr=1.0),
            ValueError,
            "optimiser has 1 parameters, but the model trains 4",
        ),
        (3, ValueError, "optimiser=3"),
        ("ranger", ValueError, "optimiser='ranger'.*lion"),
    ],
)
def test_an_optimiser_that_is_none_is_refused(own, error, message):
    with pytest.raises(error, match=message):
        train(mlp(), data(), None, change(optimiser=own))


@pytest.mark.parametrize("norm", [1e-3, 0.05, 1e6])
def test_gradients_are_clipped_as_by_torch(norm):
    norms = []

    def clip(model):
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), norm)))

    make = functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.01)
    truth = steps(mlp(), PLAIN, make, before=clip)
    found = train(mlp(), data(), None, change(optimiser="sgd", clip_norm=norm)).model
    close(found, truth)
    assert (min(norms) > norm) == (norm < 1)


def test_members_of_a_stack_are_clipped_each_by_itself():
    config = change(optimiser="sgd", clip_norm=0.05, epochs=2, activation="identity")
    problem = data()
    Y = problem.train.one_hot(torch.float64)
    targets = torch.stack([Y, 20 * Y])  # gradients of very different norms
    stack = train_stacked([mlp(), mlp(1)], problem, targets, config)
    for result, model, target in zip(stack, (mlp(), mlp(1)), targets, strict=True):
        close(result.model, train(model, problem, target, config).model)


def test_clipping_comes_after_the_scaler_of_float16():
    """A scaled gradient of 2^16 times the size would always be clipped."""
    wide = [
        train(mlp(dtype=torch.float32), data(), None, change(amp="fp16", clip_norm=norm)).model
        for norm in (0.0, 50.0)
    ]
    assert same_bits(*wide)


def triangle(position):
    return 1.0 - abs(position - 1.5) / 3


def test_a_schedule_of_ones_own_is_a_function_of_the_position():
    config = change(schedule=triangle, optimiser="sgd", lr=0.1)
    make = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
    truth = steps(mlp(), config, make, rates=lambda epoch, count: 0.1 * triangle(count / 3))
    found = train(mlp(), data(), None, config)
    close(found.model, truth)
    assert found.history[1].rate == pytest.approx(0.1 * triangle(5 / 3))
    warm = change(schedule=triangle, warmup=1.0, lr=1.0)
    assert warm.rate(0, 0, 10) == pytest.approx(0.1)
    assert warm.rate(1, 0, 10) == triangle(1.0)


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda position: -1.0, ValueError, r"schedule\(0\)=-1.0 must be >= 0"),
        (lambda position: float("nan"), ValueError, "must be finite"),
        (lambda position: "fast", TypeError, "must be a real number"),
        (lambda position: 2.5 - position, ValueError, r"schedule\(2.66667\)=-0.1666"),
    ],
)
def test_a_schedule_that_gives_no_rate_is_refused_before_any_work(schedule, error, message):
    seen = []
    with pytest.raises(error, match=message):
        train(mlp(), data(), None, change(schedule=schedule), progress=seen.append)
    assert seen == []


@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_the_explicit_sum_over_all_steps(make, decay, tmp_path):
    """Of weights and of statistics of batch norm."""
    config = change(ema=decay, save_seconds=0.0)
    path, seen = tmp_path / "checkpoint.pt", []

    def note(_):
        if path.exists():
            seen.append(torch.load(path, weights_only=True))

    found = train(make(), data(), None, config, folder=tmp_path, progress=note)
    rest = [*seen, torch.load(path, weights_only=True)]
    plain = [saved["live"]["model"] for saved in rest]
    assert len(plain) == 9
    for t, saved in enumerate(rest, start=1):
        weights = np.array([decay ** (t - s) for s in range(1, t + 1)])
        weights /= weights.sum()
        for name, average in saved["average"]["model"].items():
            tensors = [live[name] for live in plain[:t]]
            if not average.is_floating_point():
                assert torch.equal(average, tensors[-1])
                continue
            truth = sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True))
            torch.testing.assert_close(average, truth, rtol=1e-12, atol=1e-14)
    # what is returned, and what load_weights and a resumed run find
    for name, tensor in found.model.state_dict().items():
        assert torch.equal(tensor, rest[-1]["average"]["model"][name])
        assert torch.equal(tensor, rest[-1]["model"][name])
    # the training itself is the same
    other = train(make(), data(), None, dataclasses.replace(config, ema=0.0)).model
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, plain[-1][name])


def test_the_average_is_what_is_validated():
    config = change(ema=0.9)
    found = train(mlp(), data(), None, config)
    last = score(predict(found.model, data().val), data().val)
    assert found.history[-1].val_loss == last.loss
    assert found.history[-1].val_loss != train(mlp(), data(), None, PLAIN).history[-1].val_loss


@pytest.mark.parametrize(
    "fields",
    [
        {"optimiser": "lion", "clip_norm": 0.1},
        {"optimiser": "adamw", "ema": 0.9},
        {"optimiser": rmsprop, "schedule": triangle, "ema": 0.5, "keep": "best"},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
        {"keep": "best", "patience": 2, "monitor": "val_accuracy"},
        {"class_weights": "balanced", "loss": "cross-entropy"},
    ],
    ids=lambda fields: "-".join(fields),
)
@pytest.mark.parametrize("done", [3, 5, 6])
def test_every_option_resumes_to_the_same_bits(tmp_path, fields, done):
    config = change(epochs=4, crop_pad=1, save_seconds=0.0, **fields)
    teacher = Teacher(convnet(1), 0.3)
    whole = train(convnet(), data(), teacher, config)
    with pytest.raises(StopError):
        train(convnet(), data(), teacher, config, folder=tmp_path, progress=stop_after(done))
    rest = train(convnet(), data(), teacher, config, folder=tmp_path)
    assert same_bits(whole.model, rest.model)
    assert without_time(rest.history) == without_time(whole.history)
    assert (rest.best_epoch, rest.status) == (whole.best_epoch, whole.status)
    again = train(convnet(), data(), teacher, config, folder=tmp_path)
    assert same_bits(whole.model, again.model)


def without_time(history):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]
