"""Self-distillation chains of networks, with the weight by Algorithm 1 (Section 5).

Every step starts again from the same weights and sees the same order and views, so that steps and
weights differ in their targets alone, as in the theory. alpha-hat is alpha* (16) with Frobenius norms
on validation data, by the very function that serves the kernel engine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.backend.checks import choice, integer, schedule
from sdgpu.backend.copying import copy_module
from sdgpu.backend.distributed import World, join
from sdgpu.backend.progress import Progress
from sdgpu.backend.storage import clean_folder, write_file
from sdgpu.nn.alpha_hat import estimate_alpha
from sdgpu.nn.chain_records import Chain, StepRecord, rule_name
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import predict, score
from sdgpu.nn.listening import OnEpoch, labelled
from sdgpu.nn.network_teachers import SavedTeacher, Teacher, TeacherEnsemble
from sdgpu.nn.preconditions import check_cacheable
from sdgpu.nn.records import FitLabel, TrainResult
from sdgpu.nn.resnet import make_model
from sdgpu.nn.trainer import train
from sdgpu.nn.training_files import check_replaceable, shapes

__all__ = ["FirstTeacher", "Lab", "Model", "check_weights", "distill_chain", "run_chain", "start"]

#: A network to start from; or its name, or a factory, which a chain calls with its seed set. A factory that
#: calls make_model sets the seed again: give the name and `stem` instead.
Model = nn.Module | str | Callable[[], nn.Module]
FirstTeacher = nn.Module | SavedTeacher | TeacherEnsemble


def distill_chain(
    model: Model,
    data: Any,
    config: Config,
    *,
    steps: int,
    alphas: float | Sequence[float] | str,
    clip: bool = False,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    first: TrainResult | None = None,
    first_teacher: FirstTeacher | None = None,
    stem: str = "cifar",
    on_epoch: OnEpoch | None = None,
) -> Chain:
    """Train a chain of T networks, each on the ground truth and the network before it.

    Parameters
    ----------
    model : Module, str or callable
        Where every step starts: a network, or what :func:`~sdgpu.nn.resnet.make_model` makes with
        `config.init_seed`.
    data : Data
        `val` is needed by Algorithm 1, and must not be the test set.
    config : Config
        Of every fit.
    steps : int
        T, at least 1.
    alphas : float, sequence of T - 1 floats, or "algorithm1"
        Weights of the ground truth at steps 2..T, any finite numbers; or alpha-hat at every step, from
        a fit with alpha = 0. With `first_teacher` there are T, of steps 1..T.
    clip : bool, default False
        Clip each alpha-hat to [0, 1] before the next step builds on it.
    folder : path, optional
        One folder for each fit (step-1, step-2-alpha-0, step-2, ...) and chain.json. A chain that was
        cut off goes on where it was, in the middle of an epoch if need be.
    progress : callable, optional
        Hears of every fit by its name.
    resume : bool, default True
        False trains everything anew.
    first : TrainResult, optional
        Step 1, if it has been trained. What it was trained on is not known: a weight of 1 is then trained
        on the labels, and not `first` again. Of another architecture it is a `first_teacher`.
    first_teacher : Module, SavedTeacher or TeacherEnsemble, optional
        Whom step 1 learns from, at the weight alphas[0]: another architecture, predictions from a file.
        It is no step of this chain, and step 1 is no ordinary fit: its checkpoint lies in
        ``taught-step-1``, the records name the teacher, and a folder that was begun with another teacher is
        refused.
    stem : {"cifar", "imagenet"}, default "cifar"
        First layers of a network given by its name, see :func:`~sdgpu.nn.resnet.make_model`.
    on_epoch : callable, optional
        Hears every :class:`~sdgpu.nn.Epoch` of every fit; its `fit` says which. True ends that fit, and the
        chain goes on from it. An error that it raises ends the chain, which may be called again.

    Returns
    -------
    Chain
        Cost: T fits, or up to 2 (T - 1) + 1 with Algorithm 1. A weight of 0 has been fitted on the
        way, and a weight of 1 is step 1 again, bit for bit: neither is fitted a second time. With
        `first_teacher` up to 2 T + 1: (16) compares with the ordinary fit, which is fitted for it.

    Raises
    ------
    TypeError, ValueError
        Before any fit: a schedule of the wrong length or not finite, Algorithm 1 without validation
        images; and see :func:`~sdgpu.nn.trainer.train`.
    """
    if integer("steps", steps, 1) > 1:
        check_cacheable(data.train, config)
    if isinstance(alphas, str):
        choice("alphas", alphas, ("algorithm1",))
        if data.val is None or not len(data.val):
            raise ValueError("alphas='algorithm1' needs validation images: give data.val")
    else:
        check_weights(alphas, steps, taught=first_teacher is not None)
    if clip and not isinstance(alphas, str):
        raise ValueError("clip=True concerns alphas='algorithm1' alone: clip the schedule yourself")
    if first is not None and not isinstance(first, TrainResult):
        raise TypeError(
            f"first must be a TrainResult, as train gives it, not {type(first).__name__}"
        )
    if first is not None and first_teacher is not None:
        raise ValueError(
            "first is step 1 and first_teacher is whom step 1 learns from: give one of them"
        )
    with join(data.train.device).ending_together(data.train.device):
        initial = start(model, data, config, stem)
        _check_first(first, initial)
        lab = Lab(
            initial=initial,
            data=data,
            config=config,
            folder=_path(folder),
            progress=progress,
            resume=resume,
            fits_first=first is None,
            first_teacher=first_teacher,
            on_epoch=on_epoch,
        )
        return run_chain(lab, first, steps=steps, alphas=alphas, clip=clip)


def _check_first(first: TrainResult | None, initial: nn.Module) -> None:
    """Refuse a step 1 that no training of the student can have given."""
    if first is None:
        return
    given, own = shapes(first.model), shapes(initial)
    different = sorted(name for name in {*given, *own} if given.get(name) != own.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"first is step 1 of this chain, but of another architecture ({name}: {given.get(name)}, the "
            f"student's {own.get(name)}): as a teacher of step 1 give first_teacher=first.model"
        )


def check_weights(alphas: Any, steps: int, *, taught: bool) -> np.ndarray:
    """Weights of steps 2..T, (T - 1,); where step 1 has a teacher of steps 1..T, (T,).

    Raises
    ------
    TypeError, ValueError
        For anything but finite numbers, or more or fewer.
    """
    if not taught:
        return schedule(alphas, steps)
    count = np.size(np.asarray(alphas))
    if np.ndim(alphas) and count != steps:
        raise ValueError(
            f"alphas has {count} weights, but with first_teacher steps={steps} needs one number or {steps} "
            f"of them, one per step 1..{steps}"
        )
    return schedule(alphas, steps + 1)


def run_chain(
    lab: Lab,
    first: TrainResult | None,
    *,
    steps: int,
    alphas: float | Sequence[float] | str,
    clip: bool = False,
) -> Chain:
    """The chain of :func:`distill_chain` with what its fits share at hand; rules have been checked."""
    lab.check()
    lab = replace(lab, rule=rule_name(alphas))
    taught = lab.first_teacher is not None
    weights = None if isinstance(alphas, str) else check_weights(alphas, steps, taught=taught)
    ordinary = first
    if ordinary is None and (not taught or weights is None):
        ordinary = lab.fit("step-1", None, step=1)
    P1 = lab.on_validation(ordinary.model) if weights is None and ordinary is not None else None
    records: list[StepRecord] = []
    results: list[TrainResult] = []
    if not taught and ordinary is not None:
        records.append(lab.record(1, ordinary, seconds=ordinary.seconds))
        results.append(ordinary)
    lab = replace(lab, ordinary=ordinary if lab.fits_first else None)
    for step in range(len(results) + 1, steps + 1):
        if P1 is None:
            assert weights is not None
            result, record = lab.step(step, results, float(weights[step - 2 + taught]))
        else:
            result, record = lab.greedy_step(step, results, P1, clip=clip)
        if taught and step == 1 and first is None and ordinary is not None:  # fitted for (16) alone
            record = replace(
                record, fits=record.fits + 1, seconds=record.seconds + ordinary.seconds
            )
        records.append(record)
        results.append(result)
    chain = Chain(
        lab.config.init_seed,
        lab.rule,
        tuple(records),
        tuple(result.model for result in results),
        int(first is not None and not taught),
        lab.teacher_name or None,
    )
    lab.finish(chain)
    return chain


@dataclass(frozen=True)
class Lab:
    """What all fits of a chain share."""

    initial: nn.Module
    data: Any
    config: Config
    folder: Path | None
    progress: Progress | None
    resume: bool
    fits_first: bool = True  # step 1 is a fit of this lab, and not one that the caller gives
    first_teacher: FirstTeacher | None = None  # whom step 1 learns from
    ordinary: TrainResult | None = None  # the fit to the labels, where there is one
    on_epoch: OnEpoch | None = None
    rule: str = ""

    @cached_property
    def teacher_name(self) -> str:
        """What records call the first teacher: it, and a checksum of all of its bits."""
        if self.first_teacher is None:
            return ""
        return f"first teacher {Teacher(self.first_teacher, 0.0).identity()}"

    def fit(
        self, name: str, targets: Teacher | None, *, step: int, alpha: float | None = None
    ) -> TrainResult:
        """One training, in a folder of its own."""
        return train(
            self.initial,
            self.data,
            targets,
            # of more epochs a teacher is another, and so are all students after it
            dataclasses.replace(self.config, extendable=False),
            folder=None if self.folder is None else self.folder / name,
            progress=self.progress,
            resume=self.resume,
            stage=name,
            on_epoch=labelled(self.on_epoch, self.label(step, alpha, self.rule)),
        )

    def label(self, step: int, alpha: float | None, rule: str) -> FitLabel:
        """What the caller hears of a fit."""
        return FitLabel(step=step, alpha=alpha, rule=rule or None, seed=self.config.init_seed)

    def step(
        self,
        step: int,
        results: Sequence[TrainResult],
        alpha: float,
        *,
        estimate: float | None = None,
        zero: TrainResult | None = None,
    ) -> tuple[TrainResult, StepRecord]:
        """Step with a known weight; `zero` is the fit with alpha = 0, if it has been made."""
        seconds, fits = (0.0, 0) if zero is None else (zero.seconds, 1)
        told = f"step {step - 1}" if step > 1 else self.teacher_name
        first = self.ordinary
        if alpha == 1 and first is not None:
            result = TrainResult(
                model=first.model,
                history=(),
                seconds=0.0,
                images_per_second=0.0,
                status="step 1 again" if self.first_teacher is None else "the ordinary fit",
                path=first.path,
                member=first.member,
            )
        elif zero is not None and alpha == 0:
            result = zero
        else:
            # with the weight 1 the teacher says nothing
            teacher = None if alpha == 1 else self.teacher(results, alpha)
            result = self.fit(f"{self.prefix}step-{step}", teacher, step=step, alpha=alpha)
            seconds, fits = seconds + result.seconds, fits + 1
        record = self.record(
            step, result, alpha=alpha, estimate=estimate, fits=fits, seconds=seconds
        )
        return result, replace(record, teacher=None if alpha == 1 else told)

    def teacher(self, results: Sequence[TrainResult], alpha: float) -> Teacher:
        """The step before, or for the first one whom the caller gave."""
        model = results[-1].model if results else self.first_teacher
        assert model is not None
        return Teacher(model, alpha)

    @property
    def prefix(self) -> str:
        """Of folders: a step of a chain with a first teacher is never taken for one without."""
        return "" if self.first_teacher is None else "taught-"

    def greedy_step(
        self, step: int, results: Sequence[TrainResult], P1: torch.Tensor, *, clip: bool
    ) -> tuple[TrainResult, StepRecord]:
        """Step of Algorithm 1: fit with alpha = 0, take alpha-hat from it, fit again."""
        name = f"{self.prefix}step-{step}-alpha-0"
        zero = self.fit(name, self.teacher(results, 0.0), step=step, alpha=0.0)
        P0 = self.on_validation(zero.model)
        estimate = estimate_alpha(P1, P0, self.data.val.one_hot(P1.dtype))
        alpha = float(np.clip(estimate, 0.0, 1.0)) if clip else estimate
        return self.step(step, results, alpha, estimate=estimate, zero=zero)

    def on_validation(self, model: nn.Module) -> torch.Tensor:
        """Predictions (m, c) on the validation images."""
        return predict(model, self.data.val, self.config, world=self.world)

    def record(
        self,
        step: int,
        result: TrainResult,
        *,
        alpha: float | None = None,
        estimate: float | None = None,
        fits: int = 1,
        seconds: float,
    ) -> StepRecord:
        """Score a model on all there is."""
        train_score, val, test = (
            None
            if part is None or not len(part)
            else score(predict(result.model, part, self.config, world=self.world), part)
            for part in (self.data.train, self.data.val, self.data.test)
        )
        assert train_score is not None
        scores = (train_score, val, test)
        place = (result.path, result.member)
        return StepRecord(step, alpha, estimate, *scores, fits, seconds, *place)

    def check(self) -> None:
        """Refuse a chain.json of something else, which :meth:`finish` would replace; remove leftovers.

        Raises
        ------
        ValueError
        """
        if self.folder is not None:
            folder = self.folder

            def prepare() -> None:
                clean_folder(folder)
                check_replaceable(folder / "chain.json", '"step"')

            self._on_first_rank(prepare)

    def finish(self, chain: Chain) -> None:
        """Write chain.json."""
        if self.folder is not None:
            folder, text = self.folder, json.dumps(chain.rows(), indent=2) + "\n"

            def write() -> None:
                folder.mkdir(parents=True, exist_ok=True)
                write_file(folder / "chain.json", text.encode())

            self._on_first_rank(write)

    @property
    def world(self) -> World:
        """The processes that share out what networks are asked."""
        return join(self.data.train.device)

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        self.world.first(action, self.data.train.device)


def start(model: Model, data: Any, config: Config, stem: str = "cifar") -> nn.Module:
    """The network that every step starts from, on the device of the data."""
    images = data.train
    if not isinstance(model, nn.Module):
        if isinstance(model, str) and len(images.shape) != 3:
            raise ValueError(
                f"model={model!r} is for images (C, H, W), but the samples are {images.shape}: give a "
                "torch.nn.Module, or a function that builds one"
            )
        model = make_model(
            model,
            classes=images.classes,
            channels=images.shape[0] if len(images.shape) == 3 else 1,
            seed=config.init_seed,
            stem=stem,
        )
    return copy_module(model).to(images.device)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)
