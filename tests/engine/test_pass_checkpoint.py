"""A pass over rows goes on where it was: after an interrupt, an error, a kill; to the same bits."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice

import numpy as np
import pytest

import sdgpu
from sdgpu.backend.sealed_tensors import read_tensors
from sdgpu.engine import pass_checkpoint, streaming

LANDMARKS = np.random.default_rng(9).standard_normal((20, 3))
FEATURES = sdgpu.Nystrom(landmarks=LANDMARKS)
NEW = np.random.default_rng(4).standard_normal((5, 3))
PARTS, ROWS = 30, 256

SCRIPT = """
import sys, time
import numpy as np
import sdgpu
from sdgpu.engine import pass_checkpoint, streaming
from tests.engine.test_pass_checkpoint import FEATURES, blocks

pass_checkpoint.INTERVAL, pass_checkpoint.SHARE = 0.0, np.inf
streaming.MOST_ROWS = 256
source = sdgpu.rows.blocks(lambda: blocks(pause=0.05), d=3, c=1)
sdgpu.fit(source, None, sdgpu.Gaussian(0.2), [0.1], features=FEATURES, checkpoint=sys.argv[1])
"""


def blocks(pause=0.0, stop=PARTS, error=None):
    for number in range(PARTS):
        if number == stop:
            raise error
        time.sleep(pause)
        X = np.random.default_rng(number).standard_normal((ROWS, 3))
        yield X, np.sin(X[:, :1])


@pytest.fixture(autouse=True)
def _small_blocks_and_many_saves(monkeypatch):
    monkeypatch.setattr(streaming, "MOST_ROWS", ROWS)
    monkeypatch.setattr(pass_checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(pass_checkpoint, "SHARE", np.inf)


def fit(make=blocks, **options):
    source = sdgpu.rows.blocks(make, d=3, c=1)
    return sdgpu.fit(source, None, sdgpu.Gaussian(0.2), [0.1], **({"features": FEATURES} | options))


def predictions(fit):
    return fit.path(0.1, alphas=0.3, steps=3).predict(NEW)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_ended_it_does_not_matter(tmp_path, error, dtype):
    path = tmp_path / "pass.safetensors"
    with pytest.raises(type(error)):
        fit(lambda: blocks(stop=17, error=error), checkpoint=path, dtype=dtype)
    rows = read_tensors(path, "checkpoint")[1]["rows"]
    assert 8 * ROWS <= rows <= 17 * ROWS
    assert rows % ROWS == 0
    events = []
    resumed = fit(checkpoint=path, dtype=dtype, progress=events.append)
    whole = fit(dtype=dtype)
    assert np.array_equal(predictions(resumed), predictions(whole))
    assert resumed.info.error_estimate == whole.info.error_estimate
    assert min(event.done for event in events if event.stage == "rows" and event.done > 1) > rows


def test_a_pass_that_is_done_is_not_made_again(tmp_path):
    path = tmp_path / "pass.safetensors"
    first = fit(checkpoint=path)
    events = []
    second = fit(checkpoint=path, progress=events.append)
    assert np.array_equal(predictions(first), predictions(second))
    assert not [event for event in events if event.stage == "rows" and event.done > 1]


def test_kill_9(tmp_path):
    path = tmp_path / "pass.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    rows = read_tensors(path, "checkpoint")[1]["rows"]
    assert 0 < rows < PARTS * ROWS
    assert np.array_equal(predictions(fit(checkpoint=path)), predictions(fit()))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"features": sdgpu.Nystrom(landmarks=LANDMARKS[:-1])},
        {"features": sdgpu.RandomFourier(20)},
    ],
)
def test_another_pass_is_refused(tmp_path, change):
    path = tmp_path / "pass.safetensors"
    fit(checkpoint=path)
    with pytest.raises(
        ValueError, match="belongs to a pass with other rows, features or precision"
    ):
        fit(checkpoint=path, **change)


def shifted(shift):
    for X, Y in blocks():
        yield X + shift, Y


@pytest.mark.parametrize("stop", [17, PARTS])
@pytest.mark.parametrize(
    "make", [lambda: shifted(0.1), lambda: islice(blocks(), 5), lambda: islice(blocks(), 1, None)]
)
def test_a_pass_over_other_rows_is_refused(tmp_path, make, stop):
    """Of the same shape, or fewer: they were taken for the rows that had been summed."""
    path = tmp_path / "pass.safetensors"
    with suppress(OSError):
        fit(lambda: blocks(stop=stop, error=OSError("gone")), checkpoint=path)
    content = path.read_bytes()

    with pytest.raises(ValueError, match="belongs to a pass over other rows"):
        fit(make, checkpoint=path)
    assert path.read_bytes() == content


def test_another_kernel_is_refused(tmp_path):
    """The kernel's own features have no parameters in their description but the kernel."""
    path = tmp_path / "pass.safetensors"
    source = sdgpu.rows.blocks(blocks, d=3, c=1)
    options = {"features": sdgpu.Explicit(), "checkpoint": path}
    sdgpu.fit(source, None, sdgpu.Polynomial(2, 1.0), [0.1], **options)
    with pytest.raises(
        ValueError, match="belongs to a pass with other rows, features or precision"
    ):
        sdgpu.fit(source, None, sdgpu.Polynomial(2, 2.0), [0.1], **options)


def test_damage_and_bad_names(tmp_path):
    path = tmp_path / "pass.safetensors"
    fit(checkpoint=path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint .* is damaged"):
        fit(checkpoint=path)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        fit(checkpoint=tmp_path / "pass.npz")
    with pytest.raises(FileNotFoundError, match="the folder of checkpoint="):
        fit(checkpoint=tmp_path / "none" / "pass.safetensors")
    with pytest.raises(TypeError, match="it cannot be saved"):
        fit(checkpoint=tmp_path / "x.safetensors", features=sdgpu.Explicit(lambda X: X))
