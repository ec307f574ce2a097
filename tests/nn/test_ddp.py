"""Two processes that talk by gloo against one."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.parallel import World
from tests.nn.problems import convnet, data, mlp, state

CONFIG = Config(epochs=2, batch=10, lr=0.02, decay=0.01, crop_pad=1, save_seconds=0.0)

WORKER = """
import sys
import torch
torch.set_num_threads(1)
from tests.nn.problems import data, mlp, state
from tests.nn.test_ddp import configs, run
from sdgpu.nn.parallel import join
from sdgpu.nn.trainer import train

world = join(torch.device("cpu"))
for name, config in configs().items():
    chain = run(name, sys.argv[1] + "/" + name)
    torch.save([state(model) for model in chain.models], f"{sys.argv[1]}/{name}-{world.rank}.pt")
try:
    train(mlp(), data(), None, config.__class__(epochs=1, batch=9))
except ValueError as error:
    assert "2 processes do not divide" in str(error), error
else:
    raise AssertionError("batch=9 was not refused")

# a disk that is full for rank 0 stops both
if world.rank == 0:
    import sdgpu.nn.store

    def full(path, *content):
        raise OSError(28, "No space left on device")

    sdgpu.nn.store.write_file = full
try:
    train(mlp(), data(), None, config, folder=sys.argv[1] + "/full")
except OSError as error:
    wanted = "No space left" if world.rank == 0 else "rank 0: "
    assert wanted in str(error) and "No space left" in str(error), error
else:
    raise AssertionError("nothing was said of the full disk")
"""


def configs():
    script = {"penalty": "paper-script", "optimiser": "sgd"}
    return {
        "plain": CONFIG,
        "parts": dataclasses.replace(CONFIG, accumulate=5, teacher="online"),
        "script": dataclasses.replace(CONFIG, **script),
        "norm": dataclasses.replace(CONFIG, accumulate=5),
    }


def run(name, folder=None):
    model = convnet() if name == "norm" else mlp()
    return distill_chain(
        model, data(), configs()[name], steps=2, alphas="algorithm1", folder=folder
    )


def test_two_processes_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": str(root)},
            cwd=root,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, errors[-3000:]
    for name in configs():
        truth = [state(model) for model in run(name).models]
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for a, b in zip(found, truth, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
        # one process goes on from what two have left
        assert (tmp_path / name / "step-2" / "checkpoint.pt").exists()
        alone = run(name, tmp_path / name)
        torch.testing.assert_close(state(alone.models[-1]), truth[-1], rtol=1e-8, atol=1e-9)


def test_shards_are_a_partition():
    for rows in (1, 7, 8):
        parts = [list(range(rows))[World(rank, 3).shard(rows)] for rank in range(3)]
        assert [row for part in parts for row in part] == list(range(rows))


def test_sizes_that_cannot_be_shared_are_refused():
    World(0, 2).check(batch=10, accumulate=1, n=24)
    with pytest.raises(ValueError, match="2 processes do not divide the 5 rows"):
        World(0, 2).check(batch=10, accumulate=2, n=24)
    with pytest.raises(ValueError, match="last part of an epoch has 1 rows"):
        World(0, 2).check(batch=10, accumulate=1, n=21)
