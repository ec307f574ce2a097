"""Trainings on pretended CUDA tensors: the CPU's bits, and no wait from one look at the losses to the next."""

import dataclasses

import numpy as np
import pytest
import torch

from sdgpu.nn import trainer
from sdgpu.nn.augment import Augment, normalise, order, stream
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.data import Data, load_images
from sdgpu.nn.evaluate import predict, score
from sdgpu.nn.loss import add_script_gradient, data_loss, mixed_target, penalty
from sdgpu.nn.network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from sdgpu.nn.samples import samples_from_arrays
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.targets import Feed
from sdgpu.nn.trainer import train
from sdgpu.nn.training_setup import not_finite
from tests.cuda_stand_in import CudaTensor, on_host, pretend_cuda
from tests.nn.problems import convnet, data, mlp

PLAIN = Config(epochs=2, batch=10, lr=0.02, decay=0.01, channels_last=False)
MEAN, STD = (0.4,), (0.3,)
OPTIONS = {
    "plain": {},
    "sgd": {"optimiser": "sgd", "nesterov": True},
    "decoupled": {"penalty": "decoupled"},
    "script's penalty": {"penalty": "paper-script"},
    "bf16": {"amp": "bf16"},
    "fp16": {"amp": "fp16"},
    "channels_last": {"channels_last": True, "amp": "bf16"},
    "cross-entropy": {"loss": "cross-entropy"},
    "accumulate": {"accumulate": 2, "schedule": "cosine", "warmup": 0.5},
    "cached teacher": {"teacher": "cached"},
    "hard teacher": {"teacher": "cached", "hard": True},
    "views": {"teacher": "views", "views": 2},
    "online teacher": {"teacher": "online"},
    "saved teacher": {"teacher": "cached", "saved": 1.0},
    "saved teacher in the loop": {"teacher": "online", "saved": 1.0},
    "several": {"teacher": "cached", "saved": 0.5},
    "several views": {"teacher": "views", "views": 2, "saved": 0.5},
    "several in the loop": {"teacher": "online", "saved": 0.5},
    "script's teacher": {"teacher": "paper-script", "order": "paper-script"},
}


def there(problem):
    """The same images on the device."""
    parts = (problem.train, problem.val, problem.test)
    return Data(
        *(
            dataclasses.replace(part, pixels=part.pixels.cuda(), labels=part.labels.cuda())
            for part in parts
        )
    )


def bits(model):
    return torch.cat(
        [on_host(x.detach()).double().reshape(-1) for x in model.state_dict().values()]
    )


def run(place, fields, folder=None):
    fields = dict(fields)
    saved = fields.pop("saved", 0.0)  # share of predictions from the host among the teachers
    config = dataclasses.replace(PLAIN, **fields)
    teacher = convnet(1, dtype=torch.float32)
    problem, target = data(), None
    said = SavedTeacher(0.7 * problem.train.one_hot() + 0.1)
    if place == "cuda":
        problem, teacher = there(problem), teacher.cuda()
    if "teacher" in fields:
        several = TeacherEnsemble([said, teacher], [saved, 1 - saved])
        target = Teacher(said if saved == 1 else several if saved else teacher, 0.3)
    return train(convnet(dtype=torch.float32), problem, target, config, folder=folder)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of losses that a teacher's alpha makes unusual
@pytest.mark.parametrize("option", OPTIONS)
def test_the_trainer(option):
    wanted = run("cpu", OPTIONS[option])
    with pretend_cuda():
        found = run("cuda", OPTIONS[option])
    assert all(isinstance(parameter, CudaTensor) for parameter in found.model.parameters())
    assert torch.equal(bits(found.model), bits(wanted.model))
    for one, other in zip(found.history, wanted.history, strict=True):
        assert (one.train_loss, one.val_loss) == (other.train_loss, other.val_loss)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("option", OPTIONS)
def test_a_batch_waits_for_nothing(option, monkeypatch):
    """Not even in fp16: a fused optimiser reads the flag of overflow on the device."""
    waits, batch = [], trainer._Run._one_batch
    with pretend_cuda() as transfers:

        def noted(self):
            start = len(transfers.all)
            batch(self)
            waits.append([one for one in transfers.all[start:] if "_epoch_order" not in one.where])

        monkeypatch.setattr(trainer._Run, "_one_batch", noted)
        run("cuda", OPTIONS[option])
    assert len(waits) == 6
    later = waits[1:]  # a first batch may draw a view of all images
    assert all(not batch for batch in later), later


def test_checkpoints_are_read_on_the_device_and_go_on_from_the_same_bits(tmp_path):
    wanted = run("cpu", {})
    with pretend_cuda():
        run("cuda", {"epochs": 2}, tmp_path)
        again = run("cuda", {"epochs": 2}, tmp_path)
    assert torch.equal(bits(again.model), bits(wanted.model))


def test_chains_stacks_and_scores():
    def answers(place):
        problem = data() if place == "cpu" else there(data())
        chain = distill_chain(
            lambda: mlp(dtype=torch.float32), problem, PLAIN, steps=2, alphas="algorithm1"
        )
        targets = problem.train.one_hot(torch.float32).expand(3, -1, -1).clone()
        models = [mlp(seed, dtype=torch.float32) for seed in range(3)]
        stack = train_stacked(models, problem, targets, PLAIN)
        P = predict(stack[0].model, problem.test)
        return [bits(stack[1].model), bits(chain.models[-1]), on_host(P)], score(P, problem.test), P

    wanted, wanted_score, _ = answers("cpu")
    with pretend_cuda():
        found, found_score, P = answers("cuda")
        assert isinstance(P, CudaTensor)
    assert found_score == wanted_score
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_augmentation_draws_on_the_host_and_sends_without_waiting():
    pixels = torch.randint(256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    wanted = Augment()(pixels, MEAN, STD, stream(1, "augment", 0, 0))
    with pretend_cuda() as transfers:
        here = pixels.cuda()
        with transfers.during() as sent:
            view = Augment().view(here, stream(1, "augment", 0, 0))
        assert not sent.all
        found = Augment()(here, MEAN, STD, stream(1, "augment", 0, 0))
        own = Augment()(here, MEAN, STD, stream(1, "augment", 0, 0, device="cuda"))
        assert view.device == own.device == normalise(here, MEAN, STD).device == here.device
        assert torch.equal(on_host(order(50, 1, 2, device="cuda")), order(50, 1, 2))
    assert torch.equal(on_host(found), wanted)


def test_losses_and_targets():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    Y = torch.eye(3)[[0, 1, 2, 0, 1, 2]]

    def answers(x, y):
        x = x.requires_grad_()
        mixed = mixed_target(y, x.detach().softmax(-1), 0.3, hard=True)
        losses = [data_loss(x, mixed, loss=loss) for loss in ("squared", "cross-entropy")]
        sum(losses).backward()
        return [mixed, *losses, x.grad]

    wanted = answers(logits.clone(), Y)
    model = mlp(dtype=torch.float32)
    with pretend_cuda() as transfers:
        x, y = logits.clone().cuda(), Y.cuda()
        with transfers.during() as waits:
            found = answers(x, y)
        assert not waits.all
        for one, other in zip(found, wanted, strict=True):
            assert isinstance(one, CudaTensor)
            assert torch.equal(on_host(one.detach()), other.detach())
        moved = mlp(dtype=torch.float32).cuda()
        assert penalty(moved, 0.1).device.type == "cuda"
        for parameter in moved.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with transfers.during() as waits:
            add_script_gradient(moved, 0.1)
        assert not waits.all
        with transfers.during() as waits:
            assert not_finite(moved) == not_finite(model) == []
        assert len(waits.all) == 1


def test_a_feed_and_images_on_the_device():
    with pretend_cuda():
        problem = there(data())
        feed = Feed(problem.train, None, PLAIN, torch.float32)
        made = feed.batch(0, 1)
        assert {x.device.type for x in (made.rows, made.inputs, made.target)} == {"cuda"}
        for device in ("cuda", "auto"):
            assert (
                load_images("generated", device=device, rows=100).train.pixels.device.type == "cuda"
            )


def test_an_evaluation_sends_nothing_the_second_time():
    samples = samples_from_arrays(np.ones((20, 3), np.float32), np.arange(20) % 2)
    samples = dataclasses.replace(samples, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    with pretend_cuda() as transfers:
        for part, model in (
            (there(data()).val, convnet(dtype=torch.float32).cuda()),
            (samples.to("cuda"), torch.nn.Linear(3, 2).cuda()),
        ):
            first = predict(model, part)
            with transfers.during() as sent:
                again = predict(model, part)
            assert not sent.all
            assert torch.equal(on_host(first), on_host(again))
