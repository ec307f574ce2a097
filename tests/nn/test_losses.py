"""Losses against explicit loops: Hinton's, the user's own, smoothed targets, weights of rows and classes."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdgpu.nn import distill_chain, grid_chains
from sdgpu.nn.augment import normalise, order
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data
from sdgpu.nn.evaluate import predict
from sdgpu.nn.loss import data_loss, hinton_target
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, data, images, mlp, same_bits, state

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def by_hand(model, config, loss_of):
    """A loop as one writes it, with the loss of (logits, rows)."""
    part = data().train
    X = normalise(part.pixels, part.mean, part.std, torch.float64)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.decay)
    for epoch in range(config.epochs):
        for rows in order(len(part), config.order_seed, epoch).split(config.batch):
            optimiser.zero_grad()
            loss_of(model(X[rows]), rows).backward()
            optimiser.step()
    return model


def inputs():
    part = data().train
    return normalise(part.pixels, part.mean, part.std, torch.float64)


def close(found, truth):
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", ["cached", "views", "online"])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("alpha", [0.3, 0.0, 1.0])
def test_hintons_loss_is_two_terms_with_the_temperature_on_the_second(alpha, temperature, mode):
    config = change(loss="hinton", temperature=temperature, teacher=mode, views=2)
    teacher, labels = mlp(1), data().train.labels
    with torch.no_grad():
        told = functional.softmax(teacher(inputs()) / temperature, dim=1)

    def loss_of(logits, rows):
        truth = functional.cross_entropy(logits, labels[rows])
        # as it is usually written: the divergence, whose gradient is that of the cross-entropy
        log_p = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(log_p, told[rows], reduction="batchmean")
        return alpha * truth + (1 - alpha) * temperature**2 * soft

    found = train(mlp(), data(), Teacher(teacher, alpha), config)
    close(found.model, by_hand(mlp(), config, loss_of))
    if alpha == 1:
        step_1 = train(mlp(), data(), None, config)
        assert same_bits(step_1.model, found.model)
        assert same_bits(
            step_1.model, train(mlp(), data(), None, change(loss="cross-entropy")).model
        )


def test_the_value_of_hintons_loss_and_its_target():
    generator = torch.Generator().manual_seed(0)
    Y = torch.eye(3, dtype=torch.float64)[[0, 2]]
    P = torch.rand(2, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    logits = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    target = hinton_target(Y, P, 0.3)
    assert torch.equal(target, torch.cat([0.3 * Y, 0.7 * P], dim=1))
    value = 0.0
    for i in range(2):
        one = [math.exp(z) for z in logits[i].tolist()]
        warm = [math.exp(z / 3) for z in logits[i].tolist()]
        for j in range(3):
            value -= 0.3 * float(Y[i, j]) * math.log(one[j] / sum(one)) / 2
            value -= 9 * 0.7 * float(P[i, j]) * math.log(warm[j] / sum(warm)) / 2
    found = data_loss(logits, target, loss="hinton", temperature=3.0)
    assert float(found) == pytest.approx(value, rel=1e-14)
    hard = hinton_target(Y, P, 0.3, hard=True)
    assert torch.equal(hard[:, 3:], 0.7 * functional.one_hot(P.argmax(dim=1), 3).double())
    views = hinton_target(Y, torch.stack([P, P]), 0.3)
    assert torch.equal(views[1], target)


def test_students_by_hintons_loss_are_scored_without_the_temperature():
    config, model = change(loss="hinton", temperature=5.0), mlp()
    part = data().val
    X = normalise(part.pixels, part.mean, part.std, torch.float64)
    torch.testing.assert_close(predict(model, part, config), model(X).detach().softmax(dim=1))
    warm = change(loss="cross-entropy", temperature=5.0)
    torch.testing.assert_close(predict(model, part, warm), (model(X).detach() / 5).softmax(dim=1))


def test_a_chain_by_hintons_loss():
    config = change(loss="hinton", temperature=2.0)
    chain = distill_chain(mlp(), data(), config, steps=2, alphas=0.4)
    first = train(mlp(), data(), None, config).model
    second = train(mlp(), data(), Teacher(first, 0.4), config).model
    assert same_bits(chain.models[1], second)
    with pytest.raises(ValueError, match="stacked=True needs a loss with one target, not 'hinton'"):
        grid_chains(mlp(), data(), config, steps=2, alphas=[0.4], stacked=True)


def rows_of(logits, target):
    return (logits - 3 * target).abs().sqrt().sum(dim=-1)


def mean_of(logits, target):
    return rows_of(logits, target).mean(dim=-1)


@pytest.mark.parametrize("own", [rows_of, mean_of])
def test_a_loss_of_ones_own(own):
    config = change(loss=own)
    Y = data().train.one_hot(torch.float64)
    truth = by_hand(mlp(), config, lambda logits, rows: mean_of(logits, Y[rows]))
    close(train(mlp(), data(), None, config).model, truth)
    # in parts, where the last batch is shorter, and in a stack
    close(train(mlp(), data(), None, change(loss=own, accumulate=5)).model, truth)
    stack = train_stacked([mlp(), mlp(1)], data(), torch.stack([Y, Y]), config)
    close(stack[0].model, truth)


def test_a_loss_of_ones_own_hears_the_mixed_target_of_a_teacher():
    config = change(loss=rows_of)
    Y, teacher = data().train.one_hot(torch.float64), mlp(1)
    U = 0.3 * Y + 0.7 * predict(teacher, data().train)
    truth = by_hand(mlp(), config, lambda logits, rows: mean_of(logits, U[rows]))
    close(train(mlp(), data(), Teacher(teacher, 0.3), config).model, truth)


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (lambda logits, target: 1.0, TypeError, "loss gives float, but must give a tensor"),
        (lambda logits, target: target.long().sum(), TypeError, "loss gives torch.int64"),
        (
            lambda logits, target: logits - target,
            ValueError,
            r"loss gives shape \(2, 3\) for logits \(2, 3\): .*\(2,\), or their mean, \(\)",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused_before_any_work(own, error, message):
    seen = []
    with pytest.raises(error, match=message):
        train(mlp(), data(), None, change(loss=own), progress=seen.append)
    assert seen == []


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_label_smoothing_is_that_of_torch(smoothing):
    config = change(loss="cross-entropy", label_smoothing=smoothing)
    labels = data().train.labels
    truth = by_hand(
        mlp(),
        config,
        lambda logits, rows: functional.cross_entropy(
            logits, labels[rows], label_smoothing=smoothing
        ),
    )
    close(train(mlp(), data(), None, config).model, truth)


@pytest.mark.parametrize("mode", ["cached", "views", "online", "paper-script"])
def test_smoothing_is_of_the_ground_truth_alone(mode):
    config = change(label_smoothing=0.3, teacher=mode)
    teacher, Y = mlp(1), data().train.one_hot(torch.float64)
    U = 0.4 * (0.7 * Y + 0.3 / CLASSES) + 0.6 * predict(teacher, data().train)
    close(
        train(mlp(), data(), Teacher(teacher, 0.4), config).model,
        train(mlp(), data(), U, PLAIN).model,
    )


def test_a_stacked_grid_smooths_as_chains_do():
    config = change(label_smoothing=0.3)
    one, stack = (
        grid_chains(mlp(), data(), config, steps=2, alphas=[0.3], stacked=stacked)
        for stacked in (False, True)
    )
    close(one[0].models[1], stack[0].models[1])


def weighted(n, weights):
    part = images(n, 0)
    return Data(part, None, None, None if weights is None else torch.tensor(weights))


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", rows_of])
def test_whole_weights_are_repeated_rows(loss):
    """In one batch of all rows, where a mean over more rows is the same mean."""
    counts = [1.0, 2.0, 0.0, 3.0, 1.0, 2.0]
    config = Config(epochs=4, batch=6, lr=0.02, crop_pad=0, flip=False, loss=loss)
    found = train(mlp(), weighted(6, counts), None, config)
    part = images(6, 0)
    index = torch.tensor([i for i, count in enumerate(counts) for _ in range(int(count))])
    repeated = Data(part.take(index), None, None)
    truth = train(mlp(), repeated, None, dataclasses.replace(config, batch=len(index)))
    close(found.model, truth.model)
    assert found.history[-1].train_loss == pytest.approx(truth.history[-1].train_loss, rel=1e-12)
    assert found.history[-1].train_accuracy != truth.history[-1].train_accuracy or True
    # a common factor changes nothing but rounding
    scaled = weighted(6, [7 * count for count in counts])
    close(train(mlp(), scaled, None, config).model, truth.model)


@pytest.mark.parametrize("batch", [24, 10])
def test_class_weights_are_those_of_torch_up_to_their_mean(batch):
    config = change(loss="cross-entropy", class_weights=(1.0, 3.0, 0.5), batch=batch)
    labels = data().train.labels
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    mean = weights[labels].mean()

    def loss_of(logits, rows):
        losses = functional.cross_entropy(logits, labels[rows], weight=weights, reduction="none")
        return losses.sum() / mean / len(rows)

    found = train(mlp(), data(), None, config)
    close(found.model, by_hand(mlp(), config, loss_of))
    if batch == 24:  # then torch's own mean is the same
        truth = by_hand(
            mlp(),
            config,
            lambda logits, rows: functional.cross_entropy(logits, labels[rows], weight=weights),
        )
        close(found.model, truth)


def test_balanced_classes_weigh_the_same():
    labels = torch.tensor([0] * 4 + [1] * 7 + [2] * 1)
    part = dataclasses.replace(images(12, 0), labels=labels)
    config = change(batch=12, class_weights="balanced")
    found = train(mlp(), Data(part, None, None), None, config).model
    counts = torch.tensor([4.0, 7.0, 1.0]).double()
    given = train(mlp(), Data(part, None, None, (1 / counts)[labels]), None, change(batch=12)).model
    close(found, given)
    named = change(batch=12, class_weights=(1 / 4, 1 / 7, 1.0))
    close(found, train(mlp(), Data(part, None, None), None, named).model)


def test_weights_of_classes_and_rows_multiply_and_serve_every_batch():
    rows = torch.linspace(0.1, 2.0, 24)
    problem = data()
    both = Data(problem.train, None, None, rows)
    config = change(class_weights=(1.0, 3.0, 0.5))
    product = rows.double() * torch.tensor([1.0, 3.0, 0.5]).double()[problem.train.labels]
    close(
        train(mlp(), both, None, config).model,
        train(mlp(), Data(problem.train, None, None, product), None, PLAIN).model,
    )
    close(
        train(mlp(), both, None, config).model,
        train(mlp(), both, None, change(class_weights=(1.0, 3.0, 0.5), accumulate=5)).model,
    )


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(23), ValueError, r"weights must be \(24,\).*got \(23,\)"),
        (torch.full((24,), math.nan), ValueError, "finite and >= 0"),
        (-torch.ones(24), ValueError, "finite and >= 0"),
        (torch.ones(24, dtype=torch.int64), TypeError, "floating point"),
        ([1.0] * 24, TypeError, "weights must be a tensor"),
    ],
)
def test_weights_that_are_none_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        Data(data().train, None, None, weights)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"class_weights": (1.0, 2.0)}, ValueError, "2 entries, but the images have 3 classes"),
        ({"class_weights": (1.0, -2.0, 1.0)}, ValueError, "class_weights=-2.0"),
        ({"class_weights": (0.0, 0.0, 0.0)}, ValueError, "all 0"),
        ({"class_weights": "inverse"}, ValueError, "class_weights='inverse'"),
        ({"class_weights": 2.0}, TypeError, "several numbers"),
        ({"class_weights": (1.0, 1.0, 2.0), "loss": mean_of}, ValueError, "loss gives a mean"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing=1"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing=-0.1"),
        ({"loss": "hinton", "activation": "identity"}, ValueError, "loss='hinton' needs"),
        ({"loss": "huber"}, ValueError, "loss='huber'"),
    ],
)
def test_options_that_do_not_fit_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        train(mlp(), data(), None, change(**fields))


def test_weights_of_a_checkpoint_are_part_of_its_data(tmp_path):
    problem = data()
    one, two = (Data(problem.train, None, None, torch.ones(24) + i) for i in (0, torch.arange(24)))
    train(mlp(), one, None, PLAIN, folder=tmp_path)
    for other in (two, Data(problem.train, None, None)):
        with pytest.raises(ValueError, match="another data"):
            train(mlp(), other, None, PLAIN, folder=tmp_path)


class SoftmaxNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x).softmax(dim=1)


def test_a_network_that_gives_probabilities_is_told_of():
    with pytest.warns(UserWarning, match="gives probabilities.*logits"):
        train(SoftmaxNet(), data(), None, change(epochs=1))
    with pytest.warns(UserWarning, match="the teacher gives probabilities"):
        train(mlp(), data(), Teacher(SoftmaxNet(), 0.5), change(epochs=1))
    train(SoftmaxNet(), data(), None, change(epochs=1, activation="identity"))


def test_logits_as_targets_are_refused():
    logits = mlp(1)(inputs()).detach()
    with pytest.raises(ValueError, match=r"targets: rows of probabilities .*predictions"):
        train(mlp(), data(), logits, PLAIN)
    train(mlp(), data(), logits, change(epochs=1, activation="identity"))
    train(mlp(), data(), logits, change(epochs=1, loss=rows_of))
    # no logits either
    train(mlp(), data(), 0.5 * data().train.one_hot(), change(epochs=1))
    # weights outside of [0, 1] leave the simplex, but rows still sum to 1
    Y = data().train.one_hot(torch.float64)
    train(mlp(), data(), -0.5 * Y + 1.5 * logits.softmax(dim=1), change(epochs=1))
