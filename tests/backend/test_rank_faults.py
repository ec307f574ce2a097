"""Ranks that die, fail, stop, hang or never come: the others end in time with a message that names them."""

import socket
import subprocess
import sys
import time

import pytest

from sdgpu.backend.rank_watch import RankWatch, _greeted
from sdgpu.backend.ranks import RankFailure
from sdgpu.backend.rendezvous import check_versions
from sdgpu.backend.thread_ranks import run_threads
from tests.problems import finish
from tests.rank_processes import ROOT, free_port, run_ranks, start_ranks

WORKER = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from sdgpu.backend.ranks import RankFailure, failing_together
from sdgpu.backend.torch_ranks import TorchRanks

fault, place, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
ranks = TorchRanks()

def meet():
    if place == "ring":
        for _, rows in ranks.ring(torch.ones(1000 * ranks.rank, 8)):
            time.sleep(0.01)
    elif place == "sum":
        ranks.sum(torch.ones(100_000))
    else:
        ranks.barrier("a barrier")

def fail():
    # the clock is that of the machine, the same for all
    print("fault", time.monotonic(), flush=True)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "exit":
        os._exit(0) if place == "sum" else sys.exit(0)
    if fault == "late":
        time.sleep(6.0)
    if fault == "memory":
        raise MemoryError("no room for the rows of this rank")

def work():
    for step in range(1000):
        meet()
        if step == 3 and ranks.rank == victim:
            fail()
    raise AssertionError("nothing was noticed")

try:
    if fault == "memory" and place == "sum":
        work()  # an error that nobody catches
    else:
        with failing_together(ranks):
            work()
except RankFailure as error:
    print("heard", time.monotonic(), list(error.ranks), error, flush=True)
"""


def provoke(fault, place, victim, size=3, limit=60.0, **environment):
    """What each rank printed, after one of them had the fault."""
    workers = start_ranks(WORKER, size, fault, place, victim, **environment)
    if fault == "stop":
        others = [worker for rank, worker in enumerate(workers) if rank != victim]
        told = finish(*others, seconds=limit)
        workers[victim].kill()
        told[victim:victim] = finish(workers[victim], seconds=10)
    else:
        told = finish(*workers, seconds=limit)
    return workers, told


def check_all_heard(told, victim, text, seconds=10.0):
    """All but one heard `text` within so many seconds of the fault."""
    start = float(told[victim][0].split()[1])
    for rank, (output, errors) in enumerate(told):
        if rank != victim:
            assert output.startswith("heard"), (output, errors)
            _, clock, *words = output.split()
            assert text in " ".join(words), output
            assert f"[{victim}]" in words[0], output
            assert float(clock) - start < seconds


@pytest.mark.parametrize(("place", "victim"), [("sum", 0), ("ring", 1), ("barrier", 2)])
def test_a_killed_rank_is_named(place, victim):
    _, told = provoke("kill", place, victim)
    check_all_heard(told, victim, f"rank {victim} (process")


@pytest.mark.parametrize(("place", "victim"), [("ring", 0), ("sum", 1)])
def test_an_error_of_one_rank_ends_all(place, victim):
    """Whether it is caught by what all share, or by nobody."""
    workers, told = provoke("memory", place, victim)
    check_all_heard(told, victim, "failed: MemoryError: no room for the rows of this rank")
    assert workers[victim].returncode == 1
    assert "MemoryError: no room" in told[victim][1]
    assert ("on rank 0 of 3" in told[victim][1]) == (place == "ring")


def test_a_rank_that_ends_early_is_named():
    _, told = provoke("exit", "ring", 1)
    check_all_heard(told, 1, "failed: SystemExit: 0")
    _, told = provoke("exit", "sum", 2)
    check_all_heard(told, 2, "rank 2 (process")


def test_a_stopped_rank_is_named():
    """As a host that has vanished: its connections stay open, and nothing comes."""
    _, told = provoke("stop", "sum", 1, SDGPU_RANK_SILENCE="4")
    check_all_heard(told, 1, "has given no sign of life for 4 s")


def test_a_rank_that_does_not_come_is_named():
    _, told = provoke("late", "barrier", 2, SDGPU_RANK_TIMEOUT="3")
    check_all_heard(told, 2, "waited 3 s in a barrier; rank 2 did not come")
    assert "rank 2 did not come" in told[2][0]  # it hears so itself


JOIN = """
import sys
from sdgpu.backend.ranks import RankFailure
from sdgpu.backend.torch_ranks import join_ranks

if sys.argv[1:] and sys.argv[1] == sys.argv[2]:
    import torch
    torch.__version__ = "1.0"
try:
    join_ranks(timeout=3.0)
except (RankFailure, ValueError) as error:
    print(type(error).__name__, error)
"""


def join_alone(**environment):
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = ["env", *(f"{name}={text}" for name, text in {**told, **environment}.items())]
    command += [f"PYTHONPATH={ROOT}", sys.executable, "-c", JOIN]
    output, errors = finish(
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
        seconds=60,
    )[0]
    assert output, errors
    return output


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        (
            {"RANK": "0"},
            "RankFailure rank 1 of 2 did not come to MASTER_ADDR=127.0.0.1 MASTER_PORT=",
        ),
        (
            {"RANK": "1"},
            "RankFailure rank 1 of 2 found nobody at MASTER_ADDR=127.0.0.1 MASTER_PORT=",
        ),
        (
            {"RANK": "0", "MASTER_ADDR": ""},
            "ValueError the environment has WORLD_SIZE but no MASTER_ADDR",
        ),
        (
            {"RANK": "0", "MASTER_PORT": "many"},
            "ValueError the environment says MASTER_PORT='many'",
        ),
    ],
)
def test_no_rendezvous(environment, text):
    output = join_alone(**environment)
    assert text in output
    assert "torchrun" in output


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        output = join_alone(RANK="0", MASTER_PORT=other.getsockname()[1])
    assert "RankFailure rank 0 of 2 could not listen at MASTER_ADDR=127.0.0.1" in output
    assert "name a free port" in output


def test_mixed_versions():
    code = JOIN.replace("sys.argv[1] == sys.argv[2]", "__import__('os').environ['RANK'] == '1'")
    for output in run_ranks(code, 2, "mixed"):
        assert output.startswith(
            "ValueError the ranks have different versions of torch (rank 0: "
        ), output
        assert "rank 1: 1.0): install the same ones" in output


def test_versions_that_differ_are_all_named():
    one = {"sdgpu": "1", "torch": "2", "backend": "gloo"}
    check_versions([one, dict(one)])
    with pytest.raises(
        ValueError, match=r"sdgpu \(ranks 0, 2: 1; rank 1: 3\), backend \(ranks 0, 2: gloo"
    ):
        check_versions([one, {**one, "sdgpu": "3", "backend": "nccl"}, one])


FITS = """
import numpy as np
import torch
torch.set_num_threads(1)
import sdgpu
from sdgpu.backend.ranks import RankFailure
from sdgpu.backend.torch_ranks import join_ranks

ranks = join_ranks(timeout=60.0)
assert join_ranks() is ranks
rng = np.random.default_rng(ranks.rank)
X, Y = rng.standard_normal((150, 3)), rng.standard_normal(150)

def told(X, **options):
    try:
        sdgpu.fit(X, Y, sdgpu.Gaussian(0.3), 3e-3, method="lanczos", distributed=True, **options)
    except (ValueError, MemoryError, RankFailure) as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("fitted", flush=True)

holed = X.copy()
holed[0, 0] = np.nan if ranks.rank == 1 else 0.0
told(holed)
told(X)  # whose error was found by all go on together

def full(event):
    if ranks.rank == 1 and event.stage == "passes" and event.done == 2 and event.total > 2:
        raise MemoryError("no room for the basis")

told(X, progress=full)
told(X)  # whose work was cut do not
"""


def test_a_fit_with_nan_and_one_without_memory():
    first, second = run_ranks(FITS, 2, limit=120.0)
    first, second = first.splitlines(), second.splitlines()
    assert first[0] == second[0]
    assert first[0].startswith("ValueError rank 1: X has 1 entries that are NaN or infinite")
    assert first[1] == second[1] == "fitted"
    assert second[2].startswith("MemoryError no room for the basis")
    for line in (first[2], first[3], second[3]):
        assert line.startswith("RankFailure rank 1 "), line
        assert "failed: MemoryError: no room for the basis" in line


RESTARTED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from sdgpu.backend.ranks import failing_together
from sdgpu.backend.torch_ranks import join_ranks

ranks, log = join_ranks(timeout=60.0), Path(sys.argv[1])
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
with failing_together(ranks):
    for step in range(20):
        total = ranks.sum(torch.tensor([float(ranks.rank + step)]))
        if step == 10 and attempt < 2 and ranks.rank == attempt:
            os.kill(os.getpid(), signal.SIGKILL)
    ranks.barrier("the end")
    (log / f"{ranks.rank}-{attempt}").touch()
"""


def test_torchrun_starts_again(tmp_path):
    """Rank 0 is killed, then rank 1; the third attempt ends well."""
    script = tmp_path / "work.py"
    script.write_text(RESTARTED)
    command = [
        *("env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", sys.executable),
        *("-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=3"),
        *("--master-addr=127.0.0.1", f"--master-port={free_port()}", script, tmp_path),
    ]
    torchrun = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    _, errors = finish(torchrun, seconds=180)[0]
    assert torchrun.returncode == 0, errors[-3000:]
    assert sorted(path.name for path in tmp_path.glob("?-?")) == ["0-2", "1-2"]


def watched(work, size=3, **options):
    """Call work(watch) in threads, each with a watch of its own."""

    def one(ranks):
        watch = RankWatch(ranks.rank, ranks.size, ranks.first, seconds=10.0, **options)
        try:
            return work(watch)
        finally:
            ranks.barrier("all have heard")
            watch.close()

    return run_threads(one, size, timeout=30.0)


def test_barriers_of_a_watch():
    came = []

    def work(watch):
        for step in range(20):
            came.append(step)
            watch.barrier(f"step {step}", 10.0)
            assert came.count(step) == 3  # nobody goes on before all are here

    watched(work)


def test_all_are_told_of_the_first_failure():
    def work(watch):
        if watch.rank == 2:
            watch.fail("ValueError: X has 3 entries that are NaN")
        with pytest.raises(
            RankFailure, match=r"rank 2 (on .* )?failed: ValueError: X has 3"
        ) as caught:
            watch.barrier("the end", 10.0)
        return caught.value.ranks

    assert watched(work) == [(2,)] * 3


def test_a_barrier_names_who_is_missing():
    def work(watch):
        if watch.rank == 1:
            watch.enter("its own way")
            time.sleep(2.0)
        else:
            watch.enter("somewhere")
            with pytest.raises(RankFailure, match=r"waited 1 s in the end; rank 1 did not come"):
                watch.barrier("the end", 1.0)

    watched(work)


def test_strangers_are_sent_away():
    for content in (
        b"GET / HTTP/1.1\r\n\r\n" * 100,
        b'{"secret": "guess", "rank": 1}\n',
        b"[]\n",
        b"",
    ):
        here, there = socket.socketpair()
        with here:
            here.sendall(content)
            here.shutdown(socket.SHUT_WR)
            assert _greeted(there, "secret", 3) is None


def test_a_greeting_and_the_first_sign_of_life_may_come_at_once():
    greeting = b'{"secret": "guess", "rank": 1, "host": "h", "pid": 5}\n{"kind": "beat"}\n'
    here, there = socket.socketpair()
    with here, there:
        here.sendall(greeting)
        line = _greeted(there, "guess", 3)
        assert (line.rank, line.pid, line.received) == (1, 5, b'{"kind": "beat"}\n')


def test_silence_is_a_number_of_seconds(monkeypatch):
    for text in ("long", "1", "nan"):
        monkeypatch.setenv("SDGPU_RANK_SILENCE", text)
        with pytest.raises(ValueError, match=r"SDGPU_RANK_SILENCE=.* at least 2"):
            RankWatch(0, 1, lambda value: value, seconds=1.0)
