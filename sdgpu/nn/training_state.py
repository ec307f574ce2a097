"""All that a training knows of itself: what a checkpoint holds, and what it is held against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sdgpu.backend.distributed import World
from sdgpu.nn.config import Config
from sdgpu.nn.epoch_sums import EpochSums
from sdgpu.nn.evaluate import checksum
from sdgpu.nn.records import Epoch, epoch_from
from sdgpu.nn.targets import Feed
from sdgpu.nn.training_files import digest, shapes
from sdgpu.nn.training_setup import frozen, passing_buffers, restore
from sdgpu.nn.update import Update

__all__ = ["TrainingState", "owner"]


@dataclass(eq=False)
class TrainingState:
    """What a training is, between two batches.

    Attributes
    ----------
    model : Module
    update : Update
        Its optimiser and scaler have state.
    teacher : Module or None
        One that drifts.
    sums : EpochSums
        Of the epoch that has begun.
    epoch, batch : int
        Of the next batch, from 0.
    seconds : float
        Of training so far.
    history : list of Epoch
    """

    model: nn.Module
    update: Update
    teacher: nn.Module | None
    sums: EpochSums
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)

    def capture(self, world: World, *, finished: bool) -> dict[str, Any]:
        """Give what a checkpoint holds, on the first rank; the others give their share to it.

        Parameters
        ----------
        world : World
        finished : bool
            A finished training needs no optimiser, two thirds of the file.
        """
        sums = self.sums.of_all(world)
        if world.rank > 0:
            return {}
        teacher = self.teacher
        return {
            "model": self.model.state_dict(),
            "members": getattr(self.model, "members", None),
            "buffers": passing_buffers(self.model),
            "optimiser": None if finished else self.update.optimiser.state_dict(),
            "scaler": None if finished else self.update.scaler.state_dict(),
            "teacher": None if teacher is None else teacher.state_dict(),
            "teacher_buffers": {} if teacher is None else passing_buffers(teacher),
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            **sums,
            "history": [dataclasses.asdict(row) for row in self.history],
        }

    def restore(self, saved: dict[str, Any], world: World) -> None:
        """Become what :meth:`capture` saw."""
        restore(self.model, saved["model"], saved["buffers"])
        if self.teacher is not None:
            restore(self.teacher, saved["teacher"], saved["teacher_buffers"])
        if saved["optimiser"] is not None:
            self.update.optimiser.load_state_dict(saved["optimiser"])
            self.update.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.batch, self.seconds = saved["epoch"], saved["batch"], saved["seconds"]
        self.sums.restore(saved, self.batch, world)
        self.history = [epoch_from(row) for row in saved["history"]]


def owner(
    model: nn.Module, images: Any, feed: Feed, config: Config, eval_parts: frozenset[str]
) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes it.

    Parameters
    ----------
    model : Module
        With its initialisation.
    images : Images
        The training part.
    feed : Feed
    config : Config
    eval_parts : frozenset of str
        Names of the parts that stay in evaluation mode.
    """
    return {
        "config": config.binding(),
        "model": shapes(model),
        "data": digest(*images.contents()),
        "normalisation": {"mean": list(images.mean), "std": list(images.std)},
        "frozen": sorted(frozen(model) | {f"mode of {name}" for name in eval_parts}),
        "targets": feed.owner(),
        "initialisation": checksum(model),
    }
