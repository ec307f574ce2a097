"""The folder of a study: what it holds, whose that is, and which cells are finished.

===========================  ============================================================================
``study.json``               name, tables, checksums of the data
``cells/<key>.safetensors``  losses of a cell and its record, written by whoever worked on it
``cells.jsonl``              the record of every cell, a line each, failed ones with their traceback
``results.zarr``             all finished cells as one dataset
``networks/``                the experiments with networks
===========================  ============================================================================

Every file has checksums. ``cells.jsonl`` only repeats what the files of cells say: damaged lines are
dropped and written anew from them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdgpu.backend.sealed_json import plain, read_json, read_line, sealed_line, write_json
from sdgpu.backend.sealed_tensors import read_tensors, save_tensors
from sdgpu.backend.storage import append_line, atomic_files, clean_folder, folder_lock, write_file
from sdgpu.study.grid_study.configuration import StudyConfig

__all__ = ["StudyFolder", "read_cell", "write_cells"]

KIND = "study of sdgpu"
FORMAT = 1
CELLS = "cells"
LINES = "cells.jsonl"
_ELSEWHERE = "name another folder"

Record = dict[str, Any]


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    folder: Path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, hold it against other runs, and clean it before and after.

        A worker that is killed between the rename of its file and the end of the write leaves an empty
        workplace beside a cell that is whole and is never written again.

        Raises
        ------
        BlockingIOError
            If another run holds it.
        ValueError, OSError
            If it is a file, or cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder={str(self.folder)!r} is a file: name a folder")
        cells = self.folder / CELLS
        cells.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.folder, "run of a study"):
            clean_folder(cells)
            try:
                yield
            finally:
                clean_folder(cells)

    @property
    def exists(self) -> bool:
        """Whether there is a study in it."""
        return (self.folder / "study.json").exists()

    def open(self, config: StudyConfig, data: Mapping[str, str]) -> None:
        """Check that the folder is of this study and these data, and write down what is run now.

        Parameters
        ----------
        config : StudyConfig
        data : mapping of source to checksum

        Raises
        ------
        ValueError
            If it is of another study, another version or something else, or the data have changed.
        """
        path = self.folder / "study.json"
        if path.exists():
            fields = self.read()
            if fields["name"] != config.name:
                raise ValueError(
                    f"{self.folder} holds the study {fields['name']!r}, not {config.name!r}: {_ELSEWHERE}"
                )
            for source, checksum in fields["data"].items():
                if data.get(source, checksum) != checksum:
                    raise ValueError(
                        f"the data {source} have changed since {self.folder} was begun: bring them "
                        f"back, or {_ELSEWHERE}"
                    )
            data = {**fields["data"], **data}
        elif any(self.folder.joinpath(CELLS).iterdir()):
            raise ValueError(f"{self.folder} has cells but no study.json: {_ELSEWHERE}")
        tables = plain(config.model_dump(mode="json", exclude_unset=True))
        fields = {
            "kind": KIND,
            "format": FORMAT,
            "name": config.name,
            "data": dict(data),
            "tables": tables,
        }
        write_json(path, fields)

    def read(self) -> dict[str, Any]:
        """What ``study.json`` says.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is damaged, of another version, or of something else.
        """
        path = self.folder / "study.json"
        if not path.exists():
            raise FileNotFoundError(f"there is no study in {self.folder}: {path.name} is missing")
        fields = read_json(path)
        if fields.get("kind") != KIND or "name" not in fields or "data" not in fields:
            raise ValueError(f"{path} is of something else than a study: {_ELSEWHERE}")
        if fields.get("format") != FORMAT:
            raise ValueError(
                f"{path} is of format {fields.get('format')}, this version reads {FORMAT}: run the study "
                f"anew, and {_ELSEWHERE} for it"
            )
        return fields

    def records(self, keys: Iterable[str] | None = None) -> dict[str, Record]:
        """The record of every cell by its key, the latest of each; of `keys` those whose file is whole.

        A line that is missing or damaged is made again from the file of its cell; a finished cell whose
        file is missing is not finished.
        """
        records: dict[str, Record] = {}
        if (self.folder / LINES).exists():
            with (self.folder / LINES).open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    record = read_line(line)
                    if record is not None and isinstance(record.get("key"), str):
                        records[record["key"]] = record
        if keys is None:
            return records
        with os.scandir(self.folder / CELLS) as entries:
            present = {entry.name.removesuffix(".safetensors") for entry in entries}
        wanted = {}
        for key in keys:
            record = records.get(key)
            if key in present and (record is None or record.get("status") != "done"):
                record = read_cell(self.folder, key)[0]
            if record is not None and (key in present or record.get("status") == "failed"):
                wanted[key] = record
        return wanted

    def rewrite(self, records: Iterable[Record]) -> None:
        """Write all lines anew."""
        write_file(self.folder / LINES, "".join(map(sealed_line, records)).encode())

    def append(self, record: Record) -> None:
        """Add a line; one that a kill tears is made again from the file of its cell."""
        append_line(self.folder / LINES, sealed_line(record))


def write_cells(folder: Path, cells: Iterable[tuple[Record, Mapping[str, np.ndarray]]]) -> None:
    """Write the files of finished cells, each whole or not at all, with one wait for the disk.

    Raises
    ------
    OSError
        Names the folder: a full disk, say.
    """
    with atomic_files(folder / CELLS) as new:
        for record, arrays in cells:
            save_tensors(new / f"{record['key']}.safetensors", arrays, {"record": record})


def read_cell(folder: Path, key: str) -> tuple[Record, dict[str, np.ndarray]]:
    """Record and losses of a finished cell.

    Raises
    ------
    FileNotFoundError
        If it is not finished.
    ValueError
        If the file is damaged or of another cell; names it.
    """
    path = folder / CELLS / f"{key}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"there is no cell {path}: it is not finished")
    arrays, metadata = read_tensors(path, "cell of a study")
    record = metadata.get("record")
    if not isinstance(record, dict) or record.get("key") != key:
        raise ValueError(f"{path} is not the cell of its name: remove it, the study makes it again")
    return record, arrays
