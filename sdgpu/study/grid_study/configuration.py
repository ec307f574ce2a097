"""A study as a value: the tables of its TOML file, each checked, every error with its line.

======================  ==================================================================================
table                   keys
======================  ==================================================================================
top                     name, description, seeds
``[data]``              source, target, classify, encode, impute, header, rows, validation, test
``[noise]``             kind, levels
``[[kernel]]``          name, and of its parameters a number or a list: gamma, lengthscale,
                        width_over_median, nu, power, period, order, degree, coef0, depth, weight_var,
                        bias_var
``[[method]]``          name, operator, or features (nystrom, fourier, own) with size and landmarks
``[grid]``              lams or lams_over_n, alphas, steps
``[choose]``            rules, metrics
``[compute]``           precision, tol, memory, workers, devices, max_fits
``[results]``           keep
``[teacher]``           a kernel as ``[[kernel]]``, one value for each parameter; lams or lams_over_n,
                        unlabelled
``[interval]``          coverage, folds
``[federated]``         workers, splits, ranks, answers, unlabelled
``[synthetic_labels]``  rounds, schemes, weights, true_labels
``[[network]]``         preset, and what to change in it: seeds, alphas, steps, epochs, algorithm1, rows
======================  ==================================================================================

``[data]``, ``[[kernel]]``, ``[[method]]`` and ``[[network]]`` may stand several times, in double
brackets.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from sdgpu.distill.smoothers import RIDGE
from sdgpu.selection.metrics import as_metrics, named_metric
from sdgpu.selection.sweep import FAMILIES
from sdgpu.study.grid_study.federated_table import FederatedTable
from sdgpu.study.grid_study.interval_cells import IntervalTable
from sdgpu.study.grid_study.kernel_tables import KernelTable, TeacherTable
from sdgpu.study.grid_study.key_lines import Lines, explain
from sdgpu.study.grid_study.key_types import (
    Count,
    Levels,
    Names,
    Positive,
    Ridges,
    Scales,
    Seeds,
    StudyTable,
    Tables,
    Weights,
    Whole,
    check_choice,
    check_key,
    fault_of,
    require_different,
)
from sdgpu.study.grid_study.label_table import SyntheticLabelsTable
from sdgpu.study.real_data.datasets import LARGE

__all__ = ["SIMPLE", "StudyConfig", "read_study"]

SMOOTHERS = ("ridge", "gradient_flow", "iterated", "landweber", "cutoff")
RULES = (*FAMILIES, "loo", "ridge_loo", "advice", "oracle", "student")
LEFT_OUT = {"loo", "ridge_loo", "advice"}  # rules of leave-one-out
SIMPLE = "_1se"  # the end of rules that take the most regularised point within one standard error
KEPT = ("mse", "train_mse", "gcv", "degrees_of_freedom", "limit_mse", "metrics")


def _means(names: tuple[str, ...]) -> list[str]:
    """Metrics that are means over rows: they have standard errors."""
    return [metric.name for metric in as_metrics(names) if hasattr(metric, "terms")]


class DataTable(StudyTable):
    """As :func:`sdgpu.study.real_data.datasets.load` and ``split`` take it."""

    source: str
    target: str | None = None
    classify: bool = False
    encode: bool = False
    impute: float | str | None = None
    header: bool | None = None
    rows: Count | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    _folder: Path = PrivateAttr(default=Path())

    @property
    def is_file(self) -> bool:
        """Whether the source is a file rather than the name of a data set."""
        return "." in Path(self.source).name or "/" in self.source

    @property
    def path(self) -> str:
        """The source, a file in the folder of the study: a study that is moved stays the same."""
        return str(self._folder / Path(self.source).expanduser()) if self.is_file else self.source

    @property
    def is_large(self) -> bool:
        """Whether its rows are read in blocks."""
        return self.source in LARGE


class NoiseTable(StudyTable):
    """Noise on training and validation targets; test targets stay clean.

    Levels of "gaussian" are standard deviations in units of that of the targets, of the others (of
    :mod:`sdgpu.study.theory.noise`) shares of labels that become wrong ones.
    """

    kind: Literal["gaussian", "symmetric"] = "gaussian"
    levels: Levels = (0.0,)

    @model_validator(mode="after")
    def _shares(self) -> NoiseTable:
        check_key("levels", require_different, self.levels)
        if self.kind == "symmetric" and max(self.levels) > 1:
            raise fault_of("levels", f"{max(self.levels)} is no share of labels: at most 1")
        return self


class MethodTable(StudyTable):
    """How cells are fitted: a method of :func:`sdgpu.fit`, or a feature map of several sizes.

    Feature maps have an intercept unless it is false, other methods where it is true. With `learn`, names
    of parameters as :func:`sdgpu.tune` takes them, each cell learns its kernel on its training rows first,
    by leave-one-out, GCV, marginal likelihood or the validation rows. `smoother` is what a fit does to each
    eigenvalue (:mod:`sdgpu.distill.smoothers`): other ones than ridge have no leave-one-out. With
    `later_lam_over_first` steps 2..T have that many times the lam of step 1, the lam of the grid.
    """

    name: str = "auto"
    operator: Literal["auto", "dense", "tiled", "keops"] = "auto"
    features: Literal["nystrom", "fourier", "own"] | None = None
    size: Whole | None = None
    landmarks: Literal["rpcholesky", "kmeans", "uniform"] = "rpcholesky"
    intercept: bool | None = None
    learn: Names | None = None
    learn_by: Literal["loo", "gcv", "marginal", "validation"] = "loo"
    smoother: str = RIDGE.name
    later_lam_over_first: Scales | None = None

    @model_validator(mode="after")
    def _fits(self) -> MethodTable:
        if self.learn is None and "learn_by" in self.model_fields_set:
            raise fault_of("learn_by", "learn_by says how: name what, learn = ['lengthscale']")
        check_choice("name", self.name, ("auto", "eigh", "lanczos", "subspace", "cg"))
        check_choice("smoother", self.smoother, SMOOTHERS)
        if self.smoother != RIDGE.name and self.name not in ("auto", "eigh"):
            raise fault_of("smoother", f"{self.smoother} needs all eigenvalues: name = 'eigh'")
        if self.later_lam_over_first is not None:
            key = "later_lam_over_first"
            check_key(key, require_different, self.later_lam_over_first)
            if self.name not in ("auto", "eigh"):
                raise fault_of(key, "a lam for each step needs all eigenvalues: name = 'eigh'")
        if self.features is None:
            for name in ("size", "landmarks"):
                if name in self.model_fields_set:
                    raise fault_of(name, f"{name} is of features: name them, features = 'nystrom'")
        elif self.name != "auto" or self.operator != "auto":
            raise fault_of(
                "features", "a feature model has its own method: leave name and operator out"
            )
        elif self.features == "own" and self.size is not None:
            raise fault_of(
                "size", "a kernel's own features are as many as they are: leave size out"
            )
        elif self.features != "own" and self.size is None:
            raise fault_of("features", f"features={self.features!r} needs size, a number or a list")
        return self


class GridTable(StudyTable):
    """The grid that one decomposition answers: lam (as it is, or times the training rows), alpha, step."""

    lams: Ridges | None = None
    lams_over_n: Ridges | None = None
    alphas: Weights = tuple(np.linspace(0, 1, 101).tolist())
    steps: Count = 10

    @model_validator(mode="after")
    def _one_of(self) -> GridTable:
        if self.lams is not None and self.lams_over_n is not None:
            raise fault_of("lams_over_n", "lams and lams_over_n are one grid: give one of them")
        for name in ("lams", "lams_over_n", "alphas"):
            if getattr(self, name) is not None:
                check_key(name, require_different, getattr(self, name))
        return self

    def ridges(self, n: int) -> np.ndarray:
        """The grid of lam for n training rows."""
        if self.lams is not None:
            return np.array(self.lams)
        return np.array(self.relative) * n

    @property
    def relative(self) -> tuple[float, ...] | None:
        """lam / n, where the grid is given so: 1e-6 .. 1 by default."""
        if self.lams is not None:
            return None
        return self.lams_over_n or tuple(np.geomspace(1e-6, 1.0, 30).tolist())


class ChooseTable(StudyTable):
    """Rules that choose lam, alpha and step: those of :meth:`sdgpu.Sweep.best` on the validation rows.

    "gcv", "loo", "ridge_loo" and "advice" (:meth:`sdgpu.engine.fitted.Fit.advise`) see the training rows
    alone, "oracle" the test rows; "student" is that of
    ``[teacher]``; a metric chooses by itself. "fixed_1se", "ridge_1se" and "mae_1se" of a metric "mae" that
    is a mean over rows take the most regularised point within one standard error of the best.
    """

    rules: Names = ("ridge", "fixed", "star", "joint", "gcv")
    metrics: Names = ()

    @model_validator(mode="after")
    def _known(self) -> ChooseTable:
        check_key("rules", require_different, self.rules)
        for metric in self.metrics:
            check_key("metrics", named_metric, metric)
        simple = [f"{rule}{SIMPLE}" for rule in ("fixed", "ridge", *_means(self.metrics))]
        for rule in self.rules:
            check_choice("rules", rule, (*RULES, *self.metrics, *simple))
        return self

    @property
    def standard_errors(self) -> bool:
        """Whether a rule asks for them."""
        return any(rule.endswith(SIMPLE) for rule in self.rules)


class ComputeTable(StudyTable):
    """How precisely, and on what: each worker has one device, and its share of cores and memory."""

    precision: Annotated[tuple[Literal["float64", "float32"], ...], Tables] = ("float64",)
    tol: Positive = 1e-6
    memory: str | None = None
    workers: Count | None = None
    devices: Names = ("auto",)
    max_fits: Count = 10_000


class ResultsTable(StudyTable):
    """Which losses of the whole grid each cell keeps; "metrics" are those of ``[choose]``."""

    keep: Names = ("mse", "train_mse", "gcv", "limit_mse", "metrics")

    @model_validator(mode="after")
    def _known(self) -> ResultsTable:
        for name in self.keep:
            check_choice("keep", name, KEPT)
        return self


class NetworkTable(StudyTable):
    """A preset of ``sdgpu train``, and what is changed in it."""

    preset: str
    seeds: Seeds | None = None
    alphas: Weights | None = None
    steps: Count | None = None
    epochs: Count | None = None
    rows: Count | None = None
    algorithm1: bool | None = None

    @model_validator(mode="after")
    def _known(self) -> NetworkTable:
        from sdgpu.study.networks.experiments import PRESETS  # imports torch

        check_choice("preset", self.preset, PRESETS)
        return self


class StudyConfig(StudyTable):
    """All tables of a study. Read one with :func:`read_study`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}$")]
    description: str = ""
    seeds: Seeds = (0,)
    data: Annotated[tuple[DataTable, ...], Tables] = ()
    noise: NoiseTable = NoiseTable()
    kernel: Annotated[tuple[KernelTable, ...], Tables] = ()
    method: Annotated[tuple[MethodTable, ...], Tables] = (MethodTable(),)
    grid: GridTable = GridTable()
    choose: ChooseTable = ChooseTable()
    compute: ComputeTable = ComputeTable()
    results: ResultsTable = ResultsTable()
    teacher: TeacherTable | None = None
    interval: IntervalTable | None = None
    synthetic_labels: SyntheticLabelsTable | None = None
    federated: FederatedTable | None = None
    network: Annotated[tuple[NetworkTable, ...], Tables] = ()

    @model_validator(mode="after")
    def _whole(self) -> StudyConfig:
        check_key("seeds", require_different, self.seeds)
        if bool(self.data) != bool(self.kernel):
            missing, present = ("kernel", "data") if self.data else ("data", "kernel")
            raise fault_of(missing, f"[{missing}] is missing beside [{present}]: name one")
        for number, data in enumerate(self.data):
            if not data.is_large:
                continue
            if any(method.features is None for method in self.method):
                raise fault_of(
                    "method", f"data {number + 1}, {data.source}, need features in every [[method]]"
                )
            if max(self.noise.levels) > 0:
                raise fault_of(
                    "noise", f"data {number + 1}, {data.source}, are read in blocks: without noise"
                )
        smoothers = {method.smoother for method in self.method} - {RIDGE.name}
        if smoothers and LEFT_OUT & {*self.choose.rules}:
            raise fault_of(
                "choose", f"leave-one-out is of ridge alone, and {min(smoothers)} is asked for"
            )
        if self.interval is not None:
            self._check_interval(self.interval)
        if self.synthetic_labels is not None:
            self._check_synthetic_labels()
        if self.federated is not None:
            self._check_federated()
        if "student" in self.choose.rules and self.teacher is None:
            raise fault_of("choose", "the rule 'student' has no teacher: name one, [teacher]")
        if self.teacher is not None and any(data.is_large for data in self.data):
            raise fault_of("teacher", "a teacher needs rows in memory, not data read in blocks")
        if self.teacher is not None and any(m.later_lam_over_first for m in self.method):
            raise fault_of("teacher", "students have one lam: no later_lam_over_first beside them")
        if not self.data and not self.network:
            raise fault_of("data", "nothing to do: name [data] with [[kernel]], or a [[network]]")
        return self

    def _check_interval(self, table: IntervalTable) -> None:
        """Refuse methods whose fits have no intervals."""
        for method in self.method:
            if method.smoother != RIDGE.name or method.later_lam_over_first is not None:
                raise fault_of("interval", "intervals are of ridge, with one lam for all steps")
            if table.folds is None and (method.features or method.name not in ("auto", "eigh")):
                raise fault_of(
                    "interval", "without folds intervals need all eigenvectors: folds = 10, say"
                )

    def _check_federated(self) -> None:
        """Refuse what needs rows in one place, and methods whose workers share no features."""
        methods, why = self.method, None
        if any(method.features is None for method in methods):
            why = (
                "workers send what their rows say in a space of features: features = 'fourier' (a size), "
                "'own' or 'nystrom' in every [[method]]"
            )
        elif any(method.learn is not None for method in methods):
            why = "no server has the rows to learn a kernel from: leave learn of [[method]] out"
        elif any(method.smoother != RIDGE.name for method in methods):
            why = "workers and server fit by ridge: leave smoother of [[method]] out"
        elif self.compute.precision != ("float64",):
            why = "messages are of float64 features: precision = 'float64' in [compute]"
        elif any(data.is_large for data in self.data):
            why = "rows are shared out in memory, not those of data read in blocks"
        for name in ("teacher", "interval", "synthetic_labels"):
            if why is None and getattr(self, name) is not None:
                why = f"what [{name}] needs are rows in one place: make a study of its own for it"
        if why is not None:
            raise fault_of("federated", why)

    def _check_synthetic_labels(self) -> None:
        """Refuse what has no closed form of their rounds."""
        why = None
        if any(method.features or method.name not in ("auto", "eigh") for method in self.method):
            why = "need all eigenvalues of rows: name = 'eigh' in every [[method]]"
        elif self.noise.kind != "gaussian":
            why = "have noise that is added: kind = 'gaussian' of [noise]"
        if why is not None:
            raise fault_of("synthetic_labels", f"synthetic labels {why}")


def read_study(source: str | Path | Mapping[str, Any] | StudyConfig) -> StudyConfig:
    """Read and check a study.

    Parameters
    ----------
    source : path, mapping or StudyConfig
        A TOML file (names of data files in it are relative to its folder), or what one holds.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a data file that it names is missing.
    ValueError
        For what is no TOML, unknown keys, wrong types and values: names file, line, table, key and the
        nearest known key.
    """
    if isinstance(source, StudyConfig):
        return source
    if isinstance(source, Mapping):
        return _validated(dict(source), Lines("", "study"), Path())
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path}: 'sdgpu study init {path}' writes one")
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    return _validated(tables, Lines(text, str(path)), path.parent)


def _validated(tables: dict[str, Any], lines: Lines, folder: Path) -> StudyConfig:
    try:
        config = StudyConfig.model_validate(tables)
    except ValidationError as error:
        raise ValueError(explain(error, lines, StudyConfig)) from None
    for number, data in enumerate(config.data):
        data._folder = folder
        if data.is_file and not Path(data.path).exists():
            where = lines.where(("data", number, "source"))
            raise FileNotFoundError(f"{where}: there is no data file {data.path}")
    return config
