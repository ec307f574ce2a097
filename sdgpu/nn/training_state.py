"""All that a training knows of itself: what a checkpoint holds, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sdgpu.backend.distributed import World
from sdgpu.nn.averages import WeightAverage
from sdgpu.nn.config import Config
from sdgpu.nn.ended_members import EndedMembers
from sdgpu.nn.epoch_sums import EpochSums
from sdgpu.nn.evaluate import checksum
from sdgpu.nn.records import Epoch, epoch_from
from sdgpu.nn.stopping import best_epoch
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
    average : WeightAverage or None
        Of the weights, which is then what is validated and returned.
    best : dict or None
        "epoch", "model" and "buffers" of the best epoch so far, if its weights are to be returned.
    stopped : str
        Why the training ended before its time; empty while it has not.
    ended : EndedMembers
        Of a stack: those whose training has ended.
    """

    model: nn.Module
    update: Update
    teacher: nn.Module | None
    sums: EpochSums
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    average: WeightAverage | None = None
    best: dict[str, Any] | None = None
    stopped: str = ""
    ended: EndedMembers = field(default_factory=EndedMembers)

    @property
    def models(self) -> list[nn.Module]:
        """The network, and the average of its weights if there is one."""
        return [self.model, *([] if self.average is None else [self.average.model])]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated after an epoch."""
        return self.model if self.average is None else self.average.model

    def keep_if_best(self, monitor: str) -> None:
        """After an epoch: remember the network if it is the best so far."""
        if best_epoch(self.history, monitor) == len(self.history):
            self.best = {"epoch": len(self.history), **_copies(_contents(self.evaluated))}

    def returned(self) -> nn.Module:
        """The network that the training gives; the state is used up by it."""
        model = self.evaluated
        if self.best is not None:
            restore(model, self.best["model"], self.best["buffers"])
        return model

    def capture(self, world: World, *, optimiser: bool) -> dict[str, Any]:
        """Give what a checkpoint holds, on the first rank; the others give their share to it.

        Parameters
        ----------
        world : World
        optimiser : bool
            Whether the training may go on: two thirds of the file.
        """
        sums = self.sums.of_all(world)
        if world.rank > 0:
            return {}
        teacher = self.teacher
        plain = self.average is None and self.best is None
        best = self.best or _contents(self.evaluated)
        return {
            # of the network that the training would return now
            "model": best["model"],
            "members": getattr(self.model, "members", None),
            "buffers": best["buffers"],
            "live": None if plain else _contents(self.model),
            "average": None if self.average is None else _contents(self.average.model),
            "best": self.best,
            "stopped": self.stopped,
            "optimiser": self.update.optimiser.state_dict() if optimiser else None,
            "scaler": self.update.scaler.state_dict() if optimiser else None,
            "teacher": None if teacher is None else teacher.state_dict(),
            "teacher_buffers": {} if teacher is None else passing_buffers(teacher),
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            **sums,
            "ended": dict(self.ended.epochs),
            "history": [row.numbers() for row in self.history],
        }

    def restore(self, saved: dict[str, Any], world: World) -> None:
        """Become what :meth:`capture` saw."""
        live = saved.get("live") or saved  # of a version that knew no other
        restore(self.model, live["model"], live["buffers"])
        if self.average is not None:
            restore(self.average.model, saved["average"]["model"], saved["average"]["buffers"])
        self.best, self.stopped = saved.get("best"), saved.get("stopped", "")
        if self.teacher is not None:
            restore(self.teacher, saved["teacher"], saved["teacher_buffers"])
        if saved["optimiser"] is not None:
            self.update.optimiser.load_state_dict(saved["optimiser"])
            self.update.scaler.load_state_dict(saved["scaler"])
        self.epoch, self.batch, self.seconds = saved["epoch"], saved["batch"], saved["seconds"]
        self.sums.restore(saved, self.batch, world)
        self.history = [epoch_from(row) for row in saved["history"]]
        self.ended.restore(saved.get("ended", {}), self.models)


def _contents(model: nn.Module) -> dict[str, Any]:
    return {"model": model.state_dict(), "buffers": passing_buffers(model)}


def _copies(contents: dict[str, Any]) -> dict[str, Any]:
    """The same of tensors that training does not change."""
    return {
        part: {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in tensors.items()
        }
        for part, tensors in contents.items()
    }


def owner(
    state: TrainingState, data: Any, feed: Feed, config: Config, eval_parts: frozenset[str]
) -> dict[str, Any]:
    """What a checkpoint must share with the run that resumes it.

    Parameters
    ----------
    state : TrainingState
        Its model has its initialisation.
    data : Data
        Of its training part.
    feed : Feed
    config : Config
    eval_parts : frozenset of str
        Names of the parts that stay in evaluation mode.
    """
    images, model = data.train, state.model
    # what a function makes of the model may change without a change of its code
    groups = (
        {} if config.parameter_groups is None else {"parameter groups": _described(state.update)}
    )
    weights = () if data.weights is None else (data.weights,)
    return {
        "config": config.binding(),
        "model": shapes(model),
        "data": digest(*images.contents(), *weights),
        "normalisation": {"mean": list(images.mean), "std": list(images.std)},
        "frozen": sorted(frozen(model) | {f"mode of {name}" for name in eval_parts}),
        "targets": feed.owner(),
        "initialisation": checksum(model),
        **groups,
    }


def _described(update: Update) -> dict[str, str]:
    return {name: group.description for group in update.groups for name in group.names}
