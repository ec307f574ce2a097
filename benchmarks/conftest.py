"""Side-by-side timing in one run, and the files of results that the table is made from."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

# KeOps keeps what it compiles inside the build folder
_CACHE = Path(__file__).parent.parent / "build" / "keops-bench"
_CACHE.mkdir(parents=True, exist_ok=True)
os.environ["KEOPS_CACHE_FOLDER"] = str(_CACHE)

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import pytest
import scipy
import torch

import sdgpu
from benchmarks.calibration import calibrate, one_thread_rounds
from benchmarks.tables import HEAD, write_table
from sdgpu.backend.backends import cuda_count
from sdgpu.study.report.benchmark_comparison import FORMAT

FOLDER = Path(os.environ.get("SDGPU_BENCH_RESULTS", Path(__file__).parent / "results"))
MOST_ROUNDS, ENOUGH = 30, 3.0  # of one figure; seconds of both sides that more rounds are for
LONG, FEWEST = (
    8.0,
    3,
)  # without those of minutes (make bench): seconds beyond which rounds are left out


@dataclass
class Report:
    """Rows of the table (question, our time, their time, ratio, target), and the rounds behind them."""

    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    tests: dict[str, tuple[str, str]] = field(default_factory=dict)  # file and test of questions


REPORT = Report()


@pytest.fixture(scope="session")
def device() -> str:
    """Device of the run: the CPU, or what SDGPU_BENCH_DEVICE says."""
    return os.environ.get("SDGPU_BENCH_DEVICE", "cpu")


@pytest.fixture
def race(request: Any, benchmark: Any) -> Callable[..., float]:
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
        clocks: list[float] = []

        def rival() -> None:
            clocks.append(calibrate())
            start = time.perf_counter()
            extrapolated = theirs()
            own = time.perf_counter() - start
            spent.append(extrapolated if isinstance(extrapolated, float) else own)

        ours()  # warm up: imports, pages, BLAS threads
        start = time.perf_counter()
        theirs()
        ours()
        pair = time.perf_counter() - start
        rounds = max(rounds, min(MOST_ROUNDS, int(ENOUGH / pair)))
        if request.config.option.markexpr == "not full":
            rounds = min(rounds, max(FEWEST, int(LONG / pair)))
        benchmark.pedantic(ours, setup=rival, rounds=rounds)
        mine, other = benchmark.stats.stats.median, times * median(spent)
        ratio = mine / other if at_least is None else other / mine
        goal = "" if at_most is None else f"<= {at_most:g}"
        goal = goal if at_least is None else f">= {at_least:g}"
        benchmark.extra_info.update(question=question, rival=other, ratio=ratio)
        REPORT.rows.append((question, seconds(mine), seconds(other), f"{ratio:,.2f}", goal))
        REPORT.figures.append(
            {
                "question": question,
                "sdgpu": list(benchmark.stats.stats.data),
                "rival": spent,
                "calibration": clocks,
                "one_thread": {} if cuda_count() else one_thread_rounds(ours, mine),
            }
        )
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


@pytest.fixture(autouse=True)
def _which_file(request: Any) -> Iterator[None]:
    """Which file and test a row comes from: each file has a file of results of its own."""
    before = len(REPORT.rows)
    yield
    for question, *_ in REPORT.rows[before:]:
        REPORT.tests[question] = (request.module.__name__.rpartition(".")[2], request.node.name)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write the results of the files that were run, and the table of all there are.

    What other tests of a file have measured before stays.
    """
    if not REPORT.rows:
        return
    device = os.environ.get("SDGPU_BENCH_DEVICE", "cpu")
    folder = FOLDER if device == "cpu" else FOLDER.with_name(f"results_{device.partition(':')[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(file for file, _ in REPORT.tests.values()):
        path, now = folder / f"{name}.json", time.strftime("%Y-%m-%d")
        before = json.loads(path.read_text()) if path.exists() else {"rows": [], "figures": []}
        tests = {question: test for question, (file, test) in REPORT.tests.items() if file == name}
        ran = set(tests.values())
        again = [row["test"] in ran or row["cells"][0] in tests for row in before["rows"]]
        rows = [row for row, gone in zip(before["rows"], again, strict=True) if not gone]
        rows += [
            {"test": tests[row[0]], "measured": now, "cells": row}
            for row in REPORT.rows
            if row[0] in tests
        ]
        kept = {row["cells"][0] for row in rows} - set(tests)
        fields = {
            "kind": "benchmarks of sdgpu",
            "format": FORMAT,
            "machine": machine(device),
            "rows": rows,
            "figures": [one for one in before["figures"] if one["question"] in kept]
            + [one for one in REPORT.figures if one["question"] in tests],
        }
        path.write_text(json.dumps(fields, indent=1) + "\n")
    write_table(folder)
    terminalreporter.section("ratios")
    terminalreporter.write(
        "\n".join([*HEAD, *(f"| {' | '.join(row)} |" for row in REPORT.rows), ""])
    )
