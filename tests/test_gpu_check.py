"""``make gpu-check`` without a GPU: its checks on small problems, and what becomes of one that goes wrong."""

import json
import os
import time

import pytest

from benchmarks.gpu_check import __main__ as runner
from benchmarks.gpu_check.check import Check, Setting, Skipped
from benchmarks.gpu_check.checks import CHECKS, TOTAL_SECONDS

DRY = Setting("cpu", dry=True)
MAY_BE_SKIPPED = {
    "products: Triton against torch's tiles": "CUDA",
    "products: Triton for every kernel": "CUDA",
    "products: KeOps against torch's tiles": "",  # without pykeops or a compiler
    "training: CUDA graphs and compile": "GPU",
    "tests marked gpu": "GPU",
}
SLOW = (
    "NCCL, one rank",
    "products: KeOps against torch's tiles",
    "training: options against a plain one",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "check", [one for one in CHECKS if one.name not in SLOW], ids=lambda c: c.name
)
def test_checks(check):
    outcome = runner.run_one(check, DRY)
    allowed = ("ok", "skipped") if check.name in MAY_BE_SKIPPED else ("ok",)
    assert outcome["status"] in allowed, outcome
    if outcome["status"] == "skipped":
        assert MAY_BE_SKIPPED[check.name] in outcome["message"]
    else:
        assert outcome["figures"]
    json.dumps(outcome, default=str)


def test_names_and_times():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(callable(check.function()) for check in CHECKS)
    # those that are told to be the most important have room beside each other
    assert sum(check.seconds for check in CHECKS[:12]) <= TOTAL_SECONDS + 60


def fails(_):
    raise AssertionError("off by 3e-1\nand more")


def crashes(_):
    os._exit(11)


def hangs(_):
    time.sleep(60)


def skips(_):
    raise Skipped("there is none")


def passes(_):
    return {"figure": 1.5}


def made(monkeypatch, tmp_path, names, seconds=1000.0):
    """Results of functions of this file, each in a process."""
    monkeypatch.setattr(Check, "function", lambda self: globals()[self.place])
    command = (
        "import tests.test_gpu_check as own\n"
        "own.Check.function = lambda self: getattr(own, self.place)\n"
        "raise SystemExit(own.runner.main())"
    )
    popen = runner.subprocess.Popen

    def start(arguments, **how):
        return popen([arguments[0], "-c", command, *arguments[3:]], **how)

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    out = tmp_path / "found.json"
    limits = {"hangs": 10}
    checks = [Check(name, name, limits.get(name, 200)) for name in names]
    results = runner.run_all(checks, DRY, out, seconds=seconds)
    return results, json.loads(out.read_text())


def test_a_crash_ends_one_check(monkeypatch, tmp_path, capsys):
    names = ["fails", "crashes", "hangs", "skips", "passes"]
    results, written = made(monkeypatch, tmp_path, names)
    statuses = [one["status"] for one in results]
    assert statuses == ["failed", "crashed", "timeout", "skipped", "ok"]
    assert results[0]["message"] == "AssertionError: off by 3e-1\nand more"
    assert "ended with 11" in results[1]["message"]
    assert "10 seconds" in results[2]["message"]
    assert results[3]["message"] == "there is none"
    assert results[4]["figures"] == {"figure": 1.5}
    assert written["table"][-1] == "1 ok, 1 failed, 1 crashed, 1 timeout, 1 skipped"
    assert written["checks"] == results
    assert "failed" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_said(monkeypatch, tmp_path):
    results, _ = made(monkeypatch, tmp_path, ["passes"], seconds=3)
    assert results[0]["status"] == "skipped"
    assert "3 seconds are over" in results[0]["message"]


def test_without_a_gpu_it_says_so(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert runner.main([str(tmp_path / "out.json")]) == 2
    assert "--dry" in capsys.readouterr().out
