"""Tiles and KeOps against the stored matrix, in every precision, with tiles of 7 rows."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from sdgpu.backend.backends import to_numpy
from sdgpu.kernels import (
    NNGP,
    NTK,
    AdditiveChiSquared,
    ArcCosine,
    ChiSquared,
    Cosine,
    FunctionKernel,
    Gaussian,
    HistogramIntersection,
    Laplacian,
    Linear,
    Matern,
    On,
    Periodic,
    Polynomial,
    Precomputed,
    RationalQuadratic,
    SpectralMixture,
    Tanimoto,
    Wendland,
)
from sdgpu.operators import DenseOperator, KeOpsOperator, TiledOperator, keops, tile_prices
from sdgpu.operators import tiled as module
from tests.problems import assert_near

KERNELS = [
    Gaussian(0.2), Gaussian(0.5, [0.5, 1.0, 2.0, 3.0, 0.7]), Laplacian(0.2), Matern(0.5), Matern(1.5),
    Matern(2.5), Polynomial(2), Linear(), Cosine(), ArcCosine(0), ArcCosine(1), ArcCosine(2),
    NNGP(2, 1.5, 0.3), NTK(2), Matern(4.5, 2.0), RationalQuadratic(0.7, [0.5, 1.0, 2.0, 3.0, 0.7]),
    Periodic(1.3), Wendland(0, 4.0, dimension=5), Wendland(2, 4.0, dimension=5), Tanimoto(), ChiSquared(0.4),
    AdditiveChiSquared(), HistogramIntersection(), On(3, SpectralMixture([1.5, 0.5], [0.0, 0.3], [0.1, 0.01])),
    On([4, 1], Gaussian(0.5)) * On(0, Periodic(1.3)), Gaussian(0.2) + Linear(), 2 * Gaussian(0.2) * Cosine(), FunctionKernel(lambda A, B: A @ B.T),
]  # fmt: skip
TOLERANCE = {"float32": 2e-5, "mixed": 5e-6, "float64": 1e-12}


@pytest.fixture
def arrays(rng):
    A = rng.standard_normal((23, 5))
    A[11] = A[4]
    return A, rng.standard_normal((9, 5)), rng.standard_normal((23, 3))


def allowed_rows(kernel, rows):
    """Rows that the kernel takes: of histograms not negative, and some of them 0."""
    if isinstance(kernel, (AdditiveChiSquared, ChiSquared, HistogramIntersection)):
        return np.maximum(rows, 0)
    return rows


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_tiles_are_the_matrix(kernel, precision, library, arrays):
    A, new, V = arrays
    A, new = allowed_rows(kernel, A), allowed_rows(kernel, new)
    tiled = TiledOperator(kernel, library(A), precision, tile=7)
    dense = DenseOperator(kernel, A)
    # degree 0 has a kink where rows are parallel: float32 sees it at the square root of its rounding
    kinked = (ArcCosine(0), Matern(0.5), NTK(2), Wendland(0, 4.0, dimension=5))
    rough = kernel in kinked and precision != "float64"
    size = (5e-4 if rough else TOLERANCE[precision]) * np.abs(dense.matrix).max() * 10
    product = tiled.matmat(library(V))
    assert type(product) is type(library(V))
    assert str(product.dtype).endswith("float64")
    assert_allclose(to_numpy(product), dense.matmat(V), atol=size)
    assert_allclose(to_numpy(tiled.diag()), dense.diag(), atol=size)
    assert_allclose(to_numpy(tiled.columns([0, 7, 22])), dense.columns([0, 7, 22]), atol=size)
    cross = tiled.cross(library(new))
    assert_allclose(to_numpy(cross.dense()), dense.cross(new).dense(), atol=size)
    assert_allclose(to_numpy(cross @ library(V)), dense.cross(new) @ V, atol=size)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_kept_tiles_multiply_the_same(kernel, precision, arrays):
    A, _, V = arrays
    A = allowed_rows(kernel, A)
    kept, anew = (TiledOperator(kernel, A, precision, tile=7, keep=keep) for keep in (True, False))
    first, again = kept.matmat(V), kept.matmat(V)
    assert_allclose(again, first, rtol=0)
    assert_allclose(first, anew.matmat(V), rtol=1e-14, atol=1e-14 * np.abs(first).max())
    assert len(kept._tile_cache) == 10


@pytest.mark.parametrize("kernel", KERNELS[:-1], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_compiled_passes_are_the_matrix(precision, kernel, arrays, monkeypatch):
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(tile_prices, "FUSED_ROWS", 0)
    A, _, V = arrays
    A = allowed_rows(kernel, np.vstack([A, A + 12.0]))  # and values below the smallest float
    V = np.vstack([V, V])
    V = np.hstack([V, V**2, V[:, ::-1]])
    dense = DenseOperator(kernel, A)
    for columns, tile in ((1, 7), (4, 46), (5, None), (9, 33)):
        tiled = TiledOperator(kernel, A, precision, tile=tile)
        assert tiled.compiled
        wanted = dense.matmat(V[:, :columns])
        size = max(1.0, np.abs(wanted).max()) if kernel.rounding(dense.rows) < 100 else 1e3
        assert_allclose(tiled.matmat(V[:, :columns]), wanted, atol=10 * TOLERANCE[precision] * size)


@pytest.mark.parametrize("kernel", [Gaussian(0.2), Laplacian(0.2)], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_compiled_passes_of_every_number_of_rows(precision, kernel, rng, monkeypatch):
    """Below, at and above whole strips and tiles, where rows before a strip count twice."""
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(tile_prices, "FUSED_ROWS", 0)
    A, V = rng.standard_normal((300, 5)), rng.standard_normal((300, 5))
    for n in (*range(1, 4), *range(14, 19), *range(31, 35), 48, 63, 65, 255, 256, 257, 300):
        K = kernel(A[:n])
        for tile in (32, None):
            tiled = TiledOperator(kernel, A[:n], precision, tile=tile)
            for columns in (1, 5):
                wanted = K @ V[:n, :columns]
                limit = 10 * TOLERANCE[precision] * max(1.0, np.abs(wanted).max())
                assert_allclose(tiled.matmat(V[:n, :columns]), wanted, atol=limit)


def test_compiled_passes_are_for_what_they_can_do(arrays, monkeypatch):
    pytest.importorskip("llvmlite")
    A, _, V = arrays
    assert TiledOperator(Gaussian(0.2), A)._fused is None  # too few rows
    monkeypatch.setattr(tile_prices, "FUSED_ROWS", 0)
    assert TiledOperator(KERNELS[-1], A)._fused is None  # a function
    far = A + 1e6 * np.arange(23)[:, None]
    assert TiledOperator(Gaussian(0.2), far)._fused is not None
    assert_near(TiledOperator(Gaussian(0.2), far).matmat(V)[:2], V[:2], rtol=1e-9)
    monkeypatch.setitem(sys.modules, "sdgpu.operators.fused_cpu", None)  # no llvmlite
    assert TiledOperator(Gaussian(0.2), A)._fused is None


def test_what_decides_is_the_work_of_a_pass():
    pays = tile_prices.pays_to_compile
    assert pays(Gaussian(0.2), 5000, 4)
    assert not pays(Gaussian(0.2), 4999, 20_000)  # a product of matrices serves any width
    assert not pays(Laplacian(0.2), 1000, 100)
    assert pays(Laplacian(0.2), 1000, 120)
    assert not pays(On([0, 1, 2], Laplacian(0.2)), 1000, 120)  # of three columns
    parts = 2.0 * Laplacian(0.2) + Gaussian(0.1) * HistogramIntersection()
    assert pays(parts, 1000, 60)
    assert not pays(KERNELS[-1], 10**6, 10)  # a function
    rows = np.random.default_rng(0).random((1000, 120))
    assert TiledOperator(Laplacian(0.2), rows).compiled == _has_llvmlite()
    assert not TiledOperator(Laplacian(0.2), rows, keep=True).compiled
    assert not TiledOperator(Laplacian(0.2), rows[:900]).compiled


def _has_llvmlite():
    return importlib.util.find_spec("llvmlite") is not None


def test_products_do_not_depend_on_the_number_of_threads(arrays, monkeypatch):
    A, _, V = arrays
    tiled = TiledOperator(Gaussian(0.2), A, tile=3)
    first = tiled.matmat(V)
    assert (tiled.matmat(V) == first).all()  # nor on the clock
    monkeypatch.setattr(module, "count", lambda: 5)
    before = torch.get_num_threads()
    assert_allclose(tiled.matmat(V), first, rtol=1e-13, atol=1e-14)
    assert torch.get_num_threads() == before


def test_an_error_in_one_thread_ends_all(arrays, monkeypatch):
    A, _, V = arrays

    class Broken(Gaussian):
        def tile(self, a, b, *, same=False, out=None):
            raise ArithmeticError("broken")

    monkeypatch.setattr(module, "count", lambda: 4)
    before = torch.get_num_threads()
    with pytest.raises(ArithmeticError, match="broken"):
        TiledOperator(Broken(), A, tile=2).matmat(V)
    assert torch.get_num_threads() == before


def test_triton_is_refused_where_it_cannot_run(arrays):
    with pytest.raises(ValueError, match="triton=True cannot be used"):
        TiledOperator(Gaussian(0.2), arrays[0].astype(np.float32), triton=True)


@pytest.mark.parametrize("tile", [1, 7, 22, 23, 1000, None])
def test_every_size_of_tile(tile, arrays):
    A, _, V = arrays
    wanted = DenseOperator(Gaussian(0.2), A).matmat(V)
    assert_near(TiledOperator(Gaussian(0.2), A, tile=tile).matmat(V), wanted, rtol=1e-12)


def test_precision_is_that_of_the_data(arrays):
    A, _, V = arrays
    assert TiledOperator(Gaussian(0.2), A).precision == "float64"
    single = TiledOperator(Gaussian(0.2), A.astype(np.float32))
    assert single.precision == "float32"
    # sums across tiles are float64 all the same
    assert single.matmat(V.astype(np.float32)).dtype == np.float64


def test_strided_read_only_and_single_rows(rng):
    A = np.asfortranarray(rng.standard_normal((20, 8)))[::-2, ::2]
    A.flags.writeable = False
    V = np.ones((10, 1))
    V.flags.writeable = False
    assert_near(TiledOperator(Gaussian(0.1), A, tile=3).matmat(V), Gaussian(0.1)(A.copy()) @ V)
    assert_allclose(TiledOperator(Gaussian(0.1), A[:1]).matmat(V[:1]), [[1.0]])
    assert TiledOperator(Gaussian(0.1), A).cross(A[:0]).matmat(V).shape == (0, 1)


def test_out_of_memory_halves_the_tile(monkeypatch, rng):
    operator = TiledOperator(Gaussian(0.1), rng.standard_normal((1500, 2)), tile=1024)
    tried, original = [], TiledOperator._product

    def product(self, V, tile, part):
        tried.append(tile)
        if tile > 256:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return original(self, V, tile, part)

    monkeypatch.setattr(TiledOperator, "_product", product)
    operator.matmat(np.ones((1500, 1)))
    assert tried == [1024, 512, 256]


def test_bad_input(rng):
    with pytest.raises(TypeError, match="use DenseOperator"):
        TiledOperator(Precomputed(), np.eye(3))
    with pytest.raises(ValueError, match="did you mean 'float32'"):
        TiledOperator(Gaussian(), np.ones((3, 1)), "float3")
    with pytest.raises(ValueError, match="tile=0"):
        TiledOperator(Gaussian(), np.ones((3, 1)), tile=0)
    with pytest.raises(ValueError, match="2 features, but the fit has 1"):
        TiledOperator(Gaussian(), np.ones((3, 1))).cross(np.ones((1, 2)))


@pytest.mark.parametrize(
    "kernel",
    [
        Gaussian(0.2),
        Laplacian(0.2) + Linear(),
        ArcCosine(1),
        RationalQuadratic(1e6),
        Matern(4.5),
        Wendland(0, 3.0, dimension=5),
        Tanimoto(),
        ChiSquared(0.4),
        HistogramIntersection() + AdditiveChiSquared(),
        On(3, SpectralMixture([1.5, 0.5], [0.0, 0.3], [0.1, 0.01])) * On([0, 1], Periodic(1.3)),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore")
def test_keops_is_the_matrix(kernel, arrays):
    if keops.why_not():
        pytest.skip(keops.why_not())
    A, new, V = arrays
    if "Chi" in repr(kernel):
        A, new = np.maximum(A, 0), np.maximum(new, 0)
    operator, dense = KeOpsOperator(kernel, A), DenseOperator(kernel, A)
    assert_allclose(operator.matmat(V), dense.matmat(V), rtol=1e-12, atol=1e-12)
    assert_allclose(operator.diag(), dense.diag())
    assert_allclose(operator.columns([3]), dense.columns([3]), atol=1e-13)
    assert_allclose(operator.cross(new) @ V, dense.cross(new) @ V, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_keops_refuses_angles_of_one_feature():
    if keops.why_not():
        pytest.skip(keops.why_not())
    X = np.array([[1.0], [-2.0], [3.0]])
    for kernel in (NTK(1), ArcCosine(0)):
        with pytest.raises(ValueError, match="rows of one feature are parallel or opposite"):
            KeOpsOperator(kernel, X).matmat(np.ones((3, 1)))


def test_keops_needs_a_formula():
    if keops.why_not():
        pytest.skip(keops.why_not())
    with pytest.raises(TypeError, match="FunctionKernel has no formula for KeOps"):
        KeOpsOperator(Gaussian() + FunctionKernel(lambda A, B: A @ B.T), np.ones((2, 1)))
    with pytest.raises(ValueError, match="rows of zeros"):
        KeOpsOperator(ArcCosine(0), np.zeros((2, 1))).matmat(np.ones((2, 1)))
    with pytest.raises(ValueError, match="'mixed' is for tiles"):
        KeOpsOperator(Gaussian(), np.ones((2, 1)), "mixed")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (subprocess.TimeoutExpired("python", 1), "did not compile"),
        (subprocess.CompletedProcess("python", 1, "", "no g++\n"), "cannot compile here .* no g"),
    ],
)
def test_a_machine_without_a_compiler_says_so(monkeypatch, outcome, words):
    def run(*_, **__):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(keops, "_ANSWER", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ImportError, match=words):
        KeOpsOperator(Gaussian(), np.ones((2, 1)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[keops\]'"):
        KeOpsOperator(Gaussian(), np.ones((2, 1)))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS[:-1], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_tiles_on_cuda(kernel, precision, arrays):
    A, _, V = arrays
    A = allowed_rows(kernel, A)
    tiled = TiledOperator(kernel, torch.tensor(A, device="cuda"), precision, tile=7)
    wanted = DenseOperator(kernel, A).matmat(V)
    found = to_numpy(tiled.matmat(torch.tensor(V, device="cuda")))
    assert_allclose(found, wanted, atol=2e-2 if precision != "float64" else 1e-10)
