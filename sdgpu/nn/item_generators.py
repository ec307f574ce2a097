"""The global generators that transforms of data sets draw from: torch's, NumPy's and Python's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sdgpu.nn.augment import stream

__all__ = [
    "GENERATORS",
    "StateReader",
    "generators_kept",
    "item_seeds",
    "pass_seed",
    "put_back",
    "seed_all",
    "states",
]

GENERATORS = ("torch", "numpy", "python")


class StateReader:
    """States of the generators, read again and again while nobody but draws changes them.

    NumPy takes 24 microseconds to tell its state, as long as a small data set needs for a dozen items. So
    the words of its Mersenne twister are looked at where they lie, and it is asked only when they have
    changed, or while it has a normal number in store, which they do not show.
    """

    def __init__(self) -> None:
        self._bits: Any = None
        self._words: Any = None
        self._seen: tuple[bytes, Any] = (b"", None)

    def __call__(self, names: Iterable[str]) -> list[Any]:
        """What can be compared, and :func:`put_back`."""
        return [self._state(name) for name in names]

    def _state(self, name: str) -> Any:
        if name == "torch":
            return torch.get_rng_state().numpy().tobytes()
        return self._numpy() if name == "numpy" else random.getstate()

    def _numpy(self) -> Any:
        bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if bits is not self._bits:
            self._bits, self._words, self._seen = bits, _words(bits), (b"", None)
        words = bytes(self._words)
        before, state = self._seen
        if words != before or state is None or state[2]:
            _, key, position, *normal = np.random.get_state()  # noqa: NPY002
            state = bytes(memoryview(key)), position, *normal  # type: ignore[arg-type]
            self._seen = words, state
        return state


def _words(bits: Any) -> Any:
    """The 624 words of a Mersenne twister and its position among them, where they lie; else nothing."""
    if not isinstance(bits, np.random.MT19937):
        return b""
    return (ctypes.c_uint32 * 625).from_address(bits.ctypes.state_address)


def states(names: Iterable[str] = GENERATORS) -> list[Any]:
    """What can be compared, and :func:`put_back`."""
    return StateReader()(names)


def seed_all(names: Iterable[str], seed: int) -> None:
    """Seed some generators; of NumPy's legacy one, which transforms of others draw from, by 32 bits."""
    for name in names:
        if name == "torch":
            torch.default_generator.manual_seed(seed)
        elif name == "numpy":
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
        else:
            random.seed(seed)


def put_back(names: Iterable[str], before: Iterable[Any]) -> None:
    """Bring generators back to what :func:`states` told of them."""
    for name, state in zip(names, before, strict=True):
        if name == "torch":
            torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
        elif name == "numpy":
            words = np.frombuffer(state[0], dtype=np.uint32)
            np.random.set_state(("MT19937", words, *state[1:]))  # noqa: NPY002
        else:
            random.setstate(state)


@contextmanager
def generators_kept(names: Iterable[str] = GENERATORS) -> Iterator[None]:
    """Some generators come back."""
    names = tuple(names)
    before = states(names)
    try:
        yield
    finally:
        put_back(names, before)


def pass_seed(seed: int, *position: int) -> int:
    """What the seeds of the items of one pass over the data are made of."""
    return stream(seed, "augment", *position).initial_seed()


def item_seeds(rows: np.ndarray, base: int) -> np.ndarray:
    """A seed for each row (b,), uint64: the finaliser of splitmix64, so that neighbours are unlike.

    References
    ----------
    Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(base) + (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
