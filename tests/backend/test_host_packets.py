"""Packets in memory that ranks share: threads with the same memory, and processes by test_rank_kinds."""

import mmap
import os
import threading

import numpy as np
import pytest

from sdgpu.backend.host_packets import HostPackets, shared_packets

SLOT = 64


def gathered(size, work, slot=SLOT):
    """work(packets, rank) of threads that have one memory."""
    memory = mmap.mmap(-1, HostPackets.bytes_of(size, slot))
    found = [None] * size

    def run(rank):
        try:
            found[rank] = work(HostPackets(memory, rank, size, slot=slot), rank)
        except RuntimeError as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    return found


def exchange(packets, sent):
    received = np.full((packets.size, len(sent)), 255, np.uint8)
    pending = packets.gather(received, sent)
    while not pending.is_completed():
        pending.rest(0.01)
    pending.wait()
    return received


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_messages_of_all_lengths(size):
    """Of none to many packets, many after another: what each told is what all have, every time."""
    lengths = [1, 8, SLOT - 1, SLOT, SLOT + 1, 3 * SLOT, 3 * SLOT + 5, 0, 7] * 8

    def told(rank, step, length):
        return np.random.default_rng([rank, step]).integers(0, 256, length).astype(np.uint8)

    def work(packets, rank):
        for step, length in enumerate(lengths):
            received = exchange(packets, told(rank, step, length))
            for other in range(size):
                np.testing.assert_array_equal(received[other], told(other, step, length))
        return True

    assert gathered(size, work) == [True] * size


@pytest.mark.parametrize("length", [0, 1, SLOT // 8, SLOT // 8 + 1, 5 * SLOT // 8])
def test_sums_replace_what_was_sent(length):
    """As the ranks add their gradients: what is taken may be written where it was sent from."""

    def work(packets, rank):
        values = np.arange(length) + 1000.0 * rank

        def take(part, everyone):
            values[part.start // 8 : part.stop // 8] = everyone.view(np.float64).sum(axis=0)

        pending = packets.share(take, values.view(np.uint8))
        while not pending.is_completed():
            pending.rest(0.01)
        pending.wait()
        return values

    for values in gathered(3, work):
        np.testing.assert_array_equal(values, 3.0 * np.arange(length) + 3000.0)


@pytest.mark.parametrize("lengths", [(0, 5, 2 * SLOT + 3), (SLOT, 0, 1), (1, 0, 0)])
def test_shorter_messages_of_some_ranks(lengths):
    """As rows are gathered of which some ranks have more: a rank without any sends empty packets."""
    told = [
        np.random.default_rng(rank).integers(0, 256, b).astype(np.uint8)
        for rank, b in enumerate(lengths)
    ]

    def work(packets, rank):
        received = [np.zeros(length, np.uint8) for length in lengths]

        def take(part, everyone):
            for mine, packet in zip(received, everyone, strict=True):
                mine[part] = packet[: len(mine[part])]

        pending = packets.share(take, told[rank], max(lengths))
        while not pending.is_completed():
            pending.rest(0.01)
        pending.wait()
        return received

    for received in gathered(3, work):
        for mine, truth in zip(received, told, strict=True):
            np.testing.assert_array_equal(mine, truth)


def test_messages_of_other_lengths_do_not_meet():
    """As gloo says of other calls, on all ranks: nothing is taken for what it is not."""
    found = gathered(3, lambda packets, rank: exchange(packets, np.zeros(8 + rank, np.uint8)))
    assert all("messages of [8, 9, 10] bytes met" in str(error) for error in found)


def test_a_rank_that_does_not_come_is_waited_for():
    packets = HostPackets(mmap.mmap(-1, HostPackets.bytes_of(2, SLOT)), 0, 2, slot=SLOT)
    pending = packets.gather(np.zeros((2, 4), np.uint8), np.ones(4, np.uint8))
    pending.rest(0.01)
    assert not pending.is_completed()


def agreed(size, told=None):
    """shared_packets of ranks that are threads of this process; `told` changes what rank 0 says."""
    meeting, brought, results = threading.Barrier(size), [None] * size, [None] * size

    def run(rank):
        def gather(value):
            brought[rank] = told(value) if told and isinstance(value, list) and value else value
            meeting.wait(20.0)
            found = list(brought)
            meeting.wait(20.0)
            return found

        results[rank] = shared_packets(rank, size, gather, slot=SLOT)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    return results


needs_memory = pytest.mark.skipif(
    not hasattr(os, "memfd_create") or os.uname().machine != "x86_64",
    reason="Linux on x86-64 has such memory",
)


@needs_memory
def test_memory_of_one_host():
    first, second = agreed(2)
    first.publish(np.arange(4, dtype=np.uint8), 4)
    second.publish(np.arange(4, 8, dtype=np.uint8), 4)
    assert first.is_published()
    np.testing.assert_array_equal(second.published(4, 4).ravel(), np.arange(8))


@needs_memory
@pytest.mark.parametrize(
    "told",
    [
        lambda value: [2**22 + 1, *value[1:]],  # no such process: another host
        lambda value: [value[0], 10**6, value[2]],  # no such file
        lambda value: [*value[:2], "00" * 16],  # another one of that number
    ],
)
def test_ranks_of_several_hosts_have_none(told):
    assert agreed(2, told) == [None, None]


def test_other_processors_have_none(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert agreed(2) == [None, None]
    assert shared_packets(0, 1, lambda value: [value]) is None
