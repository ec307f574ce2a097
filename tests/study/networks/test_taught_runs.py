"""Experiments whose first step learns from predictions of another network."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sdgpu.nn import SavedTeacher, grid_chains, predict
from sdgpu.study.networks.network_runs import open_network, run_experiment
from tests.study.networks.test_network_runs import TINY

TAUGHT = dataclasses.replace(TINY, steps=2, alphas=(0.3, 1.0), seeds=(0,))


@pytest.fixture(scope="module")
def problem():
    return TAUGHT.load()


@pytest.fixture(scope="module")
def teacher(problem):
    return SavedTeacher(0.7 * problem.train.one_hot() + 0.03)


@pytest.fixture(scope="module")
def done(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("taught") / "run"
    return folder, run_experiment(TAUGHT, folder, device="cpu", first_teacher=teacher)


def test_the_dataset_is_what_the_chains_say(done, problem, teacher):
    folder, found = done
    before = torch.get_num_threads()
    torch.set_num_threads(TAUGHT.threads)  # others round otherwise
    chains = grid_chains(
        TAUGHT.network(problem, 0),
        problem,
        TAUGHT.config.replace(0),
        steps=2,
        alphas=TAUGHT.rules,
        first_teacher=teacher,
    )
    torch.set_num_threads(before)
    for chain, rule in zip(chains, found["rule"].values, strict=True):
        rows = found.sel(seed=0, rule=rule)
        np.testing.assert_array_equal(rows["alpha"], chain.alphas)
        losses = [record.val.loss for record in chain.records]
        np.testing.assert_allclose(rows["validation_loss"], losses, rtol=1e-6)
    assert found.attrs["first_teacher"] == chains[0].first_teacher
    assert found.attrs["grid_fits"] == 2
    assert found.attrs["algorithm1_fits"] == 4
    first = open_network(folder, seed=0, rule=0.3, step=1)
    part = predict(first, problem.val)
    np.testing.assert_allclose(
        part, predict(chains[0].models[0], problem.val), rtol=1e-5, atol=1e-6
    )


def test_a_folder_is_of_one_teacher(done, teacher):
    folder, found = done
    told = json.loads((folder / "experiment.json").read_text())["first_teacher"]
    assert found.attrs["first_teacher"] == f"first teacher {told}"
    again = run_experiment(TAUGHT, folder, device="cpu", first_teacher=teacher)
    assert again.equals(found)
    other = SavedTeacher(0.5 * teacher.values + 0.05)
    for wrong in (other, None):
        with pytest.raises(ValueError, match=r"holds another experiment \(first_teacher: .* there"):
            run_experiment(TAUGHT, folder, device="cpu", first_teacher=wrong)


def test_chains_side_by_side_have_the_teacher_too(done, tmp_path, teacher):
    """A weight of 1 is trained in the stack, where one by one it is the ordinary fit."""
    heard, events = [], []
    options = {"device": "cpu", "first_teacher": teacher, "stacked": True}
    found = run_experiment(
        TAUGHT, tmp_path / "run", **options, on_epoch=heard.append, progress=events.append
    )
    for name in ("validation_loss", "train_loss", "alpha"):
        np.testing.assert_allclose(found[name], done[1][name], rtol=1e-3)
    assert found.attrs["first_teacher"] == done[1].attrs["first_teacher"]
    assert found.attrs["grid_fits"] == 4
    whole = [event for event in events if event.stage == "all fits"]
    assert max(event.done for event in whole) <= whole[-1].total
    assert {epoch.fit.rule for epoch in heard} == {"0.3", "1.0", "algorithm1", None}
    assert {epoch.fit.member for epoch in heard} == {None, 0, 1}


def test_an_ordinary_folder_takes_no_teacher(tmp_path, teacher):
    plain = dataclasses.replace(TAUGHT, alphas=(0.3,), algorithm1=False)
    run_experiment(plain, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="holds another experiment"):
        run_experiment(plain, tmp_path / "run", device="cpu", first_teacher=teacher)
