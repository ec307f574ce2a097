"""Checkpoints: a killed fit goes on, a wrong or damaged file is refused, a full disk loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.solvers import checkpoint as module
from sdgpu.solvers.checkpoint import Checkpoint, State

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
        *arrays,
        KERNEL,
        method=method,
        checkpoint=path,
        progress=heard.append,
        **OPTIONS,
    )
    assert min(done for stage, done, total, *_ in heard if stage == "passes" and total > 1) == 4
    whole = sdgpu.fit(*arrays, KERNEL, method=method, **OPTIONS)
    # a resumed fit looks at its error at once, and may see earlier that it is done
    assert abs(resumed.info.passes - whole.info.passes) <= 2
    left, right = (one.path(steps=3).fitted for one in (resumed, whole))
    assert_allclose(left, right, atol=1e-7)
    again = sdgpu.fit(*arrays, KERNEL, method=method, checkpoint=path, **OPTIONS)
    assert again.info.passes == resumed.info.passes  # finished: no pass more


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


@pytest.mark.parametrize("wait", [0.0, 0.07, 0.13])
def test_a_killed_process_loses_at_most_one_interval(arrays, tmp_path, wait):
    path = tmp_path / "basis.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.split() == ["passes", "5"]:
            break
    time.sleep(wait)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    heard = []
    fitted = sdgpu.fit(
        *arrays,
        KERNEL,
        method="lanczos",
        checkpoint=path,
        progress=heard.append,
        **OPTIONS,
    )
    assert min(done for stage, done, total, *_ in heard if stage == "passes" and total > 1) >= 4
    whole = sdgpu.fit(*arrays, KERNEL, method="lanczos", **OPTIONS)
    assert_allclose(fitted.path(steps=3).fitted, whole.path(steps=3).fitted, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"X": 1}, "X"), ({"Y": 1}, "Y"), ({"kernel": sdgpu.Gaussian(0.4)}, "kernel"),
        ({"lams": 0.4}, "lams"), ({"method": "subspace"}, "method"), ({"dtype": "float32"}, "dtype"),
        ({"seed": 3}, "seed"),
    ],
)  # fmt: skip
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

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(State(np.ones((3, 2)), np.eye(2), np.eye(2), 4))
    state = Checkpoint(path, {"a": "b"}).load()
    assert state.passes == 3
    assert len(list(tmp_path.iterdir())) == 1


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
