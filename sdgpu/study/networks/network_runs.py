"""The paper's experiment with networks (Section 5): many chains in one folder, as one dataset.

The folder (:mod:`~sdgpu.study.networks.experiment_folder`) holds ``experiment.json`` (what decides the
numbers), ``fits`` (a checkpoint for each training), ``chains`` (the scores of each finished chain), and at
the end ``results.nc`` and ``results.csv``. A run that was cut off goes on: finished chains are read,
unfinished ones resume in the middle of an epoch. Seeds, weights and steps may be added to a folder later.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from sdgpu.backend.checks import integer
from sdgpu.backend.datafiles import read_dataset
from sdgpu.backend.distributed import join
from sdgpu.backend.progress import Event, Progress
from sdgpu.nn import Chain, Data, Teacher, grid_chains, load_weights, make_model
from sdgpu.nn.chain import FirstTeacher
from sdgpu.nn.chain_records import rule_name
from sdgpu.nn.images import find_device
from sdgpu.nn.listening import OnEpoch
from sdgpu.study.networks.experiment_folder import (
    ExperimentFolder,
    Rows,
    read_chain,
    read_experiment,
)
from sdgpu.study.networks.experiments import Experiment

__all__ = ["experiment_dataset", "open_experiment", "open_network", "run_experiment"]

PARTS = {"train": "train", "val": "validation", "test": "test"}


def run_experiment(
    experiment: Experiment,
    folder: str | Path,
    *,
    data_folder: str | Path | None = None,
    device: str = "auto",
    stacked: bool = False,
    progress: Progress | None = None,
    resume: bool = True,
    first_teacher: FirstTeacher | None = None,
    rank_timeout: float | None = None,
    on_epoch: OnEpoch | None = None,
) -> xr.Dataset:
    """Train all chains of an experiment, or those that its folder lacks.

    Parameters
    ----------
    experiment : Experiment
    folder : path
        Made if it is missing, and held against other runs. Under several processes the first one alone
        reads and writes it. Takes a checkpoint for every fit: 1.1 MB each for ResNet-20, 94 MB for
        ResNet-50. ``fits`` may be removed once its chains are finished.
    data_folder : path, optional
        Where the files of CIFAR are, by default ``data``; or those of MNIST.
    device : str, default "auto"
        "auto": CUDA if there is one; under ``torchrun`` one for each process.
    stacked : bool, default False
        Train the chains with given weights side by side (:mod:`sdgpu.nn.stacked`): equal within
        rounding, and faster where a small network leaves a GPU idle.
    progress : callable, optional
        Hears :class:`~sdgpu.backend.progress.Event` "all fits", in batches of the whole run with the time
        left, and the stage of the fit in progress.
    resume : bool, default True
        False removes what the folder holds of an earlier run, whatever experiment that was, and nothing
        that an experiment does not make.
    first_teacher : Module, SavedTeacher or TeacherEnsemble, optional
        Whom step 1 of every chain learns from, see :func:`~sdgpu.nn.distill_chain`; its rows are those of
        `experiment.load(data_folder).train`. The folder is of this teacher then.
    rank_timeout : float, optional
        Seconds that processes wait for each other, :func:`~sdgpu.backend.distributed.join`.
    on_epoch : callable, optional
        Hears every :class:`~sdgpu.nn.Epoch` of every fit, and may end that fit, see
        :func:`~sdgpu.nn.distill_chain`; the folder does not know what it answered.

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
        Before any fit: a folder with another experiment (the message names the field), a file in it that
        is damaged or of something else (the message names the file), stacked=True with a teacher that is
        not cached, and see :func:`~sdgpu.nn.grid_chains`.
    FloatingPointError, OSError
        As :func:`~sdgpu.nn.train`; what was finished stays. BlockingIOError if another run holds the
        folder.
    """
    if stacked and experiment.config.teacher != "cached":
        raise ValueError(f"stacked=True needs teacher='cached', not {experiment.config.teacher!r}")
    torch_device = _own_device(device)
    with _threads(experiment.threads):
        world = join(torch_device, rank_timeout)
        with world.ending_together(torch_device):
            data = experiment.load(data_folder, torch_device)
            identity = None if first_teacher is None else Teacher(first_teacher, 0.0).identity()
            archive = ExperimentFolder(Path(folder), experiment, data, world, identity)
            with archive.lock():
                finished = archive.open(resume=resume)
                fits = archive.folder / "fits"
                train = _ChainWork(experiment, data, fits, first_teacher, on_epoch)
                pending = train.pending(finished, stacked=stacked)
                meter = _Meter(progress, sum(work.fits for work in pending))
                for work in pending:
                    for chain in train.chains(work, stacked=stacked, meter=meter):
                        finished[chain.seed, chain.rule] = archive.keep(chain)
                rows = [
                    row
                    for seed in experiment.seeds
                    for rule in experiment.rules
                    for row in finished[seed, rule_name(rule)]
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
        before clipping, NaN but for Algorithm 1), fits, seconds (of training); with label noise
        {train, validation}_clean_accuracy, against the labels as they were. Coordinate `weight` (rule):
        the weight as a number, NaN for Algorithm 1. Attributes over all seeds: algorithm1_fits and
        grid_fits, what Algorithm 1 and all given weights cost with step 1, algorithm1_seconds and
        grid_seconds; `experiment`, as JSON. Step 1 is one network, and shown for every rule; with a
        `first_teacher`, an attribute then, it is one for each rule and has a weight, and the costs are
        without the ordinary fit that Algorithm 1 compares with.

    Raises
    ------
    KeyError
        If a row is missing.
    """
    rules = [rule_name(rule) for rule in experiment.rules]
    steps = range(1, experiment.steps + 1)
    table = {(row["seed"], row["rule"], row["step"]): row for row in rows}
    names = {
        f"{part}_{kind}": f"{full}_{kind}"
        for part, full in PARTS.items()
        for kind in ("accuracy", "loss", "clean_accuracy")
        if kind != "clean_accuracy" or all(f"{part}_{kind}" in row for row in rows)
    }
    names |= {name: name for name in ("alpha", "estimate", "fits", "seconds")}
    variables = {}
    for name, variable in names.items():
        values = np.array(
            [
                [[table[seed, rule, step][name] for step in steps] for rule in rules]
                for seed in experiment.seeds
            ],
            dtype=float,
        )
        variables[variable] = (("seed", "rule", "step"), values)
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
    told = {str(row["teacher"]) for row in rows if row["step"] == 1 and row.get("teacher")}
    if told:  # step 1 has a weight and is of its own rule
        dataset.attrs["first_teacher"] = " ".join(sorted(told))
    for cost in ("fits", "seconds"):
        first, later = dataset[cost].isel(step=0), dataset[cost].isel(step=slice(1, None))
        if told:
            first, later = xr.zeros_like(first), dataset[cost]
        shared = float(first.isel(rule=0).sum())
        greedy = dataset["rule"] == "algorithm1"
        for name, mask in (("algorithm1", greedy), ("grid", ~greedy)):
            if bool(mask.any()):
                dataset.attrs[f"{name}_{cost}"] = shared + float(later.sel(rule=mask).sum())
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


def open_network(folder: str | Path, *, seed: int, rule: float | str, step: int) -> torch.nn.Module:
    """Make a network that :func:`run_experiment` trained, from the checkpoint in its folder.

    Parameters
    ----------
    folder : path
        Of the experiment.
    seed : int
    rule : float or "algorithm1"
        Of the chain, which is finished: a weight of the experiment, or Algorithm 1.
    step : int
        From 1.

    Returns
    -------
    Module
        On the CPU, in evaluation mode. It takes images normalised as those of `experiment.load`, as
        :func:`~sdgpu.nn.predict` does it.

    Raises
    ------
    FileNotFoundError
        If there is no such chain, or ``fits`` with the weights was removed.
    ValueError
        If a file is damaged or of something else, or the chain has fewer steps.
    """
    folder = Path(folder)
    fields = read_experiment(folder)
    experiment = Experiment.from_json(json.dumps(fields["experiment"]))
    rows = read_chain(folder, integer("seed", seed, 0), rule_name(rule))
    if integer("step", step, 1) > len(rows):
        raise ValueError(f"step={step}, but the chain in {folder} has {len(rows)}")
    row = rows[step - 1]
    if not Path(row["path"]).is_file():
        raise FileNotFoundError(f"the weights are gone: there is no {row['path']}")
    model = make_model(
        experiment.model,
        classes=fields["images"]["classes"],
        channels=fields["images"]["channels"],
        stem=experiment.stem,
    )
    return load_weights(model, row["path"], member=row["member"]).train(False)


@dataclass(frozen=True)
class _Work:
    """Rules of one seed that are trained in one call, and the fits that takes at most."""

    seed: int
    rules: tuple[float | str, ...]
    fits: int


@dataclass(frozen=True, eq=False)
class _ChainWork:
    """What is trained where."""

    experiment: Experiment
    data: Data
    folder: Path
    first_teacher: FirstTeacher | None
    on_epoch: OnEpoch | None

    def pending(self, chains: dict[Any, Rows], *, stacked: bool) -> list[_Work]:
        """What is to be trained: one chain after the other, or all given weights at once."""
        experiment, taught = self.experiment, self.first_teacher is not None
        pending = []
        for seed in experiment.seeds:
            missing = [rule for rule in experiment.rules if (seed, rule_name(rule)) not in chains]
            weights = tuple(rule for rule in missing if not isinstance(rule, str))
            groups: list[tuple[float | str, ...]] = [(rule,) for rule in missing]
            if stacked and weights:
                groups = [weights, *((rule,) for rule in missing if isinstance(rule, str))]
            first = 1  # network of the seed
            for rules in groups:
                fits = [experiment.fits(rule, taught=taught) for rule in rules]
                if stacked and rules == weights:
                    # a stack trains a weight of 1 too
                    fits = [experiment.steps - 1 + taught] * len(rules)
                asked = not taught or any(
                    isinstance(r, str) or (r == 1 and not stacked) for r in rules
                )
                shared = first if asked else 0
                pending.append(_Work(seed, rules, shared + sum(fits)))
                first -= shared
        return pending

    def chains(self, work: _Work, *, stacked: bool, meter: _Meter) -> tuple[Chain, ...]:
        """Chains of one call; the seed's first network comes from its checkpoint after the first call."""
        experiment = self.experiment
        label = "" if len(work.rules) > 1 else f", {_title(work.rules[0])}"
        chains = grid_chains(
            experiment.network(self.data, work.seed),
            self.data,
            experiment.config.replace(work.seed),
            steps=experiment.steps,
            alphas=work.rules,
            clip=experiment.clip,
            stacked=stacked,
            folder=self.folder,
            progress=meter.listen(f"seed {work.seed}{label}", len(work.rules)),
            first_teacher=self.first_teacher,
            on_epoch=self.on_epoch,
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
    fits_done: int = 0  # fits of the calls that have returned
    batches_done: int = 0  # batches of this run, for the time left: what was read took none
    start_time: float = field(default_factory=time.perf_counter)

    def listen(self, label: str, members: int) -> Progress | None:
        """Give the hook for one call; a stage of a stack is as many fits as it has members."""
        if self.hook is None:
            return None
        batches: dict[str, int] = {}  # batches by stage

        def hear(event: Event) -> None:
            assert self.hook is not None
            size = members if event.stage.startswith("stack") else 1
            fits = sum(members if name.startswith("stack") else 1 for name in batches)
            if event.stage in batches:
                fits -= size
                self.batches_done += size * (event.done - batches[event.stage])
            batches[event.stage] = event.done
            done = (self.fits_done + fits) * event.total + size * event.done
            total = self.total * event.total
            elapsed = time.perf_counter() - self.start_time
            seconds_left = (
                elapsed / self.batches_done * (total - done) if self.batches_done else math.nan
            )
            self.hook(Event("all fits", done, total, seconds_left=seconds_left))
            self.hook(event._replace(stage=f"{label}, {event.stage}"))

        return hear

    def finish(self, fits: int) -> None:
        """Count a call that has returned, whatever it could skip."""
        self.fits_done += fits


def _own_device(device: str) -> torch.device:
    """The device of this process, made the current one."""
    torch_device = find_device(device)
    if torch_device.index is not None and torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    return torch_device


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
