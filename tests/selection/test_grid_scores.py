"""Scores of classes beside the losses of a sweep, against paths and refits."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import sdgpu
from sdgpu.selection.class_scores import SCORES, class_scores, probabilities

KERNEL = sdgpu.Gaussian(0.5)
GRID = {"alphas": np.array([-0.2, 0.0, 0.4, 1.0]), "steps": 3}


@pytest.fixture
def data(rng):
    X = rng.standard_normal((60, 2))
    labels = (X[:, 0] + 0.5 * rng.standard_normal(60) > 0).astype(int) + (X[:, 1] > 1)
    new = rng.standard_normal((40, 2))
    truth = (new[:, 0] > 0).astype(int) + (new[:, 1] > 1)
    return X, np.eye(3)[labels], new, np.eye(3)[truth]


@pytest.mark.parametrize("method", ["eigh", "lanczos", "cg"])
def test_leave_one_out_scores_are_those_of_refits(data, method):
    X, Y, *_ = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.3, 2.0], method=method, probes=64)
    found = fitted.sweep(**GRID, classes=True).dataset
    rows = np.arange(60)
    refits = np.stack(
        [
            sdgpu.fit(X[rows != i], Y[rows != i], KERNEL, lams=2.0)
            .path(2.0, 0.4, 3)
            .predict(X[[i]])[:, 0]
            for i in rows
        ],
        axis=1,
    )
    wanted = class_scores(probabilities(refits), Y.argmax(axis=1))
    close = 1e-9 if method == "eigh" else 0.01
    for name in SCORES:
        assert_allclose(found[name].sel(lam=2.0, alpha=0.4), wanted[name], atol=close)


def test_best_by_score_and_file(data, tmp_path):
    X, Y, new, truth = data
    sweep = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0]).sweep(new, truth, **GRID, classes=True)
    for name in SCORES:
        best = sweep.best(name)
        values = sweep.dataset[name]
        at = values.sel(lam=best.lam, alpha=best.alpha if best.step > 1 else 0.0, step=best.step)
        assert float(at) == float(values.max() if name == "accuracy" else values.min())
        assert (best.criterion, best.value) == (name, float(at))
        assert best.mse == float(
            sweep.dataset["mse"]
            .sel(lam=best.lam, step=best.step)
            .sel(alpha=best.alpha if best.step > 1 else 0.0)
        )
    sweep.save(tmp_path / "own.nc")
    assert sdgpu.open_sweep(tmp_path / "own.nc").best("nll") == sweep.best("nll")
    plain = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0]).sweep(new, truth, **GRID)
    assert "accuracy" not in plain.dataset
    with pytest.raises(ValueError, match="classes=True"):
        plain.best("accuracy")


def test_rows_far_from_all_data_are_no_hits(data):
    X, Y, new, truth = data
    far = np.vstack([new[:10], new + 1e3])  # 40 rows where every prediction is 0
    labels = np.concatenate([truth[:10], truth]).argmax(axis=1)
    fitted = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0])
    sweep = fitted.sweep(far, np.eye(3)[labels], **GRID, classes=True)
    for lam in (0.1, 1.0):
        predicted = fitted.path(lam, 0.4, 3).predict(far).argmax(axis=-1)
        assert_allclose(
            sweep.dataset["accuracy"].sel(lam=lam, alpha=0.4), (predicted == labels).mean(axis=1)
        )
    assert sweep.dataset["accuracy"].max() < 0.7


def test_blocks_and_libraries_agree(data, monkeypatch):
    X, Y, new, truth = data
    whole = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0]).sweep(new, truth, **GRID, classes=True).dataset
    monkeypatch.setattr("sdgpu.selection.grid_scores._CHUNK", 1)
    X, Y, new, truth = (torch.tensor(a) for a in data)
    parts = sdgpu.fit(X, Y, KERNEL, lams=[0.1, 1.0]).sweep(new, truth, **GRID, classes=True).dataset
    for name in SCORES:
        assert_allclose(parts[name], whole[name], atol=1e-12)


def test_targets_that_are_no_classes(data):
    X, Y, new, truth = data
    fitted = sdgpu.fit(X, Y, KERNEL, lams=1.0)
    with pytest.raises(ValueError, match="Y_val is not one-hot"):
        fitted.sweep(new, 2 * truth, classes=True)
    with pytest.raises(ValueError, match="Y_val holds one class only"):
        fitted.sweep(new, np.eye(3)[np.zeros(40, int)], classes=True)
    with pytest.raises(ValueError, match="Y has one column"):
        sdgpu.fit(X, X[:, 0], KERNEL, lams=1.0).sweep(classes=True)
