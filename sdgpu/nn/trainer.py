"""One training run: a loop that owns nothing but the position, and can be cut off anywhere.

The data and one target a row lie on the device, every random number follows from (seed, epoch, batch),
and the learning rate from the position. So weights, optimiser and position are the whole state, and a
run resumed in the middle of an epoch gives the same bits on the CPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdgpu.backend.copying import copy_module
from sdgpu.backend.distributed import World, join
from sdgpu.backend.progress import Progress, SavePace, Stopwatch
from sdgpu.backend.signals import terminable
from sdgpu.nn.augment import stream
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import autocast, checksum, float_type, predict, score
from sdgpu.nn.interruption import Brake
from sdgpu.nn.loss import data_loss, penalty
from sdgpu.nn.preconditions import check_networks, check_request
from sdgpu.nn.records import Board, Epoch, Number, TrainResult, as_numbers, epoch_from, rows
from sdgpu.nn.shared_norm import own_batch_norm, share_batch_norm
from sdgpu.nn.targets import Feed, Teacher
from sdgpu.nn.training_files import Store, digest, shapes
from sdgpu.nn.training_setup import (
    clock,
    compiled,
    frozen,
    not_finite,
    numerics,
    passing_buffers,
    resting,
    restore,
    seed_draws,
    start_training,
)
from sdgpu.nn.update import Update

__all__ = ["Epoch", "TrainResult", "train"]

_REMEDY = "Lower lr, or set amp='off' or 'bf16'"
CHECK_EVERY = 50  # batches between looks at the losses on CUDA, where a look waits for the device


def train(
    model: nn.Module,
    data: Any,
    targets: torch.Tensor | Teacher | None,
    config: Config,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    stage: str = "train",
) -> TrainResult:
    """Fit a copy of `model` to the mixed targets, loss (18).

    Parameters
    ----------
    model : Module
        Its weights are the initialisation; it is copied, not changed. Parameters with
        ``requires_grad=False`` stay as they are, and so do parts that are in evaluation mode while the
        model is not (of a model in evaluation mode, normalisations whose weights are frozen).
    data : Data
        Its `train` images, and `val` for the history if it is not None; `test` is not looked at.
    targets : tensor (n, c), Teacher, or None
        u for each row; a teacher and the weight alpha; or None, the one-hot labels (step 1).
    config : Config
    folder : path, optional
        For checkpoint.pt, config.json and log.csv; made if it is missing, and held against other
        trainings. Under several processes the first one alone reads and writes it.
    progress : callable, optional
        Hears an :class:`~sdgpu.backend.progress.Event` when the losses are looked at.
    resume : bool, default True
        Go on from the checkpoint in `folder`; a finished one is returned at once. False starts anew.
    stage : str, default "train"
        Name of the run in events and errors.

    Returns
    -------
    TrainResult

    Raises
    ------
    TypeError, ValueError
        Before any work: labels out of range, targets of another shape or not finite, batch > n, a
        checkpoint of something else, processes that do not divide the batch.
    FloatingPointError
        If a loss is NaN or infinite; names the stage, epoch, batch and the last good checkpoint.
    OSError
        If a checkpoint cannot be written; the one before is intact. BlockingIOError if another training
        holds the folder.
    KeyboardInterrupt
        With a folder, Ctrl-C or SIGTERM waits until the batch is done and saved; a second one does not.
    RuntimeError
        If the teacher changed.

    Notes
    -----
    A step costs a forward and a backward pass of the student; a cached teacher costs one forward
    pass over the data beforehand, one in the loop a forward pass for every step.
    """
    images = data.train
    device = images.device
    check_request(model, images, targets, config, folder)
    world = join(device)
    world.check(config.batch, config.accumulate, len(images))
    student = copy_module(model).to(device)
    with ExitStack() as resources, numerics(config, device):
        check_networks(student, images, targets, config)
        feed = Feed(images, targets, config, float_type(student))
        run = _Run(
            model=student,
            data=data,
            feed=feed,
            config=config,
            world=world,
            stage=stage,
            watch=clock(device, progress),
        )
        if folder is not None:
            run.open(Path(folder), resume=resume, resources=resources)
        return run.to_the_end()


@dataclass(eq=False)
class _Run:
    """The state of a run in progress."""

    model: nn.Module
    data: Any
    feed: Feed
    config: Config
    world: World
    stage: str
    watch: Stopwatch
    store: Store | None = None
    epoch: int = 0
    index: int = 0  # of the next batch
    seconds: float = 0.0
    last_save: str = "there is no checkpoint"
    finished: bool = False  # before this call
    brake: Brake = field(default_factory=Brake)
    history: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        device = self.data.train.device
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.n = device, len(self.data.train)
        self.batches = math.ceil(self.n / config.batch)
        self.update = Update(self.model, config, device)
        members = getattr(self.model, "members", None)
        forward: nn.Module = self.model
        self.eval_parts = resting(self.model)
        if self.world.size > 1:
            self.model = forward = share_batch_norm(self.model)
            forward = DistributedDataParallel(
                forward, device_ids=[device] if device.type == "cuda" else None
            )
        self.forward: Any = compiled(forward, config)
        lead = () if members is None else (members,)
        # losses and hits of this epoch's batches: read now and then, for reading waits for the device
        self.losses = torch.zeros((*lead, self.batches), dtype=torch.float64, device=device)
        self.hits = torch.zeros((*lead, self.batches), dtype=torch.float64, device=device)
        self.checked_batches = 0
        self.board = Board(None)
        trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        # a mask of -inf is meant so
        self.exempt = {*not_finite(self.model)} - trainable

    def to_the_end(self) -> TrainResult:
        start_training(self.model, self.eval_parts)
        self.pace = SavePace(self.config.save_seconds)
        while self.epoch < self.config.epochs:
            self._one_epoch()
        self.feed.check_teacher()
        self._check_finite()
        if not self.finished:
            self._save()
        self.model = own_batch_norm(self.model).train(False)
        image_count = self.config.epochs * self.n
        speed = image_count / self.seconds if self.seconds else math.inf
        return TrainResult(
            model=self.model,
            history=tuple(self.history),
            seconds=self.seconds,
            images_per_second=speed,
            status=f"{self.config.epochs} epochs of {self.batches} batches",
            path=None if self.store is None else str(self.store.checkpoint),
        )

    def _one_epoch(self) -> None:
        start_time = self._now()
        interval = 1 if self.device.type == "cpu" else CHECK_EVERY
        while self.index < self.batches:
            self._one_batch()
            self.index += 1
            pulled = self.brake.pulled and self.world.size == 1
            if self.index % interval == 0 or self.index == self.batches or pulled:
                self._look()
                if self.index < self.batches and self._due():
                    self.seconds += self._now() - start_time
                    self._save()
                    start_time = self._now()
                    self.brake.stop(interrupt=self.stopping)
        self.seconds += self._now() - start_time
        self.world.share_buffers(self.model)
        self._record()
        self.epoch, self.index, self.checked_batches = self.epoch + 1, 0, 0
        self.losses.zero_()
        self.hits.zero_()
        if self.epoch < self.config.epochs and self._due():
            self._save()
            self.brake.stop(interrupt=self.stopping)

    def _one_batch(self) -> None:
        config = self.config
        rate = config.rate(self.epoch, self.index, self.batches)
        if self.feed.drifting_teacher() is not None:
            self._seed(0)  # the teacher draws what it draws in one process, on every rank
        rows, inputs, target = self.feed.batch(self.epoch, self.index)
        self._seed(1 + self.world.rank)
        self.update.begin()
        size = len(rows)
        part_size = config.batch // config.accumulate
        for first in range(0, size, part_size):
            last = first + part_size >= size
            shard = self.world.shard(min(part_size, size - first))
            block = slice(first + shard.start, first + shard.stop)
            hold = self.world.size > 1 and not last
            with self.forward.no_sync() if hold else nullcontext():
                block_target = None if target is None else target[..., block, :]
                self._backward(inputs[block], block_target, rows[block], size)
            if config.cuda_graphs and first == 0 and not last:
                self.update.keep_gradients()
        self.update.step(rate)

    def _seed(self, purpose: int) -> None:
        """Dropout draws from torch's own generator: a function of the position, like all else."""
        position = (self.epoch, self.index, purpose)
        seed = stream(self.config.augment_seed, "augment", *position).initial_seed()
        seed_draws(self.device, seed)

    def _backward(
        self, inputs: torch.Tensor, target: torch.Tensor | None, rows: torch.Tensor, size: int
    ) -> None:
        config = self.config
        if target is None:
            target = self.feed.ask(inputs, rows)
        if config.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(config, self.device):
            logits = self.forward(inputs)
        loss = data_loss(
            logits,
            target,
            loss=config.loss,
            activation=config.activation,
            temperature=config.temperature,
        )
        share = len(inputs) / size
        # gradients are averaged over the ranks, but a batch is one sum over all of them
        self.update.scaler.scale(loss.sum() * (share * self.world.size)).backward()
        with torch.no_grad():
            self.losses[..., self.index] += loss.detach() * share
            hits = logits.argmax(dim=-1) == self.data.train.labels[rows]
            self.hits[..., self.index] += hits.sum(dim=-1)

    def _look(self) -> None:
        """Read the losses that have come in, on all ranks at once; stop at one that is not finite."""
        losses = self.world.sum(self.losses[..., self.checked_batches : self.index].clone())
        total = losses.reshape(-1, losses.shape[-1]).sum(dim=0).cpu()  # over the members of a stack
        nonfinite = ~torch.isfinite(total)
        if self.update.hopeless:
            raise FloatingPointError(
                f"{self.stage}: float16 overflows in batch after batch, the last of them epoch "
                f"{self.epoch + 1}, batch {self.index} of {self.batches}; {self.last_save}. {_REMEDY}"
            )
        # in float16 a batch that overflowed changed nothing: the scaler skipped its step
        if bool(nonfinite.any()) and not self.update.scaler.is_enabled():
            first = int(nonfinite.int().argmax())
            raise FloatingPointError(
                f"{self.stage}: the loss is {float(total[first])} in epoch {self.epoch + 1}, "
                f"batch {self.checked_batches + first + 1} of {self.batches}; {self.last_save}. {_REMEDY}"
            )
        self.checked_batches = self.index
        done = self.epoch * self.batches + self.index
        self.watch.report(self.stage, done, self.config.epochs * self.batches)

    def _record(self) -> None:
        config, val = self.config, self.data.val
        sizes = torch.full((self.batches,), float(config.batch), dtype=torch.float64, device="cpu")
        sizes[-1] = self.n - (self.batches - 1) * config.batch
        losses = self.world.sum(self.losses.clone()).cpu()
        finite = torch.isfinite(losses)  # in float16 those that overflowed are left out
        if not bool(finite.any()):
            raise FloatingPointError(
                f"{self.stage}: every batch of epoch {self.epoch + 1} overflowed; {self.last_save}. "
                f"{_REMEDY}"
            )
        losses = losses.nan_to_num(0.0, 0.0, 0.0) @ sizes / (finite.double() @ sizes)
        hits = self.world.sum(self.hits.clone()).cpu().sum(dim=-1) / self.n
        with torch.no_grad():
            cost = penalty(
                self.model, config.decay, form=config.penalty, covers=config.penalty_covers
            )
        loss: Number = math.nan if losses.ndim == 0 else (math.nan,) * len(losses)
        accuracy = loss
        if val is not None and len(val):
            val_score = score(predict(self.model, val, config, world=self.world), val)
            loss, accuracy = val_score.loss, val_score.accuracy
        rate = config.rate(self.epoch, self.batches - 1, self.batches)
        numbers = (as_numbers(losses), as_numbers(hits), as_numbers(cost), loss, accuracy)
        self.history.append(Epoch(self.epoch + 1, rate, *numbers, self.seconds))
        self.board.add(self.history[-1])

    def open(self, folder: Path, *, resume: bool, resources: ExitStack) -> None:
        """Hold the folder while `resources` last; with `resume` go on from a checkpoint if it has one."""
        train = self.data.train
        owner = {
            "config": self.config.binding(),
            "model": shapes(self.model),
            "data": digest(*train.contents()),
            "normalisation": {"mean": list(train.mean), "std": list(train.std)},
            "frozen": sorted(frozen(self.model) | {f"mode of {name}" for name in self.eval_parts}),
            "targets": self.feed.owner(),
            "initialisation": checksum(self.model),
        }
        self.store = store = Store(folder, owner)
        owner_json = {part: json.dumps(owner[part]) for part in ("config", "model", "data")}
        self.world.agree(owner_json, self.device)

        def load() -> None:
            state = store.load(self.world, self.device) if resume else None
            if state is not None:
                self._restore(state)
                self.finished = self.epoch == self.config.epochs

        def hold() -> None:
            resources.enter_context(store.lock(self.config.to_json(), resume=resume))

        load()
        if self.finished:
            return  # nothing is written, so it may lie where nothing can be
        self.world.first(hold, self.device)
        load()  # again, for another process may have held it up to here
        resources.enter_context(terminable())
        resources.enter_context(self.brake)
        if self.world.rank == 0:
            self.board = Board(folder if self.config.tensorboard else None, epochs_done=self.epoch)
            resources.callback(self.board.close)

    def _restore(self, state: dict[str, Any]) -> None:
        restore(self.model, state["model"], state["buffers"])
        teacher = self.feed.drifting_teacher()
        if teacher is not None:
            restore(teacher, state["teacher"], state["teacher_buffers"])
        if state["optimiser"] is not None:
            self.update.optimiser.load_state_dict(state["optimiser"])
            self.update.scaler.load_state_dict(state["scaler"])
        self.epoch, self.index = state["epoch"], state["batch"]
        self.checked_batches, self.seconds = self.index, state["seconds"]
        # sums of all ranks: kept by the first, so that they are not counted again
        if self.world.rank == 0:
            self.losses.copy_(state["losses"])
            self.hits.copy_(state["hits"])
        self.history = [epoch_from(row) for row in state["history"]]
        assert self.store is not None
        self.last_save = self.store.where(self.epoch, self.index)

    def _due(self) -> bool:
        """Whether to save now: the clock of rank 0 decides for all, and an interrupt of any."""
        if self.store is None:
            return False
        flags = (self.pace.due and self.world.rank == 0, self.brake.pulled)
        due, self.stopping = self.world.any(*flags, device=self.device)
        return due or self.stopping

    def _check_finite(self) -> None:
        for name in not_finite(self.model):
            if name not in self.exempt:
                raise FloatingPointError(
                    f"{self.stage}: {name} is not finite after epoch {self.epoch + (self.index > 0)}, "
                    f"batch {self.index}; {self.last_save}. {_REMEDY}"
                )

    def _save(self) -> None:
        if self.store is None:
            return
        self._check_finite()  # weights that are not finite never replace good ones
        losses, hits = self.world.sum(self.losses.clone()), self.world.sum(self.hits.clone())
        finished, teacher = self.epoch == self.config.epochs, self.feed.drifting_teacher()
        state: dict[str, Any] = {}
        if self.world.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "members": getattr(self.model, "members", None),
                "buffers": passing_buffers(self.model),
                # a finished run needs none: two thirds of the file
                "optimiser": None if finished else self.update.optimiser.state_dict(),
                "scaler": None if finished else self.update.scaler.state_dict(),
                "teacher": None if teacher is None else teacher.state_dict(),
                "teacher_buffers": {} if teacher is None else passing_buffers(teacher),
                "epoch": self.epoch,
                "batch": self.index,
                "seconds": self.seconds,
                "losses": losses.cpu(),
                "hits": hits.cpu(),
                "history": [dataclasses.asdict(row) for row in self.history],
            }
        with self.pace.saving():
            self._write(state)
        self.last_save = self.store.where(self.epoch, self.index)

    def _write(self, state: dict[str, Any]) -> None:
        assert self.store is not None
        store, history = self.store, self.history

        def save() -> None:
            # the log first: after a finished checkpoint nothing is written any more
            store.log(row for epoch in history for row in rows(epoch))
            store.save(state)
            self.last_save = store.where(self.epoch, self.index)

        try:
            self.world.first(save, self.device)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.stage}: {error.strerror}; {self.last_save}: make room and call again with "
                "resume=True",
            ) from error

    def _now(self) -> float:
        self.watch.synchronize()
        return time.perf_counter()
