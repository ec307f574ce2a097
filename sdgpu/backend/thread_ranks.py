"""Ranks that are threads of one process: the devices of one host, and tests of what is written for ranks.

They hand each other arrays, not copies of their bytes: a piece of a ring on the same device costs nothing,
one on another device one copy, which is under way before it is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import array_api_compat as compat

from sdgpu.backend.arrays import Array, dtype_name
from sdgpu.backend.ranks import (
    RankFailure,
    check_agreement,
    named,
    once_round,
    passed_on,
    rank_timeout,
    row_shares,
)
from sdgpu.backend.small_values import from_bytes, to_bytes

__all__ = ["ThreadRanks", "run_threads"]

Result = TypeVar("Result")


class _Meeting:
    """Where the threads of one work meet: what each brought, and who is there."""

    def __init__(self, size: int, timeout: float) -> None:
        self.size, self.timeout = size, timeout
        self.brought: list[Any] = [None] * size
        self.arrived: set[int] = set()
        self.left: set[int] = set()  # their work is done: whoever waits for them waits in vain
        self.rounds = 0
        self.failure: tuple[str, tuple[int, ...]] | None = None
        self.changed = threading.Condition()

    def exchange(self, rank: int, value: Any, place: str) -> list[Any]:
        """Bring `value`, wait for the others, and take what all brought."""
        with self.changed:
            self.check()
            present = self.rounds
            self.brought[rank] = value
            self.arrived.add(rank)
            self._check_left(place)
            if len(self.arrived) == self.size:
                # a new list: the next round may begin before the last has read this one
                self.taken, self.brought = self.brought, [None] * self.size
                self.arrived = set()
                self.rounds += 1
                self.changed.notify_all()
                return self.taken
            there = self.changed.wait_for(
                lambda: self.rounds > present or self.failure, self.timeout
            )
            if self.rounds > present:
                return self.taken
            if not there:
                missing = tuple(sorted(set(range(self.size)) - self.arrived))
                self.fail(
                    f"after {self.timeout:g} s {named(missing)} had not come to {place}, where rank "
                    f"{rank} waits",
                    missing,
                )
            self.check()
            raise AssertionError("a meeting ends with all, or with a failure")

    def leave(self, rank: int) -> None:
        """Say that a rank is done and comes to no further place."""
        with self.changed:
            self.left.add(rank)
            self._check_left("another place")

    def _check_left(self, place: str) -> None:
        if self.left and self.arrived:
            gone = tuple(sorted(self.left))
            self.fail(
                f"{named(gone)} ended while {named(sorted(self.arrived))} waited at {place}: all "
                "must call the same methods in the same order",
                gone,
            )

    def fail(self, message: str, ranks: tuple[int, ...]) -> None:
        """End the work of all; the first failure is the one that is told."""
        with self.changed:
            if self.failure is None:
                self.failure = message, ranks
            self.changed.notify_all()

    def fail_of(self, rank: int, error: BaseException) -> None:
        """End the work of all by the error of one."""
        self.fail(f"rank {rank} failed: {type(error).__name__}: {error}", (rank,))

    def check(self) -> None:
        if self.failure is not None:
            raise RankFailure(*self.failure)


class ThreadRanks:
    """One thread among `size`; :func:`run_threads` makes them.

    Parameters
    ----------
    rank : int
    meeting : _Meeting
        The same for all.
    """

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank, self._meeting = rank, meeting

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._meeting.size

    def __repr__(self) -> str:
        return f"ThreadRanks(rank={self.rank}, size={self.size})"

    def sum(self, array: Array) -> Array:
        return self._reduced(array, lambda a, b: a + b, "sum")

    def max(self, array: Array) -> Array:
        return self._reduced(array, compat.array_namespace(array).maximum, "max")

    def first(self, value: Any) -> Any:
        content = to_bytes(value) if self.rank == 0 else b""
        return from_bytes(self._exchange(content, "first")[0])

    def gather(self, value: Any) -> list[Any]:
        return [from_bytes(content) for content in self._exchange(to_bytes(value), "gather")]

    def gather_rows(self, array: Array) -> Array:
        parts = self._rows_of_all(array, "gather_rows")
        joined = compat.array_namespace(array).concat([_beside(p, array) for p in parts], axis=0)
        self._exchange(None, "gather_rows")  # from here on the parts may be changed
        return joined

    def ring(
        self, array: Array, routes: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Array]]:
        pieces = self._rows_of_all(array, "ring")
        routes = once_round(self.size) if routes is None else routes
        owners, piece = list(range(self.size)), array
        for step in range(len(routes) + 1):
            owner, ahead = owners[self.rank], piece
            if step < len(routes):
                owners = passed_on(owners, routes[step])
                if owners[self.rank] != owner:  # queued on its device before this one is used
                    ahead = _beside(pieces[owners[self.rank]], array)
            self.check()
            yield owner, piece
            piece = ahead
        self._exchange(None, "the end of the ring")

    def agree(self, name: str, value: Any) -> None:
        check_agreement(name, self._exchange(to_bytes(value, name), f"agree on {name}"))

    def barrier(self, name: str) -> None:
        self._exchange(None, name)

    def check(self) -> None:
        self._meeting.check()

    def fail(self, error: BaseException) -> None:
        self._meeting.fail_of(self.rank, error)

    def _exchange(self, value: Any, place: str) -> list[Any]:
        return self._meeting.exchange(self.rank, value, place)

    def _rows_of_all(self, array: Array, place: str) -> list[Array]:
        parts = self._exchange(array, place)
        kinds = [to_bytes([dtype_name(part), *part.shape[1:]]) for part in parts]
        check_agreement(f"rows in {place}", kinds)
        return parts

    def _reduced(self, array: Array, combine: Callable[[Any, Any], Any], place: str) -> Array:
        """Each rank reduces its share of the entries, in the order of the ranks."""
        xp = compat.array_namespace(array)
        flat = xp.reshape(array, (-1,))
        share = row_shares(flat.shape[0], self.size)[self.rank]
        brought = self._exchange((flat, to_bytes([place, *_kind(array)])), place)
        check_agreement(f"arrays in {place}", [said for _, said in brought])
        parts = [part for part, _ in brought]
        total = xp.asarray(_beside(parts[0][share], flat), copy=True)
        for part in parts[1:]:
            total = combine(total, _beside(part[share], flat))
        shares = self._exchange(total, place)
        return xp.reshape(xp.concat([_beside(s, flat) for s in shares]), tuple(array.shape))


def run_threads(
    function: Callable[[ThreadRanks], Result], size: int, *, timeout: float | None = None
) -> list[Result]:
    """Call `function` with the ranks of `size` threads, and give what each returned, in their order.

    Parameters
    ----------
    function : callable
        Of a :class:`ThreadRanks`.
    size : int
    timeout : float, optional
        Seconds that ranks wait for each other; :func:`~sdgpu.backend.ranks.rank_timeout`.

    Raises
    ------
    Exception
        Whatever one of them raised first, with a note that says which rank it was; the others are ended
        where they next meet.

    Examples
    --------
    >>> import numpy as np
    >>> run_threads(lambda ranks: float(ranks.sum(np.ones(1))[0]) + ranks.rank, 2)
    [2.0, 3.0]
    """
    if size < 1:
        raise ValueError(f"size={size!r} must be at least 1")
    meeting = _Meeting(size, rank_timeout(timeout))
    results: list[Any] = [None] * size
    errors: list[tuple[int, BaseException]] = []

    def work(rank: int) -> None:
        try:
            results[rank] = function(ThreadRanks(rank, meeting))
            meeting.leave(rank)
        except BaseException as error:  # raised again in the thread that asked
            errors.append((rank, error))
            meeting.fail_of(rank, error)

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(size)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C comes to the thread that asked
        meeting.fail(f"the work was ended: {type(error).__name__}: {error}", ())
        for thread in threads:
            thread.join(timeout=10.0)
        raise
    if errors:
        raise _first_cause(errors)
    return results


def _first_cause(errors: Sequence[tuple[int, BaseException]]) -> BaseException:
    """The error that was no consequence of another, with its rank."""
    rank, cause = next(
        ((rank, error) for rank, error in errors if not isinstance(error, RankFailure)), errors[0]
    )
    if not isinstance(cause, RankFailure):
        cause.add_note(f"on rank {rank}")
    return cause


def _kind(array: Array) -> list[Any]:
    return [dtype_name(array), list(map(int, array.shape))]


def _beside(array: Array, sample: Array) -> Array:
    """`array` on the device of `sample`; on the same one it is itself."""
    if compat.is_torch_array(array) and array.device != sample.device:
        return array.to(sample.device, non_blocking=array.is_cuda and sample.is_cuda)
    return array
