"""What a training leaves: one record an epoch, as objects, as rows of a CSV and on TensorBoard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Board", "Epoch", "TrainResult", "as_numbers", "epoch_from", "rows"]

Number = float | tuple[float, ...]


@dataclass(frozen=True)
class Epoch:
    """What one epoch left; tuples with one entry for each member of a stack.

    Attributes
    ----------
    epoch : int
        From 1.
    rate : float
        Learning rate of its last batch.
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


def rows(epoch: Epoch) -> Iterator[dict[str, float]]:
    """One row of the log, or one for each member of a stack."""
    fields = dataclasses.asdict(epoch)
    if not isinstance(epoch.train_loss, tuple):
        yield fields
        return
    for member in range(len(epoch.train_loss)):
        yield {
            "member": member,
            **{k: v[member] if isinstance(v, tuple) else v for k, v in fields.items()},
        }


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
