"""Checkpoints: a killed fit goes on, a wrong or damaged file is refused, a full disk loses nothing."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend import progress, sealed_tensors
from sdgpu.backend.backends import NumpyBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.operators import DenseOperator
from sdgpu.solvers import checkpoint as module
from sdgpu.solvers.checkpoint import Checkpoint, State
from sdgpu.solvers.subspace import Subspace
from tests.damage import damages

KERNEL = sdgpu.Gaussian(0.3)
OPTIONS = {"lams": 3e-3, "operator": "tiled", "tol": 1e-8}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 3)), rng.standard_normal(300)


@pytest.fixture
def always(monkeypatch):
    """Save at every pass."""
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "SHARE", np.inf)


def interrupted_at(passes):
    def progress(event):
        if event.stage == "passes" and event.done == passes and event.total > 1:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
def test_an_interrupted_fit_goes_on(arrays, tmp_path, method):
    path = tmp_path / "basis.safetensors"
    with pytest.raises(KeyboardInterrupt):
        sdgpu.fit(
            *arrays, KERNEL, method=method, checkpoint=path, progress=interrupted_at(4), **OPTIONS
        )
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    heard = []
    resumed = sdgpu.fit(
        *arrays, KERNEL, method=method, checkpoint=path, progress=heard.append, **OPTIONS
    )
    assert min(done for stage, done, total, *_ in heard if stage == "passes" and total > 1) == 4
    whole = sdgpu.fit(*arrays, KERNEL, method=method, **OPTIONS)
    # a resumed fit looks at its error at once, and may see earlier that it is done
    assert abs(resumed.info.passes - whole.info.passes) <= 2
    left, right = (one.path(steps=3).fitted for one in (resumed, whole))
    assert_allclose(left, right, atol=1e-7)
    again = sdgpu.fit(*arrays, KERNEL, method=method, checkpoint=path, **OPTIONS)
    assert again.info.passes == resumed.info.passes  # finished: no pass more


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
def test_every_pass_offers_what_it_has(arrays, tmp_path, monkeypatch, method):
    """Between the passes, not only at the end: a process that is killed has no end."""
    offered = []
    monkeypatch.setattr(Checkpoint, "offer", lambda self, state: offered.append(state.passes))
    checkpoint = tmp_path / "basis.safetensors"
    fit = sdgpu.fit(*arrays, KERNEL, method=method, checkpoint=checkpoint, **OPTIONS)
    assert offered == list(range(1, fit.info.passes))


@pytest.mark.parametrize("rank", [0, 20])
def test_a_checkpoint_of_all_passes_that_are_allowed_is_a_fit(arrays, tmp_path, rank):
    """A fit that had used them all crashed when it was repeated."""
    X, y = arrays
    solver = Subspace(NumpyBackend(), 1e-12, block=4, rank=rank, max_passes=3)
    first, again = (
        solver.decompose(
            DenseOperator(KERNEL, X),
            y[:, None],
            np.array([1e-6]),
            Stopwatch(lambda: None),
            Checkpoint(tmp_path / "basis.safetensors", {}),
        )
        for _ in range(2)
    )
    assert (again.passes, again.status) == (first.passes, first.status)
    assert "3 passes" in again.status
    assert_allclose(again.error, first.error, rtol=1e-9)
    assert_allclose(again.spectrum.eigenvalues, first.spectrum.eigenvalues, atol=1e-12)


@pytest.mark.parametrize(("cost", "wait"), [(1.0, 30.0), (5.0, 50.0)])
def test_saves_come_twice_a_minute_or_take_a_tenth_of_the_time(tmp_path, monkeypatch, cost, wait):
    now, saved, plain = [100.0], [], sealed_tensors.save_file

    def slow(*args, **named):
        now[0] += cost
        saved.append(now[0])
        plain(*args, **named)

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sealed_tensors, "save_file", slow)
    checkpoint = Checkpoint(tmp_path / "basis.safetensors", {})
    state = State(np.eye(2), np.eye(2), np.eye(2), 1)
    for after in (29.5, 0.5):
        now[0] += after
        checkpoint.offer(state)
    assert saved == [130 + cost]
    for after in (wait - 0.5, 0.5):
        now[0] += after
        checkpoint.offer(state)
    assert saved == [130 + cost, 130 + 2 * cost + wait]


SCRIPT = """
import sys
import numpy as np
import sdgpu
from sdgpu.solvers import checkpoint
checkpoint.INTERVAL, checkpoint.SHARE = 0.0, np.inf
import time
rng = np.random.default_rng(0)
X, y = rng.standard_normal((300, 3)), rng.standard_normal(300)
def slow(event):
    print(event.stage, event.done, flush=True)
    time.sleep(0.05)
sdgpu.fit(X, y, sdgpu.Gaussian(0.3), method="lanczos", checkpoint=sys.argv[1], progress=slow,
          lams=3e-3, operator="tiled", tol=1e-8)
"""


def test_a_killed_process_loses_at_most_one_interval(arrays, tmp_path):
    path = tmp_path / "basis.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.split() == ["passes", "5"]:
            break
    time.sleep(0.07)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    heard = []
    fitted = sdgpu.fit(
        *arrays, KERNEL, method="lanczos", checkpoint=path, progress=heard.append, **OPTIONS
    )
    assert min(done for stage, done, total, *_ in heard if stage == "passes" and total > 1) >= 4
    whole = sdgpu.fit(*arrays, KERNEL, method="lanczos", **OPTIONS)
    assert_allclose(fitted.path(steps=3).fitted, whole.path(steps=3).fitted, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"X": 1}, "X"),
        ({"Y": 1}, "Y"),
        ({"kernel": sdgpu.Gaussian(0.4)}, "kernel"),
        ({"lams": 0.4}, "lams"),
        ({"method": "subspace"}, "method"),
        ({"dtype": "float32"}, "dtype"),
        ({"seed": 3}, "seed"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_something_else_is_refused(arrays, tmp_path, change, word):
    X, Y = arrays
    options = {"X": X, "Y": Y, "kernel": KERNEL, "method": "lanczos", **OPTIONS}
    path = tmp_path / "basis.safetensors"
    sdgpu.fit(**options, checkpoint=path)
    if word in "XY":
        change = {word: options[word] + change[word]}
    with pytest.raises(ValueError, match=f"belongs to a fit with other .*{word}"):
        sdgpu.fit(**(options | change), checkpoint=path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 100]
)
def test_a_damaged_checkpoint_is_refused(arrays, tmp_path, damage):
    path = tmp_path / "basis.safetensors"
    sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, **OPTIONS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"is damaged .*: remove it to start again"):
        sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, **OPTIONS)


def test_a_full_disk_leaves_the_last_checkpoint(arrays, tmp_path, always, monkeypatch):
    path = tmp_path / "basis.safetensors"
    kept = Checkpoint(path, {"a": "b"})
    kept.save(State(np.eye(2), np.eye(2), np.eye(2), 3))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed_tensors, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(State(np.ones((3, 2)), np.eye(2), np.eye(2), 4))
    state = Checkpoint(path, {"a": "b"}).load()
    assert state.passes == 3
    assert len(list(tmp_path.iterdir())) == 1


def small(path):
    rng = np.random.default_rng(5)
    state = State(*(rng.standard_normal(shape) for shape in ((3, 20), (3, 20), (3, 3))), passes=4)
    Checkpoint(path, {"kernel": "Gaussian", "seed": "0"}).save(state)
    return state


def same(state, wanted):
    return state.passes == wanted.passes and all(
        np.array_equal(getattr(state, name), getattr(wanted, name)) for name in "QRT"
    )


def test_damage_is_named_or_harmless(tmp_path):
    path, silent = tmp_path / "basis.safetensors", 0
    wanted = small(path)
    for found in damages(path.read_bytes(), 6):
        path.write_bytes(found)
        try:
            state = Checkpoint(path, {"kernel": "Gaussian"}).load()
        except ValueError as error:
            silent += str(path) not in str(error)
        else:
            silent += not same(state, wanted)
    assert silent == 0


def test_numbers_of_zero_are_damage(arrays, tmp_path):
    """A basis of zeros has no residual that it could see: converged, it would say."""
    path = tmp_path / "basis.safetensors"
    sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, **OPTIONS)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + bytes(len(content) - header))
    with pytest.raises(ValueError, match=r"damaged \(its numbers are not those that were written"):
        sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, **OPTIONS)


def test_a_checkpoint_without_a_checksum_is_refused(tmp_path):
    path = tmp_path / "basis.safetensors"
    small(path)
    from safetensors.numpy import load_file, save_file

    save_file(load_file(path), path, metadata={"owner": "{}", "passes": "4"})
    with pytest.raises(ValueError, match="no checksum: an older version"):
        Checkpoint(path, {}).load()


def test_unreadable_is_not_damaged(tmp_path, monkeypatch):
    path = tmp_path / "basis.safetensors"
    small(path)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    kept = Checkpoint(path, {})
    monkeypatch.setattr(type(path), "open", refused)  # root may read everything
    with pytest.raises(PermissionError, match=r"denied: .*basis.safetensors"):
        kept.load()


def test_a_planted_pickle_does_not_run(tmp_path):
    from tests.test_foreign_files import Canary

    canary, path = tmp_path / "canary", tmp_path / "basis.safetensors"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ValueError, match="damaged"):
        Checkpoint(path, {}).load()
    assert not canary.exists()


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        small(tmp_path / "basis.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "basis.safetensors").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_found_before_the_work(arrays, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refused)  # root may write everywhere
    heard = []
    with pytest.raises(PermissionError, match=r"basis.safetensors cannot be written"):
        sdgpu.fit(
            *arrays,
            KERNEL,
            method="lanczos",
            checkpoint=tmp_path / "basis.safetensors",
            progress=heard.append,
            **OPTIONS,
        )
    assert not heard


KILLED = """
import os, random, select, signal, sys, time
from pathlib import Path
import numpy as np
import sdgpu
from sdgpu.backend.storage import clean_leftovers
from sdgpu.solvers import checkpoint
from sdgpu.solvers.checkpoint import Checkpoint

checkpoint.INTERVAL, checkpoint.SHARE = 0.0, np.inf
path, rng = Path(sys.argv[1]), random.Random(7)
numbers = np.random.default_rng(0)
X, y = numbers.standard_normal((300, 3)), numbers.standard_normal(300)
kept = []
ready, tell = os.pipe()

def hear(event):
    if event.stage == "passes":
        os.write(tell, b"1")

sdgpu.fit(X[:50], y[:50], sdgpu.Gaussian(0.3), method="lanczos", operator="tiled")  # imports torch
for i in range(int(sys.argv[2])):
    number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
    if i % 5 == 0:
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            while True:
                sdgpu.fit(X, y, sdgpu.Gaussian(0.3), method="lanczos", checkpoint=path, lams=3e-3,
                          operator="tiled", tol=1e-8, progress=hear)
        finally:
            os._exit(1)
    os.read(ready, 1)
    time.sleep(rng.uniform(0.0, 0.06))
    os.kill(child, number)
    os.waitpid(child, 0)
    clean_leftovers(path)
    assert {*os.listdir(path.parent)} <= {path.name}, os.listdir(path.parent)
    while select.select([ready], [], [], 0)[0]:
        os.read(ready, 1 << 16)
    state = Checkpoint(path, {}).load()
    kept.append(state.passes if state else 0)
print(sum(passes > 0 for passes in kept))
"""


def test_many_kills_of_a_fit(arrays, tmp_path):
    """After each the checkpoint is whole and alone, and the next fit goes on from it."""
    times = 50 if os.environ.get("CI") else 12
    path = tmp_path / "basis.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(times)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= times // 4  # those by SIGTERM save
    fitted = sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, **OPTIONS)
    whole = sdgpu.fit(*arrays, KERNEL, method="lanczos", **OPTIONS)
    assert_allclose(fitted.path(steps=3).fitted, whole.path(steps=3).fitted, atol=1e-7)


def test_sigterm_saves_as_ctrl_c_does(arrays, tmp_path):
    path = tmp_path / "basis.safetensors"

    def progress(event):
        if event.stage == "passes" and event.done == 4 and event.total > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    with pytest.raises(KeyboardInterrupt):
        sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=path, progress=progress, **OPTIONS)
    assert Checkpoint(path, {}).load().passes == 4


def test_bad_paths(arrays, tmp_path):
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        sdgpu.fit(*arrays, KERNEL, method="lanczos", checkpoint=tmp_path / "basis.pkl", **OPTIONS)
    with pytest.raises(FileNotFoundError, match="folder of checkpoint"):
        sdgpu.fit(
            *arrays,
            KERNEL,
            method="lanczos",
            checkpoint=tmp_path / "no" / "b.safetensors",
            **OPTIONS,
        )
    with pytest.raises(ValueError, match="cannot recognise the function"):
        sdgpu.fit(
            *arrays,
            lambda A, B: A @ B.T,
            method="lanczos",
            checkpoint=tmp_path / "b.safetensors",
            lams=1.0,
        )
    with pytest.raises(ValueError, match="eigh has none to save"):
        sdgpu.fit(*arrays, KERNEL, lams=1.0, checkpoint=tmp_path / "b.safetensors")


def test_metadata_is_plain_text(tmp_path):
    path = tmp_path / "basis.safetensors"
    Checkpoint(path, {"kernel": "Gaussian"}).save(State(np.eye(2), np.eye(2), np.eye(2), 3))
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as stored:
        assert json.loads(stored.metadata()["owner"]) == {"kernel": "Gaussian"}
