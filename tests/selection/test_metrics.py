"""Metrics of a grid: by hand, from elsewhere, over blocks, and refused by name."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.distill.schedules import grid_tails
from sdgpu.selection.grid_scores import GridScores
from sdgpu.selection.losses import validate
from sdgpu.selection.metrics import CLASSES, METRICS, as_metrics
from sdgpu.selection.validation_rows import HeldRows

KERNEL = sdgpu.Gaussian(0.5)
LAMS, ALPHAS, STEPS = np.array([0.1, 1.0]), np.array([-0.2, 0.4, 1.0]), 3


@pytest.fixture
def data(rng):
    X, Y = rng.standard_normal((40, 2)), rng.standard_normal((40, 2))
    return X, Y, rng.standard_normal((25, 2)), rng.standard_normal((25, 2))


@dataclass(frozen=True)
class Within:
    """Share of rows with all outputs within a distance: a metric that the package does not know."""

    distance: float
    name: str = "within"
    description: str = "share of rows within a distance"
    larger_is_better: bool = True
    size: int = 1

    def check(self, name, Y):
        if Y.shape[1] < 2:
            raise ValueError(f"{name} has one column")

    def update(self, rows):
        near = abs(rows.values - rows.truth).max(axis=-2) <= self.distance
        return np.asarray(near.sum(axis=-1), dtype=float)[..., None]

    def result(self, sums, count):
        return sums[..., 0] / count


@pytest.mark.parametrize("unit", [1.0, 2.0**-600])
@pytest.mark.filterwarnings("ignore:squared errors of targets")
def test_a_metric_from_elsewhere_and_a_named_one(data, unit, tmp_path):
    X, Y, X_val, Y_val = data
    fitted = sdgpu.fit(X, unit * Y, KERNEL, lams=LAMS)
    sweep = fitted.sweep(
        X_val, unit * Y_val, alphas=ALPHAS, steps=STEPS, metrics=["mae", Within(unit)]
    )
    for lam in LAMS:
        for alpha in ALPHAS:
            error = abs(fitted.path(lam, alpha, STEPS).predict(X_val) - unit * Y_val)
            point = sweep.dataset.sel(lam=lam, alpha=alpha)
            assert_allclose(point["mae"], error.mean(axis=(1, 2)), rtol=1e-10)
            assert_allclose(point["within"], (error.max(axis=2) <= unit).mean(axis=1))
    assert sweep.best("within").value == float(sweep.dataset["within"].max())
    assert sweep.best("mae").value == float(sweep.dataset["mae"].min())
    sweep.save(tmp_path / "own.nc")
    again = sdgpu.open_sweep(tmp_path / "own.nc")
    assert again.best("within") == sweep.best("within")
    assert again.dataset["within"].attrs["long_name"] == "share of rows within a distance"


def test_metrics_are_refused_by_name(data):
    X, Y, X_val, Y_val = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=LAMS)
    for metrics, error, words in (
        (["mea"], ValueError, "did you mean 'mae'"),
        ("mae", TypeError, r"write metrics=\['mae'\]"),
        ([np.mean], TypeError, "has no name, description"),
        ([Within(1.0), Within(2.0)], ValueError, "two are called 'within'"),
        (["accuracy"], ValueError, "Y_val is not one-hot"),
    ):
        with pytest.raises(error, match=words):
            fitted.sweep(X_val, Y_val, metrics=metrics)
    with pytest.raises(
        ValueError, match=r"this sweep has no mae: ask for it with metrics=\['mae'\]"
    ):
        fitted.sweep(X_val, Y_val).best("mae")
    assert as_metrics(["nll", METRICS["nll"]]) == (METRICS["nll"],)


def test_blocks_of_rows_merge_to_the_whole(data):
    """Losses, metrics, limits and folds: of two workers, or of one; in units of their own too."""
    X, Y, X_val, Y_val = data
    Y_val[12:] *= 2.0**600  # the second block needs a unit
    fitted = sdgpu.fit(X, Y, KERNEL, lams=LAMS)
    solution, operator = fitted._solution, fitted._model.operator
    limits, tails = (LAMS, np.array([0.5, 1.0])), grid_tails(ALPHAS, STEPS)

    def seen(part):
        scores = GridScores(tails, len(LAMS), as_metrics(["mae"]))
        cross = operator.cross(X_val[part])
        how = {"limits": limits, "folds": 2, "scores": scores}
        return validate(solution, HeldRows(cross, Y_val[part]), LAMS, STEPS, **how), scores

    (one, few), (two, more), (whole, all_) = (
        seen(slice(*part)) for part in ((0, 12), (12, 25), (0, 25))
    )
    merged = one.merge(two)
    assert (merged.rows, merged.unit) == (25, whole.unit)
    for name in ("triangles", "folds"):
        grams = [np.swapaxes(x, -1, -2) @ x for x in (getattr(merged, name), getattr(whole, name))]
        assert_allclose(*grams, rtol=1e-9, atol=1e-12 * abs(grams[1]).max())
    assert_allclose(merged.limits, whole.limits, rtol=1e-12)
    assert_allclose(merged.zero, whole.zero, rtol=1e-12)
    assert_allclose(few.merge(more).scores()["mae"], all_.scores()["mae"], rtol=1e-12)
    with pytest.raises(ValueError, match="other grids"):
        one.merge(replace(two, limits=two.limits[:1]))
    with pytest.raises(ValueError, match="estimated leverages"):
        one.merge(replace(two, replicates=two.triangles))
    with pytest.raises(ValueError, match="other grids or metrics"):
        few.merge(GridScores(tails, len(LAMS), CLASSES))
