"""Batch norm's passes over memory, compiled (extra ``fast``): which tensors they take, and how.

:mod:`~sdgpu.nn.channel_loops` has the machine code. Without llvmlite, and for what it does not take,
:mod:`~sdgpu.nn.channel_passes` does the same by torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch

__all__ = ["CompiledNorm", "compiled_norm", "constants", "dense", "takes"]

MOST = 4096  # channels whose sums fit the stack of a thread
#: Threads of torch up to which one thread of compiled loops is faster than all of torch's.
THREADS = 2


class CompiledNorm:
    """The compiled functions of a precision, with addresses for arguments (``channel_loops``).

    Parameters
    ----------
    machine : Machine
    lines : int
        Vectors (C,) that are kept of a layer.
    """

    def __init__(self, machine: Any, lines: int) -> None:
        def function(name: str, arguments: int) -> Callable[..., None]:
            found: Callable[..., None] = machine.function(name, arguments)
            return found

        self.lines = lines
        self.moments = function("moments", 5)
        self.statistics = function("statistics", 9)
        self.normalise = function("normalise", 6)
        self.gradient_sums = function("gradient_sums", 7)
        self.gradient_lines = function("gradient_lines", 4)
        self.gradient = function("gradient", 7)


@cache
def compiled_norm(dtype: torch.dtype) -> CompiledNorm | None:
    """For float32 and float64; None without llvmlite, or where compiled code must not be run."""
    try:
        loops = importlib.import_module("sdgpu.nn.channel_loops")
        machine = loops.channel_loops(str(dtype).removeprefix("torch."))
    except (ImportError, RuntimeError, OSError, MemoryError):
        return None
    return CompiledNorm(machine, loops.LINES)


def takes(X: torch.Tensor, *vectors: torch.Tensor | None) -> bool:
    """Whether X (b, C, ...) of float32 or float64 on a CPU, and vectors (C,), are for the compiled loops.

    By what all ranks have in common, so that their statistics have the same bits. The loops run on the
    thread that calls them: to wake others costs some 20 microseconds, a fifth of a pass. A rank that has
    many cores to itself leaves the passes to torch, which shares them out.
    """
    if torch.get_num_threads() > THREADS or not X.numel() or X.shape[1] > MOST:
        return False
    for one in vectors:
        if one is not None and (one.dtype != X.dtype or not one.is_contiguous()):
            return False
    return compiled_norm(X.dtype) is not None


def dense(X: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """X, or a copy without gaps, and what it is in memory: (outer, C, inner) of ``channel_loops``."""
    b, C = X.shape[:2]
    if not X.is_contiguous():
        last = X.movedim(1, -1)
        if last.is_contiguous():
            return X, (X.numel() // C, C, 1)
        X = X.contiguous()
    return X, (b, C, X.numel() // (b * C))


@lru_cache(maxsize=64)
def constants(momentum: float, eps: float) -> torch.Tensor:
    """Momentum and eps as the loops read them."""
    return torch.tensor([momentum, eps], dtype=torch.float64, device="cpu")
