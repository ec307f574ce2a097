"""The one place that chooses: method, operator, precision, block and sketch, with reasons and a price.

The price comes from rates of this device, measured once in a process in well under a second: products
and powers of two in float32 and float64. Nothing here touches the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sdgpu.checks import choice, integer, lam_grid, positive
from sdgpu.device.backend import Backend, resolve
from sdgpu.device.memory import budget, largest_rows, show
from sdgpu.kernels import Gaussian, Kernel, as_kernel
from sdgpu.operators.tiled import FUSED_ROWS, PRECISIONS, TiledOperator
from sdgpu.solvers.eigh import Eigh
from sdgpu.solvers.resolvents import Resolvents
from sdgpu.solvers.subspace import WIDE, Subspace

__all__ = ["METHODS", "OPERATORS", "Plan", "Rates", "calibrate", "plan"]

METHODS = ("auto", "eigh", "lanczos", "subspace", "cg")
OPERATORS = ("auto", "dense", "tiled", "keops")

BLOCK = 16  # columns of a pass of block Lanczos
GREEDY_BLOCK = 8  # columns of a preconditioned pass: 12 save no pass, 4 take half as many more
LARGEST_RANK = 2000
LARGEST_BASIS = 4000  # beyond it Rayleigh-Ritz costs more than the passes
SMALLEST_BASIS = 6  # blocks of a basis that restarts
RESTARTS = 1.5  # passes of a basis that restarts over those of one that fits
PASS = 2e-3  # seconds of a pass that no size explains: threads, small factorisations, Python
EXACT = 0.05  # seconds that all eigenvalues may take before a grown basis is considered


@dataclass(frozen=True)
class Rates:
    """What this device does in a second.

    Attributes
    ----------
    products, products32 : float
        Multiply-adds of a matrix product in float64 and float32.
    powers, powers32 : float
        Kernel values of a tile (profile and passes) in float64 and float32.
    bandwidth : float
        Bytes read by a product with a stored matrix.
    tiles, tiles32 : float
        Kernel values of a product that recomputes them: the powers, but for the compiled loop.
    """

    products: float
    products32: float
    powers: float
    powers32: float
    bandwidth: float
    tiles: float
    tiles32: float


#: A slow machine: below SMALL rows every machine is fast enough, and nothing is measured.
NOMINAL = Rates(4e10, 8e10, 3e8, 6e8, 1e10, 3e8, 6e8)
SMALL = 2500


@dataclass(frozen=True)
class Plan:
    """What will be done, why, and what it will cost.

    Attributes
    ----------
    method : {"eigh", "lanczos", "subspace"}
    operator : {"dense", "tiled", "keops"}
    precision : {"float64", "mixed", "float32"}
    block, rank : int
        Columns of a pass; rank of the sketch, 0 for none.
    max_size : int
        Largest basis that the memory allows.
    tol : float
        Relative error of the predictions.
    steps : int
        Distillation steps that the basis has to serve.
    seconds : float
        Predicted time of the fit. The number of passes depends on the spectrum of K, which nothing
        knows beforehand: the guess is that of smooth kernels on real data.
    bytes : int
        Predicted peak.
    reasons : tuple of str
    patience : float
        Seconds of an eigendecomposition that would fit too, where the method was left to the plan: a
        fit turns to it when the basis is going to take longer than the guess by that much.
    """

    method: str
    operator: str
    precision: str
    block: int
    rank: int
    max_size: int
    tol: float
    steps: int
    seconds: float
    bytes: int
    reasons: tuple[str, ...]
    patience: float = np.inf


def plan(
    n: int,
    d: int,
    c: int = 1,
    lams: Any = 1.0,
    steps: int = 10,
    *,
    device: str | Backend = "auto",
    memory: int | float | str | None = None,
    tol: float = 1e-6,
    method: str = "auto",
    operator: str = "auto",
    precision: str | None = None,
    given: bool = False,
    kernel: Kernel | str | Callable[[Any, Any], Any] = "rbf",
) -> Plan:
    """Choose how to fit n rows of d features with c outputs.

    Parameters
    ----------
    n, d, c : int
    lams : number or array (L,)
        Regularisations; the smallest decides.
    steps : int, default 10
    device, memory, tol, method, operator, precision
        As in :func:`sdgpu.fit`; what is named is kept, what is "auto" is chosen.
    given : bool, default False
        Whether K is given (precomputed): it is dense then.
    kernel : Kernel, str or callable, default "rbf"
        As in :func:`sdgpu.fit`: Gaussians have a compiled loop.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, unknown names, or choices that exclude each other.
    MemoryError
        If nothing fits the memory.

    Examples
    --------
    >>> import sdgpu
    >>> sdgpu.plan(n=500, d=8, lams=[0.1], device="cpu").method
    'eigh'
    """
    n, d, c = (integer(name, value, 1) for name, value in (("n", n), ("d", d), ("c", c)))
    steps, tol = integer("steps", steps, 1), positive("tol", tol)
    choice("method", method, METHODS)
    choice("operator", operator, OPERATORS)
    if precision is not None:
        choice("dtype", precision, PRECISIONS)
    if method == "eigh" and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} has no matrix for method='eigh': use 'dense'")
    if given and operator in ("tiled", "keops"):
        raise ValueError(f"operator={operator!r} cannot hold a precomputed kernel: use 'dense'")
    ridges = lam_grid("lams", lams)
    backend = resolve(device)
    allowed = budget(memory, backend.name)
    rates = NOMINAL if n <= SMALL else calibrate(backend)
    if n >= FUSED_ROWS and type(as_kernel(kernel)) is Gaussian:
        rates = _with_compiled_loop(backend, rates)
    options = [
        *_eigh(n, d, c, rates, steps, tol),
        *_krylov(n, d, c, ridges, rates, steps, tol, allowed, precision, given),
    ]
    # KeOps compiles and has yet to win anywhere that was measured: only when asked for
    held = ("dense", "tiled") if operator == "auto" else (operator,)
    matching = [one for one in options if method in ("auto", one.method) and one.operator in held]
    fitting = [one for one in matching if one.bytes <= allowed]
    if not fitting:
        raise MemoryError(_too_much(n, min(matching, key=lambda one: one.bytes), allowed))
    best = min(fitting, key=_worth)
    # the exact method is there to turn to, if it was not excluded
    exact = [one.seconds for one in fitting if one.method == "eigh"]
    patience = exact[0] if exact and best.method in ("lanczos", "subspace") else np.inf
    asked = [f"{name} as asked" for name, value in
             (("method", method), ("operator", operator)) if value != "auto"]  # fmt: skip
    others = tuple(
        f"{one.method} with {one.operator} operator: about {one.seconds:.3g} s, {show(one.bytes)}"
        + ("" if one.bytes <= allowed else f", over the {show(allowed)} that may be used")
        for one in options
        if one is not best
    )
    return replace(best, reasons=(*asked, *best.reasons, *others), patience=patience)


def calibrate(backend: Backend) -> Rates:
    """Measure the rates of a backend's device, once in a process; well under a second."""
    if backend.name not in _RATES:
        _RATES[backend.name] = _measure(backend)
    return _RATES[backend.name]


_RATES: dict[str, Rates] = {}
_COMPILED: dict[str, dict[str, float]] = {}


def _measure(backend: Backend) -> Rates:
    rng = np.random.default_rng(0)
    xp, size = backend.xp, 1536
    # tiles first: the threads of another library's products would still be spinning
    rows, one = backend.asarray(rng.standard_normal((size, 8))), backend.asarray(np.ones((size, 1)))
    powers = {}
    for precision in ("float64", "float32"):
        multiply = TiledOperator(Gaussian(0.1), rows, precision).matmat
        powers[precision] = size**2 / 2 / _seconds(partial(multiply, one), backend)
    big = xp.ones((4096, 4096), dtype=xp.float64, device=backend.device)  # no cache holds it
    bandwidth = 8 * 4096**2 / _seconds(lambda: big @ big[:, :1], backend)
    wide = backend.asarray(rng.standard_normal((size // 2, size // 2)))
    single = xp.astype(wide, xp.float32)
    products = (size // 2) ** 3 / _seconds(lambda: wide @ wide, backend)
    products32 = (size // 2) ** 3 / _seconds(lambda: single @ single, backend)
    slow, fast = powers["float64"], powers["float32"]
    return Rates(products, products32, slow, fast, bandwidth, slow, fast)


def _with_compiled_loop(backend: Backend, rates: Rates) -> Rates:
    """The rates with tiles as the compiled loop makes them, measured once; the same where there is none."""
    if backend.name not in _COMPILED:
        found = {}
        rows = np.random.default_rng(0).standard_normal((FUSED_ROWS, 8))
        X, one = backend.asarray(rows), backend.asarray(np.ones((FUSED_ROWS, 1)))
        for precision in ("float64", "float32"):
            operator = TiledOperator(Gaussian(0.1), X, precision)
            if operator.compiled:
                work = partial(operator.matmat, one)
                found[precision] = FUSED_ROWS**2 / 2 / _seconds(work, backend, rounds=2)
        _COMPILED[backend.name] = found
    found = _COMPILED[backend.name]
    return replace(
        rates,
        tiles=found.get("float64", rates.tiles),
        tiles32=found.get("float32", rates.tiles32),
    )


def _seconds(work: Callable[[], Any], backend: Backend, rounds: int = 5) -> float:
    work()
    spent = []
    for _ in range(rounds):
        backend.synchronize()
        start = time.perf_counter()
        work()
        backend.synchronize()
        spent.append(time.perf_counter() - start)
    return min(spent)


def _eigh(n: int, d: int, c: int, rates: Rates, steps: int, tol: float) -> list[Plan]:
    # small matrices run at a fraction of the rate of products
    seconds = 4.2 * n**3 / rates.products * (1 + 700 / n) + n * n / 2 / rates.powers
    size = Eigh.peak_bytes(n) + 8 * n * (3 * d + 3 * c)
    reason = f"all {n:,} eigenvalues, exact for every lam: 9 n^3 operations, 24 n^2 bytes"
    return [Plan("eigh", "dense", "float64", 0, 0, n, tol, steps, seconds, size, (reason,))]


def _krylov(
    n: int, d: int, c: int, lams: np.ndarray, rates: Rates, steps: int, tol: float, allowed: int,
    precision: str | None, given: bool,
) -> list[Plan]:  # fmt: skip
    """Block Lanczos, the preconditioned subspace and conjugate gradients, K stored or recomputed."""
    ridge = float(lams.min())
    # float32 kernel values leave an error near 1e-10 n / lam: measured on flights, n = 6,000
    wanted = precision or ("mixed" if tol >= max(1e-9 * n / ridge, 1e-5) else "float64")
    found = []
    for method, block, rank, passes in _passes(n, c, ridge, tol):
        for operator in ("dense", "tiled", "keops"):
            if operator != "dense" and given:
                continue
            kept = "float64" if given else wanted
            if operator == "keops" and kept == "mixed" and precision is None:
                kept = "float64"
            work = _Work(n, d, c, method, operator, kept, block, rank, passes, len(lams), steps)
            found.append(work.plan(rates, tol, allowed, given))
    return found


def _passes(n: int, c: int, ridge: float, tol: float) -> list[tuple[str, int, int, float]]:
    """Method, block, rank and passes to expect: fits to flights, n = 2,000 .. 20,000."""
    hardness = float(np.clip(np.log10(n / ridge), 1.0, 9.0))  # 2 .. 6 for lam = 1e-2 n .. 1e-6 n
    digits = max(-np.log10(tol), 1.0)
    block = max(BLOCK, c + 4)
    krylov = 6 * 10 ** ((hardness - 2) / 4) * (0.6 + digits / 10)
    found = [("lanczos", block, 0, min(krylov, n / block))]
    block = max(GREEDY_BLOCK, c + 4)
    ranks = [int(np.clip(n // share, min(n, 100), LARGEST_RANK)) for share in (10, 5, 40)]
    for rank in dict.fromkeys(ranks):  # the last for little memory
        greedy = 2 + (hardness / 6) ** 3.5 * 24_000 / rank * (digits / 4) ** 0.75
        found.append(("subspace", block, rank, min(greedy, n / block)))
        found.append(("cg", block, rank, 4.5 * greedy**1.2))
    return found


@dataclass(frozen=True)
class _Work:
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

    def plan(self, rates: Rates, tol: float, allowed: int, given: bool) -> Plan:
        """The plan with its basis as large as the memory allows, or as the passes need."""
        n, block, tile = self.n, self.block, 0
        if self.operator != "dense" or not given:
            keep = self.operator == "dense"
            columns = (WIDE if self.rank else 1) * block
            tile = TiledOperator.peak_bytes(n, self.d, columns, self.precision, keep=keep)
        held = tile + (8 * n * n if given else 0)
        solves = Resolvents.peak_bytes(n, self.c, self.lams, self.steps)
        held += solves if self.method == "cg" else 0
        # in a small space directions soon repeat each other, and are dropped
        vectors = int(np.ceil(min(0.6 * n + block, self.passes * block, n)))
        if self.method == "cg":
            vectors = min(n, 4 * block)
        least = min(n, SMALLEST_BASIS * block, vectors)
        room = (allowed - held - Subspace.peak_bytes(n, 0, self.rank, block)) // (24 * n + 1)
        # it may grow to three times of what is expected, if that fits
        size = int(np.clip(room, least, min(n, LARGEST_BASIS, max(3 * vectors, 400))))
        needed = held + Subspace.peak_bytes(n, size, self.rank, block)
        while needed > allowed and size > least:  # the squares of the size
            size = max(int(0.97 * size), least)
            needed = held + Subspace.peak_bytes(n, size, self.rank, block)
        target = f"tol = {tol:.0e}"
        reason = f"about {self.passes:.0f} passes of {block} columns for {target}"
        passes = self.passes
        if size < vectors:
            passes *= RESTARTS
            reason = f"restarts: {size:,} of {vectors:,} vectors fit the memory; " + reason
        if self.rank:
            reason += f", one sketch of rank {self.rank:,} for every lam"
        seconds = float(self._seconds(rates, passes, min(size, vectors)))
        return Plan(
            self.method, self.operator, self.precision, block, self.rank, size, tol, self.steps,
            seconds, needed, (reason,),
        )  # fmt: skip

    def _seconds(self, rates: Rates, passes: float, vectors: int) -> float:
        columns = self.block
        if self.method == "cg":  # half of the rows are done half of the time
            columns = max(min(self.lams * self.c, 32) // 2, 1)
        each = PASS + self._product(rates, columns) + self._algebra(rates, vectors, columns)
        total = passes * each + self._sketch(rates)
        return total + (self._values(rates) if self.operator == "dense" else 0)

    def _values(self, rates: Rates) -> float:
        """Seconds of all kernel values."""
        single, n = self.precision != "float64", self.n
        pairs = n * n / 2
        more = pairs * max(self.d - 8, 0) / (rates.products32 if single else rates.products)
        if self.operator == "tiled":
            return pairs / (rates.tiles32 if single else rates.tiles) + more
        return pairs / (rates.powers32 if single else rates.powers) + more

    def _product(self, rates: Rates, columns: int) -> float:
        """Seconds of one product: skinny products run at half of the rate, from afar at a quarter."""
        n, single = self.n, self.precision == "float32"
        slower = 4 if self.operator == "dense" else 2
        skinny = slower * n * n * columns / (rates.products32 if single else rates.products)
        if self.precision == "mixed":
            skinny += 8 * n * n / 2 / rates.bandwidth
        if self.operator == "dense":
            size = 8 if self.precision == "float64" else 4
            return max(skinny, size * n * n / 2 / rates.bandwidth)
        # KeOps computes both halves, and every column by itself: measured against tiles on a CPU
        return (self._values(rates) + skinny) * (10 if self.operator == "keops" else 1)

    def _algebra(self, rates: Rates, vectors: int, columns: int) -> float:
        """Seconds of orthogonalisation, Rayleigh-Ritz and residuals of an average pass."""
        n, half = self.n, vectors / 2
        if self.method == "cg":
            return (4 * n * self.rank * columns + 60 * n * columns) / rates.products
        work = 8 * n * half * columns + 25 * half**3 / (1 if self.rank else 3)
        if not self.rank:
            return work / rates.products
        sketch = 4 * n * self.rank * columns / rates.products32
        return (work + n * half**2 / 2) / rates.products + sketch  # R R' is symmetric

    def _sketch(self, rates: Rates) -> float:
        """Seconds of a sketch: its kernel values, projections, and small eigendecomposition."""
        if not self.rank:
            return 0.0
        products = 2 * self.n * self.rank**2 / rates.products32 + 6 * self.rank**3 / rates.products
        return products + self.n * self.rank / rates.powers


def _worth(option: Plan) -> float:
    """Seconds, but an exact answer within EXACT seconds comes before an approximate one in fewer."""
    exact = option.method == "eigh" and option.seconds <= EXACT
    return option.seconds - EXACT if exact else option.seconds


def _too_much(n: int, smallest: Plan, allowed: int) -> str:
    fits = largest_rows(allowed, Eigh.peak_bytes)
    return (
        f"n = {n:,} rows need at least {show(smallest.bytes)} ({smallest.method} with "
        f"{smallest.operator} operator), but {show(allowed)} may be used: at most about {fits:,} rows "
        "fit an eigendecomposition; take a subset, raise memory=, or leave method and operator 'auto'"
    )
