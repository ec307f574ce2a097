"""Spline kernels against the penalties they are Green's functions of, exact numbers and SciPy."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.interpolate import make_smoothing_spline

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.kernels import BrownianBridge, CubicGreen, CubicSpline, as_kernel
from sdgpu.kernels.kernel_matrices import gram
from sdgpu.operators import TiledOperator
from tests.problems import assert_near

EPS = np.finfo(float).eps
KERNELS = [CubicGreen(), CubicSpline(), CubicSpline(line=50.0), BrownianBridge()]
AWKWARD = np.array(
    [0.0, 5e-324, 1e-12, 1e-3, 0.1, 0.1 + EPS / 8, 0.5, 0.7, 1 - 1e-3, 1 - 1e-12, 1.0]
)


def printed(kernel, x, t):
    """The formula as it is printed, in rational arithmetic."""
    x, t = Fraction(x), Fraction(t)
    if isinstance(kernel, CubicGreen):
        return max(x - t, 0) ** 3 / 6 - x * (1 - t) * (x**2 - 2 * t + t**2) / 6
    if isinstance(kernel, BrownianBridge):
        return min(x, t) - x * t
    low, high = min(x, t), max(x, t)
    # int_0^low (x - u) (t - u) du
    integral = x * t * low - (x + t) * low**2 / 2 + low**3 / 3
    assert integral == low**2 * (3 * high - low) / 6
    return Fraction(kernel.line) * (1 + x * t) + integral


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_value_to_the_last_digits(kernel, backend):
    """Relative to the value itself: at the ends, near the diagonal and on it."""
    K = to_numpy(kernel(backend.asarray(AWKWARD[:, None])))
    for i, x in enumerate(AWKWARD):
        for j, t in enumerate(AWKWARD):
            exact = printed(kernel, x, t)
            # nine operations; products below 1e-300 lose digits to underflow
            assert abs(Fraction(K[i, j]) - exact) <= 9 * Fraction(EPS) * abs(exact) + Fraction(
                1, 10**305
            )


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_gram_is_symmetric_and_positive_semi_definite(kernel, backend, rng):
    x = rng.uniform(0, 1, (60, 1))
    x[7] = x[3]  # a duplicate row
    inside = backend.asarray(x)
    rows = kernel.rows(inside, inside[0, :])
    K = to_numpy(gram(kernel, rows, tile=7))
    assert (K == K.T).all()
    assert (to_numpy(kernel(inside, inside)) == K).all()
    assert (to_numpy(kernel.diagonal(rows)) == K.diagonal()).all()
    values = np.linalg.eigvalsh(K)
    assert values[0] > -60 * EPS * values[-1]


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_library_and_dtype_of_the_input(kernel, library, rng):
    x = rng.uniform(0, 1, (8, 1)).astype(np.float32)
    K = kernel(library(x), library(x[:3]))
    assert type(K) is type(library(x))
    assert str(K.dtype).endswith("float32")
    assert_near(np.asarray(K), kernel(x.astype(float), x[:3].astype(float)), rtol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("precision", ["float64", "mixed", "float32"])
def test_in_tiles(kernel, precision, rng):
    x, V = rng.uniform(0, 1, (50, 1)), rng.standard_normal((50, 3))
    operator = TiledOperator(kernel, x, precision, tile=7)
    exact = kernel(x) @ V
    rough = 1e-13 if precision == "float64" else 3e-5
    assert_allclose(operator.matmat(V), exact, atol=rough * np.abs(exact).max())
    assert_allclose(operator.diag(), np.diag(kernel(x)), rtol=rough)


def second_differences(n):
    """-d^2/dx^2 on the n - 1 inner nodes of n cells, with f = 0 at both ends."""
    off = np.ones(n - 2)
    return n**2 * (2 * np.eye(n - 1) - np.diag(off, 1) - np.diag(off, -1))


def test_brownian_bridge_inverts_the_second_difference():
    """Exactly so at the nodes: the Green's function is piecewise linear."""
    n = 40
    x = np.arange(1, n)[:, None] / n
    assert_allclose(
        second_differences(n) @ BrownianBridge()(x), n * np.eye(n - 1), atol=n**2 * EPS * 10
    )


def test_cubic_green_solves_the_boundary_value_problem():
    """f'''' = delta_t with f = f'' = 0 at both ends, by differences; the error falls as n^-2."""
    errors = []
    for n in (20, 40, 80):
        x = np.arange(1, n)[:, None] / n
        D = second_differences(n)
        errors.append(np.abs(np.linalg.inv(D @ D) * n - CubicGreen()(x)).max())
    assert errors[0] < 0.05 / 20**2
    assert_allclose(np.array(errors[:-1]) / errors[1:], 4, rtol=0.05)


def quadrature(f, *breaks):
    """Integral over [0, 1] of a function that is a polynomial of degree <= 7 between the breaks."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    ends = np.unique([0.0, *breaks, 1.0])
    return sum(
        (b - a) / 2 * weights @ f((a + b) / 2 + (b - a) / 2 * nodes) for a, b in pairwise(ends)
    )


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.7), (0.5, 0.5), (0.9, 0.05), (0.0, 0.4), (1.0, 0.3)])
def test_kernels_reproduce_under_their_penalty(s, t):
    """<kappa_s, kappa_t> = kappa(s, t) in the inner product of the penalty."""

    def value(kernel):
        return kernel(np.array([[s]]), np.array([[t]]))[0, 0]

    def step(x, t):  # derivative of the bridge
        return np.where(x < t, 1 - t, -t)

    def bridge(x, t):  # minus the second derivative of the Green's function
        return np.minimum(x, t) - x * t

    def ramp(x, t):  # second derivative of the spline kernel
        return np.maximum(t - x, 0)

    for kernel, derivative in ((BrownianBridge(), step), (CubicGreen(), bridge)):
        inner = quadrature(lambda x, d=derivative: d(x, s) * d(x, t), s, t)
        assert_allclose(inner, value(kernel), atol=1e-16)
    line = 3.0
    ends = (line * line + line * s * line * t) / line  # f(0) = line, f'(0) = line t
    inner = ends + quadrature(lambda x: ramp(x, s) * ramp(x, t), s, t)
    assert_allclose(inner, value(CubicSpline(line)), rtol=1e-14)


def test_ridge_tends_to_the_smoothing_spline(rng):
    """sum (y - f(x))^2 + lam int f''^2 by SciPy; the difference falls with the weight of lines."""
    x = np.sort(rng.uniform(0, 1, 25))
    y = np.sin(6 * x) + 0.2 * rng.standard_normal(25)
    between = (x[1:] + x[:-1]) / 2
    spline = make_smoothing_spline(x, y, lam=1e-3)
    errors = []
    for line in (1e1, 1e2, 1e3):
        path = sdgpu.fit(x[:, None], y, CubicSpline(line), lams=1e-3).path(steps=1)
        errors.append(np.abs(path.fitted[0] - spline(x)).max())
    assert_allclose(np.array(errors[:-1]) / errors[1:], 10, rtol=0.02)
    assert errors[-1] < 3e-5
    assert_allclose(path.predict(between[:, None])[0], spline(between), atol=2 * errors[-1])


def test_fits_keep_the_boundary_conditions(rng):
    x = rng.uniform(0, 1, (12, 1))
    for kernel in (CubicGreen(), BrownianBridge()):
        fitted = sdgpu.fit(x, rng.standard_normal(12), kernel, lams=1e-4)
        assert (fitted.path(steps=2).predict(np.array([[0.0], [1.0]])) == 0).all()


def test_arithmetic_names_and_empty_rows():
    x = np.array([[0.2], [0.9]])
    assert as_kernel("cubicgreen") == CubicGreen()
    assert as_kernel("cubicspline") == CubicSpline(1.0)
    assert as_kernel("brownianbridge") == BrownianBridge()
    assert_allclose(
        (2 * CubicGreen() + BrownianBridge())(x), 2 * CubicGreen()(x) + BrownianBridge()(x)
    )
    assert CubicGreen()(np.ones((0, 1)), x).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: CubicGreen()(np.ones((3, 2))),
            ValueError,
            "CubicGreen is a kernel of one feature, the data have 2",
        ),
        (
            lambda: CubicGreen()(np.array([[0.5], [1.2]])),
            ValueError,
            r"on \[0, 1\], the data reach from 0.5 to 1.2: rescale",
        ),
        (lambda: BrownianBridge()(np.array([[-0.1]])), ValueError, "BrownianBridge .* from -0.1"),
        (
            lambda: CubicSpline()(np.array([[0.5]]), np.array([[2.0]])),
            ValueError,
            "CubicSpline .* to 2",
        ),
        (lambda: CubicSpline(0.0), ValueError, "line=0.0 must be > 0"),
        (lambda: CubicSpline("1"), TypeError, "line='1'"),
        (lambda: sdgpu.fit(np.ones((3, 2)), np.ones(3), CubicGreen()), ValueError, "one feature"),
        (
            lambda: sdgpu.fit(np.array([[0.5]]), np.ones(1), CubicGreen()).path().predict([[1.5]]),
            ValueError,
            "rescale",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
