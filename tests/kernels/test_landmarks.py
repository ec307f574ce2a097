"""Which rows stand for the others, features that are functions, and what is refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

import sdgpu
from sdgpu.kernels.feature_maps import Explicit, Features, Nystrom, RandomFourier, landmarks
from sdgpu.kernels.feature_maps.explicit import CallableMap
from sdgpu.kernels.feature_maps.landmarks import kmeans_centres, random_pivots, uniform_rows
from sdgpu.kernels.feature_maps.stored import same_map
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.5)


def clustered(rng, large=480, groups=20):
    """Most rows in one place, two each in twenty others: uniform landmarks miss these."""
    centres = 6 * rng.standard_normal((groups, 2))
    few = np.repeat(centres, 2, axis=0) + 0.05 * rng.standard_normal((2 * groups, 2))
    return np.concatenate([0.3 * rng.standard_normal((large, 2)), few])


def residual_trace(kernel, X, pivots):
    K = kernel(X)
    C = K[:, pivots]
    return np.trace(K - C @ np.linalg.pinv(K[np.ix_(pivots, pivots)], hermitian=True) @ C.T)


@pytest.mark.parametrize(
    "kernel",
    [KERNEL, sdgpu.Laplacian(0.5), KERNEL + sdgpu.Linear(), 4.0 * sdgpu.Matern(2.5)],
    ids=repr,
)
@pytest.mark.parametrize("block", [1, 7, 128])
def test_pivots_are_rows_that_differ(kernel, block, rng, monkeypatch):
    monkeypatch.setattr(landmarks, "BLOCK", block)
    X = rng.standard_normal((90, 2))
    pivots = random_pivots(kernel, X, 40, seed=5)
    assert pivots.dtype == np.int64
    assert len(pivots) == len(set(pivots)) == 40
    assert pivots.min() >= 0
    assert pivots.max() < 90
    assert np.array_equal(random_pivots(kernel, X, 40, seed=5), pivots)
    assert not np.array_equal(random_pivots(kernel, X, 40, seed=6), pivots)
    assert np.array_equal(random_pivots(100 * kernel, X, 40, seed=5), pivots)


@pytest.mark.parametrize("block", [1, 16])
def test_pivots_are_drawn_as_if_one_by_one(block, monkeypatch):
    """Of the second pivot given the first: the share of what the first leaves, over 1,500 seeds."""
    monkeypatch.setattr(landmarks, "BLOCK", block)
    X = np.array([[0.0], [0.4], [1.0], [3.0]])
    K = KERNEL(X)
    drawn = np.array([random_pivots(KERNEL, X, 2, seed=seed) for seed in range(1500)])
    counts = np.zeros((4, 4))
    np.add.at(counts, tuple(drawn.T), 1)
    wanted = np.maximum(1 - K**2, 0)  # residual diagonals, as K_ii = 1
    wanted = wanted / wanted.sum(axis=1, keepdims=True) / 4
    assert np.abs(counts / 1500 - wanted).max() < 5 * np.sqrt(0.15 / 1500)


@pytest.mark.parametrize("block", [1, 128])
def test_pivots_of_clusters_are_near_the_best(block, rng, monkeypatch):
    monkeypatch.setattr(landmarks, "BLOCK", block)
    X = clustered(rng)
    eigenvalues = np.linalg.eigvalsh(KERNEL(X))[::-1]
    for count, share in ((10, 1.0), (25, 0.2), (50, 0.01)):
        best, best_of_half = eigenvalues[count:].sum(), eigenvalues[count // 2 :].sum()
        pivoted, uniform = (
            np.mean([residual_trace(KERNEL, X, pick(count, seed)) for seed in range(5)])
            for pick in (
                lambda count, seed: random_pivots(KERNEL, X, count, seed=seed),
                lambda count, seed: uniform_rows(count, len(X), seed=seed),
            )
        )
        assert best * (1 - 1e-9) < pivoted < 2 * best_of_half
        assert pivoted < share * uniform


@pytest.mark.parametrize("rank", [1, 3])
def test_a_sample_of_low_rank_gives_fewer_pivots(rank, rng):
    X = rng.standard_normal((50, rank))
    assert len(random_pivots(sdgpu.Linear(), X, 20, seed=0)) == rank
    repeated = np.repeat(X[:4], 10, axis=0)
    pivots = random_pivots(KERNEL, repeated, 20, seed=0)
    assert sorted(repeated[pivots, 0]) == sorted(X[:4, 0])
    assert len(random_pivots(sdgpu.Linear(), np.zeros((5, rank)), 3, seed=0)) == 0


def test_rows_of_zero_weight_are_never_picked(rng):
    X = np.concatenate([np.zeros((30, 2)), rng.standard_normal((5, 2))])
    assert random_pivots(sdgpu.Linear(), X, 2, seed=1).min() >= 30


def test_all_rows_as_pivots(rng):
    X = rng.standard_normal((30, 3))
    assert sorted(random_pivots(KERNEL, X, 30, seed=0)) == list(range(30))


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_centres_of_clear_clusters(scale, shift, rng, monkeypatch):
    monkeypatch.setattr(landmarks, "NUMBERS", 64)  # distances in blocks
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [30.0, 5.0]])
    rows = np.repeat(centres, 40, axis=0)
    X = scale * (rows + 0.1 * rng.standard_normal(rows.shape)) + shift * scale
    for seed in range(5):
        found = kmeans_centres(X, 5, seed=seed)
        wanted = X.reshape(5, 40, 2).mean(axis=1)
        nearest = np.abs(found[:, None] - wanted).sum(axis=-1).argmin(axis=1)
        if len(set(nearest)) < 5:
            continue  # a local optimum: k-means++ promises no more than a factor
        assert_near(found - shift * scale, wanted[nearest] - shift * scale, rtol=1e-7)
        return
    pytest.fail("none of five seeds finds the clusters")


def test_centres_lower_the_distances(rng):
    """Lloyd's iterations from k-means++: clearly better than any of twenty draws of rows."""
    X = rng.standard_normal((300, 2))

    def cost(centres):
        return ((X[:, None] - centres) ** 2).sum(axis=-1).min(axis=1).mean()

    found = [cost(kmeans_centres(X, 12, seed=seed)) for seed in range(3)]
    rows = [cost(X[uniform_rows(12, 300, seed=seed)]) for seed in range(20)]
    assert max(found) < 0.8 * min(rows)
    for seed in range(3):  # nothing that another iteration would improve
        centres = kmeans_centres(X, 12, seed=seed)
        nearest = ((X[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
        means = np.array([X[nearest == j].mean(axis=0) for j in range(12)])
        assert cost(means) > 0.997 * cost(centres)
    assert np.array_equal(kmeans_centres(X, 12, seed=1), kmeans_centres(X, 12, seed=1))
    assert_near(kmeans_centres(X, 1, seed=0), X.mean(axis=0, keepdims=True), rtol=1e-12)


def test_fewer_different_rows_than_centres(rng):
    X = np.repeat(rng.standard_normal((4, 3)), 5, axis=0)
    found = kmeans_centres(X, 10, seed=0)
    assert_near(np.sort(found, axis=0), np.sort(X[::5], axis=0), rtol=1e-12)
    assert kmeans_centres(np.zeros((6, 2)), 3, seed=0).tolist() == [[0.0, 0.0]]


def test_uniform_rows():
    drawn = np.array([uniform_rows(3, 10, seed=seed) for seed in range(3000)])
    assert (np.diff(drawn, axis=1) > 0).all()
    assert np.abs(np.bincount(drawn.ravel()) / 3000 - 0.3).max() < 5 * np.sqrt(0.21 / 3000)
    assert uniform_rows(20, 10, seed=0).tolist() == list(range(10))


class Squares(nn.Module):
    """(x, x^2) times a parameter."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=dtype))

    def forward(self, X):
        return self.weight * torch.cat([X, X * X], dim=1)


def squares(X):
    return 2.0 * np.concatenate([X, X * X], axis=1)


@pytest.mark.parametrize(
    "function", [squares, Squares(), Squares(torch.float64)], ids=["function", "float32", "float64"]
)
def test_features_of_a_function(function, rng):
    X = rng.standard_normal((8, 3))
    features = Explicit(function)
    phi = features.prepare(sdgpu.Gaussian(), None, 3, 0)
    assert isinstance(phi, CallableMap)
    assert (phi.size, phi.d) == (6, 3)
    for dtype in ("float32", "float64"):
        found = phi.transform(X, dtype)
        assert isinstance(found, np.ndarray)
        assert found.dtype == dtype
        assert_near(found, squares(X), rtol=1e-6)


def test_modules_make_tensors_of_tensors(rng):
    X = torch.tensor(rng.standard_normal((8, 3)))
    phi = Explicit(Squares()).prepare(KERNEL, None, 3, 0)
    found = phi.transform(X, "float64")
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert_near(found.numpy(), squares(X.numpy()), rtol=1e-6)
    without = Explicit(nn.Flatten()).prepare(KERNEL, None, 3, 0)
    assert_near(without.transform(X.numpy()), X.numpy(), rtol=1e-15)


def test_functions_are_the_same_if_they_are_one():
    one, again, other = (
        Explicit(f).prepare(KERNEL, None, 2, 0) for f in (squares, squares, np.sin)
    )
    assert same_map(one, again)
    assert not same_map(one, other)
    assert not same_map(one, Explicit().prepare(sdgpu.Linear(), None, 2, 0))
    assert not same_map(Explicit().prepare(sdgpu.Linear(), None, 2, 0), one)


ROWS = np.arange(10.0).reshape(5, 2)


def called(function):
    return CallableMap(function, 2, 2).transform(ROWS)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Nystrom(0), ValueError, "size=0 must be at least 1"),
        (lambda: Nystrom(2.5), TypeError, "size=2.5 must be a whole number"),
        (
            lambda: Nystrom(5, "kmean"),
            ValueError,
            "landmarks='kmean' is not known: did you mean 'km",
        ),
        (lambda: Nystrom(landmarks=ROWS[:, 0]), ValueError, "landmarks must be two-dimensional"),
        (lambda: Nystrom(landmarks=ROWS[:0]), ValueError, "landmarks has no rows"),
        (lambda: Nystrom(landmarks=ROWS * np.nan), ValueError, "landmarks has 10 entries"),
        (lambda: Nystrom(landmarks=1j * ROWS), TypeError, "landmarks is complex"),
        (
            lambda: Nystrom(landmarks=np.concatenate([ROWS, ROWS[:2]])),
            ValueError,
            "landmarks has 2 rows that are equal to others: give each once",
        ),
        (lambda: Nystrom(10, candidates=9), ValueError, "candidates=9 is below size=10"),
        (lambda: Nystrom(10, candidates=0), ValueError, "candidates=0 must be at least 1"),
        (lambda: Nystrom(10, candidates=1e3), TypeError, "candidates=1000.0 must be a whole"),
        (
            lambda: Nystrom(2).prepare(sdgpu.Precomputed(), ROWS, 2, 0),
            ValueError,
            "not a precomputed one",
        ),
        (
            lambda: Nystrom(landmarks=ROWS).prepare(KERNEL, None, 3, 0),
            ValueError,
            "landmarks has 2 features, but the rows have 3",
        ),
        (
            lambda: Nystrom(6).prepare(KERNEL, ROWS, 2, 0),
            ValueError,
            "size=6 landmarks of 5 rows: take at most as many",
        ),
        (
            lambda: Nystrom(landmarks=1e200 * ROWS).prepare(KERNEL, None, 2, 0),
            ValueError,
            "overflows on data",
        ),
        (lambda: RandomFourier(7), ValueError, "size=7 must be even"),
        (lambda: RandomFourier(1), ValueError, "size=1 must be at least 2"),
        (lambda: RandomFourier(8.0), TypeError, "size=8.0 must be a whole number"),
        (
            lambda: RandomFourier(8).prepare(sdgpu.Linear(), None, 2, 0),
            ValueError,
            "SpectralMixture kernels, not Linear",
        ),
        (
            lambda: RandomFourier(8).prepare(KERNEL + sdgpu.Laplacian(), None, 2, 0),
            ValueError,
            "not Sum.*use sdgpu.Nystrom",
        ),
        (
            lambda: RandomFourier(8, orthogonal=True).prepare(sdgpu.Laplacian(), None, 2, 0),
            ValueError,
            "orthogonal=True: the density of a Laplacian kernel has no rotations",
        ),
        (
            lambda: RandomFourier(8).prepare(sdgpu.Matern(0.5, [1.0, 2.0, 3.0]), None, 2, 0),
            ValueError,
            "lengthscale has 3 entries, but the data have 2 features",
        ),
        (lambda: Explicit(3), TypeError, "function=3 must be callable"),
        (
            lambda: Explicit().prepare(KERNEL, None, 2, 0),
            ValueError,
            "has no finite number of features of its own: use sdgpu.Nystrom or sdgpu.RandomF",
        ),
        (
            lambda: Explicit().prepare(sdgpu.Polynomial(4), None, 30, 0),
            ValueError,
            "has 46,376 features of its own for rows of 30, more than 20,000",
        ),
        (
            lambda: Explicit(np.sum).prepare(KERNEL, None, 2, 0),
            ValueError,
            r"features= gives shape \(\) for one row: \(1, k\) is wanted",
        ),
        (
            lambda: Explicit(lambda X: X[0]).prepare(KERNEL, None, 2, 0),
            ValueError,
            r"gives shape \(2,\) for one row",
        ),
        (
            lambda: Explicit(lambda X: X[:, :0]).prepare(KERNEL, None, 2, 0),
            ValueError,
            r"gives shape \(1, 0\) for one row",
        ),
        (
            lambda: Explicit(lambda X: X.tolist()).prepare(KERNEL, None, 2, 0),
            ValueError,
            r"gives shape \(\) for one row",
        ),
        (
            lambda: Explicit(lambda X: np.ones((7, 3))).prepare(KERNEL, None, 2, 0),
            ValueError,
            r"gives shape \(7, 3\) for one row: \(1, k\) is wanted",
        ),
        (
            lambda: called(lambda X: X[:, :1]),
            ValueError,
            r"gives shape \(5, 1\) for 5 rows, but \(5, 2\) is wanted",
        ),
        (lambda: called(lambda X: X[1:]), ValueError, r"gives shape \(4, 2\) for 5 rows"),
        (lambda: called(lambda X: X[:, 0]), ValueError, r"gives shape \(5,\) for 5 rows"),
        (lambda: called(lambda X: X / 0 * 0), ValueError, "features= gives NaN or infinity"),
        (lambda: called(torch.tensor), TypeError, "features= gives Tensor for ndarray: the same"),
        (lambda: called(lambda X: X.tolist()), TypeError, "features= gives list for ndarray"),
        (
            lambda: CallableMap(squares, 2, 4).state(),
            TypeError,
            "features= is a function: it cannot be saved; use sdgpu.Nystrom",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_recipes_are_recognised():
    for features in (Nystrom(5), RandomFourier(4), Explicit()):
        assert isinstance(features, Features)
    for other in ("nystrom", None, KERNEL, np.sin):
        assert not isinstance(other, Features)
