"""What one step does to the weights: rates, decay, the scaler of float16, and views."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from sdgpu.nn import trainer
from sdgpu.nn.augment import stream
from sdgpu.nn.config import Config
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, StopError, convnet, data, mlp, same_bits, state, stop_after

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.25, 0.3, 1.0, 1.01, 1.99])
@pytest.mark.parametrize("batches", [1, 3, 10])
def test_no_rate_is_above_lr_and_warm_up_rises_in_equal_steps(schedule, warmup, batches):
    config = change(epochs=2, schedule=schedule, warmup=warmup, lr=1.0)
    rates = [config.rate(epoch, batch, batches) for epoch in range(2) for batch in range(batches)]
    assert min(rates) > 0
    assert max(rates) <= 1
    for k, rate in enumerate(rates):
        if k < warmup * batches:
            assert rate == pytest.approx(min(1, (k + 1) / (warmup * batches)))


class Overflow(nn.Module):
    """Gives infinity at the k-th training batch, before its batch norm."""

    def __init__(self, batches, inner):
        super().__init__()
        self.inner, self.batches, self.seen = inner, batches, 0

    def forward(self, x):
        self.seen += self.training
        bad = self.training and self.seen in self.batches
        return self.inner(x * (math.inf if bad else 1.0))


def states(folder, config, model):
    """Of every checkpoint after each batch."""
    found = []

    def note(_):
        path = folder / "checkpoint.pt"
        if path.exists():
            found.append(torch.load(path, weights_only=True))

    result = train(model, data(), None, config, folder=folder, progress=note)
    found.append(torch.load(folder / "checkpoint.pt", weights_only=True))
    return found, result


@pytest.mark.parametrize("penalty", ["l2", "decoupled", "paper-script"])
@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_batch_that_overflows_in_float16_changes_nothing(tmp_path, penalty, optimiser):
    config = change(amp="fp16", penalty=penalty, optimiser=optimiser, decay=0.1, save_seconds=0.0)
    model = Overflow({5}, convnet(dtype=torch.float32))
    found, result = states(tmp_path, config, model)
    # after batches 1, 2, 3 (the end of an epoch), 4, 5, ..
    before, after, later = (found[k]["model"] for k in (3, 4, 5))
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert any(not torch.equal(after[name], later[name]) for name in after)
    assert found[4]["scaler"]["scale"] == found[3]["scaler"]["scale"] / 2
    assert all(math.isfinite(epoch.train_loss) for epoch in result.history)
    assert not math.isfinite(found[4]["losses"][1])


class Shifted(Overflow):
    """Adds infinity to the outputs of the k-th training batch."""

    def forward(self, x):
        self.seen += self.training
        return self.inner(x) + (math.inf if self.training and self.seen in self.batches else 0.0)


@pytest.mark.parametrize(("activation", "lost"), [("softmax", math.nan), ("identity", math.inf)])
def test_the_mean_is_over_the_batches_that_did_not_overflow(monkeypatch, activation, lost):
    real, seen = trainer._Run._record, []

    def record(run):
        seen.append(run.state.sums.losses.tolist())
        real(run)

    monkeypatch.setattr(trainer._Run, "_record", record)
    model = Shifted({5}, mlp(dtype=torch.float32))
    found = train(model, data(), None, change(amp="fp16", activation=activation)).history
    assert str(seen[1][1]) == str(lost)
    wanted = [
        (10 * seen[0][0] + 10 * seen[0][1] + 4 * seen[0][2]) / 24,
        (10 * seen[1][0] + 4 * seen[1][2]) / 14,
    ]
    assert [epoch.train_loss for epoch in found[:2]] == pytest.approx(wanted, rel=1e-14)


class Drawing(nn.Module):
    """Notes what a layer that draws would get."""

    def __init__(self, seed):
        super().__init__()
        self.inner, self.draws = mlp(seed), []

    def __deepcopy__(self, memo):
        copied = Drawing(0)
        copied.inner.load_state_dict(self.inner.state_dict())
        copied.draws = self.draws
        return copied

    def forward(self, x):
        if self.training:
            self.draws.append(torch.rand(2).tolist())
        return self.inner(x)


def test_student_and_drifting_teacher_draw_from_streams_of_their_own():
    student, teacher = Drawing(0), Drawing(1)
    config = change(epochs=2, teacher="paper-script", augment_seed=3)
    train(student, data(), Teacher(teacher, 0.3), config)
    for model, purpose in ((teacher, 0), (student, 1)):
        seeds = [
            stream(3, "augment", epoch, batch, purpose).initial_seed()
            for epoch in range(2)
            for batch in range(3)
        ]
        wanted = [
            torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist() for seed in seeds
        ]
        assert model.draws[-6:] == wanted


def test_float16_that_always_overflows_ends_the_run_by_name(tmp_path):
    with pytest.raises(FloatingPointError, match=r"every batch of epoch 2 overflowed.*Lower lr"):
        train(Overflow({4, 5, 6}, mlp(dtype=torch.float32)), data(), None, change(amp="fp16"))
    always = Overflow(set(range(2, 200)), mlp(dtype=torch.float32))
    with pytest.raises(FloatingPointError, match=r"batch after batch.*epoch 1, batch \d\d of 48"):
        train(always, data(96), None, change(amp="fp16", batch=2))


def test_a_scaler_is_restored(tmp_path):
    """Its scale is a state like any other: without it a resumed run is another one."""
    config = change(amp="fp16", save_seconds=0.0)
    model = Overflow({2}, mlp(dtype=torch.float32))

    with pytest.raises(StopError):
        train(model, data(), None, config, folder=tmp_path, progress=stop_after(5))
    scales = []

    def note(_):
        scales.append(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["scaler"]["scale"])

    calm = Overflow(set(), mlp(dtype=torch.float32))
    train(calm, data(), None, config, folder=tmp_path, progress=note)
    assert scales == [2.0**15] * len(scales)


def test_the_draws_of_a_drifting_teacher_are_those_of_the_position(tmp_path):
    config = change(teacher="paper-script", save_seconds=0.0)
    teacher = Teacher(mlp(1, dropout=0.3), 0.3)
    whole = train(mlp(), data(), teacher, config).model
    with pytest.raises(StopError):
        train(mlp(), data(), teacher, config, folder=tmp_path, progress=stop_after(5))
    torch.default_generator.manual_seed(77)  # whatever the caller draws from
    rest = train(mlp(), data(), teacher, config, folder=tmp_path).model
    assert same_bits(whole, rest)


@pytest.mark.parametrize("teacher", ["cached", "views", "online", "paper-script"])
def test_alpha_1_is_step_1_for_every_kind_of_teacher(teacher):
    config = change(epochs=4, teacher=teacher, views=3, crop_pad=1, flip=True)
    # dropout in both: a teacher in training mode draws too, and not from what its student draws
    first = train(mlp(dropout=0.3), data(), None, config).model
    again = train(mlp(dropout=0.3), data(), Teacher(mlp(1, dropout=0.3), 1.0), config).model
    assert same_bits(first, again)


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("teacher", [None, Teacher(mlp(1), 0.4)])
def test_the_views_come_in_turn(views, teacher):
    """At a rate of 0 the loss of an epoch says which inputs it saw, and at step 1 too."""
    config = change(
        epochs=2 * views, teacher="views", views=views, crop_pad=1, flip=True, lr=1e-300
    )
    config = dataclasses.replace(config, decay=0.0)
    history = train(mlp(), data(), teacher, config).history
    losses = [epoch.train_loss for epoch in history]
    shares = [epoch.train_accuracy for epoch in history]
    assert min(shares) > 0
    assert shares[:views] == shares[views:]
    assert losses[:views] == pytest.approx(losses[views:], rel=1e-12)
    assert len({round(loss, 8) for loss in losses}) == views


class Counter(nn.Module):
    """Notes how many rows it is asked for."""

    def __init__(self):
        super().__init__()
        self.inner, self.rows = mlp(1), []

    def forward(self, x):
        self.rows.append(len(x))
        return self.inner(x)


def test_a_teacher_in_the_loop_is_asked_part_by_part():
    teacher = Counter()
    config = change(epochs=1, teacher="online", accumulate=5)
    parts = train(mlp(), data(), Teacher(teacher, 0.3), config)
    assert teacher.rows == [1] + [2] * 12  # tried on one image beforehand
    whole = train(mlp(), data(), Teacher(mlp(1), 0.3), change(epochs=1, teacher="online"))
    torch.testing.assert_close(state(parts.model), state(whole.model), rtol=1e-9, atol=1e-10)


def test_gradients_of_parts_are_added_in_memory_of_their_own(monkeypatch):
    """A CUDA graph writes its gradients to the same place every time: so does this stand-in for one."""
    from sdgpu.nn import preconditions, trainer

    place, graphs = {}, False

    class Static(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x)
            return x @ weight.T

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            if "out" not in place:
                place["out"] = torch.empty(CLASSES, x.shape[1], dtype=x.dtype)
            torch.mm(gradient.T, x, out=place["out"])
            return None, place["out"]

    def alias(parameter):
        if graphs and torch.equal(parameter.grad, place["out"]):
            parameter.grad = place["out"]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(CLASSES, 16, generator=generator, dtype=torch.float64)
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            if not self.weight._post_accumulate_grad_hooks:
                self.weight.register_post_accumulate_grad_hook(alias)
            return Static.apply(x.flatten(1), self.weight)

    truth = train(Net(), data(), None, change(accumulate=5)).model
    steps, graphs = [], True
    monkeypatch.setattr(trainer, "compiled", lambda model, config: model)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    monkeypatch.setattr(preconditions, "check_device", lambda config, device: None)
    found = train(Net(), data(), None, change(accumulate=5, cuda_graphs=True)).model
    assert len(steps) == 3 * 12
    torch.testing.assert_close(state(found), state(truth), rtol=1e-12, atol=1e-13)
