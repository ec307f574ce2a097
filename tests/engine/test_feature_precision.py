"""Features in float32: the error that a fit states holds, and targets far from 0 keep their digits."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.engine import streaming
from sdgpu.kernels.feature_maps import nystrom
from tests.problems import assert_near

N, D, C = 90, 3, 2
RNG = np.random.default_rng(6)
X = RNG.standard_normal((N, D))
Y = np.sin(X[:, :C]) + 0.2 * RNG.standard_normal((N, C))
LAMS = np.array([0.5, 0.05])


KERNEL, FEATURES = sdgpu.Gaussian(0.4), sdgpu.Nystrom(landmarks=X[:11])


def fit(X, Y=None, lams=LAMS, features=FEATURES, **how):
    return sdgpu.fit(X, Y, KERNEL, lams, features=features, **how)


@pytest.mark.parametrize(
    ("rows", "targets", "dtype", "precision", "result"),
    [
        ("float64", "float64", None, "float64", "float64"),
        ("float32", "float32", None, "float32", "float32"),
        ("float32", "float64", None, "float32", "float64"),
        ("float16", "float32", None, "float32", "float32"),
        ("int64", "float64", None, "float64", "float64"),
        ("float32", "float32", "float64", "float64", "float32"),
        ("float64", "float64", "float32", "float32", "float64"),
        ("float64", "float64", "mixed", "float32", "float64"),
    ],
)
def test_precision_follows_the_rows(rows, targets, dtype, precision, result):
    fitted = fit(np.round(4 * X).astype(rows), Y.astype(targets), dtype=dtype)
    assert fitted.info.precision == precision
    assert fitted.path(0.05).predict(X[:20]).dtype == result
    wanted = fit(np.round(4 * X), Y)
    assert_near(fitted.path(0.05).predict(X[:20]), wanted.path(0.05).predict(X[:20]), rtol=1e-4)
    source = sdgpu.rows.blocks(lambda: iter([(X, Y)]), d=D, c=C, dtype="float32")
    assert fit(source).info.precision == "float32"


PROBLEMS = {
    "nystrom": (sdgpu.Gaussian(0.3), sdgpu.Nystrom(40)),
    "matern": (sdgpu.Matern(1.5, 1.0), sdgpu.Nystrom(40)),
    "fourier": (sdgpu.Gaussian(0.3), sdgpu.RandomFourier(60)),
    "polynomial": (sdgpu.Polynomial(2), sdgpu.Explicit()),
    "linear": (sdgpu.Linear(), sdgpu.Explicit()),
}


def largest_error(single, double, lam, rows, centre):
    """Of three steps, over the size of the first less the intercept."""
    found, wanted = (
        np.reshape(one.path(lam, steps=3).predict(rows), (3, len(rows), -1)) - centre
        for one in (single, double)
    )
    return (np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted[0], axis=0)).max()


@pytest.mark.parametrize("height", [8192, 40], ids=["one block", "one block of 25 audited"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.filterwarnings("ignore:inaccurate")
def test_errors_are_as_stated_at_every_lam(name, intercept, height, monkeypatch):
    monkeypatch.setattr(streaming, "MOST_ROWS", height)
    monkeypatch.setattr(streaming, "FEWEST_ROWS", 1)
    kernel, features = PROBLEMS[name]
    how = {"features": features, "intercept": intercept}
    for seed, (scale, shift, far) in enumerate([(1, 0, 0), (3, 0, 100), (2, 5, 0), (0.3, 0, 2e7)]):
        rng = np.random.default_rng(seed)
        rows = (scale * rng.standard_normal((1000, 4)) + shift).astype(np.float32)
        targets = np.sin(rows[:, :2]) + 0.1 * rng.standard_normal((1000, 2)) + far
        centre = targets.mean(axis=0) * intercept
        for exponents in ([-8], [-6], [-3], [0], [-8, -4, 0]):
            lams = 1000 * 10.0 ** np.array(exponents)
            single, double = (
                sdgpu.fit(rows, targets, kernel, lams, dtype=dtype, **how)
                for dtype in ("float32", "float64")
            )
            stated = single.info.error_estimate
            # where predictions shrink to nothing beside the mean, its rounding is an error too
            smallest = np.linalg.norm(double.path(lams.max(), steps=1).predict(rows)[0] - centre)
            rounding = 1e-15 * np.linalg.norm(targets) / smallest
            for lam in lams:
                assert largest_error(single, double, lam, rows, centre) <= 1.2 * stated + rounding
            assert double.info.error_estimate <= stated
            assert single.info.status.startswith("exact" if stated <= 1e-3 else "inaccurate")
            assert f"relative error about {stated:.1e} at lam = " in single.info.status


def test_the_largest_lam_may_have_the_largest_error():
    """Targets that large features know nothing of: float32 finds a little there, for large lam too much."""
    a, b = np.random.default_rng(1).standard_normal((2, 1000)).astype(np.float32)
    rows = np.stack([30 * a, 0.3 * b], axis=1)
    targets = b - a * (rows[:, 0].astype(float) @ b) / (rows[:, 0].astype(float) @ a)
    lams = np.array([1.0, 1e7])
    single, double = (
        sdgpu.fit(rows, targets, sdgpu.Linear(), lams, features=sdgpu.Explicit(), dtype=dtype)
        for dtype in ("float32", "float64")
    )
    errors = [largest_error(single, double, lam, rows, 0.0) for lam in lams]
    assert errors[1] > 10 * errors[0]
    assert errors[1] < 1.2 * single.info.error_estimate
    assert "at lam = 1e+07" in single.info.status


@pytest.mark.parametrize("name", ["nystrom", "polynomial", "linear"])
@pytest.mark.parametrize("left", [500, 50])
def test_errors_of_rows_that_are_left(name, left):
    """What float32 made of the rows that were taken away stays."""
    kernel, features = PROBLEMS[name]
    rows = np.random.default_rng(2).standard_normal((2000, 4)).astype(np.float32)
    targets = np.sin(rows[:, 0].astype(float))
    single = sdgpu.Moments(kernel, features, d=4, dtype="float32").add(rows, targets)
    for start in range(left, 2000, 150):
        part = slice(start, start + 150)
        single.subtract(rows[part], targets[part])
    if name == "nystrom":
        features = sdgpu.Nystrom(landmarks=single.map.landmarks)
    double = sdgpu.Moments(kernel, features, d=4).add(rows[:left].astype(float), targets[:left])
    fits = [sdgpu.fit(m, lams=1e-2 * left) for m in (single, double)]
    error = largest_error(*fits, None, rows[:left], 0.0)
    assert 0.2 * fits[0].info.error_estimate < error < 2 * fits[0].info.error_estimate


def test_errors_are_no_idle_worry():
    """What is stated is not far from what is: a bound that always holds says nothing."""
    rows = RNG.standard_normal((1000, 4)).astype(np.float32)
    targets = np.sin(rows[:, :2])
    for kernel, features in PROBLEMS.values():
        single, double = (
            sdgpu.fit(rows, targets, kernel, 1.0, features=features, dtype=dtype)
            for dtype in ("float32", "float64")
        )
        assert largest_error(single, double, 1.0, rows, 0.0) > 0.3 * single.info.error_estimate


def test_float32_that_is_not_enough_says_so():
    rows = (RNG.standard_normal((500, 2)) + 30).astype(np.float32)
    with pytest.warns(UserWarning, match="inaccurate: relative error .* take dtype='float64'"):
        info = sdgpu.fit(
            rows, rows[:, 0], sdgpu.Polynomial(3), 1e-3, features=sdgpu.Explicit()
        ).info
    assert info.error_estimate > 1e-3
    with pytest.warns(UserWarning, match="inaccurate: .* take a larger smallest lam"):
        sdgpu.fit(X, Y, sdgpu.Gaussian(0.1), 1e-14, features=sdgpu.Nystrom(30))


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("size", [20, 200])
def test_rows_left_out_in_float32(size, intercept):
    """With more features than rows too, where most eigenvectors are those of rounding."""
    features = sdgpu.RandomFourier(size)
    for lam in (0.05, 0.5, 5.0):
        single, double = (
            fit(X.astype(dtype), Y, lam, features, intercept=intercept)
            for dtype in ("float32", "float64")
        )
        assert_near(single.loo(lam, 0.3, 3), double.loo(lam, 0.3, 3), rtol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-160, 1e160])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.filterwarnings("ignore:the joint optimum", "ignore:squared errors of targets of size")
def test_many_rows_left_out_in_float32(size, intercept):
    """Products of single precision: few features, lam from nothing to far beyond the eigenvalues."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((600, D)).astype(np.float32)
    truth = np.sin(rows[:, :C]) + 0.2 * rng.standard_normal((600, C)) + 3
    lams = 600 * np.array([1e-4, 1e-2, 1e12])
    features = sdgpu.Nystrom(landmarks=rows[:20])

    def losses(dtype, unit):
        fitted = sdgpu.fit(
            rows, unit * truth, KERNEL, lams, features=features, intercept=intercept, dtype=dtype
        )
        found = fitted.sweep(alphas=[0.0, 0.5], steps=4, metrics=["mae"]).dataset
        path = fitted.path(lams[1], 0.5, 3).predict(rows[:30])
        weights = fitted.joint_alphas(lam=lams[1], steps=3).alphas
        return found["mae"].values / unit, path / unit, weights

    tolerances = (1e-4, 1e-4, 1e-2)  # optima are flat
    pairs = zip(losses("float32", size), losses("float64", 1.0), tolerances, strict=True)
    for one, other, rtol in pairs:
        assert_near(one, other, rtol)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kernel", [sdgpu.Matern(0.5, 1.0), sdgpu.Gaussian(2.0)], ids=repr)
def test_sums_that_are_whitened_afterwards(kernel, intercept, monkeypatch):
    """Where K_SS is far from singular; errors are as stated, and those of blocks that are whitened."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((4000, D))
    truth = np.sin(rows[:, :C]) + 0.2 * rng.standard_normal((4000, C)) + 3
    features, weights = sdgpu.Nystrom(landmarks=rows[:60]), rng.uniform(0, 2, 4000)
    feature_map = features.prepare(kernel, None, D, 0)
    assert nystrom.before_whitening(feature_map, precision="float32", rows=960) is not None
    assert nystrom.before_whitening(feature_map, precision="float32", rows=959) is None
    assert nystrom.before_whitening(feature_map, precision="float64", rows=960) is None
    lams = 4000 * np.array([1e-8, 1e-5, 1e-2])

    def predictions(dtype):
        how = {"dtype": dtype, "sample_weight": weights, "intercept": intercept}
        fitted = sdgpu.fit(rows.astype(np.float32), truth, kernel, lams, features=features, **how)
        found = [fitted.path(lam, 0.3, 3).predict(rows[:300].astype(np.float32)) for lam in lams]
        return fitted.info.error_estimate, np.stack(found)

    error, after = predictions("float32")
    _, exact = predictions("float64")
    size = np.linalg.norm(exact - intercept * truth.mean())
    assert np.linalg.norm(after - exact) < 3 * error * size
    assert error < 1e-4
    monkeypatch.setattr(nystrom, "CONDITION", 0.0)
    assert nystrom.before_whitening(feature_map, precision="float32", rows=960) is None
    block_error, before = predictions("float32")
    assert np.linalg.norm(before - after) < 3 * (error + block_error) * size


def test_near_singular_landmarks_are_whitened_block_by_block():
    feature_map = sdgpu.Nystrom(landmarks=X[:20]).prepare(sdgpu.Gaussian(0.01), None, D, 0)
    assert feature_map.condition > 1e6
    assert nystrom.before_whitening(feature_map, precision="float32", rows=8192) is None


@pytest.mark.parametrize("size", [1e-300, 1e-60, 1e60])
def test_weights_of_any_size(size):
    """Only their ratios count, with lam in their unit."""
    weights = np.random.default_rng(1).uniform(0, 2, N)
    for dtype in ("float32", "float64"):
        one, other = (
            fit(X, Y, unit * LAMS, dtype=dtype, sample_weight=unit * weights).path(unit * LAMS[0])
            for unit in (size, 1.0)
        )
        assert_near(one.predict(X), other.predict(X), 1e-4 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_targets_far_from_zero_keep_their_digits(dtype, library):
    """Dates and energies: 2e7 is where float32 knows even numbers alone."""
    single = X.astype(np.float32)
    rows, targets = library(single), library(Y + 2e7)
    far = fit(rows, targets, intercept=True, dtype=dtype)
    near = fit(single, Y, intercept=True, dtype="float64")
    found = np.asarray(far.path(0.05, 0.3, 3).predict(rows)) - 2e7
    assert np.abs(found - near.path(0.05, 0.3, 3).predict(X)).max() < 1e-5
    left, right = (
        one.sweep(*data, alphas=[0.0, 0.4], steps=3).dataset
        for one, data in ((far, (rows, targets)), (near, (X, Y)))
    )
    for name in ("mse", "train_mse", "gcv", "star_mse"):
        assert_allclose(left[name], right[name], rtol=1e-5)


def test_targets_that_drift_keep_their_digits():
    """The first rows are near 0, the last ones at 2e7, of a source that can be read once."""
    drift = np.linspace(0, 2e7, N)[:, None]
    rows, targets = np.concatenate([X, drift / 1e7], axis=1).astype(np.float32), Y + drift
    found, wanted = (
        sdgpu.fit(
            source,
            None,
            sdgpu.Linear(),
            1e-6,
            features=sdgpu.Explicit(),
            intercept=True,
            dtype=dtype,
        )
        for source, dtype in (
            (
                sdgpu.rows.blocks(lambda: iter([(rows, targets)]), d=4, c=2, rereadable=False),
                "float32",
            ),
            (sdgpu.rows.arrays(rows, targets), "float64"),
        )
    )
    error = found.path(steps=1).predict(rows) - wanted.path(steps=1).predict(rows)
    size = np.linalg.norm(targets - targets.mean(axis=0))
    assert np.linalg.norm(error) < 1.2 * found.info.error_estimate * size
