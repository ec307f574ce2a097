"""The folder of an experiment: what it holds, whose that is, and what may be removed.

It holds ``experiment.json`` (everything that decides the numbers), ``chains`` (the scores of each finished
chain), ``fits`` (a checkpoint for each training), and in the end ``results.nc``, ``results.csv`` and
``figure5.png``. Each chain says which experiment, images, seed and weight it belongs to, and none is taken
for another's. Files that an experiment does not make are never touched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from sdgpu.backend.datafiles import write_dataset
from sdgpu.backend.distributed import World
from sdgpu.backend.sealed_json import read_json, write_json
from sdgpu.backend.storage import LOCK, clean_folder, clean_leftovers, folder_lock, write_file
from sdgpu.nn import Chain, Data
from sdgpu.nn.chain_records import rule_name
from sdgpu.nn.training_files import difference, digest
from sdgpu.study.networks.experiments import Experiment

__all__ = ["ExperimentFolder", "Rows", "read_chain", "read_experiment"]

Rows = list[dict[str, Any]]
KIND = "experiment of sdgpu"
RESULTS = ("results.nc", "results.csv", "figure5.png")
COLUMNS = {
    *("seed", "rule", "step", "alpha", "estimate", "fits", "seconds", "path", "member"),
    *(f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("loss", "accuracy")),
}
_FIT_FILES = re.compile(
    r"checkpoint\.pt|config\.json|log\.csv|chain\.json|events\.out\.tfevents\..*"
)
_CHAINS = "seed-*-alpha-*.json"
_ELSEWHERE = "name another folder, or start afresh (resume=False, or --fresh)"


@dataclass(frozen=True, eq=False)
class ExperimentFolder:
    """The folder of an experiment; only the first process touches it.

    Attributes
    ----------
    folder : Path
    experiment : Experiment
    data : Data
    world : World
    first_teacher : str or None
        Checksum of whom step 1 learns from, where it is no ordinary fit: another one is another experiment.
    """

    folder: Path
    experiment: Experiment
    data: Data
    world: World
    first_teacher: str | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder and hold it against other experiments.

        Raises
        ------
        BlockingIOError
            If another process holds it.
        OSError
            If it cannot be written.
        ValueError
            If it is a file.
        """
        with ExitStack() as stack:

            def hold() -> None:
                if self.folder.exists() and not self.folder.is_dir():
                    raise ValueError(f"folder={str(self.folder)!r} is a file: name a folder")
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder_lock(self.folder, "experiment"))
                for place in ("chains", "fits"):
                    for root, _, _ in os.walk(self.folder / place):
                        clean_folder(root)

            self._on_first_rank(hold)
            yield

    def open(self, *, resume: bool) -> dict[tuple[int, str], Rows]:
        """Check that the folder belongs to this experiment, or clear it without `resume`.

        Returns
        -------
        dict
            The rows of finished chains by seed and rule, of as many steps as are asked for.

        Raises
        ------
        ValueError
            Names the file: of another experiment, damaged, or not of ours; and results whose chains are
            gone.
        """

        def prepare() -> bytes:
            self._prepare(resume=resume)
            finished = self._finished_chains()
            self._write_experiment()
            return json.dumps(list(finished.items())).encode()

        encoded = self._on_first_rank(prepare)
        return {(seed, rule): rows for (seed, rule), rows in json.loads(encoded or b"[]")}

    def keep(self, chain: Chain) -> Rows:
        """Write a finished chain, and return its rows."""
        rows = chain.rows()

        def write() -> None:
            # by places within the folder, which may be moved
            relative_rows = [row | {"path": self._inside(row["path"])} for row in rows]
            fields = {"owner": self._owner(chain.seed, chain.rule), "rows": relative_rows}
            write_json(_chain(self.folder, chain.seed, chain.rule), fields)

        self._on_first_rank(write)
        return rows

    def results(self, rows: Rows, dataset: xr.Dataset) -> None:
        """Write the tables."""

        def both() -> None:
            text = pd.DataFrame(rows).to_csv(index=False)
            write_file(self.folder / "results.csv", text.encode())
            write_dataset(dataset, self.folder / "results.nc")

        self._on_first_rank(both)

    def _on_first_rank(self, action: Callable[[], bytes | None]) -> bytes | None:
        return self.world.first(action, self.data.train.device)

    def _prepare(self, *, resume: bool) -> None:
        """Refuse a folder of something else, or clear it."""
        experiment_file = self.folder / "experiment.json"
        if experiment_file.exists():
            if not resume:
                _clear(self.folder)
            elif self._has_fits():
                self._check(experiment_file)
            else:
                read_experiment(self.folder)  # one of ours that came to nothing may be corrected
        else:
            chains = [] if resume else sorted((self.folder / "chains").glob(_CHAINS))
            for path in (*(self.folder / name for name in RESULTS), *chains):
                if path.exists():
                    raise ValueError(
                        f"{path} would be replaced, but no experiment.json says that it is of an "
                        "experiment: name another folder, or move the file away"
                    )

    def _write_experiment(self) -> None:
        (self.folder / "chains").mkdir(exist_ok=True)
        train = self.data.train
        images = {
            "classes": train.classes,
            "channels": int(train.shape[0]),
            "mean": train.mean,
            "std": train.std,
        }
        fields = {
            "kind": KIND,
            "experiment": json.loads(self.experiment.to_json()),
            "data": self._binding["images"],
            "images": images,
        }
        if self.first_teacher is not None:
            fields["first_teacher"] = self.first_teacher
        write_json(self.folder / "experiment.json", fields)

    def _has_fits(self) -> bool:
        """Whether there is anything to lose.

        Raises
        ------
        ValueError
            If there are results, but neither the chains nor the fits that they came from.
        """
        chains, fits = self.folder / "chains", self.folder / "fits"
        if any(chains.glob("*.json")) or any(fits.rglob("checkpoint.pt")):
            return True
        for name in RESULTS[:2]:
            if (self.folder / name).exists():
                raise ValueError(
                    f"{self.folder / name} would be replaced, but the chains that it came from are gone "
                    f"from {chains}: bring them back, {_ELSEWHERE}"
                )
        return False

    def _check(self, path: Path) -> None:
        fields = read_experiment(self.folder)
        try:
            binding = Experiment.from_json(json.dumps(fields["experiment"])).binding()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is of another version ({error}): {_ELSEWHERE}") from error
        binding["images"] = fields["data"]
        if "first_teacher" in fields:
            binding["first_teacher"] = fields["first_teacher"]
        if binding != self._binding:
            detail = difference(binding, self._binding)
            raise ValueError(f"{self.folder} holds another experiment{detail}: {_ELSEWHERE}")

    def _finished_chains(self) -> dict[tuple[int, str], Rows]:
        finished = {}
        for seed in self.experiment.seeds:
            for rule in self.experiment.rules:
                name = rule_name(rule)
                if not _chain(self.folder, seed, name).exists():
                    continue
                rows = read_chain(self.folder, seed, name, owner=self._owner(seed, name))
                if len(rows) >= self.experiment.steps:  # a chain is the beginning of longer ones
                    finished[seed, name] = rows[: self.experiment.steps]
        return finished

    @cached_property
    def _binding(self) -> dict[str, Any]:
        """What every chain in the folder shares, down to the bytes of the images."""
        parts = [
            part for part in (self.data.train, self.data.val, self.data.test) if part is not None
        ]
        images = digest(*(tensor for part in parts for tensor in part.contents()))
        told = {} if self.first_teacher is None else {"first_teacher": self.first_teacher}
        return self.experiment.binding() | {"images": images} | told

    def _owner(self, seed: int, rule: str) -> dict[str, Any]:
        return self._binding | {"seed": seed, "rule": rule}

    def _inside(self, path: str | None) -> str | None:
        return None if path is None else Path(os.path.relpath(path, self.folder)).as_posix()


def read_experiment(folder: Path) -> dict[str, Any]:
    """Read ``experiment.json``: "experiment", the checksum of its "data", and the shape of its "images".

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged or something else.
    """
    path = folder / "experiment.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no experiment in {folder}: {path.name} is missing")
    try:
        fields = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}: it stays; name another folder, or remove the file") from error
    if fields.get("kind") != KIND:
        raise ValueError(f"{path} is of something else than an experiment: name another folder")
    return fields


def read_chain(folder: Path, seed: int, rule: str, *, owner: dict[str, Any] | None = None) -> Rows:
    """Rows of a finished chain, with paths from here.

    Raises
    ------
    FileNotFoundError
        If it is not there.
    ValueError
        If the file is damaged or, with `owner`, belongs to another experiment; names it.
    """
    path = _chain(folder, seed, rule)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no chain of seed {seed} and alpha {rule} in {path.parent}"
        )
    remedy = "bring back the right file, or remove it to make the chain again from its fits"
    try:
        fields = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from error
    rows = fields.get("rows")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() >= COLUMNS and row["step"] == step
        for step, row in enumerate(rows, start=1)
    ):
        raise ValueError(f"{path} holds no rows of a chain: {remedy}")
    if owner is not None and fields.get("owner") != owner:
        raise ValueError(
            f"{path} belongs to another experiment{difference(fields.get('owner'), owner)}: {remedy}"
        )
    for row in rows:
        if row["path"] is not None:
            row["path"] = str(folder / row["path"])
    return rows


def _chain(folder: Path, seed: int, rule: str) -> Path:
    return folder / "chains" / f"seed-{seed}-alpha-{rule}.json"


def _clear(folder: Path) -> None:
    """Remove what an experiment made, and ``experiment.json``, which says that it is one, at last.

    Raises
    ------
    ValueError
        If ``experiment.json`` is not one of ours.
    """
    read_experiment(folder)
    for path in (folder / "chains").glob(_CHAINS):
        path.unlink()
    for root in (folder / "fits").glob("seed-*"):
        for place, _, names in os.walk(root, topdown=False):
            for name in names:
                path = Path(place, name)
                clean_leftovers(path)
                if name == LOCK or _FIT_FILES.fullmatch(name):
                    path.unlink(missing_ok=True)
            with suppress(OSError):  # something else is in there
                os.rmdir(place)
    for place in ("chains", "fits"):
        with suppress(OSError):
            (folder / place).rmdir()
    for name in (*RESULTS, "experiment.json"):
        (folder / name).unlink(missing_ok=True)
