"""Files whole or not there: exceptions, signals and kills at every moment, left-overs, modes, locks."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sdgpu.backend import checksums, storage
from sdgpu.backend.checksums import digest
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.signals import terminable
from sdgpu.backend.storage import (
    LOCK,
    atomic_file,
    atomic_files,
    atomic_folder,
    check_writable,
    clean_folder,
    clean_leftovers,
    folder_lock,
    write_file,
)


def write_folder(path, content=b"new"):
    with atomic_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(content)


def read_folder(path):
    return (path / "inner" / "file").read_bytes()


@contextlib.contextmanager
def one_of_several(path):
    """From a folder of files that move together."""
    with atomic_files(path.parent) as new:
        yield new / path.name


def write_together(path, content):
    with one_of_several(path) as new:
        new.write_bytes(content)


@pytest.fixture(params=["file", "folder", "together"])
def kind(request):
    """How to write, read and begin to write."""
    if request.param == "together":
        return write_together, Path.read_bytes, one_of_several
    if request.param == "file":
        return write_file, Path.read_bytes, atomic_file
    return write_folder, read_folder, atomic_folder


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_write_is_whole_and_leaves_nothing_else(kind, tmp_path):
    write, read, _ = kind
    target = tmp_path / "a.out"
    for content in (b"first", b"second"):
        write(target, content)
        assert read(target) == content
        assert names(tmp_path) == ["a.out"]


def test_files_that_move_together(tmp_path):
    """All of them, or none after an exception; each has the mode of the one before or of a new file."""
    write_file(tmp_path / "a", b"old")
    (tmp_path / "a").chmod(0o640)
    with pytest.raises(KeyError):
        fail_halfway(one_of_several(tmp_path / "a"), KeyError)
    with ThreadPoolExecutor(4) as pool:  # writers that do not know of each other
        written = [pool.submit(write_together, tmp_path / f"c{i}", b"c") for i in range(20)]
    assert [one.result() for one in written] == [None] * 20
    with atomic_files(tmp_path) as new:
        assert not list(new.iterdir())
        for name in ("a", "b", "d"):
            (new / name).write_bytes(name.encode())
            (new / name).chmod(0o600)
        clean_folder(tmp_path)  # it is held, so it stays
    assert names(tmp_path) == sorted(["a", "b", "d", *(f"c{i}" for i in range(20))])
    assert [(tmp_path / name).read_bytes() for name in ("a", "b", "d")] == [b"a", b"b", b"d"]
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "b", "c3")]
    assert modes == [0o640, modes[2], modes[2]]
    with atomic_files(tmp_path):
        pass  # nothing is to be written
    (tmp_path / "e").mkdir()
    with pytest.raises(IsADirectoryError, match="e is a folder"):
        write_both(tmp_path, "a", "e")
    assert (tmp_path / "a").read_bytes() == b"a"


def write_both(folder, *names):
    with atomic_files(folder) as new:
        for name in names:
            (new / name).write_bytes(b"never there")


def fail_halfway(writing, failure):
    with writing as new:
        (new / "half" if new.is_dir() else new).write_bytes(b"half")
        (new.parent / "beside").write_bytes(b"of the writer")
        raise failure


def terminate_itself():
    with terminable(), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.mark.parametrize(
    "failure", [KeyboardInterrupt, ValueError, SystemExit, OSError(errno.ENOSPC, "No space left")]
)
def test_an_exception_changes_nothing(kind, tmp_path, failure):
    write, read, begin = kind
    target = tmp_path / "a.out"
    for before in ([], ["a.out"]):
        expected = OSError if isinstance(failure, OSError) else failure
        with pytest.raises(expected) as caught:
            fail_halfway(begin(target), failure)
        assert names(tmp_path) == before
        if isinstance(failure, OSError):
            assert str(tmp_path if begin is one_of_several else target) in str(caught.value)
            assert "nothing was changed" in str(caught.value)
        write(target, b"old")
    assert read(target) == b"old"


@pytest.mark.parametrize("exchange", [True, False])
def test_an_exception_between_the_renames_of_a_folder(tmp_path, monkeypatch, exchange):
    """Old or new stands there whole, whenever the interrupt comes."""
    target = tmp_path / "a.zarr"
    if not exchange:
        monkeypatch.setattr(storage, "_exchange", lambda *_: False)
    found = []
    for moment in range(10):
        write_folder(target, b"old")
        calls = []

        def interrupted(original, calls=calls, moment=moment):
            def call(*arguments, **named):
                calls.append(original)
                if len(calls) == moment + 1:
                    raise KeyboardInterrupt
                return original(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", interrupted(Path.rename))
            patched.setattr(storage, "_flush_folder", interrupted(storage._flush_folder))
            try:
                write_folder(target, b"new")
            except KeyboardInterrupt:
                found.append(read_folder(target))
            else:
                break
        assert names(tmp_path) == ["a.zarr"]
    # two folders are flushed before the first rename
    assert found == [b"old"] * (2 if exchange else 4) + [b"new"]


def test_a_folder_moved_aside_by_a_killed_process_comes_back(tmp_path):
    """Where two renames were needed, and the kill came between them."""
    target = tmp_path / "a.zarr"
    place = tmp_path / f".a.zarr.{2**22 + 1}-0123abcd.sdgpu-tmp"
    write_folder(place / "previous", b"old") if place.mkdir() is None else None
    (place / "lock").touch()
    clean_leftovers(target)
    assert read_folder(target) == b"old"
    assert names(tmp_path) == ["a.zarr"]


def test_leftovers_beside_files_that_nobody_writes_again(tmp_path):
    """A kill just after the rename; who takes the folder cleans it, but for what waits for its own target."""
    for name in (".a.json.1-0123abcd.sdgpu-tmp", ".b.nc.2-0123abcd.sdgpu-tmp", "below"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.nc.2-0123abcd.sdgpu-tmp" / "lock").touch()
    aside = tmp_path / ".c.zarr.3-0123abcd.sdgpu-tmp"
    write_folder(aside / "previous", b"old") if aside.mkdir() is None else None
    deeper = tmp_path / "below" / ".a.json.1-0123abcd.sdgpu-tmp"
    deeper.mkdir()
    with atomic_file(tmp_path / "d.json") as living:
        living.write_bytes(b"1")
        with folder_lock(tmp_path):
            assert living.exists()
    assert names(tmp_path) == sorted([aside.name, "below", "d.json", LOCK])
    assert deeper.exists()
    clean_folder(tmp_path / "below")
    clean_folder(tmp_path / "nowhere")
    assert not deeper.exists()


@pytest.mark.parametrize("kind", ["file", "folder"], indirect=True)
def test_leftovers_of_the_dead_go_and_nothing_else(kind, tmp_path):
    write, _, begin = kind
    target = tmp_path / "a.out"
    dead = tmp_path / ".a.out.1-0123abcd.sdgpu-tmp"  # process 1 lives: the lock decides
    dead.mkdir()
    (dead / "new").mkdir()
    (dead / "new" / ".tmp123").write_bytes(b"half")
    kept = [".a.out.1-0123abcd.sdgpu-tmp.txt", ".b.out.1-0123abcd.sdgpu-tmp", ".a.out.tmp", "new"]
    for name in kept:
        (tmp_path / name).mkdir()
    foreign = tmp_path / ".a.out.2-0123abcd.sdgpu-tmp"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    link = tmp_path / ".a.out.3-0123abcd.sdgpu-tmp"
    link.symlink_to(tmp_path / "new")
    with begin(target) as new:
        if not new.exists():
            new.write_bytes(b"")
        write(tmp_path / "a.out", b"of another writer meanwhile")  # which leaves the first alone
        assert new.exists()
    assert names(tmp_path) == sorted([*kept, foreign.name, link.name, "a.out"])


ALONE = """
import importlib.util, os, random, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("storage", sys.argv[1])  # without importing torch
storage = importlib.util.module_from_spec(spec)
spec.loader.exec_module(storage)
folder = Path(sys.argv[2])
"""


def test_what_another_machine_has_just_begun_is_left(tmp_path):
    place = tmp_path / ".a.out.1-0123abcd.sdgpu-tmp"
    place.mkdir()
    (place / "lock").write_text("another-machine")
    write_file(tmp_path / "a.out", b"")
    assert place.exists()
    old = time.time() - 2 * 3600
    os.utime(place / "lock", (old, old))
    write_file(tmp_path / "a.out", b"")
    assert names(tmp_path) == ["a.out"]


SAVER = """
atomic_folder, clean_leftovers = storage.atomic_folder, storage.clean_leftovers
ending, number, times = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
target, rng = folder / f"a{ending}", random.Random(number)

def save_all_the_time():
    for i in range(10**6):
        content = bytes([i % 251]) * 40000
        if ending == ".zarr":
            with atomic_folder(target) as new:
                for part in range(4):
                    (new / str(part)).write_bytes(content[:10000])
        else:
            storage.write_file(target, content[:20000], content[20000:])

left = 0
for _ in range(times):
    child = os.fork()
    if child == 0:
        try:
            save_all_the_time()
        except KeyboardInterrupt:
            os._exit(130)
    time.sleep(rng.uniform(0.001, 0.06))
    os.kill(child, number)
    os.waitpid(child, 0)
    left += bool({*os.listdir(folder)} - {target.name})
    clean_leftovers(target)
    assert {*os.listdir(folder)} <= {target.name}, os.listdir(folder)
    if target.exists():
        parts = sorted(target.iterdir()) if target.is_dir() else [target]
        content = b"".join(part.read_bytes() for part in parts)
        assert len(content) == 40000 and len(set(content)) == 1
print(left)
"""


def alone(script, folder):
    return [sys.executable, "-c", ALONE + script, storage.__file__, str(folder)]


@pytest.mark.parametrize("ending", [".bin", ".zarr"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kills_while_saving(tmp_path, ending, number):
    """The target is whole after each of 12 kills, and what a kill left goes at the next occasion."""
    done = subprocess.run(
        [*alone(SAVER, tmp_path), ending, str(int(number)), "12"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert number == signal.SIGKILL or int(done.stdout) <= 2  # between two lines of the cleaning


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_cleaning_waits(kind, tmp_path, monkeypatch, number):
    write, read, _ = kind
    write(tmp_path / "a.out", b"old")
    discard = storage._discard

    def signalled(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        discard(*arguments)

    monkeypatch.setattr(storage, "_discard", signalled)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.out", b"new")
    assert read(tmp_path / "a.out") == b"new"
    assert names(tmp_path) == ["a.out"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(kind, tmp_path, mask):
    write, _, _ = kind
    before = os.umask(mask)
    try:
        write(tmp_path / "a.out", b"")
        full = 0o777 if write is write_folder else 0o666
        assert (tmp_path / "a.out").stat().st_mode & 0o777 == full & ~mask
    finally:
        os.umask(before)
    if write is write_file:
        (tmp_path / "a.out").chmod(0o640)
        write(tmp_path / "a.out", b"")
        assert (tmp_path / "a.out").stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(kind, tmp_path):
    write, read, _ = kind
    (tmp_path / "far").mkdir()
    (tmp_path / "a.out").symlink_to(tmp_path / "far" / "b.out")
    for content in (b"1", b"2"):
        write(tmp_path / "a.out", content)
        assert read(tmp_path / "far" / "b.out") == content
    assert (tmp_path / "a.out").is_symlink()


def test_a_folder_for_a_file_and_back(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="a file is wanted"):
        write_file(tmp_path, b"")
    with pytest.raises(NotADirectoryError, match="a folder is wanted"):
        write_folder(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"no.x cannot be written .*folder does not exist"):
        write_file(tmp_path / "no" / "x", b"")
    long = tmp_path / ("x" * 250)
    write_file(long, b"1")
    assert names(tmp_path) == ["file", long.name]


def test_check_writable(tmp_path, monkeypatch):
    check_writable(tmp_path / "a.nc")
    check_writable(tmp_path / "many" / "folders" / "a.nc")
    check_writable(tmp_path)
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_writable(tmp_path / "file" / "a.nc")
    with pytest.raises(OSError, match=r"/proc/a.nc cannot be written"):
        check_writable("/proc/a.nc")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    with pytest.raises(PermissionError, match="write-protected"):
        check_writable(tmp_path / "file")


def test_a_digest_is_of_values_shape_and_type(rng):
    a = rng.standard_normal((7, 5, 3))
    same = [a, a.copy(order="F"), a.astype(">f8"), np.repeat(a, 2, axis=0)[::2]]
    assert len({digest(one) for one in same}) == 1
    other = [
        a.reshape(5, 7, 3),
        a.astype("f4"),
        a.view("i8"),
        a[:, :, :2],
        a[::-1],
        -a,
        a.tobytes(),
        np.zeros(0),
        np.zeros((0, 2)),
        np.float64(1.0) * np.ones(()),
        "",
        b"",
    ]
    assert len({digest(one) for one in [a, *other]}) == 1 + len(other)
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"ab") == digest(memoryview(b"ab")) == digest(bytearray(b"ab"))
    assert digest("x").startswith("xxh3:")
    with pytest.raises(TypeError, match="object"):
        digest(np.array([None]))


def test_every_flipped_bit_changes_a_digest(rng):
    a = rng.standard_normal(40)
    raw = a.view(np.uint8)
    found = {digest(a)}
    for bit in range(8 * a.nbytes):
        raw[bit // 8] ^= 1 << bit % 8
        found.add(digest(a))
        raw[bit // 8] ^= 1 << bit % 8
    assert len(found) == 1 + 8 * a.nbytes


def test_a_digest_copies_little(rng, monkeypatch):
    """In slabs the sum is that of the whole."""
    a = rng.standard_normal((64, 33)).T
    whole = digest(a)
    monkeypatch.setattr(checksums, "_BLOCK", 100)
    assert digest(a) == whole
    assert max(block.nbytes for block in checksums._blocks(a)) <= max(100, 8 * 64)


HOLDER = """
with storage.folder_lock(folder):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_until_it_dies(tmp_path):
    process = subprocess.Popen(alone(HOLDER, tmp_path), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    for _ in range(2):  # the first refusal does not wipe out the note
        with (
            pytest.raises(BlockingIOError, match=rf"another trial \(process {process.pid} on "),
            folder_lock(tmp_path, "trial"),
        ):
            pass
    process.kill()
    process.wait()
    process.stdout.close()
    with (
        folder_lock(tmp_path),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()}"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        pass
    assert names(tmp_path) == [LOCK]


def test_folders_that_cannot_be_locked(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"), folder_lock(tmp_path / "no"):
        pass
    with pytest.raises(OSError, match="/proc cannot be locked for writing"), folder_lock("/proc"):
        pass


def test_sigterm_is_ctrl_c_where_nobody_else_listens():
    with pytest.raises(KeyboardInterrupt):
        terminate_itself()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        with terminable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def elsewhere():
        with terminable():
            heard.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard[-1] is signal.SIG_DFL


class Dropped:
    """Whose destructor is where a signal arrives: Python drops what is raised there."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_meets_a_destructor_is_heard_after_it():
    done = []

    def work():
        with terminable():
            Dropped()
            done.append("on")
            Stopwatch(lambda: None).report("passes", 1, 2)
            done.append("too far")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["on"]
    with pytest.raises(KeyboardInterrupt), terminable():  # or at the end
        Dropped()
    with terminable():
        Stopwatch(lambda: None).report("passes", 1, 2)  # nothing is left of it
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
