"""Processes that do not share a folder, were started differently, or are interrupted one by one."""

import pytest
import torch

from sdgpu.backend.distributed import World, join, ranks
from sdgpu.nn.trainer import train
from tests.nn.problems import data, mlp, state, two_ranks
from tests.nn.test_files import CONFIG

WORKER = """
import dataclasses, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from sdgpu.backend.distributed import join
from sdgpu.nn.training_files import Store
from sdgpu.nn.trainer import train
from tests.nn.problems import data, mlp, state
from tests.nn.test_files import CONFIG, fail_at

world = join(torch.device("cpu"))
own = Path(sys.argv[1]) / str(world.rank)  # of this process alone

def caught(*kinds, **arguments):
    try:
        train(mlp(), data(), None, **arguments)
    except kinds as error:
        return str(error)
    raise AssertionError("no error")

# cut off in epoch 2, and taken up by both where the first one was
caught(ZeroDivisionError, config=CONFIG, folder=own / "fit", progress=fail_at(5))
heard = []
result = train(mlp(), data(), None, CONFIG, folder=own / "fit", progress=heard.append)
assert heard[0].done == 5, heard[0]
torch.save(state(result.model), own.with_suffix(".pt"))
assert (own / "fit").exists() == (world.rank == 0)

# a damaged checkpoint stops both, as does one of another training
other = dataclasses.replace(CONFIG, lr=0.5)
assert "belongs to another config (lr: 0.02 there, 0.5 here)" in caught(
    ValueError, config=other, folder=own / "fit")
if world.rank == 0:
    (own / "fit" / "checkpoint.pt").write_bytes(b"no")
assert "is damaged" in caught(ValueError, config=CONFIG, folder=own / "fit")

# different arguments
found = caught(ValueError, config=other if world.rank else CONFIG, folder=own / "differ")
assert "1 of 2 processes were given another config than the first" in found, found

# one is interrupted: both stop after the same batch
slow = dataclasses.replace(CONFIG, save_seconds=1e6)
seen = []
def interrupt(event):
    seen.append(event.done)
    if world.rank == 1 and event.done == 4:
        signal.raise_signal(signal.SIGINT)
caught(KeyboardInterrupt, config=slow, folder=own / "stop", progress=interrupt)
assert seen == [1, 2, 3, 4], seen
if world.rank == 0:
    saved = Store(own / "stop", {})._parse((own / "stop" / "checkpoint.pt").read_bytes(), torch.device("cpu"))
    assert (saved["epoch"], saved["batch"]) == (1, 1)
rest = train(mlp(), data(), None, slow, folder=own / "stop")
assert torch.equal(state(rest.model), state(result.model))
"""


def test_processes_that_do_not_share_a_folder(tmp_path):
    two_ranks(WORKER, tmp_path)
    truth = state(train(mlp(), data(), None, CONFIG).model)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, truth, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RANK", "first"),
        ("RANK", "-1"),
        ("RANK", ""),
        ("RANK", "2"),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("LOCAL_RANK", "1.0"),
    ],
)
def test_garbage_in_the_environment_is_named(monkeypatch, name, text):
    for known, value in {"WORLD_SIZE": "2", "RANK": "0", name: text}.items():
        monkeypatch.setenv(known, value)
    with pytest.raises(ValueError, match=f"the environment says {name}=.*torchrun"):
        join(torch.device("cpu"))


def test_alone(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ranks() == {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}
    assert join(torch.device("cpu")) == World(0, 1)
