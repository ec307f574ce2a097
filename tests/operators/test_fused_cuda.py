"""The fused kernel against the stored matrix: by Triton's interpreter, the compiler, and on CUDA.

Triton reads TRITON_INTERPRET when it is imported, so this file is also the program that the comparisons
run in: ``TRITON_INTERPRET=1 python -m tests.operators.test_fused_cuda`` prints them as JSON.
"""

import importlib.util
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sdgpu.kernels import Gaussian
from sdgpu.operators import TiledOperator, fused_cuda
from sdgpu.operators.fused_cuda import SPLITS, gaussian_product

TOLERANCE = 2e-5  # relative to the largest entry of the product; float32 rounds by 6e-8
# blocks have 64 or 128 rows and 16, 32 or 64 features: below, beside and beyond them; d = 98 takes four
CASES = [
    *itertools.product((1, 37, 130), (3, 12, 52), (1, 3, 17), SPLITS),
    (130, 100, 70, "tf32x3"),
    (200, 34, 33, "tf32x3"),
]


def rows(n, d, device="cpu"):
    """Augmented rows of n points, the last of which is the first."""
    X = torch.tensor(np.random.default_rng(n + d).standard_normal((n, d)), device=device) / d**0.5
    X[-1] = X[0]
    ready = TiledOperator(Gaussian(0.7), X, "float32").rows
    return ready.left, ready.right


def product(left, right, V):
    """V K in float64, from the float32 rows."""
    K = torch.exp2((left.double() @ right.double().T).clamp(max=0))
    return V.double() @ K.fill_diagonal_(1)


def comparisons():
    errors = {}
    for case in CASES:
        n, k, c, split = case
        left, right = rows(n, k - 2)
        V = torch.tensor(np.random.default_rng(c).standard_normal((c, n)), dtype=torch.float32)
        found, wanted = gaussian_product(left, right, V, split=split), product(left, right, V)
        assert (found.shape, found.dtype) == ((c, n), torch.float64)
        assert found.is_contiguous()
        errors[str(case)] = float((found - wanted).abs().max() / wanted.abs().max())
    return errors


def columns():
    """Columns of K itself, of rows so long that float32 puts equal ones a long way apart."""
    left, right = rows(130, 4)
    left, right = left * 40, right * 40
    K = gaussian_product(left, right, torch.eye(130))
    far = product(left, right, torch.eye(130))
    off = (left.double() @ right.double().T).diagonal()
    return {
        "diagonal": bool((K.diagonal() == 1).all()),
        "rounded": bool((torch.exp2(off.clamp(max=0)) != 1).any()),
        "twins": float((K[0, -1] - far[0, -1]).abs()),
    }


def cancelling():
    """K is all ones; 2^26 + 1 + 1 - 2^26, one term per block, is 0 in float32."""
    left, right = torch.zeros(256, 3), torch.zeros(256, 3)
    V = torch.zeros(2, 256)
    V[:, 0], V[:, 70], V[:, 140], V[:, 200] = 2.0**26, 1, 1, -(2.0**26)
    return [gaussian_product(left, right, block).unique().tolist() for block in (V, V[:1])]


def not_a_number():
    left, right = rows(70, 3)
    left[5] = float("nan")
    found = gaussian_product(left, right, torch.ones(1, 70))
    return bool(found.isnan().any())


@pytest.fixture(scope="module")
def interpreted():
    if fused_cuda.triton is None:
        pytest.skip(fused_cuda.why_not("cuda"))
    command = [sys.executable, "-W", "error", "-m", "tests.operators.test_fused_cuda"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", [str(case) for case in CASES])
def test_it_is_the_matrix(case, interpreted):
    assert interpreted["errors"][case] < TOLERANCE


def test_the_diagonal_is_one_and_twins_are_not_forced(interpreted):
    assert interpreted["columns"]["diagonal"]
    assert interpreted["columns"]["rounded"], "the case is too easy"
    assert interpreted["columns"]["twins"] < 1e-3


def test_sums_between_blocks_lose_nothing(interpreted):
    assert interpreted["cancelling"] == [[2.0], [2.0]]


def test_nan_stays_nan(interpreted):
    assert interpreted["nan"]


def test_no_rows(interpreted):
    assert interpreted["empty"] == [[0, 5], [2, 0]]


@pytest.mark.parametrize(("d", "c"), [(10, 1), (10, 10), (50, 30), (100, 100)])
def test_it_compiles_for_hopper(d, c, tmp_path, monkeypatch):
    """The interpreter is Python: only the compiler knows its own language."""
    compiler = pytest.importorskip("triton.compiler")
    from triton.backends.compiler import GPUTarget

    kernel = fused_cuda._product_kernel
    if "constexprs" not in inspect.signature(compiler.ASTSource.__init__).parameters:
        pytest.skip("another interface of the compiler")
    if type(kernel).__name__ == "InterpretedFunction":
        pytest.skip("TRITON_INTERPRET is set")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    size = fused_cuda._blocks(d, c)
    constants = {
        "ROWS": size.i,
        "STEP": size.j,
        "DEPTH": size.k,
        "COLS": size.c,
        "WHOLE": d <= size.k,
        "SPLIT": "tf32x3",
    }
    types = {"n": "i32", "features": "i32", "out": "*fp64", **dict.fromkeys(constants, "constexpr")}
    source = compiler.ASTSource(
        fn=kernel,
        signature={name: types.get(name, "*fp32") for name in kernel.arg_names},
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(8)},
    )
    options = {"num_warps": size.warps, "num_stages": size.stages, "enable_fp_fusion": True}
    compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "min.NaN.f32" in compiled.asm["ptx"]


def test_a_cpu_is_told_so(monkeypatch):
    monkeypatch.setattr(fused_cuda, "triton", object())
    monkeypatch.setattr(fused_cuda, "_product_kernel", object())
    assert "needs a CUDA device, not 'cpu'" in fused_cuda.why_not(torch.device("cpu"))
    assert fused_cuda.why_not("cuda:1") == ""
    with pytest.raises(ImportError, match="TRITON_INTERPRET=1"):
        gaussian_product(*rows(5, 1), torch.ones(1, 5))


def test_the_module_imports_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    spec = importlib.util.spec_from_file_location("without_triton", fused_cuda.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "without_triton", module)
    spec.loader.exec_module(module)
    assert "pip install triton" in module.why_not("cuda")
    with pytest.raises(ImportError, match="not installed"):
        module.gaussian_product(*rows(5, 1), torch.ones(1, 5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "tf32"}, r"split='tf32' is not known: did you mean 'tf32x3'"),
        ({"left": np.ones((5, 4))}, r"left is a ndarray: pass a torch\.Tensor"),
        ({"right": torch.ones(5)}, r"right has shape \(5,\): pass a matrix"),
        ({"V": torch.ones(2, 5).double()}, r"V is torch\.float64: convert"),
        ({"V": torch.ones(2, 5, device="meta")}, r"V is on meta, left on cpu"),
        ({"left": torch.ones(4, 5).T}, r"left has strides .*: pass left\.contiguous\(\)"),
        ({"right": torch.ones(6, 4)}, r"right has shape \(6, 4\), left \(5, 4\)"),
        ({"left": torch.ones(5, 2), "right": torch.ones(5, 2)}, r"left has 2 columns: .*d \+ 2"),
        ({"V": torch.ones(5, 2)}, r"V has shape \(5, 2\): pass \(c, 5\)"),
    ],
)
def test_bad_input(change, words):
    good = {"left": torch.ones(5, 4), "right": torch.ones(5, 4), "V": torch.ones(2, 5)}
    with pytest.raises(ValueError, match=words):
        gaussian_product(**{**good, **change})


@pytest.mark.gpu
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("c", [1, 3, 17, 70])
@pytest.mark.parametrize("d", [1, 10, 50, 100])
def test_cuda_agrees_with_tiles(d, c, split, rng):
    if fused_cuda.triton is None:
        pytest.skip(fused_cuda.why_not("cuda"))
    X = torch.tensor(rng.standard_normal((5000, d)) / d**0.5, device="cuda")
    V = torch.tensor(rng.standard_normal((c, 5000)), device="cuda", dtype=torch.float32)
    wanted = TiledOperator(Gaussian(0.7), X, "float64").matmat(V.double().T).T
    ready = TiledOperator(Gaussian(0.7), X, "float32").rows
    found = gaussian_product(ready.left, ready.right, V, split=split)
    assert found.device == V.device
    assert float((found - wanted).abs().max() / wanted.abs().max()) < TOLERANCE


if __name__ == "__main__":
    zero = torch.zeros
    empty = [
        gaussian_product(zero(5, 4), zero(5, 4), zero(0, 5)),
        gaussian_product(zero(0, 4), zero(0, 4), zero(2, 0)),
    ]
    report = {
        "errors": comparisons(),
        "columns": columns(),
        "cancelling": cancelling(),
        "nan": not_a_number(),
        "empty": [list(block.shape) for block in empty],
    }
    print(json.dumps(report))
