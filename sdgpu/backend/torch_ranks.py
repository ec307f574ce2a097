"""Ranks that are processes, on one host or many: torch.distributed, gloo on CPUs and NCCL on CUDA.

Arrays travel as bytes and are added here, in the order of the ranks: so the bits of a sum depend neither
on the library nor on the algorithm that it takes. Every operation is started without waiting and then
looked at until it is done, so that no wait is longer than the time-out.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import array_api_compat as compat
import numpy as np
import torch
from torch import distributed

from sdgpu.backend.arrays import Array
from sdgpu.backend.host_packets import HostPackets, shared_packets
from sdgpu.backend.pending_work import (
    Nothing,
    Pending,
    PendingCollective,
    PendingOnDevice,
    PendingPieces,
)
from sdgpu.backend.rank_bytes import as_bytes, bytes_tensor, note_of, noted
from sdgpu.backend.rank_watch import RankWatch
from sdgpu.backend.ranks import (
    OneRank,
    RankFailure,
    Ranks,
    check_agreement,
    once_round,
    passed_on,
    rank_timeout,
)
from sdgpu.backend.rendezvous import JOIN, check_versions, own_versions, ranks, start_group
from sdgpu.backend.small_values import from_bytes, to_bytes

__all__ = ["TorchRanks", "join_ranks"]

PACKET = 4096  # bytes that all ranks tell before a sum, and with which a small one is done;
FEW = 8  # of fewer ranks than these each tells more, as what they receive counts
SMALL = 65536  # bytes up to which all ranks add everything: one step instead of two
REST = 0.02  # seconds of a wait between two looks for failed ranks


class TorchRanks:
    """One process among those that ``torchrun`` started.

    Parameters
    ----------
    device : str or torch.device, default "cpu"
        Where arrays travel from: "cpu" (gloo) or a CUDA device (NCCL). Arrays that live elsewhere are
        copied there and back.
    timeout : float, optional
        Seconds that ranks wait for each other; :func:`~sdgpu.backend.ranks.rank_timeout`.

    Raises
    ------
    RankFailure
        If the others cannot be reached.
    ValueError
        If the environment says something else than numbers.
    """

    def __init__(self, device: str | torch.device = "cpu", *, timeout: float | None = None) -> None:
        self._device = torch.device(device)
        self._timeout = rank_timeout(timeout)
        start_group(self._device, self._timeout)
        self._rank, self._size = distributed.get_rank(), distributed.get_world_size()
        self._group = distributed.group.WORLD
        # small values and barriers travel between hosts, whatever arrays do
        self._hosts = distributed.new_group(
            backend="gloo", timeout=timedelta(seconds=self._timeout)
        )
        self._arrays = self._hosts if self._device.type == "cpu" else None  # None: the group itself
        self._watch: RankWatch | None = None
        self._under_way = False  # an operation, which an exception may leave so
        self._packets: HostPackets | None = None
        check_versions(
            self.gather(own_versions(distributed.get_backend()))
        )  # if others made the group
        self._watch = RankWatch(
            self._rank, self._size, self.first, seconds=min(self._timeout, JOIN)
        )
        self._packets = shared_packets(self._rank, self._size, self.gather)
        atexit.register(self._at_exit)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_of_this_group(self) -> bool:
        """Whether it belongs to the group of now, and has not left it."""
        return self._watch is not None and self._group is distributed.group.WORLD

    def __repr__(self) -> str:
        return f"TorchRanks(rank={self.rank}, size={self.size}, device={str(self._device)!r})"

    def sum(self, array: Array) -> Array:
        return self._reduced(array, torch.add, "sum")

    def max(self, array: Array) -> Array:
        return self._reduced(array, torch.maximum, "max")

    def first(self, value: Any) -> Any:
        if self._packets is not None:  # all tell, and what rank 0 has told counts
            content = to_bytes(value) if self.rank == 0 else b""
            return from_bytes(self._gathered(content, "first")[0])
        note = note_of(to_bytes(value) if self.rank == 0 else b"")
        self._wait(lambda: self._broadcast(note), "first")
        length, body = noted(note)
        if length > len(body):
            whole = torch.empty(length, dtype=torch.uint8)
            if self.rank == 0:
                whole = bytes_tensor(to_bytes(value))
            self._wait(lambda: self._broadcast(whole), "first")
            body = whole.numpy().tobytes()
        return from_bytes(body)

    def gather(self, value: Any) -> list[Any]:
        return [from_bytes(content) for content in self._gathered(to_bytes(value), "gather")]

    def gather_rows(self, array: Array) -> Array:
        here = self._travelling(array)
        shapes = self._shapes(here, "gather_rows")
        if self._packets is not None and self._arrays is self._hosts:
            return _returned(self._rows_on_host(self._packets, here, shapes), array)
        row_bytes = here.element_size() * int(np.prod(shapes[0][1:], dtype=np.int64))
        longest = max(shape[0] for shape in shapes) * row_bytes
        sent = here.new_zeros(longest, dtype=torch.uint8)
        own = as_bytes(here)
        sent[: own.numel()] = own
        received = sent.new_empty((self.size, longest))
        self._wait(lambda: self._all_gather(received, sent, self._arrays), "gather_rows")
        parts = [received[rank, : shape[0] * row_bytes] for rank, shape in enumerate(shapes)]
        joined = torch.cat(parts).view(here.dtype)
        rows = sum(shape[0] for shape in shapes)
        return _returned(joined.reshape(rows, *shapes[0][1:]), array)

    def ring(
        self, array: Array, routes: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Array]]:
        here = self._travelling(array)
        shapes = self._shapes(here, "ring")
        routes = once_round(self.size) if routes is None else routes
        owners, piece = list(range(self.size)), here
        for step in range(len(routes) + 1):
            owner, ahead = owners[self.rank], piece
            under_way: Pending = Nothing()
            if step < len(routes):
                owners = passed_on(owners, routes[step])
                if routes[step][self.rank] != self.rank:
                    ahead = here.new_empty(tuple(shapes[owners[self.rank]]))
                    self.check()
                    under_way = self._pass_on(piece, ahead, routes[step])
            try:
                yield owner, array if owner == self.rank else _returned(piece, array)
            finally:
                # a send that nobody waits for breaks the peer
                self._wait(lambda pending=under_way: pending, "ring")  # type: ignore[misc]
            piece = ahead

    def agree(self, name: str, value: Any) -> None:
        check_agreement(name, self._gathered(to_bytes(value, name), f"agree on {name}"))

    def barrier(self, name: str) -> None:
        assert self._watch is not None
        self._watch.barrier(name, self._timeout)

    def check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def fail(self, error: BaseException) -> None:
        if self._watch is not None:
            self._watch.fail(f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Leave the others: they are told that this rank's work is done."""
        if self._watch is not None:
            atexit.unregister(self._at_exit)
            watch, self._watch = self._watch, None
            watch.close()
            if self._under_way:
                self._break_off()

    def _at_exit(self) -> None:
        # an error that nobody caught ends the interpreter: the others hear of it
        error = getattr(sys, "last_value", None)
        if error is not None and not isinstance(error, RankFailure):
            self.fail(error)
        self.close()

    def _pass_on(self, piece: torch.Tensor, ahead: torch.Tensor, route: Sequence[int]) -> Pending:
        """Send to one rank and receive from another; who sends to a later rank sends first.

        In every circle of a route one sends to an earlier rank: it receives first, and the chain of waits
        ends there, so that libraries which work in order are never stuck.
        """
        to, source = route[self.rank], list(route).index(self.rank)

        def send() -> Any:
            return distributed.isend(as_bytes(piece), to, group=self._arrays)

        def receive() -> Any:
            return distributed.irecv(as_bytes(ahead), source, group=self._arrays)

        steps = [(send, piece), (receive, ahead)]
        if to < self.rank:
            steps.reverse()
        works = [start() for start, tensor in steps if tensor.numel()]
        if not works:
            return Nothing()
        return PendingOnDevice(works) if self._arrays is None else PendingPieces(works)

    def _reduced(
        self, array: Array, combine: Callable[[Any, Any], torch.Tensor], place: str
    ) -> Array:
        here = self._travelling(array)
        at_once = self._told_alike(here, place)
        here = here.reshape(-1)
        if at_once is not None:
            total = _in_order(at_once, combine)
        elif here.numel() * here.element_size() <= SMALL or self.size == 2:  # no more traffic
            parts = here.new_empty((self.size, here.numel()))
            self._wait(
                lambda: self._all_gather(as_bytes(parts), as_bytes(here), self._arrays), place
            )
            total = _in_order(parts, combine)
        else:
            total = self._reduced_in_shares(here, combine, place)
        return _returned(total.reshape(tuple(array.shape)), array)

    def _reduced_in_shares(
        self, here: torch.Tensor, combine: Callable[[Any, Any], torch.Tensor], place: str
    ) -> torch.Tensor:
        """Every rank reduces a share of the entries and gives it to all."""
        each = -(-here.numel() // self.size)  # the last share is filled up
        padded = here.new_zeros((self.size, each))
        padded.view(-1)[: here.numel()] = here
        parts = torch.empty_like(padded)
        self._wait(
            lambda: self._pending(
                distributed.all_to_all_single(
                    as_bytes(parts), as_bytes(padded), group=self._arrays, async_op=True
                ),
                self._arrays,
            ),
            place,
        )
        share = _in_order(parts, combine)
        self._wait(lambda: self._all_gather(as_bytes(padded), as_bytes(share), self._arrays), place)
        return padded.view(-1)[: here.numel()]

    def _told_alike(self, here: torch.Tensor, place: str) -> torch.Tensor | None:
        """The arrays of all ranks (size, entries) if they are small; others are only compared.

        Arrays of other shapes, or of another place, would add up to garbage, or hang: a packet of one size
        from every rank says in eight bytes what it has, and holds it where it fits on the host.

        Raises
        ------
        ValueError
            On all ranks, with the shapes of each.
        """
        said = to_bytes([place, str(here.dtype), list(here.shape)])
        count = here.numel() * here.element_size()
        length = PACKET * max(1, FEW // self.size)
        packet = torch.zeros(length, dtype=torch.uint8)
        packet[:8] = bytes_tensor(hashlib.blake2b(said, digest_size=8).digest())
        fits = self._arrays is not None and count <= length - 8
        if fits:
            packet[8 : 8 + count] = as_bytes(here)
        packets = torch.empty((self.size, length), dtype=torch.uint8)
        self._wait(lambda: self._all_gather(packets, packet, self._hosts), place)
        if not bool((packets[:, :8] == packet[:8]).all()):
            check_agreement(f"arrays in {place}", self._gathered(said, place))
        if not fits:
            return None
        return packets[:, 8 : 8 + count].contiguous().view(here.dtype)

    def _shapes(self, here: torch.Tensor, place: str) -> list[list[int]]:
        """Shapes of the rows of all ranks, which must be alike but in their number."""
        said = [str(here.dtype), list(here.shape)]
        found = [from_bytes(content) for content in self._gathered(to_bytes(said), place)]
        kinds = [[dtype, *shape[1:]] for dtype, shape in found]
        check_agreement(f"rows in {place}", [to_bytes(kind) for kind in kinds])
        return [shape for _, shape in found]

    def _rows_on_host(
        self, packets: HostPackets, here: torch.Tensor, shapes: list[list[int]]
    ) -> torch.Tensor:
        """The rows of all ranks, each put in its place as it comes: a third of the time of a message."""
        joined = here.new_empty((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        if not joined.numel():
            return joined
        row_bytes = as_bytes(joined).numel() // len(joined)
        ends = row_bytes * np.cumsum([shape[0] for shape in shapes])
        places = np.split(as_bytes(joined).numpy(), ends[:-1])

        def take(part: slice, everyone: np.ndarray) -> None:
            for place, packet in zip(places, everyone, strict=True):
                its = place[part]
                its[:] = packet[: len(its)]

        longest, own = max(map(len, places)), as_bytes(here.contiguous()).numpy()
        self._wait(lambda: packets.share(take, own, longest), "gather_rows")
        return joined

    def _gathered(self, content: bytes, place: str) -> list[bytes]:
        note = note_of(content)
        notes = torch.empty((self.size, len(note)), dtype=torch.uint8)
        self._wait(lambda: self._all_gather(notes, note, self._hosts), place)
        told = [noted(each) for each in notes]
        longest = max(length for length, _ in told)
        if all(length == len(body) for length, body in told):
            return [body for _, body in told]
        sent = torch.zeros(longest, dtype=torch.uint8)
        sent[: len(content)] = bytes_tensor(content)
        bodies = torch.empty((self.size, longest), dtype=torch.uint8)
        self._wait(lambda: self._all_gather(bodies, sent, self._hosts), place)
        return [
            body[:length].numpy().tobytes() for body, (length, _) in zip(bodies, told, strict=True)
        ]

    def _all_gather(self, received: torch.Tensor, sent: torch.Tensor, group: Any) -> Pending:
        if not received.numel():
            return Nothing()
        if self._packets is not None and group is self._hosts:
            return self._packets.gather(received.view(self.size, -1).numpy(), sent.view(-1).numpy())
        parts = list(received.view(self.size, -1).unbind())
        work = distributed.all_gather(parts, sent.view(-1), group=group, async_op=True)
        return self._pending(work, group)

    @staticmethod
    def _pending(work: Any, group: Any) -> Pending:
        return PendingOnDevice([work]) if group is None else PendingCollective(work)

    def _broadcast(self, tensor: torch.Tensor) -> Pending:
        work = distributed.broadcast(tensor, src=0, group=self._hosts, async_op=True)
        return self._pending(work, self._hosts)

    def _travelling(self, array: Array) -> torch.Tensor:
        if compat.is_torch_array(array):
            return array.detach().to(self._device).contiguous()
        host = np.ascontiguousarray(array)
        if not host.flags.writeable:
            host = host.copy()  # torch warns of memory that it may not write to
        return torch.from_numpy(host).reshape(np.shape(array)).to(self._device)

    def _wait(self, start: Callable[[], Pending], place: str) -> None:
        """Start an operation, unless a rank has failed, and look at it until it is done, or time is up."""
        self._under_way = True
        try:
            if self._watch is not None:
                self._watch.enter(place)
            work = start()
            deadline = time.monotonic() + self._timeout
            while not work.is_completed():
                self.check()
                if time.monotonic() > deadline:
                    raise self._late(place)
                work.rest(REST)
            try:
                work.wait()
            except RuntimeError as error:
                raise self._lost(place, error) from error
        except RankFailure:
            self._break_off()
            raise
        self._under_way = False

    def _break_off(self) -> None:
        """End what is under way: the interpreter cannot end while it waits for a peer that does not come.

        A receive of gloo whose time is up closes all connections of its group.
        """
        self._under_way = False
        with contextlib.suppress(RuntimeError, ValueError):
            nothing = torch.empty(1, dtype=torch.uint8)
            peer = (self.rank + 1) % self.size
            work: Any = distributed.irecv(nothing, peer, group=self._hosts, tag=1)
            work.wait(timedelta(milliseconds=1))
        if self._arrays is None and distributed.group.WORLD is not None:
            with contextlib.suppress(RuntimeError):
                distributed.group.WORLD.abort()

    def _late(self, place: str) -> RankFailure:
        if self._watch is not None:
            return self._watch.late(self._timeout)
        return RankFailure(f"rank {self.rank} waited {self._timeout:g} s in {place} for the others")

    def _lost(self, place: str, error: RuntimeError) -> RankFailure:
        message = f"lost its connection to another rank in {place} ({str(error).splitlines()[0]})"
        if self._watch is not None:
            return self._watch.explain(message)
        return RankFailure(f"rank {self.rank} {message}")


def join_ranks(device: str | torch.device = "cpu", *, timeout: float | None = None) -> Ranks:
    """The ranks that ``torchrun`` started, or whose group the caller has initialised; alone: one.

    Asked again they are the same, with the time-out of the first time.

    Parameters, errors
        As :class:`TorchRanks`.
    """
    if not distributed.is_available():
        return OneRank()
    if not distributed.is_initialized() and ranks()["WORLD_SIZE"] == 1:
        return OneRank()
    known = _JOINED.get(str(device))
    if known is None or not known.is_of_this_group:
        known = _JOINED[str(device)] = TorchRanks(device, timeout=timeout)
    return known


#: A process is one rank, of one group, for as long as it lives.
_JOINED: dict[str, TorchRanks] = {}


def _in_order(parts: torch.Tensor, combine: Callable[[Any, Any], torch.Tensor]) -> torch.Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total = combine(total, part)
    return total


def _returned(tensor: torch.Tensor, sample: Array) -> Array:
    """In the library and on the device of `sample`."""
    if compat.is_torch_array(sample):
        return tensor.to(sample.device)
    return tensor.cpu().numpy()
