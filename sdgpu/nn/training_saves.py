"""When and how a training is saved: the folder, its lock, the pace, and signals that wait for a save."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sdgpu.backend.distributed import World
from sdgpu.backend.progress import SavePace
from sdgpu.backend.signals import terminable
from sdgpu.nn.config import Config
from sdgpu.nn.interruption import Brake
from sdgpu.nn.records import Board, Epoch, rows
from sdgpu.nn.training_files import Store

__all__ = ["Saver"]


class Saver:
    """The checkpoints of one training; without a folder there are none.

    Parameters
    ----------
    world : World
    device : torch.device
    stage : str
        Name of the run in errors.

    Attributes
    ----------
    store : Store or None
    board : Board
    last : str
        A clause that says what has been saved.
    stopping : bool
        Whether the save that is due is the last, for somebody wants an end.
    """

    def __init__(self, world: World, device: torch.device, stage: str) -> None:
        self.world, self.device, self.stage = world, device, stage
        self.store: Store | None = None
        self.board = Board(None)
        self.brake = Brake()
        self.pace = SavePace(0.0)
        self.last = "there is no checkpoint"
        self.stopping = False

    def begin(self, seconds: float) -> None:
        """Count the time to the next save from now on."""
        self.pace = SavePace(seconds)

    def load(self, folder: Path, owner: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """The state in a folder, or None where there is none or not to `resume`.

        Raises
        ------
        OSError, ValueError
            As :meth:`~sdgpu.nn.training_files.Store.load`; and if processes were given different things.
        """
        if self.store is None:
            self.store = Store(folder, owner)
            texts = {part: json.dumps(owner[part]) for part in ("config", "model", "data")}
            self.world.agree(texts, self.device)
        return self.store.load(self.world, self.device) if resume else None

    def hold(self, config: Config, *, resume: bool, resources: ExitStack) -> None:
        """Hold the folder, and signals until they can be saved for, while `resources` last."""
        assert self.store is not None
        lock = self.store.lock(config.to_json(), resume=resume)
        self.world.first(lambda: resources.enter_context(lock), self.device)
        resources.enter_context(terminable())
        resources.enter_context(self.brake)

    def show(self, folder: Path | None, resources: ExitStack, *, epochs_done: int) -> None:
        """Write TensorBoard's log into a folder while `resources` last."""
        if self.world.rank == 0:
            self.board = Board(folder, epochs_done=epochs_done)
            resources.callback(self.board.close)

    def saved(self, epoch: int, batch: int) -> None:
        """Remember that there is a checkpoint of a position."""
        if self.store is not None:
            self.last = self.store.where(epoch, batch)

    def due(self) -> bool:
        """Whether to save now: the clock of rank 0 decides for all, and an interrupt of any."""
        if self.store is None:
            return False
        flags = (self.pace.due and self.world.rank == 0, self.brake.pulled)
        due, self.stopping = self.world.any(*flags, device=self.device)
        return due or self.stopping

    def write(self, state: dict[str, Any], history: list[Epoch], epoch: int, batch: int) -> None:
        """Write the state and the log.

        Raises
        ------
        OSError
            If they cannot be written; the checkpoint before is intact.
        """
        assert self.store is not None
        store = self.store

        def save() -> None:
            # the log first: after a finished checkpoint nothing is written any more
            store.log(row for one in history for row in rows(one))
            store.save(state)
            self.saved(epoch, batch)

        with self.pace.saving():
            self._on_first_rank(save)
        self.saved(epoch, batch)

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        try:
            self.world.first(action, self.device)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.stage}: {error.strerror}; {self.last}: make room and call again with "
                "resume=True",
            ) from error
