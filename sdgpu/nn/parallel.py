"""The processes of one training: rank, size and the few sums that cross them.

Started by ``torchrun``, which sets the environment; alone, every function here does nothing.
"""

from __future__ import annotations

import atexit
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed, nn

__all__ = ["World", "join"]


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1

    def shard(self, rows: int) -> slice:
        """Rows of a batch (or of an evaluation) that belong to this rank, in order."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place; every rank gets it."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers (batch norm statistics) of rank 0."""
        if self.size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            distributed.barrier()

    def first(self, action: Callable[[], None], device: torch.device) -> None:
        """Let rank 0 do something with files; all wait for it, and all stop if it cannot.

        Raises
        ------
        OSError
            That of rank 0; on the others, that there was one.
        """
        failure: OSError | None = None
        if self.rank == 0:
            try:
                action()
            except OSError as error:
                failure = error
        failed = self.sum(torch.tensor(float(failure is not None), device=device))
        if failure is not None:
            raise failure
        if failed > 0:
            raise OSError(errno.EIO, "rank 0 could not write")

    def check(self, batch: int, accumulate: int, n: int) -> None:
        """Refuse a size of the world that does not divide the work.

        Raises
        ------
        ValueError
            If a part of a batch, or the last part of an epoch, has not the rows to share out.
        """
        part = batch // accumulate
        left = n % batch % part
        if part % self.size:
            raise ValueError(
                f"{self.size} processes do not divide the {part} rows of batch={batch} / "
                f"accumulate={accumulate}: choose a multiple of {self.size}"
            )
        if 0 < left < self.size:
            raise ValueError(
                f"the last part of an epoch has {left} rows (n={n}, batch={batch}, accumulate="
                f"{accumulate}), too few for {self.size} processes: choose another batch"
            )


def join(device: torch.device) -> World:
    """Join the group that ``torchrun`` started (gloo on CPUs, NCCL on CUDA); alone: size 1.

    A group that the caller has initialised is used as it is.

    Raises
    ------
    RuntimeError
        If the other processes cannot be reached.
    """
    if not distributed.is_available():
        return World()
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World()
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return World(distributed.get_rank(), distributed.get_world_size())


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
