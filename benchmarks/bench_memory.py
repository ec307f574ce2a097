"""How much memory do a fit and a sweep take at the peak, in units of n^2 doubles?

LAPACK's divide and conquer needs K, overwritten by V, and 2 n^2 of workspace: 3 n^2 is the bound.
Each measurement is a process of its own, by the peak of its resident set (Linux).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conftest import REPORT
from sdgpu.backend.memory import parse_bytes

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.problem import make
import sdgpu
n, c = int(sys.argv[1]), int(sys.argv[2])
small = make(200, 50, c=c)
sdgpu.fit(small.X, small.Y, small.kernel, lams=small.lams).sweep(small.X_val, small.Y_val)  # imports
data = make(n, n // 4, c=c)
def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = resident("VmRSS:")
fitted = sdgpu.fit(data.X, data.Y, data.kernel, lams=data.lams)
fitted.sweep(data.X_val, data.Y_val)
print((resident("VmHWM:") - before) / (8 * n * n))
"""


@pytest.mark.parametrize(
    ("n", "d", "method", "operator", "memory"),
    [
        (3000, 4, "eigh", "dense", "1GB"),
        (6000, 4, "subspace", "dense", "400MB"),
        (6000, 4, "subspace", "tiled", "140MB"),
        (6000, 4, "lanczos", "tiled", "110MB"),
        (20_000, 4, "subspace", "tiled", "350MB"),
        (12_000, 4, "cg", "dense", "1.2GB"),
        (500, 20_000, "eigh", "dense", "300MB"),
        (3000, 1000, "subspace", "tiled", "150MB"),
    ],
)
def test_memory_is_a_promise(
    n: int, d: int, method: str, operator: str, memory: str, device: str
) -> None:
    """The resident set of a process grows by less than was allowed, and by less than was planned."""
    if device != "cpu":
        pytest.skip("the resident set tells nothing of a GPU")
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory_probe",
        str(n),
        str(d),
        method,
        operator,
        memory,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    used, planned, status = run.stdout.split(maxsplit=2)
    question = (
        f"fit(memory={memory!r}) of {n:,} x {d:,}, {method}, {operator}: peak ({status.split()[0]})"
    )
    megabytes = [f"{float(value) / 1e6:.0f} MB" for value in (used, planned)]
    REPORT.rows.append((question, megabytes[0], f"{megabytes[1]} planned", "", f"<= {memory}"))
    assert float(used) <= float(planned) <= parse_bytes(memory)


LOADING = """
import sys
from pathlib import Path
from sdgpu.nn import load_images
load_images("generated", rows=100)  # imports
def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS:")
data = load_images(sys.argv[1], val=0.1)
print(resident("VmHWM:") - before, sum(x.pixels.nbytes for x in (data.train, data.val, data.test)))
"""


@pytest.mark.parametrize("form", ["images", "x_train"])
def test_loading(form: str, tmp_path: Path, device: str) -> None:
    """150 MB of images in an npz, channels last, of which parts are taken."""
    if device != "cpu":
        pytest.skip("the resident set tells nothing of a GPU")
    images = np.random.default_rng(0).integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    names = ("images", "labels") if form == "images" else ("x_train", "y_train")
    labels = (np.arange(50_000) % 10).astype(np.uint8)
    np.savez(tmp_path / "images.npz", **dict(zip(names, (images, labels), strict=True)))
    command = [sys.executable, "-c", LOADING, str(tmp_path / "images.npz")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size = (float(number) for number in run.stdout.split())
    question = (
        f"peak of loading 50,000 x 32 x 32 x 3 from an npz ({form}), its own parts of it counted"
    )
    megabytes = [f"{value / 1e6:.0f} MB" for value in (peak, size)]
    REPORT.rows.append((question, *megabytes, f"{peak / size:.2f}", "<= 1.5"))
    assert peak <= 1.5 * size


@pytest.mark.parametrize(("n", "c"), [(2000, 1), (2000, 10), (4000, 1)])
def test_peak(n: int, c: int, device: str) -> None:
    if device != "cpu":
        pytest.skip("the resident set tells nothing of a GPU")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(n), str(c)], capture_output=True, text=True, check=True
    )
    used = float(run.stdout)
    question = f"peak memory of fit and sweep, n = {n:,}, {c} outputs, in n^2 doubles"
    REPORT.rows.append((question, f"{used * 8e-6 * n * n:.0f} MB", "", f"{used:.2f}", "<= 3.5"))
    assert used <= 3.5
