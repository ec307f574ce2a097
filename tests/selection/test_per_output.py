"""One lam, alpha and step for each output: the choice of fits of single outputs, refitted at once."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu

KERNEL = sdgpu.Gaussian(0.5)
LAMS = np.geomspace(1e-3, 30, 9)
GRID = {"alphas": np.array([-0.3, 0.0, 0.5, 1.2]), "steps": 4}


@pytest.fixture
def data(rng):
    """Outputs of different smoothness and noise, which want different lam."""
    X, X_val = rng.standard_normal((50, 2)), rng.standard_normal((33, 2))
    noise = np.array([0.01, 0.5, 2.0])
    both = []
    for rows in (X, X_val):
        clean = np.stack([np.sin(3 * rows[:, 0]), rows[:, 1], 0.2 * rows[:, 0]], axis=1)
        both.append(clean + noise * rng.standard_normal((len(rows), 3)))
    return X, both[0], X_val, both[1]


def single(X, Y, j, **how):
    return sdgpu.fit(X, Y[:, j], KERNEL, LAMS, **how)


@pytest.mark.parametrize("features", [None, sdgpu.Nystrom(12)], ids=["exact", "features"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("over", ["fixed", "ridge", "mae", "r2"])
def test_the_choice_is_that_of_every_output_alone(data, rng, over, left_out, weighted, features):
    X, Y, X_val, Y_val = data
    w, w_val = (rng.uniform(0.5, 2, n) if weighted else None for n in (50, 33))
    how = {"sample_weight": w, "intercept": True, "features": features}
    rows = () if left_out else (X_val, Y_val)
    options = {**GRID, "metrics": ["mae", "r2"]}
    if not left_out:
        options["sample_weight"] = w_val
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS, **how)
    sweep = fitted.sweep(*rows, **options, per_output=True)
    best = sweep.best(over, per_output=True)
    predicted = fitted.predictor(best).predict(X_val)
    assert len(np.unique(best.lam)) > 1
    for j in range(3):
        alone = single(X, Y, j, **how)
        own = alone.sweep(*(rows and (X_val, Y_val[:, j])), **options)
        wanted = own.best(over)
        assert (best.lam[j], best.step[j]) == (wanted.lam, wanted.step)
        np.testing.assert_equal(best.alpha[j], wanted.alpha)
        assert_allclose([best.mse[j], best.value[j]], [wanted.mse, wanted.value], rtol=1e-7)
        weights = 0.0 if wanted.step == 1 else wanted.alpha
        path = alone.path(wanted.lam, weights, wanted.step)
        assert_allclose(predicted[:, j], path.predict(X_val)[-1], rtol=1e-7, atol=1e-9)
        assert_allclose(alone.predictor(wanted).predict(X_val), path.predict(X_val)[-1], rtol=1e-9)
        name = "mse" if over == "ridge" else over
        name = "mse" if name == "fixed" else name
        found = sweep.dataset[f"{name}_per_output"][..., j]
        assert_allclose(found, own.dataset[name], rtol=1e-6, atol=1e-10)


def test_what_is_shared_stays_as_it_is(data):
    X, Y, X_val, Y_val = data
    for method in ("eigh", "lanczos"):
        fitted = sdgpu.fit(X, Y, KERNEL, LAMS, method=method, probes=32)
        for rows in ((X_val, Y_val), ()):
            one, both = (fitted.sweep(*rows, **GRID, per_output=p) for p in (False, True))
            for name, variable in one.dataset.items():
                if name != "joint_alpha":  # not unique where weights hardly matter
                    assert_allclose(
                        both.dataset[name], variable, rtol=1e-6, atol=1e-9, err_msg=name
                    )
            mean = both.dataset["mse_per_output"].mean(axis=-1)
            assert_allclose(mean, one.dataset["mse"], rtol=1e-8)


def test_one_output_files_and_libraries(data, tmp_path):
    X, Y, X_val, Y_val = data
    fitted = single(X, Y, 0)
    sweep = fitted.sweep(X_val, Y_val[:, 0], **GRID, metrics=["mae"], per_output=True)
    best, shared = sweep.best("mae", per_output=True), sweep.best("mae")
    assert (best.lam[0], best.alpha[0], best.step[0]) == (shared.lam, shared.alpha, shared.step)
    assert fitted.predictor(best).predict(X_val).shape == (33,)
    sweep.save(tmp_path / "own.nc")
    again = sdgpu.open_sweep(tmp_path / "own.nc").best("mae", per_output=True)
    assert again == best
    assert hash(again) == hash(best)
    assert again != shared
    tensors = [torch.tensor(a) for a in data]
    on_torch = sdgpu.fit(*tensors[:2], KERNEL, LAMS)
    found = on_torch.sweep(*tensors[2:], **GRID, per_output=True).best(per_output=True)
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS)
    best = fitted.sweep(X_val, Y_val, **GRID, per_output=True).best(per_output=True)
    np.testing.assert_array_equal(found.lam, best.lam)
    predicted = on_torch.predictor(found).predict(tensors[2])
    assert isinstance(predicted, torch.Tensor)
    assert_allclose(predicted, fitted.predictor(best).predict(X_val), rtol=1e-7, atol=1e-9)


def test_limits_and_chains_have_predictors_too(data):
    X, Y, X_val, Y_val = data
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS)
    sweep = fitted.sweep(X_val, Y_val, alphas=[0.3, 0.9], steps=3)
    limit = sweep.best("limit")
    wanted = fitted.limit(limit.lam, limit.alpha).predict(X_val)
    assert_allclose(fitted.predictor(limit).predict(X_val), wanted, rtol=1e-10)
    star = sweep.best("star")
    wanted = fitted.path(star.lam, star.alpha if star.step > 1 else 0.0, star.step).predict(X_val)
    assert_allclose(fitted.predictor(star).predict(X_val), wanted[-1], rtol=1e-10)


def test_what_has_no_choice_of_each_output(data):
    X, Y, X_val, Y_val = data
    fitted = sdgpu.fit(X, Y, KERNEL, LAMS)
    plain = fitted.sweep(X_val, Y_val, **GRID)
    with pytest.raises(
        ValueError, match=r"no mse of each output: fit.sweep\(.., per_output=True\)"
    ):
        plain.best(per_output=True)
    sweep = fitted.sweep(X_val, Y_val, **GRID, per_output=True, standard_errors=True)
    with pytest.raises(ValueError, match="no star_mse of each output"):
        sweep.best("star", per_output=True)
    with pytest.raises(ValueError, match="one_standard_error is of all outputs together"):
        sweep.best(per_output=True, one_standard_error=True)
    with pytest.raises(ValueError, match="best is of 3 outputs, the fit has 1"):
        single(X, Y, 0).predictor(sweep.best(per_output=True))
    one_hot = np.eye(3)[np.arange(33) % 3]
    with pytest.raises(ValueError, match="'accuracy' is of all outputs together"):
        fitted.sweep(X_val, one_hot, metrics=["accuracy"], per_output=True)
    small = sdgpu.fit(X, np.tile(Y, 300), KERNEL, LAMS, memory="30MB")
    with pytest.raises(MemoryError, match="grid of"):
        small.sweep(X_val, np.tile(Y_val, 300), per_output=True)
