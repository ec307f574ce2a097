"""Side-by-side timing in one run, and the table of ratios in results.md."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# KeOps keeps what it compiles inside the build folder
_CACHE = Path(__file__).parent.parent / "build" / "keops-bench"
_CACHE.mkdir(parents=True, exist_ok=True)
os.environ["KEOPS_CACHE_FOLDER"] = str(_CACHE)

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import pytest
import scipy
import torch

import sdgpu

RESULTS = Path(__file__).parent / "results.md"


@dataclass
class Report:
    """Rows of the table: question, our time, their time, ratio, target."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)


REPORT = Report()


@pytest.fixture(scope="session")
def device() -> str:
    """Device of the run: the CPU, or what SDGPU_BENCH_DEVICE says."""
    return os.environ.get("SDGPU_BENCH_DEVICE", "cpu")


@pytest.fixture
def race(benchmark: Any) -> Callable[..., float]:
    """Time two functions in turns and report the ratio of their medians.

    The rival runs as the set-up of every round, so a drift of the machine meets both. A rival that is
    only sampled returns the seconds that the whole would take; otherwise its own time counts, times
    `times`.
    """

    def run(
        question: str,
        ours: Callable[[], Any],
        theirs: Callable[[], Any],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        times: float = 1.0,
        rounds: int = 7,
    ) -> float:
        spent: list[float] = []

        def rival() -> None:
            start = time.perf_counter()
            extrapolated = theirs()
            own = time.perf_counter() - start
            spent.append(extrapolated if isinstance(extrapolated, float) else own)

        ours()  # warm up: imports, pages, BLAS threads
        theirs()
        benchmark.pedantic(ours, setup=rival, rounds=rounds)
        mine, other = benchmark.stats.stats.median, times * median(spent)
        ratio = mine / other if at_least is None else other / mine
        goal = "" if at_most is None else f"<= {at_most:g}"
        goal = goal if at_least is None else f">= {at_least:g}"
        benchmark.extra_info.update(question=question, rival=other, ratio=ratio)
        REPORT.rows.append((question, seconds(mine), seconds(other), f"{ratio:,.2f}", goal))
        if at_most is not None:
            assert ratio <= at_most, question
        if at_least is not None:
            assert ratio >= at_least, question
        return ratio

    return run


def seconds(value: float) -> str:
    """Write a duration with three digits."""
    return f"{value:,.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def machine(device: str) -> str:
    """One line on where the figures come from."""
    where = platform.processor() or platform.machine()
    if device != "cpu":
        where = torch.cuda.get_device_name(device)
    return (
        f"{where}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, torch {torch.__version__}, sdgpu {sdgpu.__version__}"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not REPORT.rows:
        return
    device = os.environ.get("SDGPU_BENCH_DEVICE", "cpu")
    head = [
        f"Measured with `make bench` on {machine(device)}. Medians of runs taken in turns.",
        "",
        "| question | sdgpu | rival | ratio | target |",
        "|---|---|---|---|---|",
    ]
    rows = [f"| {' | '.join(row)} |" for row in REPORT.rows]
    name = (
        RESULTS if device == "cpu" else RESULTS.with_name(f"results_{device.partition(':')[0]}.md")
    )
    # `make bench` runs every file in a process of its own and collects their rows
    collected = os.environ.get("SDGPU_BENCH_APPEND") and name.exists()
    lines = [*([] if collected else head), *rows, ""]
    terminalreporter.section("ratios")
    terminalreporter.write("\n".join([*head, *rows, ""]))
    with name.open("a" if collected else "w") as file:
        file.write("\n".join(lines))
