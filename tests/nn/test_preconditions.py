"""What a training refuses, what it warns of, and models of unusual forms that it trains."""

import collections
import copy
import dataclasses
import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict
from sdgpu.nn.loss import mixed_target
from sdgpu.nn.preconditions import check_device
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import CLASSES, StopError, convnet, data, mlp, same_bits, state, stop_after

PLAIN = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=0, flip=False)


def change(**fields):
    return dataclasses.replace(PLAIN, **fields)


class Wrapped(nn.Module):
    """Its outputs in another form; in training mode alone if asked."""

    def __init__(self, form, *, training=False):
        super().__init__()
        self.inner, self.form, self.only_training = mlp(), form, training

    def forward(self, x):
        logits = self.inner(x)
        return self.form(logits) if self.training or not self.only_training else logits


Output = collections.namedtuple("Output", ["logits", "aux"])


def test_a_model_for_other_images_is_named():
    message = r"the model does not take images of shape \(2, 4, 4\) as torch.float64 .*channels="
    with pytest.raises(ValueError, match=message):
        train(convnet(channels=1), data(channels=2), None, PLAIN)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda z: ("z", z), "gives tuple of str, Tensor, but must give one tensor.*with_output"),
        (lambda z: {"a": z, "b": z}, "gives dict with a, b, but must"),
        (lambda z: Output(None, z), "gives Output of NoneType, Tensor, but must"),
        (lambda z: None, "gives NoneType, but must"),
        (lambda z: z.amax(dim=1), r"shape \([12],\) for"),
        (lambda z: z[:, :2], r"shape \([12], 2\).*classes=3"),
        (lambda z: z.round().long(), "gives torch.int64, which has no derivative"),
    ],
)
def test_outputs_of_another_form_are_refused_before_any_work(form, training, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train(Wrapped(form, training=training), data(), None, PLAIN)
    if not training:
        for teacher in ("cached", "online"):
            with pytest.raises((TypeError, ValueError), match=message):
                train(mlp(), data(), Teacher(Wrapped(form), 0.5), change(teacher=teacher))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(nn.Flatten(), data(), None, PLAIN), r"outputs of shape \(1, 16\)"),
        (lambda: train(Fixed(), data(), None, PLAIN), "nothing to train"),
        (lambda: train(mlp().requires_grad_(False), data(), None, PLAIN), "nothing to train"),
        (lambda: train("resnet20", data(), None, PLAIN), "not str: make_model makes one"),
        (lambda: train(mlp().to("meta"), data(), None, PLAIN), "1.weight .* on the meta device"),
        (
            lambda: train(
                nn.Sequential(nn.Linear(16, 3, dtype=torch.complex64)), data(), None, PLAIN
            ),
            "0.weight of the model is complex",
        ),
        (
            lambda: train(mlp(dtype=torch.half), data(), None, change(amp="fp16")),
            r"1.weight of the model is float16.*model.float\(\)",
        ),
        (
            lambda: train(nn.Sequential(nn.Embedding(3, 3, sparse=True)), data(), None, PLAIN),
            "0 of the model has sparse gradients",
        ),
        (lambda: Teacher("resnet20", 0.5), "not str: a name has no trained weights"),
        (
            lambda: Teacher(torch.zeros(24, 3), 0.5),
            r"not Tensor: of predictions make SavedTeacher\(P\)",
        ),
        (lambda: Teacher(lambda x: x, 0.5), "not function: give a torch.nn.Module"),
        (
            lambda: train(mlp(), data(), Teacher(mlp().to("meta"), 0.5), PLAIN),
            r"the teacher has weights on meta, but the images are on cpu: move",
        ),
    ],
)
def test_models_that_are_none_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


class Fixed(nn.Module):
    """A teacher without parameters: no training, and predictions all the same."""

    def forward(self, x):
        return x.flatten(1)[:, :CLASSES]


@pytest.mark.parametrize("mode", ["cached", "views", "online", "paper-script"])
def test_a_teacher_needs_no_parameters(mode):
    problem = data()
    found = train(mlp(), problem, Teacher(Fixed(), 0.3), change(teacher=mode))
    target = mixed_target(problem.train.one_hot(), predict(Fixed(), problem.train), 0.3)
    truth = train(mlp(), problem, target, PLAIN)
    torch.testing.assert_close(state(found.model), state(truth.model), rtol=1e-5, atol=1e-6)


def test_a_last_part_of_one_row_is_refused_for_statistics_over_rows():
    norm = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))
    message = r"one row \(n=21, batch=10, accumulate=1\).*more than 1 value.*another batch"
    with pytest.raises(ValueError, match=message):
        train(norm.double(), data(21), None, PLAIN)
    with pytest.raises(ValueError, match=r"one row \(n=24, batch=10, accumulate=10\)"):
        train(norm.double(), data(24), None, change(accumulate=10))
    # statistics over places too, and none at all, are well with one row
    assert len(train(convnet(), data(21), None, PLAIN).history) == 3
    assert len(train(mlp(), data(21), None, PLAIN).history) == 3


class Extra(nn.Module):
    """With a state that is no tensor."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return self.inner(x)

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


def hooked(seed=0):
    """Its hook leaves a tensor of the graph in the module, which torch refuses to copy."""
    model = mlp(seed)
    torch.nn.utils.weight_norm(model[1])
    model(torch.zeros(2, 1, 4, 4, dtype=torch.float64))
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch: the old hook
@pytest.mark.parametrize("mode", ["cached", "paper-script"])
def test_models_with_hooks_and_states_of_their_own(tmp_path, mode):
    for k, make in enumerate((hooked, Extra)):
        config = change(teacher=mode)
        runs = [
            train(make(), data(), Teacher(make(), 0.3), config, folder=folder).model
            for folder in (None, tmp_path / str(k), tmp_path / str(k))
        ]
        assert torch.equal(state_of(runs[0]), state_of(runs[1]))
        assert torch.equal(state_of(runs[0]), state_of(runs[2]))


def state_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Tied(nn.Module):
    """A weight that is used twice, under two names."""

    def __init__(self):
        super().__init__()
        first, self.last = mlp(width=16), mlp(1, width=16)
        self.first = first[:3]
        self.last[1].weight = self.first[1].weight

    def forward(self, x):
        return self.last(self.first(x))


def test_tied_weights_are_one_weight(tmp_path):
    problem, model = data(), Tied()
    config = change(optimiser="sgd", momentum=0.0, epochs=1, batch=24, decay=0.3)
    found = train(model, problem, None, config, folder=tmp_path).model
    assert found.last[1].weight is found.first[1].weight
    hand = copy.deepcopy(model)
    from sdgpu.nn.augment import normalise
    from sdgpu.nn.loss import data_loss

    images = problem.train
    X = normalise(images.pixels, images.mean, images.std, torch.float64)
    loss = data_loss(hand(X), images.one_hot(torch.float64))
    loss = loss + 0.15 * sum(p.square().sum() for p in hand.parameters())  # each once
    loss.backward()
    for p, q in zip(hand.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(q, p - config.lr * p.grad, rtol=1e-12, atol=1e-13)
    assert same_bits(train(model, problem, None, config, folder=tmp_path).model, found)


@pytest.mark.parametrize("mode", ["cached", "views", "online"])
@pytest.mark.parametrize("hard", [False, True])
def test_a_teacher_that_predicts_nan_is_noticed(mode, hard):
    teacher = mlp(1)
    teacher[1].bias.data[0] = math.nan
    error = FloatingPointError if mode == "online" else ValueError
    with pytest.raises(error, match=r"for (24|48) of|loss is nan in epoch 1, batch 1"):
        train(mlp(), data(), Teacher(teacher, 0.5), change(teacher=mode, views=2, hard=hard))


@pytest.mark.parametrize("mode", ["cached", "views"])
def test_a_teacher_with_one_output_that_is_not_finite_is_noticed(mode):
    teacher = mlp(1)
    teacher[3].bias.data[0] = math.inf
    config = change(teacher=mode, views=2, activation="identity")
    with pytest.raises(ValueError, match=r"for (24 of 24|48 of 48) images"):
        train(mlp(), data(), Teacher(teacher, 0.5), config)


def test_cross_entropy_without_a_minimum_is_warned_of():
    problem, config = data(), change(loss="cross-entropy", epochs=1)
    for alpha in (-2.0, 1.5):
        with pytest.warns(UserWarning, match=rf"cross-entropy.*alpha={alpha:g} has no minimum"):
            train(mlp(), problem, Teacher(mlp(1), alpha), config)
    target = mixed_target(problem.train.one_hot(), predict(mlp(1), problem.train).float(), -1.0)
    with pytest.warns(UserWarning, match=r"a target of -.* has no minimum"):
        train(mlp(), problem, target, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(mlp(), problem, Teacher(mlp(1), 0.5), config)
        train(mlp(), problem, Teacher(mlp(1), -2.0), change(epochs=1))


def test_a_divergence_in_the_last_update_is_no_result():
    """The loss of the last batch is that before its update: only the weights tell."""
    config = change(optimiser="sgd", lr=1e38, decay=1e10, epochs=1, batch=24)
    with pytest.raises(FloatingPointError, match=r"not finite after epoch 1.*no checkpoint"):
        train(mlp(dtype=torch.float32), data(), None, config)


def renormalised(problem):
    mean, std = (0.1,), (0.7,)
    return dataclasses.replace(
        problem,
        **{
            name: dataclasses.replace(getattr(problem, name), mean=mean, std=std)
            for name in ("train", "val", "test")
        },
    )


def some_frozen(model):
    model[1].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "problem", "message"),
    [
        (mlp(), renormalised(data()), r"another normalisation \(mean"),
        (some_frozen(mlp()), data(), "another frozen"),
    ],
)
def test_a_resumed_run_has_the_same_normalisation_and_weights_to_train(
    tmp_path, model, problem, message
):
    train(mlp(), data(), None, PLAIN, folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        train(model, problem, None, PLAIN, folder=tmp_path)


class Counting(nn.Module):
    """Changes its outputs by a buffer that is no part of state_dict."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.register_buffer("scale", torch.ones((), dtype=torch.float64), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale.mul_(0.9)
        return self.inner(x) * self.scale


def test_buffers_that_pass_are_resumed(tmp_path):
    config = change(save_seconds=0.0)
    whole = train(Counting(), data(), None, config).model
    with pytest.raises(StopError):
        train(Counting(), data(), None, config, folder=tmp_path, progress=stop_after(5))
    rest = train(Counting(), data(), None, config, folder=tmp_path).model
    assert torch.equal(whole.scale, rest.scale)
    assert same_bits(whole, rest)
    again = train(Counting(), data(), None, config, folder=tmp_path).model
    assert torch.equal(whole.scale, again.scale)


@pytest.mark.parametrize("whole", [False, True])
def test_a_frozen_batch_norm_does_not_drift(whole):
    model = convnet()
    model[1].requires_grad_(False)
    model.train(not whole)
    model[1].eval()
    found = train(model, data(), None, PLAIN).model
    for name, tensor in model[1].state_dict().items():
        assert torch.equal(found[1].state_dict()[name], tensor), name
    assert not torch.equal(found[0].weight, model[0].weight)
    # one that is merely handed over in evaluation mode is trained as ever
    thawed = convnet()
    same = train(copy.deepcopy(thawed).eval(), data(), None, PLAIN).model
    assert same_bits(same, train(thawed, data(), None, PLAIN).model)
    assert not torch.equal(same[1].running_mean, thawed[1].running_mean)


def test_precision_set_by_the_new_interface_of_torch():
    """In a process of its own: torch then refuses to read the old settings."""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("torch before 2.9 has one interface")
    code = (
        "import torch; torch.backends.fp32_precision = 'tf32'\n"
        "from tests.nn.test_preconditions import PLAIN; from tests.nn.problems import convnet, data\n"
        "from sdgpu.nn.trainer import train; train(convnet(), data(), None, PLAIN)\n"
        "import sdgpu; X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))\n"
        "sdgpu.kernels.EmpiricalNTK(torch.nn.Linear(4, 2))(X)\n"
        "assert torch.backends.fp32_precision == 'tf32'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_determinism_on_cuda_needs_its_variable(monkeypatch):
    config, cuda = change(deterministic=True), torch.device("cuda", 0)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"):
        check_device(config, cuda)
    check_device(config, torch.device("cpu"))
    check_device(PLAIN, cuda)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    check_device(config, cuda)


@pytest.mark.parametrize("mode", ["cached", "views"])
def test_evaluation_is_in_float32_whatever_the_training_is_in(mode):
    problem, model = data(), mlp(dtype=torch.float32)
    half = predict(model, problem.val, change(amp="bf16"))
    assert torch.equal(half, predict(model, problem.val, PLAIN))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(predict(model, problem.val, PLAIN), half)
    # a student that is its teacher has no loss but that of its own rounding, in bfloat16
    config = change(amp="bf16", teacher=mode, lr=1e-30, decay=0.0, epochs=1)
    loss = train(model, problem, Teacher(model, 0.0), config).history[0].train_loss
    assert 0 < loss < 1e-4
