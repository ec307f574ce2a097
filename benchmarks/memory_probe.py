"""Peak memory of one fit, as a process: `python -m benchmarks.memory_probe N METHOD OPERATOR MEMORY`.

Prints the growth of the resident set over what was there before the fit, in bytes, and what was planned.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

import sdgpu
from benchmarks.problem import make
from sdgpu.device.backend import resolve
from sdgpu.operators.tiled import FUSED_ROWS, TiledOperator
from sdgpu.planner import calibrate


def resident(field: str) -> int:
    """Bytes of a field of this process's status (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])


def main(n: int, method: str, operator: str, memory: str) -> None:
    warnings.simplefilter("ignore")

    def fit(size: int, allowed: str) -> sdgpu.Fit:
        data = make(size, 4, d=4)
        lams = np.geomspace(1e-4, 1e-1, 10) * size
        return sdgpu.fit(
            data.X, data.Y, data.kernel, lams=lams, method=method, operator=operator, tol=1e-4,
            memory=allowed,
        )  # fmt: skip

    # what libraries take for themselves is not counted: imports, compiled code, pools of threads
    fit(400, "4GB")
    warm = TiledOperator(sdgpu.Gaussian(), np.zeros((FUSED_ROWS, 1)), "mixed")
    for columns in (1, 2):
        warm.matmat(np.zeros((FUSED_ROWS, columns)))
    calibrate(resolve("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS:")
    fitted = fit(n, memory)
    print(resident("VmHWM:") - before, fitted.info.bytes, fitted.info.status.split(":")[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
