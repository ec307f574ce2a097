"""Checkpoints of a growing basis: safetensors with a checksum, complete or not at all, never executed.

A file is written whole (:mod:`sdgpu.backend.storage`), so that a process killed at any moment leaves the
last complete one. It carries the fingerprint of what it belongs to and a checksum of all its numbers: one
that belongs to something else or is damaged is refused with the reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdgpu.backend.backends import to_numpy
from sdgpu.backend.progress import SavePace
from sdgpu.backend.sealed_tensors import read_tensors, write_tensors
from sdgpu.backend.sparse_rows import is_csr
from sdgpu.backend.storage import check_writable

__all__ = ["BasisCheckpoint", "Checkpoint", "State", "fingerprint"]

INTERVAL = 30.0  # seconds between saves
SHARE = 0.1  # of the time that saving may take


@dataclass(frozen=True, eq=False)
class State:
    """What a growing basis needs to go on: Q, R, T and the passes so far."""

    Q: Any
    R: Any
    T: np.ndarray
    passes: int


def fingerprint(**parts: Any) -> dict[str, str]:
    """Hash each part: arrays by their bytes, everything else by its text."""
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part: Any) -> str:
    if isinstance(part, (str, int, float, type(None), tuple)):
        return repr(part)
    if is_csr(part):
        return " ".join(map(_digest, (part.shape, part.data, part.indices, part.indptr)))
    host = np.ascontiguousarray(to_numpy(part))
    # a view: a copy of the bytes of X would double its memory
    hasher = hashlib.sha256(f"{host.shape} {host.dtype}".encode())
    hasher.update(host.view(np.uint8).data)
    return hasher.hexdigest()


class BasisCheckpoint(Protocol):
    """Where a growing basis is saved: on one device, or by several ranks."""

    def load(self) -> State | None: ...
    def offer(self, state: State) -> None: ...
    def save(self, state: State) -> None: ...
    def interrupted(self, state: State) -> None:
        """Save what there is on the way out of an interrupt, if that can be done."""


@dataclass
class Checkpoint:
    """Saves now and then, and on the way out of an interrupt.

    Parameters
    ----------
    path : Path
        Of the file; ``.safetensors``.
    owner : dict
        :func:`fingerprint` of the data, kernel, precision and method.
    """

    path: Path
    owner: dict[str, str]
    _pace: SavePace = field(default_factory=lambda: SavePace(INTERVAL, SHARE))

    def __post_init__(self) -> None:
        if self.path.suffix != ".safetensors":
            raise ValueError(f"checkpoint={str(self.path)!r} must end in .safetensors")
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of checkpoint={str(self.path)!r} does not exist")
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"checkpoint={str(self.path)!r} is no plain file: name another")
        check_writable(self.path)

    def load(self) -> State | None:
        """The state in the file, or None if there is no file.

        Raises
        ------
        ValueError
            If the file is damaged, was written by a version without checksums, or belongs to other data,
            kernel, precision, method or version.
        OSError
            If it may not be read.
        """
        if not self.path.exists():
            return None
        arrays, metadata = read_tensors(self.path, "checkpoint")
        try:
            owner, passes = metadata["owner"], int(metadata["passes"])
            state = State(arrays["Q"], arrays["R"], arrays["T"], passes)
            if not isinstance(owner, dict):
                raise TypeError("its owner is no dictionary")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({error}): remove it to start again"
            ) from error
        mismatches = [name for name in self.owner if owner.get(name) != self.owner[name]]
        if mismatches:
            raise ValueError(
                f"checkpoint {self.path} belongs to a fit with other {', '.join(mismatches)}: name another "
                "file, or remove it to start again"
            )
        return state

    @property
    def due(self) -> bool:
        """Whether it is time: every 30 s, or less often where saving takes long."""
        return self._pace.due

    def offer(self, state: State) -> None:
        """Save if it is time."""
        if self.due:
            self.save(state)

    def interrupted(self, state: State) -> None:
        """Save on the way out."""
        self.save(state)

    def save(self, state: State) -> None:
        """Write the state in place of the last one.

        Raises
        ------
        OSError
            If the disk is full, say: names the file; the previous one is untouched.
        """
        arrays = {name: to_numpy(getattr(state, name)) for name in ("Q", "R", "T")}
        with self._pace.saving():
            write_tensors(self.path, arrays, {"owner": self.owner, "passes": state.passes})
