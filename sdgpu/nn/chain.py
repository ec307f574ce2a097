"""Self-distillation chains of networks, with the weight by Algorithm 1 (Section 5).

Every step starts again from the same weights and sees the same order and views, so that steps and
weights differ in their targets alone, as in the theory. alpha-hat is alpha* (16) with Frobenius norms
on validation data, by the very function that serves the kernel engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.backend.checks import choice, integer, schedule
from sdgpu.backend.copying import copy_module
from sdgpu.backend.distributed import join
from sdgpu.backend.progress import Progress
from sdgpu.backend.storage import clean_folder, digest, write_file
from sdgpu.nn.alpha_hat import estimate_alpha
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import Score, predict, score
from sdgpu.nn.records import TrainResult
from sdgpu.nn.resnet import make_model
from sdgpu.nn.targets import Teacher
from sdgpu.nn.trainer import train
from sdgpu.nn.training_files import check_replaceable

__all__ = ["Chain", "StepRecord", "distill_chain"]

#: A network to start from; or its name, or a factory, which a chain calls with its seed set. A factory that
#: calls make_model sets the seed again: give the name and `stem` instead.
Model = nn.Module | str | Callable[[], nn.Module]


@dataclass(frozen=True)
class StepRecord:
    """What one step of a chain left.

    Attributes
    ----------
    step : int
        From 1, the ordinary fit.
    alpha : float or None
        Weight of the ground truth; None at step 1.
    estimate : float or None
        alpha-hat before clipping, with Algorithm 1.
    train, val, test : Score or None
        On clean images; None where there are none.
    fits : int
        Made for this step: 2 with Algorithm 1, or 1 where its weight is 0 or 1.
    seconds : float
        Of training, over these fits.
    path : str or None
        The checkpoint with the weights, if a folder was given; :func:`~sdgpu.nn.load_weights` reads it.
    member : int or None
        Which of the networks in that file, where several were trained side by side.
    """

    step: int
    alpha: float | None
    estimate: float | None
    train: Score
    val: Score | None
    test: Score | None
    fits: int
    seconds: float
    path: str | None
    member: int | None = None


@dataclass(frozen=True)
class Chain:
    """A chain of networks.

    Attributes
    ----------
    seed : int
        Of the initialisation.
    rule : str
        "algorithm1", or the weights as they were given.
    records : tuple of StepRecord
    models : tuple of Module
        Of steps 1..T, in evaluation mode.
    shared_fits : int
        Those of `records` that were made for another chain too (the first step of a grid).
    """

    seed: int
    rule: str
    records: tuple[StepRecord, ...]
    models: tuple[nn.Module, ...]
    shared_fits: int = 0

    @property
    def alphas(self) -> np.ndarray:
        """Weights of steps 2..T, (T - 1,)."""
        return np.array([record.alpha for record in self.records[1:]], dtype=float)

    @property
    def fits(self) -> int:
        """Fits made for this chain and no other: at most 2 (T - 1) + 1 with Algorithm 1."""
        return sum(record.fits for record in self.records) - self.shared_fits

    @property
    def best_step(self) -> int:
        """The step with the smallest validation loss: a greedy chain is not monotone in it.

        Raises
        ------
        ValueError
            Without validation images.
        """
        losses = [float("nan") if r.val is None else r.val.loss for r in self.records]
        if not np.isfinite(losses).all():
            raise ValueError("best_step needs validation images: give data.val")
        return int(np.argmin(losses)) + 1

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each step, for a table or a CSV file."""
        return [{"seed": self.seed, "rule": self.rule, **_flat(record)} for record in self.records]


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
    stem: str = "cifar",
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
        a fit with alpha = 0.
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
        Step 1, if it has been trained, or any other network as the first teacher. What it was trained on
        is not known: a weight of 1 is then trained on the labels, and not `first` again.
    stem : {"cifar", "imagenet"}, default "cifar"
        First layers of a network given by its name, see :func:`~sdgpu.nn.resnet.make_model`.

    Returns
    -------
    Chain
        Cost: T fits, or up to 2 (T - 1) + 1 with Algorithm 1. A weight of 0 has been fitted on the
        way, and a weight of 1 is step 1 again, bit for bit: neither is fitted a second time.

    Raises
    ------
    TypeError, ValueError
        Before any fit: a schedule of the wrong length or not finite, Algorithm 1 without validation
        images; and see :func:`~sdgpu.nn.trainer.train`.
    """
    integer("steps", steps, 1)
    if isinstance(alphas, str):
        choice("alphas", alphas, ("algorithm1",))
        if data.val is None or not len(data.val):
            raise ValueError("alphas='algorithm1' needs validation images: give data.val")
    else:
        schedule(alphas, steps)
    if clip and not isinstance(alphas, str):
        raise ValueError("clip=True concerns alphas='algorithm1' alone: clip the schedule yourself")
    if first is not None and not isinstance(first, TrainResult):
        raise TypeError(
            f"first must be a TrainResult, as train gives it, not {type(first).__name__}"
        )
    initial = start(model, data, config, stem)
    lab = Lab(
        initial=initial,
        data=data,
        config=config,
        folder=_path(folder),
        progress=progress,
        resume=resume,
        fits_first=first is None,
    )
    return run_chain(lab, first, steps=steps, alphas=alphas, clip=clip)


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
    weights = None if isinstance(alphas, str) else schedule(alphas, steps)
    result = first if first is not None else lab.fit("step-1", None)
    records = [lab.record(1, result, seconds=result.seconds)]
    results = [result]
    P1 = lab.on_validation(result.model) if weights is None else None
    for step in range(2, steps + 1):
        if P1 is None:
            assert weights is not None
            result, record = lab.step(step, results, float(weights[step - 2]))
        else:
            result, record = lab.greedy_step(step, results, P1, clip=clip)
        records.append(record)
        results.append(result)
    chain = Chain(
        lab.config.init_seed,
        rule_name(alphas),
        tuple(records),
        tuple(result.model for result in results),
        int(first is not None),
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
    fits_first: bool = (
        True  # step 1 is a fit of this lab, and not any network that the caller gives
    )

    def fit(self, name: str, targets: Teacher | torch.Tensor | None) -> TrainResult:
        """One training, in a folder of its own."""
        return train(
            self.initial,
            self.data,
            targets,
            self.config,
            folder=None if self.folder is None else self.folder / name,
            progress=self.progress,
            resume=self.resume,
            stage=name,
        )

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
        if alpha == 1 and self.fits_first:
            first = results[0]
            result = TrainResult(
                model=first.model,
                history=(),
                seconds=0.0,
                images_per_second=0.0,
                status="step 1 again",
                path=first.path,
                member=first.member,
            )
        elif zero is not None and alpha == 0:
            result = zero
        else:
            # with the weight 1 the teacher says nothing
            teacher = None if alpha == 1 else Teacher(results[-1].model, alpha)
            result = self.fit(f"step-{step}", teacher)
            seconds, fits = seconds + result.seconds, fits + 1
        record = self.record(
            step, result, alpha=alpha, estimate=estimate, fits=fits, seconds=seconds
        )
        return result, record

    def greedy_step(
        self, step: int, results: Sequence[TrainResult], P1: torch.Tensor, *, clip: bool
    ) -> tuple[TrainResult, StepRecord]:
        """Step of Algorithm 1: fit with alpha = 0, take alpha-hat from it, fit again."""
        zero = self.fit(f"step-{step}-alpha-0", Teacher(results[-1].model, 0.0))
        P0 = self.on_validation(zero.model)
        estimate = estimate_alpha(P1, P0, self.data.val.one_hot(P1.dtype))
        alpha = float(np.clip(estimate, 0.0, 1.0)) if clip else estimate
        return self.step(step, results, alpha, estimate=estimate, zero=zero)

    def on_validation(self, model: nn.Module) -> torch.Tensor:
        """Predictions (m, c) on the validation images."""
        return predict(model, self.data.val, self.config)

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
            else score(predict(result.model, part, self.config), part)
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

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        device = self.data.train.device
        join(device).first(action, device)


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


def _flat(record: StepRecord) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in asdict(record).items():
        if name in ("train", "val", "test"):
            for metric in ("loss", "accuracy"):
                row[f"{name}_{metric}"] = None if value is None else value[metric]
            if value is not None and value["clean_accuracy"] is not None:
                row[f"{name}_clean_accuracy"] = value["clean_accuracy"]
        else:
            row[name] = value
    return row


def rule_name(alphas: float | Sequence[float] | str) -> str:
    """Give "algorithm1", or the weights as text, exact enough to tell any two apart."""
    if isinstance(alphas, str):
        return alphas
    return " ".join(
        repr(alpha) for alpha in np.atleast_1d(np.asarray(alphas, dtype=float)).tolist()
    )


def rule_folder(*rules: float | Sequence[float] | str) -> str:
    """Name rules in a folder's name, which has 255 bytes at most."""
    name = "_".join(rule_name(rule) for rule in rules)
    return name if len(name) <= 100 else f"{len(rules)}-{digest(name).removeprefix('xxh3:')}"


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)
