"""Plans keep to the memory and to what was asked, and fits follow them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.backends import NumpyBackend
from sdgpu.engine.planner import calibrate
from sdgpu.operators import keops
from tests.problems import refits

KERNEL = sdgpu.Gaussian(0.3)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    X, X_val = rng.standard_normal((400, 3)), rng.standard_normal((60, 3))
    Y, Y_val = (np.sin(x[:, :2]) + 0.1 * rng.standard_normal((len(x), 2)) for x in (X, X_val))
    return X, Y, X_val, Y_val


@pytest.mark.parametrize("n", [1, 10, 500, 5_000, 100_000])
@pytest.mark.parametrize("memory", ["200MB", "8GB", "200GB"])
def test_plans_keep_to_the_memory(n, memory):
    try:
        plan = sdgpu.plan(
            n=n, d=10, c=2, lams=np.array([1e-4, 1.0]) * n, memory=memory, device="cpu"
        )
    except MemoryError:
        assert (n, memory) == (100_000, "200MB")
        return
    assert plan.bytes <= sdgpu.backend.memory.parse_bytes(memory)
    assert plan.seconds > 0
    assert plan.reasons


def test_small_problems_are_exact():
    for n in (1, 100, 500):
        assert sdgpu.plan(n=n, d=5, lams=0.1, device="cpu").method == "eigh"


def test_a_basis_that_would_take_longer_gives_way(rng, monkeypatch):
    """A kernel whose spectrum does not fall: the guess of few passes is wrong, and is given up."""
    X, y = rng.standard_normal((1500, 3)), rng.standard_normal(1500)
    plan = sdgpu.plan(n=1500, d=3, lams=1e-3, tol=1e-9, device="cpu")
    assert plan.patience < np.inf or plan.method == "eigh"
    assert sdgpu.plan(n=1500, d=3, lams=1e-3, method="lanczos", device="cpu").patience == np.inf
    hasty = replace(plan, method="lanczos", block=8, rank=0, patience=1e-3)
    heard = []
    fitted = sdgpu.fit(X, y, sdgpu.Matern(0.5), lams=1e-3, plan=hasty, progress=heard.append)
    assert fitted.info.method == "eigh"
    assert fitted.info.status.startswith("exact")
    assert any("eigh instead" in event.stage for event in heard)


def test_large_problems_need_no_matrix():
    plan = sdgpu.plan(n=200_000, d=10, lams=20.0, memory="8GB", device="cpu")
    assert plan.operator == "tiled"
    assert plan.method in ("lanczos", "subspace")


def test_what_is_asked_is_kept():
    plan = sdgpu.plan(
        n=300, d=3, lams=1.0, method="subspace", operator="tiled", precision="float32"
    )
    assert (plan.method, plan.operator, plan.precision) == ("subspace", "tiled", "float32")
    assert "method as asked" in plan.reasons


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n": 0}, ValueError, "n=0"),
        ({"d": 1.5}, TypeError, "d=1.5"),
        ({"tol": 0.0}, ValueError, "tol=0.0"),
        ({"method": "krylov"}, ValueError, "method='krylov'"),
        ({"operator": "tile"}, ValueError, "did you mean 'tiled'"),
        ({"precision": "half"}, ValueError, "dtype='half'"),
        ({"method": "eigh", "operator": "tiled"}, ValueError, "has no matrix for method='eigh'"),
        ({"given": True, "operator": "tiled"}, ValueError, "cannot hold a precomputed kernel"),
        ({"memory": "10kB"}, MemoryError, "at most about"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        sdgpu.plan(**({"n": 100, "d": 3, "device": "cpu"} | change))


def test_calibration_is_remembered():
    rates = calibrate(NumpyBackend())
    assert rates is calibrate(NumpyBackend())
    assert min(rates.products, rates.powers, rates.bandwidth) > 0


@pytest.mark.parametrize("method", ["eigh", "lanczos", "subspace", "cg"])
@pytest.mark.parametrize("operator", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_every_route_gives_the_refits(arrays, method, operator, library):
    if method == "eigh" and operator == "tiled":
        pytest.skip("an eigendecomposition needs the matrix")
    X, Y, X_val, Y_val = (library(a) for a in arrays)
    fitted = sdgpu.fit(
        X, Y, KERNEL, lams=[0.04, 4.0], method=method, operator=operator, tol=1e-9, device="cpu"
    )
    assert fitted.info.method == method
    assert fitted.info.error_estimate <= 1e-9
    assert fitted.info.residual < 1e-6
    path = fitted.path(0.04, [0.3, -0.2], 3)
    fits, dual = refits(KERNEL(arrays[0]), arrays[1], 0.04, [0.3, -0.2], 3)
    assert_allclose(np.asarray(path.fitted), fits, atol=1e-7)
    predicted = KERNEL(arrays[2], arrays[0]) @ dual
    assert_allclose(np.asarray(path.predict(X_val)), predicted, atol=1e-6)
    exact = sdgpu.fit(*arrays[:2], KERNEL, lams=[0.04, 4.0], method="eigh")
    left, right = fitted.sweep(X_val, Y_val, steps=4), exact.sweep(*arrays[2:], steps=4)
    for name in ("mse", "limit_mse", "star_mse", "train_mse"):
        assert_allclose(left.dataset[name], right.dataset[name], rtol=1e-6)
    known = fitted.info.k == fitted.info.n  # a basis may grow until it holds all eigenvalues
    assert np.isnan(left.dataset["degrees_of_freedom"]).all() == (not known)


@pytest.mark.filterwarnings("ignore")
def test_keops_when_asked(arrays):
    X, Y, X_val, _ = arrays
    plan = sdgpu.plan(n=400, d=3, c=2, lams=4.0, operator="keops", tol=1e-4, device="cpu")
    assert plan.operator == "keops"
    assert plan.precision == "float64"
    assert sdgpu.plan(n=50_000, d=3, lams=4.0, tol=1e-4, device="cpu").operator != "keops"
    if keops.why_not():
        pytest.skip(keops.why_not())
    fitted = sdgpu.fit(X, Y, KERNEL, lams=4.0, operator="keops", tol=1e-8)
    exact = sdgpu.fit(X, Y, KERNEL, lams=4.0, method="eigh")
    assert fitted.info.operator == "keops"
    left, right = (one.path(steps=3).predict(X_val) for one in (fitted, exact))
    assert_allclose(left, right, atol=1e-6)


def test_a_plan_can_be_passed(arrays):
    X, Y, *_ = arrays
    plan = sdgpu.plan(n=400, d=3, c=2, lams=0.4, method="lanczos", tol=1e-3)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=0.4, plan=plan)
    assert fitted.info.method == "lanczos"
    with pytest.raises(TypeError, match=r"must come from sdgpu.plan"):
        sdgpu.fit(X, Y, KERNEL, lams=0.4, plan="lanczos")


def test_missed_tolerances_warn(arrays):
    X, Y, *_ = arrays
    with pytest.warns(UserWarning, match="not converged|limited by"):
        fitted = sdgpu.fit(
            X,
            Y,
            sdgpu.Matern(0.5),
            lams=1e-6,
            method="lanczos",
            operator="tiled",
            dtype="float32",
            tol=1e-14,
        )
    assert fitted.info.error_estimate > 1e-14


def test_the_error_of_a_float32_evaluation_is_seen(arrays):
    """The solver is exact for the K it was given; the probe compares with float64."""
    X, Y, *_ = arrays
    with pytest.warns(UserWarning, match="float64"):
        fitted = sdgpu.fit(
            X, Y, KERNEL, lams=1e-4, method="lanczos", operator="tiled", dtype="float32", tol=1e-9
        )
    exact = sdgpu.fit(X, Y, KERNEL, lams=1e-4, method="eigh")
    left, right = (one.path(steps=1).fitted[0] for one in (fitted, exact))
    error = np.max(np.linalg.norm(left - right, axis=0) / np.linalg.norm(right, axis=0))
    assert error < fitted.info.error_estimate < 100 * error


def test_indefinite_kernels_are_refused_by_grown_bases():
    K = np.diag(np.r_[np.ones(50), -0.5 * np.ones(50)])
    with pytest.raises(ValueError, match="not positive semi-definite"):
        sdgpu.fit(K, np.ones(100), "precomputed", lams=1.0, method="lanczos")
