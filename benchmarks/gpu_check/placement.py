"""Where the work is done: no host tensor, no wait in a pass, and the CPU's numbers."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import torch

import sdgpu
from benchmarks.gpu_check.check import Setting, Skipped
from sdgpu.backend.backends import to_numpy
from sdgpu.operators import TiledOperator

__all__ = ["fits", "marked_tests", "passes"]

KERNELS = {
    "gaussian": sdgpu.Gaussian(0.5),
    "laplacian": sdgpu.Laplacian(0.3),
    "matern12": sdgpu.Matern(0.5),
    "wendland": sdgpu.Wendland(0, 4.0, dimension=4),
    "arccosine": sdgpu.ArcCosine(0),
    "ntk": sdgpu.NTK(2),
    "sum": sdgpu.Gaussian(0.5) + 0.1 * sdgpu.Linear(),
}
METHODS: dict[str, dict[str, Any]] = {
    "eigh": {},
    "subspace": {"method": "subspace", "operator": "tiled"},
    "lanczos": {"method": "lanczos", "operator": "tiled"},
    "cg": {"method": "cg", "operator": "tiled"},
}


def passes(setting: Setting) -> dict[str, Any]:
    """torch itself raises at the first wait of a second pass, and the product is that of the CPU."""
    n, found = setting.size(20_000, 300), {}
    rng = np.random.default_rng(0)
    rows, V = rng.standard_normal((n, 4)), rng.standard_normal((n, 8))
    rows[5], rows[6] = rows[4], -rows[3]
    some = rng.choice(n, 50, replace=False)
    some[:3] = 4, 5, 6
    X, block = (torch.tensor(a, device=setting.device) for a in (rows, V))
    for name, kernel in KERNELS.items():
        wanted = kernel(rows[some], rows) @ V
        for precision, tol in (("float64", 1e-10), ("mixed", 2e-4), ("float32", 5e-4)):
            K = TiledOperator(kernel, X, precision)
            K.matmat(block)  # counts near pairs: waits once
            setting.wait()
            _debug("error", setting)
            try:
                product = K.matmat(block)
            finally:
                _debug("default", setting)
            assert product.device == X.device
            error = float(np.abs(to_numpy(product)[some] - wanted).max() / np.abs(wanted).max())
            assert error < tol, f"{name}, {precision}: off by {error:.1e}"
            found[f"{name}, {precision}"] = error
    return found


def _debug(mode: str, setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


def fits(setting: Setting) -> dict[str, Any]:
    """Paths, sweeps and leave-one-out of every method, on the device and on the CPU."""
    n, found = setting.size(3000, 120), dict[str, Any]()
    rng = np.random.default_rng(1)
    X, X_new = rng.standard_normal((n, 4)), rng.standard_normal((200, 4))
    Y, Y_new = np.sin(X[:, :2]), np.sin(X_new[:, :2])
    lams = np.geomspace(1e-4, 1e-1, 4) * n
    libraries = {"torch": lambda a, device: torch.tensor(a, device=device)}
    if setting.device == "cuda":
        libraries["numpy"] = lambda a, _: a
    for library, place in libraries.items():
        for name, how in METHODS.items():
            answers = []
            for device in ("cpu", setting.device):
                data = [place(a, device) for a in (X, Y, X_new, Y_new)]
                kernel = sdgpu.Gaussian(0.5)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # probes scatter
                    fitted = sdgpu.fit(
                        data[0], data[1], kernel, lams, steps=4, device=device, **how
                    )
                    path = fitted.path(lams[1], alphas=[0.3, 0.2], steps=3)
                    sweep = fitted.sweep(data[2], data[3], alphas=[0.0, 0.5], steps=4)
                    loo = fitted.sweep(alphas=[0.0, 0.5], steps=4).dataset["mse"].values
                predicted = path.predict(data[2])
                assert library == "numpy" or predicted.device == data[0].device
                answers.append([to_numpy(predicted), sweep.dataset["mse"].values, loo])
            tol = 1e-8 if name == "eigh" else 1e-4
            for what, one, other in zip(("path", "sweep", "loo"), *answers, strict=True):
                error = float(np.abs(one - other).max() / np.abs(one).max())
                found[f"{library}, {name}, {what}"] = error
                # leave-one-out of grown bases is an estimate
                assert error < (0.05 if what == "loo" and tol > 1e-6 else tol), f"{name}: {what}"
            found[f"{library}, {name}"] = fitted.info.backend
    return found


def marked_tests(setting: Setting) -> dict[str, Any]:
    """The tests marked gpu."""
    if setting.dry:
        raise Skipped("without a GPU they are skipped one by one")
    command = [sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-rs", "-p", "no:xdist"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    last = run.stdout.strip().splitlines()[-25:]
    assert run.returncode == 0, "\n".join(last)
    return {"summary": last}
