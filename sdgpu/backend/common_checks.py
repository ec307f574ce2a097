"""Checks that fail on all ranks or on none: one that raised alone would leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sdgpu.backend.ranks import Ranks

__all__ = ["together"]

Result = TypeVar("Result")

_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (TypeError, ValueError, MemoryError, OSError)
}


def together(ranks: Ranks, check: Callable[[], Result]) -> Result:
    """What `check` gives, if it raises on no rank; itself it talks to none.

    Raises
    ------
    TypeError, ValueError, MemoryError, OSError
        What it raised where it did, on all ranks; names the rank.
    """
    result, failure = None, None
    try:
        result = check()
    except (TypeError, ValueError, MemoryError, OSError) as error:
        kind = next(name for name, known in _KINDS.items() if isinstance(error, known))
        failure = [kind, str(error)]
        own = error
    failures = {rank: told for rank, told in enumerate(ranks.gather(failure)) if told}
    if not failures:
        return result  # type: ignore[return-value]
    alike = len({tuple(told) for told in failures.values()}) == 1
    if alike and len(failures) == ranks.size:  # the arguments of all: as on one rank
        raise own
    rank, (kind, text) = next(iter(failures.items()))
    raise _KINDS[kind](f"rank {rank}: {text}")
