"""Files that are whole or not there at all: one way to write and lock them for the whole project.

Everything is written in a workplace of its own beside the target, flushed to the disk and moved by one
rename. The workplace is a hidden folder ``.{name}.{pid}-{random}.sdgpu-tmp`` that its writer holds under a
lock, which the system takes away when the writer dies, however it dies: the next write to the same target
removes what is no longer held, and nothing else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sdgpu.backend.checksums import digest
from sdgpu.backend.signals import shielded, terminable

__all__ = [
    "LOCK",
    "append_line",
    "atomic_file",
    "atomic_files",
    "atomic_folder",
    "check_writable",
    "clean_folder",
    "clean_leftovers",
    "folder_lock",
    "write_file",
]

#: Name of the file by which :func:`folder_lock` holds a folder; it stays when the lock is given back.
LOCK = ".sdgpu-lock"

PathLike = str | os.PathLike[str]
_SUFFIX = ".sdgpu-tmp"
_LOCK_FILE, _NEW, _PREVIOUS = "lock", "new", "previous"  # all that a workplace holds
_HOUR = 3600.0  # seconds that no write takes
_FLUSHES = 8  # files of a folder that wait for the disk at a time


@contextmanager
def atomic_file(path: PathLike) -> Iterator[Path]:
    """Give a temporary path to write to; it takes the place of `path` if all goes well.

    The file is flushed and renamed once. It has the mode of the file that stood there, or that of a new
    file under the umask, whatever the writer set. A link is followed. After any exception, Ctrl-C and
    SIGTERM included (:func:`terminable`), nothing has changed and nothing is left; what a killed process
    left of an earlier write to `path` is removed first.

    Yields
    ------
    Path
        Does not exist yet; has the name of `path`, in a folder of its own.

    Raises
    ------
    OSError
        Names `path` and says that nothing was changed: a full disk, no permission, a folder of that name.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a file is wanted")
    with _naming_errors(path), _workplace(target) as place:
        (place / _NEW).mkdir()  # a folder, for writers that make files beside theirs
        new = place / _NEW / target.name
        yield new
        _flush(new)
        _put(new, target, place)
        _flush_folder(target.parent)


@contextmanager
def atomic_files(folder: PathLike) -> Iterator[Path]:
    """Give an empty folder; what files are in it in the end move into `folder`, each whole or not there.

    Each as by :func:`atomic_file`, but they wait for the disk together: ten small files take little more
    than one. After an exception while they are written nothing has changed. A kill while they move leaves
    some of them there. A link to a file of the same disk is followed.

    Yields
    ------
    Path
        For files, not for folders.

    Raises
    ------
    OSError
        As :func:`atomic_file`; names `folder`, and a folder that has the name of a file.
    """
    target = Path(os.path.realpath(folder))
    with _naming_errors(folder), _workplace(target / "files") as place:
        (place / _NEW).mkdir()
        yield place / _NEW
        files = sorted((place / _NEW).iterdir())
        for file in files:
            if (target / file.name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{file.name} is a folder: a file is wanted")
        with ThreadPoolExecutor(_FLUSHES) as pool:
            list(pool.map(_flush, files))
        for file in files:
            _put(file, Path(os.path.realpath(target / file.name)), place)
        _flush_folder(target)


@contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the place of the folder `path` if all goes well.

    As :func:`atomic_file`. The old folder and the new one change places in one step where the system can
    (Linux); elsewhere the old one is moved aside for the moment between two renames, is put back after an
    exception, and after a kill by the next :func:`clean_leftovers`, which opening should call too.

    **The folder that stood there is removed with all it holds**: check before that it may be.

    Yields
    ------
    Path
        An empty folder.

    Raises
    ------
    OSError
        As :func:`atomic_file`; also if `path` is a file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{path} is a file: a folder is wanted")
    with _naming_errors(path), _workplace(target) as place:
        new = place / _NEW
        new.mkdir()
        yield new
        with ThreadPoolExecutor(_FLUSHES) as pool:
            walked = [(Path(folder), files) for folder, _, files in os.walk(new)]
            list(pool.map(_flush, [folder / name for folder, files in walked for name in files]))
            list(pool.map(_flush_folder, [folder for folder, _ in walked]))
        if not target.exists():
            new.rename(target)
        elif not _exchange(new, target):
            target.rename(place / _PREVIOUS)
            new.rename(target)
        _flush_folder(target.parent)


def write_file(path: PathLike, *content: bytes | bytearray | memoryview) -> None:
    """Write bytes, one part after the other, by :func:`atomic_file`.

    Raises
    ------
    OSError
        As :func:`atomic_file`.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        for part in content:
            file.write(part)


def append_line(path: PathLike, line: str) -> None:
    """Add a line to a text; Ctrl-C waits until it is whole. A kill may tear it: give it a checksum.

    Raises
    ------
    OSError
        If it cannot be written; names `path`.
    """
    with _naming_errors(path), shielded(), Path(path).open("a", encoding="utf-8") as file:
        file.write(line)


def clean_leftovers(path: PathLike) -> None:
    """Remove what dead processes left of writes to `path`; put back a folder that one had moved aside.

    Only folders of the name that this module gives, with nothing in them that it does not make and no
    living process that holds them. Where that cannot be done (read-only places), nothing happens.
    """
    target = Path(os.path.realpath(path))
    for place, prefix in _workplaces(target.parent):
        if prefix == _prefix(target):
            _clean(place, target)


def clean_folder(folder: PathLike) -> None:
    """Remove what dead processes left of writes to anything in `folder`, not below it.

    As :func:`clean_leftovers`, for files that nobody may write a second time: a process that is killed just
    after its rename leaves an empty workplace beside a file that is whole. A folder that was moved aside
    waits for the opening of its own.
    """
    for place, _ in _workplaces(Path(folder)):
        _clean(place, None)


def _workplaces(folder: Path) -> list[tuple[Path, str]]:
    """Each with how its name begins (:func:`_prefix`)."""
    pattern = re.compile(rf"(\..+\.)\d+-[0-9a-f]{{8}}{re.escape(_SUFFIX)}", re.DOTALL)
    workplaces = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                workplaces.append((Path(entry.path), match[1]))
    return workplaces


def _clean(place: Path, target: Path | None) -> None:
    """Remove the workplace of a dead process; without a `target` one that holds nothing to put back."""
    with suppress(OSError, NotImplementedError):
        if {*os.listdir(place)} <= {_LOCK_FILE, _NEW, _PREVIOUS} and not _from_another_host(place):
            with FileLock(place / _LOCK_FILE, timeout=0):  # refused while its writer lives
                if target is not None or not (place / _PREVIOUS).exists():
                    _discard(place, target or place)


def check_writable(path: PathLike) -> None:
    """Find out before long work whether a file or folder `path` could be written, by trying beside it.

    Parameters
    ----------
    path : path
        It need not exist, nor the folders above it: the lowest one that does is tried.

    Raises
    ------
    OSError
        If nothing can be made there, or `path` exists and is write-protected; names `path` and the reason.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is write-protected")
    parent = target.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {parent} is a file")
    with _naming_errors(path), _workplace(parent / target.name) as place:
        (place / _NEW).write_bytes(b"1")


@contextmanager
def folder_lock(folder: PathLike, what: str = "run") -> Iterator[None]:
    """Hold a folder for this process, and clean it; a second one is refused at once, and told by whom.

    The system gives the lock back when its process dies, however it dies. The file :data:`LOCK` stays in
    the folder: removing it could let two processes in.

    Parameters
    ----------
    folder : path
        Exists.
    what : str, default "run"
        What holds it, for the message: "{folder} is in use by another {what} ..".

    Raises
    ------
    BlockingIOError
        If another process, or another part of this one, holds the folder: its number, machine and start.
    OSError
        If the folder does not exist or cannot be written.
    """
    file = Path(folder) / LOCK
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        try:
            holder = file.read_text(errors="replace")[:200].strip()
        except OSError as error:
            raise OSError(f"{folder} cannot be locked for writing: {error.strerror}") from error
        raise BlockingIOError(
            f"{folder} is in use by another {what}{f' ({holder})' if holder else ''}: wait for its end, "
            "or name another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{folder} cannot be locked for writing: {reason}") from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        clean_folder(folder)
        yield
    finally:
        lock.release()


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A folder of our own beside the target, held under a lock and removed in the end."""
    clean_leftovers(target)
    with terminable():
        place = lock = None
        try:
            with shielded():
                place, lock = _claim(target)
            yield place
        finally:
            with shielded():
                if place is not None and lock is not None:
                    _discard(place, target)
                    lock.release()


def _put(new: Path, target: Path, place: Path) -> None:
    """Rename a file that is flushed, with the mode of what stood there or that of new files."""
    mode = target.stat().st_mode if target.exists() else place.stat().st_mode & 0o666
    new.chmod(stat.S_IMODE(mode))
    os.replace(new, target)


@contextmanager
def _naming_errors(path: PathLike) -> Iterator[None]:
    """Let errors of the system say which file they are about."""
    try:
        yield
    except OSError as error:
        message = f"{path} cannot be written ({error.strerror or error}): nothing was changed there"
        raise (OSError(error.errno, message) if error.errno else OSError(message)) from error


def _claim(target: Path) -> tuple[Path, FileLock]:
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist")
    while True:
        place = target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")
        place.mkdir()
        lock = FileLock(place / _LOCK_FILE, timeout=0)
        try:
            lock.acquire()
            (place / _LOCK_FILE).write_text(socket.gethostname())
        except Timeout:  # someone cleaned between the two lines: it is theirs now
            continue
        except (NotImplementedError, OSError):
            pass  # a file system without locks: there nobody is ever taken for dead
        return place, lock


def _from_another_host(place: Path) -> bool:
    """Whether another machine began this lately: not all file systems share their locks."""
    lock = place / _LOCK_FILE
    host = lock.read_text() if lock.exists() else ""
    return host not in ("", socket.gethostname()) and time.time() - lock.stat().st_mtime < _HOUR


def _prefix(target: Path) -> str:
    """How the names of workplaces for `target` begin; file systems allow 255 bytes."""
    name = target.name
    return f".{name if len(os.fsencode(name)) < 200 else digest(name).removeprefix('xxh3:')}."


def _discard(place: Path, target: Path) -> None:
    """Remove a workplace; a folder that was moved aside goes back first if nothing took its place."""
    previous = place / _PREVIOUS
    if previous.exists() and not os.path.lexists(target):
        try:
            previous.rename(target)
        except OSError:
            return  # better a hidden folder than none
    for attempt in range(6):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(0.01 * 2**attempt)  # a thread of the writer may still be at work in there


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Make a rename last; where folders cannot be opened or flushed the system does it by itself."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
