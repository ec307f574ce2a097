"""A run that was killed goes on to the same bits, and a checkpoint is complete or not there."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sdgpu.backend.storage import LOCK
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from tests.nn.problems import StopError, convnet, data, mlp, same_bits, stop_after

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=1, save_seconds=0.0)

KILLED = """
import os, signal, sys
import torch
from tests.nn.problems import data, mlp
from tests.nn.test_resume import CONFIG, chain

def kill(event):
    if event.stage == "step-2" and event.done == 5:  # epoch 2 of 3, after the second of 3 batches
        os.kill(os.getpid(), signal.SIGKILL)

chain(sys.argv[1], kill)
"""


def chain(folder, progress=None):
    # dropout: its draws too must go on where they were
    model = mlp(dropout=0.3)
    return distill_chain(
        model, data(), CONFIG, steps=3, alphas="algorithm1", folder=folder, progress=progress
    )


def test_a_chain_killed_in_the_middle_of_step_2_goes_on_to_the_same_bits(tmp_path):
    folder = tmp_path / "killed"
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        timeout=300,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    saved = torch.load(folder / "step-2" / "checkpoint.pt", weights_only=True)
    assert (saved["epoch"], saved["batch"]) == (1, 1)
    assert not (folder / "step-3").exists()
    events = []
    resumed = chain(folder, events.append)
    whole = chain(None)
    # what had been done is not done again
    assert [event.done for event in events if event.stage == "step-1"] == []
    assert next(event.done for event in events if event.stage == "step-2") == 5
    assert (resumed.alphas == whole.alphas).all()
    for a, b in zip(resumed.models, whole.models, strict=True):
        assert same_bits(a, b)
    for a, b in zip(resumed.records, whole.records, strict=True):
        assert (a.train, a.val, a.test, a.fits) == (b.train, b.val, b.test, b.fits)


@pytest.mark.parametrize(
    "fields",
    [
        {"teacher": "paper-script", "order": "paper-script", "penalty": "paper-script"},
        {"teacher": "views", "views": 2, "optimiser": "sgd", "schedule": "cosine"},
        {"teacher": "online", "amp": "fp16", "accumulate": 2},
    ],
)
@pytest.mark.parametrize("done", [3, 5])
def test_every_mode_resumes_to_the_same_bits(tmp_path, fields, done):
    config = dataclasses.replace(CONFIG, **fields)
    dtype = torch.float32 if "amp" in fields else torch.float64
    teacher = Teacher(convnet(1, dtype=dtype), 0.3)
    whole = train(convnet(dtype=dtype), data(), teacher, config)
    with pytest.raises(StopError):
        train(
            convnet(dtype=dtype),
            data(),
            teacher,
            config,
            folder=tmp_path,
            progress=stop_after(done),
        )
    rest = train(convnet(dtype=dtype), data(), teacher, config, folder=tmp_path)
    assert same_bits(whole.model, rest.model)
    drop = [dataclasses.replace(epoch, seconds=0.0) for epoch in whole.history]
    assert [dataclasses.replace(epoch, seconds=0.0) for epoch in rest.history] == drop


class Tiring(nn.Module):
    """A teacher that leans more to class 0 with every batch that it sees in training."""

    def __init__(self):
        super().__init__()
        self.network = mlp(1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, X):
        if self.training:
            self.seen += 1
        logits = self.network(X)
        return logits + self.seen * torch.eye(logits.shape[1], dtype=logits.dtype)[0]


@pytest.mark.parametrize("done", [3, 5])
def test_a_teacher_that_drifts_goes_on_from_where_it_was(tmp_path, done):
    config = dataclasses.replace(CONFIG, teacher="paper-script")
    teacher = Teacher(Tiring(), 0.3)
    whole = train(mlp(), data(), teacher, config)
    with pytest.raises(StopError):
        train(mlp(), data(), teacher, config, folder=tmp_path, progress=stop_after(done))
    rest = train(mlp(), data(), teacher, config, folder=tmp_path)
    assert same_bits(whole.model, rest.model)


def test_a_finished_run_is_returned_at_once_and_files_stand_beside_it(tmp_path):
    first = train(mlp(), data(), None, CONFIG, folder=tmp_path)
    events = []
    again = train(mlp(), data(), None, CONFIG, folder=tmp_path, progress=events.append)
    assert events == []
    assert same_bits(first.model, again.model)
    assert again.history == first.history
    # the memory format is the one that was found for this network
    written = Config.from_json((tmp_path / "config.json").read_text())
    assert written == dataclasses.replace(CONFIG, channels_last=False)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + CONFIG.epochs
    assert lines[0].startswith("epoch,rate,train_loss")
    assert [path.name for path in tmp_path.glob(".*")] == [LOCK]
    anew = train(mlp(), data(), None, CONFIG, folder=tmp_path, progress=events.append, resume=False)
    assert len(events) == 9
    assert same_bits(first.model, anew.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((mlp(width=9), data(), None, CONFIG), r"another model \(1.bias: "),
        ((mlp(3), data(), None, CONFIG), "another initialisation"),
        ((mlp(), data(25), None, CONFIG), "another data"),
        ((mlp(), data(), Teacher(mlp(1), 0.5), CONFIG), "another targets"),
        ((mlp(), data(), None, dataclasses.replace(CONFIG, lr=0.1)), r"lr: 0.02 there, 0.1 here"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, arguments, message):
    train(mlp(), data(), None, CONFIG, folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        train(*arguments, folder=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(mlp(), data(), None, CONFIG, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        train(mlp(), data(), None, CONFIG, folder=tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    real, files = os.fsync, []

    def full(handle):
        files.append(".checkpoint.pt." in os.readlink(f"/proc/self/fd/{handle}"))
        if files[-1] and sum(files) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    message = r"checkpoint\.pt cannot be written \(No space.*; the last good .*batch 1 of epoch 2: make room"
    with pytest.raises(OSError, match=message) as found:
        train(mlp(), data(), None, CONFIG, folder=tmp_path)
    assert found.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob(".*")] == [LOCK]
    torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    rest = train(mlp(), data(), None, CONFIG, folder=tmp_path)
    assert same_bits(rest.model, train(mlp(), data(), None, CONFIG).model)
