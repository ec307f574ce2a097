"""The paper's experiment with networks (Section 5): many chains in one folder, as one dataset.

The folder holds ``experiment.json`` (everything that decides the numbers), ``fits`` (a checkpoint for
each training), ``chains`` (the scores of each finished chain), and at the end ``results.nc`` and
``results.csv``. A run that was cut off goes on: finished chains are read, unfinished ones resume in the
middle of an epoch. Seeds, weights and steps may be added to a folder later.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from sdgpu.datafiles import read_dataset
from sdgpu.device.storage import write_file
from sdgpu.device.timing import Event, Progress
from sdgpu.nn import Chain, Data, grid_chains
from sdgpu.nn.chain import rule_name
from sdgpu.nn.images import find_device
from sdgpu.nn.parallel import World, join
from sdgpu.nn.store import digest
from sdgpu.study.experiments import Experiment
from sdgpu.sweep import write_dataset

__all__ = ["experiment_dataset", "open_experiment", "run_experiment"]

PARTS = {"train": "train", "val": "validation", "test": "test"}
Rows = list[dict[str, Any]]


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    *,
    data_folder: str | Path | None = None,
    device: str = "auto",
    stacked: bool = False,
    progress: Progress | None = None,
    resume: bool = True,
) -> xr.Dataset:
    """Train all chains of an experiment, or those that its folder lacks.

    Parameters
    ----------
    experiment : Experiment
    folder : path
        Made if it is missing. Takes a checkpoint for every fit: 1.1 MB each for ResNet-20, 94 MB for
        ResNet-50. ``fits`` may be removed once its chains are finished.
    data_folder : path, optional
        Where the files of CIFAR are; by default ``data``.
    device : str, default "auto"
        "auto": CUDA if there is one; under ``torchrun`` one for each process.
    stacked : bool, default False
        Train the chains with given weights side by side (:mod:`sdgpu.nn.stacked`): equal within
        rounding, and faster where a small network leaves a GPU idle.
    progress : callable, optional
        Hears :class:`~sdgpu.device.timing.Event` "all fits", in batches of the whole run with the time
        left, and the stage of the fit in progress.
    resume : bool, default True
        False removes what the folder holds of an earlier run, whatever experiment that was.

    Returns
    -------
    Dataset
        See :func:`experiment_dataset`. Cost: `experiment.fits` for every rule and seed, and one more for
        each seed; models of one chain in memory at a time.

    Raises
    ------
    FileNotFoundError
        If the images are not there; the message says where to put them.
    TypeError, ValueError
        Before any fit: a folder with another experiment (the message names the field), stacked=True with
        a teacher that is not cached, and see :func:`~sdgpu.nn.grid_chains`.
    FloatingPointError, OSError
        As :func:`~sdgpu.nn.train`; what was finished stays.
    """
    if stacked and experiment.config.teacher != "cached":
        raise ValueError(f"stacked=True needs teacher='cached', not {experiment.config.teacher!r}")
    target = _own_device(device)
    with _threads(experiment.threads):
        data = experiment.load(data_folder, target)
        world = join(target)
        archive = _Archive(Path(folder), experiment, data, world)
        archive.open(resume)
        found = archive.finished()
        world.barrier()  # all have read before anyone writes
        pending = _pending(experiment, found, stacked)
        meter = _Meter(progress, sum(work.fits for work in pending))
        for work in pending:
            for chain in _train(work, experiment, data, archive.folder / "fits", stacked, meter):
                archive.keep(chain)
                found[chain.seed, chain.rule] = chain.rows()
        rows = [
            row
            for seed in experiment.seeds
            for rule in experiment.rules
            for row in found[seed, rule_name(rule)]
        ]
        dataset = experiment_dataset(experiment, rows)
        archive.results(rows, dataset)
    return dataset


def experiment_dataset(experiment: Experiment, rows: Sequence[dict[str, Any]]) -> xr.Dataset:
    """Lay the rows of chains (:meth:`~sdgpu.nn.Chain.rows`) out over seed, rule and step.

    Parameters
    ----------
    experiment : Experiment
    rows : sequence of dict
        Of every seed, rule and step, in any order.

    Returns
    -------
    Dataset
        Over (seed, rule, step), rules "0.0", "0.2", .., "algorithm1": {train, validation, test}_accuracy
        and _loss (mean 1/2 ||f - y||^2 on clean images), alpha (NaN at step 1), estimate (alpha-hat
        before clipping, NaN but for Algorithm 1), fits, seconds (of training). Coordinate `weight` (rule):
        the weight as a number, NaN for Algorithm 1. Attributes over all seeds: algorithm1_fits and
        grid_fits, what Algorithm 1 and all given weights cost with step 1, algorithm1_seconds and
        grid_seconds; `experiment`, as JSON. Step 1 is one network, and shown for every rule.

    Raises
    ------
    KeyError
        If a row is missing.
    """
    rules = [rule_name(rule) for rule in experiment.rules]
    steps = range(1, experiment.steps + 1)
    table = {(row["seed"], row["rule"], row["step"]): row for row in rows}
    names = {f"{part}_{kind}": f"{full}_{kind}" for part, full in PARTS.items()
             for kind in ("accuracy", "loss")}  # fmt: skip
    names |= {name: name for name in ("alpha", "estimate", "fits", "seconds")}
    variables = {}
    for name, shown in names.items():
        values = np.array(
            [[[table[seed, rule, step][name] for step in steps] for rule in rules]
             for seed in experiment.seeds],
            dtype=float,
        )  # fmt: skip
        variables[shown] = (("seed", "rule", "step"), values)
    weights = [math.nan if isinstance(rule, str) else rule for rule in experiment.rules]
    dataset = xr.Dataset(
        variables,
        coords={
            "seed": list(experiment.seeds),
            "rule": rules,
            "step": list(steps),
            "weight": ("rule", weights),
        },
        attrs={"experiment": experiment.to_json()},
    )
    for what in ("fits", "seconds"):
        first, later = dataset[what].isel(step=0), dataset[what].isel(step=slice(1, None))
        shared = float(first.isel(rule=0).sum())
        greedy = dataset["rule"] == "algorithm1"
        for name, chosen in (("algorithm1", greedy), ("grid", ~greedy)):
            if bool(chosen.any()):
                dataset.attrs[f"{name}_{what}"] = shared + float(later.sel(rule=chosen).sum())
    return dataset


def open_experiment(folder: str | Path) -> xr.Dataset:
    """Read the results that :func:`run_experiment` left in a folder.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If the file is damaged, or not one that :func:`run_experiment` writes.
    """
    path = Path(folder) / "results.nc"
    if not path.is_file():
        raise FileNotFoundError(f"there are no results in {folder}: {path.name} is missing")
    return read_dataset(path)


@dataclass(frozen=True)
class _Work:
    """Rules of one seed that are trained in one call, and the fits that takes at most."""

    seed: int
    rules: tuple[float | str, ...]
    fits: int


def _pending(experiment: Experiment, found: dict[Any, Rows], stacked: bool) -> list[_Work]:
    """What is to be trained: one chain after the other, or all given weights at once."""
    pending = []
    for seed in experiment.seeds:
        groups: list[tuple[float | str, ...]] = [(rule,) for rule in experiment.rules]
        if stacked and experiment.alphas:
            groups = [experiment.alphas, *((("algorithm1",),) if experiment.algorithm1 else ())]
        first = 1  # network of the seed
        for rules in groups:
            if all((seed, rule_name(rule)) in found for rule in rules):
                continue
            each = [experiment.fits(rule) for rule in rules]
            if stacked and rules == experiment.alphas:
                each = [experiment.steps - 1] * len(rules)  # a stack trains a weight of 1 too
            pending.append(_Work(seed, rules, first + sum(each)))
            first = 0
    return pending


def _train(
    work: _Work, experiment: Experiment, data: Data, folder: Path, stacked: bool, meter: _Meter
) -> tuple[Chain, ...]:
    """Chains of one call; the seed's first network comes from its checkpoint after the first call."""
    label = "" if len(work.rules) > 1 else f", {_title(work.rules[0])}"
    chains = grid_chains(
        experiment.network(data, work.seed),
        data,
        experiment.config.replace(work.seed),
        steps=experiment.steps,
        alphas=work.rules,
        clip=experiment.clip,
        stacked=stacked,
        folder=folder,
        progress=meter.listen(f"seed {work.seed}{label}", len(work.rules)),
    )
    meter.finish(work.fits)
    return chains


def _title(rule: float | str) -> str:
    return "Algorithm 1" if isinstance(rule, str) else f"alpha {rule:g}"


@dataclass
class _Meter:
    """The progress of a whole run, told from that of its fits, which all have as many batches."""

    hook: Progress | None
    total: int
    before: int = 0  # fits of the calls that have returned
    trained: int = 0  # batches of this run, for the time left: what was read took none
    started: float = field(default_factory=time.perf_counter)

    def listen(self, label: str, members: int) -> Progress | None:
        """Give the hook for one call; a stage of a stack is as many fits as it has members."""
        if self.hook is None:
            return None
        seen: dict[str, int] = {}  # batches by stage

        def hear(event: Event) -> None:
            assert self.hook is not None
            size = members if event.stage.startswith("stack") else 1
            fits = sum(members if name.startswith("stack") else 1 for name in seen)
            if event.stage in seen:
                fits -= size
                self.trained += size * (event.done - seen[event.stage])
            seen[event.stage] = event.done
            done = (self.before + fits) * event.total + size * event.done
            everything = self.total * event.total
            spent = time.perf_counter() - self.started
            left = spent / self.trained * (everything - done) if self.trained else math.nan
            self.hook(Event("all fits", done, everything, seconds_left=left))
            self.hook(event._replace(stage=f"{label}, {event.stage}"))

        return hear

    def finish(self, fits: int) -> None:
        """Count a call that has returned, whatever it could skip."""
        self.before += fits


@dataclass(frozen=True, eq=False)
class _Archive:
    """The folder of an experiment; only the first process writes."""

    folder: Path
    experiment: Experiment
    data: Data
    world: World

    def open(self, resume: bool) -> None:
        """Make the folder, or check that what it holds belongs to this experiment."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder={str(self.folder)!r} is a file: name a folder")
        parts = (self.data.train, self.data.val, self.data.test)
        mine = digest(
            *(t for part in parts if part is not None for t in (part.pixels, part.labels))
        )
        stored = self.folder / "experiment.json"
        if resume and stored.is_file() and self._begun():
            self._check(stored, mine)
        elif stored.is_file():
            self._clear()
        self.world.barrier()

        def prepare() -> None:
            (self.folder / "chains").mkdir(parents=True, exist_ok=True)
            fields = {"experiment": json.loads(self.experiment.to_json()), "data": mine}
            write_file(stored, (json.dumps(fields, indent=2) + "\n").encode())

        self._first(prepare)

    def _begun(self) -> bool:
        """Whether there is anything to lose: a run that failed at once may be corrected and repeated."""
        chains, fits = self.folder / "chains", self.folder / "fits"
        return any(chains.glob("*.json")) or any(fits.rglob("checkpoint.pt"))

    def _check(self, stored: Path, mine: str) -> None:
        try:
            fields = json.loads(stored.read_text())
            theirs = Experiment.from_json(json.dumps(fields["experiment"])).binding()
            theirs["images"] = fields["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{stored} cannot be read ({error}): name another folder, or start afresh "
                "(resume=False, or --fresh)"
            ) from error
        own = self.experiment.binding() | {"images": mine}
        for name in sorted({*theirs, *own}):
            if theirs.get(name) != own.get(name):
                there, here = (str(side.get(name))[:24] for side in (theirs, own))
                raise ValueError(
                    f"{self.folder} holds another experiment ({name}: {there} there, {here} here): "
                    "name another folder, or start afresh (resume=False, or --fresh)"
                )

    def _clear(self) -> None:
        """Remove an experiment: ``experiment.json``, which says that the rest is one, at last."""
        if self.world.rank == 0:
            for name in ("fits", "chains"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in ("results.nc", "results.csv", "experiment.json"):
                (self.folder / name).unlink(missing_ok=True)

    def finished(self) -> dict[tuple[int, str], Rows]:
        """Rows of the chains that are there with as many steps as are asked for, by seed and rule."""
        found = {}
        for seed in self.experiment.seeds:
            for rule in self.experiment.rules:
                name = rule_name(rule)
                path = self._chain(seed, name)
                if path.is_file():
                    rows = json.loads(path.read_text())
                    if len(rows) == self.experiment.steps:
                        found[seed, name] = rows
        return found

    def keep(self, chain: Chain) -> None:
        """Write a finished chain."""
        text = json.dumps(chain.rows(), indent=2) + "\n"
        self._first(lambda: write_file(self._chain(chain.seed, chain.rule), text.encode()))

    def results(self, rows: Rows, dataset: xr.Dataset) -> None:
        """Write the tables."""

        def both() -> None:
            write_file(self.folder / "results.csv", pd.DataFrame(rows).to_csv(index=False).encode())
            write_dataset(dataset, self.folder / "results.nc")

        self._first(both)

    def _first(self, action: Callable[[], None]) -> None:
        self.world.first(action, self.data.train.pixels.device)

    def _chain(self, seed: int, rule: str) -> Path:
        return self.folder / "chains" / f"seed-{seed}-alpha-{rule}.json"


def _own_device(device: str) -> torch.device:
    """The device of this process: ``torchrun`` numbers those of one machine."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(local))
        return torch.device("cuda", int(local))
    return find_device(device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's threads on the CPU, and back to what they were."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
