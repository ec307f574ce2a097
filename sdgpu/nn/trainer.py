"""One training run: a loop that owns nothing but the position, and can be cut off anywhere.

The data and one target a row lie on the device, every random number follows from (seed, epoch, batch),
and the learning rate from the position. So weights, optimiser and position are the whole state, and a
run resumed in the middle of an epoch gives the same bits on the CPU.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdgpu.backend.copying import copy_module
from sdgpu.backend.distributed import join
from sdgpu.backend.progress import Progress, Stopwatch
from sdgpu.backend.shared_end import arrive
from sdgpu.nn.augment import SeedsAhead
from sdgpu.nn.averages import WeightAverage
from sdgpu.nn.batches import Batch, row_weights
from sdgpu.nn.config import Config
from sdgpu.nn.epoch_sums import EpochSums
from sdgpu.nn.evaluate import autocast, channels_come_last, float_type, predict, score
from sdgpu.nn.gradient_average import average_over
from sdgpu.nn.listening import OnEpoch, ask
from sdgpu.nn.loss import data_loss
from sdgpu.nn.model_outputs import logits_of
from sdgpu.nn.preconditions import check_goes_on, check_networks, check_request
from sdgpu.nn.records import Epoch, Number, TrainResult, as_numbers, without_members
from sdgpu.nn.shared_norm import own_batch_norm, share_batch_norm
from sdgpu.nn.stopping import best_epoch, patience_ended
from sdgpu.nn.targets import Feed, Teacher
from sdgpu.nn.training_saves import Saver
from sdgpu.nn.training_setup import (
    clock,
    compiled,
    keep_freed_memory,
    not_finite,
    numerics,
    resting,
    seed_draws,
    start_training,
)
from sdgpu.nn.training_state import TrainingState, owner
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
    on_epoch: OnEpoch | None = None,
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
        Go on from the checkpoint in `folder`; a finished one is returned at once, and goes on if `epochs`
        has been raised (but for the schedules "cosine" and "linear", whose rates depend on it). False
        starts anew.
    stage : str, default "train"
        Name of the run in events and errors.
    on_epoch : callable, optional
        Hears the :class:`Epoch` that has ended, on the first process; True ends the training there, None or
        False let it go on. Those of an earlier call are not told again, but for one that was not saved.
        Of a stack it hears one for each member, `fit.member`, and ends that one.

    Returns
    -------
    TrainResult

    Raises
    ------
    TypeError, ValueError
        Before any work: labels out of range, targets of another shape or not finite, batch > n, a
        checkpoint of something else or of more epochs, processes that do not divide the batch. If
        `on_epoch` returns something else than True, False or None.
    FloatingPointError
        If a loss is NaN or infinite; names the stage, epoch, batch and the last good checkpoint.
    OSError
        If a checkpoint cannot be written; the one before is intact. BlockingIOError if another training
        holds the folder.
    KeyboardInterrupt
        With a folder, Ctrl-C or SIGTERM waits until the batch is done and saved; a second one does not.
    RuntimeError
        If the teacher changed. RankFailure if another process failed, died or did not come in time.

    Notes
    -----
    A step costs a forward and a backward pass of the student; a cached teacher costs one forward
    pass over the data beforehand, one in the loop a forward pass for every step.
    """
    images = data.train
    device = images.device
    world = join(device)
    with ExitStack() as resources, world.ending_together(device), numerics(config, device):
        check_request(model, data, targets, config, folder)
        world.check(config.batch, config.accumulate, len(images))
        student = copy_module(model).to(device)
        # a checkpoint names the format that it was made in
        config = dataclasses.replace(config, channels_last=channels_come_last(student, config))
        dtype = float_type(student)
        weights = row_weights(data, config, dtype)
        check_networks(student, images, targets, config, weighted=weights is not None)
        feed = Feed(images, targets, config, dtype, world, weights=weights)
        resources.callback(feed.close)
        watch, saver = clock(device, progress), Saver(world, device, stage)
        run = _Run(student, data, feed, config, watch=watch, saver=saver, on_epoch=on_epoch)
        if folder is not None:
            run.open(Path(folder), resume=resume, resources=resources)
        return run.to_the_end()


class _Run:
    """A run in progress: its state, and what carries it on."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        feed: Feed,
        config: Config,
        *,
        watch: Stopwatch,
        saver: Saver,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.data, self.feed, self.config, self.on_epoch = data, feed, config, on_epoch
        self.watch, self.saver, self.world, self.stage = watch, saver, saver.world, saver.stage
        self.device, self.n = data.train.device, len(data.train)
        self.batches = math.ceil(self.n / config.batch)
        self.seeds = SeedsAhead(config.augment_seed, "augment")
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.update = Update(model, config, self.device)
        average = WeightAverage(model, config.ema) if config.ema else None
        self.eval_parts = resting(model)
        if self.world.size > 1:
            model = share_batch_norm(model)
        self.gradients = average_over(self.world, model, config, self.device)
        self.forward: Any = compiled(self.gradients.forward, config)
        sums = EpochSums(self.batches, getattr(model, "members", None), self.device)
        teacher = feed.drifting_teacher()
        self.state = TrainingState(model, self.update, teacher, sums, average=average)
        self.finished = False  # before this call
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        # a mask of -inf is meant so
        self.exempt = {*not_finite(model)} - trainable

    def open(self, folder: Path, *, resume: bool, resources: ExitStack) -> None:
        """Hold the folder while `resources` last; with `resume` go on from a checkpoint if it has one."""
        config = self.config
        identity = owner(self.state, self.data, self.feed, config, self.eval_parts)
        self._load(folder, identity, resume=resume)
        if self.finished:
            return  # nothing is written, so it may lie where nothing can be
        self.saver.hold(config, resume=resume, resources=resources)
        # again, for another process may have held it up to here
        self._load(folder, identity, resume=resume)
        place = folder if config.tensorboard else None
        self.saver.show(place, resources, epochs_done=self.state.epoch)

    def _load(self, folder: Path, identity: dict[str, Any], *, resume: bool) -> None:
        saved = self.saver.load(folder, identity, resume=resume)
        if saved is not None:
            state = self.state
            state.restore(saved, self.world)
            self.saver.saved(state.epoch, state.batch)
            self.finished = self.done
            check_goes_on(saved, self.config, folder)

    @property
    def done(self) -> bool:
        """Whether the training has ended, in time or before."""
        return self.state.epoch >= self.config.epochs or bool(self.state.stopped)

    def to_the_end(self) -> TrainResult:
        """Train, and give what came of it."""
        state, config, store = self.state, self.config, self.saver.store
        start_training(state.model, self.eval_parts)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.saver.begin(config.save_seconds)
        while not self.done:
            self._one_epoch()
        self.feed.check_teacher()
        self._check_finite()
        if not self.finished:
            self._save()
        image_count = state.epoch * self.n
        speed = image_count / state.seconds if state.seconds else math.inf
        status = f"{state.epoch} epochs of {self.batches} batches"
        return TrainResult(
            model=own_batch_norm(state.returned()).train(False),
            history=tuple(state.history),
            seconds=state.seconds,
            images_per_second=speed,
            status=f"{status}: {state.stopped}" if state.stopped else status,
            path=None if store is None else str(store.checkpoint),
            best_epoch=best_epoch(state.history, config.monitor),
        )

    def _one_epoch(self) -> None:
        state, saver = self.state, self.saver
        start_time = self._now()
        interval = 1 if self.device.type == "cpu" else CHECK_EVERY
        while state.batch < self.batches:
            self._one_batch()
            state.batch += 1
            pulled = saver.brake.pulled and self.world.size == 1
            if state.batch % interval == 0 or state.batch == self.batches or pulled:
                self._look()
                if state.batch < self.batches and saver.due():
                    state.seconds += self._now() - start_time
                    self._save()
                    start_time = self._now()
                    saver.brake.stop(interrupt=saver.stopping)
        state.seconds += self._now() - start_time
        self.world.share(state.model.buffers())
        self._record()
        state.epoch, state.batch = state.epoch + 1, 0
        state.sums.clear()
        self._judge()
        if not self.done and saver.due():
            self._save()
            saver.brake.stop(interrupt=saver.stopping)

    def _judge(self) -> None:
        """After an epoch: keep the best, let the caller hear, and end a training that is at its end."""
        state, config = self.state, self.config
        if config.keep == "best":
            state.keep_if_best(config.monitor)
        members: int | None = getattr(state.model, "members", None)
        answers = [False] * (members or 1)
        if self.on_epoch is not None and self.world.rank == 0:
            answers = ask(self.on_epoch, state.history[-1], self.stage)
        stops = self.world.any(*answers, device=self.device)
        if members is not None and any(stops):
            ending = [member for member, stop in enumerate(stops) if stop]
            state.ended.end(ending, state.epoch, state.models)
        if all(stops) or len(state.ended.epochs) == members:
            state.stopped = "on_epoch ended it"
        elif patience_ended(state.history, config):
            state.stopped = f"no better {config.monitor} in {config.patience} epochs"

    def _one_batch(self) -> None:
        config, state = self.config, self.state
        rate = config.rate(state.epoch, state.batch, self.batches)
        arrive(f"{self.stage}, batch {state.batch + 1} of epoch {state.epoch + 1}")
        if state.teacher is not None:
            self._seed(0)  # the teacher draws what it draws in one process, on every rank
        batch = self.feed.batch(state.epoch, state.batch)
        self._seed(1 + self.world.rank)
        self.update.begin()
        self.gradients.begin()
        size = len(batch)
        part_size = config.batch // config.accumulate
        for first in range(0, size, part_size):
            last = first + part_size >= size
            shard = self.world.shard(min(part_size, size - first))
            with self.gradients.part(last=last):
                self._backward(batch.part(slice(first + shard.start, first + shard.stop)), size)
            if config.cuda_graphs and first == 0 and not last:
                self.update.keep_gradients()
        self.gradients.finish()
        self.update.step(rate)
        if state.average is not None:
            state.average.update(state.epoch * self.batches + state.batch + 1)
        state.ended.put_back()

    def _seed(self, purpose: int) -> None:
        """Dropout draws from torch's own generator: a function of the position, like all else."""
        state = self.state
        seed_draws(self.device, self.seeds(state.epoch, state.batch, purpose))

    def _backward(self, batch: Batch, size: int) -> None:
        config = self.config
        target = self.feed.ask(batch) if batch.target is None else batch.target
        if config.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with autocast(config, self.device):
            logits = logits_of(self.forward(batch.inputs))
        loss = data_loss(
            logits,
            target,
            loss=config.loss,
            activation=config.activation,
            temperature=config.temperature,
            weights=batch.weights,
        )
        share = len(batch) / size
        total = loss.sum() if loss.ndim else loss
        # gradients are averaged over the ranks, but a batch is one sum over all of them
        if share * self.world.size != 1:
            total = total * (share * self.world.size)
        self.update.scaler.scale(total).backward()
        with torch.no_grad():
            labels = self.data.train.labels.index_select(0, batch.rows)
            hits = logits.argmax(dim=-1) == labels
            loss = loss.detach() if share == 1 else loss.detach() * share
            self.state.sums.add(self.state.batch, loss, hits.sum(dim=-1))

    def _look(self) -> None:
        """Read the losses that have come in, on all ranks at once; stop at one that is not finite."""
        state, last_save = self.state, self.saver.last
        nonfinite = state.sums.look(state.batch, self.world)
        if self.update.hopeless:
            raise FloatingPointError(
                f"{self.stage}: float16 overflows in batch after batch, the last of them epoch "
                f"{state.epoch + 1}, batch {state.batch} of {self.batches}; {last_save}. {_REMEDY}"
            )
        # in float16 a batch that overflowed changed nothing: the scaler skipped its step
        if nonfinite is not None and not self.update.scaler.is_enabled():
            batch, loss = nonfinite
            raise FloatingPointError(
                f"{self.stage}: the loss is {loss} in epoch {state.epoch + 1}, batch {batch + 1} of "
                f"{self.batches}; {last_save}. {_REMEDY}"
            )
        done = state.epoch * self.batches + state.batch
        self.watch.report(self.stage, done, self.config.epochs * self.batches)

    def _record(self) -> None:
        config, state, val = self.config, self.state, self.data.val
        losses, hits = state.sums.means(self.n, config.batch, self.world)
        if losses is None or hits is None:
            raise FloatingPointError(
                f"{self.stage}: every batch of epoch {state.epoch + 1} overflowed; {self.saver.last}. "
                f"{_REMEDY}"
            )
        cost = self.update.penalty()
        loss: Number = math.nan if losses.ndim == 0 else (math.nan,) * len(losses)
        accuracy = top5 = loss
        if val is not None and len(val):
            val_score = score(predict(state.evaluated, val, config, world=self.world), val)
            loss, accuracy, top5 = val_score.loss, val_score.accuracy, val_score.top5
        rate = config.rate(state.epoch, self.batches - 1, self.batches)
        numbers = (as_numbers(losses), as_numbers(hits), as_numbers(cost), loss, accuracy)
        record = Epoch(state.epoch + 1, rate, *numbers, state.seconds, top5)
        state.history.append(without_members(record, state.ended.epochs))
        self.saver.board.add(state.history[-1])

    def _check_finite(self) -> None:
        state = self.state
        for name in not_finite(state.model):
            if name not in self.exempt:
                raise FloatingPointError(
                    f"{self.stage}: {name} is not finite after epoch {state.epoch + (state.batch > 0)}, "
                    f"batch {state.batch}; {self.saver.last}. {_REMEDY}"
                )

    def _save(self) -> None:
        if self.saver.store is None:
            return
        self._check_finite()  # weights that are not finite never replace good ones
        state = self.state
        optimiser = self.config.extendable or not self.done
        captured = state.capture(self.world, optimiser=optimiser)
        self.saver.write(captured, state.history, state.epoch, state.batch)

    def _now(self) -> float:
        self.watch.synchronize()
        return time.perf_counter()
