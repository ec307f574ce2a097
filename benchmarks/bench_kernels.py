"""How near is a tile of each kernel to what its arithmetic needs, and a Laplacian to its differences?

The bounds are loops of the same machine code whose numbers stay in the nearest cache, timed in the same run
on one thread: absolute differences and sums of n^2 d / 2 terms; fused multiplications and additions for the
products of n^2 / 2 pairs, and the formula of a kernel on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import sdgpu
from benchmarks.conftest import REPORT, seconds
from sdgpu.kernels import kernel_matrices
from sdgpu.kernels.kernel import column_means
from sdgpu.operators import TiledOperator

pytest.importorskip("llvmlite")

from sdgpu.kernels.compiled.formula import formula_of
from sdgpu.kernels.compiled.machine_code import Code, Variable, compiled, vector_lanes

N = 6000
CHAINS = 8  # sums in registers at once
NUMBERS = 1024  # of a row in the nearest cache
PRECISIONS = ("float32", "float64")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the bounds are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fastest(work: Callable[[], Any], rounds: int = 15) -> float:
    work()
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)


def loop_seconds(dtype: str, write: Callable[[Code, Any, Any, int], Any], terms: int) -> float:
    """Seconds of one term of what `write` writes for each vector of a row in the cache."""
    code, lanes, repeats = Code(), vector_lanes(dtype), 2000
    given = code.function("loop", x=dtype, out=dtype, n="index")
    sums = [Variable(code, code.zeros(dtype, lanes)) for _ in range(CHAINS)]
    with code.loop(0, given["n"]), code.loop(0, NUMBERS, lanes) as place:
        write(code, given["x"].load(place, lanes), sums, lanes)
    total = sums[0].value
    for one in sums[1:]:
        total = total + one.value
    given["out"].store(0, total)
    code.end()
    run = compiled(str(code.module)).function("loop", 3)
    x = np.random.default_rng(0).uniform(0.1, 1, NUMBERS).astype(dtype)
    out = np.empty(lanes, dtype)
    spent = fastest(lambda: run(x.ctypes.data, out.ctypes.data, repeats))
    return spent / (repeats * NUMBERS * terms)


def differences(code: Code, x: Any, sums: Any, lanes: int) -> None:
    for k, one in enumerate(sums):
        one.set(one.value + abs(x - 0.1 * k))


def products(code: Code, x: Any, sums: Any, lanes: int) -> None:
    for k, one in enumerate(sums):
        one.set(x.fma(0.1 * k + 0.5, one.value))


def formula_seconds(kernel: sdgpu.kernels.Kernel, dtype: str) -> float:
    """Of the formula for one pair, of statistics in the cache."""
    X = np.random.default_rng(0).standard_normal((8, 8)).astype(dtype)
    found = formula_of(kernel, kernel.rows(X, column_means(X)))
    assert found is not None
    formula = found[0]

    def write(code: Code, x: Any, sums: Any, lanes: int) -> None:
        norms = x.like(0.7).known(0.0, np.inf) + x * 0.0

        def leaf(p: int, part: Any) -> Any:
            pair = (norms, norms) if part.has_norms else (None, None)
            return part.profile.profile(-x if part.profile.sign < 0 else x, *pair)

        sums[0].set(sums[0].value + formula.value(leaf))

    return loop_seconds(dtype, write, 1)


def report(question: str, ours: float, bound: float, goal: str) -> None:
    REPORT.rows.append((question, seconds(ours), seconds(bound), f"{bound / ours:.2f}", goal))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("d", [12, 435])
def test_laplacian_products(d: int, precision: str) -> None:
    X = np.random.default_rng(0).standard_normal((N, d))
    operator = TiledOperator(sdgpu.Laplacian(0.5 / d), X, precision)
    V = np.ones((N, 1))
    ours = fastest(lambda: operator.matmat(V), 7)
    bound = N * N / 2 * d * loop_seconds(precision, differences, CHAINS)
    question = (
        f"Laplacian product, n = {N:,}, d = {d}, {precision}: of the bound by absolute differences"
    )
    report(question, ours, bound, ">= 0.6")


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("d", "times"), [(12, 1.5), pytest.param(435, 10, marks=pytest.mark.full)])
def test_laplacian_gram(d: int, times: float, dtype: str, race: Any) -> None:
    X = np.random.default_rng(0).standard_normal((N, d)).astype(dtype)
    kernel = sdgpu.Laplacian(0.5 / d)
    fill = fastest(lambda: np.empty((N, N), dtype).fill(1.0), 5)
    bound = N * N / 2 * d * loop_seconds(dtype, differences, CHAINS) + fill
    ours = fastest(lambda: kernel(X), 5)
    question = f"Laplacian Gram matrix, n = {N:,}, d = {d}, {dtype}"
    report(f"{question}: of the bound by differences and by writing", ours, bound, ">= 0.6")
    race(
        f"{question}, against scipy's cdist",
        lambda: kernel(X),
        lambda: cdist(X, X, "cityblock"),
        at_least=times,
        rounds=3,
    )


@pytest.mark.full
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_laplacian_gram_against_passes(dtype: str, race: Any, monkeypatch: Any) -> None:
    X = np.random.default_rng(0).standard_normal((N // 2, 435)).astype(dtype)
    kernel = sdgpu.Laplacian(0.001)
    rows = kernel.rows(X, column_means(X))

    def passes() -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(kernel_matrices, "COMPILED_NUMBERS", np.inf)
            return kernel_matrices.gram(kernel, rows)

    race(
        f"Laplacian Gram matrix, n = {N // 2:,}, d = 435, {dtype}, against passes of NumPy and SciPy",
        lambda: kernel_matrices.gram(kernel, rows),
        passes,
        at_least=5,
        rounds=3,
    )


KERNELS = {
    "Gaussian": sdgpu.Gaussian(0.1),
    "Matern 1/2": sdgpu.Matern(0.5),
    "Matern 3/2": sdgpu.Matern(1.5),
    "Matern 5/2": sdgpu.Matern(2.5),
    "polynomial": sdgpu.kernels.Polynomial(3),
    "arc-cosine": sdgpu.kernels.ArcCosine(1),
    "NTK": sdgpu.NTK(1),
    "NTK of depth 3": sdgpu.NTK(3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kernel_against_its_bound(precision: str) -> None:
    """Time of a product over that of its sums and its formula, beside the same of a Gaussian."""
    d, columns = 8, 1
    X = np.random.default_rng(0).standard_normal((N, d))
    V = np.ones((N, columns))
    product = loop_seconds(precision, products, CHAINS)
    pairs, distances = N * N / 2, {}
    for name, kernel in KERNELS.items():
        operator = TiledOperator(kernel, X, precision)
        ours = fastest(lambda operator=operator: operator.matmat(V), 7)  # type: ignore[misc]
        width = int(operator.rows.right.shape[1])
        bound = pairs * ((width + 2 * columns) * product + formula_seconds(kernel, precision))
        distances[name] = ours / bound
        relative = distances[name] / distances["Gaussian"]
        question = f"{name} product, n = {N:,}, d = {d}, {precision}: of its bound"
        report(f"{question} ({relative:.2f} times as far as the Gaussian)", ours, bound, "")
    worst = max(distances.values()) / distances["Gaussian"]
    assert worst <= 1.5, distances
