"""What does the whole grid cost without the matrix?

20,000 flights, 20 lam from 1e-6 n to 1e-1 n, ten steps, every weight: against one preconditioned CG
solve at the smallest lam alone, to the same accuracy, with a sketch of the same rank; and in memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import sdgpu
from benchmarks.conftest import REPORT, seconds
from sdgpu.backend.backends import TorchBackend
from sdgpu.backend.progress import Stopwatch
from sdgpu.backend.threads import only_torch
from sdgpu.operators import TiledOperator
from sdgpu.solvers.cg import CG
from sdgpu.solvers.preconditioners import pivoted_cholesky
from sdgpu.study.real_data.datasets import load

N = 20_000
TOL = 1e-4


def flights(n: int) -> tuple[np.ndarray, np.ndarray, sdgpu.Gaussian, np.ndarray]:
    data = load("flights", rows=n)
    X = (data.X - data.X.mean(axis=0)) / data.X.std(axis=0)
    Y = (data.Y - data.Y.mean()) / data.Y.std()
    return X, Y, sdgpu.Gaussian(0.5 / 3.0**2), np.geomspace(1e-6, 1e-1, 20) * n


def test_the_grid_against_one_solve(race: Any) -> None:
    X, Y, kernel, lams = flights(N)
    plan = sdgpu.plan(N, X.shape[1], 1, lams, tol=TOL, operator="tiled", device="cpu")
    plan = sdgpu.plan(
        N,
        X.shape[1],
        1,
        lams,
        tol=TOL,
        operator="tiled",
        method="subspace",
        device="cpu",
        precision=plan.precision,
    )
    seen: list[Any] = []
    passes: list[int] = []

    def grid() -> None:
        seen.append(sdgpu.fit(X, Y, kernel, lams=lams, plan=plan, device="cpu").info)

    def one_solve() -> None:
        backend = TorchBackend("cpu")
        operator = TiledOperator(kernel, backend.asarray(X), plan.precision)
        with only_torch():
            sketch = pivoted_cholesky(
                operator, plan.rank, backend, seed=0, watch=Stopwatch(lambda: None)
            )
            solved = CG(backend, TOL).solve(
                lambda V: operator.matmat(V.T).T,
                backend.asarray(np.ascontiguousarray(Y.T)),
                float(lams[0]),
                precondition=sketch.solve,
            )
        passes.append(solved.passes)

    race(
        f"fit of {N:,} flights for 20 lam >= 1e-6 n to {TOL:g}, tiled, against one CG solve at 1e-6 n",
        grid,
        one_solve,
        at_most=1.3,
        rounds=7,
    )
    info = seen[-1]
    REPORT.rows.append(
        (
            f"(passes of both; the fit was predicted to take {plan.seconds:.1f} s; its error at most "
            f"{info.error_estimate:.1e})",
            str(info.passes),
            str(passes[-1]),
            "",
            "",
        )
    )


@pytest.mark.full
@pytest.mark.parametrize("block", [4, 8, 12, 16, 24, 32])
def test_passes_against_the_block(block: int, device: str) -> None:
    """What a pass costs and what it brings: both grow with the columns of the block."""
    n = N // 2
    X, Y, kernel, lams = flights(n)
    plan = sdgpu.plan(
        n, X.shape[1], 1, lams, tol=TOL, operator="tiled", method="subspace", device=device
    )
    start = time.perf_counter()
    info = sdgpu.fit(X, Y, kernel, lams=lams, plan=replace(plan, block=block), device=device).info
    spent = time.perf_counter() - start
    question = f"passes of the fit of {n:,} flights for 20 lam >= 1e-6 n to {TOL:g}, {block} columns a pass"
    REPORT.rows.append((question, seconds(spent), f"{info.passes} passes", "", ""))


@pytest.mark.full
@pytest.mark.parametrize("memory", ["1.5GB", "300MB", "220MB"])
def test_restarts(memory: str, device: str) -> None:
    """The same fit in less and less memory: the basis restarts, the sketch gets smaller."""
    n = N // 2
    X, Y, kernel, lams = flights(n)
    start = time.perf_counter()
    info = sdgpu.fit(
        X,
        Y,
        kernel,
        lams=lams,
        tol=TOL,
        method="subspace",
        operator="tiled",
        memory=memory,
        device=device,
    ).info
    spent = time.perf_counter() - start
    question = (
        f"fit of {n:,} flights for 20 lam >= 1e-6 n to {TOL:g}, tiled, in {memory}: {info.method}, "
        f"{info.passes} passes, error at most {info.error_estimate:.1e}"
    )
    REPORT.rows.append((question, seconds(spent), f"{info.bytes / 1e6:.0f} MB planned", "", ""))
    assert info.status.startswith("converged")


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.bench_large import flights
import sdgpu
n, lowest = int(sys.argv[1]), float(sys.argv[2])
small = flights(600)
sdgpu.fit(*small[:3], lams=small[3], method="subspace", operator="tiled", tol=1e-2)
X, Y, kernel, _ = flights(n)
X_val, Y_val, _, _ = flights(2000)
lams = np.geomspace(lowest, 1e-1, 20) * n
def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
fitted = sdgpu.fit(X, Y, kernel, lams=lams, operator="tiled", tol=1e-4, memory=sys.argv[3])
sweep = fitted.sweep(X_val, Y_val)
info = fitted.info
total = sum(info.seconds.values()) + sweep.dataset.attrs["sweep_seconds"]
print(resident("VmHWM:"), total, info.method, info.passes, info.error_estimate, info.bytes)
"""


@pytest.mark.full
@pytest.mark.parametrize(
    ("n", "lowest", "memory", "limit"),
    [(20_000, 1e-6, "1.4GB", 1.5e9), (100_000, 1e-4, "3.5GB", 4e9)],
)
def test_peak_memory(n: int, lowest: float, memory: str, limit: float, device: str) -> None:
    if device != "cpu":
        pytest.skip("the resident set tells nothing of a GPU")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(n), str(lowest), memory]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, spent, method, passes, error, _ = run.stdout.split()
    question = (
        f"{n:,} flights, 20 lam >= {lowest:g} n, 101 weights, 10 steps, tiled: {method}, {passes} passes, "
        f"error at most {float(error):.1e}; peak of the whole process"
    )
    REPORT.rows.append(
        (
            question,
            seconds(float(spent)),
            f"{float(peak) / 1e9:.2f} GB",
            "",
            f"<= {limit / 1e9:g} GB",
        )
    )
    assert float(peak) <= limit
