"""Early stopping, the best epoch, a caller that listens, and epochs that are raised later."""

import dataclasses
import signal

import numpy as np
import pytest
import torch

from sdgpu.nn import load_weights
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict, score
from sdgpu.nn.records import Epoch
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.stopping import best_epoch, patience_ended
from sdgpu.nn.trainer import train
from tests.nn.problems import StopError, convnet, data, mlp, same_bits, stop_after

PLAIN = Config(epochs=8, batch=10, lr=0.05, decay=0.0, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def without_time(history):
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


def history(*losses, accuracies=None):
    accuracies = accuracies or [0.0] * len(losses)
    return [
        Epoch(i + 1, 0.1, 0.5, 0.5, 0.0, loss, accuracy, 1.0)
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]


def test_the_best_epoch_is_the_first_of_equal_ones():
    past = history(3.0, 1.0, 2.0, 1.0, accuracies=[0.1, 0.3, 0.3, 0.2])
    assert best_epoch(past, "val_loss") == 2
    assert best_epoch(past, "val_accuracy") == 2
    assert best_epoch(past, "train_loss") == 1
    assert best_epoch([], "val_loss") is None
    assert best_epoch(history(float("nan")), "val_loss") is None
    assert best_epoch(history(float("nan"), 2.0), "val_loss") == 2
    # members of a stack have best epochs of their own
    assert best_epoch(history((2.0, 1.0), (1.0, 2.0)), "val_loss") is None


def test_patience_counts_epochs_since_the_best():
    past = history(3.0, 1.0, 2.0, 1.0)
    for patience, ended in ((0, False), (1, True), (2, True), (3, False)):
        assert patience_ended(past, change(patience=patience)) == ended
    assert not patience_ended(past[:2], change(patience=1))


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
@pytest.mark.parametrize("make", [mlp, convnet])
def test_the_best_weights_are_those_of_a_training_that_ends_there(make, monitor):
    config = change(keep="best", monitor=monitor)
    found = train(make(), data(), None, config)
    losses = [getattr(epoch, monitor) for epoch in found.history]
    best = int(np.argmax(losses) if monitor == "val_accuracy" else np.argmin(losses)) + 1
    assert found.best_epoch == best
    # so that the test can fail
    assert best < 8
    truth = train(make(), data(), None, change(epochs=best))
    assert same_bits(found.model, truth.model)
    last = train(make(), data(), None, change(monitor=monitor))
    assert (last.best_epoch, last.history[:best]) != (None, ())
    assert not same_bits(last.model, found.model)
    found_score = score(predict(found.model, data().val), data().val)
    assert found_score.loss == found.history[best - 1].val_loss


@pytest.mark.parametrize("patience", [1, 2])
def test_a_training_ends_when_its_patience_does(patience, tmp_path):
    config = change(patience=patience, keep="best", epochs=30)
    found = train(mlp(), data(), None, config, folder=tmp_path)
    losses = [epoch.val_loss for epoch in found.history]
    best = int(np.argmin(losses)) + 1
    assert len(losses) == best + patience < 30
    assert (
        found.status
        == f"{best + patience} epochs of 3 batches: no better val_loss in {patience} epochs"
    )
    # a loop of one's own would have ended there
    longer = train(mlp(), data(), None, change(epochs=30))
    values, k = [epoch.val_loss for epoch in longer.history], 1
    while k - (int(np.argmin(values[:k])) + 1) < patience:
        k += 1
    assert k == len(losses)
    assert found.images_per_second == pytest.approx(k * 24 / found.seconds)
    # it stays ended, and its files have the weights that it returned
    events = []
    again = train(mlp(), data(), None, config, folder=tmp_path, progress=events.append)
    assert events == []
    assert same_bits(again.model, found.model)
    assert again.status == found.status
    assert same_bits(load_weights(mlp(3), tmp_path), found.model)


def test_the_best_of_an_average():
    config = change(keep="best", ema=0.6)
    found = train(mlp(), data(), None, config)
    best = found.best_epoch
    assert best < 8
    assert same_bits(found.model, train(mlp(), data(), None, change(epochs=best, ema=0.6)).model)


def test_a_caller_hears_every_epoch_and_may_end_the_training(tmp_path):
    heard = []
    found = train(mlp(), data(), None, change(epochs=3), on_epoch=heard.append)
    assert tuple(heard) == found.history
    heard.clear()

    def enough(epoch):
        heard.append(epoch)
        return epoch.epoch == 2

    ended = train(mlp(), data(), None, PLAIN, on_epoch=enough, folder=tmp_path)
    assert [epoch.epoch for epoch in heard] == [1, 2]
    assert ended.status == "2 epochs of 3 batches: on_epoch ended it"
    assert same_bits(ended.model, train(mlp(), data(), None, change(epochs=2)).model)
    again = train(mlp(), data(), None, PLAIN, on_epoch=enough, folder=tmp_path)
    assert len(heard) == 2
    assert same_bits(again.model, ended.model)
    assert [epoch.epoch for epoch in again.history] == [1, 2]
    # of NumPy too
    by_numpy = train(mlp(), data(), None, PLAIN, on_epoch=lambda e: np.float64(e.epoch) >= 3)
    assert len(by_numpy.history) == 3


def test_early_stopping_by_a_caller_alone():
    """As one writes it, with a memory of one's own: the same as by patience."""
    best, waited = [float("inf")], [0]

    def stop(epoch):
        if epoch.val_loss < best[0]:
            best[0], waited[0] = epoch.val_loss, 0
        else:
            waited[0] += 1
        return waited[0] >= 2

    one = train(mlp(), data(), None, change(epochs=30), on_epoch=stop)
    two = train(mlp(), data(), None, change(epochs=30, patience=2))
    assert same_bits(one.model, two.model)
    assert without_time(one.history) == without_time(two.history)


def test_a_caller_is_told_once_of_epochs_that_were_saved(tmp_path):
    heard, config = [], change(epochs=4, save_seconds=0.0)
    with pytest.raises(StopError):
        train(
            mlp(),
            data(),
            None,
            config,
            folder=tmp_path,
            progress=stop_after(8),
            on_epoch=lambda epoch: heard.append(epoch.epoch),
        )
    train(mlp(), data(), None, config, folder=tmp_path, on_epoch=lambda e: heard.append(e.epoch))
    assert heard == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", ["stop", 1, torch.tensor(True)])
def test_an_answer_that_is_none_is_refused(answer):
    with pytest.raises(TypeError, match="on_epoch must return True"):
        train(mlp(), data(), None, PLAIN, on_epoch=lambda epoch: answer)


def test_an_interrupt_while_the_caller_listens_is_saved(tmp_path):
    def interrupt(epoch):
        if epoch.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    config = change(epochs=4, save_seconds=3600.0)
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), data(), None, config, folder=tmp_path, on_epoch=interrupt)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (2, 0)
    rest = train(mlp(), data(), None, config, folder=tmp_path)
    assert same_bits(rest.model, train(mlp(), data(), None, config).model)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimiser": "sgd", "schedule": "milestones", "milestones": (2,)},
        {"ema": 0.9, "keep": "best"},
        {"amp": "fp16"},
        {"schedule": lambda position: 1 / (1 + position), "warmup": 1.0},
    ],
)
def test_epochs_may_be_raised_later(tmp_path, fields):
    dtype = torch.float32 if "amp" in fields else torch.float64
    short, long = (change(epochs=epochs, **fields) for epochs in (3, 6))
    first = train(mlp(dtype=dtype), data(), None, short, folder=tmp_path)
    assert len(first.history) == 3
    heard = []
    found = train(
        mlp(dtype=dtype),
        data(),
        None,
        long,
        folder=tmp_path,
        on_epoch=lambda e: heard.append(e.epoch),
    )
    truth = train(mlp(dtype=dtype), data(), None, long)
    assert heard == [4, 5, 6]
    assert same_bits(found.model, truth.model)
    assert without_time(found.history) == without_time(truth.history)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 7
    # and not lowered
    with pytest.raises(ValueError, match="has ended epoch 6, but epochs=3"):
        train(mlp(dtype=dtype), data(), None, short, folder=tmp_path)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_epochs_that_a_schedule_counts_are_part_of_the_run(tmp_path, schedule):
    train(mlp(), data(), None, change(schedule=schedule), folder=tmp_path)
    with pytest.raises(ValueError, match=r"another config \(epochs: 8 there, 9 here\)"):
        train(mlp(), data(), None, change(schedule=schedule, epochs=9), folder=tmp_path)


def test_a_run_in_the_middle_of_an_epoch_beyond_the_end_is_refused(tmp_path):
    with pytest.raises(StopError):
        train(
            mlp(),
            data(),
            None,
            change(save_seconds=0.0),
            folder=tmp_path,
            progress=stop_after(8),  # the second batch of the third epoch: one has been saved
        )
    with pytest.raises(ValueError, match="has begun epoch 3, but epochs=2"):
        train(mlp(), data(), None, change(epochs=2), folder=tmp_path)
    assert len(train(mlp(), data(), None, change(epochs=3), folder=tmp_path).history) == 3


def test_what_is_not_extendable_says_so(tmp_path):
    config = change(epochs=2, extendable=False)
    train(mlp(), data(), None, config, folder=tmp_path / "one")
    small = (tmp_path / "one" / "checkpoint.pt").stat().st_size
    with pytest.raises(ValueError, match="ended after 2 epochs and holds no optimiser"):
        train(mlp(), data(), None, change(epochs=3), folder=tmp_path / "one")
    train(mlp(), data(), None, change(epochs=2), folder=tmp_path / "two")
    assert (tmp_path / "two" / "checkpoint.pt").stat().st_size > 1.3 * small
    chain = distill_chain(
        mlp(), data(), change(epochs=2), steps=2, alphas=0.5, folder=tmp_path / "c"
    )
    assert len(chain.models) == 2
    with pytest.raises(ValueError, match="holds no optimiser"):
        distill_chain(mlp(), data(), change(epochs=3), steps=2, alphas=0.5, folder=tmp_path / "c")


def test_what_there_is_nothing_to_tell_by_is_refused():
    problem = dataclasses.replace(data(), val=None)
    for fields, message in (
        ({"patience": 2}, "patience=2 needs validation images for monitor='val_loss'"),
        ({"keep": "best"}, "keep='best' needs validation images"),
        ({"patience": -1}, "patience=-1"),
        ({"keep": "first"}, "keep='first'"),
        ({"monitor": "loss"}, "monitor='loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            train(mlp(), problem, None, change(**fields))
    found = train(mlp(), problem, None, change(patience=2, monitor="train_loss", epochs=2))
    assert found.best_epoch in (1, 2)
    Y = data().train.one_hot(torch.float64)
    with pytest.raises(ValueError, match="keep='best' is for one network"):
        train_stacked([mlp(), mlp(1)], data(), torch.stack([Y, Y]), change(keep="best"))
