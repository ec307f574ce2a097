"""The results of a study: every finished cell in one labelled dataset, and tables of the choices."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sdgpu.backend.datafiles import read_dataset, write_dataset
from sdgpu.study.grid_study.cells import axes_of, decompositions, place_on
from sdgpu.study.grid_study.configuration import StudyConfig
from sdgpu.study.grid_study.label_arrays import LABEL_AXES
from sdgpu.study.grid_study.student_cells import STUDENT_AXES
from sdgpu.study.grid_study.study_folder import Record, StudyFolder, read_cell

__all__ = ["StudyResults", "cells_dataset", "collect", "open_study", "read_results"]

RESULTS = "results.zarr"
EXTRA_AXES = {**LABEL_AXES, **STUDENT_AXES}
_TEXTS = ("data", "kernel", "parameters", "method", "precision", "split", "sent", "answer")
_LONG_NAMES = {
    "mse": "mean squared validation error",
    "train_mse": "mean squared training error",
    "gcv": "generalised cross-validation",
    "limit_mse": "mean squared validation error of the limit",
    "synthetic_risk": "expected test error to the truth after rounds of synthetic labels",
    "synthetic_best_weight": "best share of true labels in endless rounds",
    "student_mse": "mean squared validation error of the student",
    "student_alpha_star": "best weight of the student's step 1",
    "teacher_lam": "ridge of the teacher, over the training rows where it is given so",
    "sent_bytes": "bytes that all workers send, or those of the rows themselves",
    "cut_bound": "bound on the difference of coefficients to those of all rows, over their length",
    "test_mse": "mean squared test error of the choice",
}


@dataclass(frozen=True, eq=False)
class StudyResults:
    """What a study has found so far.

    Attributes
    ----------
    config : StudyConfig
    folder : Path
    records : tuple of dict
        Of finished cells, in the order of the study: labels, choices, seconds, versions.
    failed : tuple of dict
        Of cells that failed: labels, error, traceback.
    open_cells : int
        Cells that were not yet worked on.
    """

    config: StudyConfig
    folder: Path
    records: tuple[Record, ...]
    failed: tuple[Record, ...]
    open_cells: int

    @cached_property
    def dataset(self) -> xr.Dataset:
        """All finished cells: losses (cell, lam, alpha, step), choices (cell, rule).

        With ``[teacher]`` `student_mse` (cell, teacher_lam, lam, alpha, step), the teacher's lam over the
        training rows where it is given so; with ``[synthetic_labels]`` `synthetic_risk` (cell, scheme, lam,
        label_weight, round) too. With ``[federated]`` cells have a place on workers, split, sent and answer
        as well, `sent_bytes` (cell), and `cut_bound` (cell, rule). Where lam is given times the rows its
        dimension is `lam_over_n`, and `lam` a coordinate (cell, lam_over_n). A cell has its place on every
        axis as a coordinate:
        ``dataset.set_index(cell=["seed", "parameters"]).unstack("cell")``.
        """
        cells = [read_cell(self.folder, record["key"])[1] for record in self.records]
        return cells_dataset(self.config, self.records, cells)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row for each cell and rule: labels, the choice, its validation and test losses, the costs.

        `seconds` of the whole cell, `passes` over K of its fit, and `error_estimate` of the fit; with
        ``[federated]`` `sent_bytes` of all workers, and `cut_bound` of a choice where eigenpairs were cut
        off.
        """
        rows = []
        for record in self.records:
            labels = {axis: place_on(axis, record) for axis in axes_of(self.config)}
            labels["n"] = record["n"]
            costs = {
                "seconds": sum(record["seconds"].values()),
                "passes": _number(record["fit"]["passes"]),
                "error_estimate": _number(record["fit"]["error_estimate"]),
            }
            if self.config.federated is not None:
                costs["sent_bytes"] = _sent_bytes(record)
            for rule, choice in record["chosen"].items():
                numbers = {
                    name: _number(value)
                    for name, value in choice.items()
                    if name not in ("alpha", "note", "criterion")
                }
                alpha = [_number(weight) for weight in choice.get("alpha", [])]
                shown = alpha[0] if len(alpha) == 1 else math.nan
                note = choice.get("note", "")
                rows.append(
                    {**labels, "rule": rule, **numbers, "alpha": shown, **costs, "note": note}
                )
        return pd.DataFrame(rows)

    def summary(self, *, by: Sequence[str] | None = None, loss: str = "test_mse") -> pd.DataFrame:
        """Mean test loss of every rule over the seeds, and its standard error.

        Parameters
        ----------
        by : sequence of str, optional
            Axes that make a row; those with more than one value, but for the seed, by default.
        loss : str, default "test_mse"
            A column of :attr:`frame`.

        Returns
        -------
        DataFrame
            Rows by axes; columns (rule, "mean" | "error"), NaN where one cell has no error;
            ``attrs["cells"]`` has the fewest and most cells of a row.

        Raises
        ------
        ValueError
            For unknown axes or losses.
        """
        self.check_loss(loss)
        frame = self.frame
        axes = list(by) if by is not None else self.varied
        known = axes_of(self.config)
        unknown = [axis for axis in axes if axis not in known]
        if unknown:
            raise ValueError(f"by={unknown}: axes are {', '.join(known)}")
        groups = frame.groupby([*(axes or ["data"]), "rule"], sort=False, dropna=False)[loss]
        table = pd.DataFrame({"mean": groups.mean(), "error": groups.sem()})
        wide = table.unstack("rule").swaplevel(axis=1)
        rules = self.config.choose.rules
        wide = wide.loc[:, [(rule, part) for rule in rules for part in ("mean", "error")]]
        counts = groups.size()
        wide.attrs["cells"] = (int(counts.min()), int(counts.max()))
        return wide

    def check_loss(self, loss: str) -> None:
        """Refuse a loss that is no column of :attr:`frame`.

        Raises
        ------
        ValueError
            Names those there are; also if no cell is finished.
        """
        if self.frame.empty:
            raise ValueError(f"the study in {self.folder} has no finished cell: run it first")
        if loss not in self.frame:
            losses = [str(name) for name in self.frame if str(name).startswith("test_")]
            raise ValueError(f"loss={loss!r} is not known: {', '.join(losses)}")

    @property
    def varied(self) -> list[str]:
        """The axes with more than one value, but for the seed."""
        axes = [axis for axis in axes_of(self.config) if axis != "seed"]
        places = {axis: {str(place_on(axis, record)) for record in self.records} for axis in axes}
        return [axis for axis in axes if len(places[axis]) > 1]


def _number(value: Any) -> float:
    """A number of a record, where NaN is None and infinity a word."""
    return math.nan if value is None else float(value)


def cells_dataset(
    config: StudyConfig, records: Sequence[Record], cells: Sequence[Mapping[str, np.ndarray]]
) -> xr.Dataset:
    """Some cells, records and losses, as one dataset (:attr:`StudyResults.dataset`)."""
    grid, rules = config.grid, list(config.choose.rules)
    steps = np.arange(1, grid.steps + 1)
    lam = "lam" if grid.relative is None else "lam_over_n"
    shapes = {3: ("cell", lam, "alpha", "step"), 1: ("cell", lam)}
    variables: dict[str, Any] = {}
    for name in cells[0] if cells else ():
        values = np.stack([cell[name] for cell in cells])
        if name in EXTRA_AXES:
            own = [lam if axis == "lam" else axis for axis in EXTRA_AXES[name]]
            variables[name] = (("cell", *own), values)
            continue
        second = "alpha" if name == "limit_mse" else "step"
        dims = shapes.get(values.ndim - 1, ("cell", lam, second))
        if name != "lam":
            variables[name] = (dims, values)
    coordinates: dict[str, Any] = {
        "cell": [record["key"] for record in records],
        lam: np.array(grid.lams if grid.relative is None else grid.relative),
        "alpha": np.array(grid.alphas),
        "step": steps,
        "rule": rules,
    }
    if config.teacher is not None:
        coordinates["teacher_lam"] = np.array(config.teacher.relative or config.teacher.lams)
    if config.synthetic_labels is not None:
        made = config.synthetic_labels
        coordinates["scheme"] = list(made.schemes)
        coordinates["label_weight"] = np.array(made.weights)
        coordinates["round"] = np.arange(1, made.rounds + 1)
    if lam != "lam" and cells:
        coordinates["lam"] = (("cell", lam), np.stack([cell["lam"] for cell in cells]))
    for axis in axes_of(config):
        places = [place_on(axis, record) for record in records]
        if axis in _TEXTS:
            coordinates[axis] = ("cell", np.array(places, dtype=str))
        else:
            coordinates[axis] = ("cell", np.array([_number(value) for value in places]))
    variables |= _choices(records, rules, grid.steps)
    for part in ("fit", "sweep", "choose"):
        variables[f"{part}_seconds"] = ("cell", np.array([r["seconds"][part] for r in records]))
    errors = [_number(record["fit"]["error_estimate"]) for record in records]
    variables["error_estimate"] = ("cell", np.array(errors))
    if config.federated is not None:
        sent = [_sent_bytes(record) for record in records]
        variables["sent_bytes"] = ("cell", np.array(sent, dtype=np.float64))
    dataset = xr.Dataset(
        variables, coordinates, {"study": config.name, "description": config.description}
    )
    for name, text in _LONG_NAMES.items():
        if name in dataset:
            dataset[name].attrs["long_name"] = text
    return dataset


def _choices(records: Sequence[Record], rules: list[str], steps: int) -> dict[str, Any]:
    """What every rule has chosen, and what that is worth on the test rows, (cell, rule)."""
    variables: dict[str, Any] = {}
    names = {name for record in records for one in record["chosen"].values() for name in one}
    for name in sorted(names):
        if name.startswith("test_") or name in ("lam", "step", "cut_bound"):
            table = [[_number(r["chosen"][rule].get(name)) for rule in rules] for r in records]
            label = f"chosen_{name}" if name in ("lam", "step") else name
            variables[label] = (("cell", "rule"), np.array(table, dtype=np.float64))
    variables["chosen_alpha"] = (
        ("cell", "rule", "step"),
        np.array([[_weights(r["chosen"][rule], steps) for rule in rules] for r in records]),
    )
    return variables


def _sent_bytes(record: Record) -> float:
    """Of the messages of a cell; where all rows lie in one place those of the rows and their targets."""
    rows = 8 * record["n"] * (record["d"] + record["c"])
    return float(record.get("sent_bytes", rows))


def _weights(choice: Mapping[str, Any], steps: int) -> np.ndarray:
    """Weights of steps 1..T of a choice: NaN at step 1 and after the chosen step."""
    weights = np.full(steps, np.nan)
    alpha = [_number(weight) for weight in choice.get("alpha", [])]
    last = _number(choice.get("step"))
    if not math.isnan(last) and last > 1:
        end = int(min(last, steps))
        weights[1:end] = alpha[0] if len(alpha) == 1 else alpha[: end - 1]
    return weights


def collect(config: StudyConfig, place: StudyFolder) -> StudyResults:
    """Everything that is finished; writes ``results.zarr``."""
    results = _results(config, place)
    if results.records:
        write_dataset(results.dataset, place.folder / RESULTS)
    return results


def open_study(folder: str | os.PathLike[str]) -> StudyResults:
    """The results of a study as far as it has come; nothing in the folder is executed.

    Raises
    ------
    FileNotFoundError
        If there is no study in it.
    ValueError
        For damage, and for a study of another version.
    """
    place = StudyFolder(Path(folder).expanduser())
    tables = place.read().get("tables")
    try:
        config = StudyConfig.model_validate(_tuples(tables))
    except ValueError as error:
        raise ValueError(
            f"{place.folder / 'study.json'} has tables that this version does not know: {error}"
        ) from error
    return _results(config, place)


def read_results(folder: str | os.PathLike[str]) -> xr.Dataset:
    """The dataset that a run wrote at its end: checksums are checked."""
    return read_dataset(Path(folder) / RESULTS)


def _tuples(value: Any) -> Any:
    """Lists of JSON as tuples, which the tables hold."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _results(config: StudyConfig, place: StudyFolder) -> StudyResults:
    keys = [cell.key for job in decompositions(config) for cell in job.cells]
    records = place.records(keys)
    done = tuple(records[k] for k in keys if k in records and records[k]["status"] == "done")
    failed = tuple(records[k] for k in keys if k in records and records[k]["status"] == "failed")
    return StudyResults(config, place.folder, done, failed, len(keys) - len(done) - len(failed))
