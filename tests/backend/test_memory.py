"""Sizes, budgets and the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdgpu.backend.memory import available, budget, largest_rows, parse_bytes, require, show
from sdgpu.backend.progress import Stopwatch


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("500", 500),
        (1e6, 10**6),
        ("2K", 2000),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "8 GiB/s", "", -1, 0, "0GB", float("inf")])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="memory="):
        parse_bytes(text)


def test_budget():
    assert budget("1GiB") == 2**30
    assert 0 < budget(None) <= available()


def test_container_limits_count(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1000\n")
    monkeypatch.setattr("sdgpu.backend.memory._CGROUPS", (str(limit),))
    assert available() == 0
    limit.write_text("max\n")
    assert available() > 10**6


LIMITED = """
import resource, sys
import numpy as np, psutil, sdgpu
rng = np.random.default_rng(0)
X, y = rng.standard_normal((1200, 4)), rng.standard_normal(1200)
for kind, field in (("RLIMIT_AS", "vms"), ("RLIMIT_DATA", "data")):
    limit = getattr(resource, kind)
    for room in (40, 90, 110, 130, 150, 200):
        used = getattr(psutil.Process().memory_info(), field)
        resource.setrlimit(limit, (used + room * 10**6, -1))
        for memory in (None, "8GB"):
            try:
                sdgpu.fit(X, y, "rbf", 12.0, method=sys.argv[1], memory=memory)
                print(kind, "fits")
            except MemoryError as error:
                print(kind, "refused" if "may be used" in str(error) else f"died: {error}")
        resource.setrlimit(limit, (-1, -1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of the process that hold")
def test_a_limit_on_the_process_is_seen_before_the_work():
    """``ulimit -v``: refused by name, or done; never an allocation that fails in the middle."""
    root = Path(__file__).parent.parent.parent
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, "eigh"],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    for kind in ("RLIMIT_AS", "RLIMIT_DATA"):
        found = [line for line in run.stdout.splitlines() if line.startswith(kind)]
        assert set(found) == {f"{kind} fits", f"{kind} refused"}
        assert len(found) == 12


def test_require_says_both_sizes():
    with pytest.raises(MemoryError, match="it needs 2 GB, but 1 GB may be used: buy more"):
        require(2 * 10**9, 10**9, "it", "buy more")
    require(5, 5, "it", "")


def test_largest_rows():
    assert largest_rows(1000, lambda n: n * n) == 31
    assert largest_rows(0, lambda n: n + 1) == 0
    assert show(1.5e13) == "15.0 TB"


def test_stopwatch_reports_and_adds_up():
    heard = []
    watch = Stopwatch(lambda: None, progress=heard.append)
    for _ in range(2):
        with watch.stage("work"):
            pass
    assert [event[:3] for event in heard] == [("work", 0, 1), ("work", 1, 1)] * 2
    assert heard[1].seconds_left == 0
    assert watch.seconds["work"] >= 0
    with pytest.raises(RuntimeError), watch.stage("fails"):
        raise RuntimeError
    assert heard[-1][:3] == ("fails", 0, 1)
    for done in (1, 2):
        watch.report("fails", done, 5, error=0.1)
    assert heard[-1].error == 0.1
    assert heard[-1].seconds_left > 0
