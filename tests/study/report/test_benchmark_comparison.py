"""Two runs of benchmarks: losses are found, noise is none, files of others are refused."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sdgpu.cli import app
from sdgpu.study.report.benchmark_comparison import compare_benchmarks, read_benchmarks


def write(path, seed, *, loss=0.0, speed=1.0, noise=0.01, spikes=0.1, rounds=20, pages=1.0):
    """A run with noise above its least times, as machines have it, and some rounds that were disturbed."""
    rng = np.random.default_rng(seed)

    def samples(least, slower=0.0):
        times = least * (1 + slower) / speed * (1 + np.abs(rng.normal(0, noise, rounds)))
        return (
            times * np.where(rng.random(rounds) < spikes, rng.uniform(1, 8, rounds), 1)
        ).tolist()

    figures = [
        {
            "question": name,
            "sdgpu": samples(least * pages, slower),
            "calibration": samples(2e-3),
            "one_thread": {},
        }
        for name, least, slower in (("a", 0.01, loss), ("b", 1.3, 0.0))
    ]
    path.write_text(json.dumps({"kind": "benchmarks of sdgpu", "format": 1, "figures": figures}))
    return path


def verdicts(changes):
    return {change.question: change.verdict for change in changes}


@pytest.mark.parametrize("seed", range(20))
def test_identical_runs_raise_no_alarm_and_ten_percent_are_found(tmp_path, seed):
    rng = np.random.default_rng([seed, 7])
    before = write(tmp_path / "before.json", [seed, 0])
    speed = rng.uniform(0.1, 1)  # of the machine on the other day
    same = write(tmp_path / "same.json", [seed, 1], speed=speed)
    slower = write(tmp_path / "slower.json", [seed, 2], speed=speed, loss=0.1)
    assert verdicts(compare_benchmarks(before, same)) == {"a": "same", "b": "same"}
    assert verdicts(compare_benchmarks(before, slower)) == {"a": "slower", "b": "same"}
    assert verdicts(compare_benchmarks(slower, before)) == {"a": "faster", "b": "same"}


def test_what_is_too_noisy_is_unclear_unless_it_is_large(tmp_path):
    before = write(tmp_path / "before.json", 0, noise=0.5)
    assert set(
        verdicts(compare_benchmarks(before, write(tmp_path / "a.json", 1, noise=0.5))).values()
    ) == {"unclear"}
    worse = write(tmp_path / "b.json", 2, noise=0.5, loss=4.0)
    assert verdicts(compare_benchmarks(before, worse))["a"] == "slower"
    few = write(tmp_path / "c.json", 3, rounds=2)
    assert set(verdicts(compare_benchmarks(few, few)).values()) == {"unclear"}


@pytest.mark.parametrize("seed", range(20))
def test_several_runs_outweigh_what_a_process_has_by_chance(tmp_path, seed):
    """A process in five is 15 % slower in the same work, for the whole of its life."""
    rng = np.random.default_rng([seed, 8])
    for name, loss in (("before", 0.0), ("same", 0.0), ("slower", 0.1)):
        slow = rng.permutation([1.15, 1.0, 1.0, 1.0, 1.0])
        for run, pages in enumerate(slow):
            (tmp_path / name / str(run)).mkdir(parents=True)
            write(
                tmp_path / name / str(run) / "x.json",
                [seed, run, *name.encode()],
                loss=loss,
                pages=pages,
            )
    before = tmp_path / "before"
    assert len(read_benchmarks(before)["a"]) == 5
    assert verdicts(compare_benchmarks(before, tmp_path / "same")) == {"a": "same", "b": "same"}
    assert verdicts(compare_benchmarks(before, tmp_path / "slower")) == {"a": "slower", "b": "same"}


def test_rounds_in_one_thread_count_where_there_are_some(tmp_path):
    noisy = json.loads(write(tmp_path / "noisy.json", 0, noise=0.5).read_text())
    calm = json.loads(write(tmp_path / "calm.json", 1).read_text())
    for figure, rounds in zip(noisy["figures"], calm["figures"], strict=True):
        figure["one_thread"] = {name: rounds[name] for name in ("sdgpu", "calibration")}
    (tmp_path / "both.json").write_text(json.dumps(noisy))
    found = compare_benchmarks(tmp_path / "calm.json", tmp_path / "both.json")
    assert verdicts(found) == {"a": "same", "b": "same"}
    assert {change.ratio for change in found} == {1.0}


def test_figures_that_come_and_go(tmp_path):
    both = json.loads(write(tmp_path / "a.json", 0).read_text())
    for name, kept in (("before", 0), ("after", 1)):
        (tmp_path / name).mkdir()
        part = {**both, "figures": [both["figures"][kept], {**both["figures"][0], "question": "c"}]}
        (tmp_path / name / "x.json").write_text(json.dumps(part))
    found = verdicts(compare_benchmarks(tmp_path / "before", tmp_path / "after"))
    assert found == {"a": "gone", "b": "new", "c": "same"}
    assert len(read_benchmarks(tmp_path / "before")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no result of benchmarks"),
        ("[]", "is no result of benchmarks"),
        ('{"kind": "other", "format": 1}', "it is of kind 'other'"),
        ('{"kind": "benchmarks of sdgpu", "format": 9}', "it has format 9, this version reads 1"),
        ('{"kind": "benchmarks of sdgpu", "format": 1}', "'figures'"),
        (
            '{"kind": "benchmarks of sdgpu", "format": 1, "figures": [{"question": "a", "sdgpu": [0], "calibration": [1]}]}',
            "times that are not > 0",
        ),
        ("[" * 100_000, "is no result of benchmarks"),
    ],
)
def test_other_files_are_named(tmp_path, text, words):
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=r"some\.json is no result of benchmarks.*") as caught:
        read_benchmarks(tmp_path / "some.json")
    assert words in str(caught.value)


def test_nothing_to_compare(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        read_benchmarks(tmp_path)
    first = write(tmp_path / "a.json", 0)
    other = json.loads(first.read_text())
    for figure in other["figures"]:
        figure["question"] += " other"
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="no figure in common"):
        compare_benchmarks(first, tmp_path / "b.json")


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    before, same = write(tmp_path / "a.json", 0), write(tmp_path / "b.json", 1)
    slower = write(tmp_path / "c.json", 2, loss=0.1)

    def call(*arguments):
        result = CliRunner().invoke(app, ["bench", "compare", *map(str, arguments)])
        return result.exit_code, result.output

    assert call(before, same) == (0, "2 figures: 0 slower, 0 unclear\n")
    code, text = call(before, slower)
    assert code == 1
    assert "slower" in text
    assert "1 slower, 0 unclear" in text
    assert "same" in call(before, same, "--all")[1]
    code, text = call(before, tmp_path / "none.json")
    assert code == 2
    assert "there are no results of benchmarks" in " ".join(text.split())
