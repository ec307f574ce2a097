"""The table of four ways to choose: what it promises, and what it doubts."""

import numpy as np
import pytest

import sdgpu
from sdgpu.study.compare import compare
from sdgpu.study.real_data.datasets import Dataset, load, split


@pytest.mark.filterwarnings("error")
def test_a_joint_optimum_that_fits_noise_is_doubted():
    """On diabetes, with a linear kernel, it loses a tenth of the ridge's loss on the test rows."""
    data = split(load("diabetes"))
    found = compare(data, sdgpu.Linear())
    by_name = {row.name: row for row in found.rows}
    joint = by_name.pop("joint optimum")
    assert joint.best.mse < min(row.best.mse for row in by_name.values())
    assert joint.test_mse > 1.1 * by_name["ridge only"].test_mse
    assert "fits noise: on rows that had no part in choosing" in joint.note
    assert not any(row.note for row in by_name.values())


def test_rows_are_judged_by_their_own_paths():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (150, 2))
    data = split(Dataset("made", X, np.sin(X[:, :1]) + 0.3 * rng.standard_normal((150, 1))))
    found = compare(data, sdgpu.Gaussian(0.5), steps=3)
    for row in found.rows:
        step = int(row.best.step)
        path = found.fit.path(row.best.lam, row.best.alpha if step > 1 else 0.0, step)
        error = np.asarray(path.predict(data.X_test))[-1] - data.Y_test
        assert row.test_mse == pytest.approx(np.mean(error**2), rel=1e-12)
