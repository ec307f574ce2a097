"""Two runs of the benchmarks: what became slower or faster beyond what the runs scatter by.

A file of ``make bench`` has, for each figure, the seconds of every round and of a calibration of the
moment beside it: machines change their speed. What is compared are minima over rounds, each over the
minimum of its calibrations; a change counts beyond 5 %, and beyond half of what the fastest quarter of the
rounds scatters by. Where that is so wide that a loss of 10 % could hide in it the verdict is "unclear": run
again, alone.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "Change", "compare_benchmarks", "read_benchmarks"]

FORMAT = 1
LEAST = 0.05  # changes that count
WIDE = 0.1  # bound of a change beyond which 10 % are not seen
FEWEST = 3  # rounds


@dataclass(frozen=True)
class Change:
    """One figure in two runs.

    Attributes
    ----------
    question : str
    before, after : float
        Seconds, the smallest of each run; NaN where there are none.
    ratio : float
        After over before, each over its calibration.
    bound : float
        How far from 1 a ratio must be to count.
    verdict : {"same", "slower", "faster", "unclear", "new", "gone"}
    """

    question: str
    before: float
    after: float
    ratio: float
    bound: float
    verdict: str


def read_benchmarks(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Figures by question, of one file or of all in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If a file is no such result, damaged or of another version; names it.
    """
    place = Path(path).expanduser()
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"there are no results of benchmarks at {place}: 'make bench' makes them"
        )
    figures: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            kind, version = fields["kind"], fields["format"]
            if kind != "benchmarks of sdgpu":
                raise ValueError(f"it is of kind {kind!r}")
            if version != FORMAT:
                raise ValueError(f"it has format {version}, this version reads {FORMAT}")
            for figure in fields["figures"]:
                samples = {
                    name: [float(value) for value in figure[name]]
                    for name in ("sdgpu", "calibration")
                }
                if not all(value > 0 for values in samples.values() for value in values):
                    raise ValueError(f"{figure['question']!r} has times that are not > 0")
                figures[str(figure["question"])] = {**figure, **samples}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is no result of benchmarks: {error}") from error
    return figures


def compare_benchmarks(
    before: str | os.PathLike[str], after: str | os.PathLike[str]
) -> list[Change]:
    """Every figure of two runs, slower ones first.

    Parameters
    ----------
    before, after : path
        Files or folders that ``make bench`` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_benchmarks`, and if the runs have no figure in common.
    """
    old, new = read_benchmarks(before), read_benchmarks(after)
    if not old.keys() & new.keys():
        raise ValueError(f"{before} and {after} have no figure in common")
    changes = [
        _change(question, old.get(question), new.get(question)) for question in {**old, **new}
    ]
    order = ("slower", "unclear", "faster", "new", "gone", "same")
    return sorted(changes, key=lambda change: (order.index(change.verdict), -abs(change.ratio - 1)))


def _change(question: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> Change:
    times = (_least(old, "sdgpu"), _least(new, "sdgpu"))
    if old is None or new is None:
        return Change(question, *times, math.nan, math.nan, "new" if old is None else "gone")
    rounds = [min(len(figure[name]) for name in ("sdgpu", "calibration")) for figure in (old, new)]
    if min(rounds) < FEWEST:
        return Change(question, *times, math.nan, math.nan, "unclear")
    clocks = [_least(figure, "calibration") for figure in (old, new)]
    ratio = (times[1] / clocks[1]) / (times[0] / clocks[0])
    scatter = max(
        _scatter(figure[name]) for figure in (old, new) for name in ("sdgpu", "calibration")
    )
    bound = max(LEAST, scatter / 2)
    if bound > WIDE:
        clear = ratio > 1 + 2 * bound or ratio < 1 / (1 + 2 * bound)
        verdict = ("slower" if ratio > 1 else "faster") if clear else "unclear"
    elif ratio > 1 + bound:
        verdict = "slower"
    else:
        verdict = "faster" if ratio < 1 / (1 + bound) else "same"
    return Change(question, *times, ratio, bound, verdict)


def _least(figure: dict[str, Any] | None, name: str) -> float:
    return min(figure[name], default=math.nan) if figure else math.nan


def _scatter(values: list[float]) -> float:
    """How far above the least the fastest quarter of the rounds reaches, relative to it."""
    ordered = sorted(values)
    return ordered[max(1, (len(ordered) - 1) // 4)] / ordered[0] - 1
