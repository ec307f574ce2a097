"""Kernels where they are hard: far and near rows, limits of their parameters, and how positive they are."""

import copy
import pickle

import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import to_numpy
from sdgpu.kernels.row_preparation import row_copies
from tests.problems import assert_near

FALLING = [
    sdgpu.Matern(0.5),
    sdgpu.Matern(2.5),
    sdgpu.Matern(3.5),
    sdgpu.Matern(100.5),
    sdgpu.RationalQuadratic(1e3),
    sdgpu.Wendland(0, 30.0),
    sdgpu.Wendland(3, 30.0),
    sdgpu.Periodic(400.0, 0.03),
    sdgpu.On(0, sdgpu.ChiSquared(5.0)),
]
SEMI_DEFINITE = [
    *FALLING,
    sdgpu.RationalQuadratic(0.1),
    sdgpu.Periodic([0.3, 2.0, 1.0], [1.0, 0.2, 3.0]),
    sdgpu.Tanimoto(),
    sdgpu.ChiSquared(0.3),
    sdgpu.AdditiveChiSquared(),
    sdgpu.HistogramIntersection(),
    *(sdgpu.Wendland(order, 1.5) for order in range(4)),
    sdgpu.SpectralMixture([1.0, 2.0], [[0, 0.4, 0.1], [2, 0, 0]], [[0.1] * 3, [1e-3, 1.0, 0.1]]),
]


@pytest.mark.parametrize("kernel", FALLING, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_values_are_normal_numbers_or_zeros(kernel, dtype, make):
    """Far rows: no NaN where a power meets an exponential, and nothing between 0 and the normal numbers."""
    X = np.concatenate([np.linspace(0, 400, 9000), np.geomspace(400, 1e15, 50)]).astype(dtype)
    values = to_numpy(kernel(make(X[:, None]), make(X[:1, None])))[:, 0]
    assert values[0] == 1
    assert np.isfinite(values).all()
    assert not ((values != 0) & (values < np.finfo(dtype).tiny)).any()
    assert (values == 0).any()
    falling = values[:4000] if isinstance(kernel, sdgpu.Periodic) else values  # half a period
    assert np.diff(falling).max() <= np.finfo(dtype).eps


@pytest.mark.parametrize("kernel", SEMI_DEFINITE, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_eigenvalue_is_below_rounding(kernel, dtype, rng):
    X = np.abs(rng.standard_normal((150, 3))).astype(dtype)
    X[40:60] = X[:20]  # repeated
    X[60:80] = X[:20] + 1e-6 * rng.standard_normal((20, 3)).astype(dtype) ** 2  # and nearly so
    X[80:83] = 0
    X[90:120, 1] = 0
    values = np.linalg.eigvalsh(kernel(X).astype(float))
    rows = kernel.rows(X.astype(float), X.astype(float).mean(axis=0))
    assert values[0] >= -kernel.rounding(rows) * np.finfo(dtype).eps * values.sum()
    assert values[0] >= -(1e-4 if dtype == "float32" else 1e-12) * values[-1]


def test_a_wendland_kernel_needs_its_dimension():
    """The lattice of two directions on which that of one dimension is indefinite, and that of two is not."""
    axis = np.arange(12.0)
    X = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    for dimension, positive in ((1, False), (2, True)):
        r = np.linalg.norm(X[:, None] - X, axis=-1) / 3
        K = np.maximum(1 - r, 0) ** (dimension // 2 + 1)
        assert (np.linalg.eigvalsh(K)[0] > -1e-12) == positive
    assert_allclose(sdgpu.Wendland(0, 3.0, dimension=2)(X), K, atol=1e-15)


@pytest.mark.parametrize("p", [0, 1, 2, 3, 7, 30, 100])
def test_matern_kernels_are_those_of_bessel_functions(p):
    """2^(1 - nu) / Gamma(nu) s^nu K_nu(s) with fifty digits, and exactly 1 at 0."""
    kernel = sdgpu.Matern(p + 0.5, 0.7)
    x = np.concatenate([[0.0], np.geomspace(1e-6, 12, 60)])
    found = kernel(x[:, None], np.zeros((1, 1)))[:, 0]
    assert found[0] == 1
    with mpmath.workdps(50):
        nu = mpmath.mpf(p) + 0.5
        for value, distance in zip(found[1:], x[1:], strict=True):
            s = mpmath.sqrt(2 * nu) * mpmath.mpf(float(distance)) / mpmath.mpf(0.7)
            truth = 2 ** (1 - nu) / mpmath.gamma(nu) * s**nu * mpmath.besselk(nu, s)
            assert abs(value - float(truth)) < 2e-15 * (p + 4) * max(float(truth), 1e-3), distance
    single = kernel(x[:, None].astype("float32"), np.zeros((1, 1), "float32"))[:, 0]
    assert_allclose(single, found, atol=1e-6 * (1 + p / 20))


@pytest.mark.parametrize("kernel", [sdgpu.Matern(100.5, 2.0), sdgpu.RationalQuadratic(1e9, 2.0)])
def test_the_limit_is_a_gaussian(kernel, rng):
    X = rng.standard_normal((40, 3))
    limit = sdgpu.Gaussian(0.5, 2.0)(X)
    assert_near(kernel(X), limit, 1e-2 if isinstance(kernel, sdgpu.Matern) else 1e-9)


def test_a_large_power_loses_no_digit():
    """1 + r^2 / (2 power) alone would be off by power times its rounding."""
    x = np.linspace(0, 6, 50)[:, None]
    found = sdgpu.RationalQuadratic(1e12)(x, x[:1])[:, 0]
    assert_allclose(found, np.exp(-(x[:, 0] ** 2) / 2), rtol=0, atol=5e-13)


def test_periods_are_exact_far_away():
    """Rows a million periods apart: the remainder is exact, so only the numbers themselves are rounded."""
    kernel = sdgpu.Periodic(0.75, 0.5)
    x = np.array([0.0, 0.1, 0.2, 0.5])[:, None]
    for periods in (1, 1000, 2.0**30):
        far = x + 0.75 * periods
        moved = (far - 0.75 * periods)[:, 0]  # what is left of x in far
        assert_allclose(kernel(far, x)[:, 0], kernel(moved[:, None], x)[:, 0], rtol=1e-13)
    values = kernel(np.array([[1e200], [1e150], [-1e18]]), x)
    assert np.isfinite(values).all()
    assert ((values > 0) & (values <= 1)).all()


def test_zero_rows_of_histograms_and_fingerprints():
    Z = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [1e-300, 2.0]])
    for make in (np.asarray, torch.tensor):
        X = make(Z)
        assert_allclose(to_numpy(sdgpu.Tanimoto()(X))[0], 0)
        assert_allclose(to_numpy(sdgpu.Tanimoto()(X)).diagonal(), [0, 1, 1, 1])
        assert_allclose(to_numpy(sdgpu.HistogramIntersection()(X))[0], 0)
        assert_allclose(to_numpy(sdgpu.AdditiveChiSquared()(X))[1:3, 1:3], [[1, 0], [0, 3]])
        assert_allclose(to_numpy(sdgpu.ChiSquared()(X))[0], np.exp([0.0, -1.0, -3.0, -2.0]))


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_a_unit_changes_nothing(scale, rng):
    """Of Tanimoto, whose squares would leave the range, in float32 tiles too."""
    X = rng.standard_normal((30, 3))
    X[3] *= 1e-3
    K = sdgpu.Tanimoto()(X)
    assert_near(sdgpu.Tanimoto()(X * scale), K, 1e-14)
    tiled = sdgpu.operators.TiledOperator(sdgpu.Tanimoto(), X * scale, "float32")
    assert_near(tiled.matmat(np.eye(30)), K, 1e-6)


def test_near_histograms_keep_their_difference():
    """Bins that differ in their last digits: exact differences, whatever gamma."""
    X = np.array([[1e6], [1e6 + 2.0**-20]])
    wanted = np.exp(-1e20 * (2.0**-40 / (2e6 + 2.0**-20)))
    assert_allclose(sdgpu.ChiSquared(1e20)(X)[0, 1], wanted, rtol=1e-10)


def test_columns_are_as_if_there_were_no_others(rng):
    X = rng.standard_normal((20, 5))
    kernel = sdgpu.Matern(1.5, [0.5, 2.0, 1.0])
    found = sdgpu.On([4, 0, 2], kernel)
    assert_near(found(X), kernel(X[:, [4, 0, 2]]), 1e-14)  # whose layout may be another
    spoiled = X.copy()
    spoiled[:, [1, 3]] = 1e6 * rng.standard_normal((20, 2))
    assert np.array_equal(found(spoiled), found(X))
    nested = sdgpu.On([4, 0, 3, 2], sdgpu.On([0, 1, 3], kernel))
    assert np.array_equal(nested(X), found(X))
    assert sdgpu.On(np.array([4, 0, 2]), kernel) == found
    assert sdgpu.On(range(3), kernel).indices == (0, 1, 2)


def test_a_spectral_mixture_is_its_spectral_density(rng):
    """The inverse Fourier transform of Gaussians around +-means, by quadrature."""
    weights, means, variances = [1.0, 0.7], [0.4, 1.5], [0.02, 0.1]
    kernel = sdgpu.SpectralMixture(weights, means, variances)
    t = np.linspace(0, 4, 30)
    s = np.linspace(-6, 6, 40_001)
    density = sum(
        w / 2 * np.exp(-((s - sign * m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        for w, m, v in zip(weights, means, variances, strict=True)
        for sign in (1, -1)
    )
    wanted = np.trapezoid(density * np.cos(2 * np.pi * s * t[:, None]), s, axis=1)
    assert_allclose(kernel(t[:, None], np.zeros((1, 1)))[:, 0], wanted, atol=1e-9)


@pytest.mark.parametrize(
    "kernel",
    [
        "matern72",
        "rationalquadratic",
        "periodic",
        "wendland",
        "tanimoto",
        "chi2",
        "additivechi2",
        "histogramintersection",
    ],
)
def test_estimators_take_their_names(kernel, rng):
    X = rng.uniform(0.1, 1, (60, 3))
    y = X.sum(axis=1) + 0.1 * rng.standard_normal(60)
    model = sdgpu.SelfDistillationRegressor(kernel, gamma=0.5, lam=0.1, steps=3, alpha=0.3).fit(
        X, y
    )
    made = sdgpu.kernels.as_kernel(kernel, gamma=0.5)
    wanted = sdgpu.fit(X, y, made, 0.1).path(alphas=0.3, steps=3).predict(X[:5])[-1]
    assert_allclose(model.predict(X[:5]), wanted, rtol=1e-7)


@pytest.mark.parametrize("kernel", SEMI_DEFINITE, ids=repr)
def test_ready_rows_are_no_larger_than_they_are_said_to_be(kernel, rng):
    """What the plan counts: so many times the rows, and their squares and ones."""

    def numbers(rows):
        sides = {id(array): array.size for array in (rows.left, rows.right) if array is not None}
        return sum(sides.values()) + sum(map(numbers, rows.parts))

    X = rng.uniform(0, 1, (50, 3))
    copies = row_copies(kernel)
    assert numbers(kernel.rows(X, X.mean(axis=0))) <= copies * 50 * (3 + 2)


@pytest.mark.parametrize("kernel", SEMI_DEFINITE, ids=repr)
def test_copies_of_a_kernel_that_was_used(kernel, rng):
    X = rng.uniform(0, 1, (5, 3))
    K = kernel(X)
    for again in (pickle.loads(pickle.dumps(kernel)), copy.deepcopy(kernel)):
        assert again == kernel
        assert hash(again) == hash(kernel)
        assert np.array_equal(again(X), K)


@pytest.mark.parametrize("kernel", SEMI_DEFINITE, ids=repr)
def test_fits_survive_their_files(kernel, rng, tmp_path):
    """A fit of features is saved with the description of its kernel, and opened with the same numbers."""
    X = rng.uniform(0, 1, (50, 3))
    features = sdgpu.Nystrom(landmarks=X[:20])
    moments = sdgpu.Moments(kernel, features, d=3, c=1)
    moments.add(X, X[:, :1])
    moments.save(tmp_path / "sums.safetensors")
    opened = sdgpu.open_moments(tmp_path / "sums.safetensors")
    assert opened.kernel == kernel
    fits = [sdgpu.fit(one, lams=[0.1]) for one in (moments, opened)]
    found = [one.path(steps=2).predict(X[:4]) for one in fits]
    assert np.array_equal(*found)
