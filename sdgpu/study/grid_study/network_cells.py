"""Experiments with networks as part of a study: presets of ``sdgpu train`` in folders of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdgpu.backend.progress import Event, Progress
from sdgpu.study.grid_study.configuration import NetworkTable, StudyConfig

if TYPE_CHECKING:
    from sdgpu.study.networks.experiments import Experiment

__all__ = ["experiment_of", "network_folders", "run_networks"]


def experiment_of(table: NetworkTable) -> Experiment:
    """The preset with what the table changes in it.

    Raises
    ------
    TypeError, ValueError
        As :class:`~sdgpu.study.networks.experiments.Experiment`.
    """
    from sdgpu.study.networks.experiments import preset

    experiment = preset(table.preset)
    changes: dict[str, Any] = table.model_dump(exclude={"preset", "epochs"}, exclude_none=True)
    if table.epochs is not None:
        changes["config"] = replace(experiment.config, epochs=table.epochs)
    return replace(experiment, **changes)


def network_folders(study: StudyConfig, folder: Path) -> Iterator[tuple[NetworkTable, Path]]:
    """Each experiment and its folder."""
    for number, table in enumerate(study.network, start=1):
        yield table, folder / "networks" / f"{number}-{table.preset}"


def run_networks(study: StudyConfig, folder: Path, *, progress: Progress | None = None) -> None:
    """Run all experiments, one after the other: each resumes by itself and has the whole machine."""
    if not study.network:
        return
    from sdgpu.study.networks.network_runs import run_experiment

    experiments = [(experiment_of(table), place) for table, place in network_folders(study, folder)]
    for number, (experiment, place) in enumerate(experiments):
        if progress is not None:
            progress(Event("networks", number, len(experiments)))
        place.parent.mkdir(exist_ok=True)
        run_experiment(experiment, place)
    if progress is not None:
        progress(Event("networks", len(experiments), len(experiments)))
