"""Files of a training: a checkpoint that is complete or not there at all, logs, configuration.

A file is written under a temporary name, flushed to the disk and renamed, so a process killed at any
moment leaves the last complete one. Checkpoints are read with ``weights_only=True``: nothing in them is
executed. One that belongs to another model, configuration or data is refused with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Store", "digest", "shapes", "write"]

FORMAT = 1


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises
    ------
    OSError
        If the disk is full, say: what stood there before is untouched, and the message says so.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"{path} cannot be written ({error.strerror or error}), what stood there is untouched: make "
            "room and call again with resume=True",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make the rename last; where folders cannot be opened the system does it by itself."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(*tensors: torch.Tensor) -> str:
    """SHA-256 of the shapes, types and bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def shapes(model: nn.Module) -> dict[str, str]:
    """Shape and type of every parameter and buffer by name: what makes two models the same kind."""
    return {
        name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()
    }


@dataclass(frozen=True)
class Store:
    """The folder of one training.

    Attributes
    ----------
    folder : Path
        Holds ``checkpoint.pt``, ``config.json`` and ``log.csv``.
    owner : dict
        What a checkpoint must agree with: "config", "model", "data", "targets".
    """

    folder: Path
    owner: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Of the training state."""
        return self.folder / "checkpoint.pt"

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The saved state on `device`, or None if there is none.

        Raises
        ------
        ValueError
            If the file is damaged or belongs to another model, configuration, data or targets.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            owner = state["owner"]
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {FORMAT}")
        except Exception as error:  # torch reports damage by half a dozen exceptions
            raise ValueError(
                f"checkpoint {self.checkpoint} is damaged ({error}): remove it to start again"
            ) from error
        for part, mine in self.owner.items():
            if owner.get(part) != mine:
                raise ValueError(
                    f"checkpoint {self.checkpoint} belongs to another {part}"
                    f"{_difference(owner.get(part), mine)}: name another folder, or remove the file "
                    "to start again"
                )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state.

        Raises
        ------
        OSError
            See :func:`write`.
        """
        buffer = io.BytesIO()  # torch would report a full disk by other errors
        torch.save({"format": FORMAT, "owner": dict(self.owner), **state}, buffer)
        write(self.checkpoint, buffer.getvalue())

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the log anew: it has few rows, and a killed run cannot leave one twice."""
        rows = list(rows)
        if rows:
            text = io.StringIO()
            table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            write(self.folder / "log.csv", text.getvalue().encode())


def _difference(theirs: Any, mine: Any) -> str:
    """The first field that differs, in brackets."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for name in sorted({*theirs, *mine}):
            if theirs.get(name) != mine.get(name):
                return f" ({name}: {theirs.get(name)!r} there, {mine.get(name)!r} here)"
    return ""
