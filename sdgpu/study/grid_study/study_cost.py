"""What a study would cost, before anything runs: fits, seconds, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sdgpu
from sdgpu.backend.memory import show
from sdgpu.backend.rates import NOMINAL
from sdgpu.engine.streaming import feature_bytes
from sdgpu.study.grid_study.cell_data import forget_data, load_data
from sdgpu.study.grid_study.cells import Decomposition, decompositions
from sdgpu.study.grid_study.configuration import DataTable, StudyConfig
from sdgpu.study.real_data.large_data import SIZES

__all__ = ["RESULTS_LIMIT", "Price", "StudyPlan", "plan_study"]

#: Bytes of results that a study may have: its dataset is put together in memory.
RESULTS_LIMIT = 4 * 2**30
CELL = 0.02  # seconds of a cell that no size explains: files, small algebra
START = 3.0  # seconds until a process has its libraries
LOSS = 4e-8  # seconds for each loss of the grid and variable, and for each rule's share of them


@dataclass(frozen=True)
class Price:
    """Of one kind of decomposition.

    Attributes
    ----------
    data, method : str
    n, d, c : int
    fits, cells : int
    seconds : float
        Of one decomposition with its cells.
    bytes : int
        Peak of a worker.
    """

    data: str
    method: str
    n: int
    d: int
    c: int
    fits: int
    cells: int
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class StudyPlan:
    """The prices of a study.

    Attributes
    ----------
    prices : tuple of Price
    workers : int
    result_bytes : int
        Of all cells together.
    networks : int
        Experiments with networks, whose time is not predicted.
    refits : int
        Separate fits that the closed forms stand for.
    """

    prices: tuple[Price, ...]
    workers: int
    result_bytes: int
    networks: int
    refits: int

    @property
    def fits(self) -> int:
        """Decompositions, or grown bases, in all."""
        return sum(price.fits for price in self.prices)

    @property
    def cells(self) -> int:
        """Cells in all."""
        return sum(price.cells for price in self.prices)

    @property
    def seconds(self) -> float:
        """From start to end, with all workers."""
        total = sum(price.fits * price.seconds for price in self.prices)
        return total / self.workers + (START if self.workers > 1 else 0.0)

    def check_results(self) -> None:
        """Refuse more results than can be put together.

        Raises
        ------
        ValueError
        """
        if self.result_bytes > RESULTS_LIMIT:
            raise ValueError(
                f"the losses of {self.cells:,} cells would take {show(self.result_bytes)}, above "
                f"{show(RESULTS_LIMIT)}: keep fewer of them, [results] keep = [], or take a coarser [grid]"
            )


def plan_study(study: StudyConfig) -> StudyPlan:
    """Sizes of all data sets, and the price of every kind of decomposition at nominal rates."""
    from sdgpu.study.grid_study.workers import crew_of

    forget_data()
    jobs = decompositions(study)
    kinds: dict[tuple[Any, ...], list[Decomposition]] = {}
    for job in jobs:
        kind = (job.data.source, job.method.label, job.method.size, job.sharing)
        kinds.setdefault(kind, []).append(job)
    prices = tuple(_price(group) for group in kinds.values())
    crew = crew_of(study.compute.devices, study.compute.workers, study.compute.memory, len(jobs))
    grid = study.grid
    points = len(grid.ridges(1)) * len(grid.alphas)
    kept = [name for name in study.results.keep if name not in ("limit_mse", "metrics")]
    variables = len(kept) + ("metrics" in study.results.keep) * len(study.choose.metrics)
    cells = sum(price.cells for price in prices)
    teachers = 0 if study.teacher is None else len(study.teacher.ridges(1))
    per_cell = 8 * points * (grid.steps * (variables + teachers))
    per_cell += 8 * points * ("limit_mse" in study.results.keep)
    return StudyPlan(
        prices,
        len(crew.devices),
        cells * per_cell,
        len(study.network),
        cells * points * (grid.steps - 1) + cells * len(grid.ridges(1)),
    )


def _price(group: list[Decomposition]) -> Price:
    job = group[0]
    rows, d, c = _sizes(job.data)
    held = [round(share * rows) for share in (job.data.validation, job.data.test)]
    n, m = (rows, 20_000) if job.data.is_large else (max(1, rows - sum(held)), max(held))
    table = job.config.federated
    if table is not None:
        nystrom = job.method.features == "nystrom"
        table.check_rows(n, held[0], job.method.size if nystrom else None)
    cells, grid = len(job.cells), job.config.grid
    fit_seconds, k, peak = _fit_price(job, n, d, c)
    one_fit = fit_seconds if job.method.features is None and k == n else fit_seconds * cells
    if job.sharing is not None:
        one_fit, more = _shared_price(job, fit_seconds, k, c, n)
        peak += int(more)
    lams = len(grid.ridges(n))
    judged = m * k + m * k * lams * grid.steps * c / 8
    losses = lams * len(grid.alphas) * grid.steps * (6 + len(job.config.choose.rules))
    if (
        job.config.teacher is not None
    ):  # a teacher, a student, and its losses by each lam of the teacher
        teachers = len(job.config.teacher.ridges(n))
        one_fit += 2 * cells * fit_seconds
        judged, losses = judged * (2 + 2 * teachers), losses * (1 + teachers)
    seconds = one_fit + cells * (CELL + judged / NOMINAL.products + LOSS * losses)
    method = f"{job.method.label}, {job.method.size}" if job.method.size else job.method.label
    if job.sharing is not None:
        method = f"{method}; {job.sharing.label}"
    return Price(
        job.data.source, method, n, d, c, len(group), cells * len(group), seconds, int(peak)
    )


def _shared_price(
    job: Decomposition, fit_seconds: float, k: int, c: int, n: int
) -> tuple[float, float]:
    """Seconds of all moments, messages and answers of a sharing, and bytes of the messages."""
    table, sharing = job.config.federated, job.sharing
    assert table is not None
    assert sharing is not None
    M, ranks = sharing.workers, 1 + len(table.ranks or ())
    eigh, lams, u = (
        10 * k**3 / NOMINAL.products,
        len(job.config.grid.ridges(n)),
        table.server_rows(n),
    )
    # moments are passes over the rows as those of a fit; then decompositions of k x k
    seconds = fit_seconds + (ranks - 1) * M * eigh
    for answer in table.answers:
        seconds += ranks * eigh * (1 if answer == "merged" else M)
        if answer == "distilled":  # students of each worker at each lam, and QR of their losses
            words = 1 + 2 * M * lams * c
            seconds += ranks * (u * k * (k + words) / NOMINAL.products + 2 * eigh)
            losses = round(job.data.validation * n) * c * (1 + 2 * M) ** 2
            seconds += ranks * lams**2 * losses / NOMINAL.products
    return seconds * len(job.config.noise.levels), 8.0 * M * k * (k + c + 1)


def _fit_price(job: Decomposition, n: int, d: int, c: int) -> tuple[float, int, int]:
    """Seconds of a fit, its eigenvalues, bytes."""
    if job.method.features is not None:
        k = job.method.size or d
        products = NOMINAL.products if job.precision == "float64" else NOMINAL.products32
        powers = NOMINAL.powers if job.precision == "float64" else NOMINAL.powers32
        seconds = n * k * (k + d) / products + n * k / powers + 10 * k**3 / NOMINAL.products
        return seconds, k, feature_bytes(k, c, job.precision)
    # decided where the rows are those of a Gaussian kernel: all others cost about as much
    found = sdgpu.plan(
        n,
        d,
        c,
        job.config.grid.ridges(n),
        job.config.grid.steps,
        device="cpu",
        tol=job.config.compute.tol,
        method=job.method.name,
        operator=job.method.operator,
    )
    return found.seconds, n if found.method == "eigh" else min(n, found.max_size), found.bytes


def _sizes(table: DataTable) -> tuple[int, int, int]:
    """Rows, features and outputs of a data set."""
    if table.is_large:
        rows, d, c = SIZES[table.source]
        return min(table.rows or rows, rows), d, c
    data = load_data(table)
    n = len(data.X)
    return min(table.rows or n, n), data.X.shape[1], data.Y.shape[1]
