"""Leave-one-out and GCV from bases that have not seen all eigenvalues, against all eigenvalues."""

import numpy as np
import pytest
import torch

import sdgpu

KERNEL = sdgpu.Gaussian(0.4)
LAMS = np.array([0.5, 5.0, 50.0])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((500, 2))
    return X, np.sin(2 * X[:, 0]) + 0.3 * rng.standard_normal(500)


@pytest.fixture(scope="module")
def exact(data):
    return sdgpu.fit(*data, KERNEL, lams=LAMS, method="eigh")


@pytest.fixture(scope="module", params=["lanczos", "subspace", "cg"])
def grown(request, data):
    return sdgpu.fit(*data, KERNEL, lams=LAMS, method=request.param, tol=1e-6, probes=32)


def test_traces_are_right_to_their_error(exact, grown):
    wanted, found = (
        fit.gcv_sweep(steps=4, alphas=[-0.2, 0.0, 0.5]).dataset for fit in (exact, grown)
    )
    for name in ("degrees_of_freedom", "gcv"):
        assert (wanted[f"{name}_error"] == 0).all()
        error = np.abs(found[name] - wanted[name])
        assert (error <= 4 * found[f"{name}_error"] + 1e-3 * np.abs(wanted[name])).all()
        assert (found[f"{name}_error"] < 0.03 * np.abs(wanted[name])).all()


def test_leave_one_out_is_right_to_its_error(exact, grown):
    wanted, found = (fit.sweep(steps=4, alphas=[0.0, 0.5]).dataset for fit in (exact, grown))
    error = np.abs(found["mse"] - wanted["mse"])
    assert (wanted["mse_error"] == 0).all()
    assert (error <= 4 * found["mse_error"] + 2e-3 * wanted["mse"]).all()
    assert (found["mse_error"] < 0.05 * wanted["mse"]).all()
    np.testing.assert_allclose(found["limit_mse"], wanted["limit_mse"], rtol=0.01)


def test_what_an_estimate_chooses_is_nearly_the_best(exact, grown):
    alphas = np.linspace(-0.5, 1.0, 16)
    wanted = exact.sweep(alphas=alphas, steps=4)
    best = grown.sweep(alphas=alphas, steps=4).best()
    point = {"lam": best.lam, "alpha": best.alpha if best.step > 1 else 0.0, "step": best.step}
    there = float(wanted.dataset["mse"].sel(**point, method="nearest"))
    assert there < 1.01 * wanted.best().mse


def test_rows_left_out_and_their_spread(exact, grown):
    wanted, nothing = exact.loo(5.0, 0.3, 3, return_std=True)
    found, std = grown.loo(5.0, 0.3, 3, return_std=True)
    assert nothing.max() == 0
    assert found.shape == std.shape == (3, 500)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 3 * np.sqrt(np.mean(std**2)) + 1e-3
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.05


@pytest.mark.parametrize("per_output", [False, True])
def test_one_shot_weights(data, per_output):
    X, y = data
    Y = np.stack([y, y**2], axis=1)
    wanted = sdgpu.fit(X, Y, KERNEL, lams=LAMS, method="eigh").gcv(per_output=per_output)
    found = sdgpu.fit(X, Y, KERNEL, lams=LAMS, method="lanczos").gcv(per_output=per_output)
    assert (wanted.alpha_error == 0).all()
    assert found.alpha.shape == wanted.alpha.shape == found.alpha_error.shape
    assert (np.abs(found.alpha - wanted.alpha) <= 5 * found.alpha_error + 0.02).all()
    assert (np.abs(found.score - wanted.score) <= 5 * found.score_error + 2e-3 * wanted.score).all()


def test_seeds_repeat_and_libraries_agree(data):
    X, y = (torch.tensor(a) for a in data)
    first, again = (sdgpu.fit(X, y, KERNEL, lams=5.0, method="lanczos", seed=4) for _ in range(2))
    a, b = (fit.loo(5.0, 0.3, 2) for fit in (first, again))
    assert isinstance(a, torch.Tensor)
    assert torch.equal(a, b)


def test_probes_come_in_groups(data):
    with pytest.raises(ValueError, match="probes=12 must be a multiple of 8"):
        sdgpu.fit(*data, KERNEL, probes=12)


def test_a_sweep_of_gcv_alone(exact, tmp_path):
    sweep = exact.gcv_sweep(steps=3)
    whole = exact.sweep(steps=3)
    best, other = sweep.best("gcv"), whole.best("gcv")
    assert (best.lam, best.step, best.value) == (other.lam, other.step, other.value)
    with pytest.raises(ValueError, match="over='gcv'"):
        sweep.best()
    sweep.save(tmp_path / "own.nc")
    assert sdgpu.open_sweep(tmp_path / "own.nc").best("gcv").value == best.value


@pytest.mark.parametrize("method", ["lanczos", "subspace", "cg"])
def test_rows_that_nearly_determine_themselves(method):
    """1 - H_ii of 0.01 is below what 16 probes can see: the rows that matter are computed by themselves."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((600, 3))
    Y = X[:, 0] + rng.standard_normal(600)
    Y[7] = 40.0  # one row that is most of the loss
    lams = np.array([0.02, 0.3, 3.0])
    wanted, found = (
        sdgpu.fit(X, Y, KERNEL, lams=lams, method=name).sweep(alphas=[0.0, 0.5], steps=4).dataset
        for name in ("eigh", method)
    )
    error = np.abs(found["mse"] - wanted["mse"]) / wanted["mse"]
    assert (error <= 4 * found["mse_error"] / wanted["mse"] + 1e-3).all()
    assert float(error.max()) < 0.05
    assert float(error.sel(lam=[0.3, 3.0]).max()) < 0.005


def test_memory_is_checked_before_probes_are_made(data):
    fitted = sdgpu.fit(*data, KERNEL, lams=LAMS, method="lanczos", memory="20MiB", probes=1024)
    for ask in (fitted.gcv_sweep, fitted.gcv, fitted.sweep):
        with pytest.raises(MemoryError, match="may be used"):
            ask()


def test_more_steps_than_the_fit_was_made_for(data, exact):
    fitted = sdgpu.fit(*data, KERNEL, lams=LAMS, method="subspace", steps=2, probes=32)
    for ask, name in (("gcv_sweep", "gcv"), ("sweep", "mse")):
        wanted, found = (
            getattr(fit, ask)(alphas=[0.5], steps=6).dataset for fit in (exact, fitted)
        )
        error = np.abs(found[name] - wanted[name])
        assert (error <= 4 * found[f"{name}_error"] + 2e-3 * wanted[name]).all()
