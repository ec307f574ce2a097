"""The page of a study: one file, nothing from elsewhere, all numbers of the tables, any text in its place."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from sdgpu.study import open_study, run
from sdgpu.study.grid_study import workers
from sdgpu.study.grid_study.summary_tables import formatted
from sdgpu.study.pictures.inline_svg import inline_svg
from sdgpu.study.report.page import write_report
from sdgpu.study.report.study_pictures import study_pictures
from tests.study.grid_study.test_running import tables

VOID = {"meta", "input", "br", "img", "link"}


class Balanced(HTMLParser):
    """Every tag that opens is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    more = {"description": "a <b> & its 'friends'", "seeds": [0, 1, 2]}
    return run(tables(**more), tmp_path_factory.mktemp("report") / "study")


@pytest.fixture(scope="module")
def page(study):
    return write_report(study, study.folder / "report.html").read_text()


def test_the_page_is_whole_and_needs_nothing_else(page, study):
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    for address in parser.addresses:
        assert address.startswith(("#", "data:")), address
        if address.startswith("#"):
            assert address[1:] in parser.ids
    assert not re.search(r"url\((?!#|data:)", page)
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons)", page)
    assert len(page) < 5e6
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "a &lt;b&gt; &amp; its &#39;friends&#39;" in page


def test_the_page_has_the_numbers(page, study):
    summary = study.summary()
    for rule in study.config.choose.rules:
        for value in summary[rule, "mean"]:
            assert f'data-value="{value}"' in page
    frame = study.frame.set_index(["noise", "parameters", "seed", "rule"])["test_mse"].unstack()
    gain = (100 * (1 - frame["fixed"] / frame["ridge"])).groupby(level=[0, 1]).mean()
    for value in gain:
        assert f'data-value="{value}"' in page
    for record in study.records:
        assert f"{record['chosen']['fixed']['test_mse']:.6g}" in page
    assert study.records[0]["versions"]["numpy"] in page


def test_pictures(study):
    names = [picture.name for picture in study_pictures(study)]
    assert names == [
        *("rules", "over_noise", "losses_1", "alpha_star_1", "losses_2", "alpha_star_2")
    ]
    with pytest.raises(ValueError, match="loss='test_mae' is not known"):
        write_report(study, study.folder / "other.html", loss="test_mae")


def test_drawings_follow_the_colours_of_the_page():
    figure = Figure()
    ax = figure.subplots()
    ax.plot([0, 1], [1, 0], color="black", label="line")
    ax.set_title("a < b & c")
    ax.legend()
    one, other = inline_svg(figure, "one"), inline_svg(figure, "two")
    assert one.startswith("<svg")
    assert "#000000" not in one
    assert "a &lt; b &amp; c" in one
    assert "currentColor" in one
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (one, other)]
    assert not ids[0] & ids[1]
    assert inline_svg(figure, "one") == one


def test_what_failed_is_shown(tmp_path, monkeypatch):
    work = workers.fit_cells

    def failing(job, **how):
        if job.seed == 1:
            raise RuntimeError("<script>alert('no')</script>")
        return work(job, **how)

    monkeypatch.setattr(workers, "fit_cells", failing)
    found = run(tables(), tmp_path / "a")
    text = write_report(found, tmp_path / "page.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "0 cells are open, 4 have failed" in text
    monkeypatch.setattr(workers, "fit_cells", None)
    found = run(tables(), tmp_path / "b")  # nothing but failures
    assert len(found.failed) == 8
    assert "TypeError" in write_report(found, tmp_path / "all.html").read_text()


def test_refusals(study, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.html"):
        write_report(study, tmp_path / "page.pdf")
    place = tmp_path / "empty"
    (place / "cells").mkdir(parents=True)
    (place / "study.json").write_bytes((study.folder / "study.json").read_bytes())
    with pytest.raises(ValueError, match="has no finished cell: run it first"):
        write_report(open_study(place), tmp_path / "page.html")


@pytest.mark.parametrize("kind", ["text", "csv", "latex", "markdown"])
def test_tables(study, kind):
    text = formatted(study, kind)
    summary = study.summary()
    mean = summary.loc[(0.5, "gamma=0.1"), ("gcv", "mean")]
    assert f"{mean:.2f}" in text or repr(float(mean)) in text
    if kind == "csv":
        lines = text.splitlines()
        assert lines[0].startswith("noise,parameters,ridge mean,ridge error")
        assert len(lines) == 5
    elif kind == "latex":
        assert r"$\pm$" in text
        assert not re.search(r"(?<!\\)_", text)
    else:
        assert "+-" in text
    with pytest.raises(ValueError, match="format='html' is not known"):
        formatted(study, "html")


def test_classes_and_one_cell(tmp_path):
    more = {
        "seeds": 0,
        "noise": {"kind": "symmetric", "levels": 0.2},
        "data": {"source": "digits", "rows": 80},
        "kernel": {"name": "linear"},
        "choose": {"rules": ["ridge", "accuracy"], "metrics": ["accuracy"]},
    }
    found = run(tables(**more), tmp_path / "a")
    assert len(found.records) == 1
    text = write_report(found, tmp_path / "page.html", loss="test_accuracy").read_text()
    value = found.records[0]["chosen"]["ridge"]["test_accuracy"]
    assert f'data-value="{value}"' in text
    assert np.isnan(found.summary().iloc[0][("ridge", "error")])
