"""Peak memory of a fit: `python -m benchmarks.memory_probe N D METHOD OPERATOR MEMORY [KIND]`.

Prints by how much the resident set grows over imports and data, in bytes, and what was planned. The
process is fresh: what libraries take at their first products counts. KIND is gaussian, laplacian or sparse.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

import sdgpu
from sdgpu.operators.tile_prices import pays_to_compile

ENTRIES = 50  # of a sparse row


def resident(field: str) -> int:
    """Bytes of a field of this process's status (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text().split(field)[1].split()[0])


def main(n: int, d: int, method: str, operator: str, memory: str, kind: str = "gaussian") -> None:
    warnings.simplefilter("ignore")
    if method != "eigh":
        importlib.import_module("torch")
    kernel = sdgpu.Laplacian(1 / d) if kind == "laplacian" else sdgpu.Gaussian(0.5 / d)
    if kind != "sparse" and pays_to_compile(kernel, n, d):
        importlib.import_module("sdgpu.operators.fused_cpu")
    rng = np.random.default_rng(0)
    X: Any = rng.standard_normal((n, d if kind != "sparse" else 3))
    Y = np.sin(X[:, :3].sum(axis=1)) + 0.1 * rng.standard_normal(n)
    if kind == "sparse":
        kernel = sdgpu.Gaussian(0.5 / ENTRIES)
        X = scipy.sparse.random_array((n, d), density=ENTRIES / d, rng=rng, format="csr")
        Y = X @ rng.standard_normal(d) + np.asarray(X.sum(axis=1))
    lams = np.geomspace(1e-4, 1e-1, 10) * n
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = resident("VmRSS:")
    fitted = sdgpu.fit(
        X, Y, kernel, lams=lams, method=method, operator=operator, tol=1e-4, memory=memory
    )
    print(resident("VmHWM:") - before, fitted.info.bytes, fitted.info.status.split(":")[0])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
