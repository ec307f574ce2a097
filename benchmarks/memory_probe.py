"""Peak memory of one fit, as a process: `python -m benchmarks.memory_probe N D METHOD OPERATOR MEMORY`.

Prints by how much the resident set grows over imports and data, in bytes, and what was planned. The
process is fresh: what libraries take at their first products counts.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np

import sdgpu
from sdgpu.operators.tiled import FUSED_ROWS


def resident(field: str) -> int:
    """Bytes of a field of this process's status (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])


def main(n: int, d: int, method: str, operator: str, memory: str) -> None:
    warnings.simplefilter("ignore")
    if method != "eigh":
        importlib.import_module("torch")
    if n >= FUSED_ROWS:
        importlib.import_module("sdgpu.operators.fused_cpu")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d))
    Y = np.sin(X[:, :3].sum(axis=1)) + 0.1 * rng.standard_normal(n)
    lams = np.geomspace(1e-4, 1e-1, 10) * n
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS:")
    fitted = sdgpu.fit(
        X,
        Y,
        sdgpu.Gaussian(0.5 / d),
        lams=lams,
        method=method,
        operator=operator,
        tol=1e-4,
        memory=memory,
    )
    print(resident("VmHWM:") - before, fitted.info.bytes, fitted.info.status.split(":")[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
