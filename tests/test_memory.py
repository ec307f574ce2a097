"""`memory=` is a promise: the resident set of a process of its own grows by less."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdgpu.device.memory import parse_bytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("n", "method", "operator", "memory"),
    [
        (2000, "eigh", "dense", "200MB"),
        (3000, "subspace", "dense", "120MB"),
        (4000, "subspace", "tiled", "70MB"),
        (4000, "lanczos", "tiled", "70MB"),
        (4000, "cg", "tiled", "120MB"),
    ],
)
def test_the_peak_stays_below(n, method, operator, memory):
    command = [sys.executable, "-m", "benchmarks.memory_probe", str(n), method, operator, memory]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    used, planned, status = run.stdout.split(maxsplit=2)
    assert float(used) <= float(planned) <= parse_bytes(memory)
    assert status.startswith(("exact", "converged"))
