"""Whom a student learns from: networks, predictions in memory or in a file, and several of them.

A teacher is, in the end, one row of predictions p_i for every training image: of several it is the sum of
weight times prediction. So networks, tables and mixtures of both serve every mode of `Config.teacher`;
what a table says of an image it says of every view.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.backend import checksums
from sdgpu.backend.checks import choice, number, shares
from sdgpu.backend.prediction_files import (
    OUTPUTS,
    PredictionTable,
    check_probabilities,
    dense_top_k,
    read_predictions,
)
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import checksum
from sdgpu.nn.loss import predictions
from sdgpu.nn.training_files import digest

__all__ = ["SavedTeacher", "Teacher", "TeacherEnsemble"]

ENOUGH = 30  # rows from which agreement by chance can be told


@dataclass(frozen=True, eq=False)
class SavedTeacher:
    """Predictions of a teacher that is not here: arrays, or a file (:meth:`read`).

    Attributes
    ----------
    values : array_like (n, c), or (n, k) with `indices`
        One row for each training image, in their order; or one for each row of the arrays or the file that
        they were split off from (`origin` of the part), of which the right ones are taken. Copied.
    output : {"probabilities", "logits", "predictions"}
        Probabilities are used as they are. Logits become what those of a network become, by the activation
        and the temperature of the configuration. Predictions are used as they are, whatever they are.
    indices : array_like (n, k), optional
        Of a top-k: the classes that the values are of.
    labels : array_like (n,), optional
        Of the rows, where they are known: they must be those of the training images.
    rest : {"spread", "renormalise"}, optional
        Of a top-k, see :func:`~sdgpu.backend.prediction_files.dense_top_k`.
    name : str
        For messages.

    Raises
    ------
    TypeError, ValueError
        For values that are not finite; rows of "probabilities" that do not sum to 1, as those of logits do
        not; indices of another shape.

    Examples
    --------
    >>> from sdgpu.nn import SavedTeacher, Teacher
    >>> Teacher(SavedTeacher([[2.0, -1.0], [0.5, 0.5]], output="logits"), alpha=0.3).alpha
    0.3
    """

    values: Any
    output: str = "probabilities"
    indices: Any = None
    labels: Any = None
    rest: str | None = None
    name: str = "the teacher"
    table: PredictionTable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        choice("output", self.output, OUTPUTS)
        if self.rest is not None and self.indices is None:
            raise ValueError(
                f"rest={self.rest!r} is of a top-k: give indices (n, k), or leave it out"
            )
        indices, labels = (
            None if array is None else _host(array) for array in (self.indices, self.labels)
        )
        try:
            table = PredictionTable.checked(_host(self.values), self.output, indices, labels)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        remedy = "if these are logits, say output='logits'"
        if self.output == "probabilities" and table.indices is None:
            check_probabilities(self.name, table.values, remedy)
        object.__setattr__(self, "table", table)
        for part, value in (("values", table.values), ("indices", table.indices)):
            object.__setattr__(self, part, value)  # one copy of them, which nobody else has

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], output: str | None = None, *, rest: str | None = None
    ) -> SavedTeacher:
        """Read predictions from ``.npy``, ``.npz`` or ``.parquet``.

        Parameters
        ----------
        path : path
            See :mod:`sdgpu.backend.prediction_files`.
        output : str, optional
            What the numbers are, where the file does not say; "probabilities" by default.
        rest : str, optional
            As for the class.

        Raises
        ------
        OSError, TypeError, ValueError
            As :func:`~sdgpu.backend.prediction_files.read_predictions` and the class; and if the file says
            that they are something else than `output`.
        """
        table = read_predictions(path)
        if output is not None and table.output not in (None, output):
            raise ValueError(
                f"{os.fspath(path)} says that it holds {table.output}, not output={output!r}"
            )
        return cls(
            table.values,
            output or table.output or "probabilities",
            table.indices,
            table.labels,
            rest,
            os.fspath(path),
        )

    def __len__(self) -> int:
        return len(self.table)

    def take(self, index: Any) -> SavedTeacher:
        """The rows at `index` (b,): of the part of the images that a split or a consensus left."""
        rows = np.asarray(_host(index))
        table = self.table
        return SavedTeacher(
            table.values[rows],
            self.output,
            None if table.indices is None else table.indices[rows],
            None if table.labels is None else table.labels[rows],
            self.rest,
            self.name,
        )

    def identity(self) -> str:
        """Checksum of all that decides what it says."""
        table = self.table
        arrays = [table.values] if table.indices is None else [table.values, table.indices]
        return digest(*map(torch.from_numpy, arrays)) + f" {self.output} {self.rest}"

    def check(self, images: Any, config: Config) -> None:
        """Refuse a teacher of other images or classes; warn of one that may be of other rows.

        Raises
        ------
        ValueError
        """
        own = self._of(images)
        if own is not self:
            own.check(images, config)
            return
        table, n = self.table, len(images)
        if table.labels is not None:
            # where labels were made wrong on purpose, those of a file may be the right ones
            truths = [images.labels, getattr(images, "clean_labels", None)]
            told = [truth.cpu().numpy() for truth in truths if truth is not None]
            different = min(int((table.labels != truth).sum()) for truth in told)
            if different:
                raise ValueError(
                    f"{self.name} is of other rows: {different} of its {n} labels are not those of the "
                    "training images; bring its rows into their order"
                )
        if self.output == "logits" and table.indices is not None and config.activation != "softmax":
            raise ValueError(
                f"a top-k of logits needs activation='softmax', not {config.activation!r}: of the other "
                "outputs nothing is known"
            )
        values, indices = table.values, table.indices
        self._dense(images.classes, config)  # is one
        top = values.argmax(axis=1)
        if indices is not None:
            top = np.take_along_axis(indices, top[:, None], axis=1)[:, 0]
        _warn_of_chance(self.name, top, images.labels.cpu().numpy(), images.classes)

    def on(self, images: Any, config: Config, dtype: torch.dtype) -> torch.Tensor:
        """What it says, (n, c), on the device of the images: made once, for it stays the same.

        Raises
        ------
        ValueError
            For another number of classes, and indices that do not fit.
        """
        own = self._of(images)
        P = torch.from_numpy(own._dense(images.classes, config)).to(images.device, dtype)
        if self.output != "logits" or self.table.indices is not None:
            return P
        return predictions(P, activation=config.activation, temperature=config.temperature)

    def _of(self, images: Any) -> SavedTeacher:
        """The rows of these images: all, or those that were split off from as many as there are."""
        count, n, origin = len(self.table), len(images), getattr(images, "origin", None)
        if count == n:
            return self
        if origin is not None and count == origin.total:
            return self.take(origin.rows)
        before = f", of {origin.total} before the split" if origin is not None else ""
        raise ValueError(
            f"{self.name} predicts {count} rows, but there are {n} training images{before}: one row of "
            "each is wanted, in their order, as predict(model, data.train) gives it; take(rows) picks"
        )

    def _dense(self, classes: int, config: Config) -> np.ndarray:
        """Numbers of all classes (n, c): logits as they are, of a top-k of logits probabilities."""
        table = self.table
        try:
            if table.indices is None:
                return table.dense(classes)
            logits = self.output == "logits"
            values = table.values / config.temperature if logits else table.values
            return dense_top_k(values, table.indices, classes, logits=logits, rest=self.rest)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


@dataclass(frozen=True, eq=False)
class TeacherEnsemble:
    """Several teachers as one: the sum of weight times prediction.

    Attributes
    ----------
    teachers : sequence
        Networks, :class:`SavedTeacher` or further ensembles.
    weights : sequence of float, optional
        Any finite numbers that sum to 1; equal by default. Below 0 the student leans away from a teacher.

    Raises
    ------
    TypeError, ValueError
        If there is none, one is something else, or the weights do not fit.
    """

    teachers: Sequence[Any]
    weights: Any = None

    def __post_init__(self) -> None:
        teachers = tuple(self.teachers)
        if not teachers:
            raise ValueError("teachers is empty: give at least one")
        for number_, teacher in enumerate(teachers):
            _check_kind(teacher, f"teachers[{number_}]")
        weights = shares("weights", self.weights, len(teachers), "teachers")
        object.__setattr__(self, "teachers", teachers)
        object.__setattr__(self, "weights", tuple(weights.tolist()))

    def members(self) -> Iterator[tuple[float, nn.Module | SavedTeacher]]:
        """Every network and table with its weight."""
        for weight, teacher in zip(self.weights, self.teachers, strict=True):
            for inner, member in _members(teacher):
                yield weight * inner, member


@dataclass(frozen=True, eq=False)
class Teacher:
    """Whom a student learns from, and how much it hears of the ground truth.

    Attributes
    ----------
    model : Module, SavedTeacher or TeacherEnsemble
        A trained network on the device of the data, which is evaluated and never changed; predictions; or
        several of both.
    alpha : float
        Weight of the ground truth, any finite number.

    Raises
    ------
    TypeError, ValueError
        If the model is none of these, or alpha is not finite.
    """

    model: nn.Module | SavedTeacher | TeacherEnsemble
    alpha: float

    def __post_init__(self) -> None:
        number("alpha", self.alpha)
        _check_kind(self.model, "the teacher's model")

    @property
    def networks(self) -> tuple[tuple[float, nn.Module], ...]:
        """Those that are asked for images, with their weights."""
        return tuple((w, one) for w, one in _members(self.model) if isinstance(one, nn.Module))

    @property
    def tables(self) -> tuple[tuple[float, SavedTeacher], ...]:
        """Those that have said what they say, with their weights."""
        return tuple((w, one) for w, one in _members(self.model) if isinstance(one, SavedTeacher))

    def identity(self) -> str:
        """Checksum of every bit of it: another teacher has another one."""
        if isinstance(self.model, nn.Module):
            return checksum(self.model)
        told = [f"{w!r} {checksum(network)}" for w, network in self.networks]
        told += [f"{w!r} {table.identity()}" for w, table in self.tables]
        return told[0].partition(" ")[2] if len(told) == 1 else checksums.digest("\n".join(told))

    def check(self, images: Any, config: Config) -> None:
        """Refuse what does not fit the images or the configuration.

        Raises
        ------
        ValueError
            As :meth:`SavedTeacher.check`; teacher="paper-script" with anything but one network.
        """
        for _, table in self.tables:
            table.check(images, config)
        if config.teacher == "paper-script" and not isinstance(self.model, nn.Module):
            raise ValueError(
                "teacher='paper-script' needs one network, whose batch norm drifts: with saved predictions "
                "or several teachers use 'cached', 'views' or 'online'"
            )

    def said(self, images: Any, config: Config, dtype: torch.dtype) -> torch.Tensor | None:
        """The share of the tables, sum of weight times prediction (n, c); None without any."""
        total = None
        for weight, table in self.tables:
            P = weight * table.on(images, config, dtype)
            total = P if total is None else total + P
        return total


def _members(teacher: Any) -> Iterator[tuple[float, nn.Module | SavedTeacher]]:
    if isinstance(teacher, TeacherEnsemble):
        yield from teacher.members()
    else:
        yield 1.0, teacher


def _check_kind(teacher: Any, name: str) -> None:
    if isinstance(teacher, (nn.Module, SavedTeacher, TeacherEnsemble)):
        return
    remedy = "give a torch.nn.Module, a SavedTeacher or a TeacherEnsemble"
    if isinstance(teacher, (torch.Tensor, np.ndarray)):
        remedy = "of predictions make SavedTeacher(P), of logits SavedTeacher(Z, output='logits')"
    elif isinstance(teacher, (list, tuple)):
        remedy = "of several make TeacherEnsemble(teachers, weights)"
    elif isinstance(teacher, os.PathLike) or (
        isinstance(teacher, str) and teacher.endswith((".npy", ".npz", ".parquet"))
    ):
        remedy = "of a file make SavedTeacher.read(path)"
    elif isinstance(teacher, str):
        remedy = "a name has no trained weights, give the network: make_model, load_weights"
    raise TypeError(f"{name} must be a network, not {type(teacher).__name__}: {remedy}")


def _host(array: Any) -> np.ndarray:
    """A copy in NumPy, for nobody is to change it."""
    if isinstance(array, torch.Tensor):
        wide = array.float() if array.dtype == torch.bfloat16 else array
        return np.array(wide.detach().cpu().numpy())
    return np.array(array)


def _warn_of_chance(name: str, top: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Warn if the largest class is the label no more often than for rows in any order."""
    n = len(labels)
    hits = float(np.mean(top == labels))
    of_top, of_labels = (np.bincount(x, minlength=classes) / n for x in (top, labels))
    chance = float(of_top @ of_labels)
    if n >= ENOUGH and hits <= chance + 3 * (chance * (1 - chance) / n) ** 0.5:
        warnings.warn(
            f"{name} agrees with {100 * hits:.1f} % of the labels, no more than by chance "
            f"({100 * chance:.1f} %): its rows or classes may be in another order than the training images",
            stacklevel=2,
        )
