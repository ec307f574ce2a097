"""Checkpoints of a growing basis: safetensors, complete or not at all, never executed.

A file is written under a temporary name beside its own and renamed, so that a process killed at any
moment leaves the last complete one. It carries the fingerprint of what it belongs to, and one that
belongs to something else is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sdgpu.device.backend import to_numpy

__all__ = ["Checkpoint", "State", "fingerprint"]

INTERVAL = 30.0  # seconds between saves
SHARE = 0.1  # of the time that saving may take


@dataclass(frozen=True, eq=False)
class State:
    """What a growing basis needs to go on: Q, R, T and the passes so far."""

    Q: np.ndarray
    R: np.ndarray
    T: np.ndarray
    passes: int


def fingerprint(**parts: Any) -> dict[str, str]:
    """Hash each part: arrays by their bytes, everything else by its text."""
    return {name: _digest(part) for name, part in parts.items()}


def _digest(part: Any) -> str:
    if isinstance(part, (str, int, float, type(None), tuple)):
        return repr(part)
    host = np.ascontiguousarray(to_numpy(part))
    # a view: a copy of the bytes of X would double its memory
    digest = hashlib.sha256(f"{host.shape} {host.dtype}".encode())
    digest.update(host.view(np.uint8).data)
    return digest.hexdigest()


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
    _last: float = field(default_factory=time.monotonic)
    _cost: float = 0.0

    def __post_init__(self) -> None:
        if self.path.suffix != ".safetensors":
            raise ValueError(f"checkpoint={str(self.path)!r} must end in .safetensors")
        if not self.path.absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of checkpoint={str(self.path)!r} does not exist")

    def load(self) -> State | None:
        """The state in the file, or None if there is no file.

        Raises
        ------
        ValueError
            If the file is damaged, or belongs to other data, kernel, precision, method or version.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="numpy") as stored:
                about = stored.metadata() or {}
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            theirs, passes = json.loads(about["owner"]), int(about["passes"])
            state = State(arrays["Q"], arrays["R"], arrays["T"], passes)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({error}): remove it to start again"
            ) from error
        other = [name for name in self.owner if theirs.get(name) != self.owner[name]]
        if other:
            raise ValueError(
                f"checkpoint {self.path} belongs to a fit with other {', '.join(other)}: name another "
                "file, or remove it to start again"
            )
        return state

    def offer(self, state: State) -> None:
        """Save if it is time: every 30 s, or less often where saving takes long."""
        if time.monotonic() - self._last >= max(INTERVAL, self._cost / SHARE):
            self.save(state)

    def save(self, state: State) -> None:
        """Write the state under a temporary name and rename it.

        Raises
        ------
        OSError
            If the disk is full, say; the previous file is untouched.
        """
        start = time.monotonic()
        about = {"owner": json.dumps(self.owner), "passes": str(state.passes)}
        arrays = {name: np.ascontiguousarray(getattr(state, name)) for name in ("Q", "R", "T")}
        folder = self.path.absolute().parent
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}-")
        os.close(handle)
        try:
            save_file(arrays, temporary, metadata=about)
            os.replace(temporary, self.path)
        except SafetensorError as error:
            raise OSError(f"checkpoint {self.path} cannot be written: {error}") from error
        finally:
            Path(temporary).unlink(missing_ok=True)
        self._last = time.monotonic()
        self._cost = self._last - start
