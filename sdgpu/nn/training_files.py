"""Files of a training: a checkpoint that is complete or not there at all, logs, configuration.

Everything is written by :func:`~sdgpu.backend.storage.write_file`, so a process killed at any moment leaves
the last complete file. A checkpoint is a file of ``torch.save`` with a checksum of all of it in the comment
of its archive, which other readers skip; JSON files carry theirs as a field. Both are checked before
anything in them is used, and checkpoints are read with ``weights_only=True``: nothing in them is executed.
A checkpoint that belongs to another model, configuration or data is refused with the reason.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdgpu.backend import checksums
from sdgpu.backend.distributed import World
from sdgpu.backend.storage import clean_folder, folder_lock, write_file

__all__ = [
    "CHECKPOINT",
    "Store",
    "check_replaceable",
    "check_seal",
    "difference",
    "digest",
    "seal",
    "shapes",
]

FORMAT = 2
CHECKPOINT = "checkpoint.pt"
_END = b"PK\5\6"  # of a zip archive, 22 bytes before its comment
_COMMENT = 6 + 5 + 32  # bytes of "sdgpu ", "xxh3:" and the digits


def digest(*tensors: torch.Tensor) -> str:
    """Checksum of the shapes, types and bytes of tensors."""
    parts: list[Any] = []
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        parts += [f"{tuple(tensor.shape)} {tensor.dtype}", raw]
    return checksums.digest(*parts)


def shapes(model: nn.Module) -> dict[str, str]:
    """Shape and type of every parameter and buffer by name: what makes two models the same kind."""
    return {
        name: f"{tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, torch.Tensor)  # and no extra state
    }


def seal(archive: memoryview) -> tuple[memoryview, bytes]:
    """The parts of a zip archive with its checksum as the comment."""
    assert bytes(archive[-22:-18]) == _END, "not the end of an archive without a comment"
    body = archive[:-2]  # without the length of the comment
    return body, _COMMENT.to_bytes(2, "little") + f"sdgpu {checksums.digest(body)}".encode()


def check_seal(content: bytes) -> None:
    """Refuse an archive whose checksum is missing or another.

    Raises
    ------
    ValueError
    """
    body, comment = memoryview(content)[: -_COMMENT - 2], content[-_COMMENT:]
    if not comment.startswith(b"sdgpu xxh3:"):
        raise ValueError("it does not end with its checksum")
    if comment != f"sdgpu {checksums.digest(body)}".encode():
        raise ValueError("its checksum is another")


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
        return self.folder / CHECKPOINT

    @contextmanager
    def lock(self, config: str, *, resume: bool) -> Iterator[None]:
        """Make the folder, hold it against other trainings, and write ``config.json``.

        Parameters
        ----------
        config : str
            The configuration as JSON.
        resume : bool
            False removes the checkpoint that is there.

        Raises
        ------
        BlockingIOError
            If another training holds the folder.
        OSError
            If it cannot be written.
        ValueError
            If it holds a ``config.json`` or ``log.csv`` of something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.folder, "training"):
            # words of every version, damaged files included
            check_replaceable(self.folder / "config.json", '"save_seconds"', '"order_seed"')
            check_replaceable(self.folder / "log.csv", "epoch,rate,")
            if not resume:
                self.checkpoint.unlink(missing_ok=True)
            write_file(self.folder / "config.json", config.encode())
            yield

    def load(self, world: World, device: torch.device) -> dict[str, Any] | None:
        """The saved state on `device`, or None if there is none.

        The first process reads, and the others get what it read: they need not see the folder.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If the file is damaged or belongs to another model, configuration, data or targets.
        """
        states: list[dict[str, Any]] = []

        def read() -> bytes | None:
            clean_folder(
                self.folder
            )  # a finished training is read alone, and nobody writes there any more
            if not self.checkpoint.exists():
                return None
            content = self.checkpoint.read_bytes()
            states.append(self._parse(content, device))
            return content

        content = world.first(read, device)
        if content is None:
            return None
        return states[0] if states else _unpack(content, device)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state.

        Raises
        ------
        OSError
            See :func:`~sdgpu.backend.storage.write_file`: the checkpoint before is intact.
        """
        buffer = io.BytesIO()  # torch would report a full disk by other errors
        torch.save({"format": FORMAT, "owner": dict(self.owner), **state}, buffer)
        write_file(self.checkpoint, *seal(buffer.getbuffer()))

    def where(self, epoch: int, batch: int) -> str:
        """Say what has been saved at a position."""
        position = f"batch {batch} of epoch {epoch + 1}" if batch else f"epoch {epoch}"
        return f"the last good checkpoint is {self.checkpoint}, after {position}"

    def log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the log anew: it has few rows, and a killed run cannot leave one twice."""
        rows = list(rows)
        if rows:
            text = io.StringIO()
            table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            write_file(self.folder / "log.csv", text.getvalue().encode())

    def _parse(self, content: bytes, device: torch.device) -> dict[str, Any]:
        try:
            check_seal(content)
            state = _unpack(content, device)
            owner, file_format = state["owner"], state["format"]
        except Exception as error:  # torch reports damage by half a dozen exceptions
            raise ValueError(
                f"checkpoint {self.checkpoint} is damaged, or was not written by this version ({error}): "
                "remove it to start again"
            ) from error
        if file_format != FORMAT:
            raise ValueError(
                f"checkpoint {self.checkpoint} has format {file_format}, this version reads {FORMAT}: name "
                "another folder, or remove the file to start again"
            )
        for part, expected in self.owner.items():
            theirs = owner.get(part)
            if part == "config" and "epochs" not in expected:  # may be raised
                theirs = {name: value for name, value in theirs.items() if name != "epochs"}
            if theirs != expected:
                raise ValueError(
                    f"checkpoint {self.checkpoint} belongs to another {part}"
                    f"{difference(theirs, expected)}: name another folder, or remove the file "
                    "to start again"
                )
        return state


def _unpack(content: bytes, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


def check_replaceable(path: Path, *words: str) -> None:
    """Refuse to write over a file that has none of these words, as those of ours have.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        Names the file.
    """
    if path.exists():
        content = path.read_bytes()
        if not any(word.encode() in content for word in words):
            raise ValueError(
                f"{path} is not of a training, and stays: name another folder, or remove the file"
            )


def difference(file_fields: Any, run_fields: Any) -> str:
    """The first field that differs, in brackets."""
    if isinstance(file_fields, dict) and isinstance(run_fields, dict):
        for name in sorted({*file_fields, *run_fields}):
            if file_fields.get(name) != run_fields.get(name):
                file_text, run_text = (
                    repr(side.get(name))[:60] for side in (file_fields, run_fields)
                )
                return f" ({name}: {file_text} there, {run_text} here)"
    return ""
