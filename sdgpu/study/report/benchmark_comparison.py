"""Two states of the code by their benchmarks: what became slower or faster beyond what runs scatter by.

A file of ``make bench`` has, for each figure, the seconds of every round and of a calibration of the
moment beside it: machines change their speed. What is compared are the rounds in one thread, as threads
that wait for each other scatter far more; all rounds where there are none of those. Of the rounds the
first quartile is taken, over that of the calibrations. One process may be 10 % slower than the next in the
same work where memory bounds it, by where its pages lie: where a folder has several runs in folders of
their own it is the mean over these. A change counts beyond 5 %, beyond half of what the fastest quarter of
the rounds scatters by, and beyond two standard errors of these means. Where that is so wide that a loss of
10 % could hide in it the verdict is "unclear": run again, alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median, stdev
from typing import Any, NamedTuple

__all__ = ["FORMAT", "Change", "compare_benchmarks", "read_benchmarks"]

FORMAT = 1
LEAST = 0.05  # changes that count
WIDE = 0.1  # bound of a change beyond which 10 % are not seen
FEWEST = 3  # rounds


class Rounds(NamedTuple):
    """Seconds of every round of a figure in one run, and of the calibrations beside them."""

    sdgpu: list[float]
    calibration: list[float]


@dataclass(frozen=True)
class Change:
    """One figure before and after.

    Attributes
    ----------
    question : str
    before, after : float
        Seconds, the first quartile of the rounds, the median of several runs; NaN where there are none.
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


def read_benchmarks(path: str | os.PathLike[str]) -> dict[str, list[Rounds]]:
    """Runs of each figure, by its question.

    Parameters
    ----------
    path : path
        A file, a folder of files, or a folder whose folders are runs.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If a file is no such result, damaged or of another version; names it.
    """
    place = Path(path).expanduser()
    files = sorted(place.glob("*.json")) or sorted(place.glob("*/*.json"))
    files = files if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"there are no results of benchmarks at {place}: 'make bench' makes them"
        )
    figures: dict[str, list[Rounds]] = {}
    for file in files:
        try:
            for question, rounds in _read(json.loads(file.read_text(encoding="utf-8"))):
                figures.setdefault(question, []).append(rounds)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} is no result of benchmarks: {error}") from error
    return figures


def _read(fields: Any) -> Iterator[tuple[str, Rounds]]:
    kind, version = fields["kind"], fields["format"]
    if kind != "benchmarks of sdgpu":
        raise ValueError(f"it is of kind {kind!r}")
    if version != FORMAT:
        raise ValueError(f"it has format {version}, this version reads {FORMAT}")
    for figure in fields["figures"]:
        alone = figure.get("one_thread") or {}
        samples = alone if alone.get("sdgpu") else figure
        rounds = Rounds(*([float(value) for value in samples[name]] for name in Rounds._fields))
        if not all(value > 0 for values in rounds for value in values):
            raise ValueError(f"{figure['question']!r} has times that are not > 0")
        yield str(figure["question"]), rounds


def compare_benchmarks(
    before: str | os.PathLike[str], after: str | os.PathLike[str]
) -> list[Change]:
    """Every figure before and after, slower ones first.

    Parameters
    ----------
    before, after : path
        Files or folders that ``make bench`` wrote, or folders of such folders: several runs.

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


def _change(question: str, old: list[Rounds] | None, new: list[Rounds] | None) -> Change:
    times = (_seconds(old), _seconds(new))
    if old is None or new is None:
        return Change(question, *times, math.nan, math.nan, "new" if old is None else "gone")
    if min(len(values) for run in (*old, *new) for values in run) < FEWEST:
        return Change(question, *times, math.nan, math.nan, "unclear")
    before, after = (
        [_quartile(r.sdgpu) / _quartile(r.calibration) for r in runs] for runs in (old, new)
    )
    ratio = geometric_mean(after) / geometric_mean(before)
    bound = max(LEAST, *(_scatter(runs) / 2 for runs in (old, new)))
    bound = max(bound, 2 * math.hypot(_standard_error(before), _standard_error(after)))
    if bound > WIDE:
        clear = ratio > 1 + 2 * bound or ratio < 1 / (1 + 2 * bound)
        verdict = ("slower" if ratio > 1 else "faster") if clear else "unclear"
    elif ratio > 1 + bound:
        verdict = "slower"
    else:
        verdict = "faster" if ratio < 1 / (1 + bound) else "same"
    return Change(question, *times, ratio, bound, verdict)


def _seconds(runs: list[Rounds] | None) -> float:
    return median(_quartile(run.sdgpu) for run in runs) if runs else math.nan


def _quartile(values: list[float]) -> float:
    """The first: steadier than the least, which one lucky round decides, untouched by a disturbed half."""
    return sorted(values)[(len(values) - 1) // 4] if values else math.nan


def _scatter(runs: list[Rounds]) -> float:
    """How far above the least the fastest quarter of the rounds reaches, relative to it."""
    reaches = []
    for values in (values for run in runs for values in run):
        ordered = sorted(values)
        reaches.append(ordered[max(1, (len(ordered) - 1) // 4)] / ordered[0] - 1)
    return median(reaches) if len(runs) > 1 else max(reaches)


def _standard_error(paces: list[float]) -> float:
    """Of the mean of the logarithms; nothing is known of it from one run."""
    if len(paces) < 2:
        return 0.0
    return stdev(map(math.log, paces)) / len(paces) ** 0.5
