"""Ranks: what several devices, processes or hosts that work on one problem tell each other.

A rank is one of `size` that run the same code on rows of their own. Everything that is not local goes
through the few methods of :class:`Ranks`, of which there are three kinds:

==============================================  ====================================================
:class:`OneRank`                                 alone: nothing to tell
:class:`~sdgpu.backend.thread_ranks.ThreadRanks`  threads of one process: the devices of one host, tests
:class:`~sdgpu.backend.torch_ranks.TorchRanks`    processes under ``torchrun``: gloo on CPUs, NCCL on CUDA
==============================================  ====================================================

All of them add in the order of the ranks, so that three threads and three hosts give the same bits, and
so do all ranks. The methods are called by all ranks, in the same order: they are the places where ranks
wait for each other, and where one hears that another failed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import array_api_compat as compat

from sdgpu.backend.arrays import Array
from sdgpu.backend.small_values import from_bytes, to_bytes

__all__ = [
    "OneRank",
    "RankFailure",
    "Ranks",
    "check_agreement",
    "failing_together",
    "named",
    "once_round",
    "passed_on",
    "rank_timeout",
    "row_shares",
]

TIMEOUT = 1800.0  # seconds; what is stuck for half an hour does not come


class RankFailure(RuntimeError):  # noqa: N818 (a rank fails; the error is that another one did)
    """Another rank died, failed or did not come: the work of all ends.

    Attributes
    ----------
    ranks : tuple of int
        Which, as far as known.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class Ranks(Protocol):
    """What one rank knows of the others.

    Arrays are NumPy's or torch's; what comes back is of the same library, dtype and device. Every method
    but `check` is called by all ranks, with arrays of the same dtype.

    Attributes
    ----------
    rank : int
        Of this one, from 0.
    size : int
        How many there are.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def sum(self, array: Array) -> Array:
        """Sum over the ranks, ((a_0 + a_1) + a_2) + ..: the same bits on all, a new array.

        Traffic 2 (p - 1) / p times the bytes of the array, sent and received by each of p ranks.

        Raises
        ------
        ValueError
            On all ranks, if shapes or dtypes are not alike, or others ask for :meth:`max`: names the ranks.
        """
        ...

    def max(self, array: Array) -> Array:
        """Largest over the ranks, entry by entry; NaN if one has NaN. A new array. Errors as `sum`."""
        ...

    def first(self, value: Any) -> Any:
        """Tell all ranks the small value of rank 0 (:mod:`sdgpu.backend.small_values`)."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Small values of all ranks, in their order; of other types and sizes too."""
        ...

    def gather_rows(self, array: Array) -> Array:
        """Rows (n_r, ..) of all ranks below each other in the order of the ranks; n_r may be 0."""
        ...

    def ring(
        self, array: Array, routes: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Array]]:
        """The rows of every rank in turn, as (owner, rows), beginning with this rank's own.

        The order of owners is r, r - 1, .., 0, p - 1, .., r + 1. While the caller uses a piece the next
        one is under way, so that two pieces are held besides the own one. Pieces may be empty. They are
        for reading; `array` may be changed when the ring has ended. Every rank goes round to the end.

        Parameters
        ----------
        array : array (n_r, ..)
        routes : sequence of permutations of the ranks, optional
            Another way round, the same on all ranks: the piece that rank r has goes to routes[s][r] after
            step s. A rank to itself keeps it, and nothing is sent.
        """
        ...

    def agree(self, name: str, value: Any) -> None:
        """Refuse ranks that were given different values of one argument.

        Raises
        ------
        ValueError
            On all ranks; names the argument, the ranks and their values.
        """
        ...

    def barrier(self, name: str) -> None:
        """Wait until all ranks are here.

        Raises
        ------
        RankFailure
            When the time is up; names the place and the ranks that are missing.
        """
        ...

    def check(self) -> None:
        """Raise RankFailure if another rank is known to have failed; waits for nobody.

        For what computes long between two meetings.
        """
        ...

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank ends with an error: they raise RankFailure with its text."""
        ...


@dataclass(frozen=True)
class OneRank:
    """The one rank of a work that is not shared: what it gets is what it gave.

    Examples
    --------
    >>> alone = OneRank()
    >>> alone.gather("x"), [owner for owner, _ in alone.ring([1.0])]
    (['x'], [0])
    """

    rank: int = 0
    size: int = 1

    def sum(self, array: Array) -> Array:
        return compat.array_namespace(array).asarray(array, copy=True)

    def max(self, array: Array) -> Array:
        return compat.array_namespace(array).asarray(array, copy=True)

    def first(self, value: Any) -> Any:
        return from_bytes(to_bytes(value))  # as the others: the same types, nothing shared

    def gather(self, value: Any) -> list[Any]:
        return [self.first(value)]

    def gather_rows(self, array: Array) -> Array:
        return compat.array_namespace(array).asarray(array, copy=True)

    def ring(
        self, array: Array, routes: Sequence[Sequence[int]] | None = None
    ) -> Iterator[tuple[int, Array]]:
        for _ in range(1 + len(routes or ())):
            yield 0, array

    def agree(self, name: str, value: Any) -> None:
        to_bytes(value, name)  # what several cannot compare is refused here too

    def barrier(self, name: str) -> None:
        pass

    def check(self) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Lines that all ranks run: an error in one of them ends them on all.

    The others raise RankFailure with the rank, the kind and the text of the error where they next meet. The
    error itself gets a note with the rank. What ends a rank from outside (SIGTERM of ``torchrun``, say)
    after another has failed is told as the failure of the other.

    Examples
    --------
    >>> with failing_together(OneRank()):
    ...     pass
    """
    try:
        yield
    except RankFailure:
        raise
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            ranks.check()  # the cause is another rank's
        ranks.fail(error)
        if ranks.size > 1:
            error.add_note(f"on rank {ranks.rank} of {ranks.size}")
        raise


def row_shares(n: int, size: int) -> list[slice]:
    """Cut n rows into `size` runs that differ by one row at most; empty ones if n < size.

    Examples
    --------
    >>> row_shares(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(rank * n // size, (rank + 1) * n // size) for rank in range(size)]


def once_round(size: int) -> list[list[int]]:
    """The routes of a ring in which every piece comes to every rank.

    Examples
    --------
    >>> once_round(3)
    [[1, 2, 0], [1, 2, 0]]
    """
    return [[(rank + 1) % size for rank in range(size)]] * (size - 1)


def passed_on(owners: Sequence[int], route: Sequence[int]) -> list[int]:
    """Whose piece each rank has after one step of a route, from whose it had.

    Examples
    --------
    >>> passed_on([0, 1, 2], [1, 2, 0])
    [2, 0, 1]
    """
    after = list(owners)
    for rank, to in enumerate(route):
        after[to] = owners[rank]
    return after


def check_agreement(name: str, encoded: Sequence[bytes]) -> None:
    """Raise what :meth:`Ranks.agree` raises, from the bytes of all ranks' values.

    Raises
    ------
    ValueError
        If they are not the same.
    """
    groups: dict[bytes, list[int]] = {}
    for rank, content in enumerate(encoded):
        groups.setdefault(content, []).append(rank)
    if len(groups) == 1:
        return
    told = "; ".join(f"{named(members)}: {_shown(content)}" for content, members in groups.items())
    raise ValueError(
        f"the ranks were given different {name} ({told}): start all of them with the same arguments on "
        "the same data"
    )


def rank_timeout(seconds: float | None = None) -> float:
    """Seconds that ranks wait for each other: `seconds`, else SDGPU_RANK_TIMEOUT, else 1800.

    Raises
    ------
    ValueError
        If it is no positive number; names the argument or the variable.
    """
    text = os.environ.get("SDGPU_RANK_TIMEOUT")
    name, value = ("timeout", seconds) if seconds is not None else ("SDGPU_RANK_TIMEOUT", text)
    if value is None:
        return TIMEOUT
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e7:
        raise ValueError(f"{name}={value!r} must be a number of seconds above 0 and below 1e7")
    return number


def named(members: Sequence[int]) -> str:
    """Ranks in words.

    Examples
    --------
    >>> named([3]), named([0, 2])
    ('rank 3', 'ranks 0, 2')
    """
    shown = ", ".join(map(str, members[:8]))
    more = f" and {len(members) - 8} more" if len(members) > 8 else ""
    return f"rank{'s' * (len(members) > 1)} {shown}{more}"


def _shown(content: bytes) -> str:
    text = repr(from_bytes(content))
    return text if len(text) <= 60 else text[:57] + ".."
