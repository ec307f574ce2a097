"""The command line as a user types it: output, files, and one-line errors."""

import gzip
import io
import signal

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import sdgpu
from sdgpu.cli import app
from sdgpu.study.real_data.datasets import split


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


@pytest.fixture
def table(tmp_path, rng):
    X = rng.standard_normal((60, 3))
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame["target"] = np.sin(X[:, 0]) + 0.1 * rng.standard_normal(60)
    frame["label"] = np.where(X[:, 1] > 0, "up", "down")
    frame.drop(columns="label").to_csv(tmp_path / "numbers.csv", index=False)
    frame.drop(columns="target").to_csv(tmp_path / "labels.csv", index=False)
    frame.to_csv(tmp_path / "mixed.csv", index=False)
    np.savez(tmp_path / "arrays.npz", X=X, y=frame["target"])
    np.savez(tmp_path / "other.npz", A=X)
    np.savez(tmp_path / "uneven.npz", X=X, y=np.ones(50))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "arrays.npz").read_bytes()[:300])
    (tmp_path / "empty.npz").write_bytes(b"")
    frame.drop(columns="label").replace({"b": {frame["b"][3]: None}}).to_csv(
        tmp_path / "gaps.csv", index=False
    )
    for name in ("notes.zarr/thesis.txt", "folder.png/x"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "head.csv").write_text("a,b,c\n")
    (tmp_path / "nothing.csv").write_text("")
    frame.drop(columns="label").to_csv(tmp_path / "bare.csv", index=False, header=False)
    (tmp_path / "leak.csv").write_text("a,y,b,y\n1,2,3,2\n4,5,6,5\n")
    packed = gzip.compress((tmp_path / "numbers.csv").read_bytes())
    (tmp_path / "numbers.csv.gz").write_bytes(packed)
    (tmp_path / "cut.csv.gz").write_bytes(packed[:-9])
    german = frame.assign(label=frame["label"].where(frame["c"] < 1))
    german.to_csv(tmp_path / "german.tsv", index=False, sep="\t", decimal=",")
    return tmp_path


def test_demo(run, tmp_path):
    output = run("demo", "--out", "pictures", "--steps", 3)
    # the paper's losses stand beside ours, digit by digit
    assert output.count("0.16477") >= 4
    assert output.count("0.14903") == 2
    assert "in place of" in output
    made = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert made == {
        "appendix_d_tolerance.png",
        "figure2_steps.png",
        "figure3_diagonal.png",
        "figure4_ratios.png",
        "heatmap_diabetes.png",
        "heatmap_digits.png",
        "sweep_diabetes.nc",
        "sweep_digits.nc",
    }
    assert sdgpu.open_sweep("pictures/sweep_digits.nc").dataset["mse"].shape == (30, 101, 3)


def test_fit(run, table):
    output = run(
        "fit", "numbers.csv", "--lam", 0.1, "--alpha", "0.2,0.4", "--steps", 3, "--out", "p.nc"
    )
    assert "exact to" in output
    with xr.open_dataset("p.nc", engine="h5netcdf") as stored:
        assert stored["test_prediction"].shape == (3, 12, 1)
        assert stored["alpha"].values[1:].tolist() == [0.2, 0.4]


@pytest.mark.parametrize("command", ["fit", "sweep"])
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("numbers.csv.gz",), (60, 3)),
        (("bare.csv", "--no-header"), (60, 3)),
        (("bare.csv", "--header"), (59, 3)),
        (("gaps.csv", "--impute", "median"), (60, 3)),
        (("gaps.csv", "--impute", "0.5"), (60, 3)),
        (("german.tsv", "--target", "target", "--encode", "--impute", "mean"), (60, 6)),
    ],
)
def test_tables_as_they_come(run, table, monkeypatch, command, arguments, shape):
    shapes = []

    def watched(data, *, seed):
        shapes.append(data.X.shape)
        return split(data, seed=seed)

    monkeypatch.setattr("sdgpu.study.real_data.datasets.split", watched)
    run(command, *arguments, "--steps", 2)
    assert shapes == [shape]


def test_sweep(run, table):
    output = run(
        "sweep",
        "arrays.npz",
        "--lams",
        "1e-3:10:7",
        "--alphas",
        "0,0.5,1.5",
        "--steps",
        4,
        "--kernel",
        "matern32",
        "--gamma",
        "0.5",
        "--out",
        "s.zarr",
        "--figure",
        "heat.pdf",
    )
    assert "7 lam x 3 alpha x 4 steps = 84 losses" in output
    assert sdgpu.open_sweep("s.zarr").dataset["mse"].shape == (7, 3, 4)
    assert (table / "heat.pdf").stat().st_size > 1000


def test_sweep_without_the_matrix(run, table):
    output = run(
        "sweep",
        "flights",
        "--rows",
        900,
        "--lams",
        "0.5:50:5",
        "--steps",
        3,
        "--method",
        "subspace",
        "--operator",
        "tiled",
        "--tol",
        "1e-4",
    )
    assert "540 rows" in output
    assert "subspace, tiled: converged" in output


def test_plan(run):
    output = run("plan", 100_000, 12, "--lam", 10, "--memory", "8GiB", "--device", "cpu")
    assert "tiled" in output
    assert "eigh with dense operator" in " ".join(output.split())


def test_plan_of_devices_that_are_not_here(run):
    output = run("plan", "--n", "1e8", "--ranks", 64, "--device", "h100", "--tol", "1e-4")
    assert "100,000,000 rows on 64 x h100, on paper" in output
    assert "efficiency" in output
    assert "data sheet, not measured" in output


def test_labels(run, table):
    output = run("sweep", "labels.csv", "--classify", "--lams", "0.01,1", "--steps", 2)
    chosen_by = {line.strip(" │|").split()[0] for line in output.splitlines() if line.strip(" │|")}
    assert {"accuracy", "nll", "brier"} <= chosen_by
    assert "ece" in output
    assert "ece" not in chosen_by  # the best calibrated model may know nothing


def test_version(run):
    assert sdgpu.__version__ in run("--version")


def test_doctor(run):
    output = run("doctor")
    assert "numpy on cpu" in output
    assert "sdgpu[cuda12]" in output or "cupy on cuda:0" in output


@pytest.mark.parametrize("command", ["", "demo", "fit", "sweep", "plan", "train", "doctor"])
def test_help_shows_an_example(run, command):
    output = run(*command.split(), "--help")
    assert ("Example: sdgpu" in output) == bool(command)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sweep", "digit"), "data 'digit' is not known"),
        (("sweep", "missing.csv"), "there is no file missing.csv"),
        (("sweep", "mixed.csv", "--target", "target"), "text columns label"),
        (("sweep", "numbers.csv", "--target", "y"), "target='y' is no column"),
        (("sweep", "other.npz"), "has no array X and no y"),
        (("sweep", "diabetes", "--lams", "1:2"), "lams='1:2'"),
        (("sweep", "uneven.npz"), "has 50 rows, but its inputs have 60"),
        (("sweep", "cut.npz"), "cut.npz is no npz file of plain arrays, or a damaged one"),
        (("sweep", "empty.npz"), "empty.npz is no npz file of plain arrays, or a damaged one"),
        (("sweep", "gaps.csv"), "gaps.csv has missing cells in b (1)"),
        (("sweep", "labels.csv"), "pass --classify if they are labels"),
        (("sweep", "head.csv"), "head.csv has 0 rows of 3 columns"),
        (("sweep", "nothing.csv"), "nothing.csv is empty"),
        (("sweep", "diabetes", "--classify"), "has its own target"),
        (("sweep", "diabetes", "--encode"), "encode=True is for tables of text, not for diabetes"),
        (("sweep", "arrays.npz", "--no-header"), "header=False is for tables of text"),
        (("fit", "gaps.csv", "--impute", "men"), "impute='men' is not known: did you mean 'mean'"),
        (("fit", "gaps.csv", "--impute", "nan"), "impute=nan must be finite"),
        (("fit", "bare.csv"), "bare.csv has nothing but numbers in its first row"),
        (("fit", "leak.csv"), "leak.csv has the name 'y' twice or more, of columns 2, 4"),
        (("fit", "cut.csv.gz"), "cut.csv.gz is damaged or cut off after line"),
        (("sweep", "diabetes", "--lams", "0:1:3"), "both ends must be finite and > 0"),
        (("sweep", "diabetes", "--figure", "h.xyz"), "figure ending='.xyz'"),
        (("sweep", "diabetes", "--memory", "1kB"), "may be used"),
        (("sweep", "diabetes", "--gamma", "1,2"), "gamma='1,2'"),
        (("sweep", "diabetes", "--lams", "-1,2"), "lams must be > 0"),
        (("sweep", "diabetes", "--kernel", "rbff"), "did you mean 'rbf'"),
        (("sweep", "diabetes", "--gamma", "wide"), "gamma='wide'"),
        (("sweep", "diabetes", "--out", "x.pkl"), "file ending"),
        (("sweep", "diabetes", "--out", "no/x.nc"), "folder of no/x.nc does not exist"),
        (
            ("sweep", "diabetes", "--out", "notes.zarr"),
            "notes.zarr holds thesis.txt, which is no part",
        ),
        (
            ("fit", "diabetes", "--out", "notes.zarr"),
            "it was not written by sdgpu and will not be replaced",
        ),
        (("sweep", "diabetes", "--figure", "folder.png"), "is a folder: name a file"),
        (("sweep", "diabetes", "--out=~nobody-of-this-name/x.nc"), "home folder is not known"),
        (("demo", "--out", "numbers.csv"), "numbers.csv is a file"),
        (("fit", "diabetes", "--lam", "-1"), "lam=-1.0 must be > 0"),
        (("sweep", "diabetes", "--rows", "1000"), "rows=1000, but diabetes has 442"),
        (("sweep", "diabetes", "--method", "lanczo"), "did you mean 'lanczos'"),
        (("plan", "0", "3"), "n=0"),
        (("plan", "10", "3", "--device", "a100"), "pass ranks=1"),
        (("fit", "diabetes", "--steps", "0"), "steps=0"),
        (("fit", "diabetes", "--alpha", "0.1,0.2"), "one per step 2..5"),
        (("fit", "diabetes", "--memory", "1kB"), "may be used"),
        (("fit", "diabetes", "--device", "cuda:99"), "device='cuda:99'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(run, table, arguments, words, capfd):
    output = " ".join(run(*arguments, code=2).split())
    shown = output + " ".join(capfd.readouterr().err.split())
    assert "error:" in shown
    assert words in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "diabetes", "--out", "x.nc"),
        ("sweep", "diabetes", "--out", "x.zarr"),
        ("sweep", "diabetes", "--figure", "x.png"),
        ("demo", "--out", "x"),
    ],
)
def test_what_cannot_be_written_is_found_before_the_work(run, monkeypatch, capfd, arguments):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    def work(*_, **__):
        raise AssertionError("worked before it looked")

    monkeypatch.setattr("sdgpu.study.real_data.datasets.load", work)
    monkeypatch.setattr("sdgpu.study.example.paper_example", work)
    monkeypatch.setattr("pathlib.Path.mkdir", refused)  # root may write everywhere
    output = " ".join((run(*arguments, code=2) + capfd.readouterr().err).split())
    assert "error: x" in output
    assert "cannot be written (Permission denied)" in output


def test_the_home_folder(run, tmp_path, monkeypatch):
    """Shells leave ~ alone after an =."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run(
        "sweep",
        "diabetes",
        "--lams=1",
        "--alphas=0.5",
        "--steps=2",
        "--out=~/x.nc",
        "--figure=~/x.png",
    )
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"x.nc", "x.png"}
    assert not (tmp_path / "~").exists()


def test_sigterm_is_ctrl_c(run, monkeypatch):
    """Files are closed and nothing is left; the shell sees that it was stopped."""

    def stopped(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("sdgpu.study.real_data.datasets.load", stopped)
    run("sweep", "diabetes", "--out", "x.nc", code=130)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("width", [100, 40, 24])
def test_cells_of_tables_are_never_cut(width):
    """In 40 columns the columns come in several parts, each with the names of the rows."""
    from rich.console import Console

    from sdgpu.cli.terminal import new_table

    rows = [
        ("ridge only", "0.875", "-", "1", "0.499677", "0.00479833"),
        ("best fixed alpha", "0.544", "0.69 .. 0.98", "10", "0.499639", "0.480638"),
    ]
    table = new_table("choice", "lam", "alpha", "step", "val. mse", "test mse", title="diabetes")
    for row in rows:
        table.add_row(*row)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "\u2026" not in text
    for cell in (*rows[0], *rows[1][1:], "val. mse", "test mse"):
        assert cell in text or cell in ("0.69 .. 0.98", "ridge only")
    assert text.count("diabetes") == 1
    assert "0.69" in text


def test_plan_of_sparse_rows(run):
    output = run("plan", 20_000, 50_000, "--device", "cpu", "--entries", 80, "--operator", "tiled")
    assert "20,000 rows of about 80 entries, lam >= 2" in " ".join(output.split())
    memory, unit = output.split("memory")[1].split()[:2]
    assert unit == "MB"
    assert float(memory) < 1000  # of dense rows it would be gigabytes
    output = run("plan", 100, 50, "--entries", 80, code=2)
    assert "error: entries=80 of a row are more than its d = 50" in " ".join(output.split())


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(run, table):
    """Their text alone: neither the file nor the line of code that they come from."""
    output = run("fit", "numbers.csv", "--target", "target", "--lam", "1e-18")
    said = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "inaccurate at lam" in said[0]
    assert ".py" not in output
    assert "warnings.warn" not in output
