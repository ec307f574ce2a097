"""Bytes: what is free, what a computation will take, and a promise that is checked beforehand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from sdgpu.backend.checks import number

__all__ = [
    "available",
    "budget",
    "largest_rows",
    "library_addresses",
    "parse_bytes",
    "require",
    "show",
]

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)
# addresses that libraries reserve at their first use, measured with NumPy 2.4 and torch 2.13
BLAS, TORCH, THREAD = 70_000_000, 500_000_000, 150_000_000
_USAGE = {"RLIMIT_AS": "vms", "RLIMIT_DATA": "data"}  # what psutil calls what they limit
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def parse_bytes(value: int | float | str) -> int:
    """Read a number of bytes or a text such as ``"8GiB"``, ``"500 MB"``.

    Raises
    ------
    ValueError
        For a text that is no size, or a size <= 0.

    Examples
    --------
    >>> parse_bytes("8GiB"), parse_bytes("1.5 kB")
    (8589934592, 1500)
    """
    if isinstance(value, str):
        match = _PATTERN.fullmatch(value)
        if not match:
            raise ValueError(f"memory={value!r} is no size: write bytes or for example '8GiB'")
        unit = match[2].lower()
        size = float(match[1]) * (_BINARY[unit] if unit in _BINARY else _UNITS.get(unit, 1))
    else:
        size = number("memory", value)
    if not 0 < size < float("inf"):
        raise ValueError(f"memory={value!r} must be more than zero bytes")
    return int(size)


def available(device: str = "cpu") -> int:
    """Free bytes of a device: of the host (and of its container), or of one GPU."""
    if "cuda" in device:
        import torch

        return int(torch.cuda.mem_get_info(device[device.index("cuda") :])[0])
    machine = psutil.virtual_memory()
    free = int(machine.available)
    for path in _CGROUPS:
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):  # no container, or "max"
            continue
        if limit >= machine.total:  # a container without a limit of its own
            continue
        free = min(free, max(limit - int(psutil.Process().memory_info().rss), 0))
    return free


def addresses() -> int | None:
    """Bytes that this process may still reserve under ``ulimit -v`` and ``-d``; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows has neither
        return None
    limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in _USAGE}
    finite = {name: x for name, x in limits.items() if x != resource.RLIM_INFINITY}
    if not finite:  # as nearly always: what is used need not be read
        return None
    usage = psutil.Process().memory_info()
    remaining = [
        max(limit - int(getattr(usage, _USAGE[name], 0)), 0) for name, limit in finite.items()
    ]
    return min(remaining)


def library_addresses(threads: int) -> int:
    """Bytes that torch will reserve for itself and so many threads, if that is limited; else 0."""
    if addresses() is None:
        return 0
    return (0 if "torch" in sys.modules else TORCH) + threads * THREAD


def budget(memory: int | float | str | None, device: str = "cpu") -> int:
    """Bytes that a call may use: what the caller says, otherwise 90 % of what is free.

    On the host no more than 90 % of what a limit on the process leaves.
    """
    allowed = parse_bytes(memory) if memory is not None else int(0.9 * available(device))
    remaining = None if "cuda" in device else addresses()
    return allowed if remaining is None else min(allowed, max(int(0.9 * (remaining - BLAS)), 1))


def show(size: float) -> str:
    """Write a number of bytes for people.

    Examples
    --------
    >>> show(8589934592), show(532), show(2.5e10)
    ('8.59 GB', '532 B', '25 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if size < 10 and unit != "B" else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def require(needed: int, allowed: int, what: str, remedy: str) -> None:
    """Raise MemoryError before the work if it needs more bytes than are allowed."""
    if needed > allowed:
        raise MemoryError(f"{what} needs {show(needed)}, but {show(allowed)} may be used: {remedy}")


def largest_rows(allowed: int, bytes_of: Callable[[int], int]) -> int:
    """Largest n with ``bytes_of(n) <= allowed``, for an increasing function of n (0 if none)."""
    low, high = 0, 1
    while bytes_of(high) <= allowed:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bytes_of(middle) <= allowed else (low, middle)
    return low
