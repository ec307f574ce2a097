"""``sdgpu train`` as a user types it: presets and options, resuming, interrupting, one-line errors."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from sdgpu.backend.prediction_files import write_predictions
from sdgpu.backend.progress import Event
from sdgpu.backend.ranks import RankFailure
from sdgpu.backend.storage import folder_lock
from sdgpu.cli import app
from sdgpu.cli.terminal import bars
from sdgpu.nn import Config
from sdgpu.study.networks import network_runs
from sdgpu.study.networks.experiments import preset
from sdgpu.study.networks.network_runs import open_experiment
from tests.problems import finish

ROOT = Path(__file__).parents[1]
QUICK = ("--rows", 80, "--val", 30, "--epochs", 1, "--steps", 2)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, ["train", *(str(part) for part in arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def experiment(folder):
    return json.loads((Path(folder) / "experiment.json").read_text())["experiment"]


def test_a_preset_with_options(run):
    output = run("--preset", "digits", *QUICK, "--seeds", "0,2", "--out", "runs/d")
    assert "mean of 2 seeds, lowest .. highest" in output
    # the first fit, and step 2 of five weights and of Algorithm 1
    assert output.count("\n fixed     2    ") == 5
    assert "Algorithm 1: 3 fits" in output
    assert "5 weights: 6 fits" in output
    assert max(map(len, output.splitlines())) <= 80
    made = {path.name for path in Path("runs/d").iterdir()}
    assert {"results.nc", "results.csv", "experiment.json", "figure5.png"} <= made
    stored = experiment("runs/d")
    assert stored["alphas"] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert (stored["config"]["lr"], stored["config"]["flip"]) == (3e-3, False)
    found = open_experiment("runs/d")
    accuracy = 100 * float(found["test_accuracy"].isel(step=0, rule=0).mean())
    assert f"{accuracy:.2f} " in output
    # a second call trains nothing, and says the same
    assert run("--preset", "digits", *QUICK, "--seeds", "0,2", "--out", "runs/d") == output


def test_a_preset_with_other_images_and_noisy_labels(run):
    options = (
        "--label-noise",
        "0.2",
        "--rows",
        "90",
        "--val",
        "30",
        "--alphas",
        "0.3",
        "--seeds",
        "0",
    )
    run("generated", "--preset", "digits", *QUICK, *options, "--out", "runs/d")
    stored = experiment("runs/d")
    assert (stored["name"], stored["data"]) == ("generated-digits", "generated")
    assert (stored["label_noise"], stored["config"]["lr"]) == (0.2, 3e-3)
    clean = open_experiment("runs/d")["train_clean_accuracy"]
    assert clean.dims == ("seed", "rule", "step")
    assert bool(clean.notnull().all())


def test_options_without_a_preset(run):
    options = (
        "--alphas",
        "0.3,algorithm1",
        "--clip",
        "--lr",
        0.01,
        "--optimiser",
        "sgd",
        "--momentum",
        0.5,
        "--schedule",
        "cosine",
        "--loss",
        "cross-entropy",
        "--temperature",
        2,
        "--penalty",
        "decoupled",
        "--decay",
        0.001,
        "--teacher",
        "online",
        "--batch",
        10,
        "--accumulate",
        2,
        "--deterministic",
        "--channels-last",
        "--crop-pad",
        0,
        "--warmup",
        0.5,
        "--device",
        "cpu",
        "--test-as-validation",
    )
    output = run("digits", *QUICK, *options)
    assert "1 weight: 2 fits" in output
    assert "the validation set was the test set" in output
    stored = experiment("runs/digits-smallcnn")
    assert (stored["alphas"], stored["algorithm1"], stored["clip"]) == ([0.3], True, True)
    assert stored["test_as_validation"] is True
    expected = {
        "lr": 0.01,
        "optimiser": "sgd",
        "momentum": 0.5,
        "schedule": "cosine",
        "temperature": 2.0,
        "loss": "cross-entropy",
        "penalty": "decoupled",
        "decay": 0.001,
        "teacher": "online",
        "batch": 10,
        "accumulate": 2,
        "deterministic": True,
        "channels_last": True,
        "crop_pad": 0,
        "warmup": 0.5,
    }
    assert {name: stored["config"][name] for name in expected} == expected


def test_every_field_of_the_configuration_has_an_option(run):
    options = {parameter.name for parameter in get_command(app).commands["train"].params}
    fields = {field.name for field in dataclasses.fields(Config)}
    # a chain has one seed for all three, and cannot be extended; groups are more than a word
    seeds = {"init_seed", "order_seed", "augment_seed"}
    assert fields - options == {*seeds, "extendable", "parameter_groups"}
    others = (
        "--schedule",
        "milestones",
        "--milestones",
        "1,2",
        "--drop",
        0.5,
        "--betas",
        "0.8,0.9",
        "--nesterov",
        "--optimiser",
        "sgd",
        "--activation",
        "identity",
        "--penalty-covers",
        "weights",
        "--order",
        "paper-script",
        "--eval-batch",
        7,
    )
    run("digits", *QUICK[:-1], 1, "--alphas", "0", "--out", "o", *others)
    stored = experiment("o")["config"]
    expected = {
        "schedule": "milestones",
        "milestones": [1, 2],
        "drop": 0.5,
        "betas": [0.8, 0.9],
        "nesterov": True,
        "activation": "identity",
        "penalty_covers": "weights",
        "order": "paper-script",
        "eval_batch": 7,
    }
    assert {name: stored[name] for name in expected} == expected


def test_without_validation_images(run):
    output = run(
        "digits", "--rows", 80, "--val", 0, "--epochs", 1, "--steps", 2, "--alphas", "0,0.5"
    )
    assert "nan" not in output
    assert output.count(" -  ") >= 3
    assert Path("runs/digits-smallcnn/figure5.png").exists()


def test_a_second_run_in_the_folder_is_refused(run):
    arguments = ("digits", *QUICK[:-1], 1, "--alphas", "0", "--out", "one")
    run(*arguments)
    with folder_lock("one", "experiment"):
        output = " ".join(run(*arguments, code=2).split())
    assert f"one is in use by another experiment (process {os.getpid()} on" in output


@pytest.mark.parametrize("name", ["RANK"])
def test_garbage_in_the_environment_is_one_line(tmp_path, name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", name: "first"}
    told = subprocess.run(
        [sys.executable, "-m", "sdgpu", "train", "digits"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 2
    assert "Traceback" not in told.stderr
    assert f"error: the environment says {name}='first'" in " ".join(told.stderr.split())


def test_a_terminated_run_saves_where_it_was(tmp_path, monkeypatch, request):
    """SIGTERM, as schedulers send it, in the middle of an epoch and long before the first interval."""
    command = [
        sys.executable,
        "-m",
        "sdgpu",
        "train",
        "digits",
        "--alphas",
        "0",
        "--steps",
        "1",
        "--epochs",
        "500",
        "--batch",
        "50",
        "--out",
        "cut",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--threads", "1"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(process.kill)
    config = tmp_path / "cut/fits/seed-0/step-1/config.json"
    deadline = time.monotonic() + 60
    while not config.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    # a second one is told who holds the folder
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--fresh",)):
        second = CliRunner().invoke(app, [*command[3:], "--seeds", "1", *more])
        assert second.exit_code == 2
        assert f"in use by another experiment (process {process.pid}" in " ".join(
            second.output.split()
        )
    process.send_signal(signal.SIGTERM)
    [(_, told)] = finish(process)
    assert process.returncode == 130
    assert "stopped after 0 of 1 chains: the same command" in " ".join(told.split())
    saved = torch.load(config.with_name("checkpoint.pt"), weights_only=True)
    assert 0 < saved["epoch"] + saved["batch"] < 500
    assert not list(tmp_path.rglob("*.sdgpu-tmp"))


def test_an_even_grid_has_weights_as_one_writes_them(run):
    run("digits", *QUICK[:-1], 1, "--alphas", "0:1:11", "--out", "grid")
    assert experiment("grid")["alphas"] == [k / 10 for k in range(11)]


def test_an_interrupt_leaves_what_can_be_resumed(run, monkeypatch):
    arguments = ("digits", *QUICK, "--alphas", "0,0.5", "--out", "cut")
    kept, keep = [], network_runs.ExperimentFolder.keep

    def interrupt(self, chain):
        rows = keep(self, chain)
        kept.append(chain.rule)
        if len(kept) == 1:
            raise KeyboardInterrupt
        return rows

    monkeypatch.setattr(network_runs.ExperimentFolder, "keep", interrupt)
    output = " ".join(run(*arguments, code=130).split())
    assert "stopped after 1 of 2 chains" in output
    assert "with --resume (the default) goes on from cut" in output
    run(*arguments)
    assert kept == ["0.0", "0.5"]


def test_fresh_removes_what_was_there(run):
    run("digits", *QUICK, "--alphas", "0", "--out", "one")
    output = run("digits", *QUICK, "--alphas", "0", "--lr", 0.1, "--out", "one", code=2)
    assert "(config.lr: 0.003 there, 0.1 here)" in " ".join(output.split())
    run("digits", *QUICK, "--alphas", "0", "--lr", 0.1, "--out", "one", "--fresh")
    assert experiment("one")["config"]["lr"] == 0.1


def test_a_run_that_failed_at_once_may_be_corrected(run):
    output = run("digits", *QUICK, "--batch", 10, "--alphas", "0", "--lr", 1e30, code=2)
    assert "the loss is nan" in output
    run("digits", *QUICK, "--batch", 10, "--alphas", "0")


def test_memory_of_the_device(run, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nlong advice")

    monkeypatch.setattr(network_runs, "grid_chains", full)
    output = " ".join(run("digits", *QUICK, code=2).split())
    assert "CUDA out of memory. Raise --accumulate, lower --batch" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "a preset (sdgpu train --preset digits), or both"),
        (("digit",), "data='digit' is not known: did you mean 'digits'"),
        (("--preset", "cifar"), "preset='cifar' is not known"),
        (("--preset", "cifar10-resnet50"), "download cifar-10-python.tar.gz from"),
        (("--preset", "cifar10-resnet20", "--data", "here"), "there is no cifar-10-batches-py in"),
        (("digits", "--data", "here"), "is for cifar10, cifar100 and mnist, not digits"),
        (("digits", "--alphas", "0.3,best"), "and algorithm1 for alpha-hat"),
        (("digits", "--alphas", "0:1"), "alphas='0:1'"),
        (("digits", "--alphas", "0,0"), "names one value twice"),
        (("digits", "--seeds", "1,a"), "seeds='a': write whole numbers by commas"),
        (("digits", "--val", "some"), "val='some': write a share"),
        (("digits", "--val", "2.5"), "val=2.5 must be a share"),
        (("digits", "--label-noise", "20"), "label_noise=20.0 must be a share"),
        (("digits", "--val", "0"), "val=0 leaves no images to estimate alpha-hat on"),
        (("digits", "--schedule", "milestones"), "needs milestones"),
        (("digits", "--milestones", "1,x"), "milestones='x': write whole numbers by commas"),
        (("digits", "--betas", "0.9"), "must be two numbers in [0, 1)"),
        (("digits", "--epochs", "0"), "epochs=0 must be at least 1"),
        (("digits", "--steps", "0"), "steps=0"),
        (("digits", "--model", "resnet5"), "did you mean 'resnet56'"),
        (("digits", "--stem", "imagenet"), "smallcnn has one form"),
        (("digits", "--optimiser", "rmsprop"), "optimiser='rmsprop' is not known"),
        (("digits", "--batch", "5000"), "batch=5000 exceeds the n=1294"),
        (("digits", "--accumulate", "3"), "accumulate=3 does not divide batch=50"),
        (("digits", "--device", "cuda:99"), "device='cuda:99'"),
        (("digits", "--teacher", "online", "--stacked"), "needs teacher='cached'"),
        (("digits", "--alphas", "0.5", "--clip"), "clip=True concerns Algorithm 1 alone"),
        (("pictures.npz",), "there is no file pictures.npz"),
        (("digits", "--out", "/proc/run"), "/proc/run/experiment.json cannot be written"),
    ],
)
def test_errors_are_one_line_without_a_traceback(run, arguments, words, capfd):
    output = run(*arguments, code=2) + capfd.readouterr().err
    output = " ".join(output.split())
    assert "error:" in output
    assert words in output
    assert "Traceback" not in output


def test_few_bars_are_shown_at_once():
    with bars(stages=2) as hook:
        for stage in ("all", "one", "two", "three"):
            hook(Event(stage, 1, 2, seconds_left=7000.0))
            hook(Event("all", 1, 8, seconds_left=9000.0))
        shown = hook.__closure__
    displays = [cell.cell_contents for cell in shown if hasattr(cell.cell_contents, "tasks")]
    described = [task.description for task in displays[0].tasks]
    assert described == ["all, 2.5 h left", "three, 117 min left"]


def test_as_a_module_and_the_first_of_several_processes_speaks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "sdgpu", "--version"]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": rank},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    (first, _), (second, _) = finish(*processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first.startswith("sdgpu ")
    assert not second


def test_a_first_teacher_from_a_file(run):
    part = preset("digits").load().train  # its rows: 300 of the 700 that are used
    Y = part.one_hot().numpy()
    write_predictions("teacher.npz", Y, output="probabilities", labels=part.labels.numpy())
    np.save("logits.npy", 9 * Y)
    quick = ("--preset", "digits", "--epochs", 1, "--steps", 1, "--alphas", "0.3", "--seeds", "0")
    output = run(*quick, "--first-teacher", "teacher.npz", "--out", "taught")
    assert "first fit" not in output
    assert open_experiment("taught").attrs["first_teacher"].startswith("first teacher")
    logits = ("--first-teacher", "logits.npy", "--out", "logits")
    told = " ".join(run(*quick, *logits, code=2).split())
    assert "rows of probabilities are >= 0 and sum to 1" in told
    assert "say output='logits'" in told
    run(*quick, *logits, "--first-teacher-output", "logits", "--rank-timeout", 60)
    told = " ".join(run(*quick, "--first-teacher-output", "logits", code=2).split())
    assert "first_teacher_output='logits' is of a file" in told
    fewer = ("--rows", 500, "--first-teacher", "teacher.npz", "--out", "fewer")
    told = " ".join(run(*quick, *fewer, code=2).split())
    assert (
        "teacher.npz predicts 300 rows, but there are 100 training images, of 1797 before" in told
    )


def test_the_failure_of_another_process_is_one_line(run, monkeypatch):
    def fail(*_, **options):
        raise RankFailure("rank 1 on there failed: OSError: no space", (1,))

    monkeypatch.setattr(network_runs, "run_experiment", fail)
    told = run("digits", *QUICK, "--out", "shared", code=2)
    assert "error: rank 1 on there failed: OSError: no space" in " ".join(told.split())
