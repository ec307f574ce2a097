"""Tables, texts and images in floating point: the same training, resume and caching as for bytes."""

import dataclasses

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from sdgpu.nn import (
    Config,
    Data,
    Samples,
    Teacher,
    distill_chain,
    make_data,
    normalise,
    order,
    predict,
    samples_from_arrays,
    score,
    split_images,
    train,
    train_stacked,
)
from tests.nn.problems import StopError, convnet, data, same_bits, state, stop_after

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, flip=False, crop_pad=0, save_seconds=0)


def table(n=34, d=5, classes=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(n, d)) + labels[:, None]).astype(dtype), labels


def linear(inputs, classes=3, seed=0, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).to(dtype)


def by_hand(model, X, targets, config):
    """The training loop that anybody would write, in the order of the package."""
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.decay)
    for epoch in range(config.epochs):
        for rows in order(len(X), config.order_seed, epoch).split(config.batch):
            optimiser.zero_grad()
            f = model(X[rows]).softmax(dim=-1)
            (0.5 * (f - targets[rows]).square().sum(dim=1).mean()).backward()
            optimiser.step()
    return model


@pytest.mark.parametrize("standardise", [False, True])
def test_a_table_is_trained_as_by_hand(standardise):
    X, y = table()
    own = make_data((X, y), val=0, standardise=standardise)
    result = train(linear(5), own, None, CONFIG)
    scaled = (X - X.mean(axis=0)) / X.std(axis=0) if standardise else X
    reference = by_hand(
        linear(5), torch.from_numpy(scaled), torch.eye(3, dtype=torch.float64)[y], CONFIG
    )
    assert_allclose(state(result.model), state(reference), rtol=1e-9, atol=1e-11)
    P = predict(result.model, own.train)
    assert_allclose(P, reference(torch.from_numpy(scaled)).softmax(dim=1).detach(), rtol=1e-9)
    hits = (P.argmax(dim=1).numpy() == y).mean()
    assert score(P, own.train).accuracy == pytest.approx(hits)


def test_images_as_floats_are_images_without_views():
    """Bits of a training on pixels that were normalised beforehand are those of one on bytes."""
    images = data(channels=2)
    floats = [
        (normalise(part.pixels, part.mean, part.std, torch.float64), part.labels)
        for part in (images.train, images.val, images.test)
    ]
    own = make_data(*floats)
    one = train(convnet(channels=2), images, None, CONFIG)
    two = train(convnet(channels=2), own, None, CONFIG)
    assert same_bits(one.model, two.model)
    assert [e.val_loss for e in one.history] == [e.val_loss for e in two.history]
    last = train(convnet(channels=2), own, None, dataclasses.replace(CONFIG, channels_last=True))
    assert_allclose(state(last.model), state(one.model), rtol=1e-9, atol=1e-11)


def test_channels_are_standardised():
    X = np.random.default_rng(1).normal(3, 2, (30, 2, 4, 5))
    own = make_data((X, np.arange(30) % 3), val=6, standardise=True)
    values = torch.cat(list(own.train.clean(range(24), 7, torch.float64)))
    assert_allclose(values.mean(dim=(0, 2, 3)), 0, atol=1e-12)
    assert_allclose(values.std(dim=(0, 2, 3), correction=0), 1, rtol=1e-12)
    assert own.val.mean == own.train.mean
    constant = make_data((np.full((6, 2), 0.1), np.arange(6) % 2), val=0, standardise=True)
    assert constant.train.std == (1.0, 1.0)


class Bag(nn.Module):
    """Words of a text, embedded, averaged and classified."""

    def __init__(self, words=11, width=6, classes=3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(words, width)
            self.head = nn.Linear(width, classes)

    def forward(self, text):
        return self.head(self.embedding(text).mean(dim=1))


def texts(n=42, length=7):
    rng = np.random.default_rng(2)
    words = rng.integers(0, 11, (n, length)).astype(np.int32)
    labels = np.arange(n) % 3
    words[:, :4] = labels[:, None]
    return words, labels


def test_texts():
    own = make_data(texts(), val=6, test=texts())
    assert own.train.values.dtype == torch.int64
    config = dataclasses.replace(CONFIG, epochs=20, lr=0.05)
    chain = distill_chain(Bag().double(), own, config, steps=3, alphas="algorithm1")
    assert chain.records[0].test.accuracy == 1.0
    assert np.isfinite(chain.alphas).all()


@pytest.mark.parametrize("kind", ["table", "texts"])
@pytest.mark.parametrize("teacher", ["cached", "online"])
def test_a_training_goes_on_in_the_middle_of_an_epoch(tmp_path, kind, teacher):
    own = make_data(table() if kind == "table" else texts(), val=4)
    model = linear(5) if kind == "table" else Bag().double()
    targets = Teacher(train(model, own, None, CONFIG).model, 0.3)
    config = dataclasses.replace(CONFIG, teacher=teacher)
    whole = train(model, own, targets, config)
    for batches in (1, 4, 5):
        with pytest.raises(StopError):
            train(
                model,
                own,
                targets,
                config,
                folder=tmp_path / "fit",
                progress=stop_after(batches),
                resume=batches > 1,
            )
    resumed = train(model, own, targets, config, folder=tmp_path / "fit")
    assert same_bits(whole.model, resumed.model)
    other = make_data(table(seed=1) if kind == "table" else (texts()[0] % 5, texts()[1]), val=4)
    with pytest.raises(ValueError, match=r"belongs to another (data|targets)"):
        train(model, other, targets, config, folder=tmp_path / "fit")


def test_views_of_samples_are_all_the_same():
    own = make_data(table(), val=0)
    teacher = Teacher(linear(5, seed=1), 0.4)
    one = train(linear(5), own, teacher, CONFIG)
    two = train(linear(5), own, teacher, dataclasses.replace(CONFIG, teacher="views", views=2))
    assert_allclose(state(one.model), state(two.model), rtol=1e-12)


def test_stacks_of_samples():
    own = make_data(table(), val=5)
    Y = own.train.one_hot(torch.float64)
    targets = torch.stack([Y, 0.5 * Y + 0.1])
    both = train_stacked([linear(5), linear(5)], own, targets, CONFIG)
    alone = train(linear(5), own, targets[1], CONFIG)
    assert_allclose(state(both[1].model), state(alone.model), rtol=1e-9, atol=1e-11)


def test_parts_and_their_sizes():
    X, y = table(60)
    own = make_data((X, y), val=0.1, test=0.25, seed=3)
    assert (len(own.train), len(own.val), len(own.test)) == (41, 4, 15)
    rows = [tuple(row) for part in (own.train, own.val, own.test) for row in part.values.tolist()]
    assert sorted(rows) == sorted(map(tuple, X.tolist()))
    again = make_data((X, y), val=0.1, test=0.25, seed=4)
    assert torch.equal(again.test.values, own.test.values)
    assert not torch.equal(again.val.values, own.val.values)
    for empty in (0, 0.0, None):
        bare = make_data((X, y), val=empty, test=empty)
        assert (bare.val, bare.test) == (None, None)
        assert bare.train.values.data_ptr() == torch.from_numpy(X).data_ptr()
    made = make_data(own.train, val=own.val, test=(X[:3], y[:3]))
    assert made.train.values is own.train.values
    assert len(made.test) == 3
    with pytest.raises(ValueError, match=r"val=32 does not leave one image .* in 0\.\.31"):
        make_data((X[:34], y[:34]), val=32)


def test_bytes_become_images():
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8), np.arange(30) % 3
    own = make_data((pixels, labels), val=6, test=(pixels[:5], labels[:5]), channels_last=True)
    reference = split_images(
        make_data((pixels, labels), val=0, channels_last=True).train,
        make_data((pixels[:5], labels[:5]), val=0, classes=3, channels_last=True).train,
        val=6,
    )
    for part, other in zip(
        (own.train, own.val, own.test),
        (reference.train, reference.val, reference.test),
        strict=True,
    ):
        assert torch.equal(part.pixels, other.pixels)
        assert part.mean == other.mean


def test_long_tails_and_classes_that_a_part_lacks():
    X, _ = table(40)
    y = np.array([0] * 30 + [1] * 9 + [2])
    own = make_data((X, y), val=8, test=(X[:4], y[:4]))
    assert own.train.classes == own.val.classes == own.test.classes == 3
    assert torch.bincount(own.train.labels, minlength=3)[2] == 1
    train(linear(5), own, None, dataclasses.replace(CONFIG, epochs=1))
    with pytest.raises(ValueError, match=r"data, train: no row of class 2 among 39"):
        make_data((X[:39], y[:39]), val=(X, y))
    assert make_data((X[:39], y[:39]), val=(X, y), classes=4).train.classes == 4


X, LABELS = table(8, 3, 2)


@pytest.mark.parametrize(
    ("values", "labels", "error", "message"),
    [
        (X[:, 0], LABELS, ValueError, r"values must be \(n, ...\).* shape \(8,\): one column"),
        (X[:0], LABELS[:0], ValueError, "none of them 0"),
        (X.astype(np.uint8), LABELS, TypeError, r"uint8 and shape \(8, 3\) may be numbers or cat"),
        (X > 0, LABELS, TypeError, "torch.bool"),
        (X.astype(complex), LABELS, TypeError, "values must be numbers, got dtype complex128"),
        (X.astype(object), LABELS, TypeError, "values must be numbers, got dtype object"),
        (np.where(X > 1, np.nan, X), LABELS, ValueError, r"\d of 8 samples hold NaN or infinity"),
        (X, LABELS[:7], ValueError, r"labels must be \(8,\), one per sample, got \(7,\)"),
        (X, LABELS / 1, TypeError, "labels must be whole numbers"),
        (X, LABELS - 1, ValueError, "label -1 is out of range"),
        (X, 2 * LABELS, ValueError, "no sample of class 1 among 8: give more samples"),
        (X, 0 * LABELS, ValueError, "all labels are 0"),
    ],
)
def test_bad_arrays(values, labels, error, message):
    with pytest.raises(error, match=f"mine: .*{message}"):
        samples_from_arrays(values, labels, name="mine")
    with pytest.raises(error, match="mine, train"):
        make_data((values, labels), name="mine")


def test_bad_requests():
    with pytest.raises(TypeError, match=r"train must be .X, y., a data set or a part, not list"):
        make_data([X, LABELS])
    with pytest.raises(
        TypeError, match=r"train must be .X, y., a data set or a part, not NoneType"
    ):
        make_data(None)
    with pytest.raises(ValueError, match="val has 3 entries: give"):
        make_data((X, LABELS), val=(X, LABELS, 1))
    with pytest.raises(
        TypeError, match=r"test must be .X, y., a data set or a part, a share, a number, not"
    ):
        make_data((X, LABELS), test="test")
    with pytest.raises((TypeError, ValueError), match="val="):
        make_data((X, LABELS), val=True)
    with pytest.raises(ValueError, match=r"val has samples of shape \(2,\), but train \(3,\)"):
        make_data((X, LABELS), val=(X[:, :2], LABELS))
    with pytest.raises(TypeError, match=r"standardise=True with values of torch.int64"):
        make_data((X.astype(int), LABELS), val=0, standardise=True)
    pixels = np.zeros((8, 1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"standardise=True is for arrays .* not for images"):
        make_data((pixels, LABELS), val=0, standardise=True)
    with pytest.raises(ValueError, match=r"images of shape \(1, 4, 4\), but train \(3,\)"):
        make_data((X, LABELS), val=(pixels, LABELS))
    with pytest.raises(ValueError, match=r"model='smallcnn' is for images .*\(3,\)"):
        distill_chain("smallcnn", make_data((X, LABELS), val=0), CONFIG, steps=1, alphas=0.0)
    part = samples_from_arrays(X, LABELS)
    with pytest.raises(ValueError, match=r"has labels \(7,\) for values \(8, 3\)"):
        Data(dataclasses.replace(part, labels=part.labels[:7]), None, None)
    with pytest.raises(TypeError, match="train must be Images, Samples or LoadedSamples, not list"):
        Data([1], None, None)
    assert isinstance(samples_from_arrays(X, LABELS), Samples)
