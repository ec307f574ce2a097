"""The spectrum from the kernel's own features: every answer is that of all eigenvalues of K."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import NumpyBackend, to_numpy
from sdgpu.backend.progress import Stopwatch
from sdgpu.operators import DenseOperator
from sdgpu.solvers.primal import Primal
from sdgpu.solvers.spectrum import with_null_part
from tests.problems import assert_near

KERNELS = [
    sdgpu.Linear(),
    sdgpu.Linear([0.5, 1.0, 2.0]),
    sdgpu.Polynomial(2, 0.3, 1.0),
    sdgpu.Polynomial(3, 0.5, 0.0),
    sdgpu.Cosine(),
    0.25 * sdgpu.Cosine() + sdgpu.Linear(),
    sdgpu.Linear() * sdgpu.Cosine(),
]
N, D = 60, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((N, D))
    Y = np.stack([np.sin(X[:, 0]), X @ [1.0, 2.0, 3.0], np.sin(X[:, 0])], axis=1)
    return X, Y  # within the features, without, and a repetition


def decompose(backend, kernel, X, Y):
    operator = DenseOperator(kernel, backend.asarray(X))
    watch = Stopwatch(backend.synchronize)
    return Primal(backend).decompose(operator, backend.asarray(Y), watch)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_it_is_the_spectrum_of_the_matrix(backend, kernel, data):
    X, Y = data
    spectrum = decompose(backend, kernel, X, Y)
    delta, V, Z = (to_numpy(x) for x in (spectrum.eigenvalues, spectrum.basis, spectrum.Z))
    K = kernel(X)
    assert (np.diff(delta) >= 0).all()
    assert_near((V * delta) @ V.T, K, rtol=1e-12)
    assert_allclose(V.T @ V, np.eye(V.shape[1]), rtol=0, atol=1e-12)
    assert_near(V @ Z, Y, rtol=1e-12)
    assert spectrum.holds_kernel
    nullity = int((delta == 0).sum())
    assert spectrum.below_rounding == nullity
    # not more than the outputs that are apart of each other and of the features
    assert nullity <= 2
    assert len(delta) - nullity == np.linalg.matrix_rank(K)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_every_answer_is_that_of_all_eigenvalues(kernel, data):
    X, Y = data
    X_val, Y_val = X[:9] + 0.1, Y[:9]
    lams = [1e-3, 2.0]
    primal, eigh = (sdgpu.fit(X, Y, kernel, lams, method=m) for m in ("primal", "eigh"))
    assert primal.info.method == "primal"
    assert primal.info.status.startswith("exact")
    for lam in lams:
        for answer in (
            lambda fit, lam=lam: fit.path(lam, alphas=[0.3, -0.2], steps=3).dual,
            lambda fit, lam=lam: fit.path(lam, alphas=0.3, steps=3).fitted,
            lambda fit, lam=lam: fit.path(lam, alphas=0.3, steps=3).predict(X_val),
            lambda fit, lam=lam: fit.limit(lam, 0.4).dual,
            lambda fit, lam=lam: fit.loo(lam, 0.3, 3),
            lambda fit, lam=lam: fit.with_targets(Y[:, :2] ** 2).path(lam, 0.3, 3).dual,
            lambda fit, lam=lam: fit.optimal_alphas(X_val, Y_val, lam, 3).mse,
        ):
            assert_near(answer(primal), answer(eigh), rtol=1e-7)
    posterior = [fit.path(2.0, 0.3, 3).variance(X_val).posterior for fit in (primal, eigh)]
    assert_near(*posterior, rtol=1e-7)
    for name in ("mse", "train_mse", "gcv", "degrees_of_freedom", "limit_mse"):
        for rows in ((X_val, Y_val), ()):
            values = [fit.sweep(*rows, steps=3).dataset[name].values for fit in (primal, eigh)]
            assert_near(*values, rtol=1e-6)


def test_small_eigenvalues_keep_their_digits():
    """Features of sizes 1 and 1e-7: eigenvalues 14 digits apart, of which those of K know one."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((200, 2)) * [1.0, 1e-7]
    spectrum = decompose(NumpyBackend(), sdgpu.Linear(), X, X[:, 1:] * 1e7)
    squares = np.linalg.svd(X, compute_uv=False) ** 2
    assert_allclose(spectrum.eigenvalues[spectrum.eigenvalues > 0], squares[::-1], rtol=1e-7)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_features_that_are_combinations_of_others(backend, rank):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 5))
    y = rng.standard_normal((40, 1))
    spectrum = decompose(backend, sdgpu.Linear(), X, y)
    assert int(to_numpy(spectrum.eigenvalues > 0).sum()) == rank
    basis = to_numpy(spectrum.basis)
    assert_allclose(basis.T @ basis, np.eye(rank + 1), rtol=0, atol=1e-12)
    assert_near(basis @ to_numpy(spectrum.Z), y, rtol=1e-12)


def test_targets_of_zero_and_targets_that_the_basis_holds():
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 3)))[0]
    delta = np.array([1.0, 2.0, 3.0])
    for Y in (np.zeros((8, 2)), basis[:, :2] @ np.ones((2, 2))):
        spectrum = with_null_part(delta, basis, Y)
        assert spectrum.basis.shape == (8, 3)
    full = with_null_part(np.arange(1.0, 9), np.eye(8), np.ones((8, 2)))
    assert full.basis.shape == (8, 8)


def test_auto_takes_it_where_rows_are_many():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((600, 4))
    assert sdgpu.fit(X, X[:, 0], sdgpu.Linear(), [1.0]).info.method == "primal"
    assert sdgpu.fit(X, X[:, 0], sdgpu.Gaussian(1.0), [1.0], tol=1e-3).info.method != "primal"
    assert sdgpu.fit(X[:400], X[:400, 0], sdgpu.Linear(), [1.0]).info.method == "eigh"
    wide = rng.standard_normal((600, 300))
    assert sdgpu.fit(wide, X[:, 0], sdgpu.Linear(), [1.0]).info.method != "primal"
    plan = sdgpu.plan(200_000, 20, lams=[1.0], kernel="linear", device="cpu")
    assert plan.method == "primal"
    assert plan.seconds < 2


def test_where_it_is_no_way_to_fit():
    X = np.random.default_rng(1).standard_normal((30, 4))
    for kernel, word in ((sdgpu.Gaussian(1.0), "no finite number"), (sdgpu.Polynomial(4), "70")):
        with pytest.raises(
            ValueError, match=f"method='primal' is for kernels .* has {word} of them"
        ):
            sdgpu.fit(X, X[:, 0], kernel, [1.0], method="primal")
    with pytest.raises(ValueError, match="operator='tiled' has no matrix for method='primal'"):
        sdgpu.fit(X, X[:, 0], sdgpu.Linear(), [1.0], method="primal", operator="tiled")
