"""The loop against a plain one, and what it refuses."""

import dataclasses
import importlib.util
import itertools
import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sdgpu.backend import progress
from sdgpu.backend.distributed import World
from sdgpu.nn import trainer
from sdgpu.nn.augment import normalise, order
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data
from sdgpu.nn.epoch_sums import EpochSums
from sdgpu.nn.evaluate import checksum, predict, score
from sdgpu.nn.loss import data_loss, mixed_target, penalty
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import convnet, data, mlp, same_bits, state

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def by_hand(model, problem, target, config, make):
    """The same training with the penalty in the graph and torch's optimiser as it comes."""
    optimiser = make(model.parameters())
    images = problem.train
    X = normalise(images.pixels, images.mean, images.std, torch.float64)
    for epoch in range(config.epochs):
        for rows in order(len(images), config.order_seed, epoch).split(config.batch):
            optimiser.zero_grad()
            loss = data_loss(model(X[rows]), target[rows], loss=config.loss)
            form = config.penalty
            loss = loss + penalty(model, config.decay, form=form, covers=config.penalty_covers)
            loss.backward()
            optimiser.step()
    return model


@pytest.mark.parametrize("covers", ["all", "weights"])
@pytest.mark.parametrize("form", ["l2", "paper-script"])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_the_loop_is_that_of_the_textbook(optimiser, form, covers):
    config = change(optimiser=optimiser, penalty=form, penalty_covers=covers)
    problem, target = data(), data().train.one_hot(torch.float64)

    def make(parameters):
        if optimiser == "adam":
            return torch.optim.Adam(parameters, lr=config.lr)
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum)

    found = train(mlp(), problem, None, config).model
    truth = by_hand(mlp(), problem, target, config, make)
    # Adam divides by the root of the second moment, which magnifies rounding of small gradients
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)


def test_decoupled_decay_is_that_of_adamw():
    config = change(penalty="decoupled", decay=0.1)
    problem, target = data(), data().train.one_hot(torch.float64)
    truth = by_hand(
        mlp(),
        problem,
        target,
        config,
        lambda p: torch.optim.AdamW(p, lr=config.lr, weight_decay=config.decay),
    )
    found = train(mlp(), problem, None, config).model
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)


def test_the_model_that_comes_in_is_not_changed_and_runs_repeat_bit_for_bit():
    config, model = change(crop_pad=1, flip=True), convnet()
    before, random = checksum(model), torch.get_rng_state()
    first, second = (train(model, data(), None, config) for _ in range(2))
    assert checksum(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert same_bits(first.model, second.model)
    assert not first.model.training
    other = train(model, data(), None, dataclasses.replace(config, augment_seed=1))
    assert not same_bits(first.model, other.model)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulated_parts_are_one_large_batch(accumulate):
    whole = train(mlp(), data(), None, PLAIN)
    parts = train(mlp(), data(), None, change(accumulate=accumulate))
    torch.testing.assert_close(state(parts.model), state(whole.model), rtol=1e-9, atol=1e-10)
    assert math.isclose(parts.history[-1].train_loss, whole.history[-1].train_loss, rel_tol=1e-9)


def test_history_says_what_happened():
    problem = data()
    result = train(mlp(), problem, None, PLAIN)
    last = result.history[-1]
    assert [epoch.epoch for epoch in result.history] == [1, 2, 3]
    found = score(predict(result.model, problem.val, PLAIN), problem.val)
    assert (last.val_loss, last.val_accuracy) == (found.loss, found.accuracy)
    assert last.penalty == pytest.approx(penalty(result.model, PLAIN.decay).item(), rel=1e-12)
    # 3 epochs of 24 rows
    assert result.seconds == last.seconds > 0
    assert result.images_per_second * result.seconds == pytest.approx(3 * 24)
    no_val = dataclasses.replace(problem, val=None)
    assert math.isnan(train(mlp(), no_val, None, PLAIN).history[-1].val_loss)


def test_the_time_of_a_training_is_that_of_its_batches(tmp_path, monkeypatch):
    """By a clock that ticks when it is read: what checkpoints take is not counted."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(trainer, "time", clock)
    plain = train(mlp(), data(), None, PLAIN)
    assert [epoch.seconds for epoch in plain.history] == [1, 2, 3]
    assert (plain.seconds, plain.images_per_second) == (3, 3 * 24 / 3)
    # saved after batches 1 and 2 of each epoch too
    saved = train(mlp(), data(), None, change(save_seconds=0.0), folder=tmp_path)
    assert [epoch.seconds for epoch in saved.history] == [3, 6, 9]


def test_a_run_is_saved_whenever_the_seconds_have_passed(tmp_path, monkeypatch):
    now, saved, real = [1e3], [], trainer._Run._save

    def save(run):
        saved.append((run.state.epoch, run.state.batch))
        real(run)

    def a_second_later(_):
        now[0] += 1.0

    clock = SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: now[0])
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(trainer._Run, "_save", save)
    config = change(save_seconds=2.0)
    train(mlp(), data(), None, config, folder=tmp_path, progress=a_second_later)
    # every second of nine batches, and at the end
    assert saved == [(0, 2), (1, 1), (2, 0), (2, 2), (3, 0)]


def test_training_loss_is_the_mean_over_all_rows():
    # a rate near 0: the weights of every batch are those of the start
    problem, model = data(), mlp()
    result = train(model, problem, None, change(epochs=1, lr=1e-300, decay=0.0))
    found = score(predict(model, problem.train), problem.train)
    assert math.isclose(result.history[0].train_loss, found.loss, rel_tol=1e-12)
    assert result.history[0].train_accuracy == found.accuracy


def test_a_cached_teacher_is_its_mixed_target():
    problem, teacher = data(), train(mlp(1), data(), None, PLAIN).model
    P = predict(teacher, problem.train)
    target = mixed_target(problem.train.one_hot(torch.float64), P, -0.3)
    asked = train(mlp(), problem, Teacher(teacher, -0.3), PLAIN)
    given = train(mlp(), problem, target, PLAIN)
    assert same_bits(asked.model, given.model)


@pytest.mark.parametrize("mode", ["cached", "views", "online"])
def test_teachers_agree_on_clean_views_and_never_change(mode):
    config = change(teacher=mode, views=2)
    teacher = train(convnet(1), data(), None, PLAIN).model
    teacher.train()  # whatever mode it comes in
    before = checksum(teacher)
    found = train(convnet(), data(), Teacher(teacher, 0.4), config)
    truth = train(convnet(), data(), Teacher(teacher, 0.4), PLAIN)
    assert checksum(teacher) == before
    assert teacher.training
    torch.testing.assert_close(state(found.model), state(truth.model), rtol=1e-9, atol=1e-10)


def test_views_are_those_the_teacher_saw():
    problem = data()
    config = change(epochs=4, teacher="views", views=2, crop_pad=1, flip=True, lr=1e-300, decay=0.0)
    model = mlp()
    # a student that is its teacher has loss 0 on the views that the teacher saw, and on no others
    result = train(model, problem, Teacher(model, 0.0), config)
    assert max(epoch.train_loss for epoch in result.history) < 1e-28
    cached = train(
        model, problem, Teacher(model, 0.0), dataclasses.replace(config, teacher="cached")
    )
    assert cached.history[0].train_loss > 1e-6


def test_the_drift_of_the_script_happens_on_a_copy():
    teacher = train(convnet(1), data(), None, PLAIN).model
    before = checksum(teacher)
    drifting = train(convnet(), data(), Teacher(teacher, 0.4), change(teacher="paper-script"))
    still = train(convnet(), data(), Teacher(teacher, 0.4), change(teacher="online"))
    assert checksum(teacher) == before
    assert not torch.allclose(state(drifting.model), state(still.model), rtol=1e-6)


def test_the_order_of_the_script_is_one_permutation():
    one = train(mlp(), data(), None, change(epochs=1))
    assert same_bits(
        one.model, train(mlp(), data(), None, change(epochs=1, order="paper-script")).model
    )
    assert not same_bits(
        train(mlp(), data(), None, PLAIN).model,
        train(mlp(), data(), None, change(order="paper-script")).model,
    )


def test_a_shared_teacher_that_changes_is_noticed(monkeypatch):
    teacher = mlp(1)
    with pytest.raises(RuntimeError, match="teacher changed"):
        train(
            mlp(),
            data(),
            Teacher(teacher, 0.5),
            PLAIN,
            progress=lambda event: teacher[1].bias.data.add_(1.0),
        )


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns(amp):
    config = change(amp=amp, epochs=20)
    result = train(mlp(dtype=torch.float32), data(), None, config)
    full = train(mlp(dtype=torch.float32), data(), None, change(epochs=20))
    assert result.history[-1].train_loss < 0.9 * result.history[0].train_loss
    # bf16 has 8 bits: the losses agree to some of its units
    assert abs(result.history[-1].train_loss - full.history[-1].train_loss) < 0.05
    assert next(result.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("teacher", ["cached", "online"])
def test_a_caller_with_autocast_of_its_own_changes_nothing(amp, teacher):
    """Within it torch keeps the weights in half precision, which a step makes out of date."""
    config, told = (
        change(amp=amp, teacher=teacher, lr=0.1),
        Teacher(mlp(1, dtype=torch.float32), 0.3),
    )
    alone = train(mlp(dtype=torch.float32), data(), told, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = train(mlp(dtype=torch.float32), data(), told, config)
    assert same_bits(alone.model, within.model)
    assert alone.history[-1].train_loss == within.history[-1].train_loss


def test_channels_last_and_deterministic_change_no_result():
    config = change(channels_last=True, deterministic=True)
    found, truth = train(convnet(), data(), None, config), train(convnet(), data(), None, PLAIN)
    torch.testing.assert_close(state(found.model), state(truth.model), rtol=1e-9, atol=1e-10)
    assert not torch.are_deterministic_algorithms_enabled()


def test_frozen_parameters_stay():
    model = mlp()
    model[1].weight.requires_grad_(False)
    result = train(model, data(), None, PLAIN)
    assert torch.equal(result.model[1].weight, model[1].weight)
    assert not torch.equal(result.model[3].weight, model[3].weight)


def test_rates():
    rates = [change(epochs=4, schedule="cosine", lr=1.0).rate(e, 0, 10) for e in range(4)]
    assert rates == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    warm = change(epochs=4, schedule="linear", warmup=1.0, lr=1.0)
    assert warm.rate(0, 0, 10) == pytest.approx(0.1)
    assert warm.rate(1, 0, 10) == pytest.approx(1.0)
    assert warm.rate(2, 5, 10) == pytest.approx(0.5)
    steps = change(epochs=4, schedule="milestones", milestones=(1, 3), lr=1.0)
    assert [steps.rate(e, 0, 10) for e in range(4)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_progress_events():
    events = []
    train(mlp(), data(), None, PLAIN, progress=events.append, stage="step-1")
    assert [event.stage for event in events] == ["step-1"] * 9
    assert [event.done for event in events] == list(range(1, 10))
    assert {event.total for event in events} == {9}


class Trap(nn.Module):
    """Gives NaN at the k-th training batch."""

    def __init__(self, k):
        super().__init__()
        self.inner, self.k, self.seen = mlp(), k, 0

    def forward(self, x):
        self.seen += self.training
        return self.inner(x) * (float("nan") if self.seen == self.k else 1.0)


def test_a_loss_that_is_not_finite_stops_by_name(tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"step-7.*nan.*epoch 2, batch 2 of 3.*no checkpoint"
    ):
        train(Trap(5), data(), None, PLAIN, stage="step-7")
    config = change(save_seconds=0.0)
    with pytest.raises(FloatingPointError, match=r"last good checkpoint is .*batch 1 of epoch 2"):
        train(Trap(5), data(), None, config, folder=tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 1)
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


def test_the_first_loss_that_is_not_finite_is_named_when_many_are_read_at_once(monkeypatch):
    real = trainer._Run._look
    monkeypatch.setattr(
        trainer._Run, "_look", lambda run: run.state.batch == run.batches and real(run)
    )
    # from batch 5 on, which is the second of three of epoch 2, nothing is finite
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 2, batch 2 of 3"):
        train(Trap(5), data(), None, PLAIN)


def test_sums_of_an_epoch_name_the_first_loss_that_is_not_finite():
    sums, alone = EpochSums(5, 2, torch.device("cpu")), World()
    for losses, hits in (([1e308, 1.0], [3, 4]), ([1.0, 1.0], [0, 1])):
        sums.add(0, torch.tensor(losses, dtype=torch.float64), torch.tensor(hits))
    assert sums.look(1, alone) is None
    assert sums.hits[:, 0].tolist() == [3, 5]
    sums.losses[:, 1] = 1e308  # each is finite, their sum is not
    sums.losses[:, 2] = torch.tensor([1.0, -math.inf])
    sums.losses[0, 3] = math.nan
    assert sums.look(2, alone) is None
    assert sums.look(5, alone) == (2, -math.inf)
    assert sums.look(5, alone) is None  # all read


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    config = change(optimiser="sgd", lr=1e38, decay=1e10, epochs=1, batch=24)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(mlp(dtype=torch.float32), data(), None, config, folder=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def _labels(value):
    problem = data()
    problem.train.labels[3] = value
    return problem


@pytest.mark.parametrize(
    ("problem", "targets", "config", "error", "message"),
    [
        (data(), None, {"batch": 25}, ValueError, "batch=25 exceeds the n=24"),
        (_labels(3), None, {}, ValueError, "labels run from 0 to 3"),
        (_labels(-1), None, {}, ValueError, "labels run from -1"),
        (data(), torch.zeros(24, 4), {}, ValueError, r"shape \(24, 4\)"),
        (data(), torch.full((24, 3), math.nan), {}, ValueError, "finite"),
        (data(), "labels", {}, TypeError, "must be a tensor"),
    ],
)
def test_bad_data_are_named(problem, targets, config, error, message):
    with pytest.raises(error, match=message):
        train(mlp(), problem, targets, change(**config))


def test_a_model_with_other_outputs_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match=r"shape \(1, 5\).*classes=3"):
        train(model, data(), None, PLAIN)


def test_alpha_nan_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        Teacher(mlp(), math.nan)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs=0"),
        ({"epochs": 1.5}, TypeError, "epochs=1.5"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"lr": 0.0}, ValueError, "lr=0.0"),
        ({"lr": math.nan}, ValueError, "lr=nan"),
        ({"optimiser": "adams"}, ValueError, "optimiser='adams'.*did you mean 'adam'"),
        ({"accumulate": 3}, ValueError, "accumulate=3 does not divide batch=10"),
        ({"loss": "cross-entropy", "activation": "identity"}, ValueError, "cross-entropy"),
        ({"schedule": "milestones"}, ValueError, "milestones"),
        ({"warmup": 3.0}, ValueError, "warmup=3"),
        ({"betas": (0.9, 1.0)}, ValueError, "betas"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"flip": 1}, TypeError, "flip=1"),
        ({"views": 0}, ValueError, "views=0"),
        ({"temperature": -1.0}, ValueError, "temperature"),
    ],
)
def test_bad_configurations_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        change(**fields)


def test_configurations_survive_json():
    config = change(schedule="milestones", milestones=(1, 2), betas=(0.8, 0.99))
    assert Config.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="epoch"):
        Config.from_json('{"epoch": 3}')


def test_tensorboard_is_asked_for_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="tensorboard=True needs folder="):
        train(mlp(), data(), None, change(tensorboard=True))
    if importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(ImportError, match="pip install tensorboard"):
            train(mlp(), data(), None, change(tensorboard=True), folder=tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf and tensorboard themselves
def test_tensorboard_holds_the_numbers_of_the_history(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = train(mlp(), data(), None, change(tensorboard=True), folder=tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train_loss", "val_accuracy"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(epoch.epoch, getattr(epoch, name)) for epoch in found.history]
        torch.testing.assert_close(torch.tensor(shown), torch.tensor(wanted))


def test_cuda_graphs_need_cuda():
    with pytest.raises(ValueError, match="cuda_graphs=True needs the images on a CUDA device"):
        train(mlp(), data(), None, change(cuda_graphs=True))


@pytest.mark.gpu
def test_cuda_graphs_change_nothing():
    problem = data()
    parts = [
        dataclasses.replace(part, pixels=part.pixels.cuda(), labels=part.labels.cuda())
        for part in (problem.train, problem.val, problem.test)
    ]
    plain, graphs = (
        train(mlp(dtype=torch.float32), Data(*parts), None, change(cuda_graphs=on)).model
        for on in (False, True)
    )
    torch.testing.assert_close(state(plain), state(graphs), rtol=1e-4, atol=1e-5)
