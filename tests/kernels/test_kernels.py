"""Every kernel against a loop over pairs in plain Python, on every library and in both precisions."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.gaussian_process import kernels as processes
from sklearn.metrics import pairwise

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
    as_kernel,
    median_distance,
)
from sdgpu.kernels.kernel_matrices import gram
from tests.problems import assert_near


def angle(x, y):
    return math.acos(max(-1.0, min(1.0, x @ y / math.sqrt((x @ x) * (y @ y)))))


def arc(degree):
    def value(x, y):
        t = angle(x, y)
        J = {
            0: math.pi - t,
            1: math.sin(t) + (math.pi - t) * math.cos(t),
            2: 3 * math.sin(t) * math.cos(t) + (math.pi - t) * (1 + 2 * math.cos(t) ** 2),
        }[degree]
        return ((x @ x) * (y @ y)) ** (degree / 2) * J / math.pi

    return value


def network(depth, w, b, *, tangent):
    """The recursion over layers as it is printed."""

    def value(x, y):
        S, s, t = (w * (u @ v) / len(x) + b for u, v in ((x, y), (x, x), (y, y)))
        theta_k = S
        for _ in range(depth):
            u = S / math.sqrt(s * t)
            angle = math.atan2(math.sqrt(max(s * t - S * S, 0.0)), S)
            k1 = math.sqrt(s * t) * (math.sin(angle) + (math.pi - angle) * u) / (2 * math.pi)
            k0 = (math.pi - angle) / (2 * math.pi)
            S = w * k1 + b
            theta_k = S + w * k0 * theta_k
            s, t = w * s / 2 + b, w * t / 2 + b
        return theta_k if tangent else S

    return value


def matern(nu, scale):
    def value(x, y):
        s = math.sqrt(2 * nu) * np.linalg.norm((x - y) / scale)
        polynomial = {
            0.5: 1,
            1.5: 1 + s,
            2.5: 1 + s + s * s / 3,
            3.5: 1 + s + 2 * s**2 / 5 + s**3 / 15,
            4.5: 1 + s + 3 * s**2 / 7 + 2 * s**3 / 21 + s**4 / 105,
        }[nu]
        return polynomial * math.exp(-s)

    return value


def wendland(order, scale, dimension):
    def value(x, y):
        r, j = np.linalg.norm((x - y) / scale), dimension // 2 + order + 1
        polynomial = [
            1,
            (j + 1) * r + 1,
            ((j**2 + 4 * j + 3) * r**2 + (3 * j + 6) * r + 3) / 3,
            (
                (j**3 + 9 * j**2 + 23 * j + 15) * r**3
                + (6 * j**2 + 36 * j + 45) * r**2
                + (15 * j + 45) * r
                + 15
            )
            / 15,
        ][order]
        return max(1 - r, 0.0) ** (j + order) * polynomial

    return value


def periodic(period, scale):
    def value(x, y):
        return math.exp(-2 * np.sum((np.sin(np.pi * (x - y) / period) / scale) ** 2))

    return value


def mixture(weights, means, variances):
    def value(x, y):
        t = x - y
        return sum(
            w * np.prod(np.exp(-2 * np.pi**2 * t**2 * v) * np.cos(2 * np.pi * t * m))
            for w, m, v in zip(weights, np.array(means), np.array(variances), strict=True)
        )

    return value


def chi2(x, y):
    return np.sum((x - y) ** 2 / (x + y))


SCALE = np.array([0.5, 1.0, 2.0, 3.0, 0.7, 1.3])
MEANS = [[0.0, 0.2, 0.0, 0.1, 0.3, 0.0], [0.1, 0.0, 0.0, 0.0, 0.0, 0.4]]
VARIANCES = [[0.1, 0.02, 0.03, 0.01, 0.1, 0.1], [0.01, 0.02, 0.01, 0.1, 0.05, 0.01]]
NONNEGATIVE = ("chi2", "additive chi2", "histogram")
CASES = {
    "gaussian": (Gaussian(0.3), lambda x, y: math.exp(-0.3 * np.sum((x - y) ** 2))),
    "gaussian ARD": (
        Gaussian(0.5, SCALE),
        lambda x, y: math.exp(-0.5 * np.sum(((x - y) / SCALE) ** 2)),
    ),
    "laplacian": (Laplacian(0.2), lambda x, y: math.exp(-0.2 * np.abs(x - y).sum())),
    "laplacian ARD": (
        Laplacian(0.2, SCALE),
        lambda x, y: math.exp(-0.2 * np.abs((x - y) / SCALE).sum()),
    ),
    "matern 1/2": (Matern(0.5, 2.0), matern(0.5, 2.0)),
    "matern 3/2": (Matern(1.5, 2.0), matern(1.5, 2.0)),
    "matern 5/2 ARD": (Matern(2.5, SCALE), matern(2.5, SCALE)),
    "matern 7/2": (Matern(3.5, 2.0), matern(3.5, 2.0)),
    "matern 9/2 ARD": (Matern(4.5, SCALE), matern(4.5, SCALE)),
    "rational quadratic": (
        RationalQuadratic(0.7, 2.0),
        lambda x, y: (1 + np.sum((x - y) ** 2) / 4 / 1.4) ** -0.7,
    ),
    "rational quadratic ARD": (
        RationalQuadratic(3.0, SCALE),
        lambda x, y: (1 + np.sum(((x - y) / SCALE) ** 2) / 6) ** -3,
    ),
    "periodic": (Periodic(1.3, 0.8), periodic(1.3, 0.8)),
    "periodic ARD": (Periodic(2 * SCALE[::-1], SCALE), periodic(2 * SCALE[::-1], SCALE)),
    "wendland 0": (Wendland(0, 5.0, dimension=6), wendland(0, 5.0, 6)),
    "wendland 1": (Wendland(1, 5.0, dimension=7), wendland(1, 5.0, 7)),
    "wendland 2": (Wendland(2, 5.0, dimension=6), wendland(2, 5.0, 6)),
    "wendland 3 ARD": (Wendland(3, 4 * SCALE, dimension=6), wendland(3, 4 * SCALE, 6)),
    "tanimoto": (Tanimoto(), lambda x, y: x @ y / (x @ x + y @ y - x @ y)),
    "tanimoto ARD": (
        Tanimoto(1 / SCALE),
        lambda x, y: (
            (SCALE * x)
            @ (SCALE * y)
            / ((SCALE * x) @ (SCALE * x) + (SCALE * y) @ (SCALE * y) - (SCALE * x) @ (SCALE * y))
        ),
    ),
    "chi2": (ChiSquared(0.4), lambda x, y: math.exp(-0.4 * chi2(x, y))),
    "chi2 ARD": (ChiSquared(0.4, SCALE), lambda x, y: math.exp(-0.4 * chi2(x / SCALE, y / SCALE))),
    "additive chi2": (AdditiveChiSquared(), lambda x, y: np.sum(2 * x * y / (x + y))),
    "histogram intersection": (HistogramIntersection(), lambda x, y: np.minimum(x, y).sum()),
    "histogram intersection ARD": (
        HistogramIntersection(SCALE),
        lambda x, y: (np.minimum(x, y) / SCALE).sum(),
    ),
    "spectral mixture ARD": (
        SpectralMixture([1.5, 0.5], MEANS, VARIANCES),
        mixture([1.5, 0.5], MEANS, VARIANCES),
    ),
    "spectral mixture of a column": (
        On(0, SpectralMixture([1.5, 0.5], [0.0, 0.3], [0.1, 0.01])),
        lambda x, y: mixture([1.5, 0.5], [[0.0], [0.3]], [[0.1], [0.01]])(x[:1], y[:1]),
    ),
    "columns ARD": (
        On([4, 1], Gaussian(0.5, [0.7, 1.0])) * On([0], Periodic(1.3)) + 0.5 * On(2, Linear()),
        lambda x, y: (
            math.exp(-0.5 * ((x[4] - y[4]) / 0.7) ** 2 - 0.5 * (x[1] - y[1]) ** 2)
            * periodic(1.3, 1.0)(x[:1], y[:1])
            + 0.5 * x[2] * y[2]
        ),
    ),
    "polynomial": (Polynomial(3, 0.5, 1.0), lambda x, y: (0.5 * x @ y + 1) ** 3),
    "linear": (Linear(), lambda x, y: x @ y),
    "linear scaled": (Linear(2.0), lambda x, y: x @ y / 4),
    "cosine": (Cosine(), lambda x, y: x @ y / math.sqrt((x @ x) * (y @ y))),
    "arc-cosine 0": (ArcCosine(0), arc(0)),
    "arc-cosine 1": (ArcCosine(1), arc(1)),
    "arc-cosine 2": (ArcCosine(2), arc(2)),
    "nngp": (NNGP(3), network(3, 2.0, 0.0, tangent=False)),
    "nngp with bias": (NNGP(2, 1.5, 0.3), network(2, 1.5, 0.3, tangent=False)),
    "ntk": (NTK(3), network(3, 2.0, 0.0, tangent=True)),
    "ntk with bias": (NTK(2, 1.5, 0.3), network(2, 1.5, 0.3, tangent=True)),
    "sum": (Gaussian(0.3) + Linear(), lambda x, y: math.exp(-0.3 * np.sum((x - y) ** 2)) + x @ y),
    "product": (
        Gaussian(0.3) * Linear(),
        lambda x, y: math.exp(-0.3 * np.sum((x - y) ** 2)) * (x @ y),
    ),
    "scaled": (2.5 * Laplacian(0.2), lambda x, y: 2.5 * math.exp(-0.2 * np.abs(x - y).sum())),
    "nested": (
        0.5 * (Linear() + Linear() * Cosine()),
        lambda x, y: 0.5 * (x @ y + (x @ y) ** 2 / math.sqrt((x @ x) * (y @ y))),
    ),
    "function": (FunctionKernel(lambda A, B: A @ B.T), lambda x, y: x @ y),
}


def rough(name, kinked, smooth):
    """Tolerance: the printed formulas of kernels with a kink lose half of the digits at their kink."""
    if name.startswith("ntk"):
        return 5 * kinked
    return kinked if name == "arc-cosine 0" else smooth


def rows_for(name, rng, shape):
    """Random rows (n, d), of which those of histograms are not negative."""
    rows = rng.standard_normal(shape)
    return np.abs(rows) if name.startswith(NONNEGATIVE) else rows


def by_pairs(value, A, B):
    return np.array([[value(x, y) for y in B] for x in A])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("d", [1, 3, 6])
def test_values(name, d, rng, backend):
    kernel, value = CASES[name]
    if "ARD" in name and d != 6:
        pytest.skip("length scales are for six features")
    A, B = rows_for(name, rng, (9, d)), rows_for(name, rng, (4, d))
    wanted = by_pairs(value, A, B)
    assert_allclose(
        to_numpy(kernel(backend.asarray(A), backend.asarray(B))),
        wanted,
        rtol=1e-12,
        atol=rough(name, 3e-8, 1e-13),
    )


@pytest.mark.parametrize("name", CASES)
def test_gram_is_symmetric_with_its_diagonal(name, rng, backend):
    kernel, value = CASES[name]
    A = rows_for(name, rng, (20, 6))
    A[7] = A[3]  # a duplicate row
    inside = backend.asarray(A)
    K = to_numpy(gram(kernel, kernel.rows(inside, inside[0, :]), tile=7))
    assert (K == K.T).all()
    assert_allclose(K, by_pairs(value, A, A), rtol=1e-12, atol=rough(name, 3e-8, 1e-13))
    diagonal = to_numpy(kernel.diagonal(kernel.rows(inside, inside[0, :])))
    assert_allclose(diagonal, K.diagonal(), rtol=1e-13)
    assert np.linalg.eigvalsh(K).min() > -1e-10


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_library_and_dtype_of_the_input(name, library, rng):
    kernel, value = CASES[name]
    A = rows_for(name, rng, (6, 6)).astype(np.float32)
    K = kernel(library(A), library(A[:2]))
    assert type(K) is type(library(A))
    assert str(K.dtype).endswith("float32")
    wanted = by_pairs(value, A.astype(float), A[:2].astype(float))
    assert_allclose(np.asarray(K), wanted, rtol=2e-5, atol=rough(name, 1e-3, 2e-5))


def test_offsets_cost_no_digits(rng):
    """Centring: data around 1000 in float32, where the expansion alone would lose all digits."""
    A = rng.standard_normal((30, 8))
    kernel = Gaussian(0.1)
    shifted = (A + 1000).astype(np.float32)
    exact = kernel(shifted.astype(np.float64))
    assert_allclose(kernel(shifted), exact, atol=5e-6)


@pytest.mark.parametrize("kernel", [Matern(0.5, 1.0), ArcCosine(0)])
def test_kinks_keep_near_pairs_exact(kernel, rng, backend):
    """Rows 1e-7 apart: an expanded distance would be off by 1e-8 / 1e-7."""
    A = rng.standard_normal((5, 9))
    B = A + 1e-7 * rng.standard_normal((5, 9))
    found = to_numpy(kernel(backend.asarray(A), backend.asarray(B))).diagonal()
    if isinstance(kernel, Matern):
        wanted = np.exp(-np.linalg.norm(A - B, axis=1))
    else:
        unit = [rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (A, B)]
        wanted = 1 - 2 * np.arcsin(np.linalg.norm(unit[0] - unit[1], axis=1) / 2) / np.pi
    assert_allclose(found, wanted, atol=1e-14)


def test_zero_rows():
    Z = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert_allclose(Cosine()(Z), [[0, 0], [0, 1]])
    assert_allclose(ArcCosine(0)(Z), [[0.5, 0.5], [0.5, 1]])
    assert_allclose(ArcCosine(1)(Z), [[0, 0], [0, 1]])


def test_against_scikit_learn(rng):
    A, B = rng.standard_normal((8, 5)), rng.standard_normal((6, 5))
    assert_allclose(Gaussian(0.4)(A, B), pairwise.rbf_kernel(A, B, gamma=0.4))
    assert_allclose(Laplacian(0.4)(A, B), pairwise.laplacian_kernel(A, B, gamma=0.4))
    assert_near(Polynomial(2, 0.3, 0.5)(A, B), pairwise.polynomial_kernel(A, B, 2, 0.3, 0.5))
    assert_near(Cosine()(A, B), pairwise.cosine_similarity(A, B))
    assert_allclose(RationalQuadratic(0.7, 1.5)(A, B), processes.RationalQuadratic(1.5, 0.7)(A, B))
    assert_near(Matern(3.5, 2.0)(A, B), processes.Matern(2.0, nu=3.5)(A, B))
    assert_near(Periodic(3.0, 1.5)(A[:, :1]), processes.ExpSineSquared(1.5, 3.0)(A[:, :1]))
    A, B = np.abs(A), np.round(np.abs(B))
    B[:3, 1] = A[:4, 1] = 0
    assert_allclose(ChiSquared(0.4)(A, B), pairwise.chi2_kernel(A, B, gamma=0.4))
    chi = pairwise.additive_chi2_kernel(A, B)
    lengths = A.sum(axis=1)[:, None] + B.sum(axis=1)
    assert_near(AdditiveChiSquared()(A, B), (lengths + chi) / 2)
    jaccard = 1 - pairwise.pairwise_distances(A > 0.5, B > 0.5, metric="jaccard")
    either = ((A > 0.5).sum(axis=1)[:, None] + (B > 0.5).sum(axis=1)) > 0
    assert_near(Tanimoto()(1.0 * (A > 0.5), 1.0 * (B > 0.5)), np.where(either, jaccard, 0))


def test_names():
    assert as_kernel("rbf", gamma=0.5) == Gaussian(0.5)
    assert as_kernel("matern52", gamma=0.5) == Matern(2.5, 1.0)
    assert as_kernel("matern72", gamma=0.5) == Matern(3.5, 1.0)
    assert as_kernel("rationalquadratic", gamma=0.5) == RationalQuadratic(1.0, 1.0)
    assert as_kernel("periodic", gamma=0.5) == Periodic(1.0, 1.0)
    assert as_kernel("chi2", gamma=0.3) == ChiSquared(0.3)
    assert as_kernel("additivechi2") == AdditiveChiSquared()
    assert as_kernel("histogramintersection") == HistogramIntersection()
    assert as_kernel("tanimoto") == Tanimoto()
    assert as_kernel("poly", degree=2) == Polynomial(2)
    assert as_kernel("precomputed") == Precomputed()
    assert isinstance(as_kernel(lambda A, B: A @ B.T), FunctionKernel)
    assert as_kernel(Gaussian(2.0)) == Gaussian(2.0)
    assert sum([Gaussian(2.0), Linear()]) == Gaussian(2.0) + Linear()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Gaussian(0), ValueError, "gamma=0 must be > 0"),
        (lambda: Gaussian("wide"), TypeError, "gamma='wide'"),
        (lambda: Gaussian(float("nan")), ValueError, "finite"),
        (lambda: Gaussian(1.0, [1.0, -2.0]), ValueError, "lengthscale=-2"),
        (
            lambda: Gaussian(1.0, [1.0, 2.0])(np.ones((2, 3))),
            ValueError,
            "2 entries, but the data have 3",
        ),
        (lambda: Matern(1.0), ValueError, r"nu=1.0 .* use a half-integer, 0.5, 1.5"),
        (lambda: Matern(101.5), ValueError, r"use a half-integer, .* or its limit sdgpu.Gaussian"),
        (lambda: Matern(1.5, None), ValueError, "lengthscale=None"),
        (lambda: RationalQuadratic(0), ValueError, "power=0 must be > 0"),
        (lambda: RationalQuadratic(1.0, None), ValueError, "lengthscale=None: give a number"),
        (lambda: Periodic(0.0), ValueError, "period=0.0 must be > 0"),
        (lambda: Periodic([1.0, -2.0]), ValueError, "period=-2.0 must be > 0"),
        (lambda: Periodic("daily"), TypeError, "period='daily' must be a real number"),
        (lambda: Periodic(1.0, 0), ValueError, "lengthscale=0 must be > 0"),
        (lambda: Periodic([]), ValueError, "period must be a number or one per feature"),
        (
            lambda: Periodic([1.0, 2.0])(np.ones((2, 3))),
            ValueError,
            "period has 2 entries, but the data have 3 features",
        ),
        (lambda: Wendland(4), ValueError, "order=4 has no formula here: use 0, 1, 2 or 3"),
        (lambda: Wendland(-1), ValueError, "order=-1 must be at least 0"),
        (lambda: Wendland(1.5), TypeError, "order=1.5 must be a whole number"),
        (lambda: Wendland(1, None), ValueError, "lengthscale=None: give a number"),
        (lambda: Wendland(1, 1.0, 0), ValueError, "dimension=0 must be at least 1"),
        (
            lambda: Wendland()(np.ones((2, 5))),
            ValueError,
            r"rows of up to 3 features, the data have 5: use dimension=5",
        ),
        (lambda: ChiSquared(0), ValueError, "gamma=0 must be > 0"),
        (
            lambda: ChiSquared()(np.array([[1.0], [-0.25]])),
            ValueError,
            "ChiSquared is a kernel of nonnegative rows, .* X reaches down to -0.25: shift or square",
        ),
        (
            lambda: AdditiveChiSquared()(np.ones((1, 1)), -np.ones((1, 1))),
            ValueError,
            "AdditiveChiSquared is a kernel of nonnegative rows, .* down to -1",
        ),
        (
            lambda: HistogramIntersection()(-np.ones((1, 1))),
            ValueError,
            "HistogramIntersection is a kernel of nonnegative rows",
        ),
        (lambda: SpectralMixture([], [], []), ValueError, "weights must be one number a component"),
        (lambda: SpectralMixture([0.0], [1.0], [1.0]), ValueError, "weights are all 0"),
        (lambda: SpectralMixture([-1.0], [1.0], [1.0]), ValueError, "weights=-1.0 must be >= 0"),
        (
            lambda: SpectralMixture([1.0, 1.0], [1.0], [1.0, 1.0]),
            ValueError,
            "means has 1 components, but weights has 2",
        ),
        (
            lambda: SpectralMixture([1.0], [1.0], [1.0, 1.0]),
            ValueError,
            "variances has 2 components, but weights has 1",
        ),
        (lambda: SpectralMixture([1.0], [-1.0], [1.0]), ValueError, "means=-1.0 must be >= 0"),
        (lambda: SpectralMixture([1.0], [1.0], [0.0]), ValueError, "variances=0.0 must be > 0"),
        (
            lambda: SpectralMixture([1.0], [[1.0, 2.0]], [1.0]),
            ValueError,
            "variances have 1 features, means have 2",
        ),
        (
            lambda: SpectralMixture([1.0, 1.0], [[1.0, 2.0], [1.0]], [1.0, 1.0]),
            (TypeError, ValueError),
            "means",
        ),
        (
            lambda: SpectralMixture([1.0], [1.0], [1.0])(np.ones((2, 2))),
            ValueError,
            r"have 1 features, but the data have 2: .* choose columns by sdgpu.On",
        ),
        (lambda: On([], Gaussian()), ValueError, r"columns=\[\] must be a column or several"),
        (lambda: On([[0]], Gaussian()), ValueError, r"columns=\[\[0\]\] must be a column"),
        (lambda: On([0, 2, 0], Gaussian()), ValueError, "names column 0 twice: name each once"),
        (lambda: On(-1, Gaussian()), ValueError, "columns=-1 must be at least 0"),
        (lambda: On([0.5], Gaussian()), TypeError, "columns=0.5 must be a whole number"),
        (lambda: On("ab", Gaussian()), TypeError, "columns='ab' must be a whole number"),
        (lambda: On(0, "rbf"), TypeError, "kernel='rbf' must be a Kernel, .* on columns"),
        (lambda: On(0, Precomputed()), TypeError, "Precomputed.* has no columns"),
        (
            lambda: On([1, 4], Gaussian())(np.ones((2, 3))),
            ValueError,
            r"columns=\[1, 4\] names column 4, but the data have 3 features, 0 .. 2",
        ),
        (
            lambda: On([1, 0], Gaussian(1.0, [1.0, 2.0, 3.0]))(np.ones((2, 3))),
            ValueError,
            "lengthscale has 3 entries, but the data have 2 features",
        ),
        (lambda: Polynomial(0), ValueError, "degree=0"),
        (lambda: Polynomial(1.5), TypeError, "whole number"),
        (lambda: Polynomial(2, 1.0, -1.0), ValueError, "coef0=-1"),
        (lambda: ArcCosine(3), ValueError, "degree=3"),
        (lambda: as_kernel("gausian"), ValueError, "did you mean 'gaussian'"),
        (lambda: as_kernel(3), TypeError, "Kernel, a name or a function"),
        (lambda: as_kernel(Gaussian), TypeError, "make one"),
        (lambda: Gaussian() + 1, TypeError, "added to a kernel only"),
        (lambda: -1 * Gaussian(), ValueError, "scale=-1"),
        (lambda: Precomputed()(np.eye(2)), TypeError, "cannot be evaluated"),
        (lambda: FunctionKernel(3), TypeError, "not callable"),
        (lambda: Gaussian(1.0, [None]), TypeError, "lengthscale=None"),
        (lambda: Matern(np.array([0.5, 1.5])), TypeError, "nu="),
        (lambda: np.ones(2) * Gaussian(), TypeError, "scale=array"),
        (
            lambda: FunctionKernel(lambda A, B: A[:, 0])(np.ones((2, 2))),
            ValueError,
            "returned shape",
        ),
        (lambda: FunctionKernel(lambda A, B: A @ B.T * np.nan)(np.ones((2, 2))), ValueError, "NaN"),
        (
            lambda: FunctionKernel(lambda A, B: A @ np.triu(np.ones((2, 2))) @ B.T)(np.eye(2)),
            ValueError,
            "symmetric",
        ),
        (lambda: Gaussian()(np.ones((2, 2)), np.ones((2, 3))), ValueError, "3 features"),
        (
            lambda: Gaussian()(np.ones((2, 2)), torch.ones(2, 2)),
            ValueError,
            "A is numpy on cpu, B is torch",
        ),
    ],
)
def test_bad_input(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_median_distance(rng):
    A = rng.standard_normal((50, 3))
    pairs = [np.linalg.norm(A[i] - A[j]) for i in range(50) for j in range(i)]
    assert_allclose(median_distance(A), np.median(pairs))
    assert_allclose(median_distance(torch.tensor(A)), np.median(pairs))
    assert median_distance(rng.standard_normal((3000, 2)), max_rows=100) > 0
    with pytest.raises(ValueError, match="fewer than two different rows"):
        median_distance(np.ones((5, 2)))


def test_empty_inputs():
    assert Gaussian()(np.ones((0, 2)), np.ones((3, 2))).shape == (0, 3)
    assert Gaussian()(np.ones((0, 2))).shape == (0, 0)
