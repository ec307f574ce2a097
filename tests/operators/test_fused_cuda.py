"""The fused product against float64: by Triton's interpreter, the compiler, and on CUDA.

Triton reads TRITON_INTERPRET when it is imported, so this file is also the program that the comparisons
run in: ``TRITON_INTERPRET=1 python -m tests.operators.test_fused_cuda`` prints them as JSON.
"""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import sdgpu
from benchmarks.device_products import KERNELS as GPU_KERNELS
from benchmarks.device_products import agreement
from sdgpu.kernels import Gaussian, Laplacian
from sdgpu.operators import TiledOperator, device_functions, fused_cuda
from sdgpu.operators.fused_cuda import SPLITS, FusedCuda
from tests.fuzz.problems import KERNELS, NONNEGATIVE, ON_UNIT_INTERVAL

EPS = float(np.finfo(np.float32).eps)
WRITTEN = sorted(set(KERNELS) - {"function", *ON_UNIT_INTERVAL})
# few features are sums on the FMA units, 3 to 16 too where distances must be exact, more are slices of 16, 32,
# 64 and beyond; blocks have 32, 64 or 128 rows
WIDTHS = (2, 5, 19)
THOROUGH = ("gaussian", "chi2", "matern12", "nngp", "product", "periodic")
CASES = [("gaussian", 50), ("gaussian", 100), ("laplacian", 40), ("matern12", 70), ("tanimoto", 70)]


def points(name, n, d, seed=0):
    X = np.random.default_rng(seed + n + d).standard_normal((n, d)) / d**0.5
    if name in NONNEGATIVE:
        X = np.abs(X)
    X[n // 2] = X[0]  # a twin
    if n > 3 and name not in NONNEGATIVE:
        X[3] = -2 * X[1]  # and an opposite
    return torch.tensor(X)


def error(found, wanted, allowed):
    """The largest error of the entries, over what is allowed."""
    assert found.dtype == torch.float64
    assert found.is_contiguous()
    assert found.shape == wanted.shape
    return float(((found - wanted).abs() / allowed).max())


def entries(name, d, n=75, m=40):
    """Columns of K and of new rows, entry by entry, over the bound that the kernel itself states."""
    kernel, X = KERNELS[name](0.7), points(name, n, d)
    single, double = (TiledOperator(kernel, X, precision) for precision in ("float32", "float64"))
    chosen = [0, 1, n // 2, n - 1]
    V = torch.eye(n, dtype=torch.float64)[chosen]
    root = double.diag().abs().sqrt()
    scale = EPS * (kernel.rounding(single.rows) + 4)
    K = double.columns(chosen).T
    new = points(name, m, d, seed=1)
    cross = double.cross(new)
    C, ready = cross.dense().T[chosen], single.cross(new).new
    floor = float(K.abs().max()) * 1e-3
    allowed = scale * (root[chosen][:, None] * root[None] + floor)
    beside = scale * (root[chosen][:, None] * cross.diag().abs().sqrt()[None] + floor)
    found = {}
    fused = FusedCuda(kernel, single.rows)
    found["tf32x3"] = error(fused.gram(V.float()), K, allowed)
    found["cross"] = error(fused.cross(ready, V.float()), C, beside)
    if d == WIDTHS[-1] and name in THOROUGH:
        found["wide"] = error(fused.gram(V), K, allowed)
        found["one"] = error(fused.gram(V[:1]), K[:1], allowed[:1])
        found["one, cross"] = error(fused.cross(ready, V[:1].float()), C[:1], beside[:1])
        for options in ({"split": "ieee"}, {"polynomial": 2}, {"polynomial": 8}):
            other = FusedCuda(kernel, single.rows, **options)
            found[str(options)] = error(other.gram(V[:2].float()), K[:2], allowed[:2])
    return found


def sums():
    """K V of random columns, 1 to 33 of them, over the largest entry."""
    errors = {}
    for n, d, c in [
        (1, 3, 1),
        (37, 12, 17),
        (130, 52, 33),
        (300, 16, 3),
        (129, 1024, 2),
        (700, 3, 1),
    ]:
        X = points("gaussian", n, d)
        single, double = (TiledOperator(Gaussian(0.7), X, p) for p in ("float32", "float64"))
        V = torch.tensor(np.random.default_rng(c).standard_normal((c, n)))
        wanted = double.matmat(V.T).T
        for split in SPLITS if n < 200 else SPLITS[:1]:
            fused = FusedCuda(Gaussian(0.7), single.rows, split=split)
            found = fused.gram(V.float())
            errors[f"{n} {d} {c} {split}"] = error(found, wanted, wanted.abs().max())
            assert torch.equal(found, fused.gram(V.float()))
    return errors


def few_rows_and_many_columns():
    """Columns in parts, as three new rows have them, and ten rows of X."""
    n, X = 2500, points("gaussian", 2500, 3)
    single, double = (TiledOperator(Gaussian(0.7), X, p) for p in ("float32", "float64"))
    V = torch.tensor(np.random.default_rng(0).standard_normal((2, n)))
    fused, new = FusedCuda(Gaussian(0.7), single.rows), points("gaussian", 3, 3, seed=5)
    wanted = double.cross(new).matmat(V.T).T
    cross = error(fused.cross(single.cross(new).new, V.float()), wanted, wanted.abs().max())
    gram = double.matmat(V.T).T
    return [cross, error(fused.gram(V.float()), gram, gram.abs().max())]


def exact():
    """What rounding must not touch: diagonals, zeros, NaN, sums that cancel."""
    X = points("gaussian", 130, 20) * 100
    far = TiledOperator(Gaussian(0.7), X, "float32")
    eye = torch.eye(130)
    report = {"far": bool(far.rows.far)}
    K = FusedCuda(Gaussian(0.7), far.rows).gram(eye)
    report["diagonal"] = bool((K.diagonal() == 1).all())
    report["twins"] = float((K[0, 65] - 1).abs())
    # 2^t on a line: below 2^-126 there is exactly nothing, above it something right
    line = torch.arange(130, dtype=torch.float64)[:, None] * 0.1
    K = FusedCuda(Laplacian(10.0), TiledOperator(Laplacian(10.0), line, "float32").rows).gram(eye)
    wanted = torch.exp(-10 * (line - line.T).abs())
    tiny = wanted < 2.0**-126
    report["zeros"] = [int((K[tiny] != 0).sum()), int(tiny.sum()), int((K[~tiny] == 0).sum())]
    report["small"] = float(((K - wanted).abs() / wanted)[~tiny].max())
    rows = TiledOperator(Gaussian(0.7), points("gaussian", 130, 20), "float32").rows
    for array in (rows.left, rows.right):
        array[5] = float("nan")
    found = FusedCuda(Gaussian(0.7), rows, polynomial=4).gram(eye)
    report["nan"] = [bool(found[5].isnan().all()), int(found.isnan().any(dim=1).sum())]
    same = torch.zeros(640, 3)  # K is all ones; a number for each block is 0 in float32
    V = torch.zeros(2, 640)
    V[:, 0], V[:, 130], V[:, 300], V[:, 520] = 2.0**26, 1, 1, -(2.0**26)
    ones = FusedCuda(Gaussian(), Gaussian().rows(same, same[0]))
    report["cancelling"] = [ones.gram(block).unique().tolist() for block in (V, V[:1], V.double())]
    report["empty"] = [
        list(ones.gram(torch.zeros(0, 640)).shape),
        list(ones.cross(Gaussian().rows(same[:0], same[0]), V).shape),
    ]
    return report


def whole_fits():
    """A fit by the fused product, and its predictions, against the exact one."""
    X, new = points("gaussian", 60, 3), points("gaussian", 9, 3, seed=2)
    y = torch.sin(X.sum(dim=1))
    report = {}
    for kernel in (Gaussian(0.5), sdgpu.Matern(1.5) + 0.3 * Laplacian()):
        for precision in ("float32", "mixed"):
            maker = partial(TiledOperator, precision=precision, triton=True)
            wanted = sdgpu.fit(X, y, kernel, lams=[0.1]).path(alphas=0.3, steps=3)
            fit = sdgpu.fit(X, y, kernel, lams=[0.1], method="cg", tol=1e-4, operator=maker)
            found = fit.path(alphas=0.3, steps=3)
            difference = np.abs(np.asarray(found.predict(new)) - np.asarray(wanted.predict(new)))
            report[f"{type(kernel).__name__} {precision}"] = float(difference.max())
    numbers = TiledOperator(Gaussian(0.5), X.numpy(), "float32", triton=True)
    product = numbers.cross(new.numpy()).matmat(np.ones((60, 2)))
    report["numpy"] = [type(product).__name__, str(product.dtype), list(product.shape)]
    return report


@pytest.fixture(scope="module")
def interpreted():
    if not device_functions.installed():
        pytest.skip(fused_cuda.why_not("cuda"))
    command = [sys.executable, "-W", "error", "-m", "tests.operators.test_fused_cuda"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", WRITTEN)
def test_entries_are_those_of_the_kernel(name, interpreted):
    for case, errors in interpreted["entries"].items():
        if case.startswith(f"{name} "):
            assert all(one <= 1 for one in errors.values()), (case, errors)
    assert sum(case.startswith(f"{name} ") for case in interpreted["entries"]) >= 1


def test_the_bound_of_entries_is_no_empty_one(interpreted):
    """Of most kernels the worst entry is within a hundred times of it."""
    worst = [max(errors.values()) for errors in interpreted["entries"].values()]
    assert np.median(worst) > 0.02


def test_sums_are_right_for_every_number_of_columns(interpreted):
    assert max(interpreted["sums"].values()) < 3e-6, interpreted["sums"]


def test_few_rows_meet_the_columns_in_parts(interpreted):
    assert max(interpreted["parts"]) < 1e-6


def test_the_diagonal_is_exact_and_so_are_near_pairs(interpreted):
    assert interpreted["exact"]["far"], "the case is too easy"
    assert interpreted["exact"]["diagonal"]
    assert interpreted["exact"]["twins"] == 0


def test_values_below_the_smallest_normal_number_are_zero(interpreted):
    wrong, tiny, lost = interpreted["exact"]["zeros"]
    assert (wrong, lost) == (0, 0)
    assert tiny > 100
    assert interpreted["exact"]["small"] < 1e-4  # an exponent of 126 is rounded to 4e-6


def test_nan_stays_nan_in_its_row_alone(interpreted):
    everywhere, rows = interpreted["exact"]["nan"]
    assert everywhere
    assert rows == 130  # as every row meets it


def test_sums_between_blocks_lose_nothing(interpreted):
    assert interpreted["exact"]["cancelling"] == [[2.0], [2.0], [2.0]]


def test_no_rows(interpreted):
    assert interpreted["exact"]["empty"] == [[0, 640], [2, 0]]


def test_fits_and_predictions(interpreted):
    kind, dtype, shape = interpreted["fits"].pop("numpy")
    assert (kind, dtype, shape) == ("ndarray", "float64", [9, 2])
    assert max(interpreted["fits"].values()) < 3e-4, interpreted["fits"]


VARIANTS = [
    (Gaussian(), 10, 1, 80, {}),
    (Gaussian(), 10, 32, 90, {}),
    (Gaussian(), 10, 16, 90, {"kind": "float64"}),
    (Gaussian(), 100, 16, 100, {"polynomial": 4}),
    (Laplacian(), 20, 1, 100, {}),
    (sdgpu.NTK(1), 20, 1, 90, {"same": False}),
]
PRODUCTS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@pytest.mark.parametrize(("kernel", "d", "c", "architecture", "options"), VARIANTS)
def test_it_compiles(kernel, d, c, architecture, options, tmp_path, monkeypatch):
    """The interpreter is Python: only the compiler knows its own language, and what fits a chip."""
    if not device_functions.installed() or device_functions.interpreted():
        pytest.skip("needs Triton's compiler")
    from benchmarks.device_code import LIMITS, compiled, variant
    from benchmarks.roofline import SPILLS

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    code = compiled(variant(kernel, d), architecture, c, **options)
    assert code.registers <= 255
    assert code.spills <= SPILLS
    assert code.shared <= LIMITS[architecture]
    assert code.programs >= 1
    has_products = not isinstance(kernel, Laplacian)
    assert (PRODUCTS[architecture] in code.ptx) == has_products
    if not isinstance(kernel, sdgpu.NTK):
        assert "ex2.approx.ftz.f32" in code.ptx  # which has no subnormal numbers
    if options.get("kind") == "float64":
        assert ".f64.f64.f64.f64" in code.ptx
    # without moves between threads: what tensor cores made is what they take
    if c == 32:
        assert code.per_pair(("SHFL",)) == 0
    if isinstance(kernel, Gaussian):
        assert "min.NaN.f32" in code.ptx


def test_a_cpu_is_told_so(monkeypatch):
    monkeypatch.setattr(device_functions, "triton", object())
    monkeypatch.setattr(device_functions, "product_kernel", object())
    assert "needs a CUDA device, not 'cpu'" in fused_cuda.why_not(torch.device("cpu"))
    assert fused_cuda.why_not("cuda:1") == ""
    with pytest.raises(ImportError, match="TRITON_INTERPRET=1"):
        FusedCuda(Gaussian(), Gaussian().rows(torch.ones(5, 1), torch.ones(1)))


def test_the_module_imports_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", device_functions.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "without_triton", module)
    spec.loader.exec_module(module)
    assert not module.installed()
    monkeypatch.setattr(fused_cuda, "device_functions", module)
    assert "pip install triton" in fused_cuda.why_not("cuda")
    with pytest.raises(ImportError, match="not installed"):
        FusedCuda(Gaussian(), Gaussian().rows(torch.ones(5, 1), torch.ones(1)))


def made(monkeypatch, kernel=None, rows=None, **options):
    monkeypatch.setattr(fused_cuda, "why_not", lambda device: "")
    kernel = Gaussian() if kernel is None else kernel
    rows = kernel.rows(torch.ones(5, 4), torch.ones(4)) if rows is None else rows
    return FusedCuda(kernel, rows, **options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"split": "tf32"}, ValueError, r"split='tf32' is not known: did you mean 'tf32x3'"),
        ({"polynomial": 3}, ValueError, r"polynomial=3 must be 0, 1, 2, 4 or 8 of each eight"),
        ({"polynomial": -1}, ValueError, r"polynomial=-1"),
        (
            {"kernel": sdgpu.kernels.FunctionKernel(torch.matmul)},
            TypeError,
            "FunctionKernel has no formula: use torch's tiles",
        ),
        (
            {"rows": Gaussian().rows(torch.ones(5, 4).double(), torch.ones(4))},
            TypeError,
            "float64, but kernel values are computed in float32",
        ),
    ],
)
def test_bad_options(options, kind, words, monkeypatch):
    with pytest.raises(kind, match=words):
        made(monkeypatch, **options)


@pytest.mark.parametrize(
    ("V", "words"),
    [
        (np.ones((2, 5)), r"V is a ndarray: pass a torch\.Tensor"),
        (torch.ones(2, 4), r"V has shape \(2, 4\): pass \(c, 5\), a column for each row"),
        (torch.ones(5), r"V has shape \(5,\)"),
        (torch.ones(2, 5).half(), r"V is torch\.float16: convert"),
        (torch.ones(2, 5, device="meta"), r"V is on meta, the rows on cpu"),
    ],
)
def test_bad_blocks(V, words, monkeypatch):
    with pytest.raises(ValueError, match=words):
        made(monkeypatch).gram(V)


def test_bad_new_rows(monkeypatch):
    new = Gaussian().rows(torch.ones(2, 4).double(), torch.ones(4))
    with pytest.raises(ValueError, match=r"new rows are torch\.float64 on cpu: pass float32 rows"):
        made(monkeypatch).cross(new, torch.ones(1, 5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "float64"}, "precision='float64' is not: use 'float32' or 'mixed'"),
        ({"precision": "float32", "keep": True}, "keep=True keeps tiles"),
        ({"precision": "float32", "kernel": sdgpu.CubicSpline()}, "CubicSpline has no formula"),
    ],
)
def test_an_operator_that_cannot_use_it_says_why(options, words, monkeypatch):
    monkeypatch.setattr(fused_cuda, "why_not", lambda device: "")
    kernel = options.pop("kernel", Gaussian())
    with pytest.raises(ValueError, match=f"triton=True cannot be used: .*{words}"):
        TiledOperator(kernel, np.full((3, 1), 0.5), triton=True, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_KERNELS)
@pytest.mark.parametrize("d", [2, 20, 100])
def test_cuda_agrees_with_tiles(name, d):
    if not device_functions.installed():
        pytest.skip(fused_cuda.why_not("cuda"))
    for c in (1, 7, 33):
        for one in agreement(name, 3000, d, c, "cuda"):
            assert one.error <= 1, one


if __name__ == "__main__":
    cases = [(name, d) for name in WRITTEN for d in WIDTHS if name[:4] not in ("mixt", "colu")]
    cases = [case for case in cases if case[0][:8] != "wendland" or case[1] <= 5]
    cases += [("mixture", 1), ("columns", 1), ("gaussian", 1), ("ntk", 1), *CASES]
    print(
        json.dumps(
            {
                "entries": {f"{name} {d}": entries(name, d) for name, d in cases},
                "sums": sums(),
                "parts": few_rows_and_many_columns(),
                "exact": exact(),
                "fits": whole_fits(),
            }
        )
    )
