"""Whether a file is still what it was when it was opened: its size, and when it was last written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileState", "FolderState"]


@dataclass(frozen=True)
class FileState:
    """A plain file as it was found.

    Attributes
    ----------
    path : str
    size : int
        Bytes.
    modified : int
        Nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileState:
        """Look at a file.

        Raises
        ------
        OSError
            If there is none, or it is no plain file: a pipe would be waited for. Names `path`.
        """
        name = os.fspath(path)
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder: a file is wanted")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{name} is no plain file")
        return cls(name, status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Look again.

        Raises
        ------
        ValueError
            If it changed or is gone; names the file.
        """
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read any more ({error.strerror}): open it again"
            ) from error
        if (status.st_size, status.st_mtime_ns) == (self.size, self.modified):
            return
        sizes = "its size is the same, but it was written to"
        if status.st_size != self.size:
            sizes = f"it had {self.size:,} bytes and has {status.st_size:,}"
        raise ValueError(
            f"{self.path} changed while it was in use ({sizes}): open it again when it is complete"
        )


@dataclass(frozen=True)
class FolderState:
    """All files of a folder and of the folders in it, as they were found.

    Attributes
    ----------
    path : str
    files : mapping
        Name, relative to `path` and with "/", to (bytes, nanoseconds).
    """

    path: str
    files: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FolderState:
        """Look at a folder.

        Raises
        ------
        OSError
            If there is none.
        ValueError
            If something else than plain files is in it: links lead elsewhere, pipes are waited for.
        """
        files: dict[str, tuple[int, int]] = {}
        pending = [""]
        while pending:
            inside = pending.pop()
            with os.scandir(Path(path, inside)) as entries:
                for entry in entries:
                    name = f"{inside}/{entry.name}" if inside else entry.name
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(name)
                    elif stat.S_ISREG(status.st_mode):
                        files[name] = (status.st_size, status.st_mtime_ns)
                    else:
                        raise ValueError(
                            f"{os.fspath(path)} holds {name}, which is no plain file: it may lead elsewhere"
                        )
        return cls(os.fspath(path), files)

    def check(self) -> None:
        """Look again.

        Raises
        ------
        ValueError
            If a file changed, is gone or was added; names it.
        """
        try:
            files = FolderState.of(self.path).files
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read any more ({error.strerror}): open it again"
            ) from error
        changed = [
            name
            for name in files.keys() | self.files.keys()
            if files.get(name) != self.files.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.path} changed while it was in use, {min(changed)} for one: open it again when it "
                "is complete"
            )
