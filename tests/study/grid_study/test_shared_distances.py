"""Distances once for a data set: the numbers of kernels that make their own, and when they are shared."""

import numpy as np
import pytest

import sdgpu
from sdgpu.study import read_study
from sdgpu.study.grid_study import cell_data, shared_distances
from sdgpu.study.grid_study.cell_fit import fit_cells
from sdgpu.study.grid_study.cells import decompositions

KERNELS = [
    {"name": "gaussian", "width_over_median": [0.5, 2.0]},
    {"name": "laplacian", "gamma": [0.01, 0.1]},
    {"name": "matern", "nu": [0.5, 1.5, 2.5], "lengthscale": 8.0},
    {"name": "rationalquadratic", "power": [0.5, 2.0], "lengthscale": 8.0},
]


def jobs(**more):
    tables = {
        "name": "wide",
        "data": {"source": "digits", "rows": 100},
        "kernel": KERNELS,
        "grid": {"lams": [1e-3, 0.1, 10.0], "alphas": [0.0, 0.4], "steps": 3},
        **more,
    }
    return decompositions(read_study(tables))


def results(monkeypatch, *, narrow):
    cell_data.forget_data()
    monkeypatch.setattr(shared_distances, "NARROW", narrow)
    return [fit_cells(job)[0] for job in jobs()]


def test_numbers_are_those_of_kernels_of_rows(monkeypatch):
    shared = results(monkeypatch, narrow=8)
    alone = results(monkeypatch, narrow=1e-9)
    for one, other in zip(shared, alone, strict=True):
        assert one.record["key"] == other.record["key"]
        assert (
            (one.record["n"], one.record["d"]) == (60, 64) == (other.record["n"], other.record["d"])
        )
        assert one.record["kernel_repr"] == other.record["kernel_repr"]
        np.testing.assert_allclose(one.arrays["mse"], other.arrays["mse"], rtol=1e-8)
        np.testing.assert_allclose(
            one.record["chosen"]["fixed"]["test_mse"],
            other.record["chosen"]["fixed"]["test_mse"],
            rtol=1e-8,
        )


def test_distances_are_made_once_for_each_kind(monkeypatch):
    calls = []
    for name in ("gram", "cross", "product"):
        made = getattr(shared_distances, name)
        monkeypatch.setattr(
            shared_distances,
            name,
            lambda *args, made=made, name=name, **how: calls.append(name) or made(*args, **how),
        )
    results(monkeypatch, narrow=8)
    assert sorted(calls) == ["cross"] * 2 + ["gram"] + ["product"] * 3  # training, validation, test


@pytest.mark.parametrize(
    "more",
    [
        {"kernel": {"name": "linear"}},
        {"kernel": {"name": "polynomial", "degree": 2}},
        {"method": {"name": "cg"}},
        {"method": {"features": "nystrom", "size": 9}},
        {"method": {"name": "eigh", "operator": "tiled"}},
        {"data": {"source": "diabetes"}},
    ],
)
def test_what_shares_nothing(more, monkeypatch):
    monkeypatch.setattr(shared_distances, "_distances", None)
    for job in jobs(**more):
        parts = cell_data.split_of(job.data, job.seed)
        kernel = cell_data.kernel_of(job.kernel, job.data, job.seed)
        assert shared_distances.share_distances(parts, kernel, job) == (parts, kernel)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (sdgpu.Gaussian(0.3), "l2"),
        (sdgpu.Gaussian(0.3, lengthscale=2.0), "l2"),
        (sdgpu.Laplacian(0.3, lengthscale=2.0), "l1"),
        (sdgpu.Matern(1.5, lengthscale=2.0), "l2"),
        (sdgpu.Matern(4.5, lengthscale=2.0), "l2"),
        (sdgpu.RationalQuadratic(0.7, lengthscale=2.0), "l2"),
    ],
)
def test_values_are_profiles_of_distances(kernel, kind):
    rows = np.random.default_rng(0).normal(size=(9, 4))
    gaps = rows[:, None] - rows
    distances = (gaps**2).sum(-1) if kind == "l2" else np.abs(gaps).sum(-1)
    found, factor = kernel.distance_factor
    assert found == kind
    np.testing.assert_allclose(
        kernel.profile(factor * distances, None, None), kernel(rows), rtol=1e-12
    )


def test_length_scales_of_features_have_no_one_distance():
    for make in (sdgpu.Gaussian, sdgpu.Laplacian):
        assert make(1.0, lengthscale=[1.0, 2.0]).distance_factor is None
    assert sdgpu.Matern(0.5, lengthscale=[1.0, 2.0]).distance_factor is None
    assert sdgpu.Linear().distance_factor is None
    assert (sdgpu.Gaussian(1.0) + sdgpu.Linear()).distance_factor is None
