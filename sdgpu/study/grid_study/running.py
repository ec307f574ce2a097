"""Running a study: every cell once, in parallel, in a folder that takes up where a run was cut off."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdgpu.backend.checksums import digest
from sdgpu.backend.datafiles import check_target
from sdgpu.backend.environment import versions
from sdgpu.backend.progress import Event, Progress
from sdgpu.backend.sealed_json import plain
from sdgpu.backend.signals import terminable
from sdgpu.engine.cluster_sums import active_client
from sdgpu.study.grid_study.cell_data import load_data
from sdgpu.study.grid_study.cells import Decomposition, decompositions
from sdgpu.study.grid_study.configuration import StudyConfig, read_study
from sdgpu.study.grid_study.network_cells import run_networks
from sdgpu.study.grid_study.study_cost import plan_study
from sdgpu.study.grid_study.study_folder import StudyFolder
from sdgpu.study.grid_study.study_results import RESULTS, StudyResults, collect
from sdgpu.study.grid_study.workers import Outcome, Stamp, crew_of, work_all

__all__ = ["default_folder", "run"]

CODE = ("python", "sdgpu", "numpy", "scipy", "torch", "scikit-learn", "xarray")  # in every record


def default_folder(source: Any) -> Path:
    """The folder of a study beside its file: ``widths.toml`` has ``widths/``."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        return (
            path.with_name(path.name.removesuffix(path.suffix)) if path.suffix else path / "study"
        )
    return Path(read_study(source).name)


def run(
    config: str | os.PathLike[str] | Mapping[str, Any] | StudyConfig,
    folder: str | os.PathLike[str] | None = None,
    *,
    workers: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> StudyResults:
    """Run a study, or what of it is not finished.

    Parameters
    ----------
    config : path, mapping or StudyConfig
        A TOML file, or what one holds (:mod:`sdgpu.study.grid_study.configuration`).
    folder : path, optional
        Beside the file, by its name, by default.
    workers : int, optional
        In place of what ``[compute]`` says; 1 works in this process. A client of dask that is active takes
        the work instead.
    resume : bool, default False
        Refuse a folder that was not begun. Without it too finished cells are kept, failed ones tried again.
    progress : callable, optional
        Called with an :class:`sdgpu.backend.progress.Event`: stage "cells", done, total, seconds left.

    Returns
    -------
    StudyResults
        With .dataset, .records and .failed.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`~sdgpu.study.grid_study.configuration.read_study`; for more fits than ``max_fits``; for a
        folder of another study, or data that have changed.
    BlockingIOError
        If another run holds the folder.

    Notes
    -----
    In a script workers need ``if __name__ == "__main__":`` around this call, as everywhere with processes.
    """
    study = read_study(config if isinstance(config, (Mapping, StudyConfig)) else Path(config))
    if workers is not None:
        compute = study.compute.model_copy(update={"workers": workers})
        study = study.model_copy(update={"compute": compute})
    place = StudyFolder(default_folder(config) if folder is None else Path(folder).expanduser())
    jobs = decompositions(study)
    plan_study(study).check_results()
    if resume and not place.exists:
        raise FileNotFoundError(f"there is no study in {place.folder} to resume: 'run' begins one")
    with terminable(), place.lock():
        check_target(place.folder / RESULTS)  # before the work, not after it
        place.open(study, _checksums(study))
        _run_cells(study, jobs, place, progress)
        run_networks(study, place.folder, progress=progress)
        return collect(study, place)


def _checksums(study: StudyConfig) -> dict[str, str]:
    """Of the data sets that are files or come from a package, as they are read."""
    found = {}
    for table in study.data:
        if not table.is_large:
            data = load_data(table)
            found[table.source] = digest(data.X, data.Y)
            if study.noise.kind == "symmetric" and not data.classes and max(study.noise.levels) > 0:
                raise ValueError(
                    f"data {table.source!r} have no classes: noise of kind 'symmetric' flips labels, use "
                    "'gaussian'"
                )
    return found


def _run_cells(
    study: StudyConfig, jobs: Sequence[Decomposition], place: StudyFolder, progress: Progress | None
) -> None:
    """Work on what is not finished, and write a line for every cell."""
    known = place.records(cell.key for job in jobs for cell in job.cells)
    done = {key for key, record in known.items() if record["status"] == "done"}
    # failed cells keep their lines until they are tried again: a run that ends before loses no traceback
    place.rewrite(known[key] for key in sorted(known))
    open_jobs = [job for job in jobs if any(cell.key not in done for cell in job.cells)]
    if not open_jobs:
        return
    client, compute = active_client(), study.compute
    crew = crew_of(compute.devices, compute.workers, compute.memory, len(open_jobs))
    pace = _Pace(sum(len(job.cells) for job in jobs), len(done), progress)
    pace.tell()
    stamp = Stamp({name: text for name, text in versions() if name in CODE}, _revision())
    with closing(work_all(open_jobs, place.folder, crew, stamp, client=client)) as outcomes:
        for outcome in outcomes:
            for record in _records(outcome, study):
                place.append(record)
            pace.step(len(outcome.job.cells))


def _records(outcome: Outcome, study: StudyConfig) -> list[dict[str, Any]]:
    if outcome.records:
        return outcome.records
    failed = {
        "status": "failed",
        "study": study.name,
        "error": outcome.error,
        "traceback": outcome.traceback,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    return [plain({"key": cell.key, **cell.labels, **failed}) for cell in outcome.job.cells]


def _revision() -> str | None:
    """The git revision of the folder that the study is run in, with a + if it was changed since."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


@dataclass
class _Pace:
    """Cells done, and the time left from what was done in this run."""

    total: int
    done: int
    progress: Progress | None

    def __post_init__(self) -> None:
        self._before, self._start = self.done, time.perf_counter()

    def step(self, cells: int) -> None:
        self.done += cells
        self.tell()

    def tell(self) -> None:
        if self.progress is None:
            return
        fresh = self.done - self._before
        spent = time.perf_counter() - self._start
        left = spent / fresh * (self.total - self.done) if fresh else math.nan
        self.progress(Event("cells", self.done, self.total, seconds_left=left))
