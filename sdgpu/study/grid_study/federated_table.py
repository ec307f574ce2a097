"""The table of a study for rows that stay with workers, and the points that it makes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from sdgpu.study.grid_study.key_types import (
    Names,
    StudyTable,
    Whole,
    check_choice,
    check_key,
    fault_of,
    require_different,
)

__all__ = ["SHARED_AXES", "Answer", "FederatedTable", "Sharing"]

#: Axes of cells whose rows are with workers, and the place of a cell that has them all.
SHARED_AXES: Mapping[str, Any] = {"workers": 1, "split": "-", "sent": "rows", "answer": "all rows"}
SPLITS = ("random", "targets", "inputs")
ANSWERS = ("merged", "mean", "distilled")


@dataclass(frozen=True)
class Sharing:
    """Among how many workers rows are shared out, and by what."""

    workers: int
    split: str

    @property
    def label(self) -> str:
        """As a plan writes it: "10 workers, targets"."""
        return f"{self.workers} worker{'s' * (self.workers != 1)}, {self.split}"


@dataclass(frozen=True)
class Answer:
    """What workers send, moments or `rank` eigenpairs, and what the server makes of it."""

    rank: int | None
    kind: str

    @property
    def sent(self) -> str:
        """The message: "moments", or "rank 20"."""
        return "moments" if self.rank is None else f"rank {self.rank}"


class FederatedTable(StudyTable):
    """Workers with a part of the training rows each, which send what :mod:`sdgpu.federated` has.

    Every combination of `workers`, `splits`, messages and `answers` is a cell beside that of all rows. Rows
    are shared out in equal parts: drawn at random, sorted by the targets (by classes, or the first
    principal direction of several targets), or by the first principal direction of the inputs. Messages
    are moments, and spectra of each of `ranks`. The server has the validation rows, and the inputs of the
    last share `unlabelled` of the training rows, which no worker has: its student learns there.
    """

    workers: Whole
    splits: Names = ("random",)
    ranks: Whole | None = None
    answers: Names = ("merged", "mean")
    unlabelled: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _known(self) -> FederatedTable:
        for split in self.splits:
            check_choice("splits", split, SPLITS)
        for answer in self.answers:
            check_choice("answers", answer, ANSWERS)
        for name in ("workers", "splits", "ranks", "answers"):
            if getattr(self, name) is not None:
                check_key(name, require_different, getattr(self, name))
        if "distilled" in self.answers and self.unlabelled == 0:
            raise fault_of(
                "answers",
                "'distilled' needs rows of the server: unlabelled = 0.2, say, the share of training rows "
                "that it has without labels",
            )
        return self

    @property
    def sharings(self) -> list[Sharing]:
        """Every way to share out the rows."""
        return [Sharing(*point) for point in itertools.product(self.workers, self.splits)]

    @property
    def points(self) -> list[Answer]:
        """Every message and answer: those of one message together."""
        ranks = (None, *(self.ranks or ()))
        return [Answer(*point) for point in itertools.product(ranks, self.answers)]

    def server_rows(self, n: int) -> int:
        """Of n training rows those that the server has without labels."""
        return int(self.unlabelled * n)

    def check_rows(self, n: int, validation: int, landmarks: int | None) -> None:
        """Refuse what so many training and validation rows do not suffice for.

        Parameters
        ----------
        n, validation : int
        landmarks : int, optional
            Of a Nystrom map, which are picked from rows of the server.

        Raises
        ------
        ValueError
            Names the key.
        """
        u, most = self.server_rows(n), max(self.workers)
        if n - u < most:
            raise ValueError(
                f"[federated] workers = {most}: there are {n - u} training rows to share out, take fewer "
                "workers"
            )
        if "distilled" in self.answers and u == 0:
            raise ValueError(
                f"[federated] unlabelled = {self.unlabelled:g} of {n} training rows is none: take more"
            )
        if landmarks is not None and landmarks > u + validation:
            raise ValueError(
                f"[federated]: the {landmarks} landmarks of features = 'nystrom' are picked from rows "
                f"that everybody may see, and the server has {u + validation} (validation rows and those "
                "of unlabelled): take a smaller size, or features = 'fourier'"
            )
