"""Which pictures a study has: rules, axes with numbers, losses over (lam, alpha), networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sdgpu.study.grid_study.cells import axes_of, place_on
from sdgpu.study.grid_study.federated_table import SHARED_AXES
from sdgpu.study.grid_study.network_cells import experiment_of, network_folders
from sdgpu.study.grid_study.study_folder import Record, read_cell
from sdgpu.study.grid_study.study_results import StudyResults, cells_dataset
from sdgpu.study.pictures import (
    accuracy_figure,
    plot_alpha_star,
    plot_cost,
    plot_learning_curves,
    plot_losses,
    plot_rules,
)

__all__ = ["StudyPicture", "study_pictures"]

LINES = 40  # of the picture of rules: more are the best ones
MAPS = 8  # data sets and levels of noise whose losses are drawn
SEEDS = 20  # cells of a mean of losses


@dataclass(frozen=True, eq=False)
class StudyPicture:
    """A figure, where it belongs, what its file is called, and what it shows."""

    group: str
    name: str
    figure: Any
    caption: str


def study_pictures(results: StudyResults, *, loss: str = "test_mse") -> Iterator[StudyPicture]:
    """All pictures, one at a time.

    Raises
    ------
    ValueError
        For an unknown loss.
    """
    if results.records:
        frame = results.frame
        yield from _of_rules(results, frame, loss)
        yield from _of_axes(results, frame, loss)
        yield from _of_grids(results, frame, loss)
    yield from _of_networks(results)


def _of_rules(results: StudyResults, frame: pd.DataFrame, loss: str) -> Iterator[StudyPicture]:
    axes = results.varied or ["data"]
    text = f"Mean {loss} over the seeds, bars are standard errors."
    groups = frame.fillna(dict.fromkeys(axes, "")).groupby(axes, sort=False)
    if groups.ngroups > LINES:
        best = groups[loss].mean().nsmallest(LINES).index
        places = pd.MultiIndex.from_frame(frame[axes]) if len(axes) > 1 else frame[axes[0]]
        text += f" The best {LINES} of {groups.ngroups} are drawn."
        frame = frame[places.isin(best)]
    figure = plot_rules(frame, axes, y=loss).figure
    yield StudyPicture("Rules", "rules", figure, text)


def _of_axes(results: StudyResults, frame: pd.DataFrame, loss: str) -> Iterator[StudyPicture]:
    """Curves over every axis of numbers, and costs where there are several methods."""
    shared = results.config.federated is not None
    for axis in ("n", "noise", "size"):
        shown = frame[frame[axis].notna()]
        if axis == "n" and shared:  # students have rows of the server alone
            shown = shown[shown["answer"] == SHARED_AXES["answer"]]
        if shown[axis].nunique() > 1:
            text = f"Mean {loss} over all cells with this {axis}, bars are standard errors."
            figure = plot_learning_curves(shown, axis, y=loss).figure
            yield StudyPicture("Axes", f"over_{axis}", figure, text)
    if shared:
        rule = results.config.choose.rules[-1]
        chosen = frame[frame["rule"] == rule]
        text = f"{loss} of the rule {rule!r} against the bytes that all workers send."
        figure = plot_cost(chosen, "sent_bytes", y=loss, by="answer").figure
        yield StudyPicture("Axes", "sent_bytes", figure, text)
    methods = frame["method"].nunique() * max(1, frame["size"].nunique())
    if methods > 1:
        rule = results.config.choose.rules[-1]
        chosen = frame[frame["rule"] == rule]
        text = f"{loss} of the rule {rule!r} against the seconds of a cell."
        yield StudyPicture("Axes", "cost", plot_cost(chosen, y=loss).figure, text)
        if chosen["passes"].max() > chosen["passes"].min():
            text = "The same against the passes over K of its fit: 1 with all eigenvalues."
            yield StudyPicture("Axes", "passes", plot_cost(chosen, "passes", y=loss).figure, text)


def _of_grids(results: StudyResults, frame: pd.DataFrame, loss: str) -> Iterator[StudyPicture]:
    """Losses over (lam, alpha) and alpha*, of the best kernel and method for each data set and noise."""
    rules = results.config.choose.rules
    rule = "fixed" if "fixed" in rules else rules[0]
    chosen = frame[frame["rule"] == rule].fillna({"size": -1, "rows": -1})
    axes = [a for a in axes_of(results.config) if a not in ("data", "rows", "seed", "noise")]
    places = chosen.groupby(["data", "noise"], sort=False)
    for number, ((data, noise), part) in enumerate(places):
        if number == MAPS:
            return
        means = part.groupby(axes, sort=False)[loss].mean()
        if not means.notna().any():
            continue
        best = dict(zip(axes, means.idxmin(), strict=True)) | {"data": data, "noise": noise}
        records = [record for record in results.records if _is(record, best)][:SEEDS]
        cells = _dataset(results, records)
        where = f"{data}, noise {noise:g}: {best['kernel']}, {best['parameters']}, {best['method']}"
        mean = f", mean over {len(records)} cells" if len(records) > 1 else ""
        if "mse" in cells:
            figure = plot_losses(cells["mse"], label="validation loss").figure
            text = f"{where}{mean}. Each point has its best step; the star is the best of all."
            yield StudyPicture("Losses over lam and alpha", f"losses_{number + 1}", figure, text)
        figure = plot_alpha_star(cells["alpha_star"]).figure
        text = f"alpha* of Algorithm 1, the same cells{mean.replace('mean', 'median')}."
        yield StudyPicture("Losses over lam and alpha", f"alpha_star_{number + 1}", figure, text)


def _is(record: Record, place: dict[str, Any]) -> bool:
    return all(
        place_on(axis, record) == value or (place_on(axis, record) is None and value == -1)
        for axis, value in place.items()
    )


def _dataset(results: StudyResults, records: list[Record]) -> xr.Dataset:
    cells = [read_cell(results.folder, record["key"])[1] for record in records]
    wanted = ("lam", "mse", "alpha_star")
    few = [{name: cell[name] for name in wanted if name in cell} for cell in cells]
    return cells_dataset(results.config, records, few)


def _of_networks(results: StudyResults) -> Iterator[StudyPicture]:
    from sdgpu.study.networks.network_runs import open_experiment

    for number, (table, folder) in enumerate(network_folders(results.config, results.folder), 1):
        if not (folder / "results.nc").exists():
            continue
        dataset, experiment = open_experiment(folder), experiment_of(table)
        seeds = np.size(dataset["seed"])
        figure = accuracy_figure(dataset, title=f"{experiment.name}: {experiment.model}")
        text = f"Accuracy of every step and weight; lines are means over {seeds} seeds, bands their range."
        yield StudyPicture("Networks", f"network_{number}", figure, text)
