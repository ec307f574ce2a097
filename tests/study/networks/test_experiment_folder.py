"""The folder of an experiment: one run at a time, nothing foreign removed, nothing foreign believed."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sdgpu.backend.storage import LOCK, folder_lock
from sdgpu.nn import Config, predict, score
from sdgpu.study.networks.experiment_folder import read_chain
from sdgpu.study.networks.experiments import Experiment
from sdgpu.study.networks.network_runs import open_network, run_experiment
from tests.damage import damages

ONE = Experiment(
    name="one",
    data="digits",
    model="smallcnn",
    config=Config(epochs=1, batch=25, lr=0.02, crop_pad=1, flip=False),
    steps=2,
    alphas=(0.0, 1.0),
    algorithm1=False,
    seeds=(0,),
    rows=60,
    val=20,
    threads=1,
)
FASTER = dataclasses.replace(ONE, config=dataclasses.replace(ONE.config, lr=0.03))
CHAIN = "chains/seed-0-alpha-0.0.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    return folder, run_experiment(ONE, folder, device="cpu")


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


def refuse(folder, message, experiment=ONE, **options):
    """Run into an error, and change nothing."""
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        run_experiment(experiment, folder, device="cpu", **options)
    assert contents(folder) == before


def test_a_folder_serves_one_run(folder):
    with folder_lock(folder, "experiment"):
        for experiment in (ONE, FASTER):
            message = f"copy is in use by another experiment \\(process {os.getpid()} on"
            with pytest.raises(BlockingIOError, match=message):
                run_experiment(experiment, folder, device="cpu")
            with pytest.raises(BlockingIOError, match=message):
                run_experiment(experiment, folder, device="cpu", resume=False)


def test_chains_of_something_else_are_named(folder, tmp_path):
    """Chains of another rate and of other rows, laid into the folder."""
    for number, (other, message) in enumerate(
        (
            (
                FASTER,
                r"alpha-0\.0\.json belongs to another .* \(config\.lr: 0\.03 there, 0\.02 here\)",
            ),
            (
                dataclasses.replace(ONE, rows=61),
                r"alpha-0\.0\.json belongs to another .* \(images: ",
            ),
        )
    ):
        place = tmp_path / str(number)
        run_experiment(dataclasses.replace(other, alphas=(0.0,), steps=1), place, device="cpu")
        shutil.copy(place / CHAIN, folder / CHAIN)
        refuse(folder, message)
    shutil.copy(folder / CHAIN, folder / "chains/seed-0-alpha-1.0.json")
    (folder / CHAIN).unlink()
    refuse(folder, r"alpha-1\.0\.json belongs to another experiment")


def test_damaged_files_are_named(folder):
    for name in (CHAIN, "experiment.json"):
        content = (folder / name).read_bytes()
        for damaged in damages(content, 0, times=40):
            (folder / name).write_bytes(damaged)
            try:
                json.loads((folder / name).read_bytes())
            except (ValueError, RecursionError):
                refuse(folder, f"{Path(name).name} is damaged")
        for text in (
            '{"rows": {}}',
            "[" * 99_999,
            '{"checksum": "xxh3:0", "rows": [{}]}',
            "[1]",
            "0",
        ):
            (folder / name).write_text(text)
            refuse(folder, f"{Path(name).name} is damaged")
        (folder / name).write_bytes(content)
    run_experiment(ONE, folder, device="cpu")


def test_results_whose_chains_are_gone_stay(folder):
    shutil.move(folder / "chains", folder.parent / "chains")
    shutil.rmtree(folder / "fits")
    for experiment in (ONE, FASTER):
        refuse(folder, r"results\.nc would be replaced, but the chains .* are gone", experiment)
    shutil.move(folder.parent / "chains", folder / "chains")
    run_experiment(ONE, folder, device="cpu")
    refuse(folder, "holds another experiment", FASTER)


@pytest.mark.parametrize("name", ["results.nc", "results.csv", "figure5.png"])
def test_foreign_results_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for resume in (True, False):
        refuse(tmp_path, f"{name} would be replaced, but no experiment.json", resume=resume)


def test_chains_without_an_experiment(folder):
    """experiment.json is lost: the chains say whose they are, and are not removed."""
    for path in ("experiment.json", "results.nc", "results.csv"):
        (folder / path).unlink()
    refuse(folder, "would be replaced, but no experiment.json", resume=False)
    refuse(folder, "belongs to another experiment", FASTER)
    run_experiment(ONE, folder, device="cpu")


FOREIGN = (
    "notes.txt",
    "chains/notes.json",
    "chains/sub/seed-0-alpha-0.0.json",
    "fits/mine.txt",
    "fits/seed-0/mine.bin",
    "fits/seed-0/step-1/mine.pt",
    "fits/other/checkpoint.pt",
    "sub/results.nc",
)


def test_fresh_removes_what_an_experiment_makes_and_nothing_else(folder):
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")
    (folder / "fits/seed-0/step-1/.checkpoint.pt.1-0123abcd.sdgpu-tmp").mkdir()
    small = dataclasses.replace(FASTER, alphas=(0.0,), steps=1)
    run_experiment(small, folder, device="cpu", resume=False)
    for name in FOREIGN:
        assert (folder / name).read_text() == f"mine: {name}"
    ours = contents(folder).keys() - {*FOREIGN}
    assert ours == {
        "experiment.json",
        "results.nc",
        "results.csv",
        CHAIN,
        "fits/seed-0/alpha-0.0/chain.json",
        *(f"fits/seed-0/step-1/{name}" for name in ("checkpoint.pt", "config.json", "log.csv")),
    }
    assert not list(folder.rglob("*.sdgpu-tmp"))


def test_an_experiment_that_came_to_nothing_is_corrected_and_foreign_files_stay(tmp_path):
    wrong = dataclasses.replace(ONE, config=dataclasses.replace(ONE.config, lr=1e30, batch=5))
    with pytest.raises(FloatingPointError):
        run_experiment(wrong, tmp_path, device="cpu")
    (tmp_path / "fits/mine.txt").write_text("mine")
    run_experiment(dataclasses.replace(ONE, alphas=(0.0,), steps=1), tmp_path, device="cpu")
    assert (tmp_path / "fits/mine.txt").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "experiment.json").write_text('{"title": "of someone else"}')
    for resume in (True, False):
        refuse(
            other,
            r"experiment\.json is damaged, or was not written by this version of sdgpu",
            resume=resume,
        )


def test_fewer_steps_come_from_longer_chains(folder):
    before = (folder / CHAIN).read_bytes()
    short = run_experiment(dataclasses.replace(ONE, steps=1), folder, device="cpu")
    assert short.sizes["step"] == 1
    assert (folder / CHAIN).read_bytes() == before


def test_paths_name_files_that_exist(folder):
    moved = folder.rename(folder.with_name("moved"))
    run_experiment(ONE, moved, device="cpu")
    table = pd.read_csv(moved / "results.csv")
    assert len(table) == 4
    for row in table.itertuples():
        assert Path(row.path).is_file(), row
        assert Path(row.path).is_relative_to(moved)
    # the first step and a weight of 1 are one file
    assert table.path.nunique() == 2


def test_a_stacked_experiment_takes_further_weights(tmp_path):
    first = dataclasses.replace(ONE, alphas=(0.0, 0.5), steps=3)
    more = dataclasses.replace(first, alphas=(0.0, 0.3, 0.5))
    run_experiment(first, tmp_path, device="cpu", stacked=True)
    found = run_experiment(more, tmp_path, device="cpu", stacked=True)
    truth = run_experiment(more, tmp_path / "truth", device="cpu")
    np.testing.assert_allclose(found["test_loss"], truth["test_loss"], rtol=1e-3)
    data = more.load()
    for rule in more.rules:
        for step in (1, 3):
            network = open_network(tmp_path, seed=0, rule=rule, step=step)
            own = score(predict(network, data.test, more.config), data.test)
            stored = float(found["test_loss"].sel(seed=0, rule=str(rule), step=step))
            assert own.loss == pytest.approx(stored, rel=1e-5)


def test_networks_come_out_of_the_folder(folder, made):
    rows = read_chain(folder, 0, "0.0")
    network = open_network(folder, seed=0, rule=0.0, step=2)
    assert not network.training
    data = ONE.load()
    torch.set_num_threads(1)
    assert score(predict(network, data.val, ONE.config), data.val).loss == pytest.approx(
        rows[1]["val_loss"], rel=1e-6
    )
    with pytest.raises(FileNotFoundError, match=r"there is no chain of seed 0 and alpha 0\.7"):
        open_network(folder, seed=0, rule=0.7, step=1)
    with pytest.raises(ValueError, match=r"step=3, but the chain in .* has 2"):
        open_network(folder, seed=0, rule=0.0, step=3)
    with pytest.raises(FileNotFoundError, match=r"experiment\.json is missing"):
        open_network(folder / "chains", seed=0, rule=0.0, step=1)
    shutil.rmtree(folder / "fits")
    with pytest.raises(FileNotFoundError, match="the weights are gone"):
        open_network(folder, seed=0, rule=0.0, step=1)


def test_without_validation_images(tmp_path):
    from sdgpu.study.pictures import accuracy_figure

    found = run_experiment(dataclasses.replace(ONE, val=0), tmp_path, device="cpu")
    assert found["validation_accuracy"].isnull().all()
    assert found["test_accuracy"].notnull().all()
    assert accuracy_figure(found).axes[1].get_ylabel() == "test accuracy, %"
    with pytest.raises(ValueError, match="val=0 leaves no images to estimate alpha-hat"):
        dataclasses.replace(ONE, val=0, algorithm1=True)


def test_numbers_of_numpy_can_be_written():
    config = Config(
        epochs=np.int64(3),
        batch=np.int32(25),
        lr=np.float32(0.5),
        flip=np.bool_(True),
        betas=np.array([0.8, 0.9]),
        milestones=np.array([1, 2]),
        schedule="milestones",
        decay=torch.tensor(0.25),
        warmup=np.float64(1),
        accumulate=np.uint8(5),
    )
    assert Config.from_json(config.to_json()) == config
    plain = Config(
        epochs=3,
        batch=25,
        lr=0.5,
        flip=True,
        betas=(0.8, 0.9),
        milestones=(1, 2),
        decay=0.25,
        schedule="milestones",
        warmup=1.0,
        accumulate=5,
    )
    assert config == plain
    assert config.to_json() == plain.to_json()
    experiment = dataclasses.replace(
        ONE,
        config=config,
        steps=np.int64(2),
        alphas=np.array([0.0, 0.5]),
        seeds=np.arange(2),
        rows=np.int64(60),
        val=np.int64(20),
        split_seed=np.int16(0),
        clip=np.bool_(False),
        threads=np.int8(1),
    )
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert experiment.seeds == (0, 1)
    for change in ({"val": "20"}, {"clip": 1}, {"name": None}, {"val": True}):
        with pytest.raises(TypeError, match=next(iter(change))):
            dataclasses.replace(ONE, **change)
    for change in ({"betas": 0.9}, {"milestones": 3}, {"flip": 1}, {"milestones": "30"}):
        with pytest.raises(TypeError, match=next(iter(change))):
            Config(**change)
