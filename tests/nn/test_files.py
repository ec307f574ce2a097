"""Files of a training under damage, kills, interrupts and a second training."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from sdgpu.backend.distributed import World
from sdgpu.backend.storage import folder_lock
from sdgpu.nn.chain import distill_chain
from sdgpu.nn.config import Config
from sdgpu.nn.pretrained import load_weights
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.trainer import train
from sdgpu.nn.training_files import Store
from tests.damage import cut, damages, flipped, lengthened, zeroed
from tests.nn.problems import CLASSES, convnet, data, mlp, same_bits

CONFIG = Config(epochs=3, batch=10, lr=0.02, decay=0.01, crop_pad=1, save_seconds=0.0)
ROOT = Path(__file__).parents[2]


ALL = (flipped, cut, zeroed, lengthened)


def test_a_damaged_checkpoint_is_named(tmp_path):
    store = Store(tmp_path, {})
    generator = torch.Generator().manual_seed(0)
    state = {"weights": torch.randn(300, generator=generator), "epoch": 3, "zeros": torch.zeros(99)}
    store.save(state)
    content = store.checkpoint.read_bytes()
    loaded = store.load(World(), torch.device("cpu"))
    assert torch.equal(loaded["weights"], state["weights"])
    # other readers do not mind the checksum
    assert torch.load(store.checkpoint, weights_only=True)["epoch"] == 3
    for broken in damages(content, 0, *ALL):
        store.checkpoint.write_bytes(broken)
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged, or was not written"):
            store.load(World(), torch.device("cpu"))


def test_an_earlier_format_is_named(tmp_path):
    torch.save({"format": 1, "owner": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="not written by this version"):
        train(mlp(), data(), None, CONFIG, folder=tmp_path)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.nn.problems import data, mlp
from tests.nn.test_files import CONFIG
from sdgpu.backend.signals import terminable
from sdgpu.backend.storage import LOCK
from sdgpu.backend.distributed import World
from sdgpu.nn.training_files import Store
from sdgpu.nn.trainer import train

folder, draw = Path(sys.argv[1]), random.Random(0)
train(mlp(), data(), None, CONFIG)  # what is made at first use
os.fsync = lambda handle: time.sleep(0.004)  # a disk, the same on every machine
start = time.perf_counter()
train(mlp(), data(), None, CONFIG, folder=folder, resume=False)
spent, left = time.perf_counter() - start, 0  # kills fall into two trainings, whatever one takes here
for attempt in range(50):
    ready, started = os.pipe()
    child = os.fork()
    if not child:
        try:
            with terminable():
                os.write(started, b"1")
                resume = True
                while True:
                    train(mlp(), data(), None, CONFIG, folder=folder, resume=resume)
                    resume = False
        except KeyboardInterrupt:
            os._exit(130)
    os.read(ready, 1)
    os.close(ready)
    os.close(started)
    time.sleep(draw.uniform(0.005, 2 * spent))
    sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[attempt % 3]
    os.kill(child, sent)
    _, status = os.waitpid(child, 0)
    if sent == signal.SIGKILL:
        assert os.WIFSIGNALED(status), status
    else:
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130, (sent, status)
    left += any(path.name.endswith(".sdgpu-tmp") for path in folder.glob(".*"))
    if (folder / "checkpoint.pt").exists():
        Store(folder, {}).load(World(), torch.device("cpu"))
    if attempt % 5 == 4:
        for _ in range(10):  # the system may hold the lock of a dead process for a moment
            train(mlp(), data(), None, CONFIG, folder=folder)  # goes on to the end
            names = {path.name for path in folder.iterdir()}
            if names == {LOCK, "checkpoint.pt", "config.json", "log.csv"}:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(names)
assert left, "no kill fell into a write"
"""


@pytest.fixture
def quick_folder(tmp_path):
    """In memory if the system has such a place, where nothing waits for a disk."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        yield Path(folder)


def test_fifty_kills_leave_a_checkpoint_that_is_whole(quick_folder):
    """Whatever the moment: the file is whole, the next run takes it up, and nothing else is left."""
    told = subprocess.run(
        [sys.executable, "-c", KILLS, str(quick_folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    whole = train(mlp(), data(), None, CONFIG)
    assert same_bits(whole.model, train(mlp(), data(), None, CONFIG, folder=quick_folder).model)


@pytest.mark.parametrize("kind", ["one", "stacked", "chain"])
def test_finished_folders_are_cleaned_of_what_a_kill_left(tmp_path, kind):
    """A kill may fall between the rename of the last checkpoint and the end of its workplace."""

    def again():
        if kind == "one":
            train(mlp(), data(), None, CONFIG, folder=tmp_path)
        elif kind == "stacked":
            targets = torch.eye(CLASSES)[torch.arange(len(data().train)) % CLASSES].expand(
                2, -1, -1
            )
            train_stacked([mlp(), mlp(1)], data(), targets, CONFIG, folder=tmp_path)
        else:
            distill_chain(mlp(), data(), CONFIG, steps=1, alphas=0.5, folder=tmp_path)

    again()
    whole = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    for path in [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".json", ".csv")]:
        (path.parent / f".{path.name}.1-0123abcd.sdgpu-tmp").mkdir()
    again()
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == whole


def interrupt_at(done, number=signal.SIGINT, times=1):
    def hook(event):
        if event.done == done:
            for _ in range(times):
                signal.raise_signal(number)

    return hook


@pytest.mark.parametrize("done", [1, 3, 5, 9])
def test_an_interrupt_saves_the_batch_that_was_done(tmp_path, done):
    """Long before the first interval is over."""
    config = dataclasses.replace(CONFIG, save_seconds=1e6)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), data(), None, config, folder=tmp_path, progress=interrupt_at(done))
    assert signal.getsignal(signal.SIGINT) is before
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 3 * saved["epoch"] + saved["batch"] == done
    heard = []
    rest = train(mlp(), data(), None, config, folder=tmp_path, progress=heard.append)
    assert [event.done for event in heard] == list(range(done + 1, 10))
    assert same_bits(rest.model, train(mlp(), data(), None, config).model)


def test_a_second_interrupt_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(
            mlp(),
            data(),
            None,
            dataclasses.replace(CONFIG, save_seconds=1e6),
            folder=tmp_path,
            progress=interrupt_at(2, times=2),
        )
    assert not (tmp_path / "checkpoint.pt").exists()


def test_without_a_folder_an_interrupt_does_not_wait():
    heard = []

    def hook(event):
        heard.append(event.done)
        interrupt_at(2)(event)
        heard.append("not reached" if event.done == 2 else "")

    with pytest.raises(KeyboardInterrupt):
        train(mlp(), data(), None, CONFIG, progress=hook)
    assert heard[-1] == 2


def test_a_thread_trains_as_well(tmp_path):
    """Only the main thread may change the handling of signals."""
    made = []
    thread = threading.Thread(
        target=lambda: made.append(train(mlp(), data(), None, CONFIG, folder=tmp_path))
    )
    thread.start()
    thread.join(60)
    assert same_bits(made[0].model, train(mlp(), data(), None, CONFIG).model)


def test_a_folder_serves_one_training_at_a_time(tmp_path):
    message = f"in use by another training \\(process {os.getpid()} on "
    with folder_lock(tmp_path, "training"), pytest.raises(BlockingIOError, match=message):
        train(mlp(), data(), None, CONFIG, folder=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    done = train(mlp(), data(), None, CONFIG, folder=tmp_path)
    with folder_lock(tmp_path, "training"):  # a finished one writes nothing and so waits for nobody
        assert same_bits(done.model, train(mlp(), data(), None, CONFIG, folder=tmp_path).model)


def test_a_finished_training_writes_nothing(tmp_path):
    train(mlp(), data(), None, CONFIG, folder=tmp_path)
    before = {path: path.stat() for path in tmp_path.iterdir()}
    time.sleep(0.01)
    train(mlp(), data(), None, CONFIG, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", ["config.json", "log.csv", "chain.json"])
@pytest.mark.parametrize("text", ['{"name": "mine"}', "epoch;rate", "", "\x80"])
def test_foreign_files_stay(tmp_path, name, text, resume):
    (tmp_path / name).write_text(text, encoding="latin-1")
    chain = functools.partial(distill_chain, mlp(), data(), CONFIG, steps=1, alphas=0.5)
    fit = functools.partial(train, mlp(), data(), None, CONFIG)
    with pytest.raises(ValueError, match=f"{name} is not of a training, and stays"):
        (chain if name == "chain.json" else fit)(folder=tmp_path, resume=resume)
    assert (tmp_path / name).read_text(encoding="latin-1") == text
    assert not list(tmp_path.rglob("checkpoint.pt"))


class Masked(nn.Module):
    """A persistent buffer of -inf, as masks of attention are."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.register_buffer("mask", torch.full((CLASSES, CLASSES), -torch.inf).triu(1))

    def forward(self, inputs):
        return self.inner(inputs)


def test_a_mask_of_minus_infinity_is_meant_so(tmp_path):
    result = train(Masked(), data(), None, CONFIG, folder=tmp_path)
    assert same_bits(result.model.inner, train(mlp(), data(), None, CONFIG).model)
    with pytest.raises(FloatingPointError, match=r"is not finite|the loss is"):
        train(Masked(), data(), None, dataclasses.replace(CONFIG, lr=1e200), folder=tmp_path / "2")


def test_tensorboard_shows_every_epoch_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # nothing is saved before the end: what is written up to an error comes again
    config = dataclasses.replace(CONFIG, tensorboard=True, save_seconds=1e6)
    steps = []
    for done in (8, 4, None, None):
        with pytest.raises(ZeroDivisionError) if done else nullcontext():
            train(mlp(), data(), None, config, folder=tmp_path, progress=fail_at(done))
        board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        steps.append([event.step for event in board.Scalars("val_loss")])
    assert steps == [[1, 2], [1], [1, 2, 3], [1, 2, 3]]


def fail_at(done):
    return lambda event: 1 / (event.done != done)


def test_weights_come_out_of_a_folder(tmp_path):
    """Of a training that was cut off, of a finished one, and of one of several side by side."""
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), data(), None, CONFIG, folder=tmp_path, progress=interrupt_at(4))
    cut = load_weights(mlp(1), tmp_path)
    assert not same_bits(cut, mlp())
    done = train(mlp(), data(), None, CONFIG, folder=tmp_path)
    assert done.path == str(tmp_path / "checkpoint.pt")
    assert same_bits(load_weights(mlp(1), done.path), done.model)
    with pytest.raises(ValueError, match=r"member=0, but .* holds one network"):
        load_weights(mlp(1), tmp_path, member=0)
    with pytest.raises(ValueError, match=r"1\.bias is "):
        load_weights(mlp(1, width=9), tmp_path)
    targets = torch.stack(
        [data().train.one_hot(torch.float64), torch.full((24, CLASSES), 1 / CLASSES)]
    )
    stack = train_stacked(
        [convnet(), convnet(1)], data(), targets, CONFIG, folder=tmp_path / "stack"
    )
    for result in stack:
        loaded = load_weights(convnet(2), tmp_path / "stack", member=result.member)
        assert same_bits(loaded, result.model)
    for member in (None, 2, -1):
        with pytest.raises(ValueError, match=r"holds 2 networks .* give member in 0\.\.1, not "):
            load_weights(convnet(), tmp_path / "stack", member=member)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(
        path.read_bytes().replace(b"\x00\x00\x00\x00\x00\x00\x00\x00\x00", b"\x01" * 9, 1)
    )
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        load_weights(mlp(1), path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*checkpoint\.pt"):
        load_weights(mlp(1), tmp_path)
