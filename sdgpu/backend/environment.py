"""What this machine can do: versions, devices, and a small factorisation on each backend."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass

import numpy as np

from sdgpu.backend import cupy_backend
from sdgpu.backend.backends import Backend, NumpyBackend, TorchBackend, cuda_count
from sdgpu.backend.memory import available, show

__all__ = ["Capability", "backends", "versions"]

PACKAGES = (
    "sdgpu",
    "numpy",
    "scipy",
    "torch",
    "array-api-compat",
    "scikit-learn",
    "xarray",
    "matplotlib",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "pykeops",
    "llvmlite",
    "triton",
    "zarr",
    "dask",
)


@dataclass(frozen=True)
class Capability:
    """One backend: whether it computed something here, and a sentence about it."""

    name: str
    works: bool
    detail: str


def versions() -> list[tuple[str, str]]:
    """Versions of Python and of every package that matters, "not installed" where missing."""
    rows = [("python", f"{platform.python_version()} on {platform.platform()}")]
    for name in PACKAGES:
        try:
            rows.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def backends() -> list[Capability]:
    """Try every backend with a small eigendecomposition."""
    rows = [_try(NumpyBackend(), "cpu"), _try(TorchBackend("cpu"), "cpu")]
    if cuda_count():
        rows.append(_try(TorchBackend("cuda:0"), "cuda:0"))
        reason = cupy_backend.why_not()
        rows.append(
            Capability("cupy on cuda:0", False, reason)
            if reason
            else _try(cupy_backend.CupyBackend(0), "cuda:0")
        )
    else:
        rows.append(Capability("torch on cuda", False, "torch sees no CUDA device"))
        rows.append(
            Capability("cupy on cuda", False, cupy_backend.why_not() or "torch sees no CUDA device")
        )
    return rows


def _try(backend: Backend, device: str, n: int = 200) -> Capability:
    rows = np.random.default_rng(0).standard_normal((n, n))
    K = backend.asarray(rows @ rows.T)
    try:
        backend.eigh(backend.xp.asarray(K, copy=True))  # warm up
        backend.synchronize()
        start = time.perf_counter()
        backend.eigh(backend.xp.asarray(K, copy=True))
        backend.synchronize()
    except Exception as error:  # any failure of a driver or library is the answer here
        return Capability(backend.name, False, f"eigendecomposition failed: {error}")
    milliseconds = 1e3 * (time.perf_counter() - start)
    free = show(available(device))
    return Capability(backend.name, True, f"eigh of {n} rows in {milliseconds:.1f} ms; {free} free")
