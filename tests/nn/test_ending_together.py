"""Two processes of which one fails, dies or does not come: the other one hears who, and does not wait."""

import pytest

from tests.nn.problems import two_ranks

START = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from sdgpu.backend import shared_end
from sdgpu.backend.distributed import World, join
from sdgpu.backend.ranks import RankFailure
from sdgpu.nn.trainer import train
from tests.nn.problems import convnet, data, mlp, state
from tests.nn.test_ddp import CONFIG

folder = Path(sys.argv[1])  # both are there before either waits for the other
(folder / os.environ["RANK"]).touch()
while not all((folder / rank).exists() for rank in "01"):
    time.sleep(0.01)
world = join(torch.device("cpu"))
begin = time.monotonic()

shared_end.TOGETHER = 60.0  # of a busy machine
network = mlp

def caught(kind, progress, config=CONFIG):
    try:
        train(network(), data(), None, config, progress=progress)
    except kind as error:
        return error
    raise AssertionError("no error")

def at(batch, action):
    def hook(event):
        if event.done == batch:
            action()
    return hook

def fail():
    raise ZeroDivisionError("of my own")
"""

FAILS = """
# an error that all have ends nothing but this training
caught(ZeroDivisionError, at(2, fail))
result = train(network(), data(), None, CONFIG)
# neither does one of the arguments
caught(ValueError, None, CONFIG.__class__(epochs=1, batch=9))
shared_end.TOGETHER = 1.0
if world.rank == 1:
    error = caught(ZeroDivisionError, at(4, fail))
    assert error.__notes__ == ["on rank 1 of 2"], error.__notes__
else:
    error = caught(RankFailure, None)
    assert "failed: ZeroDivisionError: of my own" in str(error), error
    assert error.ranks == (1,), error.ranks
# the group is of no use any more, and says why
error = caught(RankFailure, None)
assert "of my own" in str(error), error
"""

DIES = """
if world.rank == 1:
    caught(RankFailure, at(3, lambda: os._exit(0)))
error = caught(RankFailure, None)
assert "rank 1 (process" in str(error), error
assert "died" in str(error), error
"""

SLEEPS = """
heard = folder / "heard"

def sleep():
    while not heard.exists() and time.monotonic() - begin < 200:
        time.sleep(0.05)

error = caught(RankFailure, at(3, sleep) if world.rank == 1 else None)
assert error.ranks == (1,), error
if world.rank == 0:  # while the other one sleeps
    assert not heard.exists()
    assert time.monotonic() - begin < 200
    heard.touch()
    assert "rank 0 waited 10 s in" in str(error), error
    assert "rank 1 did not come (rank 1 was last in" in str(error), error
"""

LACKS_DATA = """
from sdgpu.study.networks.experiments import Experiment
from sdgpu.study.networks.network_runs import run_experiment
import numpy as np

shared_end.TOGETHER = 1.0
home = folder / f"home-{world.rank}"
home.mkdir()
os.chdir(home)
rng = np.random.default_rng(0)
if world.rank == 0:  # the host of rank 1 lacks the file
    np.savez("own.npz", images=rng.integers(0, 256, (60, 8, 8), np.uint8), labels=np.arange(60) % 3)
experiment = Experiment(
    name="own", data="own.npz", model="smallcnn", steps=1, alphas=(0.5,), algorithm1=False, seeds=(0,),
    config=CONFIG, val=10, threads=1,
)
try:
    run_experiment(experiment, folder / "run", device="cpu")
except (FileNotFoundError, RankFailure) as error:
    assert isinstance(error, RankFailure) == (world.rank == 0), error
    assert "own.npz" in str(error), error
else:
    raise AssertionError("no error")
"""

NORMS = """
network = convnet  # its ranks wait for each other in memory that they share
"""
CASES = {
    "fails": FAILS,
    "dies": DIES,
    "sleeps": SLEEPS,
    "lacks data": LACKS_DATA,
    "fails, norms": NORMS + FAILS,
    "dies, norms": NORMS + DIES,
    "sleeps, norms": NORMS + SLEEPS,
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_other_rank_hears_of_it(case, tmp_path, monkeypatch):
    monkeypatch.setenv("SDGPU_RANK_TIMEOUT", "10" if SLEEPS in case else "120")
    two_ranks(START + case, tmp_path)
