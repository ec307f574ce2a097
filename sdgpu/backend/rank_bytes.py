"""What ranks send as bytes: tensors of any dtype, and small values with their lengths."""

from __future__ import annotations

import torch

__all__ = ["as_bytes", "bytes_tensor", "note_of", "noted"]

NOTE = 512  # bytes of a small value that all ranks tell in one step


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as bytes: every dtype travels, and nothing is computed on the way."""
    if not tensor.numel():
        return tensor.new_empty(0, dtype=torch.uint8)  # which may have a stride of 0
    return tensor.reshape(-1).view(torch.uint8)


def note_of(content: bytes) -> torch.Tensor:
    """What one step tells of bytes: their number, and themselves where they fit."""
    fitting = content if len(content) <= NOTE - 8 else b""
    note = torch.zeros(NOTE, dtype=torch.uint8)
    told = len(content).to_bytes(8, "little") + fitting
    note[: len(told)] = bytes_tensor(told)
    return note


def noted(note: torch.Tensor) -> tuple[int, bytes]:
    """The number of bytes, and the bytes if they are in the note, else none."""
    told = note.numpy().tobytes()
    length = int.from_bytes(told[:8], "little")
    return length, told[8 : 8 + length] if length <= NOTE - 8 else b""


def bytes_tensor(content: bytes) -> torch.Tensor:
    """Bytes as a tensor."""
    if not content:
        return torch.empty(0, dtype=torch.uint8)  # torch refuses a buffer of nothing
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
