"""``sdgpu train`` as a user types it: presets and options, resuming, interrupting, one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sdgpu.cli import app
from sdgpu.cli.terminal import bars
from sdgpu.device.timing import Event
from sdgpu.study import networks
from sdgpu.study.networks import open_experiment

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


def test_options_without_a_preset(run):
    options = (
        "--alphas", "0.3,algorithm1", "--clip", "--lr", 0.01, "--optimiser", "sgd", "--momentum", 0.5,
        "--schedule", "cosine", "--loss", "cross-entropy", "--temperature", 2, "--penalty", "decoupled",
        "--decay", 0.001, "--teacher", "online", "--batch", 10, "--accumulate", 2, "--deterministic",
        "--channels-last", "--crop-pad", 0, "--warmup", 0.5, "--device", "cpu", "--test-as-validation",
    )  # fmt: skip
    output = run("digits", *QUICK, *options)
    assert "1 weight: 2 fits" in output
    assert "the validation set was the test set" in output
    stored = experiment("runs/digits-smallcnn")
    assert (stored["alphas"], stored["algorithm1"], stored["clip"]) == ([0.3], True, True)
    assert stored["test_as_validation"] is True
    expected = {
        "lr": 0.01, "optimiser": "sgd", "momentum": 0.5, "schedule": "cosine", "temperature": 2.0,
        "loss": "cross-entropy", "penalty": "decoupled", "decay": 0.001, "teacher": "online", "batch": 10,
        "accumulate": 2, "deterministic": True, "channels_last": True, "crop_pad": 0, "warmup": 0.5,
    }  # fmt: skip
    assert {name: stored["config"][name] for name in expected} == expected


def test_an_even_grid_has_weights_as_one_writes_them(run):
    run("digits", *QUICK[:-1], 1, "--alphas", "0:1:11", "--out", "grid")
    assert experiment("grid")["alphas"] == [k / 10 for k in range(11)]


def test_an_interrupt_leaves_what_can_be_resumed(run, monkeypatch):
    arguments = ("digits", *QUICK, "--alphas", "0,0.5", "--out", "cut")
    kept, keep = [], networks.Archive.keep

    def interrupt(self, chain):
        rows = keep(self, chain)
        kept.append(chain.rule)
        if len(kept) == 1:
            raise KeyboardInterrupt
        return rows

    monkeypatch.setattr(networks.Archive, "keep", interrupt)
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

    monkeypatch.setattr(networks, "grid_chains", full)
    output = " ".join(run("digits", *QUICK, code=2).split())
    assert "CUDA out of memory. Raise --accumulate, lower --batch" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "sdgpu train --preset digits): one of them"),
        (("digits", "--preset", "digits"), "not both"),
        (("digit",), "data='digit' is not known: did you mean 'digits'"),
        (("--preset", "cifar"), "preset='cifar' is not known"),
        (("--preset", "cifar10-resnet50"), "download cifar-10-python.tar.gz from"),
        (("--preset", "cifar10-resnet20", "--data", "here"), "there is no cifar-10-batches-py in"),
        (("digits", "--data", "here"), "is for cifar10 and cifar100, not digits"),
        (("digits", "--alphas", "0.3,best"), "and algorithm1 for alpha-hat"),
        (("digits", "--alphas", "0:1"), "alphas='0:1'"),
        (("digits", "--alphas", "0,0"), "names one value twice"),
        (("digits", "--seeds", "1,a"), "seeds='a': write whole numbers by commas"),
        (("digits", "--val", "some"), "val='some': write a share"),
        (("digits", "--val", "2.5"), "val=2.5 must be a share"),
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "WORLD_SIZE": "2"}
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
    first, second = (process.communicate(timeout=60)[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first.startswith("sdgpu ")
    assert not second
