"""Experiments with networks: the dataset is what the chains say, and nothing is trained twice."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from sdgpu.backend.storage import LOCK
from sdgpu.nn import Config, grid_chains
from sdgpu.study.networks.experiments import PRESETS, Experiment, preset
from sdgpu.study.networks.network_runs import open_experiment, run_experiment
from sdgpu.study.pictures import accuracy_figure

ROOT = Path(__file__).parents[3]
TINY = Experiment(
    name="tiny",
    data="digits",
    model="smallcnn",
    config=Config(epochs=1, batch=25, lr=0.02, crop_pad=1, flip=False),
    steps=3,
    alphas=(0.0, 0.5),
    seeds=(0, 3),
    rows=80,
    val=30,
    threads=1,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "run"
    return folder, run_experiment(TINY, folder, device="cpu")


class Listener:
    """Hears events; interrupts at the first of a stage."""

    def __init__(self, stop=None):
        self.events, self.stop = [], stop

    def __call__(self, event):
        self.events.append(event)
        if event.stage == self.stop:
            raise KeyboardInterrupt

    @property
    def stages(self):
        return {event.stage for event in self.events} - {"all fits"}


def test_the_dataset_is_what_the_chains_say(done):
    _, found = done
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    chains = grid_chains(
        "smallcnn", TINY.load(), TINY.config, steps=3, alphas=TINY.rules, seeds=TINY.seeds
    )
    torch.set_num_threads(before)
    assert found.sizes == {"seed": 2, "rule": 3, "step": 3}
    assert found["rule"].values.tolist() == ["0.0", "0.5", "algorithm1"]
    np.testing.assert_array_equal(found["weight"], [0, 0.5, np.nan])
    for chain in chains:
        own = found.sel(seed=chain.seed, rule=chain.rule)
        for number, record in enumerate(chain.records):
            point = own.isel(step=number)
            for part, score in (
                ("train", record.train),
                ("validation", record.val),
                ("test", record.test),
            ):
                assert float(point[f"{part}_accuracy"]) == score.accuracy
                assert float(point[f"{part}_loss"]) == score.loss
            assert int(point["fits"]) == record.fits
        np.testing.assert_array_equal(own["alpha"][1:], chain.alphas)
        assert np.isnan(own["alpha"][0])
    greedy = found.sel(rule="algorithm1")
    np.testing.assert_array_equal(greedy["estimate"][:, 1:], greedy["alpha"][:, 1:])
    assert not np.array_equal(greedy["alpha"][0, 1:], greedy["alpha"][1, 1:])


def test_costs_of_both_ways(done):
    _, found = done
    steps, weights, seeds = 3, 2, 2
    assert found.attrs["algorithm1_fits"] == seeds * (2 * (steps - 1) + 1)
    assert found.attrs["grid_fits"] == seeds * (weights * (steps - 1) + 1)
    greedy = float(found["seconds"].sel(rule="algorithm1").sum())
    assert found.attrs["algorithm1_seconds"] == pytest.approx(greedy)
    assert found.attrs["grid_seconds"] > 0


def test_files(done):
    folder, found = done
    xr.testing.assert_identical(open_experiment(folder), found)
    assert Experiment.from_json(found.attrs["experiment"]) == TINY
    stored = json.loads((folder / "experiment.json").read_text())
    assert stored["experiment"]["config"]["lr"] == 0.02
    lines = (folder / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + found["alpha"].size
    with pytest.raises(FileNotFoundError, match=r"results\.nc is missing"):
        open_experiment(folder / "chains")


def test_a_killed_run_goes_on_and_repeats_nothing(done, tmp_path):
    _, truth = done
    cut = Listener(stop="seed 3, alpha 0.5, step-3")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(TINY, tmp_path, progress=cut)
    again = Listener()
    found = run_experiment(TINY, tmp_path, progress=again)
    drop = ["seconds"]
    xr.testing.assert_equal(found.drop_vars(drop), truth.drop_vars(drop))
    # the two fits of the chain that was cut off are there, or were under way
    assert again.stages == {
        "seed 3, alpha 0.5, step-3",
        *(f"seed 3, Algorithm 1, step-{step}{end}" for step in (2, 3) for end in ("-alpha-0", "")),
    }
    third = Listener()
    run_experiment(TINY, tmp_path, progress=third)
    assert not third.events


def test_what_kills_left_beside_finished_files_goes(done, tmp_path):
    """A process that is killed just after a rename: nobody would write that file a second time."""
    copy = shutil.copytree(done[0], tmp_path / "copy")
    written = [path for path in copy.rglob("*") if path.is_file() and path.name != LOCK]
    assert {path.suffix for path in written} == {".csv", ".json", ".nc", ".pt"}
    for path in written:
        (path.parent / f".{path.name}.1-0123abcd.sdgpu-tmp").mkdir()
    run_experiment(TINY, copy, device="cpu")
    assert not list(copy.rglob("*.sdgpu-tmp"))


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.study.networks.test_network_runs import TINY
from sdgpu.backend.signals import terminable
from sdgpu.study.networks.network_runs import open_experiment, run_experiment

folder, times, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
start = time.perf_counter()
truth = run_experiment(TINY, folder / "whole").drop_vars("seconds")
spent, finished = time.perf_counter() - start, 0
for attempt in range(times):
    ready, started = os.pipe()
    child = os.fork()
    if not child:
        try:
            with terminable():
                os.write(started, b"1")
                run_experiment(TINY, folder / f"run{finished}")
                os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(started)
    time.sleep(draw.uniform(0.0, spent / 2))
    os.kill(child, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[attempt % 3])
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 130), (attempt, status)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 or attempt == times - 1:
        found = run_experiment(TINY, folder / f"run{finished}").drop_vars("seconds")
        assert found.equals(truth), attempt
        assert open_experiment(folder / f"run{finished}").drop_vars("seconds").equals(truth)
        left = [path.name for path in (folder / f"run{finished}").rglob("*.sdgpu-tmp")]
        assert not left, left
        finished += 1
print(finished)
"""


def test_kills_of_whole_experiments(tmp_path):
    """Whatever the moment, the next run goes on, and in the end has the same numbers to the last bit."""
    told = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path), "24" if os.environ.get("CI") else "12"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr[-2000:]
    assert int(told.stdout) >= 2


def test_progress_counts_all_fits(tmp_path):
    heard = Listener()
    one = dataclasses.replace(TINY, seeds=(0,), alphas=(1.0, 0.2), steps=2)
    run_experiment(one, tmp_path, progress=heard)
    overall = [event for event in heard.events if event.stage == "all fits"]
    done = [event.done for event in overall]
    assert done == sorted(done)
    batches = 2
    # step 1, alpha = 0.2, two of Algorithm 1; a weight of 1 is step 1 again
    assert (done[-1], overall[-1].total) == (4 * batches, 4 * batches)
    assert overall[-1].seconds_left == 0


def test_seeds_weights_and_steps_can_be_added(done, tmp_path):
    _, truth = done
    small = dataclasses.replace(TINY, seeds=(3,), alphas=(0.5,), algorithm1=False, steps=2)
    run_experiment(small, tmp_path)
    heard = Listener()
    found = run_experiment(TINY, tmp_path, progress=heard)
    assert not {"seed 3, alpha 0.5, step-1", "seed 3, alpha 0.5, step-2"} & heard.stages
    assert "seed 3, alpha 0.5, step-3" in heard.stages
    xr.testing.assert_equal(found.drop_vars("seconds"), truth.drop_vars("seconds"))


def test_stacked_is_the_same_within_rounding(done, tmp_path):
    _, truth = done
    heard = Listener()
    found = run_experiment(TINY, tmp_path, stacked=True, progress=heard)
    assert "seed 0, stack-step-3" in heard.stages
    overall = [event for event in heard.events if event.stage == "all fits"]
    assert overall[-1].done == overall[-1].total
    np.testing.assert_allclose(found["test_loss"], truth["test_loss"], rtol=1e-3)
    assert found.attrs["grid_fits"] == truth.attrs["grid_fits"]


def test_a_folder_belongs_to_one_experiment(tmp_path):
    one = dataclasses.replace(TINY, seeds=(0,), alphas=(0.0,), algorithm1=False, steps=1)
    run_experiment(one, tmp_path)
    other = dataclasses.replace(one, config=dataclasses.replace(one.config, lr=0.01))
    with pytest.raises(
        ValueError, match=r"another experiment \(config.lr: 0.02 there, 0.01 here\)"
    ):
        run_experiment(other, tmp_path)
    with pytest.raises(ValueError, match="another experiment"):
        run_experiment(dataclasses.replace(one, val=31), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    found = run_experiment(other, tmp_path, resume=False)
    assert Experiment.from_json(found.attrs["experiment"]) == other
    assert (tmp_path / "notes.txt").exists()
    for text in ("{}", "", "[[", '{"checksum": 1}'):
        (tmp_path / "experiment.json").write_text(text)
        for resume in (True, False):
            with pytest.raises(
                ValueError, match=r"experiment.json is damaged, or was not .* it stays"
            ):
                run_experiment(other, tmp_path, resume=resume)
    assert (tmp_path / "chains" / "seed-0-alpha-0.0.json").exists()


def test_finished_chains_need_no_checkpoints(done, tmp_path):
    folder, truth = done
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("fits"))
    heard = Listener()
    found = run_experiment(TINY, tmp_path / "copy", progress=heard)
    assert not heard.events
    xr.testing.assert_identical(found, truth)
    other = dataclasses.replace(TINY, val=31)
    with pytest.raises(ValueError, match="another experiment"):
        run_experiment(other, tmp_path / "copy")


def test_fresh_leaves_a_folder_alone_that_is_no_experiment(tmp_path):
    (tmp_path / "fits").mkdir()
    (tmp_path / "fits" / "mine.txt").write_text("mine")
    one = dataclasses.replace(TINY, seeds=(0,), alphas=(0.0,), algorithm1=False, steps=1)
    run_experiment(one, tmp_path, resume=False)
    assert (tmp_path / "fits" / "mine.txt").exists()


def test_test_set_as_validation_only_if_asked(tmp_path):
    data = TINY.load()
    assert len(data.val) == 30
    assert len(data.test) == 359
    shown = dataclasses.replace(TINY, test_as_validation=True).load()
    assert torch.equal(shown.val.pixels, shown.test.pixels)
    assert not any(experiment.test_as_validation for experiment in PRESETS.values())


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    experiment = preset(name)
    assert experiment.name == name
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert experiment.algorithm1
    assert 0.0 in experiment.alphas
    paper = (3, 2) if name.endswith("small") else (5, 4)
    assert (experiment.steps, len(experiment.seeds)) == paper


def test_the_paper_s_experiment(tmp_path):
    experiment = preset("cifar10-resnet50")
    config = experiment.config
    assert (config.lr, config.decay, config.epochs, config.optimiser) == (1e-4, 1e-4, 75, "adam")
    assert (config.loss, config.crop_pad, config.flip) == ("squared", 4, True)
    assert experiment.alphas == tuple(k / 10 for k in range(10))
    assert sum(experiment.fits(rule) for rule in experiment.alphas) == 40
    assert experiment.fits("algorithm1") == 8
    with pytest.raises(FileNotFoundError, match=r"download cifar-10-python\.tar\.gz from"):
        run_experiment(experiment, tmp_path / "run", data_folder=tmp_path)
    assert not (tmp_path / "run").exists()
    network = experiment.network(TINY.load(), seed=0)
    assert network.conv1.stride == (1, 1)


def test_every_seed_has_weights_of_its_own():
    data = TINY.load()
    one, two, again = (
        torch.cat([p.flatten() for p in TINY.network(data, seed).parameters()])
        for seed in (0, 1, 0)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "resnet21"}, ValueError, "did you mean 'resnet20'"),
        ({"stem": "imagenet"}, ValueError, "smallcnn has one form"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"alphas": (0.5, 0.5)}, ValueError, "names one value twice"),
        ({"alphas": (float("nan"),)}, ValueError, "alphas=nan must be finite"),
        ({"alphas": 0.5}, TypeError, r"write \(0.5,\) for one"),
        ({"alphas": (), "algorithm1": False}, ValueError, "alphas is empty"),
        ({"seeds": ()}, ValueError, "seeds is empty"),
        ({"seeds": (1, 1)}, ValueError, "names one value twice"),
        ({"seeds": (-1,)}, ValueError, "seeds=-1"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"config": {}}, TypeError, "config must be a Config"),
        ({"algorithm1": False, "clip": True}, ValueError, "clip=True"),
    ],
)
def test_bad_experiments(change, error, words):
    with pytest.raises(error, match=words):
        dataclasses.replace(TINY, **change)


def test_bad_runs(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        preset("digit")
    with pytest.raises(ValueError, match="field='colour' is not known"):
        Experiment.from_json('{"colour": 1}')
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run_experiment(TINY, tmp_path / "file")
    views = dataclasses.replace(TINY, config=dataclasses.replace(TINY.config, teacher="online"))
    with pytest.raises(ValueError, match="stacked=True needs teacher='cached'"):
        run_experiment(views, tmp_path / "run", stacked=True)
    missing = dataclasses.replace(TINY, data="missing.npz")
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        run_experiment(missing, tmp_path / "run")


def test_figure(done):
    _, found = done
    figure = accuracy_figure(found, title="tiny")
    training, validation = figure.axes
    assert training.get_ylabel() == "training accuracy, %"
    for axis, part in ((training, "train"), (validation, "validation")):
        assert len(axis.lines) == len(axis.collections) == 3
        for line, rule in zip(axis.lines, found["rule"].values, strict=True):
            mean = 100 * found[f"{part}_accuracy"].sel(rule=rule).mean("seed")
            np.testing.assert_allclose(line.get_ydata(), mean)
    assert validation.lines[-1].get_linestyle() == "--"
    means = found["alpha"].sel(rule="algorithm1").mean("seed").values[1:]
    shown = [text.get_text() for text in validation.texts]
    assert shown[:2] == [f"{mean:.2f}" for mean in means]
    labels = [text.get_text() for text in training.get_legend().get_texts()]
    assert labels == ["alpha = 0", "alpha = 0.5", "alpha-hat (Algorithm 1)"]
    assert len(accuracy_figure(found.sel(rule=["0.5"])).axes[1].texts) == 0
