"""What two ranks gain over one, what ranks cost where there is one, and how long they wait.

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
from statistics import median
from typing import Any

import numpy as np
import pytest

N, D, COLUMNS, ROUNDS = 20_000, 8, 16, 5
ROOT = Path(__file__).parent.parent


def rows_of(rank: int, size: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and a block of the rows of a rank."""
    rng = np.random.default_rng(0)
    X, V = rng.standard_normal((n, D)), rng.standard_normal((n, COLUMNS))
    y = np.sin(X @ rng.standard_normal(D)) + 0.1 * rng.standard_normal(n)
    own = slice(rank * n // size, (rank + 1) * n // size)
    return X[own], y[own], V[own]


def timed(work: Any, barrier: Any, rounds: int) -> tuple[float, float]:
    """Median seconds by the clock and of the processor."""
    spent = []
    for _ in range(rounds):
        barrier()
        start, own = time.perf_counter(), time.process_time()
        work()
        spent.append((time.perf_counter() - start, time.process_time() - own))
    return median(x for x, _ in spent), median(x for _, x in spent)


def measure(n: int, mode: str) -> dict[str, float]:
    """Figures of this rank: a pass and a fit, "plain" or with ranks."""
    import torch

    torch.set_num_threads(1)
    import sdgpu
    from sdgpu.backend.ranks import OneRank
    from sdgpu.backend.torch_ranks import join_ranks
    from sdgpu.operators import ShardedOperator, TiledOperator

    ranks = OneRank() if mode == "plain" else join_ranks("cpu")
    X, y, V = rows_of(ranks.rank, ranks.size, n)
    kernel, lams = sdgpu.Gaussian(0.05), [1e-4 * n, 1e-2 * n]
    if mode == "plain":
        operator: Any = TiledOperator(kernel, X)
        shared: dict[str, Any] = {}
    else:
        operator, shared = ShardedOperator(kernel, X, ranks), {"distributed": ranks}

    def fit() -> None:
        sdgpu.fit(X, y, kernel, lams, method="subspace", operator="tiled", **shared)

    operator.matmat(V)  # compiles

    def barrier() -> None:
        ranks.barrier("a round")

    product, product_own = timed(lambda: operator.matmat(V), barrier, ROUNDS)
    whole, whole_own = timed(fit, barrier, 3)
    found = {"pass": product, "pass_waiting": 1 - product_own / product}
    return found | {"fit": whole, "fit_waiting": 1 - whole_own / whole}


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
    """One plain process, one rank and two, one after the other."""
    plain, one, two = (
        started("benchmarks.bench_distributed", [str(n), mode], size)
        for mode, size in (("plain", 1), ("ranks", 1), ("ranks", 2))
    )
    return {
        "pass, two ranks against one": one["pass"] / two["pass"],
        "fit, two ranks against one": one["fit"] / two["fit"],
        "fit, one rank over plain": one["fit"] / plain["fit"],
        "share of a pass that ranks wait": two["pass_waiting"],
        "share of a fit that ranks wait": two["fit_waiting"],
        "seconds of a pass on one rank": one["pass"],
        "seconds of a fit on one rank": one["fit"],
    }


@pytest.mark.full
def test_two_ranks() -> None:
    """Two ranks of one thread on an idle machine of two cores."""
    from benchmarks.conftest import REPORT, seconds

    found, other = compared(N), "one rank of one thread"
    for what, least in (("pass", 1.8), ("fit", 1.7)):
        ratio, alone = (
            found[f"{what}, two ranks against one"],
            found[f"seconds of a {what} on one rank"],
        )
        question = f"{what} of two ranks, n = {N:,}, against {other}"
        row = (question, seconds(alone / ratio), seconds(alone), f"{ratio:.2f}", f">= {least}")
        REPORT.rows.append(row)
        assert ratio >= least
    assert found["fit, one rank over plain"] <= 1.03


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
    else:
        size = int(sys.argv[1]) if len(sys.argv) > 1 else N
        for name, value in compared(size).items():
            print(f"{name}: {value:.3f}")
