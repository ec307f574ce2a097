"""The commands of studies: from an example to a page, and one line for everything that goes wrong."""

import json

import pytest
from typer.testing import CliRunner

from sdgpu.cli import app
from sdgpu.study.grid_study import workers

SMALL = """\
name = "small"
seeds = [0, 1]
[data]
source = "diabetes"
rows = 60
[[kernel]]
name = "gaussian"
gamma = [0.05, 0.1]
[grid]
lams_over_n = "1e-3:1:3"
alphas = [0, 0.5, 1]
steps = 2
[compute]
workers = 1
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, ["study", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_from_the_example_to_a_page(call, tmp_path):
    assert "sdgpu study run study.toml" in call("init")
    assert "50 fits for 100 cells, in place of 2,730,000 refits" in call("plan", "study.toml")
    assert not (tmp_path / "study").exists()
    text = (tmp_path / "study.toml").read_text()
    for whole, part in (
        ("seeds = [0, 1, 2, 3, 4]", "seeds = [0, 1]"),
        ("[0.5, 1.0, 2.0, 4.0]", "[1.0]"),
        ("nu = [0.5, 1.5]\nwidth_over_median = [1.0, 2.0, 4.0]", "nu = 0.5"),
        ("# workers = 2", "workers = 1"),
    ):
        assert whole in text
        text = text.replace(whole, part)
    (tmp_path / "study.toml").write_text(text)
    assert "8 cells are finished, in study" in call("run", "study.toml")
    assert "8 cells are finished" in call("resume", "study.toml")
    for place in ("study.toml", "study"):
        shown = call("table", place)
        assert "mean and standard error over 2 cells" in shown
        assert "matern" in shown
    call("table", "study", "--format", "latex", "--out", "a/b.tex", code=2)  # no such folder
    call("table", "study", "--format", "latex", "--by", "noise,kernel", "--out", "b.tex")
    assert (tmp_path / "b.tex").read_text().count(r"\\") == 5
    assert call("table", "study", "--format", "csv").startswith(
        "noise,kernel,parameters,ridge mean"
    )
    call("plot", "study", "--format", "svg", "--out", "drawn")
    assert (tmp_path / "drawn" / "rules.svg").exists()
    assert "wrote study/report.html" in call("report", "study.toml")
    assert "diabetes-widths" in (tmp_path / "study" / "report.html").read_text()


def test_another_folder(call, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    call("run", "small.toml", "--folder", "elsewhere")
    assert not (tmp_path / "small").exists()
    call("report", "small.toml", "--folder", "elsewhere", "--out", "page.html")
    assert (tmp_path / "page.html").exists()


def test_failures_are_told_and_end_with_an_error(call, tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(SMALL)

    def failing(job, **how):
        raise RuntimeError("of a test")

    monkeypatch.setattr(workers, "fit_cells", failing)
    told = call("run", "small.toml", code=1)
    assert "4 failed" in told
    assert "RuntimeError: of a test" in told
    assert "small/cells.jsonl" in told
    lines = (tmp_path / "small" / "cells.jsonl").read_text().splitlines()
    assert all("in failing" in json.loads(line)["traceback"] for line in lines)
    assert "has no finished cell" in call("table", "small", code=2)
    assert "4 failed: what is finished is shown" in call("report", "small")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("plan", "none.toml"),
            "there is no study none.toml: 'sdgpu study init none.toml' writes one",
        ),
        (
            ("run", "bad.toml"),
            "bad.toml, line 8, [kernel] gama: there is no key 'gama': did you mean",
        ),
        (("run", "small.toml", "--workers", "0"), "workers=0 must be at least 1"),
        (("resume", "small.toml"), "there is no study in small to resume"),
        (("table", "small.toml"), "there is no study in small: study.json is missing"),
        (("report", "small.toml"), "there is no study in small: study.json is missing"),
        (("table", "small.toml", "--format", "html"), "format='html' is not known"),
        (("init", "small.toml"), "small.toml exists: name another file, or remove it"),
        (("init", "small"), "studies are written in TOML, name it small.toml"),
    ],
)
def test_errors_are_one_line(call, tmp_path, arguments, words):
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "bad.toml").write_text(SMALL.replace("gamma", "gama"))
    told = call(*arguments, code=2)
    assert words in " ".join(told.split())
    assert "Traceback" not in told
