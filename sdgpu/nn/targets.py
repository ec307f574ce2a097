"""What a batch is: rows in their order, a view of their images, and the mixed target of each.

Everything is a function of the seeds and of the position (epoch, batch), and lies on the device before
the first batch. Under several processes every rank makes the view of the whole batch, which costs
little, and takes its rows: the same numbers as in one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sdgpu.backend.copying import copy_module
from sdgpu.backend.distributed import World
from sdgpu.nn.augment import training_order
from sdgpu.nn.batches import Batch
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import autocast, inference, predict
from sdgpu.nn.loss import hinton_target, mixed_target, predictions, smoothed
from sdgpu.nn.mixing import draw_mix
from sdgpu.nn.network_teachers import Teacher
from sdgpu.nn.training_files import digest

__all__ = ["Feed", "Teacher", "cached_predictions"]


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
    world : World
        Processes that share out what a teacher is asked beforehand.
    weights : tensor (n,) or None
        Factors of the losses of the rows.
    """

    images: Any
    targets: torch.Tensor | Teacher | None
    config: Config
    dtype: torch.dtype
    world: World = field(default_factory=World)
    weights: torch.Tensor | None = None
    teacher: nn.Module | None = None  # the copy that drifts
    _mixed: torch.Tensor | None = None  # (n, c), (members, n, c) or, with views, (views, n, c)
    _order: tuple[int, torch.Tensor] | None = field(default=None, repr=False)
    _said: torch.Tensor | None = None  # by tables of predictions, (n, c)
    _by_view: bool = False
    _teacher_checksum: str = ""
    _items: dict[str, str] = field(default_factory=dict, repr=False)  # that a teacher was asked for

    def __post_init__(self) -> None:
        if asked_beforehand(self.targets, self.config):
            self.images = self.images.remembering(by_pass=self.config.teacher == "views")
        self._reader = self.images.reader(self.config, self.dtype)
        self._Y = smoothed(self.images.one_hot(self.dtype), self.config.label_smoothing)
        if isinstance(self.targets, Teacher):
            self._hear(self.targets)
            return
        targets = self._Y if self.targets is None else self.targets
        self._mixed = targets.to(device=self._Y.device, dtype=self.dtype)

    def _hear(self, teacher: Teacher) -> None:
        """Ask a teacher what can be asked beforehand: every network its rows, shared out over the ranks."""
        config, images = self.config, self.images
        self._teacher_checksum = teacher.identity()
        self._said = teacher.said(images, config, self.dtype)
        if config.teacher == "cached" or not teacher.networks:
            P = cached_predictions(teacher, images, config, said=self._said, world=self.world)
            self._mixed = self._mix(self._Y, P)
        elif config.teacher == "views":
            P = torch.stack(
                [_sum(teacher, partial(self._on_view, i), self._said) for i in range(config.views)]
            )
            self._mixed, self._by_view = self._mix(self._Y, _finite(P)), True
        elif config.teacher == "paper-script":
            # a copy drifts, not the caller's
            self.teacher = copy_module(teacher.networks[0][1]).train()
        memory = getattr(self.images, "memory", None)
        if memory is not None:
            self._items = {"items": self._checksum_of(memory)}

    def _checksum_of(self, memory: Any) -> str:
        """Of all items that the teacher was asked for, on whichever rank."""
        shares = self.world.row_shares(len(self.images), self.config.eval_batch)
        own = memory.sums()[list(shares[self.world.rank])].to(self.images.device)
        return digest(self.world.gather_rows(own, [len(share) for share in shares]))

    def batch(self, epoch: int, batch: int) -> Batch:
        """Rows, inputs and targets of one batch, mixed if the configuration says so."""
        size, order = self.config.batch, self._epoch_order(epoch)
        rows = order[batch * size : (batch + 1) * size]
        inputs, mixed = self._reader.batch(order, epoch, batch), self._mixed
        if mixed is not None and self._by_view:
            mixed = mixed[epoch % self.config.views]
        asks = mixed is None
        made = Batch(
            rows,
            inputs,
            None if mixed is None else mixed.index_select(-2, rows),
            truth=self._Y[rows] if asks else None,
            said=self._said[rows] if asks and self._said is not None else None,
            weights=None if self.weights is None else self.weights[rows],
        )
        mix = draw_mix(self.config, epoch, batch, inputs)
        if mix is not None:
            made = mix.of(made)
        # the script's teacher drifts by the statistics of whole batches
        if asks and self.drifting_teacher() is not None:
            return dataclasses.replace(made, target=self.ask(made))
        return made

    def ask(self, batch: Batch) -> torch.Tensor:
        """Targets from the teacher in the loop, on the very view that the student sees."""
        assert batch.truth is not None
        inputs = batch.inputs
        assert isinstance(self.targets, Teacher)
        with torch.no_grad(), autocast(self.config, inputs.device):
            if self.teacher is not None:
                P = self._f(self.teacher(inputs))
            else:
                P = _sum(self.targets, lambda network: self._asked(network, inputs), batch.said)
        return self._mix(batch.truth.to(P.dtype), P)

    def close(self) -> None:
        """Let go of what makes inputs ahead."""
        self._reader.close()

    def check_teacher(self) -> None:
        """Prove that the caller's teacher is what it was.

        Raises
        ------
        RuntimeError
            If any parameter or buffer has other bits than before.
        """
        if isinstance(self.targets, Teacher) and self.targets.identity() != self._teacher_checksum:
            raise RuntimeError(
                "the teacher changed while its student was trained: it shares parameters or buffers "
                "with something that was trained; give a copy of its own"
            )

    def owner(self) -> Any:
        """What a checkpoint remembers of the targets."""
        if isinstance(self.targets, Teacher):
            alpha = float(self.targets.alpha)
            return {"teacher": self._teacher_checksum, "alpha": alpha, **self._items}
        return "labels" if self.targets is None else digest(self.targets)

    def drifting_teacher(self) -> nn.Module | None:
        """The teacher, if its state changes and so belongs into a checkpoint."""
        return self.teacher

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != epoch:
            rows = training_order(len(self.images), self.config, epoch)
            self._order = (epoch, rows.to(self.images.device))
        return self._order[1]

    def _on_view(self, view: int, network: nn.Module) -> torch.Tensor:
        size, world = self.config.eval_batch, self.world
        shares = world.row_shares(len(self.images), size)
        own = shares[world.rank] or range(1)
        parts = enumerate(self._reader.view(view, size))
        with torch.autocast(self.images.device.type, enabled=False):
            P = [self._asked(network, part) for number, part in parts if number * size in own]
        block = torch.cat(P)[: len(shares[world.rank])]
        return world.gather_rows(block, [len(share) for share in shares])

    def _asked(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        with inference(network):
            return self._f(network(inputs))

    def _f(self, logits: torch.Tensor) -> torch.Tensor:
        config = self.config
        return predictions(logits, activation=config.activation, temperature=config.temperature)

    def _mix(self, Y: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.targets, Teacher)
        mix = hinton_target if self.config.loss == "hinton" else mixed_target
        return mix(Y, P, self.targets.alpha, hard=self.config.hard).to(self.dtype)


def asked_beforehand(targets: Any, config: Config) -> bool:
    """Whether networks are asked before a training, so that what they say belongs to positions."""
    asked = isinstance(targets, Teacher) and bool(targets.networks)
    return asked and config.teacher in ("cached", "views")


def cached_predictions(
    teacher: Teacher, images: Any, config: Config, *, said: torch.Tensor | None, world: World
) -> torch.Tensor:
    """What a teacher says of the clean inputs (n, c), with `said` of its tables (:meth:`Teacher.said`).

    Raises
    ------
    ValueError
        If it is not finite.
    """
    # a teacher at the temperature, whatever that of the student is
    setting = dataclasses.replace(config, loss="squared")
    return _finite(
        _sum(teacher, lambda network: predict(network, images, setting, world=world), said)
    )


def _sum(
    teacher: Teacher, ask: Callable[[nn.Module], torch.Tensor], said: torch.Tensor | None
) -> torch.Tensor:
    """The sum over all teachers of weight times prediction, and what tables say of these rows."""
    total = said
    for weight, network in teacher.networks:
        P = ask(network)
        P = P if weight == 1 else weight * P
        total = P if total is None else total + P
    assert total is not None
    return total


def _finite(P: torch.Tensor) -> torch.Tensor:
    """Predictions of a teacher, if they are numbers."""
    nonfinite = int((~torch.isfinite(P)).any(dim=-1).sum())
    if nonfinite:
        raise ValueError(
            f"the teacher predicts NaN or infinity for {nonfinite} of {P[..., 0].numel()} images: look "
            "at its weights, and whether it was trained with this normalisation"
        )
    return P
