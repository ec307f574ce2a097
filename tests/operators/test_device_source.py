"""The text of the Triton function of a kernel: what is written, what is refused, and where rows lie."""

import ast
import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch

import sdgpu
from sdgpu.kernels.augmented_rows import Rows, distance_rows
from sdgpu.kernels.compiled.formula import formula_of
from sdgpu.kernels.compiled.source_numbers import SourceNumber, SourceText, polynomial_power
from sdgpu.kernels.elementwise import exp2_, smaller
from sdgpu.kernels.kernel import Kernel, Profile
from sdgpu.operators.device_rows import DeviceRows, packed_block, part_widths, split
from sdgpu.operators.device_source import layout_of, source_of
from sdgpu.operators.fused_cuda import formula_and_layout, why_no_formula
from tests.fuzz.problems import KERNELS


def ready(kernel, d, n=5):
    X = torch.rand(n, d, generator=torch.Generator().manual_seed(d))
    return kernel.rows(X, X.mean(dim=0))


@dataclasses.dataclass(frozen=True)
class OfItsOwnValues(Profile):
    def rows(self, X, centre):
        return distance_rows(X)

    def profile(self, tile, a_norms, b_norms):
        return exp2_(-tile) if (tile > 0).any() else tile

    def diagonal(self, rows):
        return torch.ones(len(rows))


@dataclasses.dataclass(frozen=True)
class Asking(OfItsOwnValues):
    def profile(self, tile, a_norms, b_norms):
        return tile if tile > 0 else -tile


@dataclasses.dataclass(frozen=True)
class Constant(OfItsOwnValues):
    def profile(self, tile, a_norms, b_norms):
        return 1.0


@dataclasses.dataclass(frozen=True)
class Infinite(OfItsOwnValues):
    def profile(self, tile, a_norms, b_norms):
        return smaller(tile, float("inf"))


@dataclasses.dataclass(frozen=True)
class AnotherSum(OfItsOwnValues):
    statistic: ClassVar[str] = "maximum"


@pytest.mark.parametrize("name", sorted(set(KERNELS) - {"function"}))
def test_every_kernel_with_a_formula_is_written(name):
    kernel, d = KERNELS[name](0.7), 1 if name in ("mixture", "columns") else 5
    if name in ("cubicgreen", "cubicspline", "bridge"):
        assert "has no formula" in why_no_formula(kernel, ready(kernel, 1))
        return
    rows = ready(kernel, d)
    assert why_no_formula(kernel, rows) == ""
    text = source_of(*formula_and_layout(kernel, rows, rows))
    tree = ast.parse(text)
    assert [node.name for node in tree.body][-1] == "values"
    assert all("import" not in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (sdgpu.kernels.FunctionKernel(torch.matmul), "FunctionKernel has no formula"),
        (sdgpu.CubicSpline(), "CubicSpline has no formula"),
        (sdgpu.Gaussian() + sdgpu.BrownianBridge(), "BrownianBridge has no formula"),
        (OfItsOwnValues(), "OfItsOwnValues cannot be written .* no attribute 'any'"),
        (Asking(), "Asking cannot be written as a Triton function: .* depends on its own values"),
        (Constant(), "Constant cannot be written .* do not depend on the rows"),
        (Infinite(), "Infinite cannot be written .* constant inf"),
        (AnotherSum(), "AnotherSum has a statistic that is no sum over features known here"),
    ],
)
def test_what_has_no_text_is_refused_by_name(kernel, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(why_no_formula(kernel, ready(kernel, 1)))


def test_rows_of_float64_are_refused():
    kernel, X = sdgpu.Gaussian(), torch.rand(4, 3, dtype=torch.float64)
    assert "rows are float64" in why_no_formula(kernel, kernel.rows(X, X[0]))


def test_equal_expressions_are_written_once():
    source = SourceText("def f(t):")
    t = SourceNumber(source, "t")
    (t * 2.0 + 1.0) * (t * 2.0 + 1.0)
    assert str(source).count("t * 2.0") == 1


def test_what_is_known_saves_work():
    source = SourceText("def f(t):")
    t = SourceNumber(source, "t", 0.0, 4.0)
    assert abs(t) is t
    assert t * 1.0 is t
    assert t + 0.0 is t
    assert t.clip(0.0, 5.0) is t
    assert t.exp2().without_subnormals().text == t.exp2().text


def run(text, **names):
    """A function of floats by NumPy, in place of Triton."""

    class Bits(np.ndarray):
        def to(self, dtype, bitcast=False):
            return self.view(dtype) if bitcast else self.astype(dtype)

    class Language:
        int32, float32 = np.int32, np.float32
        fma = staticmethod(lambda a, b, c: (np.float32(a) * b + np.float32(c)).view(Bits))
        where = staticmethod(lambda c, a, b: np.where(c, np.float32(a), b).view(Bits))

    scope = {"jit": lambda function: function, "tl": Language}
    exec(compile(text, "text", "exec"), scope)
    return lambda t: np.asarray(scope["polynomial_power"](t.view(Bits)))


def test_the_polynomial_is_right_over_its_range():
    """2 units in the last place from 2^-126 to 2^127, 0 below, NaN for NaN."""
    power = run(polynomial_power())
    t = np.concatenate(
        [np.linspace(-126, 127, 200_001), np.linspace(-1, 1, 20_001), -np.geomspace(1e-30, 1, 999)]
    ).astype(np.float32)
    wanted = np.exp2(t.astype(np.float64))
    spacing = np.spacing(wanted.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(power(t) - wanted) / spacing) <= 2
    with np.errstate(invalid="ignore"):
        assert (power(np.array([-126.1, -200, -1e30, -np.inf], np.float32)) == 0).all()
        assert np.isnan(power(np.array([np.nan], np.float32))).all()


def test_halves_are_of_tf32_and_lose_nothing():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e3
    high, low = split(values)
    for half in (high, low):
        assert ((half.view(torch.int32) & 0x1FFF) == 0).all()
    error = (high.double() + low.double() - values.double()).abs() / values.abs().double()
    assert float(error.max()) <= 2.0**-22
    assert bool((error > 0).any()), "the case is too easy"


def test_a_packed_block_has_its_rows_where_threads_have_their_values():
    V = torch.arange(3 * 13, dtype=torch.float32).view(3, 13)
    block = packed_block(V, 16, 16, halves=True)
    assert block.shape == (1, 16, 32)
    order = [8 * g + 2 * t + b for g in range(2) for b in range(2) for t in range(4)]
    wanted = torch.zeros(16, 16)
    wanted[:13, :3] = V.T
    assert torch.equal(block[0, :, :16] + block[0, :, 16:], wanted[order])
    plain = packed_block(V.double(), 16, 2, halves=False)
    assert (plain.shape, plain.dtype) == ((2, 16, 2), torch.float64)
    assert torch.equal(plain[1, :13, 0], V[2].double())
    assert not plain[1, :, 1].any()


def test_padding_repeats_the_last_row():
    kernel = sdgpu.Gaussian() + sdgpu.Laplacian() + sdgpu.Tanimoto()
    rows = ready(kernel, 20, n=5)
    found = formula_of(kernel, rows)
    layout = layout_of(found[0], part_widths(*found))
    made = DeviceRows(found[0], layout, found[1], "right", block=8, halves=False)
    assert made.rows.shape == (8, 64)  # two parts of 20 features, in slices of 32
    assert made.columns.shape == (1 + 20 + 1, 8)  # squares; coordinates; lengths
    assert torch.equal(made.rows[5:], made.rows[4].expand(3, -1))
    assert torch.equal(made.columns[:, 5:], made.columns[:, 4:5].expand(-1, 3))
    assert torch.equal(made.rows[:5, :20], found[1][0].right[:, :20])
    assert not made.rows[:, 20:32].any()


def test_a_far_side_asks_for_care():
    kernel = sdgpu.Gaussian()
    near = ready(kernel, 20)
    far = dataclasses.replace(near, far=True)
    texts = [source_of(*formula_and_layout(kernel, a, b)) for a, b in ((near, near), (near, far))]
    assert ["any_of" in text for text in texts] == [False, True]


def test_a_kernel_of_the_users_own_is_written():
    class Rational(OfItsOwnValues):
        def profile(self, tile, a_norms, b_norms):
            return 1.0 / (1.0 + tile)

    assert isinstance(Rational(), Kernel)
    assert why_no_formula(Rational(), ready(Rational(), 4)) == ""
    assert isinstance(ready(Rational(), 4), Rows)
