"""Packets between ranks that are processes of one host: memory that all of them see.

A message of gloo passes four threads, a tenth of a millisecond each where cores are busy; a fit by a grown
basis sends some three hundred small ones. Here each rank has a counter and two slots. For packet k it fills
slot k mod 2, sets its counter to k, and reads the slots of the others when all counters have come to k. A
slot is filled again for packet k + 2, after all counters have come to k + 1: by then everyone has read it.

That a slot is seen whole by who sees the counter is a promise of x86-64 (stores are seen in their order);
other processors do not give it, and their ranks talk by gloo. So do those of several hosts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["HostPackets", "PendingPackets", "shared_packets"]

SLOT = 2**20  # bytes of a slot; longer messages are several packets
LINE = 128  # bytes from counter to counter: no two in one line of a cache
TOKEN = 16
ORDERED = ("x86_64", "amd64")
SPIN = 200  # looks before the first pause
PAUSE = 5e-5  # seconds

Take = Callable[[slice, np.ndarray], None]


class HostPackets:
    """The memory of all ranks.

    Parameters
    ----------
    memory : mmap.mmap
        At least :meth:`bytes_of` the ranks, of zeros at first.
    rank, size : int
    slot : int
        Bytes of a packet.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, *, slot: int = SLOT) -> None:
        self.rank, self.size, self.slot = rank, size, slot
        # a number of a line for the counter, one each for the lengths of the messages in the slots; of
        # a memoryview, which is read in a tenth of the time of an array's
        self._told = memoryview(memory)[LINE : (size + 1) * LINE].cast("q")
        self._lines = range(0, size * LINE // 8, LINE // 8)
        self._line = self._lines[rank]
        slots = np.frombuffer(memory, np.uint8, 2 * size * slot, offset=(size + 1) * LINE)
        self._slots = slots.reshape(2, size, slot)
        self._packet = 0

    @staticmethod
    def bytes_of(size: int, slot: int = SLOT) -> int:
        """Bytes of memory: a line for the token, one for each counter, two slots for each rank."""
        return (size + 1) * LINE + 2 * size * slot

    def gather(self, received: np.ndarray, sent: np.ndarray) -> PendingPackets:
        """Tell all ranks the bytes `sent` (b,), and take those of each to `received` (size, b)."""

        def take(part: slice, packets: np.ndarray) -> None:
            received[:, part] = packets

        return PendingPackets(self, take, sent)

    def share(self, take: Take, sent: np.ndarray, length: int | None = None) -> PendingPackets:
        """Tell all ranks the bytes `sent` (b,), and hand what comes of all to `take`, by and by.

        Parameters
        ----------
        take : callable
            Gets a slice of range(b) and the bytes (size, part) of all ranks there, to be read at once. Of
            `sent` it may change that slice. Slices begin at multiples of `slot`.
        sent : array (b,) of uint8
        length : int, optional
            The most bytes that a rank sends, where they differ: `take` gets any behind a shorter message.
        """
        return PendingPackets(self, take, sent, length)

    def publish(self, part: np.ndarray, length: int) -> None:
        """The next packet of this rank, of a message of so many bytes."""
        self._packet += 1
        place = self._packet % 2
        self._slots[place, self.rank, : len(part)] = part
        self._told[self._line + 1 + place] = length
        self._told[self._line] = self._packet

    def is_published(self) -> bool:
        """Whether all ranks have published the packet that this one has."""
        told, packet = self._told, self._packet
        return min([told[line] for line in self._lines]) >= packet

    def published(self, part: int, length: int) -> np.ndarray:
        """The packets (size, part) of all.

        Raises
        ------
        RuntimeError
            If they are of messages of other lengths: not all ranks have called the same.
        """
        place = self._packet % 2
        lengths = [self._told[line + 1 + place] for line in self._lines]
        if lengths != [length] * self.size:
            raise RuntimeError(f"messages of {lengths} bytes met each other")
        return self._slots[place, :, :part]


class PendingPackets:
    """A message of as many packets as it needs: :class:`~sdgpu.backend.pending_work.Pending`."""

    def __init__(
        self, packets: HostPackets, take: Take, sent: np.ndarray, length: int | None = None
    ) -> None:
        self._packets, self._take, self._sent = packets, take, sent
        self._length = len(sent) if length is None else length
        self._start = self._looks = 0
        self._error: RuntimeError | None = None
        self._publish()

    def is_completed(self) -> bool:
        packets, length = self._packets, self._length
        while self._error is None and self._start < length and packets.is_published():
            part = slice(self._start, min(self._start + packets.slot, length))
            try:
                self._take(part, packets.published(part.stop - part.start, length))
            except RuntimeError as error:  # of `wait`
                self._error = error
            self._start = part.stop
            self._publish()
        return self._error is not None or self._start >= length

    def rest(self, seconds: float) -> None:
        for _ in range(max(1, int(seconds / PAUSE))):
            if self.is_completed():
                return
            self._looks += 1
            if self._looks < SPIN:
                os.sched_yield()
            else:
                time.sleep(PAUSE)

    def wait(self) -> None:
        if self._error is not None:
            raise self._error

    def _publish(self) -> None:
        if self._error is None and self._start < self._length:
            part = self._sent[self._start : self._start + self._packets.slot]
            self._packets.publish(part, self._length)


def shared_packets(
    rank: int, size: int, gather: Callable[[Any], list[Any]], *, slot: int = SLOT
) -> HostPackets | None:
    """The memory of ranks that are all on this host, None where they are not, or cannot share any.

    Rank 0 makes memory without a name, which ends with the last process that has it; the others open it by
    the number of its process, and know it by a token. All call.

    Parameters
    ----------
    rank, size : int
    gather : callable
        Small values of all ranks.
    slot : int, optional
    """
    length = HostPackets.bytes_of(size, slot)
    told: list[Any] = []
    made = _own_memory(length) if rank == 0 and size > 1 else None
    if made is not None:
        token = secrets.token_bytes(TOKEN)
        made[1][:TOKEN] = token
        told = [os.getpid(), made[0], token.hex()]
    told = gather(told)[0]
    memory = made[1] if made is not None else _memory_of(told, length)
    everyone = gather(memory is not None)  # all have it open: its number may be given up
    if made is not None:
        os.close(made[0])
    if memory is None or not all(everyone):
        return None
    return HostPackets(memory, rank, size, slot=slot)


def _own_memory(length: int) -> tuple[int, mmap.mmap] | None:
    """A number and memory of zeros, where the system and the processor can."""
    if not hasattr(os, "memfd_create") or platform.machine().lower() not in ORDERED:
        return None
    try:
        number = os.memfd_create("sdgpu-ranks")
    except OSError:
        return None
    try:
        os.ftruncate(number, length)
        return number, mmap.mmap(number, length)
    except (OSError, ValueError):
        os.close(number)
        return None


def _memory_of(told: list[Any], length: int) -> mmap.mmap | None:
    """The memory of rank 0, if it is of this host: a token says whether."""
    if not told or platform.machine().lower() not in ORDERED:
        return None
    process, number, token = told
    with contextlib.suppress(OSError, ValueError):
        opened = os.open(f"/proc/{int(process)}/fd/{int(number)}", os.O_RDWR)
        try:
            memory = mmap.mmap(opened, length)
        finally:
            os.close(opened)
        if memory[:TOKEN] == bytes.fromhex(token):
            return memory
        memory.close()
    return None
