"""The processes of one training: rank, size and the few sums that cross them.

Started by ``torchrun``, which sets the environment; alone, every function here does nothing.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed

from sdgpu.backend.host_packets import HostPackets, shared_packets
from sdgpu.backend.rank_bytes import as_bytes, note_of, noted
from sdgpu.backend.rendezvous import ranks, start_group
from sdgpu.backend.shared_end import arrive, ending_together, finish, wait_at_most
from sdgpu.backend.small_values import from_bytes, to_bytes

__all__ = ["World", "gathered", "gathered_on_host", "join", "ranks"]

_SLOT = 2**18  # bytes of a packet


@dataclass(frozen=True)
class World:
    """Which process this is, and of how many."""

    rank: int = 0
    size: int = 1

    def shard(self, rows: int) -> slice:
        """Rows of a batch (or of an evaluation) that belong to this rank, in order."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    @contextmanager
    def ending_together(self, device: torch.device) -> Iterator[None]:
        """Lines that all ranks run: what ends one ends all of them, see :mod:`sdgpu.backend.shared_end`.

        Raises
        ------
        RankFailure
            If another rank failed, died or did not come within the time-out; names it.
        """

        def first(value: Any) -> Any:
            return from_bytes(self.first(lambda: to_bytes(value), device) or b"")

        with ending_together(self.rank, self.size, first):
            yield

    def row_shares(self, rows: int, batch: int) -> list[range]:
        """Rows of an evaluation for each rank: whole batches, those of one process.

        So what is computed of each batch has the bits of one process. With fewer batches than ranks some
        ranks have none.
        """
        starts = range(0, rows, batch)
        cuts = [World(rank, self.size).shard(len(starts)) for rank in range(self.size)]
        return [range(cut.start * batch, min(cut.stop * batch, rows)) for cut in cuts]

    def gather_rows(self, block: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Blocks (.., m, c) of all ranks below each other, in the order of the ranks.

        Parameters
        ----------
        block : tensor (.., m, c)
            Of one dtype and shape but for m, which may be 0.
        counts : sequence of int
            m of every rank, which all know.

        Returns
        -------
        tensor (.., n, c)
            The same bits on all ranks. Traffic: what the others have, padded to the largest block.
        """
        if self.size == 1:
            return block
        arrive("rows of all")
        sent = block.new_zeros((*block.shape[:-2], max(counts), block.shape[-1]))
        sent[..., : block.shape[-2], :] = block
        parts = [torch.empty_like(sent) for _ in range(self.size)]
        distributed.all_gather(parts, sent)
        rows = [part[..., :count, :] for part, count in zip(parts, counts, strict=True)]
        return torch.cat(rows, dim=-2)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place; every rank gets it."""
        if self.size > 1:
            arrive("a sum")
            _add_up(tensor)
        return tensor

    def any(self, *flags: bool, device: torch.device) -> tuple[bool, ...]:
        """Whether each is true on some rank."""
        if self.size == 1:
            return flags
        return tuple(
            self.sum(torch.tensor(flags, dtype=torch.int32, device=device)).bool().tolist()
        )

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every rank the tensors (buffers, parameters) of rank 0, in place."""
        if self.size > 1:
            arrive("tensors of rank 0")
            for tensor in tensors:
                own = tensor.detach()
                if own.device.type == "cpu" and own.nbytes <= _SLOT:  # a buffer, in every batch
                    own.copy_(gathered(own)[0])
                else:
                    distributed.broadcast(own, src=0)

    @property
    def on_one_host(self) -> bool:
        """Whether the ranks share memory of a host, through which messages of CPUs go; all ranks ask."""
        return self.size > 1 and _shared_packets() is not None

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            distributed.barrier()

    def first(self, action: Callable[[], bytes | None], device: torch.device) -> bytes | None:
        """Let rank 0 do something with files; all wait for it, get what it returns, or stop with it.

        Raises
        ------
        OSError, ValueError
            Whatever rank 0 raises; on the others its text, as an OSError if it was one.
        """
        if self.size == 1:
            return action()
        arrive("what rank 0 does")
        payload, failure = None, None
        if self.rank == 0:
            try:
                payload = action()
            except Exception as error:
                failure = error
                payload = str(error).encode()
        kind = 2 + isinstance(failure, OSError) if failure else int(payload is not None)
        head = torch.tensor([kind, len(payload or b"")], device=device)
        distributed.broadcast(head, src=0)
        kind, length = (int(number) for number in head.cpu())
        body = torch.empty(length, dtype=torch.uint8, device=device)
        if payload:
            body.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        if length:
            distributed.broadcast(body, src=0)
        if failure is not None:
            raise failure
        if self.rank > 0:
            payload = body.cpu().numpy().tobytes() if kind else None
        if kind < 2:
            return payload
        text = f"rank 0: {(payload or b'').decode()}"
        raise OSError(errno.EIO, text) if kind == 3 else ValueError(text)

    def agree(self, parts: Mapping[str, str], device: torch.device) -> None:
        """Refuse processes that were given different things.

        Parameters
        ----------
        parts : mapping of name to text
            What must be the same text everywhere.
        device : torch.device

        Raises
        ------
        ValueError
            On all ranks; names the first part that differs.
        """
        if self.size == 1:
            return
        checksums = [zlib.crc32(text.encode()) for text in parts.values()]
        local = torch.tensor(checksums, dtype=torch.int64, device=device)
        reference = local.clone()
        distributed.broadcast(reference, src=0)
        counts = self.sum((local != reference).to(torch.int64)).tolist()
        for name, count in zip(parts, counts, strict=True):
            if count:
                raise ValueError(
                    f"{count} of {self.size} processes were given another {name} than the first: they must "
                    "be started with the same arguments on the same data"
                )

    def check(self, batch: int, accumulate: int, n: int) -> None:
        """Refuse a size of the world that does not divide the work.

        Raises
        ------
        ValueError
            If a part of a batch, or the last part of an epoch, has not the rows to share out.
        """
        part = batch // accumulate
        remainder = n % batch % part
        if part % self.size:
            raise ValueError(
                f"{self.size} processes do not divide the {part} rows of batch={batch} / "
                f"accumulate={accumulate}: choose a multiple of {self.size}"
            )
        if 0 < remainder < self.size:
            raise ValueError(
                f"the last part of an epoch has {remainder} rows (n={n}, batch={batch}, accumulate="
                f"{accumulate}), too few for {self.size} processes: choose another batch"
            )


def gathered(own: torch.Tensor) -> torch.Tensor:
    """A small tensor of every rank, (p, ..), the same bits on all: for what comes many times in a step.

    Between processes of one host it goes through memory that they share: who waits for a message of gloo
    is put to sleep, and comes a millisecond late where the work between two messages takes one.
    """
    packets = _shared_packets() if own.device.type == "cpu" else None
    if packets is None:
        everyone = own.new_empty((distributed.get_world_size(), *own.shape))
        distributed.all_gather([*everyone], own)
        return everyone
    everyone = own.new_empty((packets.size, *own.shape))
    received = as_bytes(everyone).view(packets.size, -1).numpy()
    finish(packets.gather(received, as_bytes(own).numpy()))
    return everyone


def gathered_on_host(own: np.ndarray) -> np.ndarray:
    """As `gathered`, of an array; for a vector of a few hundred numbers half the price of a tensor."""
    packets = _shared_packets()
    if packets is None:
        return gathered(torch.from_numpy(own)).numpy()
    everyone = np.empty((packets.size, *own.shape), own.dtype)
    received = everyone.reshape(packets.size, -1).view(np.uint8)
    finish(packets.gather(received, own.reshape(-1).view(np.uint8)))
    return everyone


def _add_up(values: torch.Tensor) -> None:
    """Sum over the ranks, in place and with the same bits on all; by memory of one host as `gathered`."""
    packets = _shared_packets() if values.device.type == "cpu" else None
    if packets is None:
        distributed.all_reduce(values)
        return
    flat = values.reshape(-1)  # the same memory, where it lies in one piece

    def take(part: slice, everyone: np.ndarray) -> None:
        of_ranks = torch.from_numpy(everyone).view(values.dtype)
        start, stop = part.start // values.itemsize, part.stop // values.itemsize
        torch.sum(of_ranks, dim=0, dtype=values.dtype, out=flat[start:stop])

    finish(packets.share(take, as_bytes(flat).numpy()))
    if not values.is_contiguous():
        values.copy_(flat.view_as(values))


class _HostMemory:
    """That of this group's ranks, made when it is first wanted: by all at once."""

    def __init__(self) -> None:
        self.group: Any = None
        self.packets: HostPackets | None = None


_MEMORY = _HostMemory()  # a process is one rank, for as long as it lives


def _shared_packets() -> HostPackets | None:
    if _MEMORY.group is not distributed.group.WORLD:
        rank, size = distributed.get_rank(), distributed.get_world_size()
        _MEMORY.packets = shared_packets(rank, size, _gathered_values, slot=_SLOT)
        _MEMORY.group = distributed.group.WORLD
    return _MEMORY.packets


def _gathered_values(value: Any) -> list[Any]:
    """Small values of all ranks: each fits a note."""
    note = note_of(to_bytes(value))
    notes = [torch.empty_like(note) for _ in range(distributed.get_world_size())]
    distributed.all_gather(notes, note)
    return [from_bytes(noted(one)[1]) for one in notes]


def join(device: torch.device, timeout: float | None = None) -> World:
    """Join the group that ``torchrun`` started (gloo on CPUs, NCCL on CUDA); alone: size 1.

    A group that the caller has initialised is used as it is.

    Parameters
    ----------
    device : torch.device
        Of this process.
    timeout : float, optional
        Seconds that ranks wait for each other, SDGPU_RANK_TIMEOUT by default, else 1800; to come at all
        300 at most. Of the first call: the group keeps it.

    Raises
    ------
    RankFailure
        If the other processes cannot be reached; names those that did not come.
    ValueError
        If the environment says something else than numbers.
    """
    if not distributed.is_available():
        return World()
    if not distributed.is_initialized():
        if ranks()["WORLD_SIZE"] == 1:
            return World()
        start_group(device, timeout)
        wait_at_most(timeout)
    return World(distributed.get_rank(), distributed.get_world_size())
