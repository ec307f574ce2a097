"""Damage to files, as bad disks, full ones and cut connections make it: a thousand a kind of file."""

from collections.abc import Iterator

import numpy as np

TIMES = 1000


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content)))
    return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    end = min(len(content), start + int(rng.integers(1, 600)))
    return content[:start] + bytes(end - start) + content[end:]


def lengthened(content: bytes, rng: np.random.Generator) -> bytes:
    return content + content[-int(rng.integers(1, len(content) + 1)) :]


def damages(content: bytes, seed: int, *kinds, times: int = TIMES) -> Iterator[bytes]:
    """Other contents than the given one: bits flipped, ends cut off, bytes of zero."""
    rng, kinds = np.random.default_rng(seed), kinds or (flipped, cut, zeroed)
    for trial in range(times):
        found = kinds[trial % len(kinds)](content, rng)
        if found != content:
            yield found
