"""Every option of a training does what it says: against a loop that takes torch's own parts."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdgpu.nn import image_views
from sdgpu.nn.augment import Augment, normalise, order, stream
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data
from sdgpu.nn.evaluate import predict, score
from sdgpu.nn.grid import grid_chains
from sdgpu.nn.targets import Feed, Teacher
from sdgpu.nn.trainer import train
from sdgpu.nn.training_setup import _cuda_choices, compiled
from tests.nn.problems import CLASSES, convnet, data, mlp, same_bits, state

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


def outputs(model, X, config):
    logits = model(X) / config.temperature
    return logits.softmax(dim=1) if config.activation == "softmax" else logits


def loss_of(model, X, U, config):
    if config.loss == "cross-entropy":
        log_f = functional.log_softmax(model(X) / config.temperature, dim=1)
        return -(U * log_f).sum() / len(X)
    return 0.5 * (outputs(model, X, config) - U).square().sum() / len(X)


def by_hand(model, problem, config, teacher=None, alpha=None, rates=None):
    """Written out, with torch's optimiser and the learning rates of the formula."""
    images = problem.train
    X = normalise(images.pixels, images.mean, images.std, torch.float64)
    U = functional.one_hot(images.labels, CLASSES).double()
    if teacher is not None:
        with torch.no_grad():
            told = outputs(teacher, X, config)
        if config.hard:
            told = functional.one_hot(told.argmax(dim=1), CLASSES).double()
        U = alpha * U + (1 - alpha) * told
    settings = {"lr": config.lr, "weight_decay": config.decay}
    if config.optimiser == "sgd":
        settings |= {"momentum": config.momentum, "nesterov": config.nesterov}
        optimiser = torch.optim.SGD(model.parameters(), **settings)
    else:
        optimiser = torch.optim.Adam(model.parameters(), betas=config.betas, **settings)
    position = 0
    for epoch in range(config.epochs):
        for rows in order(len(images), config.order_seed, epoch).split(config.batch):
            optimiser.param_groups[0]["lr"] = config.lr if rates is None else rates[position]
            position += 1
            optimiser.zero_grad()
            loss_of(model, X[rows], U[rows], config).backward()
            optimiser.step()
    return model


@pytest.mark.parametrize("mode", ["cached", "views", "online"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 3.0},
        {"temperature": 0.5, "loss": "cross-entropy"},
        {"hard": True},
        {"activation": "identity"},
        {"activation": "identity", "temperature": 2.0, "hard": True},
        {"optimiser": "sgd", "nesterov": True},
        {"optimiser": "sgd", "momentum": 0.3},
        {"betas": (0.5, 0.8)},
        {"order_seed": 5},
    ],
)
def test_a_student_is_that_of_the_textbook(fields, mode):
    config, teacher = change(teacher=mode, views=2, **fields), mlp(1)
    found = train(mlp(), data(), Teacher(teacher, 0.3), config).model
    truth = by_hand(mlp(), data(), config, teacher, 0.3)
    # Adam divides by the root of the second moment, which magnifies rounding of small gradients
    torch.testing.assert_close(state(found), state(truth), rtol=1e-9, atol=1e-10)
    plain = train(mlp(), data(), Teacher(teacher, 0.3), change(teacher=mode, views=2)).model
    assert not fields or not torch.allclose(state(found), state(plain), rtol=1e-4, atol=1e-5)


def test_rates_are_those_of_the_position():
    config = change(schedule="cosine", warmup=0.5, optimiser="sgd", lr=0.1)
    rates = [config.rate(epoch, batch, 3) for epoch in range(3) for batch in range(3)]
    assert len(set(rates)) > 6
    found = train(mlp(), data(), None, config)
    truth = by_hand(mlp(), data(), config, rates=rates)
    torch.testing.assert_close(state(found.model), state(truth), rtol=1e-9, atol=1e-10)
    assert [epoch.rate for epoch in found.history] == rates[2::3]
    halves = change(schedule="milestones", milestones=(1, 2), drop=0.5, lr=1.0)
    assert [halves.rate(epoch, 0, 3) for epoch in range(3)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("activation", ["softmax", "identity"])
def test_predictions_and_scores_are_at_the_temperature(activation):
    problem, model = data(), mlp()
    config = change(temperature=3.0, activation=activation)
    images = problem.val
    X = normalise(images.pixels, images.mean, images.std, torch.float64)
    truth = outputs(model, X, config).detach()
    torch.testing.assert_close(predict(model, images, config), truth, rtol=1e-13, atol=1e-14)
    Y = functional.one_hot(images.labels, CLASSES).double()
    found = score(truth, images)
    assert found.loss == pytest.approx(float(0.5 * (truth - Y).square().sum(1).mean()), rel=1e-12)
    assert found.accuracy == float((truth.argmax(1) == images.labels).double().mean())
    # and so is what the history says of the validation images
    result = train(model, problem, None, config)
    last = score(outputs(result.model, X, config).detach(), images)
    assert result.history[-1].val_loss == pytest.approx(last.loss, rel=1e-12)


class Spy(nn.Module):
    """Notes the surroundings of every forward pass."""

    def __init__(self, seed=0, make=mlp, dtype=torch.float64):
        super().__init__()
        self.inner, self.seen = make(seed, dtype=dtype), []

    def __deepcopy__(self, memo):
        copied = Spy.__new__(Spy)
        nn.Module.__init__(copied)
        import copy

        copied.inner, copied.seen = copy.deepcopy(self.inner, memo), self.seen
        return copied

    def forward(self, x):
        self.seen.append(
            {
                "rows": len(x),
                "training": self.training,
                "grad": torch.is_grad_enabled(),
                "amp": torch.is_autocast_enabled("cpu"),
                "type": torch.get_autocast_dtype("cpu"),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "last": x.is_contiguous(memory_format=torch.channels_last),
                "x": x.detach().clone(),
            }
        )
        return self.inner(x)

    def of(self, what, *, grad=True):
        return [
            seen[what]
            for seen in self.seen
            if seen["grad"] == grad and (seen["training"] or not grad)
        ]


def test_autocast_covers_the_student_and_a_teacher_in_the_loop():
    for amp, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for mode in ("online", "paper-script"):
            student, teacher = (Spy(seed, dtype=torch.float32) for seed in (0, 1))
            config = change(epochs=1, amp=amp, teacher=mode)
            train(student, data(), Teacher(teacher, 0.3), config)
            assert student.of("amp") == [True] * 3
            assert {*student.of("type")} == {dtype}
            assert teacher.of("amp", grad=False)[-3:] == [True] * 3
    # evaluation is in float32
    spy = Spy(dtype=torch.float32)
    predict(spy, data().val, change(amp="bf16"))
    assert spy.of("amp", grad=False) == [False]


def test_determinism_and_the_memory_format_reach_the_model():
    last = {"channels_last": True}
    for fields in (
        {},
        {"deterministic": True},
        last,
        {"teacher": "views"},
        last | {"teacher": "views"},
    ):
        spy = Spy(make=lambda seed, dtype: convnet(seed, channels=2, dtype=dtype))
        config = change(epochs=1, **fields)
        found = train(spy, data(channels=2), None, config).model
        assert spy.of("deterministic") == [bool(fields.get("deterministic"))] * 3
        assert spy.of("last") == [bool(fields.get("channels_last"))] * 3
        weight = found.inner[0].weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == (
            "channels_last" in fields
        )


def test_channels_come_last_where_that_is_faster(tmp_path):
    """In float32, with convolutions, of one network, on a CPU; and a checkpoint says so."""

    def formats(make, dtype, **fields):
        spy = Spy(make=lambda seed, dtype: make(seed, channels=2, dtype=dtype), dtype=dtype)
        config = change(epochs=1, **fields)
        found = train(spy, data(channels=2), None, config, folder=tmp_path / f"{len(seen)}").model
        seen.append(found)
        return {*spy.of("last")}

    seen, single = [], torch.float32
    assert formats(convnet, single) == {True}
    assert formats(convnet, single, channels_last=True) == {True}
    assert formats(convnet, single, channels_last=False) == {False}
    assert formats(convnet, torch.float64) == {False}
    assert formats(mlp, single) == {False}
    assert same_bits(seen[0], seen[1])
    torch.testing.assert_close(state(seen[0]), state(seen[2]), rtol=1e-3, atol=1e-4)
    spy = Spy(make=lambda seed, dtype: convnet(seed, channels=2, dtype=dtype), dtype=single)
    with pytest.raises(ValueError, match="channels_last: False there, True here"):
        train(spy, data(channels=2), None, change(epochs=1), folder=tmp_path / "2")
    # predictions too, whether or not the weights have come to lie so
    fresh = convnet(channels=2, dtype=single)
    torch.testing.assert_close(
        predict(fresh, data(channels=2).val),
        predict(fresh, data(channels=2).val, Config(channels_last=False)),
    )
    for value in ("yes", 1):
        with pytest.raises(TypeError, match="channels_last="):
            change(channels_last=value)


def test_parts_of_batches_and_of_evaluations_have_the_rows_that_they_must():
    spy = Spy()
    train(spy, data(), None, change(epochs=1, accumulate=2, eval_batch=7))
    assert spy.of("rows") == [5, 5, 5, 5, 4]
    evaluated = [seen["rows"] for seen in spy.seen if not seen["training"]]
    assert evaluated == [1, 7, 7, 1]  # tried on one image, then 15 of validation
    teacher = Spy(1)
    train(mlp(), data(), Teacher(teacher, 0.3), change(epochs=1, teacher="views", views=3))
    assert teacher.of("rows", grad=False) == [1, 24, 24, 24]


@pytest.mark.parametrize("ahead", [1, 330, 2**20])  # pixels of one batch, of two, of all
@pytest.mark.parametrize("fields", [{"crop_pad": 1}, {"flip": True}, {"crop_pad": 2, "flip": True}])
def test_views_are_drawn_from_the_position(monkeypatch, fields, ahead):
    monkeypatch.setattr(image_views, "AHEAD", ahead)
    spy, problem = Spy(), data()
    config = change(epochs=2, augment_seed=3, order_seed=4, **fields)
    train(spy, problem, None, config)
    found, images = spy.of("x"), problem.train
    augment = Augment(config.crop_pad, config.flip)
    for epoch in range(2):
        for batch, rows in enumerate(order(24, 4, epoch).split(10)):
            generator = stream(3, "augment", epoch, batch)
            args = (images.pixels[rows], images.mean, images.std, generator, torch.float64)
            assert torch.equal(found[3 * epoch + batch], augment(*args))
    reader = problem.train.reader(config, torch.float64)
    for number in (5, 4, 0, 2, 1, 3):  # wherever a training goes on
        epoch, batch = divmod(number, 3)
        there = reader.batch(order(24, 4, epoch), epoch, batch)
        assert torch.equal(there, found[number])


def test_cached_views_are_drawn_1024_rows_at_a_time_in_the_order_of_the_images():
    """A file of another day must have the same views: neither batch nor order of the epoch counts."""
    config = change(teacher="views", views=2, crop_pad=1, flip=True, augment_seed=3, batch=2050)
    images = data(2050).train
    feed = Feed(images, None, config, torch.float64)
    augment, parts = Augment(1, flip=True), (slice(0, 1024), slice(1024, 2048), slice(2048, 2050))
    for epoch in range(3):
        generators = [stream(3, "augment", epoch % 2, part, 0) for part in range(3)]
        whole = torch.cat(
            [
                augment(images.pixels[part], images.mean, images.std, generator, torch.float64)
                for part, generator in zip(parts, generators, strict=True)
            ]
        )
        made = feed.batch(epoch, 0)
        rows, inputs, target = made.rows, made.inputs, made.target
        assert torch.equal(inputs, whole[rows])
        assert torch.equal(target, images.one_hot(torch.float64)[rows])


def test_compiling_changes_no_result_and_happens(monkeypatch):
    real, asked = torch.compile, []

    def through_dynamo(model, **options):
        asked.append(options)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", through_dynamo)
    truth = train(mlp(), data(), None, change(epochs=1))
    assert asked == []
    found = train(mlp(), data(), None, change(epochs=1, compile=True))
    assert asked == [{}]
    torch.testing.assert_close(state(found.model), state(truth.model), rtol=1e-12, atol=1e-13)
    compiled(mlp(), change(cuda_graphs=True))
    assert asked == [{}, {"mode": "reduce-overhead"}]


@pytest.mark.parametrize("on", [False, True])
def test_choices_on_cuda_are_those_of_the_configuration(on):
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()
    with _cuda_choices(change(deterministic=on, tf32=on)):
        assert (cudnn.benchmark, cudnn.deterministic) == (not on, on)
        assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
        assert cudnn.allow_tf32 == on
    after = cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()
    assert before == after


def far_apart():
    """Validation labels that no network of the training part predicts: alpha-hat leaves [0, 1]."""
    parts = data()
    val = dataclasses.replace(parts.val, labels=(parts.val.labels + 2) % CLASSES)
    return Data(parts.train, val, parts.test)


def test_a_grid_clips_algorithm_1_as_a_chain_does():
    config, problem = change(epochs=6), far_apart()
    free = distill_chain(mlp(), problem, config, steps=3, alphas="algorithm1")
    assert not all(0 <= alpha <= 1 for alpha in free.alphas)
    alone = distill_chain(mlp(), problem, config, steps=3, alphas="algorithm1", clip=True)
    (grid,) = grid_chains(mlp(), problem, config, steps=3, alphas=["algorithm1"], clip=True)
    (loose,) = grid_chains(mlp(), problem, config, steps=3, alphas=["algorithm1"])
    assert all(0 <= alpha <= 1 for alpha in grid.alphas)
    assert (grid.alphas == alone.alphas).all()
    assert (loose.alphas == free.alphas).all()
    assert grid.records[1].estimate == free.records[1].estimate
    assert same_bits(grid.models[-1], alone.models[-1])


@pytest.mark.parametrize(
    "fields", [{"hard": True}, {"temperature": 3.0}, {"activation": "identity"}]
)
def test_a_stacked_grid_has_the_targets_of_a_chain(fields):
    config = change(epochs=2, **fields)
    one, stack = (
        grid_chains(mlp(), data(), config, steps=3, alphas=[0.3, -0.2], stacked=stacked)
        for stacked in (False, True)
    )
    for a, b in zip(one, stack, strict=True):
        for p, q in zip(a.models, b.models, strict=True):
            torch.testing.assert_close(state(p), state(q), rtol=1e-9, atol=1e-10)
        for p, q in zip(a.records, b.records, strict=True):
            assert p.train.loss == pytest.approx(q.train.loss, rel=1e-9)
            assert p.test.accuracy == q.test.accuracy
            assert p.alpha == q.alpha
