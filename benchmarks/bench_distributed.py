"""What two ranks gain over one, what ranks cost where there is one, and how long they talk and wait.

Two processes share memory and, it may be, a clock: what two of them could gain at best is measured too, by
each making its share of the tiles without a word to the other. Seconds are the least of all rounds.

Run as a module, ``python -m benchmarks.bench_distributed [n]``, which starts the processes; each has
one thread. As a benchmark it reports the ratios with the others.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

N, D, COLUMNS, ROUNDS, TURNS = 20_000, 8, 16, 9, 2
ROOT = Path(__file__).parent.parent


def rows_of(rank: int, size: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and a block of the rows of a rank."""
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((n, D)), rng.standard_normal((n, COLUMNS))
    y = np.sin(X @ rng.standard_normal(D)) + 0.1 * rng.standard_normal(n)
    own = slice(rank * n // size, (rank + 1) * n // size)
    return X[own], y[own], V[own]


class Listening:
    """Ranks, with the seconds that this one spent in talking to the others and waiting for them."""

    def __init__(self, ranks: Any) -> None:
        self._ranks, self.seconds = ranks, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ranks, name)
        if not callable(found):
            return found

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def timed(work: Any, ranks: Listening, rounds: int) -> tuple[float, float]:
    """Seconds of the quickest round, and those of them in which this rank did not compute."""
    spent = []
    for _ in range(rounds):
        ranks.barrier("a round")
        ranks.seconds, start = 0.0, time.perf_counter()
        work()
        spent.append((time.perf_counter() - start, ranks.seconds))
    return min(spent)


def measure(n: int, mode: str) -> dict[str, float]:
    """Figures of this rank: a pass, its share of a pass alone, and a fit, "plain" or with ranks."""
    import torch

    torch.set_num_threads(1)
    import sdgpu
    from sdgpu.backend.ranks import OneRank
    from sdgpu.backend.torch_ranks import join_ranks
    from sdgpu.operators import ShardedOperator, TiledOperator

    ranks: Any = Listening(OneRank() if mode == "plain" else join_ranks("cpu"))
    X, y, V = rows_of(ranks.rank, ranks.size, n)
    kernel, lams = sdgpu.Gaussian(0.05), [1e-4 * n, 1e-2 * n]
    everything, _, columns = rows_of(0, 1, n)
    alone = TiledOperator(kernel, everything)
    operator: Any = alone
    shared: dict[str, Any] = {}
    if mode != "plain":
        operator, shared = ShardedOperator(kernel, X, ranks), {"distributed": ranks}

    def fit() -> None:
        sdgpu.fit(X, y, kernel, lams, method="subspace", operator="tiled", **shared)

    def share() -> None:
        alone.share_of_product(columns, ranks.rank, ranks.size)

    operator.matmat(V)  # compiles
    share()
    own, _ = timed(share, ranks, ROUNDS)
    product, product_waiting = timed(lambda: operator.matmat(V), ranks, ROUNDS)
    fit()
    whole, whole_waiting = timed(fit, ranks, 4)
    found = {"share": own, "pass": product, "pass_waiting": product_waiting / product}
    return found | {"fit": whole, "fit_waiting": whole_waiting / whole}


def started(module: str, arguments: list[str], size: int) -> dict[str, float]:
    """The figures of rank 0 among `size` processes of a module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    shared |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        out, _ = processes[0].communicate(timeout=900)
        for process in processes[1:]:
            process.communicate(timeout=60)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return json.loads(out.splitlines()[-1])


def compared(n: int) -> dict[str, float]:
    """One plain process, one rank and two, in turns."""
    module = "benchmarks.bench_distributed"
    ways: dict[str, Any] = {"plain": ("plain", 1), "one": ("ranks", 1), "two": ("ranks", 2)}
    turns = [
        {name: started(module, [str(n), mode], size) for name, (mode, size) in ways.items()}
        for _ in range(TURNS)
    ]
    least = {
        name: {key: min(turn[name][key] for turn in turns) for key in turns[0][name]}
        for name in ways
    }
    plain, one, two = (least[name] for name in ways)
    return {
        "pass, two ranks against one": one["pass"] / two["pass"],
        "pass, two processes that do not talk, against one": one["share"] / two["share"],
        "fit, two ranks against one": one["fit"] / two["fit"],
        "fit, one rank over plain": one["fit"] / plain["fit"],
        "share of a pass in which ranks talk or wait": two["pass_waiting"],
        "share of a fit in which ranks talk or wait": two["fit_waiting"],
        "seconds of a pass on one rank": one["pass"],
        "seconds of a fit on one rank": one["fit"],
    }


@pytest.mark.full
def test_two_ranks() -> None:
    """Two ranks of one thread on an idle machine of two cores."""
    from benchmarks.conftest import REPORT, seconds

    found, other = compared(N), "one rank of one thread"
    targets = {"pass": 1.8, "fit": 1.7}
    for what, least in targets.items():
        ratio, alone = (
            found[f"{what}, two ranks against one"],
            found[f"seconds of a {what} on one rank"],
        )
        question = f"{what} of two ranks, n = {N:,}, against {other}"
        row = (question, seconds(alone / ratio), seconds(alone), f"{ratio:.2f}", f">= {least}")
        REPORT.rows.append(row)
    for what, least in targets.items():
        assert found[f"{what}, two ranks against one"] >= least
    assert found["fit, one rank over plain"] <= 1.03


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
    else:
        size = int(sys.argv[1]) if len(sys.argv) > 1 else N
        for name, value in compared(size).items():
            print(f"{name}: {value:.3f}")
