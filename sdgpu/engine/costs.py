"""The ways to fit, and what each costs: seconds at given rates, bytes at the peak.

Operators and solvers state their seconds as counted operations over rates (:mod:`sdgpu.backend.rates`), and
their bytes; here they are put together for each way to fit. How many passes a grown basis needs is a guess,
that of smooth kernels on real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdgpu.backend.memory import largest_rows, library_addresses, show
from sdgpu.backend.rates import Rates
from sdgpu.engine.streaming import block_rows, feature_bytes
from sdgpu.operators import KeOpsOperator
from sdgpu.operators.tile_prices import (
    SPARSE_BUFFERS,
    TilePrices,
    sparse_pair_seconds,
    stored_numbers,
)
from sdgpu.solvers.cg import CG
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.preconditioners import Sketch
from sdgpu.solvers.primal import Primal
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.subspace import WIDE, Subspace

__all__ = [
    "Option",
    "Task",
    "Work",
    "expected_passes",
    "features_option",
    "features_seconds",
    "is_rough",
]

BLOCK = 16  # columns of a pass of block Lanczos
GREEDY_BLOCK = 8  # columns of a preconditioned pass: 12 save no pass, 4 take half as many more
LARGEST_RANK = 2000
LARGEST_BASIS = 4000  # beyond it Rayleigh-Ritz costs more than the passes
SMALLEST_BASIS = 6  # blocks of a basis that restarts
RESTARTS = 1.5  # passes of a basis that restarts over those of one that fits
CROWDED = 0.2  # of the vectors of one that fits, below which restarts lose what they have found
PASS = 2e-3  # seconds of a pass that no size explains: threads, small factorisations, Python
PACKED = 45_000_000  # the most that BLAS packs: measured, 500 x 20,000, where it varies by 15 MB
LOOP = 50_000_000  # code of the compiled loop, and what compiles it: measured, 12,000 x 4
TORCH = 8_000_000  # buffers of torch's and its libraries' first products: measured, 1,000 x 4
MOST_PASSES = 1000  # that an eigendecomposition may be worth
WORKERS = 4  # share of the memory that the buffers of threads may take: 1 / WORKERS


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be fitted, and what may be used for it."""

    n: int
    d: int
    c: int
    lams: np.ndarray
    steps: int
    tol: float
    allowed: int
    precision: str | None
    precomputed: bool
    copies: int
    cores: int
    compiled: bool = False
    compiled_gram: bool = False
    own: int = 0  # features that the kernel has of its own
    entries: float | None = None  # of a sparse row, in the mean; None for dense rows

    @property
    def width(self) -> int:
        """Numbers of 8 bytes that a row takes."""
        return self.d if self.entries is None else stored_numbers(self.entries)

    def options(self, rates: Rates, method: str = "auto") -> list[Option]:
        """Every way to fit, or by one method alone, with its price."""
        if method == "primal":
            return [_primal(self, rates)]
        if method == "eigh":
            return [_eigh(self, rates)]
        return [*(self.exact(rates) if method == "auto" else []), *_krylov(self, rates)]

    def exact(self, rates: Rates) -> list[Option]:
        """Those that know every eigenvalue."""
        return [_eigh(self, rates), *([_primal(self, rates)] if self.own else [])]


@dataclass(frozen=True, eq=False)
class Option:
    """One way to fit and its price."""

    method: str
    operator: str
    precision: str
    block: int
    rank: int
    size: int
    seconds: float
    bytes: int
    threads: int
    reason: str
    work: Work | None = None
    rates: Rates | None = None

    def line(self, allowed: int) -> str:
        """A sentence for those that were not chosen."""
        over = "" if self.bytes <= allowed else f", over the {show(allowed)} that may be used"
        return (
            f"{self.method} with {self.operator} operator: about {self.seconds:.3g} s, "
            f"{show(self.bytes)}{over}"
        )

    def passes_within(self, seconds: float) -> float:
        """Passes of a basis that take a little longer than something else would."""
        assert self.work is not None
        assert self.rates is not None
        low, high = 1, MOST_PASSES
        while high - low > 1:
            middle = (low + high) // 2
            vectors = min(middle * self.block, self.size)
            over = self.work.seconds(self.rates, middle, vectors) > 1.25 * seconds
            low, high = (low, middle) if over else (middle, high)
        return float(high) if high < MOST_PASSES else np.inf


def _eigh(task: Task, rates: Rates) -> Option:
    n = task.n
    # X and its ready rows; a given K is its own X
    width = n if task.precomputed else task.width * (1 + task.copies)
    operands = 8 * n * (n + width)
    made = 8 * n * n + LOOP * task.compiled_gram  # before it is decomposed
    peak_bytes = max(Eigh.peak_bytes(n), made) + 8 * n * (width + 3 * task.c) + _packed(operands)
    reason = f"all {n:,} eigenvalues, exact for every lam: 9 n^3 operations, 24 n^2 bytes"
    seconds = Eigh.seconds(n, rates)
    if task.entries is not None:
        seconds += n * n / 2 * sparse_pair_seconds(task.d, task.entries)
        peak_bytes += SPARSE_BUFFERS
    return Option(
        method="eigh",
        operator="dense",
        precision="float64",
        block=0,
        rank=0,
        size=n,
        seconds=seconds,
        bytes=peak_bytes,
        threads=1,
        reason=reason,
    )


def _primal(task: Task, rates: Rates) -> Option:
    n, k = task.n, task.own
    rows = 8 * n * (task.d * (1 + task.copies) + 3 * task.c)
    return Option(
        method="primal",
        operator="dense",
        precision="float64",
        block=0,
        rank=0,
        size=k,
        seconds=Primal.seconds(n, k, rates),
        bytes=Primal.peak_bytes(n, k, task.c) + rows + _packed(8 * n * k),
        threads=1,
        reason=f"exact from the {k:,} features that the kernel has of its own: n k^2 operations",
    )


def features_option(task: Task, rates: Rates, k: int) -> Option:
    """A model of k Nystrom features: one pass over the rows, whatever n is, and another answer."""
    n, k = task.n, min(k, task.n)
    precision = "float64" if task.precision in (None, "float64") else "float32"
    return Option(
        method="features",
        operator="nystrom",
        precision=precision,
        block=block_rows(k),
        rank=k,
        size=k,
        seconds=features_seconds(n, n, k, precision, rates),
        bytes=feature_bytes(k, task.c, precision),
        threads=1,
        reason=f"features=sdgpu.Nystrom({k:,}): one pass, and the answer of these features",
    )


def features_seconds(n: int, share: int, k: int, precision: str, rates: Rates) -> float:
    """Of a model of k Nystrom features of n rows, on a rank that has a share of them."""
    products = rates.products if precision == "float64" else rates.products32
    powers = rates.powers if precision == "float64" else rates.powers32
    # the picking of landmarks, the pass (whitening, and half of Phi'Phi) and the decomposition
    candidates = min(n, max(20_000, 10 * k))
    setup = candidates * k * (k + 1.0) / rates.products + candidates * k / rates.powers
    passes = share * (1.5 * k * k / products + k / powers)
    return setup + passes + 9.0 * k**3 / rates.products


def is_rough(n: int, lam: float, tol: float) -> bool:
    """Whether float32 kernel values serve: they leave an error near 1e-10 n / lam (flights, n = 6,000)."""
    return tol >= max(1e-9 * n / lam, 1e-5)


def _packed(operands: int) -> int:
    """Bytes for which a product of so large matrices is packed, by all threads of a BLAS."""
    return min(PACKED, operands // 4)


def _krylov(task: Task, rates: Rates) -> list[Option]:
    """Block Lanczos, the preconditioned subspace and conjugate gradients, K stored or recomputed."""
    lam, n = float(task.lams.min()), task.n
    precision = task.precision or ("mixed" if is_rough(n, lam, task.tol) else "float64")
    options = []
    for method, block, rank, passes in expected_passes(n, task.c, lam, task.tol):
        for operator in ("dense", "tiled", "keops"):
            if operator != "dense" and task.precomputed:
                continue
            if operator == "keops" and task.entries is not None:
                continue
            operator_precision = "float64" if task.precomputed else precision
            if operator == "keops" and operator_precision == "mixed" and task.precision is None:
                operator_precision = "float64"
            work = Work(
                n=n,
                d=task.d,
                c=task.c,
                method=method,
                operator=operator,
                precision=operator_precision,
                block=block,
                rank=rank,
                passes=passes,
                lams=len(task.lams),
                steps=task.steps,
                copies=task.copies,
                entries=task.entries,
                compiled=task.compiled,
            )
            options.append(work.option(rates, task))
    return options


def expected_passes(n: int, c: int, ridge: float, tol: float) -> list[tuple[str, int, int, float]]:
    """Method, block, rank and passes to expect: fits to flights, n = 2,000 .. 20,000."""
    hardness = float(np.clip(np.log10(n / ridge), 1.0, 9.0))  # 2 .. 6 for lam = 1e-2 n .. 1e-6 n
    digits = max(-np.log10(tol), 1.0)
    block = max(BLOCK, c + 4)
    krylov_passes = 6 * 10 ** ((hardness - 2) / 4) * (0.6 + digits / 10)
    candidates = [("lanczos", block, 0, min(krylov_passes, n / block))]
    block = max(GREEDY_BLOCK, c + 4)
    ranks = [
        int(np.clip(n // share, min(n, 100), LARGEST_RANK)) for share in (14, 10, 5, 20, 28, 40)
    ]
    for rank in dict.fromkeys(ranks):  # the last ones for little memory
        greedy_passes = 2 + (hardness / 6) ** 3.5 * 24_000 / rank * (digits / 4) ** 0.75
        candidates.append(("subspace", block, rank, min(greedy_passes, n / block)))
        candidates.append(("cg", block, rank, 4.5 * greedy_passes**1.2))
    return candidates


@dataclass(frozen=True)
class Work:
    """One way to fit without all eigenvalues, and what it costs."""

    n: int
    d: int
    c: int
    method: str
    operator: str
    precision: str
    block: int
    rank: int
    passes: float
    lams: int
    steps: int
    copies: int
    entries: float | None = None
    compiled: bool = False

    def option(self, rates: Rates, task: Task) -> Option:
        """With its basis as large as the memory allows, or as the passes need."""
        n, block, allowed = self.n, self.block, task.allowed
        threads, fixed_bytes = self._threads_and_bytes(task)
        # in a small space directions soon repeat each other, and are dropped
        vectors = int(np.ceil(min(0.6 * n + block, self.passes * block, n)))
        if self.method == "cg":
            vectors = min(n, 4 * block)
        min_size = min(n, SMALLEST_BASIS * block, vectors)
        # it may grow to three times of what is expected, if that fits
        size = min(n, LARGEST_BASIS, max(3 * vectors, 400))
        peak_bytes = fixed_bytes + self._basis_bytes(size)
        if peak_bytes > allowed:
            fits = largest_rows(max(allowed - fixed_bytes, 0), self._basis_bytes)
            size = int(np.clip(fits, min_size, size))
            peak_bytes = fixed_bytes + self._basis_bytes(size)
        target = f"tol = {task.tol:.0e}"
        reason = f"about {self.passes:.0f} passes of {block} columns for {target}"
        passes = self.passes
        if size < vectors:
            passes *= RESTARTS
            if self.method == "subspace":
                passes *= max(CROWDED * vectors / size, 1.0) ** 3
            reason = f"restarts: {size:,} of {vectors:,} vectors fit the memory; " + reason
        if self.rank:
            reason += f", one sketch of rank {self.rank:,} for every lam"
        seconds = float(self.seconds(rates, passes, min(size, vectors)))
        return Option(
            method=self.method,
            operator=self.operator,
            precision=self.precision,
            block=block,
            rank=self.rank,
            size=size,
            seconds=seconds,
            bytes=peak_bytes,
            threads=threads,
            reason=reason,
            work=None if self.method == "cg" else self,
            rates=rates,
        )

    def _threads_and_bytes(self, task: Task) -> tuple[int, int]:
        """Threads of products, and bytes of everything but the basis and the sketch."""
        n, threads = self.n, 1
        fixed_bytes = 8 * n * n if task.precomputed else 8 * n * task.width  # X
        if self.operator != "dense" or not task.precomputed:
            columns = (WIDE if self.rank else 1) * self.block
            prices = self._tile_prices

            def tiles(workers: int) -> int:
                return prices.peak_bytes(columns, workers=workers, copies=self.copies)

            share = task.allowed // WORKERS
            serial = tiles(1)
            threads = min(task.cores, 1 + max(share - serial, 0) // max(tiles(2) - serial, 1))
            fixed_bytes += tiles(threads)
        fixed_bytes += library_addresses(threads)
        fixed_bytes += TORCH + LOOP * task.compiled + _packed(8 * n * task.width * self.copies)
        if self.method == "cg":
            fixed_bytes += Resolvents.peak_bytes(n, self.c, self.lams, self.steps)
        return threads, fixed_bytes

    @property
    def _tile_prices(self) -> TilePrices:
        return TilePrices(
            self.n,
            self.d,
            self.precision,
            keep=self.operator == "dense",
            compiled=self.compiled,
            entries=self.entries,
        )

    def _basis_bytes(self, size: int) -> int:
        """Of the basis, the sketch, and the residuals of every lam and step in that basis."""
        grid = self.c * self.steps * self.lams
        return Subspace.peak_bytes(self.n, size, self.rank, self.block, grid)

    def seconds(self, rates: Rates, passes: float, vectors: int) -> float:
        """Of so many passes with a basis that grows to so many vectors, as the parts state them."""
        n, d, rank, columns = self.n, self.d, self.rank, self.block
        if self.method == "cg":  # half of the rows are done half of the time
            columns = max(min(self.lams * self.c, 32) // 2, 1)
            algebra = CG.pass_seconds(n, columns, rank, rates)
        else:
            algebra = Subspace.pass_seconds(n, vectors, columns, rank, rates)
        setup = Sketch.seconds(n, rank, rates) if rank else 0.0
        if self.operator == "keops":
            product = KeOpsOperator.product_seconds(n, d, columns, self.precision, rates)
        else:
            prices, keep = self._tile_prices, self.operator == "dense"
            values, product = prices.value_seconds(rates), prices.multiply_seconds(columns, rates)
            setup += values if keep else 0.0
            product += 0.0 if keep else values
        return passes * (PASS + product + algebra) + setup
