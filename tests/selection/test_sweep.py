"""The sweep against refits at every grid point, its limits, choices and files."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.backend.datafiles import write_dataset
from sdgpu.distill.diagnostics import degrees_of_freedom
from tests.engine.test_fitted import KERNEL, as_problem, data
from tests.problems import assert_near, brute_alpha_star, refits, validation_losses

LAMS = np.array([0.05, 0.5, 5.0])
ALPHAS = np.array([-0.5, 0.0, 0.3, 1.0, 1.6])


@pytest.fixture(scope="module")
def arrays():
    return data(n=30, m=20, c=2)


@pytest.fixture(scope="module")
def fitted(arrays):
    return sdgpu.fit(arrays[0], arrays[1], KERNEL, lams=LAMS)


@pytest.fixture(scope="module")
def sweep(arrays, fitted):
    return fitted.sweep(arrays[2], arrays[3], alphas=ALPHAS, steps=5)


def test_every_grid_point_is_a_refit(arrays, sweep):
    problem = as_problem(*arrays)
    for lam in LAMS:
        for alpha in ALPHAS:
            point = sweep.dataset.sel(lam=lam, alpha=alpha)
            assert_allclose(point["mse"], validation_losses(problem, lam, alpha, 5), rtol=1e-8)
            fits, _ = refits(problem.K, problem.Y, lam, alpha, 5)
            assert_allclose(
                point["train_mse"], np.mean((fits - problem.Y) ** 2, axis=(1, 2)), rtol=1e-8
            )


def test_degrees_of_freedom(fitted, sweep):
    for lam in LAMS:
        for alpha in ALPHAS:
            wanted = degrees_of_freedom(fitted.diagonal(lam, alpha, 5))
            assert_allclose(
                sweep.dataset["degrees_of_freedom"].sel(lam=lam, alpha=alpha), wanted, rtol=1e-9
            )


def test_chains(arrays, fitted, sweep):
    X_val, Y_val = arrays[2:]
    problem = as_problem(*arrays)
    for lam in LAMS:
        point = sweep.dataset.sel(lam=lam)
        assert_allclose(point["alpha_star"][1:], brute_alpha_star(problem, lam, 5), rtol=1e-4)
        clipped = fitted.optimal_alphas(X_val, Y_val, lam=lam, steps=5, clip=True)
        assert_near(point["alpha_clipped"][1:], clipped.alphas)
        assert_allclose(point["clipped_mse"], clipped.mse)
        joint = fitted.joint_alphas(X_val, Y_val, lam=lam, steps=5, folds=1)
        assert_allclose(point["joint_mse"], joint.mse)
        assert_near(point["joint_alpha"].sel(chain=5)[1:], joint.alphas)
    assert np.isnan(sweep.dataset["alpha_star"].sel(step=1)).all()
    assert_allclose(sweep.dataset["ridge_mse"], sweep.dataset["star_mse"].sel(step=1))


@pytest.mark.parametrize("count", [5, 400])
def test_limits_interpolated_or_not(arrays, fitted, count):
    """Few weights are evaluated one by one, many through Chebyshev nodes: both are exact."""
    X_val, Y_val = arrays[2:]
    alphas = np.linspace(0, 1.9, count)
    found = fitted.sweep(X_val, Y_val, alphas=alphas, steps=2).dataset["limit_mse"]
    for lam in LAMS:
        for alpha in alphas[:: max(1, count // 10)]:
            limit = fitted.limit(lam, alpha).predict(X_val)
            assert_allclose(
                found.sel(lam=lam, alpha=alpha), np.mean((limit - Y_val) ** 2), rtol=1e-10
            )


def test_limits_over_many_magnitudes(arrays):
    X, Y, X_val, Y_val = arrays
    lams, alphas = np.geomspace(1e-6, 1e6, 25), np.geomspace(1e-4, 1, 30)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=lams)
    found = fitted.sweep(X_val, Y_val, alphas=alphas, steps=2).dataset["limit_mse"].values
    wanted = [
        [np.mean((fitted.limit(lam, alpha).predict(X_val) - Y_val) ** 2) for alpha in alphas]
        for lam in lams
    ]
    assert_allclose(found, wanted, rtol=1e-9)


def test_limits_keep_their_digits_where_the_loss_is_tiny(arrays):
    """On the training rows the loss falls over many magnitudes: the error is relative to it."""
    X, Y, *_ = arrays
    lams, alphas = np.geomspace(1e-6, 10, 30), np.linspace(0, 1, 101)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=lams)
    found = fitted.sweep(X, Y, alphas=alphas, steps=2).dataset["limit_mse"]
    assert float(found.min()) < 1e-5 * float(found.max())
    for lam in lams[::5]:
        for alpha in alphas[1::20]:
            wanted = np.mean((fitted.limit(lam, alpha).fitted - Y) ** 2)
            assert_allclose(found.sel(lam=lam, alpha=alpha), wanted, rtol=1e-7)


@pytest.mark.parametrize("alphas", [[0.5] * 30, [0.0, 0.0], [-1.0, -2.0], [3.0], [0.0, 0.5, 3.0]])
def test_limits_of_odd_grids(arrays, fitted, alphas):
    found = fitted.sweep(*arrays[2:], alphas=alphas, steps=2).dataset["limit_mse"].values
    for j, alpha in enumerate(alphas):
        if 0 <= alpha < 2:
            limit = fitted.limit(0.5, alpha).predict(arrays[2])
            assert_allclose(found[1, j], np.mean((limit - arrays[3]) ** 2), rtol=1e-10)


def test_repeated_and_unsorted_lams(arrays, fitted):
    sweep = fitted.sweep(*arrays[2:], lams=[5.0, 0.5, 5.0, 0.5], alphas=[0.5], steps=4)
    for over in ("star", "clipped", "joint"):
        best = sweep.best(over)
        assert np.shape(best.alpha) == (best.step - 1,)


def test_limits_that_do_not_exist_are_nan(arrays, fitted):
    sweep = fitted.sweep(*arrays[2:], alphas=[-0.5, 0.5, 2.5], steps=2)
    assert np.isnan(sweep.dataset["limit_mse"].sel(alpha=2.5)).all()
    assert not np.isnan(sweep.dataset["limit_mse"].sel(alpha=0.5)).any()
    assert sweep.best("limit").alpha == 0.5


def test_best(arrays, fitted, sweep):
    best = sweep.best()
    assert best.mse == float(sweep.dataset["mse"].min())
    X_val, Y_val = arrays[2:]
    for over in ("fixed", "star", "clipped", "joint"):
        best = sweep.best(over)
        alphas = best.alpha if best.step > 1 else 0.0
        reached = fitted.path(best.lam, alphas, int(best.step)).predict(X_val)[-1]
        assert_allclose(np.mean((reached - Y_val) ** 2), best.mse, rtol=1e-7)
        assert best.value == best.mse == float(sweep.dataset[best.criterion].min())
        assert best == sweep.best(over)
        assert hash(best) == hash(sweep.best(over))
        assert best != sweep.best("limit")
    ridge = sweep.best("ridge")
    assert ridge.step == 1
    assert np.isnan(ridge.alpha)
    assert np.isinf(sweep.best("limit").step)
    assert sweep.best("joint").mse <= sweep.best("star").mse <= ridge.mse
    with pytest.raises(ValueError, match="did you mean 'joint'"):
        sweep.best("join")


@pytest.mark.parametrize("memory", [2**12, 2**16])
def test_row_blocks_change_nothing(arrays, fitted, sweep, monkeypatch, memory):
    from sdgpu.operators.cross import Cross

    original = Cross.blocks
    monkeypatch.setattr(Cross, "blocks", lambda self, entries: original(self, memory // 64))
    again = fitted.sweep(*arrays[2:], alphas=ALPHAS, steps=5).dataset
    for name in ("mse", "limit_mse", "star_mse", "joint_mse"):
        assert_allclose(again[name], sweep.dataset[name], rtol=1e-9)


def test_one_step_and_one_row(arrays, fitted):
    X_val, Y_val = arrays[2:]
    single = fitted.sweep(X_val[:1], Y_val[:1], steps=1)
    assert single.dataset["mse"].shape == (3, 101, 1)
    assert single.dataset["alpha_star"].shape == (3, 1)
    assert single.best().step == 1
    assert np.isnan(single.best().alpha)


@pytest.mark.parametrize("ending", [".nc", ".zarr"])
def test_files(sweep, tmp_path, ending):
    path = tmp_path / f"sweep{ending}"
    for _ in range(2):  # a second time over the first
        sweep.save(path)
    again = sdgpu.open_sweep(path)
    assert again.dataset.identical(sweep.dataset)
    assert again.best() == sweep.best()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_files_that_fail(sweep, tmp_path):
    with pytest.raises(ValueError, match="file ending"):
        sweep.save(tmp_path / "sweep.pkl")
    with pytest.raises(FileNotFoundError, match="folder"):
        sweep.save(tmp_path / "missing" / "sweep.nc")
    with pytest.raises(FileNotFoundError, match="no sweep"):
        sdgpu.open_sweep(tmp_path / "other.nc")
    write_dataset(sweep.dataset.drop_vars("mse"), tmp_path / "half.nc")
    with pytest.raises(ValueError, match="holds no sweep"):
        sdgpu.open_sweep(tmp_path / "half.nc")


def test_a_failed_write_leaves_the_old_file(sweep, tmp_path, monkeypatch):
    path = tmp_path / "sweep.nc"
    sweep.save(path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xarray.Dataset.to_netcdf", full)
    with pytest.raises(OSError, match="No space"):
        sweep.save(path)
    assert sdgpu.open_sweep(path).dataset.identical(sweep.dataset)
    assert len(list(tmp_path.iterdir())) == 1


def test_limits_of_negative_weights_by_conjugate_gradients(rng):
    """Ridge with lam / alpha < 0 is negative definite where the limit exists."""
    X, y = rng.standard_normal((120, 2)), rng.standard_normal(120)
    wanted, found = (
        sdgpu.fit(X, y, sdgpu.Gaussian(0.4), lams=50.0, method=method, tol=1e-8)
        for method in ("eigh", "cg")
    )
    new = X[:7] + 0.1
    assert_allclose(
        found.limit(50.0, -0.5).predict(new), wanted.limit(50.0, -0.5).predict(new), rtol=1e-6
    )
    losses = [
        fit.sweep(new, y[:7], alphas=[-0.5, -0.2, 0.3], steps=2).dataset["limit_mse"]
        for fit in (wanted, found)
    ]
    assert np.isfinite(losses[0]).all()
    assert_allclose(losses[1], losses[0], rtol=1e-6)
