"""What a chain of networks leaves: a record for each step, its models, and names for files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from sdgpu.backend.checksums import digest
from sdgpu.nn.evaluate import Score

__all__ = ["Chain", "StepRecord", "rule_folder", "rule_name"]


@dataclass(frozen=True)
class StepRecord:
    """What one step of a chain left.

    Attributes
    ----------
    step : int
        From 1, the ordinary fit; with a first teacher its student.
    alpha : float or None
        Weight of the ground truth; None for the ordinary fit.
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
    teacher : str or None
        Whom the step learned from: "step 1", or "first teacher" and its checksum; None for the labels.
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
    teacher: str | None = None


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
    first_teacher : str or None
        Whom step 1 learned from, if it is no ordinary fit: "first teacher" and its checksum.
    """

    seed: int
    rule: str
    records: tuple[StepRecord, ...]
    models: tuple[nn.Module, ...]
    shared_fits: int = 0
    first_teacher: str | None = None

    @property
    def alphas(self) -> np.ndarray:
        """Weights of steps 2..T, (T - 1,); with a first teacher of steps 1..T, (T,)."""
        records = self.records[1:] if self.first_teacher is None else self.records
        return np.array([record.alpha for record in records], dtype=float)

    @property
    def fits(self) -> int:
        """Fits made for this chain and no other: at most 2 (T - 1) + 1 with Algorithm 1.

        With a first teacher at most 2 T + 1: the ordinary fit, that Algorithm 1 needs, counts at step 1.
        """
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
