"""Paths, patterns, folders and lists of them, as the files that they mean."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdgpu.backend.rows.text_lines import is_text_table, table_name
from sdgpu.backend.rows.zarr_descriptions import is_zarr

__all__ = ["ending", "is_path", "matching_files"]

_TYPED = (".parquet", ".feather", ".arrow", ".npy", ".npz", ".zarr")
_KNOWN = f"{', '.join(_TYPED)}, and text, .csv, .tsv or .txt, also packed (.gz, .zst)"


def is_path(value: Any) -> bool:
    """Whether it is a path, or a list of paths."""
    if isinstance(value, (str, os.PathLike)):
        return True
    paths = isinstance(value, (list, tuple)) and len(value) > 0
    return paths and all(isinstance(entry, (str, os.PathLike)) for entry in value)


def ending(path: str | os.PathLike[str]) -> str:
    """What a file is, by the end of its name: ".npy", and ".csv.gz" with that of its packing.

    Raises
    ------
    ValueError
        For an unknown ending; names the known ones.
    """
    suffix = _ending(path)
    if suffix is None:
        raise ValueError(
            f"{os.fspath(path)} has an ending that is not known: rename it, known are {_KNOWN}"
        )
    return suffix


def matching_files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """The files of a path, a pattern, a folder or a list of these, in order.

    A pattern gives its files sorted by name, and so does a folder, of which files with a known ending
    count; a folder that is a zarr store counts as a file.

    Raises
    ------
    FileNotFoundError
        If nothing is there; names the pattern and the folder.
    TypeError
        For what is no path.
    ValueError
        For an empty list, and a folder with files of several kinds: they may be copies of the same rows.
    """
    if isinstance(paths, (str, os.PathLike)):
        return _matching(os.fspath(paths))
    if not is_path(paths):
        raise (ValueError if isinstance(paths, (list, tuple)) and not paths else TypeError)(
            f"path={paths!r} must be a path, a pattern, a folder, or a list of at least one of them"
        )
    return [name for path in paths for name in _matching(os.fspath(path))]


def _matching(path: str) -> list[str]:
    if os.path.isdir(path):
        return [path] if path.endswith(".zarr") or is_zarr(path) else _table_files(path)
    if os.path.exists(path):  # first: its name may look like a pattern
        return [path]
    if glob.has_magic(path):
        names = sorted(name for name in glob.glob(path, recursive=True) if _counts(name))
        if names:
            return names
        pattern, folder = os.path.basename(path), os.path.dirname(path) or "."
        raise FileNotFoundError(f"no file matches the pattern {pattern} in the folder {folder}")
    raise FileNotFoundError(f"{path} does not exist")


def _counts(name: str) -> bool:
    """Whether a name of a pattern is a file: folders of other files are none."""
    return not os.path.isdir(name) or is_zarr(name)


def _table_files(folder: str) -> list[str]:
    entries = sorted(Path(folder).iterdir())
    names = [
        str(entry)
        for entry in entries
        if not entry.name.startswith((".", "_")) and _ending(entry) and _counts(str(entry))
    ]
    if not names:
        raise FileNotFoundError(
            f"no file in the folder {folder} has a known ending, as *.parquet would: known are {_KNOWN}"
        )
    endings = sorted({ending(name) for name in names})
    if len(endings) > 1:
        raise ValueError(
            f"the folder {folder} holds {' and '.join(endings)} files, which may be the same rows twice: "
            f"name those that are meant, {os.path.join(folder, '*' + endings[0])}"
        )
    return names


def _ending(path: str | os.PathLike[str]) -> str | None:
    name = Path(path)
    if is_text_table(name):
        return name.name[len(table_name(name)) :].lower()
    if name.suffix.lower() in _TYPED:
        return name.suffix.lower()
    return ".zarr" if name.is_dir() and is_zarr(name) else None
