"""device=["cpu", "cpu"]: a thread for each, and an ordinary fit that comes back."""

import pickle

import numpy as np
import pytest

import sdgpu
from tests.problems import assert_near

KERNEL = sdgpu.Gaussian(0.5)


def problem(n, c, rng):
    X = rng.standard_normal((n, 3))
    return X, np.sin(X @ rng.standard_normal((3, c))) + 0.1 * rng.standard_normal((n, c))


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
@pytest.mark.parametrize(("n", "devices"), [(1, 2), (40, 1), (150, 2), (230, 3)])
@pytest.mark.filterwarnings("ignore:limited by rounding")
def test_the_same_as_one_device(n, devices, method, rng):
    X, Y = problem(n, 2, rng)
    new, Y_new = problem(9, 2, rng)
    how = {"lams": [0.01 * n, float(n)], "method": method, "tol": 1e-10, "dtype": "float64"}
    one, two = (sdgpu.fit(X, Y, KERNEL, device=d, **how) for d in ("cpu", ["cpu"] * devices))
    paths = [fitted.path(0.01 * n, [0.2, 0.7], 3) for fitted in (two, one)]
    for ask in (lambda p: p.fitted, lambda p: p.predict(new), lambda p: p.gradient(new)):
        assert_near(*map(ask, paths), 1e-8)
    sweeps = [fitted.sweep(new, Y_new, steps=3).dataset for fitted in (two, one)]
    for name in ("mse", "limit_mse", "train_mse"):
        np.testing.assert_allclose(sweeps[0][name], sweeps[1][name], rtol=1e-7, atol=1e-12)
    assert two.info.backend == f"numpy on cpu, {devices} devices"
    assert isinstance(two.spectrum.basis, np.ndarray)


def test_what_needs_all_rows_works_too(rng):
    """Leave-one-out and generalised cross-validation, by the probes of one device; folds by refits."""
    X, Y = problem(200, 1, rng)
    how = {"lams": [2.0], "method": "subspace", "tol": 1e-9, "dtype": "float64"}
    one, two = (sdgpu.fit(X, Y[:, 0], KERNEL, device=d, **how) for d in ("cpu", ["cpu", "cpu"]))
    assert_near(two.loo(2.0, 0.5, 3), one.loo(2.0, 0.5, 3), 1e-4)
    gcv = [fitted.gcv_sweep(steps=3).dataset["gcv"] for fitted in (two, one)]
    np.testing.assert_allclose(*gcv, rtol=1e-3)
    again = pickle.loads(pickle.dumps(two))
    np.testing.assert_array_equal(again.path(2.0).dual, two.path(2.0).dual)
    interval = two.path(2.0, 0.5, 2).interval(X[:3], folds=4)
    assert (interval.lower < interval.upper).all()


class CutError(Exception):
    """What ends a fit."""


@pytest.mark.parametrize("method", ["lanczos", "subspace"])
def test_a_checkpoint_goes_on_on_any_number_of_devices(method, tmp_path, monkeypatch, rng):
    monkeypatch.setattr("sdgpu.solvers.checkpoint.INTERVAL", 0.0)
    monkeypatch.setattr("sdgpu.solvers.checkpoint.SHARE", np.inf)
    X, Y = problem(300, 1, rng)
    how = {"lams": 3e-3, "method": method, "tol": 1e-8, "dtype": "float64"}
    how["checkpoint"] = tmp_path / "basis.safetensors"
    heard = []

    def progress(event):
        if event.stage == "passes" and event.total > 1:
            heard.append(event.done)
            if len(heard) == 4 and cut:
                raise CutError

    cut = True
    with pytest.raises(CutError):
        sdgpu.fit(X, Y, KERNEL, device=["cpu", "cpu"], progress=progress, **how)
    cut, heard = False, []
    found = sdgpu.fit(X, Y, KERNEL, device=["cpu"] * 3, progress=progress, **how)
    assert heard[0] >= 3
    del how["checkpoint"]
    alone = sdgpu.fit(X, Y, KERNEL, **how)
    assert_near(found.path(3e-3, 0.3, 3).fitted, alone.path(3e-3, 0.3, 3).fitted, 1e-7)
    how["checkpoint"] = tmp_path / "basis.safetensors"
    with pytest.raises(ValueError, match="belongs to a fit with other Y"):
        sdgpu.fit(X, Y + 1e-12, KERNEL, device=["cpu", "cpu"], **how)


def test_progress_is_heard_once(rng):
    X, Y = problem(60, 1, rng)
    heard = []
    for device in ("cpu", ["cpu", "cpu"]):
        events = []
        sdgpu.fit(X, Y, KERNEL, 1.0, method="lanczos", device=device, progress=events.append)
        heard.append([(event.stage, event.done) for event in events])
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": []}, "device=\\[\\] names no device"),
        ({"device": ["cpu", "gpu"]}, "device='gpu'"),
        ({"device": ["cpu", "cuda:99"]}, "cuda"),
        ({"method": "eigh"}, "method='eigh' is not for several devices"),
        ({"method": "cg"}, "method='cg' is not for several devices"),
        ({"features": sdgpu.Nystrom(3)}, "features: not for several devices"),
        ({"sample_weight": -np.ones(20)}, "sample_weight has -1 at row 0"),
        ({"distributed": True}, "distributed: not for several devices"),
        ({"checkpoint": "a.txt"}, "must end in .safetensors"),
        ({"lams": -1.0}, "lams"),
    ],
)
def test_bad_input(options, text, rng):
    X, Y = problem(20, 1, rng)
    with pytest.raises(ValueError, match=text):
        sdgpu.fit(X, Y, **{"kernel": KERNEL, "lams": 0.1, "device": ["cpu", "cpu"], **options})
    with pytest.raises(ValueError, match="X has 1 entries that are NaN"):
        sdgpu.fit(np.where(X[3, 1] == X, np.nan, X), Y, KERNEL, 0.1, device=["cpu", "cpu"])
