"""What a training leaves: one record an epoch, as objects, as rows of a CSV and on TensorBoard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "Board",
    "Epoch",
    "FitLabel",
    "TrainResult",
    "as_numbers",
    "epoch_from",
    "of_member",
    "rows",
    "without_members",
]

Number = float | tuple[float, ...]


@dataclass(frozen=True)
class FitLabel:
    """Which training an epoch is of, where one call makes several.

    Attributes
    ----------
    stage : str
        Name of the run, as in events of progress and in folders: "step-2", "step-2-alpha-0".
    step : int or None
        Of a chain, from 1; None of a training by itself, as are the next three.
    alpha : float or None
        Weight of the ground truth; None for the ordinary fit, which has no teacher.
    rule : str or None
        Of the chain: "0.3", "algorithm1". None for a fit that chains of several rules share.
    seed : int or None
        Of the initialisation.
    member : int or None
        Of a stack, from 0.
    """

    stage: str = "train"
    step: int | None = None
    alpha: float | None = None
    rule: str | None = None
    seed: int | None = None
    member: int | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch left; tuples with one entry for each member of a stack.

    Attributes
    ----------
    epoch : int
        From 1.
    rate : float
        Learning rate of its last batch; of groups with a rate of their own `lr_scale` times that.
    train_loss, train_accuracy : float
        Of the targets and the labels, over the views and weights of the epoch as it went.
    penalty : float
        Of the weights at its end.
    val_loss, val_accuracy : float
        Of clean validation images, see :class:`~sdgpu.nn.evaluate.Score`; NaN without any.
    seconds : float
        Of training up to its end, without validation.
    val_top5 : float
        Share of clean validation images whose label is among the five largest outputs.
    fit : FitLabel or None
        Which training it is of, where it is handed to `on_epoch`; None in a history. Not compared.
    """

    epoch: int
    rate: float
    train_loss: Number
    train_accuracy: Number
    penalty: Number
    val_loss: Number
    val_accuracy: Number
    seconds: float
    val_top5: Number = math.nan
    fit: FitLabel | None = field(default=None, compare=False)

    def numbers(self) -> dict[str, Any]:
        """All but `fit` by name, as those take them who keep the numbers of runs."""
        fields = dataclasses.asdict(self)
        del fields["fit"]
        return fields


@dataclass(frozen=True)
class TrainResult:
    """A trained network and how it got there.

    Attributes
    ----------
    model : Module
        In evaluation mode, with the last weights, those of the best epoch, or their average, as the
        configuration says.
    history : tuple of Epoch
    seconds : float
        Of training, over all calls that a resumed run took.
    images_per_second : float
        Training images over these seconds; of one member for a stack.
    status : str
        A sentence.
    path : str or None
        The checkpoint with the weights, if a folder was given.
    member : int or None
        Which of the networks in that file, where several were trained side by side.
    best_epoch : int or None
        The one with the best `monitor`, from 1, whichever was kept; None where there is none.
    """

    model: nn.Module
    history: tuple[Epoch, ...]
    seconds: float
    images_per_second: float
    status: str
    path: str | None = None
    member: int | None = None
    best_epoch: int | None = None


def as_numbers(values: torch.Tensor) -> Number:
    """A float from a tensor (), a tuple from a tensor (members,)."""
    numbers = values.tolist()
    return tuple(numbers) if isinstance(numbers, list) else float(numbers)


def epoch_from(row: dict[str, Any]) -> Epoch:
    """Read what :func:`dataclasses.asdict` made of a record."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return Epoch(**fields)


def of_member(epoch: Epoch, member: int) -> Epoch | None:
    """What an epoch of a stack was to one of its members; None if it had ended before."""
    fields = {k: v[member] if isinstance(v, tuple) else v for k, v in epoch.numbers().items()}
    return None if math.isnan(fields["train_loss"]) else Epoch(**fields)


def without_members(epoch: Epoch, ended: Collection[int]) -> Epoch:
    """An epoch of a stack with NaN for the members that had ended before."""
    fields: dict[str, Any] = {
        name: tuple(math.nan if member in ended else one for member, one in enumerate(value))
        for name, value in epoch.numbers().items()
        if isinstance(value, tuple)
    }
    return dataclasses.replace(epoch, **fields)


def rows(epoch: Epoch) -> Iterator[dict[str, float]]:
    """One row of the log, or one for each member of a stack that was trained in it."""
    if not isinstance(epoch.train_loss, tuple):
        yield epoch.numbers()
        return
    for member in range(len(epoch.train_loss)):
        one = of_member(epoch, member)
        if one is not None:
            yield {"member": member, **one.numbers()}


class Board:
    """TensorBoard's log of a run; without a folder nothing at all.

    Parameters
    ----------
    folder : Path or None
    epochs_done : int
        Epochs that are done: what an earlier run wrote beyond them is hidden, for they come again.

    Raises
    ------
    ImportError
        If tensorboard is not installed.
    """

    def __init__(self, folder: Path | None, *, epochs_done: int = 0) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard=True needs the package tensorboard: pip install tensorboard, or leave it "
                "False; log.csv holds the same numbers"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def add(self, epoch: Epoch) -> None:
        """Write one epoch."""
        if self._writer is None:
            return
        for row in rows(epoch):
            suffix = f"/{row['member']}" if "member" in row else ""
            for name, value in row.items():
                if name not in ("epoch", "member"):
                    self._writer.add_scalar(f"{name}{suffix}", value, epoch.epoch)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
