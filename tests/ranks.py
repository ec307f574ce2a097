"""Problems whose rows are on several ranks: threads, which need no processes."""

import itertools

import numpy as np

from sdgpu.backend.thread_ranks import run_threads

LIMIT = 60.0  # seconds that a rank waits before the test fails


def cuts(n, counts, rng):
    """Slices of n rows; `counts` is a number of ranks with random shares, or the shares."""
    if isinstance(counts, int):
        ends = np.sort(rng.integers(0, n + 1, counts - 1))
        edges = [0, *map(int, ends), n]
    else:
        edges = [0, *map(int, np.cumsum(counts))]
        assert edges[-1] == n
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def on_ranks(parts, work):
    """work(ranks, rows) of each rank, in their order."""
    return run_threads(lambda ranks: work(ranks, parts[ranks.rank]), len(parts), timeout=LIMIT)
