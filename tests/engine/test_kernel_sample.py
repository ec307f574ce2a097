"""What features leave out of their kernel: on all rows of a small problem, and on the same few of any blocks."""

import numpy as np
import pytest
import scipy.sparse

import sdgpu
from sdgpu.backend.rows import Block
from sdgpu.engine import feature_fitting
from sdgpu.engine.row_reservoir import RowReservoir
from tests.problems import assert_near

N, D, C = 70, 3, 2
RNG = np.random.default_rng(4)
X = RNG.standard_normal((N, D))
Y = np.sin(X[:, :C]) + 0.1 * RNG.standard_normal((N, C)) + 4
WEIGHTS = RNG.uniform(0, 2, N)
KERNEL, LAMS = sdgpu.Gaussian(0.5), np.array([1e-3, 1.0])
FEATURES = {"nystrom": sdgpu.Nystrom(landmarks=X[:12]), "fourier": sdgpu.RandomFourier(40)}


def ridge(K, lam, weights, intercept):
    """Weighted ridge by its normal equations: predictions at the rows."""
    W, ones = np.diag(weights), np.ones((N, 1))
    if not intercept:
        return K @ np.linalg.solve(W @ K + lam * np.eye(N), W @ Y)
    # f = K a + b with W (Y - f) = lam a, and the intercept free
    system = np.block([[W @ K + lam * np.eye(N), W @ ones], [ones.T @ W @ K, ones.T @ W @ ones]])
    found = np.linalg.solve(system, np.concatenate([W @ Y, ones.T @ W @ Y]))
    return K @ found[:N] + found[N:]


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", FEATURES)
def test_a_small_problem_is_its_own_sample(name, weights, intercept):
    features = FEATURES[name]
    info = sdgpu.fit(
        X, Y, KERNEL, LAMS, features=features, sample_weight=weights, intercept=intercept
    ).info
    phi = features.prepare(KERNEL, None, D, 0).transform(X)
    w = np.ones(N) if weights is None else weights
    mean = w @ Y / w.sum() if intercept else 0.0
    worst = []
    for lam in LAMS:
        exact, found = (ridge(K, lam, w, intercept) - mean for K in (KERNEL(X), phi @ phi.T))
        root = np.sqrt(w)[:, None]
        error, size = (np.linalg.norm(root * f, axis=0) for f in (found - exact, exact))
        worst.append((error / size).max())
    assert_near(info.kernel_difference, max(worst), rtol=1e-4)
    assert f"on {N} rows the kernel itself differs by {info.kernel_difference:.1e}" in info.status


def test_landmarks_everywhere_leave_nothing_out():
    info = sdgpu.fit(X, Y, KERNEL, LAMS, features=sdgpu.Nystrom(landmarks=X)).info
    assert info.kernel_difference < 1e-8


def test_features_that_stand_for_no_kernel_are_not_compared():
    own = sdgpu.fit(X, Y, sdgpu.Linear(), LAMS, features=sdgpu.Explicit()).info
    called = sdgpu.fit(X, Y, KERNEL, LAMS, features=sdgpu.Explicit(np.tanh)).info
    sparse = sdgpu.fit(scipy.sparse.csr_array(X), Y, sdgpu.Linear(), LAMS).info
    moments = sdgpu.Moments(KERNEL, FEATURES["nystrom"], d=D, c=C).add(X, Y)
    for info in (own, called, sparse, sdgpu.fit(moments, lams=LAMS).info):
        assert info.kernel_difference is None
        assert "the kernel itself" not in info.status


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_targets_of_any_size(scale):
    one, other = (
        sdgpu.fit(X, unit * Y, KERNEL, LAMS, features=FEATURES["nystrom"]).info.kernel_difference
        for unit in (1.0, scale)
    )
    assert_near(one, other, rtol=1e-6)


def test_a_pass_that_goes_on_sees_all_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_fitting, "SAMPLE", 20)
    how = {"features": FEATURES["nystrom"], "checkpoint": tmp_path / "pass.safetensors"}
    one, again = (sdgpu.fit(X, Y, KERNEL, LAMS, **how).info for _ in range(2))
    assert one.kernel_difference == again.kernel_difference
    assert "on 20 rows" in one.status


@pytest.mark.parametrize("count", [1, 7, 70, 200])
@pytest.mark.parametrize("height", [1, 9, 70])
def test_a_reservoir_keeps_rows_in_their_order(count, height):
    reservoir = RowReservoir(count, 3, targets=True)
    for start in range(0, N, height):
        rows = slice(start, start + height)
        reservoir.add(start, Block(X[rows], Y[rows], WEIGHTS[rows]))
    found, targets, weights = reservoir.rows
    places = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in found]
    assert len(places) == min(count, N)
    assert places == sorted(set(places))
    np.testing.assert_array_equal(targets, Y[places])
    np.testing.assert_array_equal(weights, WEIGHTS[places])


def test_every_row_is_as_likely():
    counts = np.zeros(N)
    for seed in range(400):
        reservoir = RowReservoir(14, seed)
        for start in (0, 35):
            reservoir.add(start, Block(np.arange(start, start + 35.0)[:, None]))
        counts[reservoir.rows[0][:, 0].astype(int)] += 1
    assert counts.sum() == 400 * 14
    assert np.abs(counts - 80).max() < 5 * np.sqrt(80 * 0.8)
