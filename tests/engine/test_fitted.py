"""fit, path, limit, alpha* and joint optimum against explicit refits, in every library and dtype."""

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import to_numpy
from tests.problems import (
    Problem,
    assert_near,
    brute_alpha_star,
    refits,
    schedules,
    validation_losses,
)

KERNEL = sdgpu.Gaussian(0.3)


def data(n=25, m=12, d=3, c=2, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, d)),
        rng.standard_normal((n, c)),
        rng.standard_normal((m, d)),
        rng.standard_normal((m, c)),
    )


def as_problem(X, Y, X_val, Y_val):
    return Problem(None, None, KERNEL(X), Y, KERNEL(X_val, X), Y_val)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(0, 6), st.integers(1, 3), schedules(), st.floats(0.01, 10.0))
def test_paths_are_refits(n, m, c, alphas, lam):
    X, Y, X_val, _ = data(n, m, 2, c, seed=n)
    steps = len(alphas) + 1
    path = sdgpu.fit(X, Y, KERNEL, lams=[lam]).path(alphas=alphas, steps=steps)
    fitted, dual = refits(KERNEL(X), Y, lam, alphas, steps)
    size = 1e-12 * np.prod(1 + np.abs(1 - alphas)) * (1 + n / lam)
    assert_allclose(path.fitted, fitted, atol=size)
    assert_allclose(path.dual, dual, atol=size / lam)
    assert path.predict(X_val).shape == (steps, m, c)
    assert_allclose(path.predict(X_val), KERNEL(X_val, X) @ dual, atol=size * n / lam)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, array_api_strict.asarray])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 3), schedules(max_steps=5), st.floats(0.05, 5.0))
def test_paths_are_refits_in_every_library(library, dtype, n, c, alphas, lam):
    X, Y, X_val, _ = (a.astype(dtype) for a in data(n, 4, 2, c, seed=n))
    steps = len(alphas) + 1
    path = sdgpu.fit(library(X), library(Y), KERNEL, lams=[lam]).path(alphas=alphas, steps=steps)
    fitted, dual = refits(KERNEL(X.astype(float)), Y.astype(float), lam, alphas, steps)
    wanted = KERNEL(X_val.astype(float), X.astype(float)) @ dual
    # the decomposition is float64 whatever the data: only the result is rounded
    size = (
        np.finfo(dtype).eps
        * max(1, np.abs(fitted).max())
        * n
        / lam
        * np.prod(1 + np.abs(1 - alphas))
    )
    assert_allclose(to_numpy(path.fitted), fitted, atol=4 * size)
    assert_allclose(to_numpy(path.predict(library(X_val))), wanted, atol=100 * size)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor, array_api_strict.asarray])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_in_arrays_out(library, dtype, backend):
    arrays = [a.astype(dtype) for a in data()]
    X, Y, X_val, Y_val = (library(a) for a in arrays)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.5, 2.0], device=backend)
    path = fitted.path(lam=0.5, alphas=0.3, steps=3)
    wide = [a.astype(float) for a in arrays]
    wanted, _ = refits(KERNEL(wide[0]), wide[1], 0.5, 0.3, 3)
    tolerance = {"float32": 2e-6, "float64": 1e-12}[dtype]
    for result in (
        path.fitted,
        path.dual,
        path.predict(X_val),
        fitted.limit(0.5, 0.3).predict(X_val),
    ):
        assert type(result) is type(X)
        assert str(result.dtype).endswith(dtype)
    assert_allclose(to_numpy(path.fitted), wanted, atol=tolerance)
    for exact in (fitted.spectrum.eigenvalues, fitted.diagonal(0.5, 0.3, 3)):
        assert type(exact) is type(X)
        assert str(exact.dtype).endswith("float64")
    chosen = fitted.optimal_alphas(X_val, Y_val, lam=0.5, steps=3)
    problem = as_problem(*wide)
    assert_allclose(chosen.alphas, brute_alpha_star(problem, 0.5, 3), rtol=1e-6, atol=1e-8)
    sweep = fitted.sweep(X_val, Y_val, alphas=[0.0, 0.5], steps=3)
    losses = validation_losses(problem, 2.0, 0.5, 3)
    assert_allclose(sweep.dataset["mse"].sel(lam=2.0, alpha=0.5), losses, rtol=1e-9)


def test_one_dimensional_targets_lose_the_axis():
    X, Y, X_val, Y_val = data(c=1)
    fitted = sdgpu.fit(X, Y[:, 0], KERNEL, lams=0.5)
    path = fitted.path(alphas=0.2, steps=4)
    assert path.fitted.shape == path.dual.shape == (4, 25)
    assert path.predict(X_val).shape == (4, 12)
    limit = fitted.limit(alpha=0.2)
    assert limit.fitted.shape == limit.dual.shape == (25,)
    assert limit.predict(X_val).shape == (12,)
    full = sdgpu.fit(X, Y, KERNEL, lams=0.5).path(alphas=0.2, steps=4)
    assert_near(path.fitted, full.fitted[..., 0])
    assert fitted.optimal_alphas(X_val, Y_val[:, 0], steps=3).alphas.shape == (2,)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0, 1.5])
def test_limits(alpha):
    X, Y, X_val, _ = data()
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5)
    limit = fitted.limit(alpha=alpha)
    last = fitted.path(alphas=alpha, steps=600)
    assert_allclose(limit.fitted, last.fitted[-1], atol=1e-10)
    assert_allclose(limit.predict(X_val), last.predict(X_val)[-1], atol=1e-9)
    assert limit.rate < 1
    if alpha:
        ridge = sdgpu.fit(X, Y, KERNEL, lams=0.5 / alpha).path(steps=1)
        assert_allclose(limit.dual, ridge.dual[0], atol=1e-12)
        assert limit.effective_lam == 0.5 / alpha
    else:
        assert np.isinf(limit.effective_lam)
        assert (limit.predict(X_val) == 0).all()


def test_weights_per_output():
    X, Y, X_val, Y_val = data(c=3)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5)
    chosen = fitted.optimal_alphas(X_val, Y_val, steps=4, per_output=True)
    assert chosen.alphas.shape == (3, 3)
    path = fitted.path(alphas=chosen.alphas, steps=4)
    for j in range(3):
        one = sdgpu.fit(X, Y[:, j], KERNEL, lams=0.5)
        single = one.optimal_alphas(X_val, Y_val[:, j], steps=4)
        assert_near(chosen.alphas[:, j], single.alphas, rtol=1e-8)
        assert_allclose(chosen.mse_per_output[:, j], single.mse, rtol=1e-9)
        assert_allclose(
            path.predict(X_val)[..., j],
            one.path(alphas=single.alphas, steps=4).predict(X_val),
            rtol=1e-8,
        )
    shared = fitted.optimal_alphas(X_val, Y_val, steps=2)
    assert chosen.mse[1] <= shared.mse[1] + 1e-12
    assert_allclose(np.mean((path.predict(X_val) - Y_val) ** 2, axis=(1, 2)), chosen.mse)


def test_joint_optimum_on_validation_data():
    X, Y, X_val, Y_val = data(m=40)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5)
    joint = fitted.joint_alphas(X_val, Y_val, steps=4)
    reached = fitted.path(alphas=joint.alphas, steps=4).predict(X_val)
    assert_allclose(np.mean((reached[-1] - Y_val) ** 2), joint.mse[-1], rtol=1e-8)
    assert joint.mse[-1] <= fitted.optimal_alphas(X_val, Y_val, steps=4).mse[-1]
    assert_allclose(joint.coefficients.sum(), 1)
    assert joint.condition >= 1
    assert joint.status


def test_diagonal_is_lemma_4_2():
    X, Y, *_ = data()
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5)
    B = fitted.diagonal(alphas=0.3, steps=3)
    V, delta = fitted.spectrum.basis, fitted.spectrum.eigenvalues
    assert_near(V @ (B[2][:, None] * (V.T @ Y)), fitted.path(alphas=0.3, steps=3).fitted[2])
    assert (np.diff(delta) >= 0).all()
    assert_allclose(V @ fitted.spectrum.Z, Y, atol=1e-12)


@pytest.mark.parametrize(
    "X",
    [
        np.ones((1, 1)),  # n = 1
        np.ones((6, 2)),  # every row the same: rank 1
        np.repeat(np.arange(3.0), 2)[:, None],  # duplicates
        np.column_stack([np.arange(6.0), np.ones(6)]),  # a constant feature
        np.arange(6)[:, None],  # integers
        np.asfortranarray(np.arange(12.0).reshape(6, 2)),
        np.arange(24.0).reshape(12, 2)[::-2],
    ],
    ids=["one row", "rank 1", "duplicates", "constant", "integers", "Fortran", "strided"],
)
@pytest.mark.parametrize("kernel", [sdgpu.Gaussian(0.5), sdgpu.Linear(), sdgpu.Matern(0.5)])
def test_awkward_data(X, kernel):
    X.flags.writeable = False
    y = np.sin(np.arange(len(X)))
    before = X.copy()
    path = sdgpu.fit(X, y, kernel, lams=0.1).path(alphas=0.4, steps=4)
    fitted, dual = refits(kernel(X.astype(float)), y[:, None], 0.1, 0.4, 4)
    assert_allclose(path.fitted, fitted[..., 0], atol=1e-10)
    assert_allclose(path.dual, dual[..., 0], atol=1e-9)
    assert path.predict(X[:0]).shape == (4, 0)
    assert (before == X).all()


def test_a_fit_does_not_follow_changes_of_the_data():
    X, Y, X_val, _ = data()
    fitted = sdgpu.fit(X, Y, sdgpu.Linear(), lams=0.5)
    before = fitted.path(steps=2).predict(X_val)
    X[:] = 0
    Y[:] = 0
    assert_near(fitted.path(steps=2).predict(X_val), before)


def test_precomputed_is_the_kernel():
    X, Y, X_val, Y_val = data()
    K, K_val = KERNEL(X), KERNEL(X_val, X)
    given_K = sdgpu.fit(K, Y, "precomputed", lams=[0.5])
    by_kernel = sdgpu.fit(X, Y, KERNEL, lams=[0.5])
    assert_near(given_K.path(steps=3).predict(K_val), by_kernel.path(steps=3).predict(X_val))
    sweeps = given_K.sweep(K_val, Y_val, steps=3), by_kernel.sweep(X_val, Y_val, steps=3)
    assert_allclose(sweeps[0].dataset["mse"], sweeps[1].dataset["mse"], rtol=1e-9)
    assert K.shape == (25, 25)
    assert_near(K, KERNEL(X))  # not overwritten


def test_info_tells_how_good_it_is():
    X, Y, *_ = data()
    info = sdgpu.fit(X, Y, KERNEL, lams=[1e-3, 1.0]).info
    assert (info.method, info.operator, info.n, info.d, info.c, info.k) == (
        "eigh",
        "dense",
        25,
        3,
        2,
        25,
    )
    assert info.error_estimate < 1e-10
    assert "exact" in info.status
    assert info.bytes > 3 * 8 * 25**2


def test_a_hopeless_lam_is_reported():
    X = np.linspace(0, 1, 200)[:, None]
    with pytest.warns(UserWarning, match="lam is too small for float64: raise it"):
        info = sdgpu.fit(X, np.sin(9 * X[:, 0]), sdgpu.Gaussian(0.1), lams=1e-300).info
    assert "raise it" in info.status
    assert info.error_estimate > 1e-6


def test_zero_targets():
    X, _, X_val, Y_val = data(c=1)
    fitted = sdgpu.fit(X, np.zeros(25), KERNEL, lams=0.5)
    assert (fitted.path(steps=3).predict(X_val) == 0).all()
    assert (fitted.optimal_alphas(X_val, Y_val[:, 0], steps=3).alphas == 1).all()


def test_progress_hears_of_every_stage():
    X, Y, X_val, Y_val = data()
    heard = []
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5, progress=heard.append)
    fitted.sweep(X_val, Y_val, steps=2)
    assert {event[0] for event in heard} == {"gram", "eigh", "sweep", "validation"}


def test_rows_far_from_their_centre_keep_their_distances():
    """Two clusters a million widths apart: an expanded distance has no digit left inside them."""
    X, Y, *_ = data(n=20, d=6)
    X[10:] += 1e6
    near = np.exp(-0.3 * ((X[:10, None] - X[None, :10]) ** 2).sum(axis=-1))
    K = KERNEL(X)
    assert_allclose(K[:10, :10], near, atol=1e-9)
    assert (K.diagonal() == 1).all()
    fitted, _ = refits(np.kron(np.eye(2), near), np.vstack([Y[:10], Y[:10]]), 0.1, 0.0, 2)
    path = sdgpu.fit(X, np.vstack([Y[:10], Y[:10]]), KERNEL, lams=0.1).path(steps=2)
    assert_allclose(path.fitted[:, :10], fitted[:, :10], atol=1e-8)
    assert_allclose(path.predict(X), path.fitted, atol=1e-8)


@pytest.mark.parametrize(
    ("X", "kernel"),
    [(1e200, "rbf"), (1e60, sdgpu.Polynomial(3)), (1.0, sdgpu.Gaussian(1.0, 1e-200))],
)
def test_a_kernel_that_overflows_is_an_error(X, kernel):
    rows, Y, *_ = data(n=20, d=6)
    with pytest.raises(ValueError, match=r"overflows on data with .X. up to"):
        sdgpu.fit(X * rows, Y, kernel, lams=1.0)


def test_angles_do_not_depend_on_the_scale():
    X, *_ = data(n=10, d=6)
    for scale in (1e-200, 1e200):
        assert_allclose(sdgpu.Cosine()(scale * X), sdgpu.Cosine()(X), atol=1e-14)


def test_the_collapse_exists_for_tiny_lam():
    X, Y, X_val, _ = data()
    with pytest.warns(UserWarning, match="too small"):
        fitted = sdgpu.fit(1e5 * X, Y, sdgpu.Linear(), lams=1e-6)
    assert (fitted.limit(alpha=0.0).predict(X_val) == 0).all()


def test_results_are_not_the_insides_of_a_fit():
    X, Y, X_val, _ = data()
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.5)
    before = fitted.path(steps=2).predict(X_val)
    path = fitted.path(steps=2)
    path.dual[:] = 0
    path.fitted[:] = 0
    fitted.spectrum.eigenvalues[:] = 0
    fitted.spectrum.Z[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        fitted.spectrum.basis[:] = 0
    assert_near(path.predict(X_val), before)
    assert_near(fitted.path(steps=2).predict(X_val), before)


def test_float32_rounding_of_a_given_kernel_passes():
    X, Y, *_ = (a.astype(np.float32) for a in data())
    squares = (X**2).sum(axis=1)
    K = np.exp(-0.05 * (squares[:, None] - 2 * (X @ X.T) + squares[None]))
    K[0, 1] += 1e-7
    assert sdgpu.fit(K, Y, "precomputed", lams=0.5).path(steps=2).fitted.dtype == np.float32
    with pytest.raises(ValueError, match="not symmetric"):
        sdgpu.fit(K.astype(np.float64), Y.astype(np.float64), "precomputed", lams=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_cuda_gives_what_the_cpu_gives(library):
    X, Y, X_val, Y_val = (library(a) for a in data(n=300))
    cpu, gpu = (sdgpu.fit(X, Y, KERNEL, lams=0.5, device=device) for device in ("cpu", "cuda"))
    assert "cuda" in gpu.info.backend
    ours, theirs = gpu.path(alphas=0.3, steps=4), cpu.path(alphas=0.3, steps=4)
    assert type(ours.fitted) is type(X)
    assert_allclose(np.asarray(ours.fitted), np.asarray(theirs.fitted), atol=1e-10)
    left, right = (one.sweep(X_val, Y_val).dataset["mse"] for one in (gpu, cpu))
    assert_near(left, right, rtol=1e-8)


@pytest.mark.gpu
def test_cuda_tensors_stay_on_cuda():
    X, Y, X_val, _ = (torch.tensor(a, device="cuda") for a in data(n=100))
    path = sdgpu.fit(X, Y, KERNEL, lams=0.5).path(steps=3)
    assert path.predict(X_val).device == X.device


def test_a_grid_in_float32_serves_the_numbers_it_was_rounded_from():
    X, Y, *_ = data()
    lams = np.array([1e-3, 0.1, 0.7, 1.0], dtype=np.float32)  # some are rounded up, some down
    fitted = sdgpu.fit(X, Y, KERNEL, lams=lams)
    for lam in (0.001, lams[0], float(lams[0])):
        assert_near(fitted.path(lam).fitted, fitted.path(0.001).fitted, rtol=1e-6)
    assert sdgpu.fit(X, Y, KERNEL, lams=0.7).path(np.float32(0.7)).lam == float(np.float32(0.7))
    with pytest.raises(
        ValueError, match=r"lam=0.00099 is below the smallest fitted one, 0.00100000005"
    ):
        fitted.path(0.00099)
