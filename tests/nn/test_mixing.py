"""Mixup and cutmix: written out by hand, drawn from the position, the same however it is trained."""

import dataclasses

import numpy as np
import pytest
import torch

from sdgpu.nn.augment import Augment, normalise, order, stream
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data
from sdgpu.nn.evaluate import predict
from sdgpu.nn.loss import data_loss
from sdgpu.nn.mixing import Mix, draw_mix
from sdgpu.nn.network_teachers import SavedTeacher, TeacherEnsemble
from sdgpu.nn.targets import Feed, Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import data, mlp, state

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)
SEVEN = torch.zeros(7, 1, 20, 30)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def test_targets_and_pixels_by_hand():
    X = torch.arange(2 * 1 * 2 * 3.0).reshape(2, 1, 2, 3)
    U = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    swap = torch.tensor([1, 0])
    mixed = Mix(swap, 0.25, None)
    assert torch.equal(mixed.inputs(X)[0, 0], 0.25 * X[0, 0] + 0.75 * X[1, 0])
    assert mixed.rows(U, 0).tolist() == [[0.25, 0.75], [0.75, 0.25]]
    cut = Mix(swap, 4 / 6, (0, 2, 1, 2))  # the middle column
    assert cut.inputs(X)[0, 0].tolist() == [[0, 7, 2], [3, 10, 5]]
    assert cut.inputs(X)[1, 0].tolist() == [[6, 1, 8], [9, 4, 11]]
    assert X.flatten().tolist() == list(range(12))
    # several members, or views
    stacked = torch.stack([U, 2 * U])
    assert torch.equal(mixed.rows(stacked, -2)[1], 2 * mixed.rows(U, 0))


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_draws_are_those_that_were_published(fields):
    """Shares of Beta(a, a); rectangles of the area 1 - share around uniform places, before they are cut."""
    config = change(**fields)
    mixes = [draw_mix(config, 0, batch, SEVEN) for batch in range(1500)]
    cuts = [mix for mix in mixes if mix.box is not None]
    plain = [mix for mix in mixes if mix.box is None]
    if len(fields) == 2:
        assert abs(len(cuts) - 750) < 4 * np.sqrt(1500) / 2
    else:
        assert (len(cuts) > 0) == ("cutmix" in fields)
        assert (len(plain) > 0) == ("mixup" in fields)
    if plain:
        shares = np.array([mix.share for mix in plain])
        variance = 1 / (4 * (2 * 0.4 + 1))  # of Beta(a, a)
        assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / len(plain))
        assert abs(shares.var() / variance - 1) < 0.2
    for mix in cuts:
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 20
        assert 0 <= left <= right <= 30
        assert mix.share == 1 - (bottom - top) * (right - left) / 600
    if cuts:  # of Beta(1, 1): the area that is left uncut is uniform, and centres reach every place
        heights = np.array([mix.box[1] - mix.box[0] for mix in cuts])
        assert heights.max() > 16
        assert {mix.box[0] for mix in cuts} >= set(range(15))
    assert all(sorted(mix.partner.tolist()) == list(range(7)) for mix in mixes)
    assert len({tuple(mix.partner.tolist()) for mix in mixes}) > 500
    again = draw_mix(config, 0, 3, SEVEN)
    assert (again.share, again.box) == (mixes[3].share, mixes[3].box)
    other = draw_mix(dataclasses.replace(config, augment_seed=1), 0, 3, SEVEN)
    assert (other.share, other.box) != (again.share, again.box)
    assert draw_mix(PLAIN, 0, 0, SEVEN) is None


def published_box(size, share, rng):
    """Of the code of Yun et al. 2019, with the sides in the order of the axes."""
    height, width = size
    ratio = np.sqrt(1.0 - share)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    cy, cx = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (int(np.clip(cy + sign * (cut_h // 2), 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(cx + sign * (cut_w // 2), 0, width)) for sign in (-1, 1))
    return top, bottom, left, right


def test_rectangles_are_those_of_the_published_code():
    config = change(cutmix=0.7)
    for batch in range(200):
        mix = draw_mix(config, 1, batch, SEVEN)
        rng = np.random.default_rng(stream(0, "augment", 1, batch, 0, 0).initial_seed())
        share = rng.beta(0.7, 0.7)
        assert mix.partner.tolist() == rng.permutation(7).tolist()
        assert mix.box == published_box((20, 30), share, rng)


def by_hand(model, problem, config, U):
    """A loop that mixes views and targets itself; returns the mixed targets too."""
    images = problem.train
    augment = Augment(config.crop_pad, config.flip)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.decay)
    for epoch in range(config.epochs):
        for batch, rows in enumerate(order(len(images), 0, epoch).split(config.batch)):
            generator = stream(0, "augment", epoch, batch)
            x = augment(images.pixels[rows], images.mean, images.std, generator, torch.float64)
            mix = draw_mix(config, epoch, batch, x)
            mixed = torch.zeros_like(x)
            target = torch.zeros(len(rows), U.shape[1], dtype=torch.float64)
            for i, j in enumerate(mix.partner.tolist()):
                target[i] = mix.share * U[rows[i]] + (1 - mix.share) * U[rows[j]]
                if mix.box is None:
                    mixed[i] = mix.share * x[i] + (1 - mix.share) * x[j]
                    continue
                mixed[i] = x[i]
                for h in range(mix.box[0], mix.box[1]):
                    for w in range(mix.box[2], mix.box[3]):
                        mixed[i, :, h, w] = x[j, :, h, w]
            optimiser.zero_grad()
            data_loss(model(mixed), target, loss=config.loss).backward()
            optimiser.step()
    return model


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
@pytest.mark.parametrize("teacher", [None, mlp(1)])
def test_a_training_is_that_of_a_loop_that_mixes(fields, teacher):
    config, problem = change(crop_pad=1, flip=True, **fields), data(size=6)
    student = mlp(size=6)
    U = problem.train.one_hot(torch.float64)
    targets = None
    if teacher is not None:
        guide = mlp(1, size=6)
        U, targets = 0.3 * U + 0.7 * predict(guide, problem.train), Teacher(guide, 0.3)
    found = train(student, problem, targets, config).model
    truth = by_hand(mlp(size=6), problem, config, U)
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)
    parts = train(student, problem, targets, dataclasses.replace(config, accumulate=2)).model
    torch.testing.assert_close(state(parts), state(truth), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", ["online", "paper-script"])
def test_a_teacher_in_the_loop_sees_the_mixed_image(mode):
    config, problem, teacher = change(mixup=1.0, teacher=mode), data(), mlp(1)
    feed = Feed(problem.train, Teacher(teacher, 0.3), config, torch.float64)
    batch = feed.batch(1, 2)
    rows = order(24, 0, 1)[20:]
    images = problem.train
    X = normalise(images.pixels[rows], images.mean, images.std, torch.float64)
    mix = draw_mix(config, 1, 2, X)
    torch.testing.assert_close(batch.inputs, mix.inputs(X))
    truth = mix.rows(images.one_hot(torch.float64)[rows], 0)
    P = teacher(mix.inputs(X)).softmax(dim=1)
    target = feed.ask(batch) if batch.target is None else batch.target
    torch.testing.assert_close(target, 0.3 * truth + 0.7 * P)


def test_what_a_table_says_is_mixed_where_a_network_is_asked_beside_it():
    problem, network = data(), mlp(1)
    said = torch.rand(24, 3, generator=torch.Generator().manual_seed(0)).double().softmax(dim=1)
    both = TeacherEnsemble([network, SavedTeacher(said)], weights=[0.4, 0.6])
    config = change(mixup=1.0, teacher="online")
    feed = Feed(problem.train, Teacher(both, 0.3), config, torch.float64)
    batch, rows = feed.batch(0, 0), order(24, 0, 0)[:10]
    mix = draw_mix(config, 0, 0, batch.inputs)
    assert 0.05 < mix.share < 0.95
    P = 0.4 * network(batch.inputs).softmax(dim=1) + 0.6 * mix.rows(said[rows], 0)
    truth = mix.rows(problem.train.one_hot(torch.float64)[rows], 0)
    torch.testing.assert_close(feed.ask(batch), 0.3 * truth + 0.7 * P)


def test_weights_are_mixed_with_their_images():
    problem, config = data(), change(mixup=1.0)
    weights = torch.linspace(0.2, 2.0, 24).double()
    weights = weights / weights.mean()
    feed = Feed(problem.train, None, config, torch.float64, weights=weights)
    batch, rows = feed.batch(0, 0), order(24, 0, 0)[:10]
    mix = draw_mix(config, 0, 0, batch.inputs)
    truth = mix.share * weights[rows] + (1 - mix.share) * weights[rows][mix.partner]
    torch.testing.assert_close(batch.weights, truth)
    heavy = Data(problem.train, None, None, weights)
    found = train(mlp(), heavy, None, config).model
    assert not torch.equal(state(found), state(train(mlp(), problem, None, config).model))


@pytest.mark.parametrize(
    ("fields", "message"), [({"mixup": -0.1}, "mixup=-0.1"), ({"cutmix": float("nan")}, "cutmix")]
)
def test_what_cannot_be_drawn_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        change(**fields)
