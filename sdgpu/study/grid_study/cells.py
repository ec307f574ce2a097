"""The cells of a study, and the decompositions that they share.

A cell is one data set, seed, level of noise, kernel, method and precision; its lam, weights and steps come
from one decomposition. Cells that differ in noise alone share it where the method has all eigenvalues: a
:class:`Decomposition` is what is worked on at a time. Cells whose rows are shared out among workers share
what these send.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sdgpu.backend.checksums import digest
from sdgpu.distill.smoothers import RIDGE
from sdgpu.study.grid_study.configuration import DataTable, MethodTable, StudyConfig
from sdgpu.study.grid_study.federated_table import SHARED_AXES, Answer, Sharing
from sdgpu.study.grid_study.kernel_tables import KernelTable

__all__ = [
    "AXES",
    "Cell",
    "Decomposition",
    "KernelPoint",
    "MethodPoint",
    "axes_of",
    "decompositions",
    "place_on",
]

FORMAT = 1  # of what a cell file says; another one is computed anew

#: What tells the cells of a study apart, in this order.
AXES = ("data", "rows", "seed", "noise", "kernel", "parameters", "method", "size", "precision")


def axes_of(config: StudyConfig) -> tuple[str, ...]:
    """:data:`AXES`, and those of workers where a study has them."""
    return AXES if config.federated is None else (*AXES, *SHARED_AXES)


def place_on(axis: str, record: Mapping[str, Any]) -> Any:
    """Of a cell by its record; one with all rows may have been made before there were workers."""
    return record.get(axis, SHARED_AXES[axis]) if axis in SHARED_AXES else record[axis]


@dataclass(frozen=True)
class KernelPoint:
    """One kernel: its name and one value of each parameter."""

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def label(self) -> str:
        """Parameters as a reader writes them: "gamma=0.1"."""
        return ", ".join(f"{name}={value:.6g}" for name, value in self.parameters)


@dataclass(frozen=True)
class MethodPoint:
    """One way to fit."""

    name: str = "auto"
    operator: str = "auto"
    features: str | None = None
    size: int | None = None
    landmarks: str = "rpcholesky"
    intercept: bool | None = None
    learn: tuple[str, ...] | None = None
    learn_by: str = "loo"
    smoother: str = RIDGE.name
    later_lam: float = 1.0

    @property
    def has_intercept(self) -> bool:
        """Whether a mean is fitted too: by default with features."""
        return self.features is not None if self.intercept is None else self.intercept

    @property
    def label(self) -> str:
        """The method, or the features and how landmarks are picked; and what is said of an intercept."""
        words = [self.name if self.features is None else self.features]
        if self.features is None and self.operator != "auto":
            words.append(self.operator)
        if self.features == "nystrom":
            words.append(self.landmarks)
        if self.intercept is not None:
            words.append("intercept" if self.intercept else "no intercept")
        if self.learn is not None:
            words.append(f"learned {' and '.join(self.learn)} by {self.learn_by}")
        if self.smoother != RIDGE.name:
            words.append(self.smoother)
        if self.later_lam != 1:
            words.append(f"later lam x {self.later_lam:g}")
        return ", ".join(words)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    key : str
        Name of its file: readable, and a digest of everything that decides its numbers.
    labels : mapping
        Its place on every one of :data:`AXES`, and on those of workers if it has some.
    noise : float
    answer : Answer, optional
        Of workers.
    """

    key: str
    labels: Mapping[str, int | float | str | None]
    noise: float
    answer: Answer | None = None


@dataclass(frozen=True)
class Decomposition:
    """What is decomposed at a time, and the cells that it serves.

    Attributes
    ----------
    data : DataTable
    seed : int
    kernel : KernelPoint
    method : MethodPoint
    precision : str
    config : StudyConfig
    sharing : Sharing, optional
        Of its rows among workers.
    """

    data: DataTable
    seed: int
    kernel: KernelPoint
    method: MethodPoint
    precision: str
    config: StudyConfig = field(repr=False)
    sharing: Sharing | None = None

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """One for each level of noise, and for each answer of workers."""
        levels, table = self.config.noise.levels, self.config.federated
        if self.sharing is None or table is None:
            return tuple(self._cell(level, None) for level in levels)
        return tuple(self._cell(level, answer) for level in levels for answer in table.points)

    def _cell(self, noise: float, answer: Answer | None) -> Cell:
        labels: dict[str, int | float | str | None] = {
            "data": self.data.source,
            "rows": self.data.rows,
            "seed": self.seed,
            "noise": noise,
            "kernel": self.kernel.name,
            "parameters": self.kernel.label,
            "method": self.method.label,
            "size": self.method.size,
            "precision": self.precision,
        }
        config = self.config
        if self.sharing is not None and answer is not None:
            places = (self.sharing.workers, self.sharing.split, answer.sent, answer.kind)
            labels |= dict(zip(SHARED_AXES, places, strict=True))
        decides = {
            "format": FORMAT,
            "labels": labels,
            "parameters": self.kernel.parameters,
            "operator": self.method.operator,
            "data": self.data.model_dump(),
            "noise": config.noise.kind,
            "grid": config.grid.model_dump(),
            "choose": config.choose.model_dump(),
            "keep": config.results.keep,
            "tol": config.compute.tol,
        }
        if config.teacher is not None:
            decides["teacher"] = config.teacher.model_dump()
        if config.interval is not None:
            decides["interval"] = config.interval.model_dump()
        if config.synthetic_labels is not None:
            decides["synthetic_labels"] = config.synthetic_labels.model_dump()
        if config.federated is not None and answer is not None:
            decides["federated"] = {"unlabelled": config.federated.unlabelled}
        code = digest(json.dumps(decides, sort_keys=True)).removeprefix("xxh3:")[:12]
        source = re.split(r"[\\/]", self.data.source)[-1].split(".")[0]
        words = [source, str(self.seed), self.kernel.name, self.method.features or self.method.name]
        return Cell(
            "-".join([re.sub(r"[^A-Za-z0-9]+", "_", word) for word in words] + [code]),
            labels,
            noise,
            answer,
        )


def decompositions(config: StudyConfig) -> list[Decomposition]:
    """All decompositions of a study, those of one data set and seed together.

    Raises
    ------
    ValueError
        If they are more than ``max_fits`` of ``[compute]``: says how many.
    """
    sizes: tuple[int, ...] = (
        len(config.data),
        len(config.seeds),
        sum(math.prod(map(len, table.given.values())) for table in config.kernel),
        sum(len([*_method_points(table)]) for table in config.method),
        len(config.compute.precision),
    )
    shared = [] if config.federated is None else config.federated.sharings
    axes = "data, seeds, kernels, methods, precisions"
    if shared:
        sizes, axes = (*sizes, 1 + len(shared)), f"{axes}, all rows and workers"
    count, most = math.prod(sizes), config.compute.max_fits
    if count > most:
        raise ValueError(
            f"the study has {count:,} fits ({' x '.join(map(str, sizes))}: {axes}), above max_fits = "
            f"{most:,} of [compute]: take fewer, or raise max_fits"
        )
    kernels = [point for table in config.kernel for point in _kernel_points(table)]
    methods = [point for table in config.method for point in _method_points(table)]
    points = itertools.product(
        config.data, config.seeds, kernels, methods, config.compute.precision
    )
    return [
        Decomposition(*point, config, sharing) for point in points for sharing in (None, *shared)
    ]


def _kernel_points(table: KernelTable) -> Iterator[KernelPoint]:
    given = table.given
    for values in itertools.product(*given.values()):
        yield KernelPoint(table.name, tuple(zip(given, values, strict=True)))


def _method_points(table: MethodTable) -> Iterator[MethodPoint]:
    factors = table.later_lam_over_first or (1.0,)
    for size, factor in itertools.product(table.size or (None,), factors):
        yield MethodPoint(
            name=table.name,
            operator=table.operator,
            features=table.features,
            size=size,
            landmarks=table.landmarks,
            intercept=table.intercept,
            learn=table.learn,
            learn_by=table.learn_by,
            smoother=table.smoother,
            later_lam=factor,
        )
