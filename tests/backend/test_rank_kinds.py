"""Ranks of every kind do the same: alone, threads, and real processes that talk by gloo."""

import threading
import time

import numpy as np
import pytest

from sdgpu.backend.ranks import OneRank, RankFailure, check_agreement, rank_timeout, row_shares
from sdgpu.backend.small_values import from_bytes, to_bytes
from sdgpu.backend.thread_ranks import run_threads
from tests.backend.rank_checks import CHECKS
from tests.rank_processes import run_ranks

WORKER = """
import torch
torch.set_num_threads(1)
from sdgpu.backend.torch_ranks import TorchRanks
from tests.backend.rank_checks import CHECKS

{before}
ranks = TorchRanks()
for check in CHECKS:
    check(ranks)
"""
#: As on several hosts, or other processors: nothing but gloo.
NO_PACKETS = "import sdgpu.backend.torch_ranks as t; t.shared_packets = lambda *args: None"


@pytest.mark.parametrize("check", CHECKS)
def test_alone(check):
    check(OneRank())


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("check", CHECKS)
def test_threads(check, size):
    run_threads(check, size, timeout=30.0)


@pytest.mark.parametrize(("size", "before"), [(2, ""), (3, ""), (3, NO_PACKETS)])
def test_processes(size, before):
    run_ranks(WORKER.format(before=before), size, SDGPU_RANK_TIMEOUT="30")


def test_threads_one_of_which_fails():
    def work(ranks):
        if ranks.rank == 1:
            raise MemoryError("no room for K")
        ranks.barrier("the end")

    start = time.perf_counter()
    with pytest.raises(MemoryError, match="no room for K") as caught:
        run_threads(work, 3, timeout=30.0)
    assert time.perf_counter() - start < 5.0
    assert caught.value.__notes__ == ["on rank 1"]


def test_threads_hear_which_failed():
    heard = {}

    def work(ranks):
        try:
            if ranks.rank == 1:
                raise MemoryError("no room for K")
            ranks.sum(np.ones(3))
        except RankFailure as error:
            heard[ranks.rank] = str(error), error.ranks

    with pytest.raises(MemoryError):
        run_threads(work, 3, timeout=30.0)
    assert heard == dict.fromkeys((0, 2), ("rank 1 failed: MemoryError: no room for K", (1,)))


def test_a_thread_that_does_not_come_is_named():
    released = threading.Event()

    def work(ranks):
        if ranks.rank == 2:
            released.wait(30.0)
            ranks.check()
            return
        try:
            ranks.barrier("the second pass")
        finally:
            released.set()

    with pytest.raises(RankFailure, match=r"after 0.2 s rank 2 had not come to the second pass"):
        run_threads(work, 3, timeout=0.2)


def test_a_thread_that_is_done_too_early_is_named():
    def work(ranks):
        if ranks.rank:
            ranks.barrier("the second pass")

    with pytest.raises(RankFailure, match=r"rank 0 ended while rank.* waited at the second pass"):
        run_threads(work, 3, timeout=30.0)


def test_arrays_that_are_not_alike_are_refused():
    with pytest.raises(ValueError, match=r"different arrays in sum \(rank 0: .*\[1\].*rank 1"):
        run_threads(lambda ranks: ranks.sum(np.ones(ranks.rank + 1)), 2, timeout=30.0)


@pytest.mark.parametrize(("n", "size"), [(0, 3), (1, 4), (7, 2), (1000, 7), (6, 6)])
def test_shares_cover_all_rows(n, size):
    shares = row_shares(n, size)
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_small_values_refuse_what_they_are_not():
    with pytest.raises(ValueError, match="must be at least 1"):
        run_threads(lambda ranks: None, 0)
    with pytest.raises(TypeError, match="keys must be strings"):
        to_bytes({1: 2})
    with pytest.raises(TypeError, match="K has dtype object"):
        to_bytes(np.array([None]), "K")
    for damaged in (b"", b"\xff", b'{"array of": "numpy"}', b'{"array of": 1, "dtype": "O"}'):
        with pytest.raises(ValueError, match=r"\w"):
            from_bytes(damaged)
    with pytest.raises(ValueError, match="dtype object"):
        from_bytes(b'{"array of": "numpy", "dtype": "|O", "shape": [1], "bytes": ""}')


def test_long_values_are_shortened():
    with pytest.raises(ValueError, match=r"rank 1: 'x{50,57}\.\.\)") as caught:
        check_agreement("kernel", [to_bytes("y"), to_bytes("x" * 500)])
    assert len(str(caught.value)) < 250


def test_timeouts(monkeypatch):
    monkeypatch.delenv("SDGPU_RANK_TIMEOUT", raising=False)
    assert (rank_timeout(), rank_timeout(5)) == (1800.0, 5.0)
    monkeypatch.setenv("SDGPU_RANK_TIMEOUT", "12.5")
    assert (rank_timeout(), rank_timeout(5)) == (12.5, 5.0)
    for text in ("soon", "0", "nan", "-1", "inf"):
        monkeypatch.setenv("SDGPU_RANK_TIMEOUT", text)
        with pytest.raises(ValueError, match=r"SDGPU_RANK_TIMEOUT=.* must be a number of seconds"):
            rank_timeout()
    with pytest.raises(ValueError, match="timeout=0 must"):
        rank_timeout(0)
