"""Feature maps: phi . phi' against the kernel, against dense references, and on average."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdgpu
from sdgpu.kernels.feature_maps import nystrom
from sdgpu.kernels.feature_maps.explicit import own_size
from sdgpu.kernels.feature_maps.stored import same_map, stored_map
from tests.problems import assert_near

D = 3
KERNELS = [
    sdgpu.Gaussian(0.4),
    sdgpu.Gaussian(0.5, lengthscale=[0.7, 2.0, 1.1]),
    sdgpu.Laplacian(0.3),
    sdgpu.Matern(0.5, 1.5),
    sdgpu.Matern(2.5, [1.0, 2.0, 0.5]),
    sdgpu.ArcCosine(1),
    sdgpu.Gaussian(0.4) + 0.3 * sdgpu.Linear(),
    sdgpu.Laplacian(0.2) * sdgpu.Polynomial(2),
    2.5 * sdgpu.Matern(1.5, 1.3),
]
STATIONARY = [
    sdgpu.Gaussian(0.4),
    sdgpu.Gaussian(0.5, lengthscale=[0.7, 2.0, 1.1]),
    sdgpu.Laplacian(0.3),
    sdgpu.Laplacian(0.5, lengthscale=[1.0, 3.0, 2.0]),
    sdgpu.Matern(0.5, 1.5),
    sdgpu.Matern(1.5, [0.8, 1.0, 2.0]),
    sdgpu.Matern(2.5, 2.0),
    3.0 * (0.5 * sdgpu.Gaussian(0.2)),
    sdgpu.Matern(3.5, 2.0),
    sdgpu.RationalQuadratic(0.6, 1.5),
    sdgpu.RationalQuadratic(2.0, [0.8, 1.0, 2.0]),
    sdgpu.Periodic(2.7, 0.8),
    sdgpu.Periodic([2.7, 1.0, 9.0], [0.8, 3.0, 0.5]),
    2.0
    * sdgpu.SpectralMixture([1.5, 0.5], [[0, 0.3, 0.1], [0.2, 0, 0.4]], [[0.1] * 3, [0.01] * 3]),
    2.0 * sdgpu.On([2, 0], 0.5 * sdgpu.Matern(1.5, [0.8, 1.7])),
    sdgpu.On(1, sdgpu.SpectralMixture([1.5, 0.5], [0, 0.3], [0.1, 0.01])),
]


@pytest.fixture(name="X")
def some_rows(rng):
    return rng.standard_normal((60, D))


def prepared(features, kernel, X=None, seed=0, d=D):
    return features.prepare(kernel, X, d, seed)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_landmarks_everywhere_are_the_kernel(kernel, X):
    phi = prepared(sdgpu.Nystrom(landmarks=X), kernel)
    rows = phi.transform(X)
    assert rows.shape == (60, phi.size)
    assert phi.d == D
    assert_near(rows @ rows.T, kernel(X), rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_few_landmarks_are_the_projection_on_their_functions(kernel, X):
    S = X[:12]
    found = prepared(sdgpu.Nystrom(landmarks=S), kernel).transform(X)
    K = kernel(X, S)
    wanted = K @ np.linalg.pinv(kernel(S), hermitian=True, rcond=1e-14) @ K.T
    assert_near(found @ found.T, wanted, rtol=1e-8)
    assert np.abs(wanted - kernel(X)).max() > 1e-3 * np.abs(wanted).max()  # not all of it


@pytest.mark.parametrize("choice", ["rpcholesky", "kmeans", "uniform"])
def test_every_choice_of_landmarks(choice, X):
    kernel = sdgpu.Gaussian(0.3)
    features = sdgpu.Nystrom(10, landmarks=choice)
    phi = prepared(features, kernel, X, seed=3)
    assert phi.landmarks.shape == (10, D)
    assert phi.size == 10
    again, other = (prepared(features, kernel, X, seed=seed) for seed in (3, 4))
    assert np.array_equal(phi.landmarks, again.landmarks)
    assert same_map(phi, again)
    assert not np.array_equal(phi.landmarks, other.landmarks)
    assert not same_map(phi, other)
    of_sample = [(landmark == X).all(axis=1).any() for landmark in phi.landmarks]
    assert all(of_sample) == (choice != "kmeans")


def test_rows_that_are_wanted_to_choose_from():
    for features, rows in (
        (sdgpu.Nystrom(100), 20_000),
        (sdgpu.Nystrom(3000), 30_000),
        (sdgpu.Nystrom(100, candidates=500), 500),
        (sdgpu.Nystrom(100, landmarks="kmeans"), 20_000),
        (sdgpu.Nystrom(100, landmarks="uniform"), 100),
        (sdgpu.Nystrom(landmarks=np.eye(3)), 0),
        (sdgpu.RandomFourier(10), 0),
        (sdgpu.Explicit(), 0),
        (sdgpu.Explicit(np.sin), 0),
    ):
        assert features.sample_rows == rows


def test_the_callers_landmarks_are_a_copy():
    S = np.arange(6.0).reshape(3, 2)
    features = sdgpu.Nystrom(landmarks=S)
    assert features.size == 3
    S[:] = 7
    assert features.landmarks[2, 1] == 5


@pytest.mark.parametrize("choice", ["rpcholesky", "kmeans", "uniform"])
def test_equal_rows_of_a_sample_do_no_harm(choice, X):
    """All 20 different rows become landmarks, some of them twice or more."""
    few, kernel = X[:20], sdgpu.Gaussian(0.3)
    phi = prepared(sdgpu.Nystrom(60, landmarks=choice), kernel, np.tile(few, (3, 1)))
    assert phi.size <= 20
    rows = phi.transform(few)
    assert_near(rows @ rows.T, kernel(few), rtol=1e-7)


def test_landmarks_that_others_explain_add_no_feature(X):
    """A linear kernel of three features has rank 3, whatever the landmarks."""
    for choice in ("rpcholesky", "kmeans", "uniform", X[:9]):
        phi = prepared(sdgpu.Nystrom(9, landmarks=choice), sdgpu.Linear(), X)
        assert phi.size == 3
        assert_near(phi.transform(X) @ phi.transform(X).T, X @ X.T, rtol=1e-10)


MAPS = {
    "nystrom": lambda X: prepared(sdgpu.Nystrom(landmarks=X[:12]), sdgpu.Matern(1.5, 1.3)),
    "nystrom of a sum": lambda X: prepared(
        sdgpu.Nystrom(landmarks=X[:12]), sdgpu.Gaussian(0.3) + 0.5 * sdgpu.Linear()
    ),
    "fourier": lambda X: prepared(sdgpu.RandomFourier(50), 2.0 * sdgpu.Matern(0.5, 1.5)),
    "orthogonal": lambda X: prepared(sdgpu.RandomFourier(50, orthogonal=True), sdgpu.Gaussian(0.4)),
    "monomials": lambda X: prepared(sdgpu.Explicit(), sdgpu.Polynomial(3, 0.5, 2.0)),
    "columns": lambda X: prepared(
        sdgpu.Explicit(), sdgpu.On([2, 0], sdgpu.Polynomial(2)) + sdgpu.On(1, sdgpu.Linear())
    ),
    "angles": lambda X: prepared(
        sdgpu.Explicit(), sdgpu.Cosine() * sdgpu.Linear() + sdgpu.Cosine()
    ),
}


@pytest.fixture(params=MAPS)
def phi(request, X):
    return MAPS[request.param](X)


def test_float32_is_near(phi, X):
    single = phi.transform(X.astype(np.float32), "float32")
    assert single.dtype == np.float32
    assert_near(single, phi.transform(X), rtol=2e-5)
    assert phi.transform(X.astype(np.float32)).dtype == np.float64
    assert phi.transform(X, "float32").dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_give_tensors(phi, X, dtype):
    found = phi.transform(torch.tensor(X), dtype)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == getattr(torch, dtype)
    assert_near(
        found.numpy(), phi.transform(X, dtype), rtol={"float32": 1e-5, "float64": 1e-12}[dtype]
    )


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_combined_features(phi, X, library, rng):
    columns, more = rng.standard_normal((phi.size, 4)), rng.standard_normal((4, 2))
    turned = pickle.loads(pickle.dumps(phi.turned(columns)))
    assert (turned.size, turned.d) == (4, phi.d)
    assert_near(np.asarray(turned.transform(library(X))), phi.transform(X) @ columns, rtol=1e-9)
    twice = turned.turned(more)
    assert_near(
        np.asarray(twice.transform(library(X))), phi.transform(X) @ columns @ more, rtol=1e-9
    )
    assert_near(turned.transform(X, "float32"), phi.transform(X) @ columns, rtol=1e-4)
    assert np.asarray(turned.transform(library(X), "float32")).dtype == np.float32


@pytest.mark.parametrize("height", [1, 7, 59, 60])
def test_blocks_give_the_same_rows(phi, X, height, monkeypatch):
    whole = phi.transform(X)
    parts = [phi.transform(X[i : i + height]) for i in range(0, 60, height)]
    assert_near(np.concatenate(parts), whole, rtol=1e-13)
    monkeypatch.setattr(nystrom, "NUMBERS", 12 * height)  # tiles of so many rows
    assert_near(phi.transform(X), whole, rtol=1e-13)
    assert phi.transform(X[:0]).shape == (0, phi.size)


def test_nothing_is_written_to(phi, X):
    before = X.copy()
    X.flags.writeable = False
    strided = np.asfortranarray(np.repeat(X, 2, axis=0))[::-2]
    assert_near(phi.transform(strided)[::-1], phi.transform(X), rtol=1e-13)
    assert np.array_equal(X, before)


def test_pickles(phi, X):
    rows = phi.transform(X)
    again = pickle.loads(pickle.dumps(phi))
    assert np.array_equal(again.transform(X), rows)
    assert same_map(again, phi)
    phi.transform(torch.tensor(X))
    assert len(pickle.dumps(phi)) == len(pickle.dumps(again))  # nothing that calls left in it


def test_maps_out_of_files_are_the_same_bits(phi, X):
    description, arrays = phi.state()
    again = stored_map(description, arrays, phi.kernel if hasattr(phi, "kernel") else None)
    assert type(again) is type(phi)
    assert (again.size, again.d) == (phi.size, phi.d)
    for dtype in ("float32", "float64"):
        assert np.array_equal(again.transform(X, dtype), phi.transform(X, dtype))
    assert same_map(again, phi)


def test_maps_that_differ(X):
    maps = [make(X) for make in MAPS.values()]
    for i, one in enumerate(maps):
        for j, other in enumerate(maps):
            wanted = i == j or {i, j} <= {4, 5, 6}  # own features: the kernel tells them apart
            assert same_map(one, other) == wanted


ONE, TWO = np.ones((1, 2)), np.arange(4.0).reshape(2, 2)


@pytest.mark.parametrize(
    ("description", "arrays", "words"),
    [
        ({"kind": "callable"}, {}, "'callable' is no feature map that a file may name"),
        ({}, {}, "None is no feature map"),
        ({"kind": ["nystrom"]}, {}, "is no feature map"),
        ({"kind": "nystrom"}, {"landmarks": TWO}, "lacks 'whitening'"),
        ({"kind": "nystrom"}, {"landmarks": TWO, "whitening": ONE}, "2 landmarks with 1 of white"),
        ({"kind": "nystrom"}, {"landmarks": TWO[0], "whitening": TWO}, "landmarks is no matrix"),
        ({"kind": "nystrom"}, {"landmarks": TWO, "whitening": TWO * np.nan}, "whitening is no mat"),
        ({"kind": "nystrom"}, {"landmarks": TWO, "whitening": np.eye(2, 0)}, "whitening is no mat"),
        ({"kind": "nystrom"}, {"landmarks": TWO.astype(int), "whitening": TWO}, "landmarks is no"),
        ({"kind": "fourier"}, {"frequencies": TWO}, "lacks 'scale'"),
        ({"kind": "fourier", "scale": 1.0}, {}, "lacks 'frequencies'"),
        ({"kind": "fourier", "scale": 1.0}, {"frequencies": np.float32(TWO)}, "frequencies is no"),
        ({"kind": "fourier", "scale": [1.0]}, {"frequencies": TWO}, "scale"),
        ({"kind": "fourier", "scale": "x"}, {"frequencies": TWO}, "scale"),
        ({"kind": "fourier", "scale": -1.0}, {"frequencies": TWO}, "scale"),
        ({"kind": "fourier", "scale": math.nan}, {"frequencies": TWO}, "scale"),
        ({"kind": "own"}, {}, "lacks 'd'"),
        ({"kind": "own", "d": 2}, {}, "has no features of its own for rows of 2"),
        ({"kind": "own", "d": 0}, {}, "d=0 must be at least 1"),
        ({"kind": "own", "d": 2.5}, {}, "d=2.5 must be a whole number"),
        ({"kind": "own", "d": "2"}, {}, "d='2' must be a whole number"),
    ],
)
def test_junk_is_no_map(description, arrays, words):
    with pytest.raises(ValueError, match=words):
        stored_map(description, arrays, sdgpu.Gaussian(0.5))


def errors_of(kernel, X, size, seeds):
    """Errors of kernel values for each seed, (seeds, n, n)."""
    rows = [
        prepared(sdgpu.RandomFourier(size), kernel, seed=seed).transform(X) for seed in range(seeds)
    ]
    return np.stack([phi @ phi.T for phi in rows]) - kernel(X)


@pytest.mark.parametrize("kernel", STATIONARY, ids=repr)
def test_random_features_are_right_on_average(kernel, X):
    """Off by about 1 / sqrt(k), and by 1 / sqrt(k seeds) on the mean of many: no bias."""
    X, scale = X[:15], float(kernel(X[:1])[0, 0])
    few, many = (errors_of(kernel, X, size, 40) / scale for size in (32, 512))
    sizes = [math.sqrt(np.mean(errors**2)) for errors in (few, many)]
    assert 3.3 < sizes[0] / sizes[1] < 4.8  # sqrt(16)
    assert sizes[1] < 1 / math.sqrt(512)
    assert np.abs(many.mean(axis=0)).max() < 5 / math.sqrt(512 * 40)
    assert np.abs(many[:, np.arange(15), np.arange(15)]).max() < 1e-12


@pytest.mark.parametrize("kernel", [sdgpu.Gaussian(0.4), sdgpu.Matern(1.5, 1.5)], ids=repr)
@pytest.mark.parametrize("d", [2, 3, 8])
def test_orthogonal_frequencies_are_better(kernel, d, rng):
    X = rng.standard_normal((12, d)) * math.sqrt(2 / d)
    sizes = []
    for orthogonal in (False, True):
        maps = [
            prepared(sdgpu.RandomFourier(8 * d, orthogonal), kernel, seed=seed, d=d)
            for seed in range(150)
        ]
        found = np.stack([phi.transform(X) @ phi.transform(X).T for phi in maps])
        assert np.abs((found - kernel(X)).mean(axis=0)).max() < 5 / math.sqrt(8 * d * 150)
        sizes.append(math.sqrt(np.mean((found - kernel(X)) ** 2)))
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.parametrize("size", [2, 10, 14])
def test_orthogonal_blocks(size):
    """Of three frequencies each, the last one cut off where it ends."""
    W = prepared(sdgpu.RandomFourier(size, orthogonal=True), sdgpu.Gaussian(0.5)).frequencies
    assert W.shape == (size // 2, 3)
    for start in range(0, size // 2, 3):
        gram = W[start : start + 3] @ W[start : start + 3].T
        assert_near(gram, np.diag(np.diag(gram)), rtol=1e-13)


def test_random_features_are_cosines_and_sines(X):
    phi = prepared(sdgpu.RandomFourier(20), 3.0 * sdgpu.Laplacian(0.5, [1.0, 0.1, 2.0]))
    angles = X @ phi.frequencies.T
    wanted = math.sqrt(3.0 * 2 / 20) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    assert_near(phi.transform(X), wanted, rtol=1e-11)
    assert phi.frequencies.shape == (10, 3)


def test_large_angles_keep_their_digits_in_float32(X):
    phi = prepared(sdgpu.RandomFourier(20), sdgpu.Gaussian(0.4))
    far = (X + 1e4).astype(np.float32)
    assert_near(phi.transform(far, "float32"), phi.transform(far.astype(float)), rtol=2e-6)


parts = st.one_of(
    st.builds(sdgpu.Linear, st.sampled_from([None, 0.5])),
    st.builds(sdgpu.Cosine, st.sampled_from([None, 2.0])),
    st.builds(
        sdgpu.Polynomial,
        degree=st.integers(1, 4),
        gamma=st.sampled_from([0.25, 1.0, 3.0]),
        coef0=st.sampled_from([0.0, 0.5, 2.0]),
        lengthscale=st.sampled_from([None, 1.5]),
    ),
)
kernels = st.recursive(
    parts,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, parts),
        st.builds(lambda scale, a: scale * a, st.sampled_from([0.0, 0.3, 7.0]), inner),
    ),
    max_leaves=3,
)


@given(kernel=kernels, d=st.integers(1, 5), seed=st.integers(0, 99))
def test_own_features_are_the_kernel(kernel, d, seed):
    size = own_size(kernel, d)
    if size > 20_000:
        with pytest.raises(ValueError, match=r"use sdgpu.Nystrom"):
            prepared(sdgpu.Explicit(), kernel, d=d)
        return
    X = np.random.default_rng(seed).standard_normal((6, d))
    X[2] = 0
    phi = prepared(sdgpu.Explicit(), kernel, d=d)
    rows = phi.transform(X)
    assert rows.shape == (6, size)
    assert (phi.size, phi.d) == (size, d)
    assert_near(rows @ rows.T, kernel(X), rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_lengthscales_of_each_feature(d, rng):
    X, scales = rng.standard_normal((7, d)), rng.uniform(0.5, 2.0, d).tolist()
    for kernel in (
        sdgpu.Linear(scales),
        sdgpu.Cosine(scales),
        sdgpu.Polynomial(3, 0.5, 1.0, scales),
    ):
        rows = prepared(sdgpu.Explicit(), kernel, d=d).transform(X)
        assert_near(rows @ rows.T, kernel(X), rtol=1e-13)
        with pytest.raises(ValueError, match="lengthscale has"):
            prepared(sdgpu.Explicit(), kernel, d=d + 1).transform(np.ones((2, d + 1)))


def test_the_number_of_own_features():
    for d in range(1, 6):
        for degree in range(1, 5):
            for coef0, wanted in (
                (1.0, math.comb(d + degree, degree)),
                (0.0, math.comb(d + degree - 1, degree)),
            ):
                kernel = sdgpu.Polynomial(degree, 1.0, coef0)
                assert own_size(kernel, d) == wanted
                assert own_size(2.0 * kernel + sdgpu.Linear(), d) == wanted + d
                assert own_size(kernel * sdgpu.Cosine(), d) == wanted * d
    for kernel in (sdgpu.Gaussian(), sdgpu.ArcCosine(), sdgpu.Linear() + sdgpu.Matern()):
        assert own_size(kernel, 2) is own_size(kernel * sdgpu.Linear(), 2) is None


def test_angles_of_tiny_and_huge_rows():
    X = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, -1.0]])
    for scale in (1e-200, 1.0, 1e200):
        rows = prepared(sdgpu.Explicit(), sdgpu.Cosine(), d=2).transform(scale * X)
        assert_near(rows, np.array([[0.6, 0.8], [0, 0], [0.5**0.5, -(0.5**0.5)]]), rtol=1e-15)
