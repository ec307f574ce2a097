"""Matrices by machine code against the passes of the arrays' own library."""

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("llvmlite")

from sdgpu.backend import threads
from sdgpu.kernels import (
    NNGP,
    NTK,
    ArcCosine,
    Cosine,
    Gaussian,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    kernel_matrices,
)
from sdgpu.kernels.compiled import kernel_blocks, machine_code, tile_code
from sdgpu.kernels.compiled.kernel_blocks import fill_block, fill_gram
from sdgpu.kernels.kernel import Profile, column_means
from sdgpu.kernels.kernel_matrices import gram
from sdgpu.kernels.stationary import distance_rows
from sdgpu.operators import fused_cpu

ROOT = Path(__file__).parent.parent.parent.parent

KERNELS = [
    Gaussian(0.2),
    Gaussian(1.0, lengthscale=(1.0, 2.0, 0.5)),
    Laplacian(0.2),
    Matern(0.5),
    Matern(1.5),
    Matern(2.5, 2.0),
    Polynomial(3, 0.5),
    Linear(),
    Cosine(),
    ArcCosine(0),
    ArcCosine(1),
    ArcCosine(2),
    NNGP(2),
    NTK(1),
    NTK(3, bias_var=0.1),
    Gaussian(0.1) + 2.0 * Laplacian(0.3) * Matern(0.5),
]
SIZES = [(1, 1), (5, 37), (258, 300), (530, 16)]


def data(n, m, dtype, d=3):
    """Rows with pairs that are equal, opposite and zero."""
    rng = np.random.default_rng(n + m)
    X, Z = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    X[n // 2], X[n // 3], X[n // 4] = X[0], -X[0], 0.0
    Z[-1], Z[0] = X[0], -X[-1]
    return X.astype(dtype), Z.astype(dtype)


def near(found, wanted, kernel, rows):
    eps = np.finfo(found.dtype).eps
    bound = 4 * kernel.rounding(rows) * eps * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{type(k).__name__}")
def test_matrices(kernel, dtype):
    for n, m in SIZES:
        X, Z = data(n, m, dtype)
        centre = column_means(X)
        rows, new = kernel.rows(X, centre), kernel.rows(Z, centre)
        K, block = np.full((n, n), np.nan, dtype), np.full((m, n), np.nan, dtype)
        assert fill_gram(kernel, rows, K)
        assert fill_block(kernel, new, rows, block)
        assert (K == K.T).all()
        near(K, gram(kernel, rows), kernel, rows)
        near(block, kernel.tile(new, rows), kernel, rows)


@pytest.mark.parametrize("width", [16, 32])
def test_narrower_vectors(width, monkeypatch):
    """Those of processors without AVX-512, and of ARM."""
    caches = (tile_code._tile_machine, kernel_blocks._blocks, fused_cpu._products)
    monkeypatch.setattr(machine_code, "_vector_bytes", lambda: width)
    for cached in caches:
        cached.cache_clear()
    try:
        for kernel in (Gaussian(0.2), Matern(0.5), NTK(1), Laplacian(0.3)):
            for dtype in ("float32", "float64"):
                test_matrices(kernel, dtype)
                X, _ = data(70, 1, dtype)
                rows = kernel.rows(torch.tensor(X), torch.tensor(column_means(X)))
                fused = fused_cpu.fused_products(kernel, rows, dtype)
                V = np.vstack([X.T, X.T])
                found = fused.share(V, 32, 0, 1, np.zeros(1, dtype=bool))
                wanted = V.astype(float) @ kernel(X.astype(float))
                tol = 1e-4 if dtype == "float32" else 1e-12
                np.testing.assert_allclose(found, wanted, atol=tol * np.abs(wanted).max())
    finally:
        for cached in caches:
            cached.cache_clear()


def test_rows_far_from_their_centre():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.standard_normal((20, 3)) * 1e5, 2, axis=0) + 1e-3 * rng.standard_normal(
        (40, 3)
    )
    kernel = Gaussian(1.0)
    rows = kernel.rows(X, column_means(X))
    assert rows.far
    K = np.empty((40, 40))
    assert fill_gram(kernel, rows, K)
    np.testing.assert_allclose(K, gram(kernel, rows), atol=1e-9)
    assert (K[::2, 1::2].diagonal() > 0.9).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_threads_changes_no_bit(workers, monkeypatch):
    X, Z = data(700, 600, "float64")
    kernel = Matern(1.5)
    rows, new = kernel.rows(X, column_means(X)), kernel.rows(Z, column_means(X))
    one = [np.empty((700, 700)), np.empty((600, 700))]
    fill_gram(kernel, rows, one[0])
    fill_block(kernel, new, rows, one[1])
    monkeypatch.setattr("sdgpu.kernels.compiled.kernel_blocks.cores", lambda: workers)
    other = [np.empty_like(array) for array in one]
    fill_gram(kernel, rows, other[0])
    fill_block(kernel, new, rows, other[1])
    for a, b in zip(one, other, strict=True):
        assert (a == b).all()


def test_many_rows_are_compiled_and_few_are_not(monkeypatch):
    calls = []
    real = fill_gram
    monkeypatch.setattr(
        "sdgpu.kernels.compiled.kernel_blocks.fill_gram", lambda *a: calls.append(1) or real(*a)
    )
    X, _ = data(60, 1, "float64")
    Gaussian(0.3)(X)
    assert not calls
    monkeypatch.setattr(kernel_matrices, "COMPILED_NUMBERS", 0)
    K = Gaussian(0.3)(X)
    T = Gaussian(0.3)(torch.from_numpy(X))
    assert len(calls) == 2
    np.testing.assert_allclose(K, T.numpy(), atol=1e-14)


def test_rows_through_which_derivatives_are_taken_are_not():
    X = torch.randn(10, 2, dtype=torch.float64)
    kernel = Gaussian(0.3)
    rows = kernel.rows(X, column_means(X))
    new = replace(rows, left=rows.left.clone().requires_grad_())
    assert kernel_matrices._on_host(rows)
    assert not kernel_matrices._on_host(new)


class Wave(Profile):
    """A user's own formula, with a list among its parameters: it cannot be looked up, but compiled."""

    def __init__(self, widths):
        self.widths = widths

    __hash__ = None

    def __eq__(self, other):
        return self is other

    def rows(self, X, centre):
        return distance_rows(X - centre)

    def profile(self, tile, a_norms, b_norms):
        return sum((1.0 + tile / width) ** -1.5 for width in self.widths)

    def diagonal(self, rows):
        return len(self.widths) * np.ones(len(rows))


class Branch(Wave):
    """One that looks at its values."""

    def profile(self, tile, a_norms, b_norms):
        return tile if tile.max() > 1 else 1.0 - tile


def test_a_formula_of_the_users_own():
    X, Z = data(300, 40, "float64")
    kernel = Wave([1.0, 2.0])
    rows, new = kernel.rows(X, column_means(X)), kernel.rows(Z, column_means(X))
    block = np.empty((40, 300))
    assert fill_block(kernel, new, rows, block)
    np.testing.assert_allclose(block, kernel.tile(new, rows), rtol=1e-13)
    assert not fill_block(Branch([1.0]), new, rows, block)


def test_the_threads_are_those_that_are_allowed(monkeypatch):
    monkeypatch.setattr(threads, "count", lambda: 5)
    assert threads.cores() == 5
    monkeypatch.delitem(threads.sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert threads.cores() == threads._available()


def test_threads_that_compile_at_the_same_time():
    """A second machine of one text went with its code while a thread was in it: the process died."""
    program = """
import numpy as np, sdgpu
from concurrent.futures import ThreadPoolExecutor
A = np.random.default_rng(0).standard_normal((4200, 3)).astype("float32")
kernel = sdgpu.Gaussian(0.1)
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda i: float(kernel(A[i:], A)[0, i]), range(8)))
print(found == [1.0] * 8)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "True", run.stderr


def test_a_function_keeps_its_machine():
    code = machine_code.Code()
    given = code.function("fill", out="float64", n="index")
    with code.loop(0, given["n"]) as i:
        given["out"].store(i, given["out"].load(i) + given["out"].load(i))
    code.end()
    function = machine_code.Machine(str(code.module)).function("fill", 2)
    gc.collect()
    numbers = np.arange(5.0)
    function(numbers.ctypes.data, 5)
    np.testing.assert_array_equal(numbers, 2 * np.arange(5.0))
