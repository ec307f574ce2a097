"""What a batch is: rows in their order, a view of their images, and the mixed target of each.

Everything is a function of the seeds and of the position (epoch, batch), and lies on the device before
the first batch. Under several processes every rank makes the view of the whole batch, which costs
little, and takes its rows: the same numbers as in one process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from sdgpu.backend.checks import number
from sdgpu.backend.copying import copy_module
from sdgpu.nn.augment import order
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import autocast, checksum, inference, predict
from sdgpu.nn.loss import mixed_target, predictions
from sdgpu.nn.training_files import digest

__all__ = ["Feed", "Teacher"]


@dataclass(frozen=True)
class Teacher:
    """Whom a student learns from, and how much it hears of the ground truth.

    Attributes
    ----------
    model : Module
        A trained network on the device of the data. It is evaluated, never changed.
    alpha : float
        Weight of the ground truth, any finite number.

    Raises
    ------
    TypeError, ValueError
        If the model is no Module, or alpha is not finite.
    """

    model: nn.Module
    alpha: float

    def __post_init__(self) -> None:
        number("alpha", self.alpha)
        if not isinstance(self.model, nn.Module):
            remedy = "give a torch.nn.Module"
            if isinstance(self.model, torch.Tensor):
                remedy = "of predictions make targets, mixed_target(Y, predictions(logits), alpha)"
            if isinstance(self.model, str):
                remedy = "a name has no trained weights, give the network: make_model, load_weights"
            raise TypeError(
                f"the teacher's model must be a network, not {type(self.model).__name__}: {remedy}"
            )


@dataclass(eq=False)
class Feed:
    """Inputs and targets of every batch of a training.

    Attributes
    ----------
    images : Images
        The training rows.
    targets : tensor (n, c) or (members, n, c), Teacher, or None
        None: the one-hot labels.
    config : Config
    dtype : torch.dtype
        Of inputs and targets, that of the model.
    """

    images: Any
    targets: torch.Tensor | Teacher | None
    config: Config
    dtype: torch.dtype
    teacher: nn.Module | None = None
    _mixed: torch.Tensor | None = None  # (n, c), (members, n, c) or, with views, (views, n, c)
    _order: tuple[int, torch.Tensor] | None = field(default=None, repr=False)
    _teacher_checksum: str = ""

    def __post_init__(self) -> None:
        self._reader = self.images.reader(self.config, self.dtype)
        Y, mode = self.images.one_hot(self.dtype), self.config.teacher
        if not isinstance(self.targets, Teacher):
            targets = Y if self.targets is None else self.targets
            self._mixed = targets.to(device=Y.device, dtype=self.dtype)
            return
        self._teacher_checksum = checksum(self.targets.model)
        self.teacher = self.targets.model
        if mode == "cached":
            self._mixed = self._mix(Y, _finite(predict(self.teacher, self.images, self.config)))
        elif mode == "views":
            P = torch.stack([self._on_view(view) for view in range(self.config.views)])
            self._mixed = self._mix(Y, _finite(P))
        elif mode == "paper-script":
            self.teacher = copy_module(self.teacher).train()  # a copy drifts, not the caller's

    def batch(
        self, epoch: int, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows (b,), inputs (b, C, H, W) and targets (b, c) or (members, b, c) of one batch.

        None for targets that :meth:`ask` gives part by part.
        """
        size = self.config.batch
        rows = self._epoch_order(epoch)[batch * size : (batch + 1) * size]
        inputs = self._reader.batch(rows, epoch, batch)
        if self.config.teacher == "views" and isinstance(self.targets, Teacher):
            assert self._mixed is not None
            return rows, inputs, self._mixed[epoch % self.config.views][..., rows, :]
        if self._mixed is not None:
            return rows, inputs, self._mixed[..., rows, :]
        # the script's teacher drifts by the statistics of whole batches
        whole = self.drifting_teacher() is not None
        return rows, inputs, self.ask(inputs, rows) if whole else None

    def ask(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Targets from the teacher in the loop, on the very view that the student sees."""
        assert self.teacher is not None
        with torch.no_grad(), autocast(self.config, inputs.device):
            if self.config.teacher == "paper-script":
                P = self._f(self.teacher(inputs))
            else:
                with inference(self.teacher):
                    P = self._f(self.teacher(inputs))
        Y = torch.nn.functional.one_hot(self.images.labels[rows], self.images.classes)
        return self._mix(Y.to(P.dtype), P)

    def check_teacher(self) -> None:
        """Prove that the caller's teacher is what it was.

        Raises
        ------
        RuntimeError
            If any parameter or buffer has other bits than before.
        """
        if (
            isinstance(self.targets, Teacher)
            and checksum(self.targets.model) != self._teacher_checksum
        ):
            raise RuntimeError(
                "the teacher changed while its student was trained: it shares parameters or buffers "
                "with something that was trained; give a copy of its own"
            )

    def owner(self) -> Any:
        """What a checkpoint remembers of the targets."""
        if isinstance(self.targets, Teacher):
            return {"teacher": self._teacher_checksum, "alpha": float(self.targets.alpha)}
        return "labels" if self.targets is None else digest(self.targets)

    def drifting_teacher(self) -> nn.Module | None:
        """The teacher, if its state changes and so belongs into a checkpoint."""
        return self.teacher if self.config.teacher == "paper-script" else None

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        epoch = 0 if self.config.order == "paper-script" else epoch
        if self._order is None or self._order[0] != epoch:
            rows = order(len(self.images), self.config.order_seed, epoch)
            self._order = (epoch, rows.to(self.images.device))
        return self._order[1]

    def _on_view(self, view: int) -> torch.Tensor:
        assert self.teacher is not None
        parts = self._reader.view(view, self.config.eval_batch)
        with inference(self.teacher), torch.autocast(self.images.device.type, enabled=False):
            return torch.cat([self._f(self.teacher(part)) for part in parts])

    def _f(self, logits: torch.Tensor) -> torch.Tensor:
        config = self.config
        return predictions(logits, activation=config.activation, temperature=config.temperature)

    def _mix(self, Y: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.targets, Teacher)
        return mixed_target(Y, P, self.targets.alpha, hard=self.config.hard).to(self.dtype)


def _finite(P: torch.Tensor) -> torch.Tensor:
    """Predictions of a teacher, if they are numbers."""
    nonfinite = int((~torch.isfinite(P)).any(dim=-1).sum())
    if nonfinite:
        raise ValueError(
            f"the teacher predicts NaN or infinity for {nonfinite} of {P[..., 0].numel()} images: look "
            "at its weights, and whether it was trained with this normalisation"
        )
    return P
